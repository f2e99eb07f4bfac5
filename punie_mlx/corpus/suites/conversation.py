"""Whether a list of OpenAI messages is a conversation that a case can go on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_conversation(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ValueError` where a server would refuse `messages`, or the last one is not a user's."""
    if not messages:
        raise ValueError("there is no message: give at least one, the last one a user's")
    open_calls: list[str] = []
    for number, message in enumerate(messages, 1):
        if reason := _message(message) or _place(message, number, open_calls):
            raise ValueError(f"message {number} {reason}")
    last = messages[-1]
    if last["role"] != "user":
        raise ValueError(f"the last message is from {last['role']}: it must be a user's, which the model answers")
    if not _text(last).strip():
        raise ValueError("the last message says nothing")


def _message(message: Mapping[str, Any]) -> str | None:
    """What is wrong with a message by itself."""
    if message.get("role") not in ROLES:
        return f"has the role {message.get('role')!r}, not one of {', '.join(ROLES)}"
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and message["role"] != "assistant":
        return f"has `tool_calls`, but is from {message['role']}"
    if content is None and not calls:
        return "has no `content`"
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            return "has a part of `content` that is no text"
    elif not isinstance(content, str | None):
        return "has `content` that is no text"
    if calls is not None and (not isinstance(calls, list) or not calls):
        return "has `tool_calls` that are no list of at least one call"
    return next((reason for call in calls or () if (reason := _call(call))), None)


def _call(call: Any) -> str | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return "has a tool call without a function name"
    if not isinstance(call.get("id"), str) or not call["id"]:
        return f"has a call of {function['name']} without an id"
    try:
        if isinstance(json.loads(function["arguments"]), dict):
            return None
    except (KeyError, TypeError, ValueError):
        pass
    return f"has a call of {function['name']} whose arguments are not the JSON text of an object"


def _place(message: Mapping[str, Any], number: int, open_calls: list[str]) -> str | None:
    """What is wrong with where a message stands; `open_calls` are the ids that wait for a result."""
    role = message["role"]
    if role == "tool":
        if message.get("tool_call_id") not in open_calls:
            return f"is the result of call {message.get('tool_call_id')!r}, which waits for none"
        open_calls.remove(message["tool_call_id"])
        return None
    if open_calls:
        return f"comes before the result of call {open_calls[0]!r}: put the tool message first"
    if role in ("system", "developer") and number > 1:
        return "is a system message: only the first may be one"
    open_calls += [call["id"] for call in message.get("tool_calls") or ()]
    return None


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
