"""Calls that are JSON objects with the name in them, alone or in a list:

    {"name": NAME, "arguments": {…}}

The arguments are passed on while they arrive, as soon as the name is known; keys may come in any order. Models also
write `parameters` for `arguments`, arguments as a string of JSON, and the object that chat requests have around a
call: `{"type": "function", "id": ID, "function": {…}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import CallFinished, Malformed, Problem
from punie_mlx.toolcalls.jsonstream import JsonStream, Slot, problems, whole
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, literal, spaces

_ARGUMENTS = ("arguments", "parameters")
_KEYS = frozenset({"name", "type", "id", "function", *_ARGUMENTS})
_FENCE = re.compile(r"```\w*[ \t]*\r?\n?")
_FENCE_BEGUN = re.compile(r"`{1,2}\Z|```\w{0,20}[ \t]*\r?\Z")


def opens(window: Window, at: int) -> int:
    """Whether a JSON object, or a list of them, begins at `at`."""
    if at == len(window.text):
        return MORE
    legal = {"{": "\"'}", "[": "{"}.get(window.text[at])
    if legal is None:
        return NO
    inside = spaces(window, at + 1)
    if inside == len(window.text):
        return MORE
    return inside if window.text[inside] in legal else NO


def fence(window: Window, at: int) -> int:
    """The position after the line that opens a fence of Markdown, `NO` where none does."""
    if not window.ended and _FENCE_BEGUN.match(window.text, at):
        return MORE
    found = _FENCE.match(window.text, at)
    return found.end() if found else NO


def closing(window: Window, marker: str, fenced: bool) -> int:
    """Where the framing after a body ends: the fence, if one is open, and `marker`, each of which may be missing."""
    to, at = window.pos, spaces(window, window.pos)
    for expected in ("```" if fenced else "", marker):
        end = literal(window, at, expected) if expected else NO
        if end == MORE and not window.ended:
            return MORE
        if end > 0:
            to, at = end, spaces(window, end)
    return to


def skip(window: Window, markers: tuple[str, ...]) -> tuple[int, int, str]:
    """Look for the first of `markers`: where it begins, where it ends, and which it is.

    Without one: up to where there is none, `NO` or `MORE`, and "".
    """
    begin = re.compile("[" + re.escape("".join({m[0] for m in markers})) + "]")
    at = window.pos
    while found := begin.search(window.text, at):
        at = found.start()
        end, marker = first(window, at, markers)
        if end > 0 or (end == MORE and not window.ended):
            return at, end, marker
        at += 1
    return len(window.text), NO, ""


class Entry:
    """One object of the body, as far as it has been read: collects what makes a call, and starts it when it can."""

    def __init__(self, sink: Sink, accept: Callable[[str], bool] | None) -> None:
        self.name = self.id = ""
        self.over = self.started = self.wrapped = self.stray = False
        self.has_name = False
        self.reason = "the object has no arguments"
        self.problems: list[Problem] = []
        self._sink = sink
        self._accept = accept
        self._kind = ""  # the first character of the arguments
        self._arguments: list[str] = []

    def member(self, key: str, char: str) -> Slot | None:
        """The slot for the value of `key`, which begins with `char`."""
        if key == "name":
            self.has_name = True
            return _collect(self._named)
        if key == "id":
            return _collect(self._identified)
        if key in _ARGUMENTS and not self._kind:
            return self._arguments_begin(char)
        self.stray = self.stray or key not in _KEYS
        return None

    @property
    def complete(self) -> bool:
        """Whether what was read is a call."""
        return bool(self.name) and not self.reason

    def text(self) -> str:
        """The arguments as JSON."""
        return "".join(self._arguments)

    def _named(self, text: str) -> None:
        name = json.loads(text)
        if isinstance(name, str) and name and (self._accept is None or self._accept(name)):
            self.name = name
            self._start()

    def _identified(self, text: str) -> None:
        value = json.loads(text)
        self.id = value if isinstance(value, str) else ""

    def _arguments_begin(self, char: str) -> Slot | None:
        self._kind = char
        if char == "{":
            self._start()
            return Slot(self._pass_on, self._arguments_end)
        if char in "\"'":
            return _collect(self._decode)
        if char in "nN":
            return _collect(self._empty)
        self.reason = "the arguments are no object"
        return None

    def _start(self) -> None:
        if self.name and self._kind == "{" and not self.started:
            self.started = True
            self._sink.start(self.name)
            self._sink.arguments("".join(self._arguments))

    def _pass_on(self, piece: str) -> None:
        self._arguments.append(piece)
        if self.started:
            self._sink.arguments(piece)

    def _arguments_end(self) -> None:
        self.reason = ""

    def _decode(self, text: str) -> None:
        """Arguments that came as a string of JSON."""
        parts: list[str] = []
        inner = whole(json.loads(text), parts.append)
        self.reason = "the arguments are a string that is not JSON" if inner.broken else ""
        if not inner.broken and not "".join(parts).startswith("{"):
            self.reason = "the arguments are no object"
        self._arguments = parts
        self.problems += [Problem("repaired", "arguments as a string"), *problems(inner)]

    def _empty(self, text: str) -> None:
        self._arguments, self.reason = ["{}"], ""


def _collect(then: Callable[[str], None]) -> Slot:
    parts: list[str] = []
    return Slot(parts.append, lambda: then("".join(parts)))


class JsonBody:
    """Reads one JSON value for the calls in it; `done` when it is over.

    close: the marker after the value; opened: the marker before it, which shows that a broken body is over.
    fenced: a fence of Markdown is open around the value.
    accept: which names are calls. With it, what is no call is text, not malformed.
    nameless: an object without a name is the arguments of a call whose name is missing.
    """

    def __init__(
        self,
        sink: Sink,
        close: str = "",
        *,
        opened: str = "",
        fenced: bool = False,
        accept: Callable[[str], bool] | None = None,
        nameless: bool = False,
    ) -> None:
        self.done = False
        self._sink = sink
        self._close_marker, self._fenced, self._accept, self._nameless = close, fenced, accept, nameless
        self._ends = tuple(m for m in (close, opened) if m)
        self._stream = self._new_stream()
        self._listed = False
        self._entry: Entry | None = None
        self._raw: list[str] = []  # of the entry, and what separates it from the one before
        self._junk: list[str] = []  # entries since the last call that are none
        self.calls = 0
        self._reason = "an empty list"
        self._step = self._read

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _new_stream(self) -> JsonStream:
        return JsonStream(_ignore, closers=(self._close_marker,), route=self._route)

    def _route(self, depth: int, key: str, char: str) -> Slot | None:
        if depth == 0 and char == "[":
            self._listed = True
            return None
        entry, inside = self._entry, depth - self._listed
        if inside == 0:
            self._entry = entry = Entry(self._sink, self._accept)
            return Slot(_ignore, self._entry_ends)
        if entry is None or inside > 1 + entry.wrapped:
            return None
        if inside == 1 and key == "function" and char == "{":
            entry.wrapped = True
            return Slot(_ignore, self._unwrap)
        slot = entry.member(key, char)
        if entry.stray and self._accept and not entry.started:
            self._stream.paused = True
        return slot

    def _unwrap(self) -> None:
        if self._entry:
            self._entry.wrapped = False

    def _entry_ends(self) -> None:
        if self._entry:
            self._entry.over = self._stream.paused = True

    def _read(self, window: Window) -> bool:
        stream = self._stream
        self._raw.append(self._sink.take(window, stream.read(window, window.pos)))
        if stream.paused:
            stream.paused = False
            return self._pause()
        if stream.broken:
            self._reason, self._step = stream.broken, self._skip
            return True
        if stream.done:
            self._step = self._close
            return True
        return window.ended and self._cut_off(window)

    def _pause(self) -> bool:
        """An entry is over, or cannot become a call."""
        entry = self._entry
        if entry is None or not entry.over:
            self._sink.no_call()
            self.done = True
            return True
        if entry.complete:
            self._finish(entry)
        else:
            self._no_entry(entry, "".join(self._raw).lstrip(" \t\r\n,["))
        self._raw, self._entry = [], None
        self._stream.repairs.clear()
        self._stream.duplicates.clear()
        return True

    def _no_entry(self, entry: Entry, raw: str) -> None:
        """The object is no call, if it is not the arguments of one without a name."""
        if self._nameless and not self._listed and not entry.has_name and not whole(raw).broken:
            self._finish_nameless(raw)
        else:
            self._junk.append(raw)
            self._reason = entry.reason if entry.name else "the object has no name of a function"

    def _finish(self, entry: Entry) -> None:
        sink = self._sink
        if not entry.started:
            sink.start(entry.name)
            sink.arguments(entry.text())
        value = schema.loads(entry.text())
        found = [*entry.problems, *problems(self._stream)]
        found += [Problem("not_a_call", "an entry of the list", raw) for raw in self._junk]
        sink.finish(value, [*found, *schema.mismatches(entry.name, value, sink.tools)], id=entry.id)
        self._junk = []
        self.calls += 1

    def _finish_nameless(self, raw: str) -> None:
        sink, parts = self._sink, []
        stream = whole(raw, parts.append)
        sink.start("")
        sink.arguments("".join(parts))
        missing = [] if sink.tools else [Problem("missing_name", "a call without a name")]
        sink.finish(stream.value(), [*missing, *problems(stream)])
        self.calls += 1

    def _skip(self, window: Window) -> bool:
        """The value cannot be read: what comes up to a marker belongs to it."""
        end = 0
        if self._ends and not self._accept:
            at, end, marker = skip(window, self._ends)
            self._sink.take(window, end if marker == self._close_marker and end > 0 else at)
        if end < 0 and not window.ended:
            return False
        self._no_call(self._reason)
        return True

    def _no_call(self, reason: str) -> None:
        if self._accept and not (self._entry and self._entry.started):
            self._sink.no_call()
        else:
            self._sink.malformed(reason)
        self.done = True

    def _close(self, window: Window) -> bool:
        """The closing marker: framing after a call, part of the raw text of what is none."""
        to = closing(window, self._close_marker, self._fenced)
        if to == MORE:
            return False
        if to == window.pos and self.calls and (another := self._another(window)) != NO:
            return another != MORE
        if not self.calls:
            self._sink.take(window, to)
            self._no_call(self._reason)
            return True
        self._end_list()
        self._sink.mark(window, to)
        self.done = True
        return True

    def _another(self, window: Window) -> int:
        """Begin the next object, where one follows before the block is closed: some models write calls like that."""
        at = spaces(window, window.pos)
        if not self._close_marker or self._listed or self._junk or window.text[at : at + 1] != "{":
            return NO
        found = opens(window, at)
        if found == MORE and window.ended:
            return NO
        if found > 0:
            self._sink.mark(window, at)
            self._stream, self._step = self._new_stream(), self._read
        return found

    def _end_list(self) -> None:
        """What was taken since the last call: the closing bracket, and entries that are none."""
        if self._junk:
            self._sink.malformed("an entry of the list is no call")
        else:
            self._sink.no_call(framing=True)

    def _cut_off(self, window: Window) -> bool:
        self.done = True
        entry, sink = self._entry, self._sink
        self._raw.append(sink.take(window, len(window.text)))
        if entry is None and self.calls:
            self._end_list()
        elif self._accept and not (entry and (entry.started or (entry.name and sink.tools))):
            sink.no_call()
        else:
            sink.cut_off(entry.name if entry else "")
        return True


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True)
class Found:
    """A call in a JSON body; `repaired` says what had to be mended to read it."""

    name: str
    arguments: dict[str, Any]
    repaired: str = ""


def decode(body: str) -> tuple[list[Found], str, list[str]]:
    """The calls of a JSON body, why there are none, and the entries of a list that are no calls."""
    sink, window = Sink(()), Window()
    window.text, window.ended = body, True
    reader = JsonBody(sink)
    while not reader.done:
        reader.step(window)
    found, junk, reason = [], [], ""
    if spaces(window, window.pos) < len(body):
        return [], "the body is not JSON", []
    for event in sink.events:
        if isinstance(event, CallFinished):
            repaired = "; ".join(p.detail for p in event.problems if p.kind == "repaired")
            found.append(Found(event.call.name, event.call.arguments, repaired))
            junk += [p.raw for p in event.problems if p.kind == "not_a_call"]
        elif isinstance(event, Malformed):
            junk.append(event.raw)
            reason = event.reason
    return found, "" if found else reason, junk if found else []
