"""An evaluation that is stopped goes on where it was: journals by themselves, and a real SIGKILL in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest

from punie_mlx.errors import FingerprintError, OutputError, ServerError
from punie_mlx.evals import record, runner
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.journal import journal, journal_path
from punie_mlx.evals.runner import EvalConfig, evaluate

from .conftest import FINGERPRINT, says

FACTS = {"model": "a" * 64, "settings": {"max_tokens": 512, "temperature": 0.0}}


def case(id):
    return {"id": id, "category": "c", "query": f"query {id}", "tools": [], "expect": {"calls": []}}


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(case(str(i))) + "\n" for i in range(8)))
    return path


def config(suite, scripted, **more):
    more = {"concurrency": 1, "out": suite.parent / "out.json", **more}
    return EvalConfig(suites=(suite,), url=scripted.url, fingerprint=FINGERPRINT, **more)


def asked(scripted):
    return [r["messages"][0]["content"] for r in scripted.requests]


# ---- journals ----


def test_records_come_back(tmp_path):
    out = tmp_path / "out.json"
    with journal(out, FACTS) as first:
        assert first.records == []
        first.add({"id": "0", "answer": "ä\n\udcff"})
        first.add({"id": "1"})
    with journal(out, FACTS) as second:
        assert [r["id"] for r in second.records] == ["0", "1"] and second.records[0]["answer"] == "ä\n\udcff"
        second.finish()
    assert not journal_path(out).exists()


@pytest.mark.parametrize("rest", ['{"id": "1", "ans', '{"id": "1"}', "\x00\x00\x00\x00", "[1]\n"])
def test_a_half_written_line_is_dropped_and_what_follows_is_whole(tmp_path, rest):
    out = tmp_path / "out.json"
    with journal(out, FACTS) as first:
        first.add({"id": "0"})
    with journal_path(out).open("a") as file:
        file.write(rest)
    with journal(out, FACTS) as second:
        assert [r["id"] for r in second.records] == ["0"]
        second.add({"id": "2"})
    with journal(out, FACTS) as third:
        assert [r["id"] for r in third.records] == ["0", "2"]


def test_another_evaluation_is_not_thrown_away_unasked(tmp_path):
    out = tmp_path / "out.json"
    other = {**FACTS, "settings": {"max_tokens": 64, "temperature": 0.0}}
    with journal(out, FACTS) as first:
        first.add({"id": "0"})
    told = r"1 cases .* \(settings.max_tokens was 512, is 64\): pass --restart"
    with pytest.raises(OutputError, match=told) as e, journal(out, other):
        pass
    assert e.value.exit_code == 2
    with journal(out, FACTS) as again:
        assert len(again.records) == 1
    with journal(out, other, restart=True) as anew:
        assert anew.records == []
    with journal(out, other) as kept:
        assert kept.records == []


def test_nothing_is_lost_with_a_journal_that_holds_no_case(tmp_path):
    with journal(tmp_path / "out.json", FACTS):
        pass
    with journal(tmp_path / "out.json", {"model": "b"}) as other:
        assert other.records == []


def test_a_file_that_is_no_journal_is_kept(tmp_path):
    out = tmp_path / "out.json"
    journal_path(out).write_text('{"mine": 1}\n{"mine": 2}\n')
    with pytest.raises(OutputError, match="--restart"), journal(out, FACTS):
        pass
    assert "mine" in journal_path(out).read_text()


def test_two_do_not_write_the_same(tmp_path):
    out, refused = tmp_path / "out.json", pytest.raises(OutputError, match="another evaluation writes")
    with journal(out, FACTS), refused, journal(out, FACTS):
        pass


# ---- evaluations ----


def test_a_dead_server_leaves_what_was_finished(suite, scripted):
    """Then the same command goes on, with the rest alone; the result is that of one piece."""
    whole = evaluate(config(suite, scripted, out=None))
    scripted.requests.clear()

    def reply(body):
        if len(scripted.requests) == 4:
            return _die(scripted)
        return says("An answer.")

    known, scripted.reply = scripted.models, reply
    with pytest.raises(ServerError, match="does not answer any more"):
        evaluate(config(suite, scripted))
    out = suite.parent / "out.json"
    first = asked(scripted)
    scripted.models, scripted.reply = known, lambda body: says("An answer.")
    scripted.requests.clear()
    said = []
    result = evaluate(config(suite, scripted), say=said.append)
    assert first == [f"query {i}" for i in range(4)] and asked(scripted) == [f"query {i}" for i in range(3, 8)]
    assert said == ["going on after 3 of 8 cases that are done already"]
    assert [c["id"] for c in result["cases"]] == [c["id"] for c in whole["cases"]]
    assert result["summary"]["passed"] == 8 and json.loads(out.read_text()) == result
    # Each session has a warm-up, whose time counts for nothing.
    assert [c["id"] for c in result["cases"] if c["warm_up"]] == ["0", "3"]
    assert (whole["summary"]["seconds_per_query"]["n"], result["summary"]["seconds_per_query"]["n"]) == (7, 6)
    assert not journal_path(out).exists()


def test_the_prompts_are_looked_at_where_nothing_is_left_to_run(tmp_path, scripted, monkeypatch):
    """Stopped between the last case and the result: what is wrong with the prompts is told all the same."""
    suite = tmp_path / "suite.jsonl"
    tool = {"type": "function", "function": {"name": "read_file", "parameters": {}}}
    suite.write_text(json.dumps({**case("0"), "tools": [tool]}) + "\n")
    scripted.beside = {"punie_trace": {"prompt": [[0, "query, and no tools"]]}}
    allowed = config(suite, scripted, allow_missing_tools=True)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(runner, "write", _stop)
        evaluate(allowed)
    told = []
    result = evaluate(allowed, lambda *done: told.append(done))
    assert len(scripted.requests) == 1 and told == [(1, 1, 1)]
    [warning] = result["warnings"]
    assert "of 1 offered tools the model's prompt holds none" in warning


def _stop(*args):
    raise KeyboardInterrupt


def test_what_another_model_answered_is_taken_back(suite, scripted):
    """A server that was replaced somewhere in this session: none of its answers are kept for the next."""
    known = scripted.models

    def reply(body):
        if len(scripted.requests) == 8:
            scripted.models = [{"id": "m", "object": "model", "fingerprint": "0" * 64}]
        return says("An answer.")

    scripted.reply = reply
    with pytest.raises(FingerprintError):
        evaluate(config(suite, scripted))
    scripted.models = known
    scripted.requests.clear()
    scripted.reply = lambda body: says("An answer.")
    evaluate(config(suite, scripted))
    assert len(scripted.requests) == 8


def test_other_settings_are_another_evaluation(suite, scripted):
    scripted.reply = lambda body: says("x") if len(scripted.requests) < 3 else _die(scripted)
    with pytest.raises(ServerError):
        evaluate(config(suite, scripted))
    with pytest.raises(OutputError, match=r"settings\.max_tokens was 1024, is 64"):
        evaluate(config(suite, scripted, agent=AgentSettings(max_tokens=64)))


def _die(scripted):
    """From now on nobody answers."""
    scripted.models = None


def test_a_judge_that_fails_ends_the_evaluation(suite, scripted, monkeypatch):
    """pydantic_evals would note it in its report and count the case as one without a verdict."""
    monkeypatch.setattr(record, "score", lambda *args, **more: 1 / 0)
    with pytest.raises(Exception, match="the judge Passed failed on case suite/0#0: ZeroDivisionError"):
        evaluate(config(suite, scripted))
    assert not (suite.parent / "out.json").exists() and len(scripted.requests) == 1


def test_a_killed_evaluation_goes_on(tmp_path, suite, scripted):
    """The real command, stopped while the fifth case waits for its answer; then the same command again."""
    waits, stopped = threading.Event(), threading.Event()

    def reply(body):
        if body["messages"][0]["content"] == "query 4" and not stopped.is_set():
            waits.set()
            stopped.wait(30)
        return says("An answer.")

    scripted.reply = reply
    out = tmp_path / "out.json"
    options = ["--suite", suite, "--url", scripted.url, "--fingerprint", FINGERPRINT, "--concurrency", 1, "--json", out]
    command = [sys.executable, "-W", "default", "-m", "punie_mlx", "eval", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert waits.wait(60), "the fifth case was never asked"
        process.kill()
        process.wait(30)
        stopped.set()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    assert len(journal_path(out).read_text().splitlines()) == 1 + 4
    scripted.requests.clear()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "going on after 4 of 8 cases" in done.stderr, done.stderr
    assert asked(scripted) == [f"query {i}" for i in range(4, 8)]
    assert [c["id"] for c in json.loads(out.read_text())["cases"]] == [str(i) for i in range(8)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "suite.jsonl"]
    assert "Warning" not in done.stderr


CONNECTS = """
import sys
def hook(event, args):
    if event == "socket.connect" and str(args[1][0]) != "127.0.0.1":
        print("CONNECTED", args[1], file=sys.stderr)
    if event in ("socket.getaddrinfo", "socket.gethostbyname") and not str(args[0]).startswith("127."):
        print("LOOKED UP", args[0], file=sys.stderr)
sys.addaudithook(hook)
import socket
try:
    socket.create_connection(("127.0.0.2", 9), timeout=1)
except OSError:
    pass
sys.argv = ["punie-mlx", *sys.argv[1:]]
from punie_mlx.cli import main
main()
"""


def test_nothing_is_sent_anywhere_else(suite, scripted):
    """pydantic_evals and PydanticAI may trace to a service: not here. The first line shows that the hook sees."""
    options = ["--suite", suite, "--url", scripted.url, "--fingerprint", FINGERPRINT, "--limit", 2]
    command = [sys.executable, "-W", "default", "-c", CONNECTS, "eval", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert done.stderr.split("\n")[0] == "CONNECTED ('127.0.0.2', 9)"
    assert done.stderr.count("CONNECTED") == 1 and "LOOKED UP" not in done.stderr, done.stderr
