"""Calls in fences: what is a call, what is code, what is broken; in a message and in a stream."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls.calls import CallFinished, Malformed, Text, Tool, ToolCall
from punie_mlx.toolcalls.contract import faults, merged
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.stream import Reading, StreamParser, read

OBJECT = '{"name": "f", "arguments": {"x": 1, "y": "a\\n```b"}}'
WANTED = ToolCall("f", {"x": 1, "y": "a\n```b"})


def read_any(text: str, tools=(), finish: str = "stop") -> Reading:
    """Read whole and in chunks: all must agree, and nothing may be lost."""
    whole = read(text, "json_fence", tools, finish=finish)
    assert faults(text, whole.events) == []
    for chunk in (1, 2, 3, 7):
        assert merged(read(text, "json_fence", tools, finish=finish, chunk=chunk).events) == merged(whole.events)
    return whole


def split_kinds(text: str) -> list[tuple[int, bool]]:
    """The calls and breaks of the segments of `text`, whose raw texts must join to it."""
    segments = list(json_fence.split(text))
    assert "".join(s.raw for s in segments) == text
    return [(len(s.calls), bool(s.reason)) for s in segments if s.calls or s.reason]


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{OBJECT}\n```", f"Sure.\n```\n{OBJECT}```\nDone.", f"```tool_call\r\n{OBJECT}\r\n```",
        f"``` {OBJECT} ```",
        f"```json\n[{OBJECT}]\n```", f"```python\nx = {{}}\n```\n```json\n{OBJECT}\n```",
        f"<think>hm</think>```json\n{OBJECT}\n```",
        f"```json\n{OBJECT}", f"``\n```json\n{OBJECT}\n```",
        '```json\n{"name": "f", "parameters": "{\\"x\\": 1, \\"y\\": \\"a\\\\n```b\\"}"}\n```',
    ],
)  # fmt: skip
def test_a_fence_that_is_a_call(text):
    assert read_any(text).calls == [WANTED]
    assert split_kinds(text) == [(1, False)]


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint({'name': 1})\n```", '```json\n{"port": 80}\n```', "```\n{not json}\n```",
        "Use ``` for code.", "```", "``",
        f"```python\n{OBJECT[:9]}x\n```", '```json\n{"name": "left-pad", "version": "1"}\n```',
        f"```sh\nx\n```{OBJECT}```", "```json\n",
        f"```x\ny\n``` {OBJECT}\n```\nz", "```json\n[1, 2]\n```", "```json\n{", f"`{OBJECT}`", OBJECT,
        "a ```\n\n```\n b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_fence_of_code_is_text_byte_for_byte(text, finish):
    found = read_any(text, finish=finish)
    assert found.content == text and not found.calls and not found.malformed
    assert split_kinds(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "f", "arguments": "{\\"title\\": \\"Inception"}\n```',
        '```json\n{"name": "f", "arguments": {"x": 1}\n```',
        '```json\n{"name": "f", "arguments": {"x": y}}\n```', f"```json\n[{OBJECT}, 3]\n```",
        f"```json\n{OBJECT} and\n```",
        '```json\n{"name": "f", "arguments": [1]}\n```',
    ],
)  # fmt: skip
def test_a_fence_that_was_meant_to_be_a_call_is_broken(text):
    found = read_any(f"Sure.\n{text}\nDone.")
    assert not found.calls and [m.raw for m in found.malformed] == [text]
    assert split_kinds(f"Sure.\n{text}\nDone.") == [(0, True)]


def test_a_call_that_is_cut_off_is_reported_with_what_came():
    text = '```json\n{"name": "f", "arguments": {"x": [1, "ab'
    for finish in ("stop", "length"):
        (cut,) = read_any(text, finish=finish).malformed
        assert (cut.truncated, cut.name, cut.arguments, cut.raw) == (True, "f", '{"x": [1, "ab', text)
    assert split_kinds(text) == [(0, True)]


def test_code_is_passed_on_and_a_call_is_held_back():
    parser = StreamParser("json_fence")
    assert parser.feed("```py\nx")[-1] == Text("x")
    assert parser.feed("y = 1\n```\nSo. ")[0] == Text("y = 1")
    assert [e.text for e in parser.feed("```json\n{") if isinstance(e, Text)] == []
    assert parser.feed(OBJECT[1:]) == []
    assert [type(e).__name__ for e in parser.feed("\n```")][-3:] == ["CallStarted", "ArgumentsDelta", "CallFinished"]


def test_problems_are_reported():
    tool = Tool("f", parameters={"type": "object", "properties": {"x": {"type": "string"}}})
    found = read_any("```json\n{'name': 'f', 'arguments': {'x': 1, 'z': 2,}}\n```", [tool])
    assert found.calls == [ToolCall("f", {"x": 1, "z": 2})]
    assert sorted(p.kind for p in found.problems) == ["repaired", "type_mismatch", "unknown_parameter"]


PIECES = (
    "```", "```json\n", "`", "\n", " ", OBJECT, "{", "}", '"', '{"name": "f", ', '"arguments": {', "}}", "[", "]",
    ",", "x", "<think>",
    "</think>", "\\", "~~~", "```py\n", "🎉", "\r\n",
)  # fmt: skip
GARBAGE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)


@settings(max_examples=1000, deadline=None)
@given(GARBAGE, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(["stop", "length"]))
def test_garbage(text, sizes, finish):
    whole = read(text, "json_fence", finish=finish).events
    assert faults(text, whole) == []
    parser, out, at, i = StreamParser("json_fence"), [], 0, 0
    while at < len(text):
        out += parser.feed(text[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    assert merged([*out, *parser.finish(finish)]) == merged(whole)


@settings(max_examples=1000, deadline=None)
@given(GARBAGE.filter(lambda t: "<" not in t))
def test_a_message_and_a_stream_are_read_by_one_rule(text):
    events = read(text, "json_fence").events
    calls = [(c.name, c.arguments) for s in json_fence.split(text) for c in s.calls]
    assert [(e.call.name, e.call.arguments) for e in events if isinstance(e, CallFinished)] == calls
    broken = [s.raw for s in json_fence.split(text) if s.reason]
    assert [e.raw for e in events if isinstance(e, Malformed)] == broken


STRINGS = st.text(st.characters(exclude_categories=["Cs"])) | st.just("```")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(STRINGS, JSON, max_size=4)), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(CALLS, st.integers(0, 9))
def test_what_is_rendered_is_read_back(calls, chunk):
    text = "Sure.\n" + json_fence.render(calls)
    found = read(text, "json_fence", chunk=chunk)
    assert found.calls == calls and found.content.strip() == "Sure." and not found.problems
    assert [json.dumps(c.arguments) for c in found.calls] == [json.dumps(c.arguments) for c in calls]
    assert [ToolCall(c.name, c.arguments) for s in json_fence.split(text) for c in s.calls] == calls


@pytest.mark.parametrize(
    "unit", ["`", "```", "```{", "{", '{"name": ', '"', " ", "\n", '"name": ', f"```json\n{OBJECT}\n```"]
)
@pytest.mark.parametrize("opening", ["", "```json\n{", '```json\n{"name": "', "```\n"])
def test_cost_is_linear(unit, opening, work):
    def cost(size: int) -> int:
        text = opening + unit * (size // len(unit))
        return work(lambda: read(text, "json_fence", chunk=16))

    assert cost(16_000) < 12 * cost(2_000)
