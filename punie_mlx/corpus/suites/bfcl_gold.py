"""BFCL's gold as matchers: for each argument the values that are admissible, and whether it may be left out.

The rules are those of BFCL's checker (`ast_checker.py`, v3 and v4):

- Each argument has a list of admissible values. `""` in it says that the argument may be left out, unless the schema
  requires it. As a value, `""` is admissible where text is asked for, and an empty list where a list is.
- Within an object, and within the objects of a list, each key has such a list again. Deeper objects stand as they are.
- An argument that the gold does not name may not be given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

from punie_mlx.toolcalls.values import problem, types_of

COMBINATIONS = 4096  # of the admissible values of one object's keys
Schema = Mapping[str, Any]
_ABSENT = object()


@dataclass
class Gold:
    """One expected call as `match`, and where the gold contradicts the schema of its tool."""

    match: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def gold_call(arguments: Mapping[str, Any], schema: Schema) -> Gold:
    """The matchers of one call. `schema` is that of the tool's parameters, in JSON's type names."""
    gold = Gold()
    properties = schema.get("properties", {})
    required = schema.get("required") or []
    gold.complaints += [f"required {name} is not in the gold" for name in required if name not in arguments]
    for name, values in arguments.items():
        if not isinstance(values, list):
            gold.complaints.append(f"{name}: {values!r} is no list of values: taken as the only one")
            values = [values]
        if name not in properties:
            gold.complaints.append(f"{name} is not in the schema: left out, no answer can give it")
            continue
        if "" in values and name in required:
            gold.complaints.append(f"{name} is required, but the gold lets it be left out: it must be given")
        matcher = _matcher(values, properties[name], gold.complaints, name, required=name in required)
        if matcher:
            gold.match[name] = matcher
    return gold


def _matcher(
    values: Sequence[Any], schema: Schema, complaints: list[str], name: str, *, required: bool
) -> dict[str, Any] | None:
    """The matcher of one argument; None where it may only be left out."""
    kinds = types_of(schema)
    optional = "" in values and not required
    found: list[Any] = []
    for value in (v for v in values if v != ""):
        combinations = list(islice(_expand(value, schema, complaints, name), COMBINATIONS + 1))
        if len(combinations) > COMBINATIONS:
            complaints.append(f"{name} has more than {COMBINATIONS} admissible objects: the first are kept")
        found += combinations[:COMBINATIONS]
    for value in found:
        if reason := problem(value, schema, name):
            complaints.append(reason)
            break
    found += [int(v) for v in found if isinstance(v, float) and v.is_integer() and "integer" in kinds]
    if "" in values:
        found += [""] if "string" in kinds or not kinds else [[]] if "array" in kinds else []
    unique = _unique(found)
    if not unique:
        return None
    made: dict[str, Any] = {"exact": unique[0]} if len(unique) == 1 else {"one_of": unique}
    return {**made, "optional": True} if optional else made


def _expand(value: Any, schema: Schema, complaints: list[str], name: str) -> Iterator[Any]:
    """The values that one entry of the gold stands for: objects hold a list of admissible values for each key."""
    if isinstance(value, dict):
        yield from _objects(value, complaints, name)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        parts = [list(islice(_objects(v, complaints, name), COMBINATIONS)) for v in value]
        yield from (list(choice) for choice in product(*parts))
    else:
        yield value


def _objects(value: Mapping[str, Any], complaints: list[str], name: str) -> Iterator[dict[str, Any]]:
    choices: list[list[Any]] = []
    for key, admissible in value.items():
        if not isinstance(admissible, list):
            complaints.append(f"{name}.{key}: {admissible!r} is no list of values: taken as the only one")
            admissible = [admissible]
        choices.append([_ABSENT if v == "" else v for v in admissible] or [[]])
    for choice in product(*choices):
        yield {k: v for k, v in zip(value, choice, strict=True) if v is not _ABSENT}


def _unique(values: Sequence[Any]) -> list[Any]:
    """`values` without repeated ones; JSON's types are kept apart."""
    return list({repr(v): v for v in values}.values())
