"""JSON as models write it, passed on as strict JSON while it arrives.

    {'a': True, "b": [1, 2,],}  →  {"a": true, "b": [1, 2]}

Small slips are mended and reported; what cannot be mended stops the stream with a reason. What is passed on is always
the beginning of one strict JSON value, is never taken back, and depends on the text alone, not on how it was cut.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Problem, escape
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, Window, first, spaces

DEPTH = 256  # brackets open at once; `json.loads` must be able to read what is passed on
_MISSING = 2  # brackets that may be missing before a closing marker
_LONGEST = 4300  # characters of a number: what Python reads into an integer
_PLAIN = {  # what stands in a string of strict JSON as it is
    q: re.compile(rf'(?:[^"{q}\\\x00-\x1f\ud800-\udfff]++|\\["\\/bfnrt])*+').match for q in "\"'"
}
_WORD = re.compile(r"[\w.+-]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ESCAPES = '"\\/bfnrt'
_HEX = re.compile("[0-9a-fA-F]{0,4}")
_LITERALS = {"true": "true", "false": "false", "null": "null"}
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_CLOSING = {"{": "}", "[": "]"}

Emit = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the text of one value goes instead, and what is done when the value is over."""

    write: Emit
    end: Callable[[], None]


Route = Callable[[int, str, str], Slot | None]


@dataclass(slots=True)
class _Level:
    """An open bracket."""

    opening: str
    empty: bool = True
    keys: set[str] = field(default_factory=set)


class JsonStream:
    """One JSON value that arrives in pieces, passed on as strict JSON while it arrives.

    emit: gets the text of the value, but for the values that `route` sends elsewhere.
    closers: markers that end the value where they stand outside a string, even if a few brackets are missing.
    route: asked for each value that begins, with the number of open brackets, the key that it stands under ("" in a
    list), and its first character; may give it a slot of its own.
    expect: the first characters that the value may have; all, if empty.

    done: the value is complete. broken: why it cannot be read ("" while it can). short: brackets were missing.
    repairs: what was mended, each kind once. duplicates: later values of a key that was there, as key and JSON text;
    they are not passed on. paused: set by a slot to make `read` return; who set it clears it.
    """

    def __init__(
        self, emit: Emit, *, closers: Sequence[str] = (), route: Route | None = None, expect: str = ""
    ) -> None:
        self.done = self.short = self.paused = False
        self.broken = ""
        self.repairs: list[str] = []
        self.duplicates: list[tuple[str, str]] = []
        self._emit = emit
        self._closers = tuple(c for c in closers if c)
        self._closers_begin = {c[0] for c in self._closers}
        self._route = route
        self._expect = expect
        self._levels: list[_Level] = []
        self._slots: list[tuple[int, Emit, Slot]] = []  # brackets open at its beginning, where text went before
        self._dropping = False  # inside the value of a duplicate key
        self._state = self._value
        self._plain: Callable[..., Any] | None = None  # matches plain characters of the open string
        self._quote = ""
        self._key: list[str] | None = None  # of the open string, where it is a key
        self._outside: Emit = self._pass_on  # where text went before that key
        self._name = ""  # the key of the value to come
        self._comma = False  # a comma that is held back until it is known what follows
        self._parts: list[str] = []
        self._target: Emit = self._pass_on
        self._buffer: list[str] = []

    def read(self, window: Window, at: int) -> int:
        """Read on from `at`; return up to where the window is decided, which the caller takes."""
        text = window.text
        if self._plain is not None:
            end = self._plain(text, at).end()
            if end == len(text):
                if end > at:
                    self._target(text[at:end])
                return end
        while not (self.done or self.broken or self.paused):
            if self._plain is None:
                at = spaces(window, at)
                if at == len(text) or self._closer(window, at):
                    break
                end = self._state(window, at)
            else:
                end = self._string(window, at)
            if end == at:
                break
            at = end
        self._flush()
        return at

    def value(self) -> Any:
        """The value that was passed on, once it is done."""
        return schema.loads("".join(self._parts))

    # ---- where text goes ----

    def _pass_on(self, piece: str) -> None:
        self._parts.append(piece)
        self._emit(piece)

    def _flush(self) -> None:
        if self._buffer:
            piece = "".join(self._buffer)
            self._buffer.clear()
            self._target(piece)

    def _aim(self, target: Emit) -> None:
        self._flush()
        self._target = target

    def _divert(self, slot: Slot) -> None:
        self._slots.append((len(self._levels), self._target, slot))
        self._aim(slot.write)

    def _drop(self, key: str) -> None:
        """The value to come is that of a key that was there."""
        parts: list[str] = []

        def end() -> None:
            self._dropping = False
            self.duplicates.append((key, "".join(parts)))

        self._divert(Slot(parts.append, end))
        self._dropping = True

    def _mended(self, what: str) -> None:
        if what not in self.repairs:
            self.repairs.append(what)

    def _break(self, at: int, reason: str) -> int:
        self.broken = reason
        return at

    # ---- values: each state reads one token at `at` and returns where it ends, or `at` where it needs more ----

    def _value(self, window: Window, at: int) -> int:
        text, char = window.text, window.text[at]
        if self._expect and not self._levels and char not in self._expect:
            return self._break(at, f"{char!r} where one of {self._expect} begins a value")
        if char in "\"'":
            self._begin_value(char)
            return self._open_string(char, at)
        if char in "{[":
            if len(self._levels) == DEPTH:
                return self._break(at, "nested too deeply")
            self._begin_value(char)
            self._buffer.append(char)
            self._levels.append(_Level(char))
            self._state = self._member if char == "{" else self._item
            return at + 1
        found = _WORD.match(text, at)
        end = found.end() if found else at
        if end == len(text) and end - at <= _LONGEST and (self._levels or not window.ended):
            return at
        word = text[at:end]
        spelled = self._scalar(word)
        if not spelled:
            return self._break(at, f"{(word or char)[:40]!r} is no JSON value")
        self._begin_value(char)
        self._buffer.append(spelled)
        self._end_value()
        return end

    def _scalar(self, word: str) -> str:
        """The strict spelling of a number or a literal, "" where it is neither."""
        if word in _PYTHON:
            self._mended("a Python literal instead of JSON")
            return _PYTHON[word]
        found = _NUMBER.fullmatch(word) if len(word) <= _LONGEST else None
        if found is None:
            return _LITERALS.get(word, "")
        return word if found.lastindex is None or math.isfinite(float(word)) else ""

    def _begin_value(self, char: str) -> None:
        level = self._levels[-1] if self._levels else None
        if level and level.opening == "[":
            if not level.empty:
                self._buffer.append(", ")
            level.empty, self._comma, self._name = False, False, ""
        if self._route and not self._dropping:
            slot = self._route(len(self._levels), self._name, char)
            if slot:
                self._divert(slot)

    def _end_value(self) -> None:
        if self._slots and self._slots[-1][0] == len(self._levels):
            _, before, slot = self._slots.pop()
            self._aim(before)
            slot.end()
        self.done = not self._levels
        self._state = self._next

    # ---- lists and objects ----

    def _item(self, window: Window, at: int) -> int:
        return self._close(at) if window.text[at] == "]" else self._value(window, at)

    def _member(self, window: Window, at: int) -> int:
        char = window.text[at]
        if char == "}":
            return self._close(at)
        if char not in "\"'":
            return self._break(at, f"{char!r} where a key begins")
        self._key, self._outside = [], self._target
        self._aim(self._key.append)
        return self._open_string(char, at)

    def _end_key(self, spelled: str) -> None:
        level = self._levels[-1]
        self._name = json.loads(spelled)
        if self._name in level.keys:
            self._drop(self._name)
        else:
            level.keys.add(self._name)
            self._buffer.append(f"{spelled}: " if level.empty else f", {spelled}: ")
        level.empty, self._comma = False, False
        self._state = self._colon

    def _colon(self, window: Window, at: int) -> int:
        if window.text[at] != ":":
            return self._break(at, f"{window.text[at]!r} after a key")
        self._state = self._value
        return at + 1

    def _next(self, window: Window, at: int) -> int:
        char, opening = window.text[at], self._levels[-1].opening
        if char == ",":
            self._comma = True
            self._state = self._member if opening == "{" else self._item
            return at + 1
        return self._close(at) if char == _CLOSING[opening] else self._break(at, f"{char!r} after a value")

    def _close(self, at: int) -> int:
        if self._comma:
            self._comma = False
            self._mended("trailing comma")
        self._buffer.append(_CLOSING[self._levels.pop().opening])
        self._end_value()
        return at + 1

    def _closer(self, window: Window, at: int) -> bool:
        """Whether a closing marker stands at `at`, or may; the value ends there, if it lacks only a few brackets."""
        if window.text[at] not in self._closers_begin:
            return False
        end, _ = first(window, at, self._closers)
        if end < 0:
            return end == MORE
        whole = bool(self._levels) and not self._comma and (self._state == self._next or self._levels[-1].empty)
        if not whole or len(self._levels) > _MISSING:
            self._break(at, "it ends too early")
            return True
        self.short = True
        self._mended("missing " + "".join(_CLOSING[level.opening] for level in reversed(self._levels)))
        while self._levels:
            self._close(at)
        return True

    # ---- strings ----

    def _open_string(self, quote: str, at: int) -> int:
        if quote == "'":
            self._mended("single quotes")
        self._quote, self._plain = quote, _PLAIN[quote]
        self._buffer.append('"')
        return at + 1

    def _string(self, window: Window, at: int) -> int:
        """Read on in a string: a run of plain characters, and the one thing after it that is not plain."""
        text = window.text
        end = self._plain(text, at).end() if self._plain else at
        if end > at:
            self._buffer.append(text[at:end])
            return end
        if at == len(text):
            return at
        char = text[at]
        if char == "\\":
            return self._escape(window, at)
        if char == self._quote:
            self._end_string()
        else:
            if char < " ":
                self._mended("a control character in a string")
            self._buffer.append(escape(char))
        return at + 1

    def _end_string(self) -> None:
        self._plain = None
        self._buffer.append('"')
        if self._key is None:
            self._end_value()
            return
        key = self._key
        self._aim(self._outside)
        self._key = None
        self._end_key("".join(key))

    def _escape(self, window: Window, at: int) -> int:
        text, rest = window.text, len(window.text) - at
        if rest == 1:
            return at
        char = text[at + 1]
        size = 2
        if char == "u":
            found = _HEX.match(text, at + 2)
            digits = len(found.group()) if found else 0
            if digits < 4 and digits + 2 == rest:
                return at
            size = 6 if digits == 4 else 0
        elif char == "'":
            self._mended("an escaped single quote")
            self._buffer.append("'")
            return at + 2
        elif char not in _ESCAPES:
            size = 0
        if size:
            self._buffer.append(text[at : at + size])
            return at + size
        self._mended("an unknown escape")
        self._buffer.append("\\\\")  # the backslash itself, and what follows it as it stands
        return at + 1


class JsonArguments:
    """The arguments of a call that the sink has started: one JSON object, passed on while it arrives.

    closers: markers of the format that end the arguments where they stand outside a string.
    done: the object is complete; `value()` has it. broken: why it cannot be read.
    """

    def __init__(self, sink: Sink, closers: Sequence[str] = ()) -> None:
        self._sink = sink
        self._stream = JsonStream(sink.arguments, closers=closers, expect="{")

    @property
    def done(self) -> bool:
        return self._stream.done

    @property
    def broken(self) -> str:
        return self._stream.broken

    def step(self, window: Window) -> bool:
        """Read on, consuming what is read; return whether the arguments are over, well or badly."""
        self._sink.take(window, self._stream.read(window, window.pos))
        return self._stream.done or bool(self._stream.broken)

    def value(self) -> dict[str, Any]:
        """The arguments, once they are done."""
        return self._stream.value()

    def problems(self) -> list[Problem]:
        """What was mended, and the keys that came twice."""
        return problems(self._stream)


def problems(stream: JsonStream) -> list[Problem]:
    """What `stream` mended, and the keys that came twice."""
    mended = [Problem("repaired", ", ".join(stream.repairs))] if stream.repairs else []
    return mended + [Problem("duplicate_parameter", key, text) for key, text in stream.duplicates]


def whole(text: str, emit: Emit = lambda _: None) -> JsonStream:
    """The stream of `text` with nothing more to come; what follows the value is not read and not JSON."""
    stream = JsonStream(emit)
    window = Window()
    window.text, window.ended = text, True
    end = stream.read(window, 0)
    if not stream.broken and (not stream.done or spaces(window, end) < len(text)):
        stream.done, stream.broken = False, "it is not one JSON value"
    return stream
