"""Generated text becomes OpenAI's deltas: nothing is lost, and a call is a call only if it parses."""

import json
from typing import Any

import pytest

from punie_mlx.serve.answer import Answer, collect
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import StreamParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [Tool("weather", "", CITY)]
CALL = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"


def deltas(text: str, *, size: int = 3, reason: str = "stop", offered: bool = True) -> tuple[list[dict[str, Any]], str]:
    answer = Answer(StreamParser("qwen3_coder", TOOLS if offered else []), offered=offered)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = [d for piece in pieces for d in answer.feed(piece)] + answer.finish(reason)
    return found, answer.finish_reason(reason)


def arguments(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_among_text(size: int) -> None:
    found, reason = deltas(f"\n\nFirst.\n\n{CALL.format('Oslo')}\n{CALL.format('Bern')}\n", size=size)
    message = collect(found)
    assert message["content"].strip() == "First."
    assert arguments(message) == [{"city": "Oslo"}, {"city": "Bern"}]
    assert reason == "tool_calls"
    assert len({c["id"] for c in message["tool_calls"]}) == 2


def test_the_name_comes_once_and_each_call_has_its_index() -> None:
    found, _ = deltas(CALL.format("Oslo") + CALL.format("Bern"))
    parts = [part for d in found for part in d.get("tool_calls", ())]
    assert [p["index"] for p in parts] == [0, 0, 1, 1]
    assert ["name" in p["function"] for p in parts] == [True, False, True, False]
    assert ["id" in p for p in parts] == [True, False, True, False]


@pytest.mark.parametrize("before", ["", " ", "\n\n", "<think>\nhm\n</think>\n\n"])
def test_nothing_visible_comes_before_a_call(before: str) -> None:
    found, _ = deltas(before + CALL.format("Oslo"))
    assert not any("content" in d for d in found)
    assert collect(found)["content"] is None


@pytest.mark.parametrize(
    "text",
    ["<tool_call>\n{broken\n</tool_call>", "Use <tool_call> to call.", '```json\n{"name": "weather"}\n```', "a < b <t"],
)
def test_what_is_no_call_is_text(text: str) -> None:
    found, reason = deltas(text)
    assert collect(found) == {"role": "assistant", "content": text}
    assert reason == "stop"


def test_a_call_that_was_cut_off_is_text() -> None:
    text = CALL.format("Oslo")[:50]
    found, reason = deltas(text, reason="length")
    assert collect(found) == {"role": "assistant", "content": text}
    assert reason == "length"


def test_length_is_told_even_after_a_call() -> None:
    assert deltas(CALL.format("Oslo") + " and th", reason="length")[1] == "length"


def test_without_tools_a_call_is_text() -> None:
    text = CALL.format("Oslo")
    found, reason = deltas(text, offered=False)
    assert (collect(found), reason) == ({"role": "assistant", "content": text}, "stop")


def test_thinking_stands_apart() -> None:
    message = collect(deltas("<think>\nhm, so\n</think>\n\nGood day.")[0])
    assert message["reasoning_content"].strip() == "hm, so"
    assert message["content"].strip() == "Good day."


def test_an_empty_answer_is_empty_text() -> None:
    assert collect(deltas("")[0]) == {"role": "assistant", "content": ""}
