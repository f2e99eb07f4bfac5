"""Generated text becomes OpenAI's deltas: nothing is lost, and a call is a call only if it parses."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.serve.answer import Answer, collect
from punie_mlx.toolcalls import contract, formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.stream import StreamParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [Tool("weather", "", CITY)]
CALL = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
NATIVE = sorted(name for name in formats.FORMATS if formats.get(name).native and formats.get(name).grammar)
OSLO = ToolCall("weather", {"city": 'Oslo\n"x" </p> & ü 🌍'})
BERN = ToolCall("weather", {"city": "Bern"})


def written(
    text: str,
    *,
    size: int = 3,
    reason: str = "stop",
    offered: bool = True,
    streamed: bool = False,
    wire: str = "qwen3_coder",
    **options: Any,
) -> tuple[list[dict[str, Any]], Answer]:
    parser = StreamParser(wire, TOOLS if offered else [], **options)
    answer = Answer(parser, offered=offered, plan=None, streamed=streamed)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = [d for piece in pieces for d in answer.feed(piece)] + answer.finish(reason)
    return found, answer


def deltas(text: str, reason: str = "stop", **options: Any) -> tuple[list[dict[str, Any]], str]:
    found, answer = written(text, reason=reason, **options)
    return found, answer.finish_reason(reason)


def arguments(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]]


def parts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for d in found for part in d.get("tool_calls", ())]


# ---- calls ----


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_among_text(size: int, streamed: bool) -> None:
    text = f"\n\nFirst.\n\n{CALL.format('Oslo')}\n{CALL.format('Bern')}\n"
    found, reason = deltas(text, size=size, streamed=streamed)
    message = collect(found)
    assert message["content"].strip() == "First."
    assert arguments(message) == [{"city": "Oslo"}, {"city": "Bern"}]
    assert reason == "tool_calls"
    assert len({c["id"] for c in message["tool_calls"]}) == 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("wire", NATIVE)
def test_calls_of_every_format(wire: str, streamed: bool) -> None:
    found, answer = written(formats.render(wire, [OSLO, BERN]), wire=wire, streamed=streamed, size=2)
    message = collect(found)
    assert arguments(message) == [OSLO.arguments, BERN.arguments]
    assert answer.finish_reason("stop") == "tool_calls" and answer.problems == []
    assert message["content"] is None
    pieces = [p["function"]["arguments"] for p in parts(found) if "id" not in p]
    assert len(pieces) == 2 if not streamed else len(pieces) > 6


@pytest.mark.parametrize("streamed", [False, True])
def test_the_name_comes_once_and_each_call_has_its_index(streamed: bool) -> None:
    found = parts(deltas(CALL.format("Oslo") + CALL.format("Bern"), streamed=streamed)[0])
    indices = [p["index"] for p in found]
    assert indices == sorted(indices) and set(indices) == {0, 1}
    firsts = [p for p in found if "name" in p["function"]]
    assert firsts == [p for p in found if "id" in p]
    assert [(p["index"], p["type"], p["function"]["name"]) for p in firsts] == [
        (0, "function", "weather"),
        (1, "function", "weather"),
    ]


def test_arguments_are_sent_as_they_are_written() -> None:
    answer = Answer(StreamParser("qwen3_coder", TOOLS), offered=True, plan=None, streamed=True)
    assert answer.feed("<tool_call>\n<function=weather>\n") == []  # nothing of it is sure to be a call yet
    (start, begun) = answer.feed("<parameter=city>\nNew ")
    assert start["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}
    (more,) = answer.feed("York and")
    sent = [d["tool_calls"][0]["function"]["arguments"] for d in (begun, more)]
    assert '{"city": "New York and'.startswith("".join(sent)) and len("".join(sent)) > len('{"city": "New Yo')


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("before", ["", " ", "\n\n", "<think>\nhm\n</think>\n\n"])
def test_nothing_visible_comes_before_a_call(before: str, streamed: bool) -> None:
    found, _ = deltas(before + CALL.format("Oslo"), streamed=streamed)
    assert not any("content" in d for d in found)
    assert collect(found)["content"] is None


def test_ids_are_such_as_the_templates_of_the_format_take() -> None:
    (long,) = collect(deltas(CALL.format("Oslo"))[0])["tool_calls"]
    assert long["id"].startswith("call_")
    (short,) = collect(deltas(formats.render("mistral", [OSLO]), wire="mistral")[0])["tool_calls"]
    assert len(short["id"]) == 9 and short["id"].isalnum()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_marker_in_ordinary_tokens_is_no_marker(streamed: bool) -> None:
    control = {7: "<tool_call>", 8: "</tool_call>"}
    opening, body, closing = "<tool_call>", '\n{"name": "weather", "arguments": {"city": "Oslo"}}\n', "</tool_call>"
    for ids, calls in (((7, 8), 1), ((), 0)):
        parser = StreamParser("hermes", TOOLS, control=control)
        answer = Answer(parser, offered=True, plan=None, streamed=streamed)
        found = answer.feed(opening, ids[:1]) + answer.feed(body, [1]) + answer.feed(closing, ids[1:])
        message = collect([*found, *answer.finish("stop")])
        assert len(message.get("tool_calls", ())) == answer.calls == calls
        assert calls or message["content"] == opening + body + closing


# ---- what is no call ----

NO_CALLS = [
    "<tool_call>\n{broken\n</tool_call>",
    "Well.\n\n<tool_call>\n{broken\n</tool_call>\n\nSo be it.",
    'Well.\n\n<tool_call>\n{"name": "weather", "arguments": nonsense}\n</tool_call>\n\nSo be it.',
    "Use <tool_call> to call.",
    '```json\n{"name": "weather"}\n```',
    "a < b <t",
    "one  \n two",
    "Done. \n",
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text(text: str, streamed: bool) -> None:
    found, reason = deltas(text, streamed=streamed)
    assert collect(found) == {"role": "assistant", "content": text}
    assert reason == "stop"


def test_a_malformed_call_is_also_told() -> None:
    raw = '<tool_call>\n{"name": "weather", "arguments": nonsense}\n</tool_call>'
    (problem,) = written(f"Well. {raw} So.")[1].extension()["problems"]
    assert problem["kind"] == "malformed" and problem["raw"] == raw and problem["detail"]
    assert "call" not in problem


def test_a_call_that_was_cut_off_is_text() -> None:
    text = CALL.format("Oslo")[:50]
    found, answer = written(text, reason="length")
    assert collect(found) == {"role": "assistant", "content": text}
    assert answer.finish_reason("length") == "length"
    assert [p["kind"] for p in answer.problems] == ["truncated"]


def test_in_a_stream_a_call_that_is_cut_off_stays_begun() -> None:
    text = CALL.format("Oslo")[:60]
    found, answer = written(text, reason="length", streamed=True)
    assert not any("content" in d for d in found)
    (call,) = collect(found)["tool_calls"]
    assert contract.is_json_prefix(call["function"]["arguments"])
    assert (answer.finish_reason("length"), answer.finish_reason("stop"), answer.calls) == ("length", "stop", 0)
    (problem,) = answer.problems
    assert (problem["kind"], problem["raw"], problem["call"]) == ("truncated", text, call["id"])


def test_in_a_stream_a_call_that_breaks_does_not_shift_the_next() -> None:
    broken = '<tool_call>\n{"name": "weather", "arguments": {"city": nonsense}}\n</tool_call>\n'
    found, answer = written(broken + CALL.format("Bern"), streamed=True)
    sent = {i: "".join(p["function"]["arguments"] for p in parts(found) if p["index"] == i) for i in (0, 1)}
    assert json.loads(sent[1]) == {"city": "Bern"} and answer.finish_reason("stop") == "tool_calls"
    whole = collect(written(broken + CALL.format("Bern"))[0])
    assert arguments(whole) == [{"city": "Bern"}] and "nonsense" in whole["content"]


@pytest.mark.parametrize("cut", range(len(CALL) + 2))
@pytest.mark.parametrize("reason", ["length", "cut"])
def test_a_call_that_ends_early_is_never_a_shorter_one(cut: int, reason: str) -> None:
    """Wherever the text ends: the whole answer has the call as it was meant, or its text."""
    text = CALL.format("New York")[:cut]
    found, answer = written(text, reason=reason)
    message = collect(found)
    if answer.calls:
        assert arguments(message) == [{"city": "New York"}]
    else:
        assert message["content"] == text and answer.finish_reason(reason) == {"cut": "stop"}.get(reason, reason)


def test_length_is_told_even_after_a_call() -> None:
    assert deltas(CALL.format("Oslo") + " and th", reason="length")[1] == "length"
    assert deltas(CALL.format("Oslo") + " and th", reason="cut")[1] == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("wire", NATIVE)
def test_without_tools_a_call_is_text(wire: str, streamed: bool) -> None:
    text = formats.render(wire, [OSLO])
    found, answer = written(text, offered=False, wire=wire, streamed=streamed)
    message = collect(found)
    assert set(message) == {"role", "content"} and answer.finish_reason("stop") == "stop"
    assert "weather" in message["content"] and "Oslo" in message["content"]


def test_without_tools_the_text_around_calls_stays() -> None:
    text = f"So:\n\n{CALL.format('Oslo')}\n{CALL.format('Bern')}\n\nThat is all."
    assert collect(deltas(text, offered=False)[0]) == {"role": "assistant", "content": text}


def test_problems_of_a_call_name_it() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": 3}}\n</tool_call>'
    found, answer = written(text)
    (call,) = collect(found)["tool_calls"]
    assert answer.problems and {p["call"] for p in answer.problems} == {call["id"]}
    answer.problem("grammar", "it gave up")
    assert answer.extension()["problems"][-1] == {"kind": "grammar", "detail": "it gave up", "raw": ""}


def test_rescued_calls_are_marked() -> None:
    text = '```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```'
    found, answer = written(text, rescue=True)
    (call,) = collect(found)["tool_calls"]
    assert answer.extension()["rescued"] == [call["id"]]
    assert written(CALL.format("Oslo"), rescue=True)[1].extension()["rescued"] == []


def test_what_it_was_held_to() -> None:
    assert written("x")[1].extension() == {"grammar": {"state": "off", "relaxed": []}, "problems": [], "rescued": []}
    relaxed = SimpleNamespace(tool="f", parameter="a", reason="uniqueItems")
    for state, reason in (("lazy", ""), ("off", "a draft model")):
        plan: Any = SimpleNamespace(state=state, reason=reason, relaxed=(relaxed,))
        grammar = Answer(StreamParser("hermes"), offered=True, plan=plan).extension()["grammar"]
        assert grammar.pop("reason", "") == reason
        assert grammar == {
            "state": state, "relaxed": [{"tool": "f", "parameter": "a", "reason": "uniqueItems"}],
        }  # fmt: skip


# ---- text and thinking ----


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking_stands_apart(streamed: bool) -> None:
    message = collect(deltas("<think>\nhm, so\n</think>\n\nGood day.", streamed=streamed)[0])
    assert message["reasoning_content"].strip() == "hm, so"
    assert message["content"].strip() == "Good day."


def test_a_malformed_call_in_thinking_stays_there() -> None:
    message = collect(deltas("<think>\nI <tool_call>\n{no</tool_call> so\n</think>\n\nGood day.")[0])
    assert "{no" in message["reasoning_content"] and message["content"].strip() == "Good day."


def test_an_empty_answer_is_empty_text() -> None:
    assert collect(deltas("")[0]) == {"role": "assistant", "content": ""}
    assert deltas(" \n", streamed=True)[0] == []


@pytest.mark.parametrize("streamed", [False, True])
def test_texts_that_something_parts_are_joined_as_the_format_has_it(streamed: bool) -> None:
    wire = formats.get("harmony")
    text = "<|channel|>commentary<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.<|return|>"
    assert collect(deltas(text, wire="harmony", streamed=streamed)[0])["content"] == f"One.{wire.joint}Two."


@pytest.mark.parametrize("wire", ["qwen3_coder", "hermes", "harmony", "pythonic"])
@settings(max_examples=60)
@given(data=st.data(), size=st.integers(1, 9), offered=st.booleans())
def test_streams_keep_the_rules_whatever_is_written(wire: str, data: Any, size: int, offered: bool) -> None:
    pieces = st.sampled_from([*contract.pieces(formats.get(wire)), "\n\n", " ", "So be it.", "{", '"weather"'])
    text = "".join(data.draw(st.lists(pieces, max_size=12)))
    found, answer = written(text, size=size, wire=wire, offered=offered, streamed=True)
    for i, delta in enumerate(found):
        assert len(delta) == 1
        said = delta.get("content", delta.get("reasoning_content", "x"))
        assert said.strip() or (i == len(found) - 1 and "content" in delta)
    names = [p["index"] for p in parts(found) if "id" in p]
    assert names == list(range(len(names))) and [p["index"] for p in parts(found)] == sorted(
        p["index"] for p in parts(found)
    )
    assert offered or not names
    broken = {p["call"] for p in answer.problems if p["kind"] in ("malformed", "truncated") and "call" in p}
    sent = collect(found).get("tool_calls", [])
    assert answer.calls == len(sent) - len(broken)
    for call in sent:
        if call["id"] not in broken:
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert (answer.finish_reason("stop") == "tool_calls") == (answer.calls > 0)
    whole, other = written(text, size=len(text) or 1, wire=wire, offered=offered)
    assert other.calls == answer.calls
    assert all(isinstance(a, dict) for a in (arguments(collect(whole)) if other.calls else []))
