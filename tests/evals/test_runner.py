"""The evaluation over real HTTP and a real PydanticAI agent; the server's words are the test's."""

from __future__ import annotations

import json
import math
import threading
import time

import pytest

from punie_mlx import identity
from punie_mlx.corpus.world import TOOLS
from punie_mlx.errors import ConfigError, DataError, FingerprintError, ModelError, OutputError, ServerError
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.runner import EvalConfig, base_url, evaluate
from punie_mlx.evals.stats import wilson
from punie_mlx.evals.summary import paired

from .conftest import FINGERPRINT, call, says

READ = {"calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}], "answer": {"contains": ["amber"]}}
NAMES = ("read_file", "run_command", "set_threshold", "format_code")


def case(expect, query="Read a.txt", id="1", category="c", **more):
    tools = [TOOLS[n] for n in NAMES]
    files = {"a.txt": "amber"}
    return {"id": id, "category": category, "query": query, "tools": tools, "files": files, "expect": expect, **more}


def run(tmp_path, scripted, *cases, **settings):
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    settings = {"concurrency": 1, "fingerprint": FINGERPRINT, **settings}
    return evaluate(EvalConfig(suites=(path,), url=scripted.url, **settings))


def in_turn(*replies):
    """The reply for as many results as the conversation holds."""

    def reply(body):
        return replies[min(len(replies) - 1, sum(m["role"] == "assistant" for m in body["messages"]))]

    return reply


READS = call("read_file", {"path": "a.txt"})


def test_a_call_its_execution_and_the_answer(tmp_path, scripted):
    scripted.reply = lambda body: (
        says(f"It says {body['messages'][-1]['content']}.") if len(body["messages"]) > 2 else says(None, READS)
    )
    out = tmp_path / "deep" / "out.json"
    result = run(tmp_path, scripted, case(READ, system="Be brief."), out=out)
    assert json.loads(out.read_text()) == result
    [record] = result["cases"]
    assert record["passed"] and record["reasons"] == []
    assert {k for k, v in record["checks"].items() if v} == {"names", "arguments", "execution", "answer"}
    assert False not in record["checks"].values()
    assert record["answer"] == "It says amber." and record["raw_text"] == ["", "It says amber."]
    [made] = record["calls"]
    assert (made["name"], made["arguments"], made["result"], made["ok"]) == (
        "read_file",
        {"path": "a.txt"},
        "amber",
        True,
    )
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert [t["finish_reason"] for t in record["turns"]] == ["tool_calls", "stop"]
    assert record["seconds"]["wall"] >= record["seconds"]["model"] > 0
    summary = result["summary"]
    assert (summary["n"], summary["accuracy"], summary["interval"]) == (1, 1.0, list(wilson(1, 1)))
    assert result["model"] == {
        "name": "m", "label": "m", "path": None, "adapter": None, "fingerprint": FINGERPRINT, "trained_on": None,
    }  # fmt: skip
    assert len(result["suite"]["hash"]) == 64 and "pydantic-ai-slim" in result["versions"]


def test_the_request_is_what_the_suite_says(tmp_path, scripted):
    """The tools reach the server as the suite has them, at temperature 0, under the name of the model asked for."""
    scripted.models = [{"id": "other", "object": "model", "fingerprint": "0" * 64}, *scripted.models]
    run(tmp_path, scripted, case({"calls": []}, query="Why?"))
    [body] = scripted.requests
    assert body["tools"] == [TOOLS[n] for n in NAMES]
    assert [t["function"]["name"] for t in body["tools"]] == list(NAMES)
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert (body["temperature"], body["model"], body.get("tool_choice", "auto")) == (0, "m", "auto")


FENCE = '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```'


@pytest.mark.parametrize(
    ("expect", "replies", "reason"),
    [
        # Tool cases.
        (READ, [says(FENCE)], "names: expected read_file; got no call"),
        (
            READ,
            [says(None, call("run_command", {"command": "ls"})), says("amber")],
            "names: expected read_file; got run_",
        ),
        (
            READ,
            [says(None, call("read_file", {"path": "b.txt"})), says("amber")],
            'arguments: read_file: expected {"path"',
        ),
        (READ, [says(None, READS), says("It is blue.")], "answer: 'amber' is not in 'It is blue.'"),
        (READ, [says(None, READS), says(f"amber {FENCE}")], "answer: it holds the text of a call"),
        (
            READ,
            [says(None, READS, call("read_file", {"path": "a.txt"}, "c2")), says("amber")],
            "names: expected read_file",
        ),
        (READ, [says(None, READS)], "UsageLimitExceeded"),
        (READ, [says(None, call("fly", {})), says("amber")], "UnexpectedModelBehavior"),
        (READ, [says(None, call("read_file", '{"path": "a')), says("amber")], "UnexpectedModelBehavior"),
        (READ, [500], "ModelServerError"),
        (
            {"calls": [{"name": "read_file"}]},
            [says(None, call("read_file", {"path": "b"})), says("x")],
            "execution: read_f",
        ),
        # Types of arguments.
        (
            {"calls": [{"name": "format_code", "arguments": {"path": "a.txt", "line_length": 80}}]},
            [says(None, call("format_code", {"path": "a.txt", "line_length": 80.0})), says("done")],
            "arguments: format_code",
        ),
        # Direct cases.
        ({"calls": []}, [says(None, READS), says("amber")], "names: expected no call; got read_file"),
        ({"calls": []}, [says(FENCE)], "answer: it holds the text of a call"),
        ({"calls": []}, [says('```\n{"name": "read_file", "argu')], "answer: it holds the text of a call"),
        ({"calls": []}, [says('{"name": "x", "arguments": {}}')], "answer: it holds the text of a call"),
        ({"calls": []}, [says("Well <tool_call>\n<function=read_file>")], "answer: it holds the text of a call"),
        ({"calls": []}, [says("  \n")], "answer: it is empty"),
        ({"calls": []}, [says("", finish="length")], "UnexpectedModelBehavior"),
    ],
)
def test_failures_and_their_reasons(tmp_path, scripted, expect, replies, reason):
    scripted.reply = in_turn(*replies)
    [record] = run(tmp_path, scripted, case(expect))["cases"]
    assert not record["passed"]
    assert any(r.startswith(reason) for r in record["reasons"]), record["reasons"]


@pytest.mark.parametrize(
    ("expect", "replies"),
    [
        ({"calls": []}, [says("Use ```json\n{\"name\": \"Bob\"}\n``` for a person.")]),
        ({"calls": []}, [says("A call has a name and arguments.")]),
        (
            {"calls": [{"name": ["run_command", "read_file"]}], "execution": "any", "turns": "first"},
            [says(None, call("read_file", {"path": "nope"})), says("Not found.")],
        ),
        (
            {"calls": [{"name": "read_file"}], "execution": "any", "turns": "first"},
            [says(None, call("read_file", {"path": "no"})), says(None, call("run_command", {})), says("y")],
        ),
        ({"calls": [{"name": "read_file"}], "execution": "any", "turns": "first"}, [says(None, READS)]),  # without end
        (
            {"calls": [{"name": "set_threshold", "arguments": {"metric": "coverage", "value": 90}}]},
            [says(None, call("set_threshold", {"value": 90.0, "metric": "coverage"})), says("Done.")],
        ),
        (
            # The first pairing that comes to mind is wrong: the call without arguments must take the other one.
            {"calls": [{"name": "read_file"}, {"name": "read_file", "arguments": {"path": "a.txt"}}]},
            [says(None, READS, call("read_file", {"path": "./a.txt"}, "c2")), says("Done.")],
        ),
    ],
)  # fmt: skip
def test_passes(tmp_path, scripted, expect, replies):
    scripted.reply = in_turn(*replies)
    [record] = run(tmp_path, scripted, case(expect))["cases"]
    assert record["passed"], record["reasons"]


def test_the_raw_text_of_a_fence_is_kept(tmp_path, scripted):
    scripted.reply = lambda body: says(FENCE)
    result = run(tmp_path, scripted, case(READ), case({"calls": []}, id="2"))
    assert [c["raw_text"] for c in result["cases"]] == [[FENCE], [FENCE]]
    assert result["summary"]["unread_calls"] == 2
    assert result["summary"]["call_or_not"]["balanced_accuracy"] == 0


def test_a_rejected_response_is_on_record(tmp_path, scripted):
    scripted.reply = lambda body: says("thinking", call("fly", '{"to": '))
    [record] = run(tmp_path, scripted, case(READ))["cases"]
    assert record["calls"][0] | {"seconds": 0} == {
        "turn": 1, "id": "c1", "name": "fly", "arguments": '{"to": ', "result": None, "ok": None, "seconds": 0,
        "at": None, "refused": False,
    }  # fmt: skip
    assert record["messages"][-1]["tool_calls"][0]["function"]["name"] == "fly"


def test_no_retries(tmp_path, scripted):
    """A first try that fails is a failure: neither the agent nor the HTTP client asks again."""
    scripted.reply = lambda body: 500
    run(tmp_path, scripted, case(READ))
    assert sum("tools" in r for r in scripted.requests) == 1
    scripted.reply = lambda body: says(None, call("fly", {}))
    run(tmp_path, scripted, case(READ))
    assert sum("tools" in r for r in scripted.requests) == 2


def test_figures(tmp_path, scripted):
    def reply(body):
        time.sleep(0.3 if body["messages"][0]["content"] == "first" else 0.01)
        return says("" if body["messages"][0]["content"] == "bad" else "Because.")

    scripted.reply = reply
    direct = {"calls": []}
    cases = [
        case(direct, "first", "0", "a"),
        *(case(direct, "q", str(i), "a") for i in (1, 2)),
        case(direct, "bad", "3", "b"),
    ]
    summary = run(tmp_path, scripted, *cases)["summary"]
    assert (summary["n"], summary["passed"], summary["accuracy"]) == (4, 3, 0.75)
    assert summary["by_category"]["a"] == {"accuracy": 1.0, "interval": list(wilson(3, 3)), "n": 3, "passed": 3}
    assert summary["by_category"]["b"]["interval"] == list(wilson(0, 1))
    seconds = summary["seconds_per_query"]
    assert seconds["n"] == 3 and seconds["warm_up"] > 0.3 > seconds["mean"] and seconds["median"] < 0.3
    assert summary["errors"] == 1 and math.isclose(summary["by_check"]["answer"]["accuracy"], 0.75)


def test_files_that_cannot_be_made_are_the_suites_fault(tmp_path, scripted):
    odd = case({"calls": []}, id="odd") | {"files": {"a": "", "a/b": ""}}
    with pytest.raises(DataError, match=r"the files of case 'odd' cannot be made .*: mend the suite"):
        run(tmp_path, scripted, odd)


def test_concurrency_is_bounded_and_the_order_kept(tmp_path, scripted):
    def reply(body):
        time.sleep(0.05)
        return says(body["messages"][0]["content"])

    scripted.reply = reply
    cases = [case({"calls": []}, f"query {i}", str(i)) for i in range(13)]
    result = run(tmp_path, scripted, *cases, concurrency=3)
    assert [c["answer"] for c in result["cases"]] == [f"query {i}" for i in range(13)]
    assert scripted.most_in_flight == 3
    assert len(run(tmp_path, scripted, *cases, limit=2)["cases"]) == 2


def test_each_case_has_a_directory_of_its_own(tmp_path, scripted):
    deletes = call("write_file", {"path": "a.txt", "content": "gone"})
    tools = [TOOLS["write_file"], TOOLS["read_file"]]
    scripted.reply = lambda body: (
        says("ok") if len(body["messages"]) > 1 else says(None, READS if "Read" in str(body["messages"]) else deletes)
    )
    spoil = case({"calls": [{"name": "write_file"}]}, "Spoil", "0") | {"tools": tools}
    read = case({"calls": [{"name": "read_file"}]}, "Read", "1") | {"tools": tools}
    result = run(tmp_path, scripted, spoil, read)
    assert [c["calls"][0]["result"] for c in result["cases"]] == ["saved", "amber"]


@pytest.mark.parametrize(
    "models", [[], [{"id": "m", "object": "model"}], [{"id": "m", "object": "model", "fingerprint": "0"}]]
)
def test_another_model_is_not_scored(tmp_path, scripted, models):
    scripted.models = models
    with pytest.raises(FingerprintError, match="nothing was scored") as e:
        run(tmp_path, scripted, case(READ), out=tmp_path / "out.json")
    assert e.value.exit_code == 3
    assert scripted.requests == [] and not (tmp_path / "out.json").exists()


def test_a_server_that_is_replaced_while_it_is_scored(tmp_path, scripted):
    def reply(body):
        scripted.models = [{"id": "m", "object": "model", "fingerprint": "0" * 64}]
        return says("x")

    scripted.reply = reply
    with pytest.raises(FingerprintError):
        run(tmp_path, scripted, case(READ), out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_no_server(tmp_path, scripted):
    scripted.server_close()
    with pytest.raises(ServerError, match="does not list its models"):
        run(tmp_path, scripted, case(READ))


def test_a_server_that_goes_away(tmp_path, scripted):
    def reply(body):
        if len(scripted.requests) > 2:
            scripted.socket.close()
            threading.Thread(target=scripted.shutdown).start()
            return None
        return says("x")

    scripted.reply = reply
    with pytest.raises(ServerError, match="does not answer any more"):
        run(tmp_path, scripted, *(case(READ, id=str(i)) for i in range(9)), concurrency=2, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_dropped_connection_fails_the_case_only(tmp_path, scripted):
    scripted.reply = lambda body: None if body["messages"][0]["content"] == "drop" else says("x")
    result = run(tmp_path, scripted, case({"calls": []}, "drop", "0"), case({"calls": []}, "stay", "1"))
    assert [c["passed"] for c in result["cases"]] == [False, True]


def test_a_slow_response_fails_the_case_only(tmp_path, scripted):
    scripted.reply = lambda body: time.sleep(1.0 if body["messages"][0]["content"] == "slow" else 0) or says("x")
    cases = case({"calls": []}, "slow", "0"), case({"calls": []}, "fast", "1")
    result = run(tmp_path, scripted, *cases, agent=AgentSettings(timeout=0.5))
    assert [c["passed"] for c in result["cases"]] == [False, True]


def test_paired_results(tmp_path, scripted):
    cases = [case({"calls": []}, f"q{i}", str(i)) for i in range(8)]
    good = run(tmp_path, scripted, *cases)
    scripted.reply = lambda body: says(FENCE)
    bad = run(tmp_path, scripted, *cases)
    test = paired(good, bad)
    assert (test.only_first, test.only_second, test.p) == (8, 0, 2 / 2**8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to score"),
        ({"url": "http://x"}, "--fingerprint HASH or --model DIR"),
        ({"model": "m", "fingerprint": "f"}, "--fingerprint goes with --url"),
        ({"url": "u", "fingerprint": "f", "adapter": "a"}, "--adapter needs --model"),
        ({"model": "m", "limit": 0}, "--limit 0"),
        ({"model": "m", "concurrency": 0}, "--concurrency 0"),
        ({"model": "m", "repeats": 0}, "--repeats 0"),
        ({"model": "m", "through": "smoke"}, "choose one of pydantic-ai, openai, model"),
        ({"url": "u", "fingerprint": "f", "through": "model"}, "--through model runs without a server"),
        ({"url": "u", "fingerprint": "f", "serve_options": ("--constrain", "off")}, "no server to start"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        EvalConfig(suites=(tmp_path / "s",), **settings)


@pytest.mark.parametrize("settings", [{"max_tokens": 0}, {"request_limit": 0}, {"temperature": -1}, {"retries": -1}])
def test_agents_that_cannot_be_told_so(settings):
    with pytest.raises(ConfigError):
        AgentSettings(**settings)


def test_a_model_that_is_not_shown_its_tools_is_not_scored(tmp_path, scripted):
    """Said after the first case, before the rest is run; who allows it finds it in the result."""
    scripted.beside = {"punie_trace": {"prompt": [[0, "user: Read a.txt"]], "output": [], "events": [], "spans": []}}
    cases = [case({"calls": []}, id=str(i)) for i in range(3)]
    with pytest.raises(ModelError, match="offered tools"):
        run(tmp_path, scripted, *cases, out=tmp_path / "out.json")
    assert len(scripted.requests) == 1 and not (tmp_path / "out.json").exists()
    result = run(tmp_path, scripted, *cases, allow_missing_tools=True)
    assert len(result["warnings"]) == 1 and "offered tools" in result["warnings"][0]


@pytest.mark.parametrize("traces", [True, False])
def test_prompts_that_are_in_order_bring_no_warning(tmp_path, scripted, traces):
    scripted.traces = traces
    assert run(tmp_path, scripted, *(case({"calls": []}, id=str(i)) for i in range(2)))["warnings"] == []
    assert sum("tools" not in r for r in scripted.requests) == (0 if traces else 1)


def test_an_answer_of_another_model_ends_the_evaluation_at_once(tmp_path, scripted):
    def reply(body):
        if len(scripted.requests) == 2:
            scripted.beside = {"system_fingerprint": "0" * 64}
        return says("x")

    scripted.reply = reply
    with pytest.raises(FingerprintError, match="case 1 was answered by another model"):
        run(tmp_path, scripted, *(case({"calls": []}, id=str(i)) for i in range(4)), out=tmp_path / "out.json")
    assert len(scripted.requests) == 2 and not (tmp_path / "out.json").exists()


def test_the_model_has_a_label_and_says_what_it_was_trained_on(tmp_path, scripted, tiny_base):
    adapter = tmp_path / "my-adapter"
    adapter.mkdir()
    (adapter / "manifest.json").write_text(json.dumps({"kind": "adapter", "inputs": {"data": "d" * 64}}))
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapters.safetensors").write_bytes(b"")
    scripted.models = [{"id": "m", "object": "model", "fingerprint": identity.fingerprint(tiny_base, adapter)}]
    told = {"model": tiny_base, "adapter": adapter, "fingerprint": None}
    model = run(tmp_path, scripted, case({"calls": []}), **told)["model"]
    assert (model["name"], model["label"], model["trained_on"]) == ("m", "my-adapter", "d" * 64)
    assert run(tmp_path, scripted, case({"calls": []}), label="ours", **told)["model"]["label"] == "ours"


def test_each_case_is_a_line_of_the_file(tmp_path, scripted):
    out = tmp_path / "out.json"
    scripted.reply = lambda body: says("lone \udcff surrogate")
    result = run(tmp_path, scripted, *(case({"calls": []}, id=str(i)) for i in range(3)), out=out)
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.removesuffix(","))["id"] for line in lines if line.startswith('{"suite"')] == [
        "0",
        "1",
        "2",
    ]
    assert json.loads(out.read_text(encoding="utf-8")) == result and result["format"] == 2


def test_an_output_that_cannot_be_written_is_found_first(tmp_path, scripted):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "out.json"):
        with pytest.raises(OutputError):
            run(tmp_path, scripted, case(READ), out=out)
    assert scripted.requests == []


def test_addresses():
    assert base_url("127.0.0.1:80") == base_url("http://127.0.0.1:80/") == "http://127.0.0.1:80/v1"
    assert base_url("https://h/api/v1/") == "https://h/api/v1"
    with pytest.raises(ConfigError):
        base_url("file:///x")
