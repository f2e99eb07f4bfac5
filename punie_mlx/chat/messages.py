"""Messages and tools of a client, or of a training row, as chat templates know them.

The server and training both come through here, so that a model is trained on the prompt that it is served. What is
taken over is named; all other keys (`strict` of a tool, `weight` of a message) never reach a template.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

THINK = ("<think>", "</think>")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
SYSTEM = frozenset({"system", "developer"})


def for_template(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`messages` as chat templates know them: what is said to the system is one message, the first."""
    system: list[str] = []
    rest: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] in SYSTEM:
            system.append(text_of(message))
        else:
            rest.append(_for_template(message))
    first = [{"role": "system", "content": "\n\n".join(filter(None, system))}] if system else []
    return [*first, *rest]


def text_of(message: Mapping[str, Any]) -> str:
    """All that a message says: its text, the texts of its parts joined, or why it refused."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    return content or message.get("refusal") or ""


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message["role"], "content": text_of(message)}
    if message["role"] == "assistant":
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if not thinking:
            thinking, shown["content"] = split_thinking(shown["content"])
        if thinking:
            shown["reasoning_content"] = thinking
        if message.get("tool_calls"):
            shown["tool_calls"] = list(message["tool_calls"])
    return shown | {k: message[k] for k in ("tool_call_id", "name") if message.get(k) is not None}


def split_thinking(content: str) -> tuple[str, str]:
    """The thinking that `content` begins with, and the rest; `""` and all of it where it begins with none."""
    opening, closing = THINK
    begun = content.lstrip()
    if not begun.startswith(opening) or closing not in begun:
        return "", content
    thinking, _, rest = begun[len(opening) :].partition(closing)
    return thinking.strip("\n"), rest.lstrip("\n")


def tools_for_template(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI function schemas as training rows spell them: without what only the API means (`strict`)."""
    return [_tool(tool.get("function", tool)) for tool in tools]


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": function["name"]}
    if function.get("description") is not None:
        shown["description"] = function["description"]
    shown["parameters"] = NO_PARAMETERS if function.get("parameters") is None else function["parameters"]
    return {"type": "function", "function": shown}
