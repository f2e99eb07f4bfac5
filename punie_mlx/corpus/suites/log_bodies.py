"""The bodies of chat completions as they stand in logs: objects, JSON text, or the text of a stream (SSE)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


class Unusable(Exception):
    """Why a turn is no use; the same words for the same reason, because they are counted."""


@dataclass
class Answer:
    """What an assistant did in one response."""

    content: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Name and arguments, as they were sent: an object or JSON text."""
    finish_reason: str | None = None


def body_of(value: Any, what: str) -> Mapping[str, Any]:
    """A request's or response's body as an object. Raises `Unusable`."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("data:", "event:", ":")):
            try:
                return _joined(text)
            except (AttributeError, TypeError) as e:
                raise Unusable("the stream holds an event that is no piece of a completion") from e
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise Unusable(f"the {what} is no JSON") from e
    if not isinstance(value, Mapping):
        raise Unusable(f"there is no {what}")
    return value


def _events(text: str) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        name, _, data = line.partition(":")
        if name.strip() != "data" or data.strip() in ("", "[DONE]"):
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise Unusable("the stream holds an event that is no JSON") from e
        if isinstance(event, Mapping):
            yield event


def _joined(text: str) -> Mapping[str, Any]:
    """The completion that a stream spells in pieces."""
    content: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    finish = None
    for event in _events(text):
        if event.get("error"):
            return event
        for choice in (c for c in event.get("choices") or () if isinstance(c, Mapping) and c.get("index", 0) == 0):
            delta = choice.get("delta") or {}
            content.append(delta.get("content") or "")
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(piece.get("index", 0), {"name": "", "arguments": ""})
                function = piece.get("function") or {}
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            finish = choice.get("finish_reason") or finish
    message = {"content": "".join(content), "tool_calls": [{"function": calls[i]} for i in sorted(calls)]}
    return {"choices": [{"message": message, "finish_reason": finish or "no end"}]}


def answer_of(body: Mapping[str, Any]) -> Answer:
    """What was answered. Raises `Unusable` for errors and for answers that were cut off."""
    if body.get("error"):
        raise Unusable("the response is an error")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Unusable("the response is an error" if "detail" in body else "the response has no choices")
    finish = choices[0].get("finish_reason")
    if finish == "length":
        raise Unusable("the answer was cut off (finish_reason length)")
    if finish not in ("stop", "tool_calls", "function_call", None):
        raise Unusable(f"the answer did not end by itself (finish_reason {finish})")
    return said(choices[0].get("message"), finish)


def said(message: Any, finish: str | None = None) -> Answer:
    """What an assistant's message does. Raises `Unusable`."""
    if not isinstance(message, Mapping):
        raise Unusable("the response has no message")
    if message.get("function_call"):
        raise Unusable("the call is of the old function_call form")
    found = Answer(text_of(message.get("content")), finish_reason=finish)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise Unusable("`tool_calls` is no list")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unusable("a call has no name")
        found.calls.append((function["name"], function.get("arguments")))
    return found


def text_of(content: Any) -> str:
    """The text of a message's content. Raises `Unusable` where it holds anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(p["text"] for p in content)
    raise Unusable("a message holds more than text")
