"""BFCL's gold calls: real functions and real values, rendered and read back in every format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.toolcalls import formats, schema
from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.stream import read

# How the functions spell types, and what JSON schema calls them.
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
SETS = ("simple_python", "multiple", "parallel")
# Values stand without quotes between their tags, and only the schema says of what type they are.
UNTYPED = {"qwen3_coder", "seed_oss", "mimo", "glm", "minimax"}
Gold = list[tuple[list[Tool], list[ToolCall]]]


def as_json_schema(value: Any) -> Any:
    """A schema of the set with the types that JSON schema knows."""
    if isinstance(value, list):
        return [as_json_schema(v) for v in value]
    if not isinstance(value, dict):
        return value
    out = {k: as_json_schema(v) for k, v in value.items()}
    if isinstance(kind := out.get("type"), str) and kind in TYPES:
        out["type"] = TYPES[kind]
        if out["type"] is None:
            del out["type"]
    return out


def without_choices(value: Any) -> Any:
    """A gold value: within an object each key has a list of the values that are right; the first of them is taken."""
    if isinstance(value, dict):
        return {k: without_choices(v[0]) for k, v in value.items() if v and v[0] != ""}
    return [without_choices(v) for v in value] if isinstance(value, list) else value


def calls_of(truth: list[dict[str, dict[str, list[Any]]]]) -> Iterator[list[ToolCall]]:
    """The gold calls of one question: with the first right value of each argument, with the second, and so on."""
    for choice in range(max(len(values) for call in truth for given in call.values() for values in given.values())):
        calls = []
        for call in truth:
            for name, given in call.items():
                chosen = {k: values[min(choice, len(values) - 1)] for k, values in given.items()}
                calls.append(ToolCall(name, {k: without_choices(v) for k, v in chosen.items() if v != ""}))
        yield calls


@pytest.fixture(scope="module")
def gold(real_data: Path) -> Gold:
    found = []
    for name in SETS:
        read_set = [
            [json.loads(line) for line in (real_data / "bfcl" / f"BFCL_v4_{name}{part}.json").read_text().splitlines()]
            for part in ("", ".gold")
        ]
        truths = {row["id"]: row["ground_truth"] for row in read_set[1]}
        for row in read_set[0]:
            tools = [Tool.from_openai(as_json_schema(f)) for f in row["function"]]
            found += [(tools, calls) for calls in calls_of(truths[row["id"]])]
    return found


def test_there_are_many_calls_of_the_offered_tools(gold):
    assert len(gold) > 1000 and sum(len(calls) for _, calls in gold) > 1500
    for tools, calls in gold:
        assert {call.name for call in calls} <= {tool.name for tool in tools}


def fit(tools: list[Tool], calls: list[ToolCall]) -> bool:
    offered = {tool.name: tool for tool in tools}
    return not any(problem for call in calls for problem in schema.mismatches(call.name, call.arguments, offered))


@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_gold_calls_are_rendered_and_read_back(gold, name):
    wrong, apart = [], 0
    for i, (tools, calls) in enumerate(gold):
        if name in UNTYPED and not fit(tools, calls):
            apart += 1  # the set itself says otherwise than its schema, such as `true` for a string
            continue
        text = formats.render(name, calls)
        found = read(text, name, tools, chunk=(0, 1, 4)[i % 3])
        got, wanted = ([(c.name, dumps(c.arguments)) for c in given] for given in (found.calls, calls))
        if got != wanted or found.malformed or found.visible().strip():
            wrong.append((text, got, wanted, found.problems))
    assert wrong[:3] == []
    assert apart < 0.03 * len(gold)
