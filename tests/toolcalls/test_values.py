"""Schema-typed equality and conformance."""

import pytest

from punie_mlx.toolcalls.values import equal, malformed, problem

INTEGER, NUMBER, STRING, BOOLEAN = ({"type": t} for t in ("integer", "number", "string", "boolean"))


@pytest.mark.parametrize(
    ("expected", "actual", "schema", "same"),
    [
        (1, 1, INTEGER, True),
        (1, True, INTEGER, False),
        (True, 1, BOOLEAN, False),
        (1, 1.0, INTEGER, False),
        (1, 1.0, NUMBER, True),
        (1.5, 1.5, NUMBER, True),
        (1, True, NUMBER, False),
        (1, "1", STRING, False),
        ("a", "a ", STRING, False),
        (1, 1.0, {"type": ["number", "null"]}, True),
        (1, 1.0, {"anyOf": [NUMBER, {"type": "null"}]}, True),
        (1, 1.0, {"anyOf": [INTEGER, {"type": "null"}]}, False),
        (None, None, {"anyOf": [INTEGER, {"type": "null"}]}, True),
        (1, 1.0, {}, False),
        ([1, 2], [1.0, 2.0], {"type": "array", "items": NUMBER}, True),
        ([1, 2], [2, 1], {"type": "array", "items": INTEGER}, False),
        ([1], [1, 1], {"type": "array", "items": INTEGER}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"type": "object"}, True),
        ({"a": 1}, {"a": True}, {"type": "object"}, False),
        ({"a": {"b": [1]}}, {"a": {"b": [True]}}, {"type": "object"}, False),
        ({"a": 1}, {"a": 1.0}, {"type": "object", "additionalProperties": NUMBER}, True),
        ({"a": 1}, {"a": 1, "b": None}, {"type": "object"}, False),
        ({}, {"n": 3}, {"type": "object", "properties": {"n": {"type": "integer", "default": 3}}}, True),
        ({}, {"n": 4}, {"type": "object", "properties": {"n": {"type": "integer", "default": 3}}}, False),
        ({"a": 1}, "a", {"type": "object"}, False),
        ({"a": 1}, None, {}, False),
    ],
)
def test_equal(expected, actual, schema, same):
    assert equal(expected, actual, schema) is same


OBJECT = {
    "type": "object",
    "properties": {"n": INTEGER, "k": {"type": "string", "enum": ["a", "b"]}, "l": {"type": "array", "items": NUMBER}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"n": 1, "k": "a", "l": [1, 2.5]}, None),
        ({}, "n is missing"),
        ({"n": "1"}, "n must be integer, not string"),
        ({"n": True}, "n must be integer, not boolean"),
        ({"n": 1, "k": "c"}, "k must be one of a, b"),
        ({"n": 1, "l": [1, "x"]}, "l[1] must be number, not string"),
        ({"n": 1, "z": 1}, "z is unknown"),
        ([], "the value must be object, not array"),
    ],
)
def test_problem(value, reason):
    assert problem(value, OBJECT) == reason


def test_a_default_does_not_stand_in_for_what_is_required():
    schema = {"properties": {"unit": {"type": "string", "default": "m"}}}
    assert equal({"unit": "m"}, {}, schema) and equal({}, {"unit": "m"}, schema)
    assert not equal({"unit": "m"}, {}, {**schema, "required": ["unit"]})


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": ["string", "null"], "enum": ["a"], "properties": {"a": True}, "items": {}}, None),
        ({"properties": None}, "properties is null"),
        ({"properties": {"a": {"enum": 3}}}, "a.enum is integer"),
        ({"type": [1]}, "type or required holds what is no name"),
        ({"anyOf": [{"type": "string"}, 1]}, "anyOf is no object"),
        ({"items": {"type": None}}, "items.type is null"),
        ([], "it is no object"),
    ],
)
def test_schemas_that_are_none(schema, found):
    assert malformed(schema) == found
