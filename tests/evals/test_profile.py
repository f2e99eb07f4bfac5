"""Profiles of runs: what is added up, what does not add up, and what nobody can know."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from punie_mlx.cli import app
from punie_mlx.corpus.world import TOOLS
from punie_mlx.errors import ConfigError, DataError, ServerError
from punie_mlx.evals import replay
from punie_mlx.evals.profile import CLIENT, SERVER, adds_up, profile_of, quantile, stats
from punie_mlx.evals.profile_tables import grids, warnings
from punie_mlx.evals.profiling import ProfileConfig
from punie_mlx.evals.replay import PARTS, Streamed, Target
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.evals.stopwatch import Stopwatch
from punie_mlx.evals.tables import terminal

from .conftest import FINGERPRINT, call, says
from .made import made_case, made_run

SPANS = {"receive": 1, "parse": 1, "render": 4, "queue": 2, "prefill": 20, "decode": 60, "respond": 1, "trace": 1}
INSIDE = {"render": {"grammar_seconds": 0.001}, "decode": {"tokens": 7, "grammar_seconds": 0.01, "read_seconds": 0.002}}


def traced(spans: dict[str, float] = SPANS, network: float = 10, **more: Any) -> dict[str, Any]:
    """An exchange with these spans, in milliseconds."""
    at, shown = 0.0, []
    for name, took in spans.items():
        inside = {"attributes": INSIDE[name]} if name in INSIDE else {}
        shown.append({"name": name, "start": at, "end": at + took / 1000, **inside})
        at += took / 1000
    trace = {"prompt": [], "output": [], "events": [], "spans": shown, "wall": at, **more}
    return {"seconds": at + network / 1000, "trace": trace}


def timed(
    *exchanges: dict[str, Any], tool: float = 5, client: float | None = 15, record: float = 1, lost: float = 0
) -> dict[str, Any]:
    """A case with `exchanges`; `lost` milliseconds are in its wall time and nowhere else."""
    model = sum(x["seconds"] for x in exchanges)
    parts = {"tools": tool / 1000, "client": None if client is None else client / 1000, "record": record / 1000}
    wall = model + (tool + (client or 0) + record + lost) / 1000
    return made_case(trajectory=list(exchanges), seconds={"wall": wall, "model": model, **parts})


def run_of(*cases: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return made_run([{**case, "id": str(i)} for i, case in enumerate(cases)], **settings)


def shown(found: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for grid in grids(found):
        console.print(terminal(grid))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---- from a run to a profile ----


def test_a_case_is_its_phases() -> None:
    warm = timed(traced({**SPANS, "prefill": 900}))
    found = profile_of(run_of(warm, timed(traced(), traced()), timed(traced())), {"load": 2.5})
    assert found["phases_order"] == [*SERVER, "network", "tool", "client", "record"]
    assert found["phases"]["decode"]["p50"] == pytest.approx(0.09)  # of the cases, of which one had two requests
    assert found["phases"]["network"]["total"] == pytest.approx(0.03)
    assert (found["phases"]["tool"]["total"], found["phases"]["client"]["total"]) == pytest.approx((0.01, 0.03))
    assert sum(found["phases"][n]["share"] for n in found["phases_order"]) == pytest.approx(1)
    assert found["unaccounted_share"] == pytest.approx(0, abs=1e-9) and adds_up(found)
    assert (found["cases"], found["requests"], found["server"]) == (2, 3, "punie-mlx")
    assert found["warm_up"]["load"] == 2.5 and found["warm_up"]["first_request"] > 0.9  # and nowhere else:
    assert found["phases"]["prefill"]["total"] == pytest.approx(0.06)
    request = found["per_request"]
    assert request["time_to_first_token"]["p50"] == pytest.approx(0.028)
    assert request["tokens_per_second"]["mean"] == pytest.approx(100) and request["tokens_per_second"]["total"] is None
    inside = found["inside"]
    assert inside["decode.grammar"]["total"] == pytest.approx(0.03) and "render.grammar" in inside
    assert inside["decode.grammar"]["share"] < found["phases"]["decode"]["share"]
    assert list(warnings(found)) == []
    assert "of which grammar" in shown(found) and "2.50 s" in shown(found)


def test_time_that_nobody_knows_of_is_told_loudly() -> None:
    fine = profile_of(run_of(timed(traced()), timed(traced(), lost=2)))
    assert 0.01 < fine["unaccounted_share"] < 0.02 and adds_up(fine)
    found = profile_of(run_of(timed(traced()), timed(traced(), lost=20)))
    assert found["unaccounted_share"] == pytest.approx(20 / 141) and not adds_up(found)
    assert found["accounting"]["client"] == pytest.approx(20 / 141) and found["accounting"]["server"] == 0
    (warning,) = warnings(found)
    assert "DO NOT ADD UP" in warning and "14.2%" in warning
    # What is counted twice in one case does not make good for what is missing in another.
    twice = profile_of(run_of(timed(traced()), timed(traced(), lost=20), timed(traced(), lost=-20)))
    assert twice["unaccounted_share"] > 0.1


def test_spans_with_a_gap_or_a_server_that_outlasts_its_client_do_not_add_up() -> None:
    gap = profile_of(run_of(timed(traced()), timed(traced(wall=0.12, network=40))))
    assert gap["accounting"]["server"] == pytest.approx(0.03 / 0.12) and not adds_up(gap)
    late = profile_of(run_of(timed(traced()), timed(traced(network=-30))))
    assert late["phases"]["network"]["total"] == 0 and not adds_up(late)


def test_what_cannot_be_known_is_null() -> None:
    foreign = profile_of(run_of(*(timed({"seconds": 0.1, "trace": None}) for _ in range(3))))
    assert foreign["phases_order"] == ["exchange", "tool", "client", "record"]
    assert foreign["phases"]["decode"] == stats(()) and foreign["phases"]["decode"]["total"] is None
    assert foreign["server"] is None and adds_up(foreign)
    assert foreign["per_request"]["time_to_first_token"]["p50"] is None and "–" in shown(foreign)
    unmeasured = timed(traced(), client=None, lost=15)  # a run that did not measure its agent: no remainder is taken
    found = profile_of(run_of(timed(traced()), unmeasured))
    assert found["phases"]["client"]["total"] is None and not adds_up(found)
    cut = {"seconds": 0.1, "trace": {"cut": True, "bytes": 10**7, "text": "{"}}
    assert profile_of(run_of(timed(cut), timed(cut)))["phases_order"][0] == "exchange"


def test_cases_that_shared_the_server_have_no_profile() -> None:
    with pytest.raises(DataError, match="--concurrency 1"):
        profile_of(run_of(timed(traced()), concurrency=4))


def test_figures() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5 and quantile([7], 0.95) == 7
    assert stats([1.0, 3.0], 8.0) == {"p50": 2.0, "p95": 2.9, "mean": 2.0, "total": 4.0, "share": 0.5}
    assert stats([1.0, None])["mean"] is None


# ---- the client's clock ----


def test_a_stopwatch_runs_in_pieces() -> None:
    watch = Stopwatch()
    assert watch.seconds is None and not watch.halt()
    began = time.perf_counter()
    for _ in range(2):
        watch.go()
        time.sleep(0.02)
        assert watch.halt()
        time.sleep(0.02)
    assert watch.seconds is not None and 0.04 <= watch.seconds <= time.perf_counter() - began - 0.04


def agent_run(tmp_path: Path, scripted: Any, through: str, queries: Sequence[str]) -> dict[str, Any]:
    path = tmp_path / "suite.jsonl"
    expect = {"calls": [{"name": "read_file"}]}
    cases = [
        {"id": q, "category": "c", "query": q, "tools": [TOOLS["read_file"]], "files": {"a": "b"}, "expect": expect}
        for q in queries
    ]
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    config = EvalConfig(
        suites=(path,), url=scripted.url, fingerprint=FINGERPRINT, through=through, concurrency=1,
        allow_missing_tools=True,
    )  # fmt: skip
    return evaluate(config)


@pytest.mark.parametrize("through", ["pydantic-ai", "openai"])
def test_the_agent_is_measured_and_not_the_remainder(tmp_path: Path, scripted: Any, through: str) -> None:
    def reply(body: dict[str, Any]) -> Any:
        time.sleep(0.1)  # so that what lies between two hooks is little beside it
        if body["messages"][0]["content"] == "lost":
            return None
        return says("b") if len(body["messages"]) > 2 else says(None, call("read_file", {"path": "a"}))

    scripted.reply = reply
    run = agent_run(tmp_path, scripted, through, ["one", "two", "three", "lost"])
    *good, lost = run["cases"]
    assert all(len(c["trajectory"]) == 2 and c["calls"][0]["ok"] for c in good)
    found = profile_of({**run, "cases": good})
    for name in ("tool", "client", "record"):
        assert 0 < found["phases"][name]["total"] < found["wall"]["total"]
    assert found["phases"]["exchange"]["total"] > 0.4 and adds_up(found)
    # An exchange that came to no end is on no record. Its time must not become the agent's.
    assert lost["trajectory"] == [] and lost["seconds"]["client"] <= lost["seconds"]["wall"] - 0.1
    assert not adds_up(profile_of({**run, "cases": [good[0], lost]}))


# ---- beside another server ----


class Streaming(ThreadingHTTPServer):
    """Streams `parts`, waiting before each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Streaming)
        self.parts: list[tuple[float, Any]] = []
        self.bodies: list[Any] = []


class _Streaming(BaseHTTPRequestHandler):
    server: Streaming

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.parts == [(0, None)]:
            return self.send_error(404)
        self.send_response(200)
        self.end_headers()
        for wait, delta in self.server.parts:
            time.sleep(wait)
            event = {"choices": [{"delta": delta}]} if "usage" not in delta else {"choices": [], **delta}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def streaming() -> Iterator[Streaming]:
    with Streaming() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def target_of(server: Streaming, name: str = "s") -> Target:
    return Target(name, f"http://127.0.0.1:{server.server_port}/v1", "m", 1.0)


def test_a_stream_is_timed_from_outside(streaming: Streaming) -> None:
    usage = {"usage": {"completion_tokens": 5}}
    streaming.parts = [(0.05, {"role": "assistant"}), (0.05, {"content": "Hi"}), (0.05, {"content": "!"}), (0, usage)]
    found = replay.stream(target_of(streaming), {"messages": [], "model": "other"}, 10)
    assert found.good and found.tokens == 5 and found.first_byte is not None and found.first_text is not None
    assert found.first_text >= 0.1 and found.total >= 0.15 and found.first_byte < found.first_text < found.total
    assert sum(found.parts.values()) == pytest.approx(found.total)
    (sent,) = streaming.bodies
    assert (sent["model"], sent["stream"], sent["stream_options"]) == ("m", True, {"include_usage": True})
    streaming.parts = [(0, None)]
    assert not replay.stream(target_of(streaming), {}, 10).good
    streaming.shutdown()
    streaming.server_close()
    with pytest.raises(ServerError, match="broke off"):
        replay.stream(target_of(streaming), {}, 10)


def test_servers_take_turns(streaming: Streaming) -> None:
    streaming.parts = [(0, {"content": "x"})]
    targets = [Target(n, target_of(streaming).url, n, 1.0) for n in ("a", "b")]
    found = replay.compare(targets, [{"k": 1}, {"k": 2}, {"k": 3}], repeats=2)
    assert [len(f) for f in found] == [6, 6]
    asked = [(b["k"], b["model"]) for b in streaming.bodies]
    assert asked[:4] == [(1, "a"), (1, "b"), (2, "b"), (2, "a")]
    assert sorted(asked) == sorted((k, n) for k in (1, 2, 3) for n in "ab" for _ in range(2))


def test_a_foreign_profile_tells_no_more_than_its_bytes() -> None:
    mine = [Streamed(200, 0.1, 0.2, 1.0, 10), Streamed(200, 0.1, 0.2, 0.5, 10), Streamed(200, 0.1, None, 0.5, 1)]
    other = [Streamed(200, 0.1, 0.4, 2.0, 10), Streamed(200, 0.2, 0.4, 1.0, 9), Streamed(404, 0.1, None, 0.1, None)]
    found = replay.profile_of_target(Target("mlx_lm.server", "", "", 3.0), other, {"model": {"name": "m"}})
    assert all(found["phases"][name] == stats(()) for name in SERVER)
    assert found["phases_order"] == list(PARTS) and found["unaccounted_share"] is None
    assert sum(found["phases"][n]["total"] for n in PARTS) == pytest.approx(found["wall"]["total"]) == 1.0
    assert (found["requests"], found["failed"], found["warm_up"]["load"]) == (1, 1, 3.0)
    ratios = replay.ratios(mine, other)
    assert (ratios["requests"], ratios["as_many_tokens"]) == (1, 0)
    assert ratios["exchange"]["median"] == 0.5 and ratios["tokens_per_second"]["median"] == pytest.approx(20 / 9)
    ours = replay.profile_of_target(Target("punie-mlx", "", "", 1.5), mine, {"model": {"name": "m"}})
    whole = {**profile_of(run_of(timed(traced()), timed(traced()))), "comparison": [ours, found], "ratios": ratios}
    assert "mlx_lm.server did not answer 1 requests" in "".join(warnings(whole))
    assert "0.50" in shown(whole) and "2.22" in shown(whole)


# ---- the verb ----


def verb(*options: str | Path) -> Any:
    return CliRunner().invoke(app, ["profile", *map(str, options)])


def test_a_run_file_has_a_profile(tmp_path: Path) -> None:
    path, out = tmp_path / "run.json", tmp_path / "profile.json"
    path.write_text(json.dumps(run_of(timed(traced()), timed(traced()))))
    done = verb("--run", path, "--json", out)
    assert done.exit_code == 0 and "prefill" in done.stdout
    assert json.loads(out.read_text())["kind"] == "profile"
    path.write_text(json.dumps(run_of(timed(traced()), timed(traced(), lost=30))))
    done = verb("--run", path)
    assert done.exit_code == 1 and "DO NOT ADD UP" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--run", "x", "--model", "y"], "leave --model"),
        (["--model", "data/tiny-base"], "no suite"),
        (["--suite", "s.jsonl"], "nothing to score"),
        (["--model", "data/tiny-base", "--suite", "s", "--through", "model"], "choose pydantic-ai or openai"),
        (["--url", "http://h", "--fingerprint", "f", "--suite", "s", "--compare-stock"], "starts both servers"),
        (["--model", "data/tiny-base", "--suite", "s", "--stock-model", "x"], "--compare-stock"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], told: str) -> None:
    done = verb(*options)
    assert isinstance(done.exception, ConfigError) and told in str(done.exception)


def test_a_profile_is_of_one_case_after_the_other() -> None:
    config = ProfileConfig(model=Path("m"), suites=(Path("s"),), repeats=3).evaluation("http://h")
    assert (config.concurrency, config.repeats, config.url) == (1, 3, "http://h")
    assert set(CLIENT).isdisjoint(SERVER)
