"""Gemma 4 and FunctionGemma: both spellings, the end of strings, channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls.calls import ArgumentsDelta, CallStarted, Tool, ToolCall
from punie_mlx.toolcalls.contract import faults, merged
from punie_mlx.toolcalls.formats import gemma
from punie_mlx.toolcalls.formats.gemma import FUNCTION_GEMMA, GEMMA_4, Spelling
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather, read

Q = GEMMA_4.quote
RUN = Tool("run", parameters={"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}})
SPELLINGS = pytest.mark.parametrize("spelling", [GEMMA_4, FUNCTION_GEMMA], ids=["gemma 4", "function gemma"])


def read_any(text: str, tools=(), finish: str = "stop", **options) -> Reading:
    """Read whole and in chunks: all must agree, and nothing may be lost."""
    whole = read(text, "gemma", tools, finish=finish, **options)
    assert faults(text, whole.events) == []
    for chunk in (1, 2, 3, 7):
        assert merged(read(text, "gemma", tools, finish=finish, chunk=chunk, **options).events) == merged(whole.events)
    return whole


def call(inside: str, spelling: Spelling = GEMMA_4, name: str = "f") -> str:
    """A call with `inside` between its brackets, in which ' is the mark around strings."""
    return f"{spelling.open}call:{name}{{{inside.replace(chr(39), spelling.quote)}}}{spelling.close}"


@SPELLINGS
@pytest.mark.parametrize(
    "inside, arguments",
    [
        ("", {}),
        ("  ", {}),
        ("a:'x'", {"a": "x"}),
        ("a:''", {"a": ""}),
        ("a:'Paris, {France}: [\"x\"]\n'", {"a": 'Paris, {France}: ["x"]\n'}),
        ("a:1,b:-5,c:3.14,d:1.5e10,e:1e3,f:108.,g:12345678901234567890", None),
        ("a:true,b:false,c:null,d:None,e:True", {"a": True, "b": False, "c": None, "d": None, "e": True}),
        ("a:['x','y'],b:[],c:{},d:{k:'v',n:{m:[1,[2]]}}", None),
        (" a : 'x' , b : [ 1 , 2 ] , ", {"a": "x", "b": [1, 2]}),
        ("'odd key':1,'':2,a.b-c:3", {"odd key": 1, "": 2, "a.b-c": 3}),
    ],
)
def test_values(spelling, inside, arguments):
    known = {
        "a:1": {"a": 1, "b": -5, "c": 3.14, "d": 1.5e10, "e": 1e3, "f": 108.0, "g": 12345678901234567890},
        "a:[": {"a": ["x", "y"], "b": [], "c": {}, "d": {"k": "v", "n": {"m": [1, [2]]}}},
    }
    found = read_any("Sure. " + call(inside, spelling) + " Done.")
    assert found.calls == [ToolCall("f", known[inside[:3]] if arguments is None else arguments)]
    assert found.content.split() == ["Sure.", "Done."]
    assert not found.problems


@SPELLINGS
@pytest.mark.parametrize(
    "value",
    ["'", "say 'hi'", "a' b", "', x", "'] ", "x'\n\ny", "''", "it's <b>", "<", "<|", '<|"', "call:g{a:1}", "'\n:", "}"],
)
def test_a_mark_without_a_legal_continuation_is_data(spelling, value):
    value = value.replace("'", spelling.quote)
    text = f"{spelling.open}call:f{{a:{spelling.quote}{value}{spelling.quote},n:1}}{spelling.close}"
    found = read_any(text)
    assert found.calls == [ToolCall("f", {"a": value, "n": 1})]


def test_the_closing_marker_in_a_string_is_data():
    value = f"use {GEMMA_4.close} and {GEMMA_4.open}"
    assert read_any(call(f"a:'{value}'")).calls == [ToolCall("f", {"a": value})]


@pytest.mark.parametrize(
    "inside, arguments",
    [
        ("a:New York,b:1", {"a": "New York", "b": 1}),
        ('a:"x, \\"y\\"",b:1', {"a": 'x, "y"', "b": 1}),
        ("a:,b:1", {"a": "", "b": 1}),
        ("a:007", {"a": "007"}),
        ("a:[x,y]", {"a": ["x", "y"]}),
        ("a:1_000,b:nan", {"a": "1_000", "b": "nan"}),
        ('a:<b>,"c":2', {"a": "<b>", "c": 2}),
        ("a:" + "9" * 5000, {"a": "9" * 5000}),
    ],
)
def test_words_without_marks_are_strings_and_reported(inside, arguments):
    found = read_any(call(inside))
    assert found.calls == [ToolCall("f", arguments)]
    assert {p.kind for p in found.problems} == {"repaired"}


def test_types_and_names_are_checked():
    found = read_any(call("a:1,n:'x',n:2,b:3", name="run"), [RUN])
    assert found.calls == [ToolCall("run", {"a": 1, "n": "x", "b": 3})]
    kinds = sorted(p.kind for p in found.problems)
    assert kinds == ["duplicate_parameter", "type_mismatch", "type_mismatch", "unknown_parameter"]
    assert [p.kind for p in read_any(call(""), [RUN]).problems] == ["unknown_tool"]


def test_several_calls():
    blocks = call("a:1") + "\n" + call("", name="weather.get-it")
    in_one = f"{GEMMA_4.open}call:f{{a:1}}call:weather.get-it{{}}{GEMMA_4.close}"
    for text in (blocks, in_one, in_one.replace("}call", "}, call")):
        assert read_any(text).calls == [ToolCall("f", {"a": 1}), ToolCall("weather.get-it", {})]


@pytest.mark.parametrize(
    "text",
    [
        "<|tool_call>", "<|tool_call>call", "<|tool_call>call:f", "<|tool_call>:f{a:1}<tool_call|>", "call:f{a:1}",
        "<|tool_call>call:f(a:1)<tool_call|>", "<|tool_call>call:{a:1}", "use <|tool_call> to call",
        "<start_function_call>f{}",
    ],
)  # fmt: skip
def test_what_has_no_legal_beginning_is_text(text):
    found = read_any(text)
    assert found.content == text and not found.calls and not found.malformed


@pytest.mark.parametrize("inside", ["a:1]", "a:[1}", "a", "[1]", ":1", "a:" + "[" * 300])
def test_a_broken_call_is_shown_and_does_not_swallow_the_next(inside):
    text = call(inside) + " so " + call("b:2")
    found = read_any(text)
    assert found.calls[-1:] == [ToolCall("f", {"b": 2})]
    assert len(found.calls) == 1 and call(inside) in found.visible()


def test_missing_closers():
    found = read_any(call("a:'x',b:[1]").removesuffix("}" + GEMMA_4.close) + GEMMA_4.close)
    assert found.calls == [ToolCall("f", {"a": "x", "b": [1]})] and found.problems[0].kind == "repaired"
    for finish in ("stop", "length"):
        assert read_any(call("a:'x'").removesuffix(GEMMA_4.close), finish=finish).calls == [ToolCall("f", {"a": "x"})]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_cut_call_is_never_complete(finish):
    text = "Hi " + call("a:'x, y',b:[1,{c:true}]") + call("d:2", name="g")
    for cut in range(len(text)):
        found = read_any(text[:cut], finish=finish)
        assert len(found.calls) == (cut >= text.index("}]}") + 3) + (cut >= text.index("d:2}") + 4)
        for event in found.malformed:
            assert event.truncated and event.name in "fg"


def test_a_string_arrives_as_it_is_written():
    parser = StreamParser("gemma")
    assert parser.feed(f"{GEMMA_4.open}call:f{{a:{Q}x\n")[-2:] == [
        CallStarted(0, "f"),
        ArgumentsDelta(0, '{"a": "x\\n'),
    ]
    assert parser.feed("yz") == [ArgumentsDelta(0, "yz")]
    assert parser.feed("<|") == []
    assert parser.feed("b") == [ArgumentsDelta(0, "<|b")]


@pytest.mark.parametrize(
    "text, reasoning, content",
    [
        ("<|channel>thought\nI'm\nthinking<channel|>Hello", "I'm\nthinking", "Hello"),
        ("<|channel>thought<channel|>Hello", "", "Hello"),
        ("<|channel>thought\n<channel|>Hello<channel|>", "", "Hello"),
        ("<|channel>thought\n<channel|>Hello<|channel>thought\n<channel|><channel|>", "", "Hello"),
        ("<|channel><|channel>thought\n<channel|>Hello", "", "Hello"),
        ("Hello. <|channel>thought\nhm<channel|> Done.", "hm", "Hello.  Done."),
        ("<|channel>other<turn|>", "", "<|channel>other"),
        ("The <channel|> token ends a thought.", "", "The <channel|> token ends a thought."),
    ],
)
def test_channels(text, reasoning, content):
    found = read_any(text)
    assert (found.reasoning.strip(), found.content) == (reasoning, content)


def test_a_call_in_thinking_is_a_call():
    found = read_any(f"<|channel>thought\nhm{call('a:1')}more<channel|>Done.")
    assert found.calls == [ToolCall("f", {"a": 1})] and found.reasoning == "hmmore" and found.content == "Done."
    assert read_any("hm<channel|>Done.", starts_in_reasoning=True).reasoning == "hm"


def test_token_ids_make_the_end_of_a_string_exact():
    control = {1: GEMMA_4.open, 2: GEMMA_4.close, 3: Q}
    value = f"a{Q},b:1}}{GEMMA_4.close}"
    parser = StreamParser("gemma", control=control)
    events = []
    for piece, token in [
        (GEMMA_4.open, 1), ("call:f{a:", 9), (Q, 3), (value, 9), (Q, 3), ("}", 9), (GEMMA_4.close, 2), (call("b:1"), 9),
    ]:  # fmt: skip
        events += parser.feed(piece, [token])
    events += parser.finish()
    assert gather(events).calls == [ToolCall("f", {"a": value})]
    assert gather(events).content == call("b:1")


def test_markers_of_ones_own():
    text = "<c>call:f{a:1}</c>"
    own = replace(gemma.FORMAT, open="<c>", close="</c>")
    assert read(text, own).calls == [ToolCall("f", {"a": 1})]


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
STRINGS = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda s: Q not in s)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(NAMES | STRINGS, JSON, max_size=4)), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(CALLS, st.integers(0, 9))
def test_what_is_rendered_is_read_back(calls, chunk):
    found = read("Sure.\n" + gemma.render(calls), "gemma", chunk=chunk)
    assert found.calls == calls
    assert [list(c.arguments) for c in found.calls] == [list(c.arguments) for c in calls]
    assert found.content.strip() == "Sure." and not found.malformed and not found.problems


PIECES = (
    *(m for s in (GEMMA_4, FUNCTION_GEMMA) for m in (s.open, s.close, s.quote)), "call:", "run", "call:run{", "{",
    "}", "[", "]",
    ",", ":", "a:", "n:", "1", "true", "x", '"', "\\", " ", "\n", "<", "<|", "|>", *gemma.THINK, "<|channel>",
    "<turn|>", "'", "🎉",
    f"{GEMMA_4.open}call:run{{a:{Q}", f"{FUNCTION_GEMMA.open}call:run{{a:<escape>",
)  # fmt: skip
GARBAGE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@settings(max_examples=1000, deadline=None)
@given(GARBAGE, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.sampled_from(["stop", "length"]))
def test_garbage(text, sizes, reasoning, finish):
    whole = read(text, "gemma", [RUN], starts_in_reasoning=reasoning, finish=finish).events
    assert faults(text, whole) == []
    parser, out, at, i = StreamParser("gemma", [RUN], starts_in_reasoning=reasoning), [], 0, 0
    while at < len(text):
        out += parser.feed(text[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    assert merged([*out, *parser.finish(finish)]) == merged(whole)


UNITS = [
    "<",
    Q,
    " ",
    f"{Q}, ",
    f"{Q},a",
    "{a:",
    "[",
    "x",
    '"',
    "\\",
    ",",
    "a:1,",
    "9",
    GEMMA_4.open,
    "<|channel>",
    "<channel|>",
    "call:",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "opening",
    [
        "",
        GEMMA_4.open + "call:f{",
        GEMMA_4.open + "call:f{a:",
        f"{GEMMA_4.open}call:f{{a:{Q}",
        f"{GEMMA_4.open}call:f{{{Q}",
    ],
)
def test_cost_is_linear(unit, opening, work):
    def cost(size: int) -> int:
        text = opening + unit * (size // len(unit))
        return work(lambda: read(text, "gemma", chunk=16))

    assert cost(16_000) < 12 * cost(2_000)
