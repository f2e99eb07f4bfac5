"""Text with calls in it: finds the tags that mean something, and hands each call to the reader of its body.

Thinking and answering are two modes that tags switch between; a call may stand in either. A tag counts only where it
can mean something: `<tool_call>` where a call follows, `<think>` where an answer has not begun. Anywhere else it is
text, since models also talk about tags. White space before a tag is held back until it is known what it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial

from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces
from punie_mlx.toolcalls.wire import Body, Format, Opener, Opening

Decider = Callable[[Window, int], int]


@cache
def _any_of(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(characters)}]")


class Prose:
    """Reads text in the format `format`; what it finds goes to `sink`."""

    def __init__(self, format: Format, sink: Sink) -> None:
        self._format = format
        self._sink = sink
        self._hint = _any_of(format.hints)
        self._just_closed = False  # fresh, and what came before was the end of thinking
        self._body: Body | None = None
        self._deciders: tuple[Decider, ...] = (self._think, *self._calls(), self._turn_end)
        self._waiting: tuple[Decider, ...] = ()  # those that need more text to decide on the tag
        self._held = 0  # how far behind the window's position that tag is

    def _calls(self) -> tuple[Decider, ...]:
        """What says whether a call begins at a place."""
        return tuple(partial(self._call, opener) for opener in self._format.openers)

    def step(self, window: Window) -> bool:
        """Read on; return whether there may be more to decide."""
        if self._body is None:
            return self._read_text(window)
        moved = self._body.step(window)
        if self._body.done:
            self._body = None
            self._sink.fresh, self._just_closed = True, False
        return moved

    def where(self, window: Window) -> str:
        """Between the calls of a block, or behind a marker that opens one and what is still to be decided."""
        if self._body is not None:
            return "between"
        opening = self._format.open if self._waiting else ""
        return "call" if opening and literal(window, window.pos + self._held, opening) > 0 else ""

    def _read_text(self, window: Window) -> bool:
        if self._waiting:
            return self._decide(window, window.pos + self._held)
        found = self._hint.search(window.text, window.pos)
        end = found.start() if found else len(window.text)
        self._sink.text(window, window.pos + len(window.text[window.pos : end].rstrip()))
        if found is None:
            if window.ended:
                self._white_space(window, end)
            return False
        return self._decide(window, end)

    def _decide(self, window: Window, at: int) -> bool:
        decided = self._tag(window, at)
        if decided == MORE:
            self._held = at - window.pos
            return False
        if decided == NO:
            self._sink.text(window, at + 1)
        return True

    def _white_space(self, window: Window, to: int, framing: str = "") -> None:
        """Consume white space up to `to`: framing where it stands alone, else part of the text before it."""
        if not self._sink.fresh:
            keep = to - len(framing) if window.text.endswith(framing, window.pos, to) else to
            self._sink.text(window, keep)
        self._sink.mark(window, to)

    def _tag(self, window: Window, at: int) -> int:
        """Act on what begins at `at`: a position where it meant something, `NO` where it is text, or `MORE`.

        A `NO` is final, so while a tag waits for more text only those are asked again that are not decided.
        """
        asked, self._waiting, waiting = self._waiting or self._deciders, (), []
        for decide in asked:
            decided = decide(window, at)
            if decided > 0:
                return decided
            if decided == MORE:
                waiting.append(decide)
        if window.ended or not waiting:
            return NO
        self._waiting = tuple(waiting)
        return MORE

    def _think(self, window: Window, at: int) -> int:
        if not self._format.think[0]:
            return NO
        opening, closing = (literal(window, at, tag) for tag in self._format.think)
        if opening > 0:
            if not self._sink.fresh:
                return NO
            self._sink.mark(window, opening)
            self._sink.in_reasoning, self._just_closed = True, False
        elif closing > 0:
            if not self._sink.in_reasoning and not (self._sink.fresh and self._just_closed):
                return NO
            self._white_space(window, at)
            self._sink.mark(window, closing)
            self._sink.in_reasoning, self._sink.fresh, self._just_closed = False, True, True
        return max(opening, closing) if max(opening, closing) > 0 else min(opening, closing)

    def _call(self, opener: Opener, window: Window, at: int) -> int:
        found = opener(window, at, self._sink, self._format)
        if found.body is not None:
            return self._open(window, at, found)
        if found.end == MORE and window.ended and found.name:
            return self._cut_off(window, at, found.name)
        return MORE if found.end == MORE else NO

    def _open(self, window: Window, at: int, found: Opening) -> int:
        self._white_space(window, at, self._format.framing)
        self._sink.take(window, found.end)
        self._body = found.body
        return window.pos + 1

    def _cut_off(self, window: Window, at: int, name: str) -> int:
        """A call has begun, its name is known, and that is all there is."""
        self._white_space(window, at)
        self._sink.take(window, len(window.text))
        self._sink.cut_off(name)
        return len(window.text)

    def _turn_end(self, window: Window, at: int) -> int:
        """A token that ends the turn is no text, if the turn does end there."""
        more = False
        for marker in self._format.ends:
            end = literal(window, at, marker)
            if end > 0 and spaces(window, end) == len(window.text):
                if not window.ended:
                    return MORE
                self._white_space(window, at)
                self._sink.mark(window, len(window.text))
                return end
            more = more or end == MORE
        return MORE if more else NO
