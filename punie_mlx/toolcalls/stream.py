"""The reader: text in pieces of any size in, events out; one pass, nothing lost.

    parser = StreamParser("qwen3_coder", tools)
    for piece in pieces:
        events = parser.feed(piece)
    events = parser.finish("stop")

Thinking and answering are two modes that tags switch between; a call may stand in either. A tag counts only where it
can mean something: `<tool_call>` where a call follows, `<think>` where an answer has not begun. Anywhere else it is
text, since models also talk about tags. White space before a tag is held back until it is known what it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import CallFinished, Event, Malformed, Problem, Reasoning, Text, Tool, ToolCall
from punie_mlx.toolcalls.formats import hermes, json_fence, qwen3_coder
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces

THINK, THINK_END = "<think>", "</think>"
OPEN = "<tool_call>"


class StreamParser:
    """Reads what a model writes; both bodies of `<tool_call>` (tags and JSON), whichever the format renders."""

    def __init__(self, format: str, tools: Sequence[Tool] = (), *, starts_in_reasoning: bool = False) -> None:
        self._format = formats.get(format)
        if not self._format.native:
            raise ConfigError(f"{format} is not read from a stream: use punie_mlx.toolcalls.formats.{format}.split")
        self._window = Window()
        self._sink = Sink(tools)
        self._sink.in_reasoning = starts_in_reasoning
        self._fresh = True  # nothing but white space since the beginning, the last call or the last switch
        self._just_closed = False  # ... and that was </think>
        self._body: qwen3_coder.Body | hermes.Body | None = None

    def feed(self, text: str) -> list[Event]:
        """Take in `text`; return the events that it decides."""
        if text and self._window.feed(text):
            self._run()
        return self._drain()

    def finish(self, reason: str = "stop") -> list[Event]:
        """End the text: `reason` is "stop" where the model ended by itself, "length" where it was cut off."""
        if not self._window.ended:
            self._window.end(clean=reason == "stop")
            self._run()
        return self._drain()

    def _drain(self) -> list[Event]:
        events, self._sink.events = self._sink.events, []
        return events

    def _run(self) -> None:
        while self._read_body() if self._body else self._read_text():
            pass

    def _read_body(self) -> bool:
        assert self._body is not None
        moved = self._body.step(self._window)
        if self._body.done:
            self._body = None
            self._fresh, self._just_closed = True, False
        return moved

    def _read_text(self) -> bool:
        window = self._window
        tag = window.text.find("<", window.pos)
        end = tag if tag >= 0 else len(window.text)
        self._emit(window.pos + len(window.text[window.pos : end].rstrip()))
        if tag < 0:
            if window.ended:
                self._white_space(end)
            return False
        found = self._tag(tag)
        if found == MORE:
            return False
        if found == NO:
            self._emit(tag + 1)
        return True

    def _emit(self, to: int) -> None:
        """Consume the window up to `to` as part of the answer or the thinking."""
        piece = self._window.text[self._window.pos : to]
        self._window.pos = to
        if piece:
            self._fresh = False
            self._sink.events.append(Reasoning(piece) if self._sink.in_reasoning else Text(piece))

    def _white_space(self, to: int) -> None:
        """Consume white space up to `to`: framing where it stands alone, else part of the text before it."""
        if self._fresh:
            self._sink.mark(self._window, to)
        else:
            self._emit(to)

    def _tag(self, at: int) -> int:
        """Act on the tag at `at`: a position where it meant something, `NO` where it is text, or `MORE`."""
        found = (self._think(at), self._call(at), self._bare_function(at))
        if max(found) > 0:
            return max(found)
        return MORE if MORE in found and not self._window.ended else NO

    def _think(self, at: int) -> int:
        window, inside = self._window, self._sink.in_reasoning
        opening, closing = literal(window, at, THINK), literal(window, at, THINK_END)
        if opening > 0:
            if not self._fresh:
                return NO
            self._sink.mark(window, opening)
            self._sink.in_reasoning, self._just_closed = True, False
        elif closing > 0:
            if not inside and not (self._fresh and self._just_closed):
                return NO
            self._white_space(at)
            self._sink.mark(window, closing)
            self._sink.in_reasoning, self._fresh, self._just_closed = False, True, True
        return max(opening, closing) if max(opening, closing) > 0 else min(opening, closing)

    def _call(self, at: int) -> int:
        window = self._window
        end = literal(window, at, OPEN)
        if end < 0:
            return end
        body = spaces(window, end)
        tags, name = qwen3_coder.opens(window, body)
        if tags > 0:
            return self._open(at, body, qwen3_coder.Body(self._sink, name))
        json = hermes.opens(window, body)
        if json > 0:
            return self._open(at, body, hermes.Body(self._sink))
        if MORE not in (tags, json):
            return NO
        if window.ended and name:  # a call has begun, its name is known, and that is all there is
            self._white_space(at)
            self._sink.take(window, len(window.text))
            self._sink.malformed(f"the call of {name} is cut off")
            return len(window.text)
        return MORE

    def _bare_function(self, at: int) -> int:
        if not self._format.bare_function:
            return NO
        end, name = qwen3_coder.opens(self._window, at)
        if name and name not in self._sink.tools:
            return NO
        return self._open(at, at, qwen3_coder.Body(self._sink, name)) if end > 0 else end

    def _open(self, at: int, body: int, reader: qwen3_coder.Body | hermes.Body) -> int:
        self._white_space(at)
        self._sink.take(self._window, body)
        self._body = reader
        return self._window.pos + 1


@dataclass(frozen=True)
class Reading:
    """All that a text holds. `content` and `reasoning` have no malformed calls in them: `visible` adds those."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    events: tuple[Event, ...] = ()

    def visible(self, reasoning: bool = False) -> str:
        """The answer (or the thinking) with the raw text of malformed calls in their places."""
        out = []
        for event in self.events:
            if isinstance(event, Reasoning if reasoning else Text):
                out.append(event.text)
            elif isinstance(event, Malformed) and event.in_reasoning == reasoning:
                out.append(event.raw)
        return "".join(out)


def gather(events: Sequence[Event]) -> Reading:
    """The reading that `events` make up."""
    malformed = [e for e in events if isinstance(e, Malformed)]
    finished = [e for e in events if isinstance(e, CallFinished)]
    return Reading(
        content="".join(e.text for e in events if isinstance(e, Text)),
        reasoning="".join(e.text for e in events if isinstance(e, Reasoning)),
        calls=[e.call for e in finished],
        malformed=malformed,
        problems=[p for e in finished for p in e.problems] + [Problem("malformed", m.reason, m.raw) for m in malformed],
        events=tuple(events),
    )


def read(
    text: str,
    format: str,
    tools: Sequence[Tool] = (),
    *,
    starts_in_reasoning: bool = False,
    finish: str = "stop",
    chunk: int = 0,
) -> Reading:
    """Everything in `text`, read whole or `chunk` characters at a time. Raises `ConfigError` for an unknown format."""
    if not formats.get(format).native:
        return _read_fences(text)
    parser = StreamParser(format, tools, starts_in_reasoning=starts_in_reasoning)
    size = chunk or len(text) or 1
    events = [e for i in range(0, len(text), size) for e in parser.feed(text[i : i + size])]
    return gather([*events, *parser.finish(finish)])


def _read_fences(text: str) -> Reading:
    """Calls in fences: what the converter reads, as one reading."""
    events: list[Event] = []
    index = 0
    for segment in json_fence.split(text):
        if segment.reason:
            events.append(Malformed(segment.raw, segment.reason))
        elif not segment.calls:
            events.append(Text(segment.raw))
        for i, call in enumerate(segment.calls):
            problems = (Problem("repaired", call.repaired),) if call.repaired else ()
            raw = segment.raw if i == 0 else ""
            events.append(CallFinished(index, ToolCall(call.name, call.arguments), problems, raw))
            index += 1
    return gather(events)
