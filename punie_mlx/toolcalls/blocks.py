"""Calls whose arguments have a reader of their own: what the bodies of such formats have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Problem
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, Window, first


class Arguments(Protocol):
    """Reads the arguments of one call and passes them on as JSON text while they arrive."""

    done: bool
    broken: str
    repairs: list[str]

    @property
    def duplicates(self) -> list[tuple[str, str]]: ...

    def read(self, window: Window, at: int) -> int: ...

    def value(self) -> dict[str, Any]: ...


class Block:
    """Reads calls one after another, in the text or between markers (`closer` is not empty); `done` when it is over.

    A format says what may follow the arguments of a call (`after`) and a whole call (`next`).
    """

    def __init__(self, sink: Sink, openers: Sequence[str] = (), closer: str = "") -> None:
        self.done = False
        self.sink = sink
        self.closer = closer
        self._openers = openers
        self._name = ""
        self._broken = ""
        self._arguments: Arguments | None = None
        self._step = self.next

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def after(self, window: Window) -> bool:
        """After the arguments of a call: `finish` it, `fail` or `cut_off`."""
        return self.finish()

    def next(self, window: Window) -> bool:
        """Before the first call and after each: `begin` another, or it is `over`."""
        raise NotImplementedError

    def begin(self, window: Window, end: int, name: str, arguments: Arguments) -> bool:
        """A call of `name` begins, and its arguments at `end`."""
        self.sink.take(window, end)
        self.sink.start(name)
        self._name, self._arguments = name, arguments
        self._step = self._read
        return True

    def _read(self, window: Window) -> bool:
        arguments = self._arguments
        assert arguments is not None
        self.sink.take(window, arguments.read(window, window.pos))
        if arguments.done:
            self._step = self.after
            return True
        if arguments.broken:
            return self.fail(arguments.broken)
        return window.ended and self.cut_off(window, self._name)

    def finish(self) -> bool:
        """The open call is complete."""
        arguments = self._arguments
        assert arguments is not None
        try:
            value = arguments.value()
        except ValueError as e:
            return self.fail(str(e))
        problems = [Problem("repaired", what) for what in arguments.repairs]
        problems += [Problem("duplicate_parameter", key, raw) for key, raw in arguments.duplicates]
        problems += schema.mismatches(self._name, value, self.sink.tools)
        self.sink.finish(value, problems)
        self._step = self.next
        return True

    def cut_off(self, window: Window, name: str) -> bool:
        """The text ends inside the call."""
        self.sink.take(window, len(window.text))
        self.sink.cut_off(name)
        self.done = True
        return True

    def over(self, window: Window, to: int) -> bool:
        """The block ends at `to`; what lies before is framing."""
        self.sink.mark(window, to)
        self.done = True
        return True

    def fail(self, reason: str) -> bool:
        """The call cannot be read: in the text what follows is text again, a block is broken up to its end."""
        self._broken = reason
        self._step = self._skip
        if not self.closer:
            self.sink.malformed(reason)
            self.done = True
        return True

    def _skip(self, window: Window) -> bool:
        text = window.text
        at = text.find("<", window.pos)
        while at >= 0:
            end, marker = first(window, at, (self.closer, *self._openers))
            if end > 0:
                self.sink.take(window, end if marker == self.closer else at)
                break
            if end == MORE and not window.ended:
                self.sink.take(window, at)
                return False
            at = text.find("<", at + 1)
        else:
            self.sink.take(window, len(text))
            if not window.ended:
                return False
        self.sink.malformed(self._broken)
        self.done = True
        return True
