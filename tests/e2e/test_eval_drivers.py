"""One suite through PydanticAI, the openai client and the model itself: the same verdicts, and what a server breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.corpus.suite import read_suite
from punie_mlx.errors import ModelError, ServerError
from punie_mlx.evals.agent import AgentSettings, Run
from punie_mlx.evals.drive_model import ModelDriver
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.evals.scratch import Scratch
from punie_mlx.evals.server_process import answering

from .conftest import build_replaying_model

STRING = {"type": "string"}


def tool(name: str, *required: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [tool("write", "text", text=STRING), tool("pay", amount={"type": "integer"}, note={"type": ["string", "null"]})]


def call(name: str, *parameters: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<function={name}>\n{inner}</function>\n"


def block(*calls: str) -> str:
    return f"<tool_call>\n{''.join(calls)}</tool_call>"


WRITES = block(call("write", ("text", "if s == '</parameter>': t = '\\</tool_call>'; u = '</function>'")))
SCRIPTS = {
    "#ok": "All is well.",
    "#write": WRITES,
    "#beside": "Let me pay. " + block(call("pay", ("amount", "3"), ("note", "null"))),
    "#two": block(call("write", ("text", "one thing")), call("pay", ("amount", "9007199254740993"))),
    "#broken": "So: <tool_call>\n{no such thing}\n</tool_call> There.",
    "#cut": "<tool_call>\n<function=write>\n<parameter=text>\nand it goes on and on without any end in sight",
    "#thinking": "<think>Shall I? " + block(call("write", ("text", "draft"))) + " No, I answer.</think>Done.",
    "#mention": "Calls begin with \\<tool_call> here, and end with \\</tool_call> there.",
    "#fence": '```json\n{"name": "write", "arguments": {"text": "x"}}\n```',
    "#unknown": block(call("fly", ("to", "Rome"))),
    "#empty": "",
}


def case(key: str, *calls: dict[str, Any], id: str = "", **more: Any) -> dict[str, Any]:
    expect = {"calls": list(calls), **({"turns": "first"} if calls else {})}
    asked = {} if "messages" in more else {"query": f"Please {key} now"}
    return {"id": id or key, "category": "c", "tools": TOOLS, "expect": expect, **asked, **more}


PAST = [
    {"role": "user", "content": "Write x"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "h1", "type": "function", "function": {"name": "write", "arguments": '{"text": "x"}'}}]},
    {"role": "tool", "tool_call_id": "h1", "content": "ok"},
    {"role": "assistant", "content": "Written."},
    {"role": "user", "content": "Are you #ok?"},
]  # fmt: skip
TEXT = "if s == '</parameter>': t = '</tool_call>'; u = '</function>'"
CASES = [
    case("#ok", system="Be brief."),
    case("#write", {"name": "write", "arguments": {"text": TEXT}}),
    case("#beside", {"name": "pay", "arguments": {"amount": 3, "note": None}}),
    case("#two", {"name": "write"}, {"name": "pay", "arguments": {"amount": 9007199254740993}}),
    case("#broken"),
    case("#cut", {"name": "write"}),
    case("#thinking", {"name": "write", "arguments": {"text": "draft"}}),
    case("#mention"),
    case("#fence"),
    case("#unknown", {"name": "write"}),
    case("#empty"),
    case("#ok", id="history", messages=PAST),
    case("#ok", id="follow-ups", follow_ups=["And so?", "And then?"]),
]
PASS = {"#ok", "#write", "#beside", "#two", "#thinking", "history", "follow-ups"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "replaying"
    path.mkdir()
    return build_replaying_model(path, SCRIPTS)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("suites") / "words.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in CASES))
    return path


@pytest.fixture(scope="module")
def alone(model, suite):
    """What the model does without a server."""
    agent = AgentSettings(request_limit=2)
    return evaluate(EvalConfig(model=model, suites=(suite,), through="model", concurrency=3, agent=agent))


def through(server, suite, **more):
    more = {"agent": AgentSettings(request_limit=2), **more}
    found = EvalConfig(suites=(suite,), url=server.url, fingerprint=server.ready["fingerprint"], **more)
    return evaluate(found)


def passed(result):
    return {c["id"] for c in result["cases"] if c["passed"]}


def test_the_model_alone(alone):
    assert passed(alone) == PASS, {c["id"]: c["reasons"] for c in alone["cases"]}
    assert alone["settings"]["through"] == "model" and alone["model"]["name"] == "replaying"
    records = {c["id"]: c for c in alone["cases"]}
    assert {k for k, c in records.items() if c["parse_failures"]} >= {"#broken", "#cut", "#fence"}
    assert [m["role"] for m in records["follow-ups"]["messages"]] == ["user", "assistant"] * 3
    [first, _] = records["#write"]["trajectory"]
    assert first["request"]["tools"] == TOOLS and first["response"]["finish_reason"] == "stop"
    assert "".join(text for _, text in first["trace"]["output"]) == WRITES.replace("\\", "")
    assert [e["kind"] for e in first["trace"]["events"]][-2:] == ["call", "marker"]
    assert {s["name"] for s in first["trace"]["spans"]} == {"render", "prefill", "decode"}


def test_all_ways_come_to_the_same_verdict(serving, model, suite, alone):
    """Through a server without a grammar, which is all that could help: tokens are the same one by one."""
    with serving(model, "--constrain", "off") as server:
        served = [through(server, suite, through=t) for t in ("pydantic-ai", "openai")]
    keys = ("id", "passed", "lenient", "checks", "parse_failures", "expects_call")
    for records in zip(*(r["cases"] for r in (alone, *served)), strict=True):
        one, *others = records
        for other in others:
            assert {k: one[k] for k in keys} == {k: other[k] for k in keys}, (one["reasons"], other["reasons"])
            assert [(c["name"], c["arguments"], c["result"]) for c in one["calls"]] == [
                (c["name"], c["arguments"], c["result"]) for c in other["calls"]
            ]
            assert (one["answer"] or "").strip() == (other["answer"] or "").strip()
            for mine, theirs in zip(one["trajectory"], other["trajectory"], strict=True):
                assert [t for t, _ in mine["trace"]["prompt"]] == [t for t, _ in theirs["trace"]["prompt"]], one["id"]
                written = [[t for t, _ in e["trace"]["output"] if t is not None] for e in (mine, theirs)]
                assert written[0] == written[1], one["id"]


def test_what_a_server_breaks_is_seen_as_a_difference(serving, model, suite, alone):
    """A server told to read another format loses the calls that the model writes well."""
    with serving(model, "--tool-call-format", "mistral", "--constrain", "off") as server:
        broken = through(server, suite)
    assert passed(alone) - passed(broken) == {"#write", "#beside", "#two", "#thinking"}
    assert passed(broken) <= passed(alone)


def test_a_model_process_that_dies_ends_the_evaluation(model, suite):
    """Its death is the process's, and no failure of the case; the words say how it ended."""
    with answering(model) as (process, ready):
        driver = ModelDriver(process, ready.more, AgentSettings())
        process.kill()
        run = _run(driver, suite)
        assert run.lost and "SIGKILL" in (run.error or "")
        with pytest.raises(ServerError, match="model was killed by SIGKILL"):
            raise process.death("while it was asked")


def _run(driver: ModelDriver, suite: Path) -> Run:
    import asyncio
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(driver.run(read_suite(suite).cases[0], Scratch(Path(directory))))


def test_what_cannot_be_loaded_is_said(model, suite, tmp_path):
    with pytest.raises(ModelError):
        evaluate(EvalConfig(model=tmp_path / "no", suites=(suite,), through="model"))
