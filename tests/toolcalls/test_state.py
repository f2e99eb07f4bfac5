"""Where the reader is after each piece of a text."""

from __future__ import annotations

from itertools import groupby

import pytest

from punie_mlx.pages import tokens as shown
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.stream import STATES, StreamParser

TOOLS = [Tool("look_up_orbit"), Tool("add")]
CALLS = [ToolCall("look_up_orbit", {"name": "Zeeland-71", "deep": True}), ToolCall("add", {"a": 1, "b": 2})]
NATIVE = [name for name, wire in formats.FORMATS.items() if wire.native]


def states(text: str, format: str, **options: bool) -> list[tuple[str, str]]:
    """(state, the characters after which it was so), in order."""
    parser = StreamParser(format, TOOLS, **options)
    found = []
    for character in text:
        parser.feed(character)
        found.append((parser.state, character))
    return [(state, "".join(c for _, c in run)) for state, run in groupby(found, key=lambda pair: pair[0])]


def test_the_page_of_tokens_knows_the_same_states():
    assert shown.STATES == STATES


@pytest.mark.parametrize("rescue", [False, True])
@pytest.mark.parametrize("name", NATIVE)
def test_each_call_goes_from_its_name_to_its_arguments(name: str, rescue: bool) -> None:
    found = states(formats.get(name).render(CALLS), name, rescue=rescue)
    assert {state for state, _ in found} <= set(STATES)
    inside = [text for state, text in found if state == "arguments"]
    assert len(inside) == 2, "one stretch of arguments for each call"
    assert "Zeeland-71" in inside[0] and "Zeeland-71" not in inside[1]
    before = "".join(text for _, text in found[: [state for state, _ in found].index("arguments")])
    assert "look_up_orbit" in before and "Zeeland-71" not in before


def test_a_block_with_a_call_is_between_until_it_is_closed():
    text = 'Well < so. <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call> Done'
    assert states(text, "hermes") == [
        ("content", "Well < so. <tool_call"),
        ("call", '>\n{"name": "add", "arguments": '),
        ("arguments", '{"a": 1}'),
        ("between", "}\n</tool_call"),
        ("content", "> Done"),
    ]


def test_several_functions_in_one_block_are_joined_by_between():
    found = states(formats.get("minimax").render(CALLS), "minimax")
    assert [state for state, _ in found] == [
        "content",
        "call",
        "arguments",
        "between",
        "arguments",
        "between",
        "content",
    ]


def test_the_entries_of_a_list_are_joined_by_between():
    text = '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]'
    found = states(text, "mistral")
    assert [state for state, _ in found][1:] == [
        "call", "arguments", "between", "call", "arguments", "between", "content",
    ]  # fmt: skip
    assert found[3] == ("between", "}, ")


def test_thinking_and_an_answer_after_it():
    assert states("<think>Hm.</think>Yes.", "hermes") == [
        ("content", "<think"), ("reasoning", ">Hm.</think"), ("content", ">Yes."),
    ]  # fmt: skip
    assert states("Hm.</think>Yes.", "hermes", starts_in_reasoning=True)[0] == ("reasoning", "Hm.</think")


def test_harmony_is_between_messages_and_in_them():
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>commentary json"
        '<|message|>{"a": 1}<|call|>'
    )
    assert [state for state, _ in states(text, "harmony")] == ["between", "reasoning", "between", "call", "arguments",
                                                                "between"]  # fmt: skip
    assert states("<|channel|>final<|message|>Yes.", "harmony")[-1] == ("content", ">Yes.")
    assert states("  Sure, there.", "harmony") == [("between", "  "), ("content", "Sure, there.")]


def test_a_marker_counts_only_as_its_token():
    control = {7: "<tool_call>", 8: "</tool_call>"}
    spelled, token = (StreamParser("hermes", TOOLS, control=control) for _ in range(2))
    spelled.feed("<tool_call>", [1, 2, 3])
    token.feed("<tool_call>", [7])
    assert (spelled.state, token.state) == ("content", "call")
    spelled.feed('{"name": "add"', [4])
    token.feed('{"name": "add"', [4])
    assert (spelled.state, token.state) == ("content", "call")


def test_a_broken_call_is_left_behind():
    parser = StreamParser("hermes", TOOLS)
    parser.feed('<tool_call>{"name": 3')
    assert parser.state == "call"
    parser.feed("}</tool_call> So be it.")
    assert parser.state == "content"
    parser.feed('<tool_call>{"name": "add", "arguments": {"a"')
    assert parser.state == "arguments"
    parser.finish("length")
    assert parser.state == "content"
