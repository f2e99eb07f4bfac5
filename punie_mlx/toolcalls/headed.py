"""Calls whose name stands in a header before their JSON arguments: the shape of Mistral, Kimi and DeepSeek.

    SECTION  HEADER {…} END  HEADER {…} END  SECTION END

A `Layout` says how one format spells that; the header, which differs most, is read by a function of the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Problem
from punie_mlx.toolcalls.jsoncalls import closing, fence, skip
from punie_mlx.toolcalls.jsonstream import JsonArguments
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, literal, spaces
from punie_mlx.toolcalls.wire import Format, Opener, Opening

_LIMIT = 200  # characters of a header


class Header(NamedTuple):
    """Whether a call begins at a place: `end` is where its arguments do, or `NO`, or `MORE`.

    `name`: of the call; with `MORE`, where it is known already. `fenced`: a fence of Markdown is open around the
    arguments.
    """

    end: int
    name: str = ""
    id: str = ""
    fenced: bool = False


NO_HEADER, MORE_HEADER = Header(NO), Header(MORE)


@dataclass(frozen=True)
class Layout:
    """How a format spells such calls.

    header: reads the header at a place; `first` where a section has just begun.
    begin: the marker that a header begins with, where it has one. end: the marker after the arguments.
    section, section_end: the markers around all calls, as models spell them. bare: calls may come without a section.
    closers: other markers that end the arguments.
    """

    header: Callable[[Window, int, bool], Header]
    section: tuple[str, ...]
    section_end: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
    bare: bool = False
    closers: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, ...]:
        """Every marker that shows that the arguments of a call are over."""
        return tuple(m for m in (self.end, *self.section_end, *self.section, self.begin, *self.closers) if m)


def until(window: Window, at: int, marker: str) -> tuple[int, int]:
    """Look for `marker` within the length of a header: where it begins and ends; twice `NO`, or twice `MORE`."""
    text = window.text
    found = text.find(marker[0], at, at + _LIMIT)
    if found < 0:
        more = MORE if len(text) - at < _LIMIT else NO
        return more, more
    end = literal(window, found, marker)
    return (found, end) if end > 0 else (end, end)


def arguments_follow(window: Window, at: int, name: str, id: str = "", end_marker: str = "") -> Header:
    """The header of a call, if its arguments begin at `at` after white space, in a fence or not, or there are none."""
    at = spaces(window, at)
    fenced = fence(window, at)
    if fenced == MORE:
        return Header(MORE, name)
    if fenced > 0:
        at = spaces(window, fenced)
    if at == len(window.text):
        return Header(MORE, name)
    none = literal(window, at, end_marker) if end_marker and fenced < 0 else NO
    if window.text[at] == "{" or none > 0:
        return Header(at, name, id, fenced > 0)
    return Header(none, name if none == MORE else "")


def opener(layout: Layout) -> Opener:
    """Says whether a section, or a call by itself, begins at a place."""

    def begins(window: Window, at: int, sink: Sink, format: Format) -> Opening:
        section = inside = first(window, at, layout.section)[0]
        if section < 0:
            if section == MORE or not layout.bare:
                return Opening(section)
            inside = at
        inside = spaces(window, inside)
        closing = first(window, inside, layout.section_end)[0] if section > 0 else NO
        header = layout.header(window, inside, section > 0)
        if header.end > 0 or closing > 0:
            return Opening(at, HeadedBody(sink, layout))
        return Opening(MORE, name=header.name) if MORE in (header.end, closing) else Opening(NO)

    return begins


class HeadedBody:
    """Reads the calls of one section; `done` when it is over."""

    def __init__(self, sink: Sink, layout: Layout) -> None:
        self.done = False
        self._sink = sink
        self._layout = layout
        self._first = True
        self._header = NO_HEADER
        self._arguments = JsonArguments(sink)
        self._step = self._section

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _section(self, window: Window) -> bool:
        end = first(window, window.pos, self._layout.section)[0]
        self._first = end > 0
        self._sink.mark(window, max(end, window.pos))
        self._step = self._between
        return True

    def _between(self, window: Window) -> bool:
        """Between calls: the next header, or the end of the section; anything else is text again."""
        layout, at = self._layout, spaces(window, window.pos)
        header = layout.header(window, at, self._first)
        if header.end > 0:
            self._sink.mark(window, at)
            self._begin(window, header)
            return True
        closing = first(window, at, layout.section_end)[0]
        if closing > 0:
            self._sink.mark(window, closing)
        elif MORE in (header.end, closing) and not window.ended:
            return False
        elif header.end == MORE and header.name:
            self._sink.mark(window, at)
            self._sink.take(window, len(window.text))
            self._sink.cut_off(header.name)
        self.done = True
        return True

    def _begin(self, window: Window, header: Header) -> None:
        self._first = False
        self._header = header
        self._arguments = JsonArguments(self._sink, self._layout.ends)
        self._sink.take(window, header.end)
        self._sink.start(header.name)
        self._step = self._read if window.text[window.pos] == "{" else self._empty

    def _empty(self, window: Window) -> bool:
        self._sink.arguments("{}")
        self._finish({}, [Problem("repaired", "no arguments")])
        return True

    def _read(self, window: Window) -> bool:
        read = self._arguments
        if not read.step(window):
            return window.ended and self._cut_off(window)
        if read.broken:
            self._step = self._skip
        else:
            self._finish(read.value(), read.problems())
        return True

    def _finish(self, value: dict[str, object], problems: list[Problem]) -> None:
        sink, name = self._sink, self._header.name
        if not name and not sink.tools:
            problems.append(Problem("missing_name", "a call without a name"))
        sink.finish(value, [*problems, *schema.mismatches(name, value, sink.tools)], id=self._header.id)
        self._step = self._end

    def _cut_off(self, window: Window) -> bool:
        self._sink.take(window, len(window.text))
        self._sink.cut_off(self._header.name)
        self.done = True
        return True

    def _skip(self, window: Window) -> bool:
        """The arguments cannot be read: what comes up to a marker belongs to them."""
        layout, end = self._layout, 0
        if layout.end:
            at, end, marker = skip(window, layout.ends)
            self._sink.take(window, end if marker == layout.end and end > 0 else at)
        if end < 0 and not window.ended:
            return False
        self._sink.malformed(self._arguments.broken)
        self._step = self._between
        return True

    def _end(self, window: Window) -> bool:
        """The marker after the arguments may be missing."""
        to = closing(window, self._layout.end, self._header.fenced)
        if to == MORE:
            return False
        self._sink.mark(window, to)
        self._step = self._between
        return True
