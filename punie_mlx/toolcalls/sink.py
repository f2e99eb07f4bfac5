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
    Reasoning,
    Text,
    Tool,
    ToolCall,
)
from punie_mlx.toolcalls.window import Window


class Sink:
    """Collects events; numbers the calls; keeps the raw text of an open call, so that a broken one is never lost.

    `in_reasoning` and `fresh` are where the text stands: inside thinking, and with nothing but white space since its
    beginning, the last call or the last switch.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools: Mapping[str, Tool] = {t.name: t for t in tools}
        self.in_reasoning = False
        self.fresh = True
        self.events: list[Event] = []
        self._raw: list[str] = []
        self._index = 0
        self._name: str | None = None  # of the call that was started and is neither finished nor malformed
        self._sent: list[str] = []

    @property
    def state(self) -> str:
        """What of a call is open: "call", "arguments", or "" where none is."""
        if self._name is not None:
            return "arguments" if self._sent else "call"
        # Several calls may stand in a list: what joins them is none yet.
        return "call" if "".join(self._raw).strip(" \t\r\n,[]") else ""

    def text(self, window: Window, to: int) -> None:
        """Consume the window up to `to` as part of the answer or the thinking."""
        piece = window.text[window.pos : to]
        window.pos = to
        if piece:
            self.fresh = False
            self.events.append(Reasoning(piece) if self.in_reasoning else Text(piece))

    def mark(self, window: Window, to: int) -> None:
        """Consume the window up to `to` as framing."""
        if to > window.pos:
            self.events.append(Marker(window.text[window.pos : to]))
        window.pos = to

    def take(self, window: Window, to: int) -> str:
        """Consume the window up to `to` as part of the open call; return what was consumed."""
        piece = window.text[window.pos : to]
        window.pos = to
        if piece:
            self._raw.append(piece)
        return piece

    def start(self, name: str) -> None:
        """A call of `name` begins."""
        self.events.append(CallStarted(self._index, name))
        self._name = name
        self._sent = []

    def arguments(self, piece: str) -> None:
        """More JSON text of the open call's arguments."""
        if piece:
            self._sent.append(piece)
            self.events.append(ArgumentsDelta(self._index, piece))

    def finish(self, arguments: dict[str, Any], problems: Sequence[Problem] = (), *, id: str = "") -> None:
        """The open call is complete."""
        name = self._name or ""
        found = (*problems, *schema.check(name, arguments, self.tools))
        self.events.append(CallFinished(self._index, ToolCall(name, arguments, id), found, "".join(self._raw)))
        self._close()

    def malformed(self, reason: str) -> None:
        """What was taken since the call began is no call."""
        self.events.append(Malformed("".join(self._raw), reason, self._open_index(), self.in_reasoning))
        self._close()

    def no_call(self, *, framing: bool = False) -> None:
        """What was taken since the last call, before any name was started, is no part of a call: framing, or text."""
        taken = "".join(self._raw)
        self._raw = []
        if taken and framing:
            self.events.append(Marker(taken))
        elif taken:
            self.fresh = False
            self.events.append(Reasoning(taken) if self.in_reasoning else Text(taken))

    def cut_off(self, name: str = "", arguments: str | None = None) -> None:
        """The text ended inside a call. Give its `name` where it was not started, so that it is reported with it.

        `arguments`: what had arrived of them, where it was not passed on piece by piece.
        """
        if self._name is None and name:
            self.start(name)
        if self._name is None:
            self.malformed("the call is cut off before its name")
            return
        reason = f"the call of {self._name} is cut off"
        sent = "".join(self._sent) if arguments is None else arguments
        raw = "".join(self._raw)
        self.events.append(Malformed(raw, reason, self._index, self.in_reasoning, True, self._name, sent))
        self._close()

    def _open_index(self) -> int | None:
        return None if self._name is None else self._index

    def _close(self) -> None:
        self._index += self._name is not None
        self._name = None
        self._raw, self._sent = [], []
