"""What the model writes, as OpenAI's deltas: the same for a stream and, collected, for a whole answer.

In a stream a call is sent while it is written. One that breaks after that stays begun, and its raw text is told in
`problems`. In a whole answer a call is sent when it is complete, and one that does not parse is text. Nothing is
dropped but the white space beside calls, which agents would take for an answer.
"""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Malformed,
    Marker,
    Reasoning,
    Text,
    dumps,
)
from punie_mlx.toolcalls.stream import Joined, StreamParser

if TYPE_CHECKING:
    from punie_mlx.serve.constrain import Plan

Delta = dict[str, Any]

SHORT_IDS = ("mistral",)  # formats whose templates refuse ids that are not 9 letters and digits
_ALPHANUMERIC = string.ascii_letters + string.digits


class Shown:
    """Text under one key of the message. White space at its end is held until something visible follows."""

    def __init__(self, key: str, joint: str) -> None:
        self.key = key
        self.begun = False  # something of it was sent
        self.space = ""
        self.part = Joined(joint).next
        self.parted = False  # `part` was told that something else came in between

    def take(self, text: str) -> str:
        """What of `text`, and of what was held before, can be sent now."""
        text = self.space + self.part(text)
        self.parted = False
        visible = text.rstrip()
        self.space = text[len(visible) :]
        self.begun = self.begun or bool(visible)
        return visible

    def interrupt(self) -> None:
        """Something else comes in between."""
        if not self.parted:
            self.part("")
            self.parted = True


class Answer:
    """Text in, deltas out.

    `offered`: whether calls may come at all; where not, a call is text, since nobody could answer it. `plan`: what the
    model was held to. `streamed`: whether the deltas are sent as they come; else they are for `collect`.
    """

    def __init__(
        self, parser: StreamParser, *, offered: bool, plan: Plan | None = None, streamed: bool = False
    ) -> None:
        self._parser = parser
        self._offered = offered
        self._plan = plan
        self._streamed = streamed
        self._content = Shown("content", parser.format.joint)
        self._reasoning = Shown("reasoning_content", parser.format.joint)
        self._gap = ""  # white space of the text's framing, which counts if what it framed is text after all
        self._frames = {parser.format.open, parser.format.close} - {""}
        self._short = parser.format.name in SHORT_IDS
        self._waiting: CallStarted | None = None  # a call that is begun, and was not sent yet
        self._open = ""  # the id of the call that is begun in the deltas
        self._sent = 0  # calls that were begun in the deltas
        self.calls = 0  # complete ones
        self.problems: list[dict[str, Any]] = []
        self.rescued: list[str] = []

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Delta]:
        """Take in `text`, decoded from `tokens`; return what is to be sent for it."""
        return self._deltas(self._parser.feed(text, tokens))

    def finish(self, reason: str) -> list[Delta]:
        """The rest, where the model ended for `reason`: "stop" by itself, "length", or "cut" at a stop string."""
        deltas = self._deltas(self._parser.finish(reason))
        if not self._sent and self._content.space and (self._content.begun or not self._streamed):
            _append(deltas, {"content": self._content.space})
        return deltas

    def finish_reason(self, reason: str) -> str:
        """OpenAI's finish_reason: "tool_calls" only where there is a complete one."""
        if reason == "length":
            return reason
        return "tool_calls" if self.calls else "stop"

    def problem(self, kind: str, detail: str, raw: str = "", call: str = "") -> None:
        """Tell that something is wrong with the answer, or with its call of the id `call`."""
        self.problems.append({"kind": kind, "detail": detail, "raw": raw} | ({"call": call} if call else {}))

    def extension(self) -> dict[str, Any]:
        """What OpenAI's choice has no place for: the grammar's state, problems, and which calls were rescued."""
        grammar: dict[str, Any] = {"state": "off", "relaxed": []}
        if self._plan is not None:
            grammar["state"] = self._plan.state
            if self._plan.reason:
                grammar["reason"] = self._plan.reason
            grammar["relaxed"] = [
                {"tool": r.tool, "parameter": r.parameter, "reason": r.reason} for r in self._plan.relaxed
            ]
        return {"grammar": grammar, "problems": self.problems, "rescued": self.rescued}

    # ---- events ----

    def _deltas(self, events: Iterable[Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            match event:
                case Text(text):
                    self._show(deltas, self._content, text)
                case Reasoning(text):
                    self._show(deltas, self._reasoning, text)
                case Marker(text):
                    self._mark(deltas, text)
                case _ if not self._offered:
                    self._as_text(deltas, event)
                case CallStarted():
                    self._interrupt()
                    self._waiting = event if self._streamed else None
                case ArgumentsDelta(json=json):
                    if self._streamed:
                        self._argue(deltas, json)
                case CallFinished():
                    self._complete(deltas, event)
                case Malformed():
                    self._break(deltas, event)
            if not isinstance(event, Marker | CallStarted | ArgumentsDelta):
                self._gap = ""
        return deltas

    def _show(self, deltas: list[Delta], where: Shown, text: str) -> None:
        (self._reasoning if where is self._content else self._content).interrupt()
        if visible := where.take(text):
            _append(deltas, {where.key: visible})

    def _show_call(self, deltas: list[Delta], where: Shown, raw: str) -> None:
        """A call that is text: the white space that framed it is part of the text then."""
        if where.begun and where is self._content:
            where.space += self._gap
        self._show(deltas, where, raw)

    def _interrupt(self) -> None:
        self._content.interrupt()
        self._reasoning.interrupt()

    def _mark(self, deltas: list[Delta], text: str) -> None:
        if not self._offered and any(frame in text for frame in self._frames):
            self._show_call(deltas, self._content, text)
            self._gap = ""
            return
        self._interrupt()
        self._gap = self._gap + text if not text.strip() else ""

    def _as_text(self, deltas: list[Delta], event: Event) -> None:
        """An event of a call, where none was asked for."""
        self._interrupt()
        if isinstance(event, CallFinished):
            if event.raw:
                self._show_call(deltas, self._content, event.raw)
        elif isinstance(event, Malformed):
            self._break(deltas, event)

    # ---- calls ----

    def _begin(self, deltas: list[Delta], name: str) -> None:
        self._content.space = ""
        self._open, self._waiting = self._new_id(), None
        function = {"name": name, "arguments": ""}
        start = {"index": self._sent, "id": self._open, "type": "function", "function": function}
        deltas.append({"tool_calls": [start]})
        self._sent += 1

    def _new_id(self) -> str:
        if self._short:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{uuid.uuid4().hex[:24]}"

    def _argue(self, deltas: list[Delta], json: str) -> None:
        """More of the arguments of the open call, which begins with the first of them."""
        if self._waiting is not None:
            self._begin(deltas, self._waiting.name)
        _append(deltas, {"tool_calls": [{"index": self._sent - 1, "function": {"arguments": json}}]})

    def _complete(self, deltas: list[Delta], event: CallFinished) -> None:
        self._interrupt()
        if not self._open:
            self._begin(deltas, event.call.name)
            self._argue(deltas, dumps(event.call.arguments))
        call, self._open = self._open, ""
        self.calls += 1
        if event.rescued:
            self.rescued.append(call)
        for found in event.problems:
            self.problem(found.kind, found.detail, found.raw, call)

    def _break(self, deltas: list[Delta], event: Malformed) -> None:
        call, self._open, self._waiting = self._open, "", None
        kind = "truncated" if event.truncated else "malformed"
        self.problem(kind, event.reason, event.raw, call)
        self._interrupt()
        if not call:  # nothing of it was sent as a call
            self._show_call(deltas, self._reasoning if event.in_reasoning else self._content, event.raw)


def _append(deltas: list[Delta], delta: Delta) -> None:
    """Add `delta`, to the last one where that is more of the same."""
    last = deltas[-1] if deltas else {}
    for key in ("content", "reasoning_content"):
        if key in delta and key in last:
            last[key] += delta[key]
            return
    if "tool_calls" in delta and "tool_calls" in last:
        (more,), (before,) = delta["tool_calls"], last["tool_calls"]
        if "id" not in before and more["index"] == before["index"]:
            before["function"]["arguments"] += more["function"]["arguments"]
            return
    deltas.append(delta)


def collect(deltas: Iterable[Delta]) -> dict[str, Any]:
    """The assistant's message that `deltas` add up to; its content is null only where calls stand instead."""
    text: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        for key, pieces in text.items():
            if key in delta:
                pieces.append(delta[key])
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
                arguments.append([])
            arguments[part["index"]].append(part["function"]["arguments"])
    for call, pieces in zip(calls, arguments, strict=True):
        call["function"]["arguments"] = "".join(pieces)
    content, reasoning = ("".join(pieces) for pieces in text.values())
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
