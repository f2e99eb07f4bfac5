"""Grammars of schemas: types, limits, names, markers, and what cannot be a grammar; run by llguidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from grammar_machine import MARKERS, NAMES, TOOLS, Machine, machine

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.formats import dsml, smollm3
from punie_mlx.toolcalls.grammar import Constraint, grammar

GOOD = [ToolCall("write_file", {"times": 3, "path": "a b"}), ToolCall("now", {})]


def one(schema: object, name: str = "hermes", definitions: dict | None = None) -> Machine:
    """The grammar of a tool `f` with one required parameter `x`."""
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], **(definitions or {})}
    return Machine(grammar(name, [Tool("f", parameters=parameters)], Constraint("required")), ())


def takes(found: Machine, *values: object, name: str = "hermes") -> list[bool]:
    return [found.stops_at(formats.get(name).render([ToolCall("f", {"x": v})])) is None for v in values]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 12}, [1, 12], [0, 13, 1.5]),
        ({"type": "number", "exclusiveMinimum": 0}, [0.5, 3], [0, -1]),
        ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["abd", ""]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü"], ["a", "abcd"]),
        ({"type": "string", "pattern": "(?=a)b"}, ["anything"], [1]),  # beyond llguidance: any string
        ({"type": "string", "format": "date"}, ["2026-11-21"], ["tomorrow"]),
        ({"type": ["integer", "string"]}, [1, "1"], [1.5, None]),
        ({"type": "integer", "nullable": True}, [1, None], ["x"]),
        ({"oneOf": [{"const": "a"}, {"type": "null"}]}, ["a", None], ["b"]),
        ({"enum": [1, "1", None, True, {"a": [1]}]}, [1, "1", None, True, {"a": [1]}], [2, False, {"a": []}]),
        ({"enum": ["a", 1], "type": "string"}, ["a"], [1]),
        ({"allOf": [{"$ref": "#/$defs/n"}]}, [1], ["1"]),
        ({"$ref": "#/definitions/tree"}, [{"kids": [{"kids": []}]}], [{"kids": [1]}, {"kids": [{}]}]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            [[1], [1, 2, 3]],
            [[], [1] * 4],
        ),
        ({"type": "array", "maxItems": 0}, [[]], [[1]]),
        ({"type": "array", "maxItems": 1}, [[], [1]], [[1, 2]]),
        ({"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
        ({"type": "integer", "minimum": 2**60}, [1], ["x"]),  # beyond llguidance: any integer
        ({"type": "array", "minItems": 2}, [[1, "a"]], [[1]]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, [[1, "a"]], [[1], ["a", 1]]),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, [{"a": 1, "b": 2}, {"b": [], "a": {}}], [{"a": 1}, 1]),
        ({"properties": {"a": {}}, "additionalProperties": True}, [{"b": 1, "a": 2}], [1]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"b": 1}], [{"b": "x"}]),
        ({"type": "object", "properties": {"a": {}}}, [{"a": 1}, {}], [{"b": 1}]),
        (True, [1, "a", None, [{}], {"a": {"b": 1.5}}], []),
        ({}, [1, "a", None, [{}], {"a": {"b": 1.5}}], []),
    ],
)
def test_a_schema_of_json(schema, good, bad):
    kids = {"type": "array", "items": {"$ref": "#/definitions/tree"}}
    tree = {"type": "object", "properties": {"kids": kids}, "required": ["kids"]}
    found = one(schema, definitions={"$defs": {"n": {"type": "integer"}}, "definitions": {"tree": tree}})
    assert takes(found, *good) == [True] * len(good)
    assert takes(found, *bad) == [False] * len(bad)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"enum": ["red", "dark red", 3, None]}, ["red", "dark red", 3, None], ["blue", 4, "dark"]),
        ({"type": ["boolean", "null"]}, [True, None], ["maybe", 1]),
        ({"type": ["integer", "string"]}, [1, "one", "1.5\n\nx"], []),
        ({"type": "array", "items": {"type": "string"}}, [["a"], ["</parameter>"]], ["a", [1]]),
        ({}, ["text", {"a": 1}, 1], []),
        (True, ["text"], []),
    ],
)
def test_a_schema_between_tags(schema, good, bad):
    found = one(schema, "qwen3_coder")
    assert takes(found, *good, name="qwen3_coder") == [True] * len(good)
    assert takes(found, *bad, name="qwen3_coder") == [False] * len(bad)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_not_declared(name):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    for extra, good, bad in (
        (True, [{"a": "x", "b": 1}, {"b": {"c": 1}, "a": "x", "d": "y"}], [{"b": 1}]),
        ({"type": "integer"}, [{"a": "x", "b": 1}], [{"a": "x", "b": "one"}]),
        (False, [{"a": "x"}], [{"a": "x", "b": 1}]),
    ):
        tool = Tool("f", parameters={**schema, "additionalProperties": extra})
        found = Machine(grammar(name, [tool], Constraint("required")), ())
        for arguments in good:
            assert found.stops_at(formats.get(name).render([ToolCall("f", arguments)])) is None, arguments
        for arguments in bad:
            assert found.stops_at(formats.get(name).render([ToolCall("f", arguments)])) is not None, arguments


@pytest.mark.parametrize("name", NAMES)
def test_many_parameters_come_in_their_order(name):
    keys = [f"p{i}" for i in range(70)]
    properties = {k: {"type": "integer"} for k in keys}
    tool = Tool("f", parameters={"type": "object", "properties": properties, "required": keys[3:6]})
    found = Machine(grammar(name, [tool], Constraint("required")), ())

    def accepts(*chosen: int) -> bool:
        return found.stops_at(formats.get(name).render([ToolCall("f", {f"p{i}": i for i in chosen})])) is None

    assert accepts(3, 4, 5)
    assert accepts(*range(70))
    assert accepts(0, 3, 4, 5, 69)
    assert not accepts(3, 5)
    assert not accepts(4, 3, 5)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_data(name):
    """Names that hold quotes, markers or letters of any script."""
    tools = [
        Tool("größe.v-2", parameters={"type": "object", "properties": {"naïve-key": {"type": "integer"}, "if": {}}}),
        Tool(
            "f", parameters={"type": "object", "properties": {'a"b': {"type": "integer"}, "c\\d": {"type": "string"}}}
        ),
    ]
    found = Machine(grammar(name, tools, Constraint("required")), ())
    for call in (
        ToolCall("größe.v-2", {"naïve-key": 1}),
        ToolCall("größe.v-2", {"if": "x"}),
        ToolCall("f", {'a"b': 1, "c\\d": "x"}),
    ):
        assert found.stops_at(formats.get(name).render([call])) is None, call


def test_tokens_may_be_given_by_name():
    found = Machine(
        grammar("qwen3_coder", TOOLS, Constraint(), tokens={"<tool_call>", "</tool_call>"}), MARKERS["qwen3_coder"]
    )
    assert found.stops_at(formats.render("qwen3_coder", GOOD)) is None
    with pytest.raises(ConfigError, match="ids"):
        grammar("mistral", TOOLS, Constraint(), tokens={"[TOOL_CALLS]"})


def test_markers_of_another_model():
    other = smollm3.between("<|begin|>", "<|end|>")
    found = Machine(grammar(other, TOOLS, Constraint()), ())
    assert found.stops_at(other.render(GOOD)) is None
    tagged = replace(formats.get("deepseek"), open=dsml.OPEN, close=dsml.CLOSE, render=dsml.render)
    found = Machine(grammar(tagged, TOOLS, Constraint()), ())
    either = [ToolCall("write", {"either": 1, "count": 3, "späť": "x"}), ToolCall("write", {"tags": ["a"]})]
    assert found.stops_at(dsml.render([*GOOD, *either])) is None


def test_newlines_that_some_models_leave_out():
    found = machine("glm", MARKERS["glm"], Constraint())
    entries = "<arg_key>path</arg_key><arg_value>a</arg_value><arg_key>times</arg_key><arg_value>1</arg_value>"
    assert found.stops_at(f"<tool_call>write_file{entries}</tool_call><tool_call>now</tool_call>") is None
    assert (
        machine("hermes", (), Constraint()).stops_at('<tool_call>{"name": "now", "arguments": {}}</tool_call>') is None
    )


# ---- what cannot be a grammar ----


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#/$defs/gone"}, "leads nowhere"),
        ({"$ref": "https://example.com/s.json"}, "leads nowhere"),
        ({"anyOf": [{"$ref": "#/$defs/gone"}]}, "leads nowhere"),
        ({"items": {"$ref": "#/$defs/gone"}, "type": "array"}, "leads nowhere"),
        ({"$ref": "#/$defs/loop"}, "refers to itself"),
        (False, "no value fits"),
        ({"enum": []}, "none of the allowed values"),
        ({"enum": ["a"], "type": "integer"}, "none of the allowed values"),
        ({"type": "banana"}, "no type 'banana'"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "no value fits"),
        ({"type": "array", "minItems": 3, "maxItems": 1}, "no value fits"),
        ("string", "no JSON object"),
        ({"const": "\ud800"}, "no Unicode text"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_schema_that_is_none_is_an_error_with_its_place(name, schema, says):
    parameters = {"type": "object", "properties": {"first": schema}, "required": ["first"]}
    loop = {"$defs": {"loop": {"$ref": "#/$defs/loop"}}}
    with pytest.raises(ConfigError, match=says) as caught:
        grammar(name, [Tool("tool_a", parameters={**parameters, **loop})], Constraint())
    assert "tool_a" in str(caught.value) or "Unicode" in says
    assert "first" in str(caught.value) or "Unicode" in says


def test_other_errors():
    with pytest.raises(ConfigError, match="no tool 'nope'"):
        grammar("hermes", TOOLS, Constraint("nope"))
    with pytest.raises(ConfigError, match="no tool 'nope'"):
        grammar("hermes", TOOLS, Constraint(allowed=frozenset({"nope"})))
    with pytest.raises(ConfigError, match="at least one tool"):
        grammar("hermes", [], Constraint("required"))
    with pytest.raises(ConfigError, match="reasoning is one of"):
        grammar("hermes", TOOLS, Constraint(reasoning="always"))
    with pytest.raises(ConfigError, match="no grammar"):
        grammar(replace(formats.get("hermes"), grammar=None), TOOLS, Constraint())
    deep: dict = {}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ConfigError, match="too deep"):
        grammar("hermes", [Tool("f", parameters={"properties": {"a": deep}})], Constraint())


@pytest.mark.parametrize("name", NAMES)
def test_without_tools_only_an_answer(name):
    found = Machine(grammar(name, [], Constraint()), ())
    answer = "<|channel|>final<|message|>Sure." if name == "harmony" else "Sure."
    assert found.stops_at(answer) is None
    assert found.stops_at(formats.get(name).render(GOOD)) is not None
