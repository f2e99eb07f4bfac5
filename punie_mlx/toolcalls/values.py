"""Values under a JSON schema, as the scorer sees them: do they conform, are two of them the same argument?

JSON types are kept apart: `1` is not `true`, `"1"` is not `1`. `1` and `1.0` are the same only where the schema says
`number`. A property that may be left out equals its `default`, where the schema names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_CHECKS = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


def types_of(schema: Schema) -> list[str]:
    """The JSON types that `schema` names; empty where it names none."""
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else list(found)


_SHAPES = {"type": str | list, "enum": list, "required": list, "properties": dict, "anyOf": list, "oneOf": list}


def malformed(schema: Any, where: str = "") -> str | None:
    """What makes `schema` none that a value can be judged by, in words; None where it is one."""
    if not isinstance(schema, dict):
        return f"{where or 'it'} is no object"
    for key, kind in _SHAPES.items():
        if key in schema and not isinstance(schema[key], kind):
            return f"{_join(where, key)} is {_name(schema[key])}"
    if not all(isinstance(name, str) for name in (*types_of(schema), *schema.get("required", []))):
        return f"{_join(where, 'type')} or {_join(where, 'required')} holds what is no name"
    below = [(_join(where, name), s) for name, s in schema.get("properties", {}).items() if not isinstance(s, bool)]
    below += [(_join(where, key), s) for key in ("anyOf", "oneOf") for s in schema.get(key, [])]
    below += [
        (_join(where, k), schema[k]) for k in ("items", "additionalProperties") if isinstance(schema.get(k), dict)
    ]
    return next((found for at, s in below if (found := malformed(s, at))), None)


def problem(value: Any, schema: Schema, where: str = "") -> str | None:
    """What is wrong with `value` under `schema`, in words; None where it conforms."""
    label = where or "the value"
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        found = [problem(value, b, where) for b in branches]
        return None if None in found else found[0]
    kinds = types_of(schema)
    if kinds and not any(_CHECKS[k](value) for k in kinds if k in _CHECKS):
        return f"{label} must be {' or '.join(kinds)}, not {_name(value)}"
    if "enum" in schema and not any(_same(value, e) for e in schema["enum"]):
        return f"{label} must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, dict):
        return _object_problem(value, schema, where)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return next((p for i, v in enumerate(value) if (p := problem(v, schema["items"], f"{where}[{i}]"))), None)
    return None


def _object_problem(value: Mapping[str, Any], schema: Schema, where: str) -> str | None:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            return f"{_join(where, name)} is missing"
    extra = schema.get("additionalProperties", True)
    for name, item in value.items():
        below = properties.get(name, extra)
        if below is False:
            return f"{_join(where, name)} is unknown"
        if isinstance(below, Mapping) and (found := problem(item, below, _join(where, name))):
            return found
    return None


def equal(expected: Any, actual: Any, schema: Schema) -> bool:
    """Whether `actual` is the same argument as `expected`, both read under `schema`."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return any(not problem(expected, b) and not problem(actual, b) and equal(expected, actual, b) for b in branches)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _equal_objects(expected, actual, schema)
    if isinstance(expected, list) and isinstance(actual, list):
        items = schema.get("items")
        below: Schema = items if isinstance(items, Mapping) else {}
        return len(expected) == len(actual) and all(equal(e, a, below) for e, a in zip(expected, actual, strict=True))
    if "number" in types_of(schema) and _CHECKS["number"](expected) and _CHECKS["number"](actual):
        return expected == actual
    return _same(expected, actual)


def defaults_of(schema: Schema) -> dict[str, Any]:
    """What the properties are that an object leaves out: their `default`, where the schema names one for one that may
    be left out."""
    properties, required = schema.get("properties", {}), schema.get("required", ())
    named = {k: s["default"] for k, s in properties.items() if isinstance(s, Mapping) and "default" in s}
    return {k: v for k, v in named.items() if k not in required}


def _equal_objects(expected: Mapping[str, Any], actual: Mapping[str, Any], schema: Schema) -> bool:
    properties = schema.get("properties", {})
    defaults = defaults_of(schema)
    expected, actual = {**defaults, **expected}, {**defaults, **actual}
    if expected.keys() != actual.keys():
        return False
    extra = schema.get("additionalProperties")

    def below(name: str) -> Schema:
        found = properties.get(name, extra)
        return found if isinstance(found, Mapping) else {}

    return all(equal(v, actual[k], below(k)) for k, v in expected.items())


def _same(a: Any, b: Any) -> bool:
    """Equality that keeps JSON types apart, at every depth."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(value: Any) -> str:
    for kind in ("boolean", "integer", "number", "string", "array", "object", "null"):
        if _CHECKS[kind](value):
            return kind
    return type(value).__name__
