"""Calls outside the wire format: what counts as one, and what stays text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls.calls import CallFinished, Text, Tool, ToolCall
from punie_mlx.toolcalls.contract import faults, merged
from punie_mlx.toolcalls.stream import Reading, StreamParser, read

SAVE = Tool(
    "save_config",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["path"],
    },
)
TOOLS = [SAVE, Tool("refresh")]
CALL = 'save_config(path="x", n=3)'
OBJECT = json.dumps({"name": "save_config", "arguments": {"path": "x", "n": 3}})
NATIVE = "<tool_call>\n<function=refresh>\n</function>\n</tool_call>"
WANTED = ToolCall("save_config", {"path": "x", "n": 3})


def read_any(text: str, tools=TOOLS, finish: str = "stop", format: str = "qwen3_coder") -> Reading:
    """Read whole and in chunks: all must agree, and nothing may be lost."""
    whole = read(text, format, tools, rescue=True, finish=finish)
    assert faults(text, whole.events) == []
    for chunk in (1, 2, 3, 7):
        pieces = read(text, format, tools, rescue=True, finish=finish, chunk=chunk)
        assert merged(pieces.events) == merged(whole.events)
    return whole


@pytest.mark.parametrize(
    "text",
    [
        CALL, f"Sure.\n\n{CALL}", f"Sure.\n  {CALL};\nDone.", f"```python\n{CALL}\n```", f"```\n{CALL}```",
        f"```\n{CALL}\n",
        f"```tool_code\n{CALL}\n```",
        f"Run `{CALL}` now.", f"[{CALL}]", f"`[{CALL}]`", 'save_config(\n    path="x",\n    n=3,\n)',
        "save_config('x', n=3)",
        OBJECT, f"Here: {OBJECT}", f"[{OBJECT}]", f"Use `{OBJECT}`.", f"```json\n{OBJECT}\n```",
        f"```\n[{OBJECT}]\n```\nDone.",
        OBJECT.replace("arguments", "parameters"), f'{{"type": "function", "function": {OBJECT}}}', f"{OBJECT};",
        '{"arguments": {"path": "x", "n": 3}, "name": "save_config"}',
        "{'name': 'save_config', 'arguments': {'path': 'x', 'n': 3}}",
        f"```python\nimport os\n```\n{CALL}", f"{{1}} [x] `y` save {OBJECT}",
        f"I will save it: {CALL}", f"I refresh nothing, but save_config first: {CALL}\nDone.", f"x = {CALL}",
        f"done = await {CALL};", f"```python\nx = 1\n{CALL}\n```", f"```py\ny = {CALL}\nprint(y)\n```\nThere.",
    ],
)  # fmt: skip
def test_what_is_rescued(text):
    found = read_any(text)
    assert found.calls == [WANTED]
    assert all(e.rescued for e in found.events if isinstance(e, CallFinished))
    assert ("rescued", "save_config") in [(p.kind, p.detail) for p in found.problems]


@pytest.mark.parametrize(
    "text",
    [
        f"You can call {CALL} to save.", f"{CALL} saves it.", f"`x = {CALL}`", f"{CALL}.", f"x.{CALL}",
        f"x + {CALL} + 1",
        f"```js\n{CALL}\nfoo()\n```", f"```python\ndef f():\n    {CALL}\n```", f"`{CALL} # save`",
        f"``{CALL}``",
        f"`a {OBJECT}`",
        f"```\nx\n{OBJECT}\n```",
        "other(path='x')", "save_config(n=3)", "save_config(path=3)", "save_config(path='x', m=1)",
        "save_config(path='x', path='y')",
        "save_config(path=x)", "save_config(path='x'", "save_config", "save_config(", "my_save_config(path='x')",
        "save_config(*a)",
        OBJECT.replace("save_config", "other"), OBJECT.replace('"x"', "1"), OBJECT[:-1], '{"name": "save_config"}',
        f"[{OBJECT}, 3]", f"[{CALL}, other()]", f'[{OBJECT}, {{"name": "other", "arguments": {{}}}}]', "{}", "[", "{",
        "`", "```",
        f"<think>{OBJECT}\n{CALL}</think>Done.", '{"name": "save_config", "arguments": {"path": "x', "``` ```",
        "save_config(path='x') for",
    ],
)  # fmt: skip
def test_what_stays_text(text):
    found = read_any(text)
    assert not found.calls
    assert found.content + found.reasoning == text.replace("<think>", "").replace("</think>", "") or "<think>" in text
    assert [e.rescued for e in found.events if isinstance(e, CallFinished)] == []


def test_several_are_rescued_in_order_and_the_text_around_them_stays():
    found = read_any(f"One.\n{CALL}\nTwo.\n```json\n[{OBJECT}, {OBJECT}]\n```\nThree `refresh()`.")
    assert found.calls == [WANTED] * 3 + [ToolCall("refresh", {})]
    assert found.content.split() == ["One.", "Two.", "Three", "."]


@pytest.mark.parametrize(
    "text", [f"{CALL}\n{NATIVE}", f"{NATIVE}\n{CALL}", f"A\n{CALL}\n{OBJECT} b\n{NATIVE}\n{OBJECT}"]
)
def test_one_native_call_and_nothing_is_rescued(text):
    found = read_any(text)
    assert found.calls == [ToolCall("refresh", {})]
    assert [e.rescued for e in found.events if isinstance(e, CallFinished)] == [False]
    outside = text.replace(NATIVE, "").split()
    assert found.content.split() == outside


def test_nothing_is_rescued_without_tools_or_unasked():
    for text in (CALL, OBJECT, f"```json\n{OBJECT}\n```"):
        assert read_any(text, ()).content == text
        assert read(text, "qwen3_coder", TOOLS).content == text


def test_what_was_found_waits_for_the_end_and_nothing_else_does():
    parser = StreamParser("qwen3_coder", TOOLS, rescue=True)
    assert parser.feed("Look: save it, [1] and {2}.") == [Text("Look: save it, "), Text("[1] and "), Text("{2}.")]
    assert [e for e in parser.feed(f"\n{CALL}\nSo.\n") if not isinstance(e, Text) or e.text.strip()] == []
    assert [type(e).__name__ for e in parser.finish()][:3] == ["CallStarted", "ArgumentsDelta", "CallFinished"]


def test_text_in_thinking_is_not_looked_through_but_text_after_it_is():
    found = read_any(f"<think>{CALL}\n</think>\n{CALL}")
    assert found.calls == [WANTED] and CALL in found.reasoning


@pytest.mark.parametrize("format", ["hermes", "json_fence", "gemma", "pythonic"])
def test_other_formats(format):
    assert read_any(f"Sure.\n{CALL}\n", format=format).calls == [WANTED]
    assert read_any(f"Sure. {OBJECT}", format=format).calls == [WANTED]


PIECES = (
    CALL, OBJECT, "save_config(", "path='x'", ")", "```", "```python\n", "```json\n", "`", "\n", " ", "[", "]", "{",
    "}", ",", ";",
    "'", '"', "refresh()", "refresh", "x", NATIVE, "<think>", "</think>", '{"name": "refresh", "arguments": {', "}}",
    "\\", "<tool_call>",
    '{"name": ', "🎉", "\r\n", "<|im_end|>",
)  # fmt: skip
GARBAGE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)


@settings(max_examples=1500, deadline=None)
@given(
    GARBAGE,
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(["qwen3_coder", "hermes", "json_fence", "pythonic"]),
    st.sampled_from(["stop", "length"]),
)
def test_garbage(text, sizes, format, finish):
    whole = read(text, format, TOOLS, rescue=True, finish=finish)
    assert faults(text, whole.events) == []
    parser, out, at, i = StreamParser(format, TOOLS, rescue=True), [], 0, 0
    while at < len(text):
        out += parser.feed(text[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    assert merged([*out, *parser.finish(finish)]) == merged(whole.events)
    rescued = [e.rescued for e in whole.events if isinstance(e, CallFinished)]
    assert len(set(rescued)) < 2  # all or none
    for event in whole.events:
        if isinstance(event, CallFinished) and event.rescued:
            assert event.call.name in ("save_config", "refresh")


VALUES = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(), st.integers(0, 5), st.sampled_from([None, "json", "python"]))
def test_any_value_is_rescued(path, n, chunk, fence):
    arguments = {"path": path, "n": n}
    body = json.dumps({"name": "save_config", "arguments": arguments})
    if fence == "python":
        body = f"save_config(path={path!r}, n={n})"
    text = f"```{fence}\n{body}\n```" if fence else body
    assert read("So:\n" + text, "qwen3_coder", TOOLS, rescue=True, chunk=chunk).calls == [
        ToolCall("save_config", arguments)
    ]


UNITS = [
    "`",
    "```",
    "[",
    "{",
    '{"name": ',
    "save_config(",
    "save_config(path='",
    "\n",
    " ",
    "x",
    CALL,
    OBJECT,
    "\n" + CALL,
    "```{",
    "refresh() ",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("opening", ["", "```json\n{", "save_config(path='", '{"name": "', "`"])
def test_cost_is_linear(unit, opening, work):
    def cost(size: int) -> int:
        text = opening + unit * (size // len(unit))
        return work(lambda: read(text, "qwen3_coder", TOOLS, rescue=True, chunk=64))

    assert cost(16_000) < 12 * cost(2_000)
