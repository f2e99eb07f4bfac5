"""The reader: text in pieces of any size in, events out; one pass, nothing lost.

    parser = StreamParser("qwen3_coder", tools)
    for piece in pieces:
        events = parser.feed(piece)
    events = parser.finish("stop")

A caller that has token ids gives them with the text that they decode to, and the vocabulary's control tokens at the
start; a marker that is one of these then counts only as that token, and its characters spelled out are data:

    parser = StreamParser("qwen3_coder", tools, control={151657: "<tool_call>", 151658: "</tool_call>"})
    events = parser.feed("<tool_call>", [151657])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import CallFinished, Event, Malformed, Problem, Reasoning, Text, Tool, ToolCall
from punie_mlx.toolcalls.prose import Prose
from punie_mlx.toolcalls.rescue import Rescue
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import Window
from punie_mlx.toolcalls.wire import Format

STATES = ("content", "reasoning", "call", "arguments", "between")


class StreamParser:
    """Reads what a model writes in `format`: a name of the table, or a `Format` with markers of its own.

    `starts_in_reasoning`: the prompt has opened the thinking already. `rescue`: look for calls that were written
    outside the wire format, too. `control`: token id → spelling of the vocabulary's control tokens, for a caller that
    gives token ids. Raises `ConfigError` for an unknown format.
    """

    def __init__(
        self,
        format: str | Format,
        tools: Sequence[Tool] = (),
        *,
        starts_in_reasoning: bool = False,
        rescue: bool = False,
        control: Mapping[int, str] | None = None,
    ) -> None:
        self.format = wire = formats.get(format) if isinstance(format, str) else format
        self._control = control or {}
        self._awaited: list[str] = []  # control tokens whose text has not come yet
        self._window = Window(solid=self._control.values())
        self._sink = Sink(tools)
        self._sink.in_reasoning = starts_in_reasoning
        reader = (wire.reader or Prose)(wire, self._sink)
        self._reader = Rescue(reader, self._sink) if rescue else reader
        self._step = self._reader.step

    @property
    def state(self) -> str:
        """Where the text that was read ends: in one of `STATES`.

        content, reasoning: in the answer, in the thinking. call: a call has begun, its arguments have not. arguments:
        in those. between: after a call of a block that may hold another, or before a message of several. Text that is
        held back until it is decided counts as what stood before it.
        """
        text = "reasoning" if self._sink.in_reasoning else "content"
        return self._sink.state or self._reader.where(self._window) or text

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Event]:
        """Take in `text`, and the ids of the tokens that it was decoded from; return the events that it decides.

        Text may come later than its token, as detokenizers hold it back. Where the same characters may stand in one
        piece both as a control token and as data, feed each token by itself.
        """
        at = self._locate(text, tokens) if tokens or self._awaited else ()
        if text and self._window.feed(text, at):
            while self._step(self._window):
                pass
        events, self._sink.events = self._sink.events, []
        return events

    def finish(self, reason: str = "stop") -> list[Event]:
        """End the text: `reason` is "stop" where the model ended by itself, "length" where it was cut off."""
        if not self._window.ended:
            self._window.end(clean=reason == "stop")
            while self._step(self._window):
                pass
        events, self._sink.events = self._sink.events, []
        return events

    def _locate(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Where in `text` the control tokens begin."""
        self._awaited += [self._control[token] for token in tokens if token in self._control]
        found, start = [], 0
        while self._awaited:
            marker = self._awaited[0]
            last = len(self._awaited) == 1 and text.endswith(marker)
            at = len(text) - len(marker) if last else text.find(marker, start)
            if at < start:
                break
            found.append(at)
            start = at + len(marker)
            self._awaited.pop(0)
        return found


class Joined:
    """Puts texts of an answer together: with `joint` between two that something else parts, as the format has it."""

    def __init__(self, joint: str) -> None:
        self._joint = joint
        self._begun = self._parted = False

    def next(self, piece: str) -> str:
        """What to show for the next event: `piece` is its text, "" where it is something else."""
        if not piece:
            self._parted = self._begun
            return ""
        shown = self._joint + piece if self._parted else piece
        self._begun, self._parted = True, False
        return shown


@dataclass(frozen=True)
class Reading:
    """All that a text holds. `content` and `reasoning` have no malformed calls in them: `visible` adds those."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    events: tuple[Event, ...] = ()
    joint: str = ""

    def visible(self, reasoning: bool = False) -> str:
        """The answer (or the thinking) with the raw text of malformed calls in their places, truncated ones apart."""
        joined = Joined(self.joint)
        return "".join(joined.next(_shown(e, reasoning) or _broken(e, reasoning)) for e in self.events)


def _shown(event: Event, reasoning: bool) -> str:
    return event.text if isinstance(event, Reasoning if reasoning else Text) else ""


def _broken(event: Event, reasoning: bool) -> str:
    shown = isinstance(event, Malformed) and event.in_reasoning == reasoning and not event.truncated
    return event.raw if shown else ""


def gather(events: Sequence[Event], joint: str = "") -> Reading:
    """The reading that `events` make up; `joint` is that of their format."""
    content, reasoning = Joined(joint), Joined(joint)
    malformed = [e for e in events if isinstance(e, Malformed)]
    finished = [e for e in events if isinstance(e, CallFinished)]
    return Reading(
        content="".join(content.next(_shown(e, reasoning=False)) for e in events),
        reasoning="".join(reasoning.next(_shown(e, reasoning=True)) for e in events),
        calls=[e.call for e in finished],
        malformed=malformed,
        problems=[p for e in finished for p in e.problems]
        + [Problem("rescued", e.call.name, e.raw) for e in finished if e.rescued]
        + [Problem("truncated" if m.truncated else "malformed", m.reason, m.raw) for m in malformed],
        events=tuple(events),
        joint=joint,
    )


def read(
    text: str,
    format: str | Format,
    tools: Sequence[Tool] = (),
    *,
    starts_in_reasoning: bool = False,
    rescue: bool = False,
    finish: str = "stop",
    chunk: int = 0,
) -> Reading:
    """Everything in `text`, read whole or `chunk` characters at a time. Raises `ConfigError` for an unknown format."""
    wire = formats.get(format) if isinstance(format, str) else format
    parser = StreamParser(wire, tools, starts_in_reasoning=starts_in_reasoning, rescue=rescue)
    size = chunk or len(text) or 1
    events = [e for i in range(0, len(text), size) for e in parser.feed(text[i : i + size])]
    return gather([*events, *parser.finish(finish)], wire.joint)
