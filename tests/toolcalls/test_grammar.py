"""The grammars, compiled and run by llguidance: what they accept, what they refuse, and that the reader agrees."""

from __future__ import annotations

import re

import pytest
from grammar_machine import NAMES, TOOLS, Machine, ids_of, machine, modes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls import formats, schema
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.grammar import Constraint, grammar
from punie_mlx.toolcalls.stream import read

WALKS = 12
CLOSED_THEN_TAG = re.compile(r"</\w+>\s*<")
SAFE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
DATA = (
    "</parameter>", "</function>", "<function=run>", "<parameter=b>", "</tool_call>", "</invoke>", "</arg_value>",
    "<", "]", '"', "'", "}", ")", "\\", "\n", "\\n", "\r\n", "\t", "<tool_call>", "<think>", "```", "null", "a", " ",
    "ü🎉", "\u2028",
)  # fmt: skip
TEXT = SAFE | st.lists(st.sampled_from(DATA), max_size=5).map("".join)
FLOATS = st.floats(min_value=-1e300, max_value=1e300)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | SAFE,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = st.deferred(lambda: st.fixed_dictionaries({"name": SAFE}, optional={"at": PLACES}))
ARGUMENTS = {
    "write_file": st.fixed_dictionaries(
        {"times": st.integers(), "path": TEXT},
        optional={
            "text": TEXT,
            "mode": st.sampled_from(["new", "append"]),
            "size": st.none() | FLOATS | st.integers(),
            "force": st.booleans(),
        },
    ),
    "write": st.fixed_dictionaries(
        {},
        optional={
            "where": PLACES,
            "tags": st.lists(SAFE, max_size=3),
            "either": st.integers() | st.lists(st.booleans(), max_size=2),
            "count": st.just(3),
            "any": st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), ANY, max_size=2),
            "späť": SAFE,
        },
    ),
    "now": st.just({}),
}


@st.composite
def a_call(draw) -> ToolCall:
    name = draw(st.sampled_from(sorted(ARGUMENTS)))
    arguments = draw(ARGUMENTS[name])
    return ToolCall(name, dict(draw(st.permutations(list(arguments.items())))))


CASES = [pytest.param(n, m, id=f"{n}-{'tokens' if m else 'text'}") for n in NAMES for m in modes(n)]
GOOD = [ToolCall("write_file", {"times": 3, "path": "a b"}), ToolCall("now", {})]


# ---- what is accepted ----


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=st.lists(a_call(), min_size=1, max_size=2))
@example(calls=GOOD)
def test_accepts_what_render_writes(calls):
    """In every format and with any tokens, but for values that their own wire cannot carry."""
    for name in NAMES:
        wire = formats.get(name).render(calls)
        if read(wire, name, TOOLS).calls != calls:  # a value that spells its own end, on a wire without escapes
            continue
        if name == "gemma" and any('<|"|>' in str(c.arguments) for c in calls):
            continue  # no string of the grammar holds its own mark
        if any(CLOSED_THEN_TAG.search(str(c.arguments)) for c in calls):
            continue  # between tags, the grammar allows no closing tag with the beginning of another behind it
        for markers in modes(name):
            if any(m in str(c.arguments) for m in markers for c in calls):
                continue  # the tokenizer here would make tokens of them
            assert machine(name, markers, Constraint("required")).stops_at(wire) is None, (name, markers, wire)


@pytest.mark.parametrize(("name", "markers"), CASES)
def test_calls_may_follow_text_and_thinking(name, markers):
    wire = formats.get(name).render(GOOD)
    auto = machine(name, markers, Constraint(reasoning="may"))
    assert auto.stops_at(wire) is None
    think = formats.get(name).think
    if not any(think):
        return
    assert auto.stops_at(f"Sure.\n{wire}") is None
    assert auto.stops_at("Just text.") is None
    assert auto.stops_at(f"{think[0]}hm{think[1]}\n{wire}") is None
    assert auto.stops_at(f"{think[0]}hm{think[1]}Yes.") is None
    assert auto.stops_at(f"{think[0]}hm") is not None
    opened = machine(name, markers, Constraint("required", reasoning="open"))
    assert opened.stops_at(f"hm{think[1]}\n{wire}") is None
    assert opened.stops_at(wire) is not None


ONLY_AT_THE_END = ("harmony", "mistral", "llama3_json", "json_fence")


@pytest.mark.parametrize(("name", "markers"), [c for c in CASES if c.values[0] not in ONLY_AT_THE_END])
def test_text_may_follow_calls_and_thinking_may_hold_them(name, markers):
    wire, (think, close) = formats.render(name, GOOD), formats.get(name).think
    auto = machine(name, markers, Constraint(reasoning="may"))
    for text in (f"{wire} Done.", f"First.\n{wire} Then.\n{wire}", f"{think}hm {wire} so{close}Yes.",
                 f"{think}{wire} ok{close}{wire} Done."):  # fmt: skip
        assert auto.stops_at(text) is None, text
        assert not auto.read(auto.encode(text), name).problems, text
    once = machine(name, markers, Constraint(parallel=False))
    assert once.stops_at(f"Well. {formats.render(name, GOOD[:1])} Done.") is None
    assert once.stops_at(f"Well. {wire}") is not None
    assert machine(name, markers, Constraint("required")).stops_at(f"{wire} Done.") is not None


@pytest.mark.parametrize(("name", "markers"), CASES)
def test_a_marker_spelled_in_ordinary_tokens_is_data(name, markers):
    """With its tokens, a closing marker in a value is no end, and the token itself is refused there."""
    if not markers:
        return
    wire = formats.get(name)
    found = machine(name, markers, Constraint("required"))
    call = ToolCall("write_file", {"path": "PLACE", "times": 3})
    before, after = wire.render([call]).split("PLACE")
    spelled = [token for char in wire.close for token in found.encode(char)]
    ids = found.encode(before) + spelled + found.encode(after)
    matcher = found.begin()
    assert matcher.try_consume_tokens(ids) == len(ids)
    assert found.read(ids, name).calls == [ToolCall("write_file", {"path": wire.close, "times": 3})]


# ---- what is refused ----


BAD = {
    "another tool": ToolCall("delete", {}),
    "a longer name": ToolCall("writes", {}),
    "a missing parameter": ToolCall("write_file", {"path": "a"}),
    "another parameter": ToolCall("write_file", {"path": "a", "times": 1, "colour": "red"}),
    "a word for an integer": ToolCall("write_file", {"path": "a", "times": "many"}),
    "a fraction for an integer": ToolCall("write_file", {"path": "a", "times": 1.5}),
    "a word for a boolean": ToolCall("write_file", {"path": "a", "times": 1, "force": "yes"}),
    "another member": ToolCall("write_file", {"path": "a", "times": 1, "mode": "old"}),
    "another constant": ToolCall("write", {"count": 4}),
    "an object for an array": ToolCall("write", {"tags": {"a": 1}}),
    "an array of another type": ToolCall("write", {"either": [1]}),
    "a nested key that is missing": ToolCall("write", {"where": {"at": {"name": "x"}}}),
    "a nested key that is unknown": ToolCall("write", {"where": {"name": "x", "size": 1}}),
    "an argument of a tool without any": ToolCall("now", {"x": 1}),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("name", "markers"), CASES)
def test_refuses(name, markers, bad):
    wire = formats.get(name).render([BAD[bad]])
    assert machine(name, markers, Constraint("required")).stops_at(wire) is not None
    assert machine(name, markers, Constraint("auto")).stops_at(wire) is not None


@pytest.mark.parametrize(("name", "markers"), CASES)
def test_the_choice(name, markers):
    def refuses(text: str, *choice, **more) -> bool:
        return machine(name, markers, Constraint(*choice, **more)).stops_at(text) is not None

    render = formats.get(name).render
    one, two, now = render(GOOD[:1]), render([GOOD[0]] * 2), render(GOOD[1:])
    answer = "<|channel|>final<|message|>Sure." if name == "harmony" else "Sure."
    assert refuses(answer, "required")
    assert refuses(one, "none")
    assert not refuses(answer, "none")
    assert not refuses(answer, "auto")
    assert not refuses(two, "required")
    for parallel in ("auto", "required"):
        assert refuses(two, parallel, parallel=False)
        assert not refuses(one, parallel, parallel=False)
    assert refuses(one, "now")
    assert not refuses(now, "now")
    assert refuses(two, "write_file")
    assert refuses(one, "required", frozenset({"now"}))
    assert not refuses(now, "auto", frozenset({"now"}))
    assert not refuses(answer, "auto", frozenset())


@pytest.mark.parametrize(("name", "markers"), CASES)
def test_calls_or_json(name, markers):
    shape = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    lark = grammar(name, TOOLS, Constraint(json_schema=shape, reasoning="may"), tokens=ids_of(markers))
    found = Machine(lark, markers)
    before = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert found.stops_at(before + '{"answer": 42}') is None
    if name != "llama3_json":  # where an answer begins like a call, both are written in one line
        assert found.stops_at(before + '{\n  "answer": 42\n}') is None
    assert found.stops_at(before + '{"answer": "42"}') is not None
    assert found.stops_at(before + "Sure.") is not None
    if any(think := formats.get(name).think):
        assert found.stops_at(f'{think[0]}hm{think[1]}\n\n{{"answer": 42}}') is None
    assert found.stops_at(formats.get(name).render(GOOD)) is None


# ---- the loop is closed ----


@pytest.mark.parametrize(("name", "markers"), CASES)
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_what_it_lets_through_is_read_as_calls_that_fit(name, markers, choice):
    found = machine(name, markers, Constraint(choice))
    ended = 0
    for seed in range(WALKS):
        ids, complete = found.walk(seed)
        reading = found.read(ids, name, "stop" if complete else "length")
        text = found.decode(ids)
        for call in reading.calls:
            assert not list(schema.check(call.name, call.arguments, {t.name: t for t in TOOLS})), text
        if not complete:
            continue
        ended += 1
        assert not reading.malformed, text
        assert not reading.problems, text
        assert reading.calls or choice == "auto", text
    assert ended > 1


@pytest.mark.parametrize(("name", "markers"), CASES)
def test_thinking_that_the_prompt_has_opened_is_closed(name, markers):
    found = machine(name, markers, Constraint("auto", reasoning="open"))
    for seed in range(WALKS // 2):
        ids, complete = found.walk(seed)
        text = found.decode(ids)
        if not complete or not any(formats.get(name).think):
            continue
        assert text.count(formats.get(name).think[1]) >= 1
        reading = read(text, name, TOOLS, starts_in_reasoning=True)
        assert not reading.problems, text
