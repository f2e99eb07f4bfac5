"""Where the readers of a stream put what they find: events in order, and the raw text of the call being read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Malformed,
    Marker,
    Problem,
    Tool,
    ToolCall,
)
from punie_mlx.toolcalls.window import Window


class Sink:
    """Collects events; numbers the calls; keeps the raw text of an open call, so that a broken one is never lost."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools: Mapping[str, Tool] = {t.name: t for t in tools}
        self.in_reasoning = False
        self.events: list[Event] = []
        self.raw: list[str] = []
        self._index = 0
        self._started = False

    def take(self, window: Window, to: int) -> str:
        """Consume the window up to `to` as part of the open call; return what was consumed."""
        piece = window.text[window.pos : to]
        window.pos = to
        if piece:
            self.raw.append(piece)
        return piece

    def mark(self, window: Window, to: int) -> None:
        """Consume the window up to `to` as framing."""
        if to > window.pos:
            self.events.append(Marker(window.text[window.pos : to]))
        window.pos = to

    def start(self, name: str) -> None:
        """A call of `name` begins."""
        self.events.append(CallStarted(self._index, name))
        self._started = True

    def arguments(self, piece: str) -> None:
        """More JSON text of the open call's arguments."""
        if piece:
            self.events.append(ArgumentsDelta(self._index, piece))

    def finish(self, name: str, arguments: dict[str, Any], problems: Sequence[Problem] = ()) -> None:
        """The open call is complete."""
        found = (*problems, *schema.check(name, arguments, self.tools))
        self.events.append(CallFinished(self._index, ToolCall(name, arguments), found, "".join(self.raw)))
        self._index += 1
        self._started = False
        self.raw = []

    def malformed(self, reason: str) -> None:
        """What was taken since the call began is no complete call."""
        index = self._index if self._started else None
        self.events.append(Malformed("".join(self.raw), reason, index, self.in_reasoning))
        self._index += self._started
        self._started = False
        self.raw = []
