"""What grammars hold of strings and compositions, between tags as in JSON, and what is said of the rest."""

from __future__ import annotations

import re

import pytest
from grammar_machine import MARKERS, NAMES, Machine, ids_of

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar import Constraint
from punie_mlx.toolcalls.grammar_relax import Asked, ask
from punie_mlx.toolcalls.grammar_schemas import alternatives
from punie_mlx.toolcalls.grammar_strings import FORMATS, whole


def asked(schema: object, name: str = "qwen3_coder", tokens: tuple[str, ...] = ()) -> Asked:
    """The grammar of a tool `f` with one required parameter `x`."""
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    tool = Tool("f", parameters=parameters)
    return ask(formats.get(name), [tool], Constraint("required"), tokens=ids_of(tokens))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "maxLength": 3}, ["", "a", "ü\n🎉"], ["abcd"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a b"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["abd", ""]),
        ({"type": "string", "pattern": "b/c"}, ["b/c", "ab/cd"], ["bc", ""]),
        ({"type": "string", "pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
        ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ["abc"], ["abcd", "AB"]),
        ({"type": "string", "format": "date"}, ["2026-02-28", "2026-12-31"], ["2026-02-30", "tomorrow"]),
        ({"type": "array", "items": {"type": "string", "maxLength": 2}}, [["ab", ""]], [["abc"]]),
        ({"type": "array", "items": {"type": "string", "pattern": "^a/*$", "minLength": 2}}, [["a/"]], [["a"], ["b/"]]),
        ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, ["ab", None], ["abc"]),
        (
            {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]},
            [{"a": 1, "b": 2}],
            [{"b": 2}],
        ),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
            [{}],
        ),
        ({"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5, "minimum": 1}]}, [3, 5], [2, 6]),
        ({"enum": ["a", "b", 1], "allOf": [{"enum": ["b", 1, "c"]}]}, ["b", 1], ["a", "c"]),
        ({"type": "float"}, [1.5, 2], ["x"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_limits_in_every_format(name, schema, good, bad):
    for markers in dict.fromkeys([(), MARKERS[name]]):
        found = asked(schema, name, markers)
        assert found.relaxed == ()
        grammar = Machine(found.lark, markers)
        for value in (*good, *bad):
            text = formats.get(name).render([ToolCall("f", {"x": value})])
            assert (grammar.stops_at(text) is None) == (value in good), (value, text)


@pytest.mark.parametrize(
    ("schema", "keywords"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, ""),
        ({"not": {"const": 1}}, "not"),
        ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {"items": {"if": {}, "then": False}}}}, "if"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"type": "string", "maxLength": 5_000}, "maxLength"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ""),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 1}, ""),
        ({"type": "array", "prefixItems": [{}], "items": {}}, "prefixItems"),
    ],
)  # fmt: skip
def test_what_is_let_pass_is_said(schema, keywords):
    relaxed = asked(schema).relaxed
    assert [(r.tool, r.parameter) for r in relaxed] == ([("f", "x")] if keywords else [])
    assert all(keywords in r.reason for r in relaxed)


def test_it_is_said_of_every_parameter_with_the_same_schema():
    same = {"type": "array", "items": {"type": "array", "uniqueItems": True}}
    tools = [Tool(t, parameters={"properties": {"a": same, "b": same, "c": {"type": "integer"}}}) for t in ("f", "g")]
    for name in ("qwen3_coder", "hermes", "pythonic"):
        relaxed = ask(formats.get(name), tools, Constraint()).relaxed
        assert [(r.tool, r.parameter) for r in relaxed] == [("f", "a"), ("f", "b"), ("g", "a"), ("g", "b")]


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_schema_takes_its_widest_form(name):
    properties = {"bad": {"type": "object", "properties": {"y": {"$ref": "#/gone"}}}, "good": {"type": "integer"}}
    tools = [Tool("f", parameters={"type": "object", "properties": properties, "required": ["bad", "good"]}), Tool("g")]
    found = ask(formats.get(name), tools, Constraint("required"))
    assert [(r.tool, r.parameter) for r in found.relaxed] == [("f", "bad")]
    assert "leads nowhere" in found.relaxed[0].reason
    grammar = Machine(found.lark, ())
    for bad, good, fits in (({"y": 1}, 1, True), ({}, 1, True), ("text", 1, False), ({}, "one", False)):
        text = formats.get(name).render([ToolCall("f", {"bad": bad, "good": good})])
        assert (grammar.stops_at(text) is None) == fits, text


def test_what_the_engine_refuses_is_widened_where_it_stands():
    """As where it cannot build an expression: here, one with a certain word."""
    properties = {k: {"type": "object", "properties": {"x": {"const": k.upper()}}} for k in ("apple", "pear")}
    tools = [Tool("f", parameters={"properties": properties}), Tool("g", parameters={"properties": properties})]
    found = ask(formats.get("hermes"), tools, Constraint(), refused=lambda lark: "no pears" * ("PEAR" in lark))
    assert [(r.tool, r.parameter, r.reason) for r in found.relaxed] == [(t, "pear", "no pears") for t in "fg"]


def test_schemas_that_are_too_much_together_are_widened_from_the_largest():
    properties = {f"p{i}": {"enum": [f"value {j}" for j in range(i + 1)]} for i in range(8)}
    tool = Tool("f", parameters={"type": "object", "properties": properties})
    found = ask(
        formats.get("hermes"),
        [tool],
        Constraint(),
        refused=lambda lark: "too much" if lark.count("value ") > 12 else "",
    )
    assert [r.parameter for r in found.relaxed] == ["p7", "p6", "p5", "p4"]
    assert all("too much" in r.reason for r in found.relaxed)
    with pytest.raises(ConfigError, match="never"):
        ask(formats.get("hermes"), [tool], Constraint(), refused=lambda lark: "never")


def test_errors_that_are_no_schemas_are_not_widened():
    with pytest.raises(ConfigError, match="no tool 'nope'"):
        ask(formats.get("hermes"), [Tool("f")], Constraint("nope"))


@pytest.mark.parametrize(
    "pattern", ["^a$", "a", "^a|b$", "^(a|b)$", r"a\/b", "a/b", "[/^$|]", r"^\^\$$", "^$|^a", "x\ny", ""]
)
def test_the_whole_of_a_pattern(pattern):
    found = re.compile(whole(pattern))
    for text in ("", "a", "b", "ab", "ba", "bb", "a/b", "xa/by", "/", "^", "$", "|", "^$", "x\ny", "é"):
        assert bool(found.fullmatch(text)) == bool(re.search(pattern, text)), text


@pytest.mark.parametrize("pattern", ["(^a)", "a^b", "(?=a)", r"\bx", r"(a)\1", "[", 3, None])
def test_patterns_that_have_no_whole(pattern):
    assert whole(pattern) == ""


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("date", ["2024-02-28", "1999-12-31", "2026-04-30"], ["2024-02-30", "2024-13-01", "2024-04-31"]),
        ("time", ["23:59:59Z", "00:00:00.5+01:00"], ["24:00:00Z", "10:00:00"]),
        ("date-time", ["2026-11-21T04:05:06Z"], ["2026-11-21"]),
        ("ipv4", ["0.0.0.0", "255.249.19.1"], ["256.0.0.1", "01.2.3.4", "1.2.3"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ("email", ["a.b@c.org"], ["a@b", "a b@c.de"]),
    ],
)
def test_formats(format, good, bad):
    found = re.compile(FORMATS[format])
    assert [bool(found.fullmatch(t)) for t in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


def test_alternatives():
    root = {"$defs": {"n": {"type": "integer"}, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}}}
    assert alternatives({"$ref": "#/$defs/n", "maximum": 3}, root) == [{"maximum": 3, "type": "integer"}]
    assert alternatives({"allOf": [{"type": "string"}, {"type": "integer"}]}, root) == []
    assert alternatives({"type": ["integer", "null"], "anyOf": [{"type": "number"}]}, root) == [{"type": "integer"}]
    assert alternatives(False, root) == []
    assert {"type": "null"} in alternatives({"$ref": "#/$defs/loop"}, root)
    assert len(alternatives({"allOf": [{"anyOf": [{"const": i} for i in range(90)]}]}, root)) == 64
