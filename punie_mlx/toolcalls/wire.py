"""What a wire format is made of: the shape that the modules in `formats/` fill in, and that the readers work with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window


class Reader(Protocol):
    """Reads a stream: `step` decides what it can of the window and says whether to call it again."""

    def step(self, window: Window, /) -> bool: ...

    def where(self, window: Window, /) -> str:
        """Where the text stands that no call has taken: "call", "between" (calls, messages), or "" for neither."""
        ...


class Body(Protocol):
    """Reads one call, or several that share a block; `done` when it is over."""

    done: bool

    def step(self, window: Window, /) -> bool: ...


class Opening(NamedTuple):
    """Whether a call begins at a place: `end` is where its `body` reads on, or `NO`, or `MORE`.

    `name`: with `MORE`, the call's name where that is known already, so that a cut there is a cut call and no text.
    """

    end: int
    body: Body | None = None
    name: str = ""


NO_OPENING = Opening(NO)
MORE_OPENING = Opening(MORE)
Opener = Callable[[Window, int, Sink, "Format"], Opening]


@dataclass(frozen=True)
class Format:
    """One wire format, by what it writes.

    render: calls → the text of an assistant turn that makes them, as the model family's own template writes it.
    openers: each says whether a call begins at a place of the text; the first that does reads it.
    hints: the characters at which a call, a tag of the format or an end of turn can begin.
    open, close: the markers around a call or a block of calls, where the format has them.
    think: the tags around thinking; empty where it has none.
    framing: the white space that the template puts between an answer and the first call.
    joint: what stands between two texts of one answer, where something else parts them.
    ends: tokens that end a turn, in case a caller leaves them in the text.
    reader: for a format whose text is structured throughout; it takes the place of `Prose` and the openers.
    grammar: how calls of the given tools stand in a turn, as rules of `toolcalls.grammar`.
    native: whether a server may trust it; the others are read by the converter, and by rescue.
    """

    name: str
    render: Callable[[Sequence[ToolCall]], str]
    openers: tuple[Opener, ...] = ()
    hints: str = "<"
    open: str = ""
    close: str = ""
    think: tuple[str, str] = ("<think>", "</think>")
    framing: str = ""
    joint: str = ""
    ends: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    reader: Callable[[Format, Sink], Reader] | None = None
    grammar: Callable[[Rules, Format, Sequence[Tool]], Frame] | None = field(default=None)
    native: bool = True
