"""Typed values from a JSON schema."""

from __future__ import annotations

import json

import pytest

from punie_mlx.toolcalls.schema import coerce, fits, is_plain_string, literal, loads

ROOT = {
    "$defs": {
        "Place": {"type": "object", "properties": {"days": {"type": "integer"}}},
        "Self": {"$ref": "#/$defs/Self"},
    }
}
STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))


@pytest.mark.parametrize(
    "text, schema, value",
    [
        ("null", STRING, "null"),
        (" 007 ", STRING, " 007 "),
        ("9007199254740993", INTEGER, 9007199254740993),
        ("+1", INTEGER, 1),
        ("3.0", INTEGER, 3),
        ("1.0", NUMBER, 1.0),
        ("7", NUMBER, 7),
        ("1.25e3", NUMBER, 1250.0),
        ("True", BOOLEAN, True),
        (" false\n", BOOLEAN, False),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("['a', True]", {"type": "array"}, ["a", True]),
        (" ", {"type": "object"}, {}),
        ("42", {"anyOf": [INTEGER, STRING]}, 42),
        ("x", {"anyOf": [INTEGER, STRING]}, "x"),
        ("null", {"anyOf": [STRING, {"type": "null"}]}, None),
        ("None", {"type": ["integer", "null"]}, None),
        ("3", {"type": "integer", "nullable": True}, 3),
        ("fast", {"enum": ["fast", 1]}, "fast"),
        ("1", {"enum": ["fast", 1]}, 1),
        ("true", {"enum": ["auto", True]}, True),
        ("x", {"const": "x"}, "x"),
        ('{"days": 3}', {"$ref": "#/$defs/Place"}, {"days": 3}),
        ('{"a": 1}', True, {"a": 1}),
        ("12", {}, "12"),
        ("{broken", {}, "{broken"),
        ("[1]", {"items": INTEGER}, [1]),
        ("text", {"$ref": "#/$defs/Self"}, "text"),
        ("NONE", {"enum": ["low", None]}, None),
        ("2.75", {"type": "float"}, 2.75),
        ("12", {"type": "int64"}, 12),
        ("12", {"type": "unsigned int"}, 12),
        ("12", {"type": "Str"}, "12"),
        ("False", {"type": "bool"}, False),
        ('{"k": [0]}', {"type": "dict"}, {"k": [0]}),
        ("[0]", {"type": ["list", "null"]}, [0]),
        ("12", {"type": "date"}, "12"),
    ],
)
def test_a_value_that_fits(text, schema, value):
    got, problem = coerce(text, schema, ROOT)
    assert (json.dumps(got), problem) == (json.dumps(value), None)


@pytest.mark.parametrize(
    "text, schema",
    [
        ("seven", INTEGER), ("3.5", INTEGER), ("1e300", INTEGER), ("NaN", NUMBER), ("inf", NUMBER), ("1e999", NUMBER),
        ("1_.5", NUMBER), ("yes", BOOLEAN), ("1", BOOLEAN), ("{1, 2}", {"type": "array"}), ("[1]", {"type": "object"}),
        ("null", {"enum": ["fast", 1]}), ("none", {"const": "x"}), ("x", {"type": "float"}),
        ("slow", {"enum": ["fast", 1]}), ("9" * 5000, INTEGER), ("[" * 100_000, {"type": "array"}),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_stays_as_written_and_is_reported(text, schema):
    got, problem = coerce(text, schema, {})
    assert got == text and problem


@pytest.mark.parametrize("text", ["null", " None\n", "NULL"])
@pytest.mark.parametrize("schema", [INTEGER, {"type": "object"}, {"anyOf": [NUMBER, BOOLEAN]}, {"enum": [1, 2]}])
def test_null_where_no_text_can_stand_is_null_and_is_reported(text, schema):
    got, problem = coerce(text, schema, {})
    assert got is None and "null where the schema wants" in (problem or "")


def test_strict_json():
    assert loads('{"a": 1, "a": 2}') == {"a": 1}
    for bad in ("NaN", "[Infinity]", "1e999", "[" * 100_000, ""):
        with pytest.raises(ValueError):
            loads(bad)
    for bad in ("{1, 2}", "{1: 2}", "(1, 2)", "b'x'", "1j", "f()", "1e999"):
        with pytest.raises(ValueError):
            literal(bad)


def test_what_may_be_passed_on_while_it_arrives():
    assert is_plain_string(STRING, {})
    for schema in (INTEGER, {"type": ["string", "null"]}, {"type": "string", "enum": ["a"]}, {}, True):
        assert not is_plain_string(schema, {})


def test_fits():
    place = {"$ref": "#/$defs/Place"}
    assert fits({"days": 1}, place, ROOT) and not fits({"days": "1"}, place, ROOT)
    assert not fits(True, INTEGER, {}) and not fits(1, BOOLEAN, {}) and fits(2.0, INTEGER, {})
    assert fits([1], {"type": "array", "items": INTEGER}, {}) and not fits(
        ["x"], {"type": "array", "items": INTEGER}, {}
    )
    assert fits("x", {"$ref": "#/$defs/Self"}, ROOT)
