"""BFCL's tools as OpenAI schemas: its type names are JSON's, its dotted names are names that the API allows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

API_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_NAME = 64
# Type name of BFCL's Python, Java and JavaScript rows, in lower case → JSON's; None: any type, so none is named.
TYPES: dict[str, str | None] = {
    "string": "string", "str": "string", "char": "string",
    "integer": "integer", "int": "integer", "byte": "integer", "short": "integer", "long": "integer",
    "bigint": "integer", "biginteger": "integer",
    "number": "number", "float": "number", "double": "number",
    "boolean": "boolean", "bool": "boolean",
    "array": "array", "list": "array", "tuple": "array", "arraylist": "array", "set": "array", "queue": "array",
    "stack": "array",
    "dict": "object", "object": "object", "hashmap": "object", "hashtable": "object", "map": "object",
    "null": "null", "none": "null",
    "any": None,
}  # fmt: skip
_NESTED = ("items", "additionalProperties", "not")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


class SchemaError(Exception):
    """What in a tool is no schema."""


def json_schema(spec: Any, where: str) -> dict[str, Any]:
    """`spec` with the type names of JSON; all other keys stay as they are. Raises `SchemaError`.

    A `default` is told at the end of the description instead: for BFCL an argument that is left out is not one that is
    given as its default, as it is for our scorer.
    """
    if not isinstance(spec, Mapping):
        raise SchemaError(f"{where} is no schema object")
    made: dict[str, Any] = {}
    for key, value in spec.items():
        if key == "type":
            if (found := _type(value, where)) is not None:
                made[key] = found
        elif key == "properties" and isinstance(value, Mapping):
            made[key] = {name: json_schema(below, f"{where}.{name}") for name, below in value.items()}
        elif key in _NESTED and isinstance(value, Mapping):
            made[key] = json_schema(value, f"{where}.{key}")
        elif (key in _LISTS or key == "items") and isinstance(value, list):
            made[key] = [json_schema(below, f"{where}.{key}") for below in value]
        elif key != "default":
            made[key] = value
    if "default" in spec:
        told = f"Default: {json.dumps(spec['default'], ensure_ascii=False)}."
        made["description"] = f"{made.get('description', '')} {told}".lstrip()
    return made


def _type(value: Any, where: str) -> str | list[str] | None:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or name.lower() not in TYPES:
            raise SchemaError(f"{where} has the type {name!r}, which is none of {', '.join(TYPES)}")
    found = [TYPES[n.lower()] for n in names]
    if None in found:
        return None
    known = [f for f in found if f]
    return known if isinstance(value, list) else known[0]


def api_names(names: Iterable[str]) -> list[str]:
    """A name for each of `names` that the OpenAI API allows and that no other one has, in their order.

    Names that are fine stay; in others, what is not allowed becomes `_`, a long name is cut, and a number follows
    where the name is taken.
    """
    names = list(names)
    taken = {n for n in names if API_NAME.fullmatch(n)}
    given: set[str] = set()
    made: list[str] = []
    for name in names:
        fine = bool(API_NAME.fullmatch(name)) and name not in given
        made.append(name if fine else _free(name, taken))
        given.add(name)
        taken.add(made[-1])
    return made


def _free(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "tool"
    if len(plain) > MAX_NAME:
        plain = f"{plain[: MAX_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    made, number = plain, 2
    while made in taken:
        made = f"{plain[: MAX_NAME - len(str(number)) - 1]}_{number}"
        number += 1
    return made


def tool(function: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The OpenAI schema of one BFCL function, called `name`. Raises `SchemaError`."""
    parameters = json_schema(function.get("parameters") or {}, function["name"])
    parameters = {"type": "object", "properties": {}, **parameters}
    described = {"name": name, "description": function.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": described}
