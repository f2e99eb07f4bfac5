"""Tool schemas for rows that came without: inferred from every call in the corpus, and offered with others beside.

A row in which only the called tool is offered teaches to call whatever is there. So each row is offered its own tools
and a few more of the corpus, chosen by the hash of the row: the same rows always get the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def infer_tools(calls: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A function schema for each name in `calls` (`{"name", "arguments"}`), sorted by name."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for call in calls:
        by_name.setdefault(call["name"], []).append(call["arguments"])
    return {name: _tool(name, by_name[name]) for name in sorted(by_name)}


def _tool(name: str, seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = list(dict.fromkeys(k for arguments in seen for k in arguments))
    parameters = {
        "type": "object",
        "properties": {k: _schema([a[k] for a in seen if k in a]) for k in keys},
        "required": [k for k in keys if all(k in a for a in seen)],
    }
    description = name.replace("_", " ").capitalize() + "."
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _schema(values: Sequence[Any]) -> dict[str, Any]:
    kinds = sorted({kind(v) for v in values})
    if "number" in kinds and "integer" in kinds:
        kinds.remove("integer")
    schema: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds}
    items = [item for v in values if isinstance(v, list) for item in v]
    if kinds == ["array"] and items:
        schema["items"] = _schema(items)
    return schema


def kind(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]


def offer(
    messages: Sequence[Mapping[str, Any]], tools: Mapping[str, dict[str, Any]], at_least: int
) -> list[dict[str, Any]]:
    """The tools that these messages call, and others up to `at_least`, in an order that tells nothing."""
    used = {c["function"]["name"] for m in messages for c in m.get("tool_calls", ())}
    seed = hashlib.sha256(json.dumps(messages, ensure_ascii=True).encode()).hexdigest()

    def lot(name: str) -> str:
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    others = sorted((n for n in tools if n not in used), key=lot)
    chosen = [n for n in tools if n in used] + others[: max(0, at_least - len(used))]
    return [tools[n] for n in sorted(chosen, key=lot)]
