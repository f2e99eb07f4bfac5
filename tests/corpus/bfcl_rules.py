"""What the Berkeley leaderboard says of calls, and calls that it should say it of: gold, and gold with one thing wrong.

Written for these tests after the rules of its checker, so that our reading of the gold is not compared with itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Made = list[tuple[str, Any]]
PYTHON = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict}


# ---- what BFCL says ----


def plain(value: Any) -> Any:
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value


def bfcl_accepts(function: dict[str, Any], gold: dict[str, Any], arguments: dict[str, Any]) -> bool:
    properties = function["parameters"]["properties"]
    if any(name not in arguments for name in function["parameters"].get("required", ())):
        return False
    if any(name not in arguments and "" not in values for name, values in gold.items()):
        return False
    return all(n in properties and n in gold and argument_accepted(properties[n], gold[n], v)
               for n, v in arguments.items())  # fmt: skip


def argument_accepted(spec: dict[str, Any], values: list[Any], value: Any) -> bool:
    wanted = PYTHON.get(spec["type"], str)
    if wanted is float and type(value) is int:
        value = float(value)
    known = next((type(v) for v in values if v != ""), None)
    if type(value) is not wanted:  # gold of another type than the schema's: compared as it stands
        return type(value) is known and value in values
    if known not in (None, wanted):
        return value in values
    if wanted is dict:
        return any(object_accepted(v, value) for v in values if v != "")
    if wanted is list and (spec.get("items") or {}).get("type") == "dict":
        lists = [v for v in values if len(v) == len(value)]
        return any(all(map(object_accepted, v, value)) for v in lists)
    if wanted is list:
        return list(map(plain, value)) in [list(map(plain, v)) for v in values]
    return plain(value) in list(map(plain, values))


def object_accepted(gold: dict[str, Any], value: Any) -> bool:
    if not isinstance(value, dict) or any(k not in gold for k in value):
        return False
    if any(plain(v) not in list(map(plain, gold[k])) for k, v in value.items()):
        return False
    return all(k in value or "" in gold[k] for k in gold)


def bfcl_passes(functions: list[dict[str, Any]], gold: list[dict[str, Any]], made: Made) -> bool:
    """The calls that are expected, each once, in any order; taken greedily, as the leaderboard does."""
    if len(made) != len(gold):
        return False
    left = list(made)
    for call in gold:
        (name, values), *_ = call.items()
        function = next(f for f in functions if f["name"] == name)
        hit = next((m for m in left if m[0] == name and bfcl_accepts(function, values, m[1])), None)
        if hit is None:
            return False
        left.remove(hit)
    return True


# ---- gold, and mutated gold ----


def expanded(value: Any) -> Any:
    """One value that an entry of the gold stands for: objects hold lists of admissible values."""
    if isinstance(value, dict):
        return {k: v for k, vs in value.items() if (v := next((v for v in vs if v != ""), "")) != ""}
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [expanded(v) for v in value]
    return value


def first_gold(call: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    (name, values), *_ = call.items()
    given = {k: expanded(next(v for v in vs if v != "")) for k, vs in values.items() if any(v != "" for v in vs)}
    return name, given


def every_gold(gold: list[dict[str, Any]], required: set[str]) -> Iterator[Made]:
    """The gold with each admissible value of each argument, and without each argument that may be left out."""
    base = [first_gold(c) for c in gold]
    yield base
    for n, call in enumerate(gold):
        (name, values), *_ = call.items()
        for argument, admissible in values.items():
            for value in admissible:
                arguments = {k: v for k, v in base[n][1].items() if k != argument}
                if value != "":
                    arguments[argument] = expanded(value)
                elif argument in required:
                    continue
                yield [*base[:n], (name, arguments), *base[n + 1 :]]


def other(value: Any) -> Any:
    """A value of the same type that is not this one."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1000003
        case str():
            return value + "zz"
        case list():
            return [*value, value[0]] if value else [1]
        case dict():
            return {**value, **{k: other(v) for k, v in list(value.items())[:1]}} if value else {"zz": 1}
    return "zz"


def another_type(value: Any) -> Any:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return 123456
        case list():
            return {"a": 1}
    return [value]


def mutated(base: Made, tools: list[str]) -> Iterator[tuple[str, Made]]:
    yield "a call too few", base[:-1]
    yield "a call too many", [*base, base[0]]
    for n, (name, arguments) in enumerate(base):

        def put(made: Any, name: str = name, n: int = n) -> Made:
            return [*base[:n], (name, made), *base[n + 1 :]]

        for wrong in [t for t in tools if t != name] or ["no_such_tool"]:
            yield "another tool", [*base[:n], (wrong, arguments), *base[n + 1 :]]
        yield "an argument too many", put({**arguments, "zz": 1})
        for argument, value in arguments.items():
            yield "an argument too few", put({k: v for k, v in arguments.items() if k != argument})
            yield "another value", put({**arguments, argument: other(value)})
            yield "another type", put({**arguments, argument: another_type(value)})
