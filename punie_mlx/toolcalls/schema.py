"""Typed values from a JSON schema: the text that a model wrote becomes the value that the tool declared.

    coerce("007", {"type": "string"})  →  "007"
    coerce("007", {"type": "number"})  →  7
    coerce("seven", {"type": "number"})  →  "seven", with a problem

Nothing is guessed and nothing is lost: a value that does not fit stays the string that was written, and is reported.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from punie_mlx.toolcalls.calls import Problem, Tool

NO_FIT = object()
_INTEGER = re.compile(r"[+-]?\d+(?:_\d+)*\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+)?\Z", re.ASCII)
_NULLS = ("null", "none")  # as models write it, in lower case
_OTHER_NAMES = re.compile(  # of the types of JSON schema, as tools that were not written by hand declare them
    r"(?P<string>str|text|(?:var)?char)|(?P<boolean>bool|binary)"
    r"|(?P<integer>u?int\d*|(?:unsigned|long|short|big)(?:[ _]?(?:int(?:eger)?|long|short))?)"
    r"|(?P<number>num|float\d*|double|decimal)"
    r"|(?P<array>arr|list|tuple|sequence)|(?P<object>dict|map)"
)
_EXACT = 2**53  # beyond it a float no longer names one integer
_DEPTH = 16  # a schema that refers to itself is followed no further
_BRANCHES = 64  # of one schema; unions that refer to themselves have no end of them


def loads(text: str) -> Any:
    """The JSON value of `text`; keeps the first of duplicate keys. Raises `ValueError` for anything else."""
    try:
        return _DECODER.decode(text)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        out.setdefault(key, value)
    return out


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_first_wins)


def literal(text: str) -> Any:
    """The value of a Python literal that JSON can spell. Raises `ValueError`."""
    try:
        value = ast.literal_eval(text.strip())
        json.dumps(value, allow_nan=False)  # refuses sets, bytes, complex numbers
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as e:
        raise ValueError(f"no Python literal: {e}") from e
    return value if _string_keys(value) else _no_literal()


def _no_literal() -> Any:
    raise ValueError("a dictionary with keys that are no strings")


def _string_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _string_keys(v) for k, v in value.items())
    return not isinstance(value, tuple) and (not isinstance(value, list) or all(_string_keys(v) for v in value))


def branches(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The simple schemas that `schema` allows: references followed, unions and type lists taken apart, the first 64."""
    return islice(_branches(schema, root, 0), _BRANCHES)


def _branches(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        yield {}
        return
    if isinstance(schema.get("$ref"), str):
        yield from _branches(lookup(schema["$ref"], root), root, depth + 1)
        return
    if schema.get("nullable") is True:
        yield {"type": "null"}
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, Sequence) and not isinstance(options, str) and options:
            for option in options:
                yield from _branches(option, root, depth + 1)
            return
    if isinstance(schema.get("allOf"), list) and "type" not in schema:
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            for branch in islice(_branches(part, root, depth + 1), _BRANCHES):
                merged |= branch
        yield merged
        return
    kinds = schema.get("type")
    if isinstance(kinds, list):
        yield from ({**schema, "type": kind} for kind in kinds)
    else:
        yield schema


def lookup(ref: str, root: Mapping[str, Any]) -> Any:
    """What a reference within `root` leads to; None where that is nothing."""
    value: Any = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        if not part:
            continue
        value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value


_CHOICES = {"enum", "const", "anyOf", "oneOf", "$ref", "nullable"}


def _is_simple_string(schema: Any) -> bool:
    """Whether every text fits, told at a glance, as of nearly every parameter."""
    return isinstance(schema, dict) and schema.get("type") == "string" and not _CHOICES & schema.keys()


def is_plain_string(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether every text is a value of `schema` as it stands, so that it can be passed on while it arrives."""
    if _is_simple_string(schema):
        return True
    found = list(branches(schema, root))
    return all(proper_kind(b) == "string" and "enum" not in b and "const" not in b for b in found)


def coerce(text: str, schema: Any, root: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The value of `text` under `schema`, and what is wrong with it (None where it fits).

    Types are tried from the narrowest: null, boolean, integer, number, array, object; string takes what is left.
    """
    found = sorted(branches(schema, root), key=_rank)
    for branch in found:
        if (value := _as_branch(text, branch)) is not NO_FIT:
            return value, None
    kinds = sorted({k for b in found if (k := proper_kind(b))})
    wanted = " or ".join(kinds) or "one of the allowed values"
    if text.strip().lower() in _NULLS and not any(_takes_text(b) for b in found):
        return None, f"null where the schema wants {wanted}"
    return text, f"does not fit the schema: wants {wanted}"


def _takes_text(branch: Mapping[str, Any]) -> bool:
    allowed = [branch["const"]] if "const" in branch else branch.get("enum")
    if isinstance(allowed, list):
        return any(isinstance(member, str) for member in allowed)
    return proper_kind(branch) not in _ORDER or proper_kind(branch) == "string"


_ORDER = {"null": 0, "boolean": 1, "integer": 2, "number": 3, "array": 4, "object": 5, "string": 6}


def _rank(branch: Mapping[str, Any]) -> int:
    return -1 if "enum" in branch or "const" in branch else _ORDER.get(proper_kind(branch) or "", 7)


def kind_of(branch: Mapping[str, Any]) -> str | None:
    """The type of a simple schema, taken from its shape where it names none."""
    kind = branch.get("type")
    if isinstance(kind, str):
        return kind
    if "properties" in branch or "additionalProperties" in branch:
        return "object"
    return "array" if "items" in branch else None


def proper_kind(branch: Mapping[str, Any]) -> str | None:
    """As `kind_of`, by the name of JSON schema also where the type goes by another: values are read leniently."""
    kind = kind_of(branch)
    return kind if kind is None or kind in _ORDER else _proper(kind)


@lru_cache(maxsize=256)
def _proper(kind: str) -> str:
    found = _OTHER_NAMES.fullmatch(kind.lower())
    return (found.lastgroup if found else None) or kind


def _as_branch(text: str, branch: Mapping[str, Any]) -> Any:
    allowed = [branch["const"]] if "const" in branch else branch.get("enum")
    if isinstance(allowed, list):
        return _as_member(text, allowed)
    kind = proper_kind(branch)
    if kind is None:
        return _untyped(text)
    reader = _READERS.get(kind)
    return reader(text) if reader else text


def _as_member(text: str, allowed: list[Any]) -> Any:
    if text in allowed:
        return text
    stripped = text.strip()
    for member in allowed:
        if isinstance(member, str):
            continue
        if stripped == json.dumps(member) or stripped == str(member):  # true and True, null and None
            return member
        if member is None and stripped.lower() in _NULLS:
            return None
        if isinstance(member, dict | list) and _spells(stripped, member):
            return member
    return NO_FIT


def _spells(text: str, value: Any) -> bool:
    """Whether `text` is an object or array with this value, as JSON or as Python writes it."""
    for reader in (loads, literal):
        try:
            if reader(text) == value:
                return True
        except ValueError:
            continue
    return False


def _untyped(text: str) -> Any:
    """Without a declared type only an object or array is unmistakable; a scalar stays the text that was written."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return loads(text)
        except ValueError:
            return text
    return text


def _null(text: str) -> Any:
    return None if text.strip() in ("null", "None") else NO_FIT


def _boolean(text: str) -> Any:
    return {"true": True, "false": False}.get(text.strip().lower(), NO_FIT)


def _integer(text: str) -> Any:
    text = text.strip()
    try:
        if _INTEGER.match(text):
            return int(text)
        if _NUMBER.match(text) and (value := float(text)).is_integer() and abs(value) <= _EXACT:
            return int(value)
    except (ValueError, OverflowError):  # more digits than Python converts
        pass
    return NO_FIT


def _number(text: str) -> Any:
    text = text.strip()
    try:
        if _INTEGER.match(text):
            return int(text)
        if _NUMBER.match(text) and math.isfinite(value := float(text)):
            return value
    except (ValueError, OverflowError):
        pass
    return NO_FIT


def _container(kind: type) -> Any:
    def read(text: str) -> Any:
        if not text.strip():
            return kind()  # a blank between the tags is how models write "nothing in it"
        for reader in (loads, literal):
            try:
                value = reader(text)
            except ValueError:
                continue
            if isinstance(value, kind):
                return value
        return NO_FIT

    return read


_READERS = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "array": _container(list),
    "object": _container(dict),
    "string": lambda text: text,
}


def fits(value: Any, schema: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether `value` is of a type, and one of the values, that `schema` allows; objects and arrays to their leaves."""
    if isinstance(value, str) and _is_simple_string(schema):
        return True
    return depth > _DEPTH or any(_fits_branch(value, b, root, depth) for b in branches(schema, root))


def _fits_branch(value: Any, branch: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> bool:
    allowed = [branch["const"]] if "const" in branch else branch.get("enum")
    if isinstance(allowed, list) and not any(type(a) is type(value) and a == value for a in allowed):
        return False
    kind = proper_kind(branch)
    if kind == "object" and isinstance(value, dict):
        properties = branch.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = branch.get("required")
        return all(k in value for k in (required if isinstance(required, list) else ())) and all(
            fits(v, properties[k], root, depth + 1) for k, v in value.items() if k in properties
        )
    if kind == "array" and isinstance(value, list):
        items = branch.get("items")
        return items is None or all(fits(v, items, root, depth + 1) for v in value)
    return _is_kind(value, kind)


def _is_kind(value: Any, kind: str | None) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind in (None, "boolean")
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    types = {"null": type(None), "number": (int, float), "string": str, "array": list, "object": dict}
    return kind not in types or isinstance(value, types[kind])


def check(name: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> Iterator[Problem]:
    """What is wrong with the shape of a call: an unknown tool, unknown or missing parameters. Nothing without tools."""
    if not tools:
        return
    tool = tools.get(name)
    if tool is None:
        yield Problem("unknown_tool", name)
        return
    for key in arguments:
        if key not in tool.properties and tool.parameters.get("additionalProperties", False) is False:
            yield Problem("unknown_parameter", key)
    for key in tool.required:
        if key not in arguments:
            yield Problem("missing_required", key)


def mismatches(name: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> Iterator[Problem]:
    """Arguments whose value does not fit the declared type."""
    tool = tools.get(name)
    if tool is None:
        return
    for key, value in arguments.items():
        if key in tool.properties and not fits(value, tool.properties[key], tool.parameters):
            yield Problem("type_mismatch", key, json.dumps(value, ensure_ascii=False)[:200])
