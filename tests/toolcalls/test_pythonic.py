"""Calls written in Python: literals, lists of calls, blocks, and what only looks like them."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls.calls import ArgumentsDelta, CallStarted, Malformed, Tool, ToolCall
from punie_mlx.toolcalls.contract import faults, merged
from punie_mlx.toolcalls.formats import pythonic
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather, read

RUN = Tool(
    "run",
    parameters={
        "type": "object",
        "properties": {"command": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["command"],
    },
)
TOOLS = [RUN, Tool("Calendar.create_event")]
OPEN, CLOSE = pythonic.OPEN, pythonic.CLOSE


def read_any(text: str, tools=(), finish: str = "stop") -> Reading:
    """Read whole and in chunks: all must agree, and nothing may be lost."""
    whole = read(text, "pythonic", tools, finish=finish)
    assert faults(text, whole.events) == []
    for chunk in (1, 2, 3, 7):
        assert merged(read(text, "pythonic", tools, finish=finish, chunk=chunk).events) == merged(whole.events)
    return whole


def arguments(source: str, tools=()) -> dict:
    """What `f(source)` is called with."""
    found = read_any(f"{OPEN}[f({source})]{CLOSE}", tools)
    assert not found.malformed, found.malformed
    assert found.content == ""
    return found.calls[0].arguments


LITERALS = [
    "'a'", '"a"', '""', "''", "'''a'b''c'''", '"""a\n"b" c"""', "''''''", r'"\n\t\\\"\'\a\b\f\r\v"', r'"\x41\101\0\7a"',
    r'"\u00e9\U0001f389"', r"r'\d\n'", r'R"\""', "u'x'", "'a' 'b'", "'a'\n \"b\" r'\\c'", "('a' 'b')", '"a\\\nb"',
    "1", "-1", "+1", "0", "00", "1_000", "0x1F", "0b11", "0o17", "12345678901234567890123", "1.5", "1.", ".5", "-1e3",
    "1E+5", "1_0.5_0", "True", "False", "None", "[]", "[1, 2,]", "[1, [2, []], 'x']", "()", "(1,)", "(1, 2)", "(1)",
    "((1))", "((1,),)", "[(1), (2,)]", "('a')", "{}", "{'a': 1}", "{'a': {'b': [1, {'c': None}]}, \"d\": (1, 'x')}",
    "{'a' 'b': 1,}", "[ 1 ,\n 2 ]", "'{[(' ", "'🎉'",
]  # fmt: skip


@pytest.mark.parametrize("source", LITERALS)
def test_a_literal_means_what_it_means_in_python(source):
    expected = json.loads(json.dumps(ast.literal_eval(f"({source})")))  # tuples are lists
    found = arguments(f"x={source}, y=1")
    assert found == {"x": expected, "y": 1}
    assert type(found["x"]) is type(expected)


@pytest.mark.parametrize(
    "source, value",
    [
        ("true", True), ("false", False), ("null", None), ('"\\d+"', "\\d+"), ('"a\nb"', "a\nb"),
        ('"C:\\xampp"', "C:\\xampp"),
        ('"C:\\users"', "C:\\users"), ('"\\New"', "\\New"), ('"\\U99999999"', "\\U99999999"), ("007", "007"),
        ('"\\ud83d\\ude00"', "😀"), ('"\\/"', "\\/"),
    ],
)  # fmt: skip
def test_what_models_write_and_python_does_not(source, value):
    assert arguments(f"x={source}") == {"x": value}


@pytest.mark.parametrize(
    "source",
    [
        "x=y", "x=f(1)", "x=1+2", "x=-y", "x={1, 2}", "x=b'a'", "x=f'a'", "x=[i for i in y]", "x=1j", "x=nan",
        "x=1e999",
        "x={1: 2}", "x={None: 2}", 'x="a"b"', 'x="\\N{BULLET}"', "x=", "x=,", "x=1 y=2", "x=[1", "x=(1]", "x={'a'}",
        "x={'a' 1}",
        "x=1, 2", "x=**{}", "**y", "**[1]", "x=not True", "x=1 if y else 2", "x=lambda: 1", "x=" + "[" * 300,
        "x=" + "9" * 5000,
        "x=0x" + "f" * 3900, "x={**y}", "x=*y",
    ],
)  # fmt: skip
def test_what_would_have_to_be_computed_is_no_argument(source):
    text = f"{OPEN}[f({source})]{CLOSE} after"
    found = read_any(text)
    assert not found.calls
    assert found.visible() == text


def test_keys_that_python_cannot_write():
    odd = {"odd key": 1, 'quote"d': {"from": 2}, "class": "x", "": None}
    assert arguments(f"a=1, **{odd!r}, z=2") == {"a": 1, **odd, "z": 2}
    rendered = pythonic.render([ToolCall("f", {"a": 1, **odd, "z": 2})])
    assert rendered.startswith(OPEN + '[f(a=1, **{"odd key": 1}, **{')
    ast.parse(rendered.removeprefix(OPEN).removesuffix(CLOSE))
    assert read_any(rendered).calls == [ToolCall("f", {"a": 1, **odd, "z": 2})]


def test_the_first_of_duplicates_stands():
    found = read_any("[f(a='x', a={'b': 1, 'b': [2]}, c={'d': 1, 'd': 2}, a=3)]")
    assert found.calls == [ToolCall("f", {"a": "x", "c": {"d": 1}})]
    assert [(p.kind, p.detail, p.raw) for p in found.problems] == [
        ("duplicate_parameter", "b", "[2]"),
        ("duplicate_parameter", "a", '{"b": 1}'),
        ("duplicate_parameter", "d", "2"),
        ("duplicate_parameter", "a", "3"),
    ]


def test_arguments_without_names_take_those_of_the_schema():
    found = read_any("[run('ls', n=3)]", TOOLS)
    assert found.calls == [ToolCall("run", {"command": "ls", "n": 3})]
    assert [p.kind for p in found.problems] == ["repaired"]
    for text in ("[run('ls', 3, 4)]", "[other('ls')]", "[run(n=1, 'ls')]"):
        assert read_any(text, TOOLS).visible() == text
    assert read_any("[f('ls')]").visible() == "[f('ls')]"


def test_a_list_of_calls_in_the_text():
    found = read_any("Now: [run(command='a'),\n Calendar.create_event(title=\"b\", )]\nDone.", TOOLS)
    assert [c.name for c in found.calls] == ["run", "Calendar.create_event"]
    assert found.content == "Now: \nDone." or found.content == "Now:\nDone."


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]", "see [the docs](https://x.y/z)", "[", "a [b", "[x[0]]", "[run]", "[run(", "[run()",
        "[note: run(x=1)]",
        "[other(a=1)]", "[run(a == 1)]", "[run() for x in y]", "[run(a=b)]", "[run(a=1) and more]", "[[run(a=1)",
        "[ ]", "[]",
        "[run (a=1)]", "x = [run(*a)]",
    ],
)  # fmt: skip
def test_what_is_no_list_of_calls_is_text(text):
    found = read_any(text, TOOLS, "length")
    assert not found.calls
    assert found.visible() == text or any(m.truncated for m in found.malformed)


def test_without_tools_any_name_counts_in_a_bare_list():
    assert read_any("[other(a=1)]").calls == [ToolCall("other", {"a": 1})]
    text = "hello world[A(A=\t)A(A=,\t\t)A(A=,\t"
    assert read_any(text).visible() == text


@pytest.mark.parametrize("marker", [CLOSE, pythonic.PYTHON_CLOSE, "</function_calls>", f"\n {CLOSE}"])
def test_a_closing_marker_behind_a_bare_list_is_framing(marker):
    found = read_any(f"So [run(command='ls')]{marker} and on.", TOOLS)
    assert found.calls == [ToolCall("run", {"command": "ls"})] and found.content == "So  and on."
    assert read_any(f"[run(command='ls')]{marker}", TOOLS).content == ""


@pytest.mark.parametrize("text", [f"[run] {CLOSE}", f"a {CLOSE} b", f"[run(command=ls)]{CLOSE}"])
def test_a_closing_marker_behind_no_call_is_text(text):
    assert read_any(text, TOOLS).visible() == text


def test_calls_before_the_one_that_breaks_stand():
    found = read_any("[run(command='a'), run(command=b), x]", TOOLS)
    assert [c.arguments for c in found.calls] == [{"command": "a"}]
    assert found.visible().endswith("run(command=b), x]")


@pytest.mark.parametrize("open_, close", [(OPEN, CLOSE), (pythonic.PYTHON_OPEN, pythonic.PYTHON_CLOSE)])
@pytest.mark.parametrize(
    "body",
    [
        "[f(a=1), g()]", " [f(a=1), g()] ", "[f(a=1)]\n[g()]", "f(a=1)\ng()", "f(a=1); g()", "[f(a=1),\n g(),\n]",
        '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "parameters": {}}]',
    ],
)  # fmt: skip
def test_blocks(open_, close, body):
    found = read_any(f"Sure. {open_}{body}{close} Done.")
    assert found.calls == [ToolCall("f", {"a": 1}), ToolCall("g", {})]
    assert found.content.split() == ["Sure.", "Done."]
    assert not found.malformed


def test_a_broken_block_ends_before_the_next():
    found = read_any(f"{OPEN}[f(a=x, b='y')] {OPEN}[g()]{CLOSE}")
    assert found.calls == [ToolCall("g", {})]
    assert [m.raw for m in found.malformed] == [f"{OPEN}[f(a=x, b='y')] "]


def test_a_call_in_thinking_is_a_call():
    found = read_any(f"<think>hm {OPEN}[f(a=1)]{CLOSE} more</think>Done.")
    assert found.calls == [ToolCall("f", {"a": 1})]
    assert found.reasoning == "hm  more" or found.reasoning.split() == ["hm", "more"]
    assert found.content == "Done."


def test_a_string_arrives_as_it_is_written():
    parser = StreamParser("pythonic")
    assert parser.feed(f'{OPEN}[f(a="x\\n')[-2:] == [CallStarted(0, "f"), ArgumentsDelta(0, '{"a": "x\\n')]
    assert parser.feed("yz") == [ArgumentsDelta(0, "yz")]
    assert parser.feed('", b=(') == [ArgumentsDelta(0, '", "b": ')]
    assert parser.feed("1,") == [ArgumentsDelta(0, "[1")]


@pytest.mark.parametrize("text", [f'{OPEN}[f(a="x", b=[1, {{"c": "de"}}]), g(d=1)]{CLOSE}', '[f(a="x, b"), g()] z'])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_cut_call_is_never_complete(text, finish):
    for cut in range(len(text)):
        found = read_any(text[:cut], finish=finish)
        complete = text[:cut].count("),") + text[:cut].count(")]")
        ends_on_bracket = finish == "stop" and text[:cut].rstrip().endswith(")")
        assert len(found.calls) <= complete + ends_on_bracket
        for event in found.malformed:
            assert event.truncated and event.name in "fg"


def test_a_marker_in_a_string_is_data():
    text = f'{OPEN}[f(a="{CLOSE} {OPEN}")]{CLOSE}'
    assert read_any(text).calls == [ToolCall("f", {"a": f"{CLOSE} {OPEN}"})]
    parser = StreamParser("pythonic", control={1: OPEN, 2: CLOSE})
    spelled = [*parser.feed(f"{OPEN}[f(a=1)]{CLOSE}"), *parser.finish()]
    assert gather(spelled).content == OPEN + CLOSE  # text around a bare list
    parser = StreamParser("pythonic", control={1: OPEN, 2: CLOSE})
    events = [*parser.feed(OPEN, [1]), *parser.feed("[f(a=1)]"), *parser.feed(CLOSE, [2]), *parser.finish()]
    assert gather(events).calls == [ToolCall("f", {"a": 1})]


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
STRINGS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["'", '"', "\\", "\\\\'", '"""', "\\N{x}", CLOSE]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(NAMES | STRINGS, JSON, max_size=4)), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(CALLS, st.integers(0, 9))
def test_what_is_rendered_is_read_back(calls, chunk):
    found = read("Sure.\n" + pythonic.render(calls), "pythonic", chunk=chunk)
    assert found.calls == calls
    assert [list(c.arguments) for c in found.calls] == [list(c.arguments) for c in calls]
    assert found.content.strip() == "Sure." and not found.malformed and not found.problems


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(NAMES.filter(str.isidentifier), JSON, max_size=3), st.integers(0, 9))
def test_values_are_read_as_python_prints_them(values, chunk):
    source = ", ".join(f"{k}={v!r}" for k, v in values.items())
    assert read(f"[f({source})]", "pythonic", chunk=chunk).calls == [ToolCall("f", values)]


PIECES = (
    OPEN, CLOSE, pythonic.PYTHON_OPEN, pythonic.PYTHON_CLOSE, "[", "]", "run(", "f(", "(", ")", "command=", "a=", "'",
    '"', "\\",
    '"""', "r'", ",", " ", "\n", "1", "-", "1.5e", "True", "null", "{", "}", ":", "**", "**{", "'k': ", "\\u12",
    "\\x", "\\N{",
    "<think>", "</think>", '{"name": "run", "arguments": {', "x", "🎉", "<", "[run(command='ls')", "{'a': 1}", ";",
)  # fmt: skip
GARBAGE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@settings(max_examples=1000, deadline=None)
@given(GARBAGE, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.sampled_from(["stop", "length"]))
def test_garbage(text, sizes, offered, finish):
    tools = TOOLS if offered else []
    whole = read(text, "pythonic", tools, finish=finish).events
    assert faults(text, whole) == []
    parser, out, at, i = StreamParser("pythonic", tools), [], 0, 0
    while at < len(text):
        out += parser.feed(text[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    assert merged([*out, *parser.finish(finish)]) == merged(whole)


UNITS = [
    "[",
    "[f(",
    "[f(a=",
    " ",
    "(",
    "{'a': ",
    "'",
    '"',
    "\\",
    "\\u",
    "f(a=1), ",
    "[f(a=1)",
    "r'",
    "1",
    "a",
    "**{",
    ",",
    "<",
    OPEN,
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("opening", ["", "[f(a=", "[f(a='", OPEN + "[f(x y"])
def test_cost_is_linear(unit, opening, work):
    def cost(size: int) -> int:
        text = opening + unit * (size // len(unit))
        return work(lambda: read(text, "pythonic", chunk=16))

    assert cost(16_000) < 12 * cost(2_000)


def test_nothing_raises_on_depth_or_length():
    for body in ("[" * 100_000, "{'a': " * 50_000, "(" * 100_000, "9" * 100_000, "'" + "x" * 100_000):
        found = read(f"{OPEN}[f(a={body})]{CLOSE}", "pythonic")
        assert isinstance(found.malformed[0], Malformed)
