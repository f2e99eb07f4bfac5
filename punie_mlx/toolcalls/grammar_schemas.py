"""Schemas taken apart for a grammar: references, unions and compositions → simple schemas, each of one type.

Unlike `schema.branches`, which reads leniently, this keeps what stands beside `anyOf`, `allOf` and `$ref`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from punie_mlx.toolcalls.schema import lookup, proper_kind

_DEPTH = 16  # a schema that refers to itself is followed no further
_MOST = 64  # alternatives of one schema
_COMPOSED = ("$ref", "anyOf", "oneOf", "allOf", "nullable")
_NEVER = (  # held by no grammar here
    "not", "if", "patternProperties", "propertyNames", "uniqueItems", "contains", "minProperties", "maxProperties",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LOW, _HIGH = ("minimum", "exclusiveMinimum", "minLength", "minItems"), (
    "maximum", "exclusiveMaximum", "maxLength", "maxItems",
)  # fmt: skip
_IDLE: Mapping[str, tuple[Any, ...]] = {  # values that say nothing, where not {} and True
    "uniqueItems": (False,),
    "not": (False,),
    "minProperties": (0,),
    "contains": (),
    "if": (),
}
_NOT_OF_JSON = tuple(k for k in _NEVER if k not in ("patternProperties",))
LLGUIDANCE_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
UNHELD = "x-unheld"  # keywords that got lost in a merger


def alternatives(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    """The simple schemas of which one must be met; none where no value can meet `schema`."""
    if schema is False:
        return []
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return [{}]
    own = {k: v for k, v in schema.items() if k not in _COMPOSED}
    kinds = own.get("type")
    found = [{**own, "type": k} for k in kinds] if isinstance(kinds, list) else [own]
    if isinstance(ref := schema.get("$ref"), str):
        found = _both(found, alternatives(lookup(ref, root), root, depth + 1))
    for part in _listed(schema, "allOf"):
        found = _both(found, alternatives(part, root, depth + 1))
    for key in ("anyOf", "oneOf"):
        if options := _listed(schema, key):
            found = _both(found, [a for o in options for a in alternatives(o, root, depth + 1)])
    if schema.get("nullable") is True:
        found.append({"type": "null"})
    return found[:_MOST]


def _listed(schema: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else ()


def _both(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged = (merge(a, b) for a in left[:_MOST] for b in right[:_MOST])
    return [m for m in merged if m is not None][:_MOST]


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    """The simple schema of what meets both; None where nothing does."""
    if not a or not b:
        return a or b
    out = {**a, **b}
    kinds = {proper_kind({"type": s["type"]}) for s in (a, b) if isinstance(s.get("type"), str)}
    if len(kinds) > 1:
        if kinds != {"integer", "number"}:
            return None
        out["type"] = "integer"
    if any(k in s for s in (a, b) for k in ("enum", "const")):
        out.pop("const", None)
        out["enum"] = [v for v in _allowed(a) or _allowed(b) or [] if _may(v, a) and _may(v, b)]
        if not out["enum"]:
            return None
    for key in a.keys() & b.keys():
        out |= _one(key, a[key], b[key], out)
    return out


def _allowed(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _may(value: Any, schema: Mapping[str, Any]) -> bool:
    allowed = _allowed(schema)
    return allowed is None or any(type(v) is type(value) and v == value for v in allowed)


def _one(key: str, left: Any, right: Any, out: Mapping[str, Any]) -> dict[str, Any]:
    """What two values of the same keyword come to."""
    if left == right:
        return {}
    if key == "properties":
        both = {k: {"allOf": [left[k], right[k]]} for k in left.keys() & right.keys() if left[k] != right[k]}
        return {key: {**left, **right, **both}}
    if key == "required":
        return {key: list(dict.fromkeys([*left, *right]))}
    if key in _LOW or key in _HIGH:
        return {key: max(left, right) if key in _LOW else min(left, right)}
    if key in ("items", "additionalProperties"):
        return {key: False if False in (left, right) else {"allOf": [left, right]}}
    if key in ("pattern", "format", "multipleOf", *_NEVER):
        return {UNHELD: [*out.get(UNHELD, ()), key]}
    return {}


def unheld(schema: Any, simple: Sequence[Mapping[str, Any]], root: Mapping[str, Any]) -> Iterator[str]:
    """The keywords of a schema, and of the simple ones that it comes to, that no grammar holds."""
    for each in simple:
        yield from (k for k in _NEVER if k in each and not _idle(k, each))
        yield from each.get(UNHELD, ())
        if isinstance(each.get("items"), list):
            yield "items"
    if isinstance(schema, Mapping) and (options := _listed(schema, "oneOf")):
        apart = [alternatives(o, root) for o in options]
        if any(_meet(a, b) for left, right in combinations(apart, 2) for a in left for b in right):
            yield "oneOf"


def _idle(key: str, schema: Mapping[str, Any]) -> bool:
    """Whether a keyword says nothing that is not held anyway."""
    value = schema[key]
    if any(type(value) is type(v) and value == v for v in _IDLE.get(key, ({}, True))):
        return True
    if key == "if":
        return "then" not in schema and "else" not in schema
    if key == "uniqueItems":
        return schema.get("maxItems") in (0, 1)
    if key == "minProperties":
        return isinstance(value, int) and len(schema.get("required") or ()) >= value
    closed = "properties" in schema and schema.get("additionalProperties", False) is False
    return key == "maxProperties" and closed and isinstance(value, int) and len(schema["properties"]) <= value


def _meet(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether a value may be of both schemas."""
    both = merge(a, b)
    if both is None or _apart(proper_kind(a), proper_kind(b)):
        return False
    left, right = a.get("properties"), b.get("properties")
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return True
    needed = set(a.get("required") or ()) & set(b.get("required") or ())
    tags = [(left[k], right[k]) for k in needed & left.keys() & right.keys()]
    return not any(isinstance(x, dict) and isinstance(y, dict) and merge(x, y) is None for x, y in tags)


def _apart(a: str | None, b: str | None) -> bool:
    return None not in (a, b) and a != b and {a, b} != {"integer", "number"}


def unheld_anywhere(schema: Any) -> Iterator[str]:
    """The keywords in a whole schema that llguidance's own reading of JSON schema does not hold."""
    if isinstance(schema, list):
        for part in schema:
            yield from unheld_anywhere(part)
    if not isinstance(schema, Mapping):
        return
    yield from (k for k in _NOT_OF_JSON if k in schema and not _idle(k, schema))
    if schema.get("format", "date") not in LLGUIDANCE_FORMATS:
        yield "format"
    if _listed(schema, "oneOf"):
        yield from unheld({"oneOf": schema["oneOf"]}, (), schema)
    for key, part in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(part, Mapping):
            for each in part.values():
                yield from unheld_anywhere(each)
        elif key not in ("enum", "const", "default", "examples"):
            yield from unheld_anywhere(part)
