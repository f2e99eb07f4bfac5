"""JSON text that grows while a value in another notation is read: brackets, keys, scalars, strings in pieces.

A reader of such a notation says what it has seen, and this passes it on as strict JSON. The first of duplicate keys
stands, since it may be sent already; what follows it is kept aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import dumps, escape
from punie_mlx.toolcalls.window import Window

DEPTH = 200  # brackets inside brackets; more than any call needs, less than what Python's own JSON can read
SPECIAL = r"\\\"\x00-\x1f\ud800-\udfff"  # what has to be escaped in JSON, as the inside of a character class
_CLOSING = {"{": "}", "[": "]", "(": "", "**": ""}


class _Frame:
    """An open bracket: `{`, `[`, `(` while it may group one value only, `**` for keys of the one around it."""

    __slots__ = ("count", "keys", "kind", "mark")

    def __init__(self, kind: str, keys: set[str], mark: int) -> None:
        self.kind = kind
        self.keys = keys
        self.count = 0
        self.mark = mark


class JsonWriter:
    """Writes one JSON object; `flush` hands what is certain of it to `emit`, in pieces that join to the whole."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self.duplicates: list[tuple[str, str]] = []
        self._emit = emit
        self._parts = ["{"]
        self._sent = 0
        self._frames = [_Frame("{", set(), 0)]
        self._groups: list[int] = []  # places in `_parts` of brackets that are not decided
        self._aside: list[tuple[int, str, list[str]]] = []  # depth, key and text of values after a duplicate key
        self._out = self._parts

    @property
    def depth(self) -> int:
        """How many brackets are open."""
        return len(self._frames)

    def flush(self) -> None:
        """Pass on what is certain."""
        end = self._groups[0] if self._groups else len(self._parts)
        if end > self._sent:
            piece = "".join(self._parts[self._sent : end])
            self._sent = end
            self._emit(piece)

    def value(self) -> Any:
        """The object that was written. Raises `ValueError` for a number that is too long."""
        return schema.loads("".join(self._parts))

    def key(self, name: str) -> None:
        """The key of the value that comes next."""
        keys = self._frames[-1].keys
        if name in keys:
            self._out = []
            self._aside.append((len(self._frames), name, self._out))
            return
        self._out.append(f"{', ' if keys else ''}{dumps(name)}: ")
        keys.add(name)

    def comma(self) -> None:
        """A comma: what looked like a bracket around one value is a list."""
        frame = self._frames[-1]
        if frame.kind == "(":
            frame.kind = "["
            self._out[frame.mark] = "["
            self._decide(frame)

    def scalar(self, json: str) -> None:
        """A value whose JSON text is known."""
        self._separate()
        self._out.append(json)
        self._over()

    def open(self, kind: str) -> None:
        """A bracket: `{`, `[`, `(` (a list, or nothing but a bracket) or `**` (keys of the object around it)."""
        if kind == "**":
            self._frames.append(_Frame(kind, self._frames[-1].keys, 0))
            return
        self._separate()
        frame = _Frame(kind, set(), len(self._out))
        self._frames.append(frame)
        self._out.append("" if kind == "(" else kind)
        if kind == "(" and self._out is self._parts:
            self._groups.append(frame.mark)

    def close(self) -> None:
        """The bracket that was opened last is closed."""
        frame = self._frames.pop()
        if frame.kind == "(":
            if not frame.count:
                self._out[frame.mark] = "[]"
            self._decide(frame)
        self._out.append(_CLOSING[frame.kind])
        if frame.kind != "**":
            self._over()

    def string(self) -> None:
        """A string begins; its text comes in pieces."""
        self._separate()
        self._out.append('"')

    def piece(self, text: str) -> None:
        """More text of the open string."""
        self._out.append(escape(text))

    def plain(self, text: str) -> None:
        """More text of the open string, none of it `SPECIAL`; it is passed on at once."""
        self._out.append(text)
        if self._groups or self._aside or self._sent + 1 < len(self._parts):
            self.flush()
        else:
            self._sent += 1
            self._emit(text)

    def end_string(self) -> None:
        """The open string is over."""
        self._out.append('"')
        self._over()

    def _separate(self) -> None:
        frame = self._frames[-1]
        if frame.count and frame.kind == "[":
            self._out.append(", ")
        frame.count += 1

    def _over(self) -> None:
        """A value is complete."""
        if self._aside and self._aside[-1][0] == len(self._frames):
            _, key, parts = self._aside.pop()
            self.duplicates.append((key, "".join(parts)))
            self._out = self._aside[-1][2] if self._aside else self._parts

    def _decide(self, frame: _Frame) -> None:
        if self._out is self._parts and self._groups and frame.mark in self._groups[-1:]:
            self._groups.pop()


class Transcriber:
    """Arguments in another notation, read state by state and passed on as JSON text to `emit`.

    A state reads one token at a place of the window, and answers with where it ends or `MORE`. `plain` matches the text
    of a string that needs no escapes and cannot end it: long runs of it go by the states.

    done: the closing bracket has come. broken: why the arguments cannot be read. repairs: what was mended on the way.
    """

    def __init__(self, emit: Callable[[str], None], plain: Callable[..., Any]) -> None:
        self.done = False
        self.broken = ""
        self.repairs: list[str] = []
        self._writer = JsonWriter(emit)
        self._plain = plain
        self._state: Callable[[Window, int], int]
        self._hot = False  # inside a string that is passed on as it comes

    @property
    def duplicates(self) -> list[tuple[str, str]]:
        """Later values of a key that was there: the key, and its value as JSON text."""
        return self._writer.duplicates

    def value(self) -> dict[str, Any]:
        """The arguments that were read, once they are `done`. Raises `ValueError` for a number that is too long."""
        return self._writer.value()

    def read(self, window: Window, at: int) -> int:
        """Read on from `at`; return up to where the window is decided."""
        size = len(window.text)
        if self._hot and (end := self._plain(window.text, at).end()) == size:
            if end > at:
                self._writer.plain(window.text[at:end])
            return end
        while at < size and not (self.done or self.broken):
            end = self._state(window, at)
            if end < 0:
                break
            at = end
        self._hot = self._in_string()
        self._writer.flush()
        return at

    def _in_string(self) -> bool:
        """Whether the text that comes is that of a string."""
        raise NotImplementedError

    def _repaired(self, what: str) -> None:
        if what not in self.repairs:
            self.repairs.append(what)

    def _break(self, reason: str, at: int) -> int:
        self.broken = reason
        return at
