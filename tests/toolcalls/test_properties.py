"""Properties that hold in every format, for any calls, any text and any chunking."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls import contract, formats
from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Malformed,
    Text,
    Tool,
    ToolCall,
    dumps,
)
from punie_mlx.toolcalls.stream import StreamParser, gather, read

FORMATS = sorted(formats.FORMATS)
every_format = pytest.mark.parametrize("name", FORMATS)
many = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(many, max_examples=200)


def feed(
    text: str, name: str, tools: list[Tool], sizes: Sequence[int] = (), finish: str = "stop", **options: bool
) -> list[Event]:
    """The events of `text`, fed in pieces of `sizes`, over and over; whole without."""
    parser = StreamParser(name, tools, **options)
    out, at, i = [], 0, 0
    while at < len(text):
        size = sizes[i % len(sizes)] if sizes else len(text)
        out += parser.feed(text[at : at + size])
        at, i = at + size, i + 1
    return out + parser.finish(finish)


# ---- what is rendered is read back ----

# Where nothing is escaped, a value that spells what ends it, with what may follow that, cannot be told from its end by
# text alone. With token ids it can: `test_markers_spelled_out_in_a_value_are_data`.
PARAMETER = r"</parameter>\s*(?:<parameter|</function>|</invoke>|</\S*tool_call>)"
ENDS_A_VALUE = {
    "qwen3_coder": PARAMETER,
    "seed_oss": PARAMETER,
    "mimo": PARAMETER,
    "minimax": PARAMETER,
    "glm": r"</arg_value>\s*(?:<arg_key>|</tool_call>)",
    "gemma": r'<\|"\|>(?:\s*[,\]}]|[^"]*":)',  # in a string; anywhere in a key
}
# How a line break within a value is spelled, where not as in JSON.
NEWLINE = {"qwen3_coder": "\n", "seed_oss": "\n", "mimo": "\n", "glm": "\n", "minimax": "\n", "gemma": "\n"}
LETTERS = string.ascii_letters + "_"
NAMES = st.text(LETTERS + string.digits + ".-", min_size=1, max_size=12).map(
    lambda s: s if s[0] in LETTERS else "_" + s
)
ODD = (
    "", " ", "\n", "\n\n", "\r\n", " x ", "null", "true", "007", "1e5", '"hi"', '{"a": 1}', "[1]", "\\", "\\n", "'",
    '"""', "a\r\nb", "&lt;", "<", "</", "<b>x</b>", "<think>", "</think>", "<tool_call>", "</tool_call>", "```", "🎉",
    "\u2028", "\x00", "});", "f(x=1)", "[f(x=1)]", "{{}}", "<|im_end|>", "x" * 200,
    "</parameter>", "a </parameter> b", "</function>", "<parameter=q>", "</arg_value>", "<arg_key>", "</invoke>",
    "</minimax:tool_call>", "</seed:tool_call>", '<|"|>', "<tool_call|>", "[/TOOL_CALLS]", "<|call|>",
    "<|tool_call_end|>", "<｜tool▁call▁end｜>", "</code>", "[TOOL_CALLS]", "<|tool_calls_section_end|>",
)  # fmt: skip
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(ODD)
SCALARS = {
    "string": STRINGS,
    "integer": st.integers() | st.sampled_from([2**53 + 1, -(10**40)]),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "boolean": st.booleans(),
    "null": st.none(),
}
NESTED = st.recursive(
    st.one_of(*SCALARS.values()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=5,
)
VALUES = SCALARS | {
    "array": st.lists(NESTED, max_size=3),
    "object": st.dictionaries(STRINGS, NESTED, max_size=3),
}
PARAMETERS = st.dictionaries(
    NAMES, st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])), max_size=3
)
CALLS = st.dictionaries(NAMES, PARAMETERS, min_size=1, max_size=3)


def tools_and_calls(drawn: dict) -> tuple[list[Tool], list[ToolCall]]:
    """A few tools, and a call of each with values of the declared types."""
    schemas = {n: {k: {"type": kind} for k, (kind, _) in given.items()} for n, given in drawn.items()}
    tools = [Tool(n, parameters={"type": "object", "properties": p}) for n, p in schemas.items()]
    return tools, [ToolCall(n, {k: value for k, (_, value) in given.items()}) for n, given in drawn.items()]


def spells_an_end(name: str, calls: list[ToolCall]) -> bool:
    ends = ENDS_A_VALUE.get(name)
    return (
        ends is not None
        and re.search(ends, dumps([c.arguments for c in calls]).replace('\\"', '"').replace("\\n", "\n")) is not None
    )


@every_format
@many
@given(CALLS, st.sampled_from([0, 1, 2, 3, 5, 8, 21]))
def test_what_is_rendered_is_read_back(name, drawn, chunk):
    tools, calls = tools_and_calls(drawn)
    assume(not spells_an_end(name, calls))
    found = read("Sure.\n" + formats.render(name, calls), name, tools, chunk=chunk)
    assert [(c.name, dumps(c.arguments)) for c in found.calls] == [(c.name, dumps(c.arguments)) for c in calls]
    assert found.content.strip() == "Sure." and not found.reasoning and not found.malformed and not found.problems


# ---- any text ----

RUN = [
    Tool("run", parameters={"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}),
    Tool("f", parameters={"type": "object", "properties": {"x": {"type": "object"}}}),
]
COMMON = (
    "\n", "\r\n", " ", "\t", "x", "run", "f", "<", ">", "</", "<think>", "</think>", "<tool", "}", "}}", "{", "[", "]",
    '{"name": "run", "arguments": {', "(", ")", '"', "'", "\\", "\\u12", "\\ud800", ",", ":", "=", ";", '"a"', "1",
    "-1.5e3", "true", "None", "9" * 4400, "[" * 300, '{"a":' * 300, "ü🎉", "\u2028", "\ud800", "\x00", "```json\n",
    "```", "run(a='x', b=1)", "<|im_end|>",
)  # fmt: skip


@functools.cache
def garbage(name: str) -> st.SearchStrategy[str]:
    """Texts made of what means something in the format, cut and put together in the wrong order."""
    own = contract.pieces(formats.get(name))
    piece = st.sampled_from(own) | st.sampled_from(COMMON) | st.sampled_from(own).map(lambda p: p[: len(p) // 2])
    return st.lists(piece, max_size=15).map("".join)


SIZES = st.lists(st.sampled_from([1, 1, 2, 3, 7, 40]), min_size=1, max_size=4)
FINISH = st.sampled_from(["stop", "length"])


@every_format
@many
@given(st.data())
def test_any_text_keeps_the_contract_in_any_chunks(name, data):
    text, sizes, finish = data.draw(garbage(name)), data.draw(SIZES), data.draw(FINISH)
    tools, reasoning, rescue = data.draw(st.sampled_from([RUN, []])), data.draw(st.booleans()), data.draw(st.booleans())
    options = {"finish": finish, "starts_in_reasoning": reasoning, "rescue": rescue}
    whole = feed(text, name, tools, **options)
    assert contract.faults(text, whole) == []
    pieces = feed(text, name, tools, sizes, **options)
    assert contract.faults(text, pieces) == []
    assert contract.merged(pieces) == contract.merged(whole)


@every_format
@some
@given(st.text(max_size=60), FINISH, st.booleans())
def test_text_of_no_format_keeps_the_contract(name, text, finish, rescue):
    for sizes in ([], [1]):
        assert contract.faults(text, feed(text, name, RUN, sizes, finish, rescue=rescue)) == []


# ---- long texts ----

UNITS = (
    "{", "[", "(", "<", '"', "'", "\\", " ", "\n", "x", "<|", "</", "```", "[{", '{"a":', '{"a', '["', "<x ", "a=", "1",
    "<think>", "\\u00", "`{",
)  # fmt: skip
SHORT, LONG = 500, 3_000


@every_format
def test_the_cost_of_a_character_does_not_grow(name, work):
    """Nor does anything break on 3,000 brackets: in the text, in a call, in its first string."""
    format = formats.get(name)
    rendered = format.render([contract.SAMPLE])
    for head in ("", rendered[: len(rendered) // 2], rendered[: rendered.index("x y") + 1]):
        for unit in (*UNITS, *contract.markers(format), rendered[:9]):
            short, long = (head + unit * (size // len(unit)) for size in (SHORT, LONG))
            assert contract.faults(long, feed(long, name, RUN, [4], "length", rescue=True)) == []
            costs = [work(partial(feed, text, name, RUN, [4], "length", rescue=True)) for text in (short, long)]
            assert costs[1] < costs[0] * 2 * LONG / SHORT, (head, unit)


# ---- token ids ----


def feed_tokens(name: str, parts: list[tuple[str, bool]], sizes: list[int], finish: str = "stop") -> list[Event]:
    """The events of `parts`, each a piece of text and whether it is one control token; other text in any pieces."""
    ids = {marker: i for i, marker in enumerate(contract.markers(formats.get(name)))}
    parser = StreamParser(name, RUN, control={i: marker for marker, i in ids.items()})
    events = []
    for part, is_token in parts:
        step = len(part) if is_token or not sizes else sizes[0]
        for at in range(0, len(part), step or 1):
            events += parser.feed(part[at : at + step], [ids[part]] if is_token else [])
    return events + parser.finish(finish)


def tokenized(name: str, text: str) -> list[tuple[str, bool]]:
    """`text` in parts, where every marker of the format is a control token."""
    tokens = sorted(contract.markers(formats.get(name)), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
    return [(part, part in tokens) for part in parts if part]


@every_format
@some
@given(CALLS, SIZES)
def test_control_tokens_read_as_their_text(name, drawn, sizes):
    _, calls = tools_and_calls(drawn)
    spelled = dumps([c.arguments for c in calls])
    assume(not spells_an_end(name, calls) and not any(m in spelled for m in contract.markers(formats.get(name))))
    text = "Sure.\n" + formats.render(name, calls)
    assert contract.merged(feed_tokens(name, tokenized(name, text), sizes)) == contract.merged(feed(text, name, RUN))


@every_format
@pytest.mark.parametrize("chunk", [0, 1, 4])
def test_markers_spelled_out_in_a_value_are_data(name, chunk):
    """Each marker in ordinary tokens, within a string: nothing but a control token ends it."""
    for marker in contract.markers(formats.get(name)):
        for around in ("{}", "a {} b", "\n{}\n", "{}{}", "x{}\n{} y"):
            value = around.replace("{}", marker)
            rendered = formats.render(name, [ToolCall("run", {"a": "SPELLED", "b": 1})])
            spelled = value.replace("\n", NEWLINE.get(name, "\\n"))
            parts = [(p.replace("SPELLED", spelled), t) for p, t in tokenized(name, rendered)]
            found = gather(feed_tokens(name, parts, [chunk] if chunk else []))
            assert found.calls == [ToolCall("run", {"a": value, "b": 1})], value
            assert not found.malformed and not found.problems


@every_format
@some
@given(st.data())
def test_any_tokens_keep_the_contract(name, data):
    own = contract.markers(formats.get(name))
    token = st.sampled_from(own).map(lambda m: (m, True)) if own else st.nothing()
    text = garbage(name).map(lambda t: (t[:200], False))
    parts = data.draw(st.lists(st.one_of(token, text), max_size=12))
    sizes, finish = data.draw(SIZES), data.draw(FINISH)
    whole = feed_tokens(name, parts, [], finish)
    assert contract.faults("".join(p for p, _ in parts), whole) == []
    assert contract.merged(feed_tokens(name, parts, sizes, finish)) == contract.merged(whole)


# ---- the contract itself ----


def test_the_contract_finds_what_it_is_for():
    call = ToolCall("f", {"a": 1})
    good = [
        Text("x"),
        CallStarted(0, "f"),
        ArgumentsDelta(0, '{"a"'),
        ArgumentsDelta(0, ": 1}"),
        CallFinished(0, call, raw="y"),
    ]
    assert contract.faults("xy", good) == []
    assert contract.merged(good)[2] == ArgumentsDelta(0, '{"a": 1}')
    for text, broken in (
        ("xyz", good),  # lost
        ("y", good),  # made up
        ("xyxy", good * 2),  # the same index twice
        ("xy", [*good[:3], good[4]]),  # a delta is missing
        ("xy", [*good[:3], ArgumentsDelta(0, ": 1.0}"), good[4]]),  # another type
        ("xy", [good[0], *good[2:]]),  # never started
        ("x", good[:4]),  # never ended
        ("xy", [*good[:4], CallFinished(1, call, raw="y")]),
        ("xy", [*good[:4], Malformed("y", "")]),
        ("x", [good[0], Malformed("", "", truncated=True)]),
        ("x", [*good[:2], ArgumentsDelta(0, '{"a" "'), Malformed("", "", 0)]),
    ):
        assert contract.faults(text, broken), broken


def test_what_begins_json():
    for text in (r'{"a": [1.5e-3, -2, true, null, {"k\\": "x\u00e9\n\""}], "b": false}', "[]", r'"\\\\"'):
        for end in range(len(text) + 1):
            assert contract.is_json_prefix(text[:end]), text[:end]
    for text in ('{"a" "', "}", '{"a":1]', '{"a":tx', "{,", '{"a":1}}', r'{"a":"\x'):
        assert not contract.is_json_prefix(text), text
