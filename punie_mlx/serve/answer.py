"""What the model writes, as OpenAI's deltas: the same for a stream and, collected, for a whole answer.

A call is sent when it is complete. One that does not parse is text; nothing is dropped but the white space beside
calls, which agents would take for an answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from punie_mlx.toolcalls.calls import CallFinished, Event, Malformed, Marker, Reasoning, Text, ToolCall, dumps
from punie_mlx.toolcalls.stream import Joined, StreamParser

Delta = dict[str, Any]


class Answer:
    """Text in, deltas out. Where no tools were `offered`, a call is text too: nobody could answer it."""

    def __init__(self, parser: StreamParser, *, offered: bool) -> None:
        self._parser = parser
        self._offered = offered
        self._space = {"content": "", "reasoning_content": ""}  # held until something visible follows
        self._joined = {key: Joined(parser.format.joint) for key in self._space}
        self._frames = {parser.format.open, parser.format.close} - {""}
        self.calls = 0
        self.malformed: list[Malformed] = []

    def feed(self, text: str) -> list[Delta]:
        return self._deltas(self._parser.feed(text))

    def finish(self, reason: str) -> list[Delta]:
        """The rest, where the model ended for `reason` ("stop" or "length")."""
        deltas = self._deltas(self._parser.finish(reason))
        if not self.calls and self._space["content"]:
            deltas.append({"content": self._space["content"]})
        return deltas

    def finish_reason(self, reason: str) -> str:
        """OpenAI's finish_reason: "tool_calls" only where there is one."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _deltas(self, events: Iterable[Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            key, text = self._shown(event)
            joined = {k: j.next(text if k == key else "") for k, j in self._joined.items()}
            if isinstance(event, Malformed):
                self.malformed.append(event)
            if key:
                deltas += self._visible(key, joined[key])
            elif isinstance(event, CallFinished):
                self._space["content"] = ""
                deltas += self._call(event.call)
        return deltas

    def _shown(self, event: Event) -> tuple[str, str]:
        """Where the text of `event` is shown, and that text; nowhere if it is framing or part of a call."""
        match event:
            case Text(text):
                return "content", text
            case Reasoning(text):
                return "reasoning_content", text
            case Malformed(raw):
                return "reasoning_content" if event.in_reasoning else "content", raw
            case CallFinished(raw=raw) if not self._offered:
                return "content", raw
            case Marker(text) if not self._offered and any(frame in text for frame in self._frames):
                return "content", text
        return "", ""

    def _visible(self, key: str, text: str) -> list[Delta]:
        text = self._space[key] + text
        visible = text.rstrip()
        self._space[key] = text[len(visible) :]
        return [{key: visible}] if visible else []

    def _call(self, call: ToolCall) -> list[Delta]:
        index, self.calls = self.calls, self.calls + 1
        function = {"name": call.name, "arguments": ""}
        start = {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        rest = {"index": index, "function": {"arguments": dumps(call.arguments)}}
        return [{"tool_calls": [start]}, {"tool_calls": [rest]}]


def collect(deltas: Iterable[Delta]) -> dict[str, Any]:
    """The assistant's message that `deltas` add up to; its content is null only where calls stand instead."""
    text = dict.fromkeys(("content", "reasoning_content"), "")
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for key in text:
            text[key] += delta.get(key, "")
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls.append({k: v for k, v in part.items() if k != "index"} | {"function": dict(part["function"])})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": text["content"] or (None if calls else "")}
    if text["reasoning_content"]:
        message["reasoning_content"] = text["reasoning_content"]
    if calls:
        message["tool_calls"] = calls
    return message
