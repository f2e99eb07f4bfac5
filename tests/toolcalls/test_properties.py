"""Properties that hold for any calls, any text and any chunking."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ArgumentsDelta, CallFinished, Event, Reasoning, Text, Tool, ToolCall
from punie_mlx.toolcalls.stream import StreamParser, read

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
# Text alone cannot tell a closing tag in a value from the real one: such values need token ids.
CLOSERS = ("</parameter>", "<parameter=")
STRINGS = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda s: not any(c in s for c in CLOSERS) and "</function>" not in s
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
SCALARS = {
    "string": STRINGS,
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(JSON, max_size=3),
    "object": st.dictionaries(NAMES, JSON, max_size=3),
}


@st.composite
def tools_and_calls(draw):
    """A few tools, and calls of them with values of the declared types."""
    tools, calls = [], []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        kinds = draw(st.dictionaries(NAMES, st.sampled_from(sorted(SCALARS)), max_size=4))
        tools.append(
            Tool(name, parameters={"type": "object", "properties": {k: {"type": v} for k, v in kinds.items()}})
        )
        calls.append(ToolCall(name, {k: draw(SCALARS[v]) for k, v in kinds.items()}))
    return tools, calls


PIECES = (
    "<tool_call>", "</tool_call>", "<function=run>", "<function=", "</function>", "<parameter=a>", "<parameter=b>",
    "</parameter>", "<think>", "</think>", "\n", "\r\n", " ", "x", "<", ">", '{"name": "run", "arguments": {', "}",
    "}}", '"', "'", "\\", "[", "]", ",", "{", "run", "ü🎉", "</", "<tool", "```json\n", "```", "\u2028",
)  # fmt: skip
GARBAGE = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40).map("".join)
RUN = [Tool("run", parameters={"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}})]


def events_of(text: str, sizes: list[int], name: str, tools: list[Tool], reasoning: bool, finish: str) -> list[Event]:
    parser = StreamParser(name, tools, starts_in_reasoning=reasoning)
    out, at, i = [], 0, 0
    while at < len(text):
        size = sizes[i % len(sizes)] if sizes else len(text)
        out += parser.feed(text[at : at + size])
        at, i = at + size, i + 1
    return out + parser.finish(finish)


def merged(events: list[Event]) -> list[object]:
    """Events with neighbours of one kind joined, as a reader of the stream would put them together."""
    out: list[object] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Text | Reasoning) and type(last) is type(event):
            out[-1] = type(event)(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta) and last.index == event.index:
            out[-1] = ArgumentsDelta(event.index, last.json + event.json)
        else:
            out.append(event)
    return out


@settings(max_examples=200, deadline=None)
@given(tools_and_calls(), st.sampled_from(["qwen3_coder", "hermes"]), st.integers(0, 9))
def test_what_is_rendered_is_read_back(drawn, name, chunk):
    tools, calls = drawn
    found = read("Sure.\n" + formats.render(name, calls), name, tools, chunk=chunk)
    assert found.calls == calls and [list(c.arguments) for c in found.calls] == [list(c.arguments) for c in calls]
    assert found.content.strip() == "Sure." and not found.malformed and not found.problems


@settings(max_examples=200, deadline=None)
@given(tools_and_calls())
def test_fences_are_read_back(drawn):
    _, calls = drawn
    found = read("Sure.\n" + formats.render("json_fence", calls) + "\nDone.", "json_fence")
    assert found.calls == calls and found.content.split() == ["Sure.", "Done."]


@settings(max_examples=400, deadline=None)
@given(
    GARBAGE,
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(["qwen3_coder", "hermes"]),
    st.booleans(),
    st.sampled_from(["stop", "length"]),
)
def test_garbage_is_read_the_same_in_any_chunks_and_nothing_is_lost(text, sizes, name, reasoning, finish):
    whole = events_of(text, [], name, RUN, reasoning, finish)
    assert merged(events_of(text, sizes, name, RUN, reasoning, finish)) == merged(whole)
    assert "".join(getattr(e, "text", "") or getattr(e, "raw", "") for e in whole) == text
    for event in whole:
        if isinstance(event, CallFinished):
            deltas = "".join(e.json for e in whole if isinstance(e, ArgumentsDelta) and e.index == event.index)
            assert json.loads(deltas) == event.call.arguments
