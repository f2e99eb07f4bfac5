"""What a model wrote, told from its raw tokens: native calls, fences, code, words, or something that nothing reads.

    written = look(pieces, wire, tools, opener=opener_of(wire, tokenizer), control=model.control)

The readers of `toolcalls` are asked one after the other, the model's own format first, and what each of them needed
is kept: a call that is read although its opener never came says that the reader is forgiving, not that all is well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.looks import call_text
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather, read
from punie_mlx.toolcalls.wire import Format

Piece = tuple[int, str]
NATIVE, LENIENT, OTHER, MALFORMED = "native", "lenient", "other format", "malformed"
FENCE, CODE, PROSE, UNFINISHED = "fence", "code", "prose", "unfinished"
KINDS = (NATIVE, LENIENT, OTHER, MALFORMED, FENCE, CODE, PROSE, UNFINISHED)
SPELLED = "its opener is spelled out in ordinary tokens"
_FENCED = re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_BLANK = re.compile(r"\s+")


@dataclass(frozen=True)
class Opener:
    """What begins a call of the model's format: one token, or several. `head`: that, and all up to the tool's name."""

    text: str
    tokens: tuple[int, ...]
    head: str
    head_tokens: tuple[int, ...]

    @property
    def single(self) -> bool:
        return len(self.tokens) == 1

    def find(self, tokens: Sequence[int]) -> int:
        """Where it begins in `tokens`, -1 where it does not stand in them."""
        size = len(self.tokens)
        places = range(len(tokens) - size + 1 if size else 0)
        return next((i for i in places if tuple(tokens[i : i + size]) == self.tokens), -1)


@dataclass(frozen=True)
class Written:
    """What an answer amounts to. `note` says more about its kind.

    calls: those that the model's own format reads, or else whichever reader reads any. rescued: only a reader that
    looks outside the format (`serve --rescue`) reads them.
    """

    kind: str
    note: str = ""
    calls: tuple[ToolCall, ...] = ()
    rescued: bool = False

    @property
    def is_call(self) -> bool:
        """Whether it is a call, or wanted to be one."""
        return self.kind not in (PROSE, UNFINISHED)


@dataclass(frozen=True)
class _Answer:
    """A raw answer on its way through the readers. `content` is what it says outside of thinking and calls.

    pieces: all of it, of which those from `start` on stand behind the thinking.
    """

    pieces: Sequence[Piece]
    start: int
    wire: Format | None
    tools: Sequence[Tool]
    opener: Opener | None
    native: Reading
    content: str
    cut: bool

    @property
    def text(self) -> str:
        return _joined(self.pieces)

    @property
    def names(self) -> set[str]:
        return {t.name for t in self.tools}

    def opened(self, start: int = 0) -> bool:
        """Whether the opener came in the pieces from `start` on: as its token, where it is one."""
        if self.opener is None:
            return False
        pieces = self.pieces[start:]
        spelled = not self.opener.single and self.opener.text.strip() in _joined(pieces)
        return spelled or self.opener.find([token for token, _ in pieces]) >= 0


def look(
    pieces: Sequence[Piece],
    wire: Format | None,
    tools: Sequence[Tool],
    *,
    opener: Opener | None = None,
    control: Mapping[int, str] | None = None,
    in_reasoning: bool = False,
    cut: bool = False,
) -> Written:
    """What `pieces`, tokens with the text that each completes, amount to; `wire` is None where no format is known.

    in_reasoning: the prompt has opened the thinking. cut: the answer did not end by itself.
    """
    parser = StreamParser(wire or json_fence.FORMAT, tools, starts_in_reasoning=in_reasoning, control=control)
    events = [e for token, said in pieces for e in parser.feed(said, [token])]
    reading = gather([*events, *parser.finish("length" if cut else "stop")], parser.format.joint)
    start = _start(pieces, parser.format.think, in_reasoning)
    behind = _joined(pieces[start:]) if start or not reading.reasoning else ""
    content = reading.content if wire else behind  # with its fences, which the reader has taken out
    answer = _Answer(pieces, start, wire, tools, opener, reading, content, cut)
    for reader in (_native, _other, _fence, _rescued, _code, _broken):
        if found := reader(answer):
            return found
    if not content.strip() and reading.reasoning and cut:
        return Written(UNFINISHED, "its thinking did not end")
    return Written(PROSE, "" if content.strip() else "it says nothing")


def _joined(pieces: Iterable[Piece]) -> str:
    return "".join(text for _, text in pieces)


def _start(pieces: Sequence[Piece], think: tuple[str, str], in_reasoning: bool) -> int:
    """The first piece behind the thinking; 0 where there is none, or it does not end."""
    opening, closing = think
    if not in_reasoning and not (opening and _joined(pieces).lstrip().startswith(opening)):
        return 0
    said = ""
    for i, (_, text) in enumerate(pieces, 1):
        said += text
        if closing and closing in said:
            return i
    return 0


def _native(answer: _Answer) -> Written | None:
    if answer.wire is None:
        return None
    reading = answer.native
    broken = next(iter(reading.malformed), None)
    if reading.calls:
        saved = _saved(answer)
        return Written(LENIENT if saved else NATIVE, saved, tuple(reading.calls))
    if broken is not None:
        return Written(MALFORMED, "it is cut off inside a call" if broken.truncated else broken.reason)
    if answer.opened(answer.start):
        return Written(MALFORMED, "a call is opened and nothing that follows can be read as one")
    if answer.opener is not None and answer.opener.text.strip() in answer.content:
        calls = read(answer.content, answer.wire, answer.tools).calls  # as text alone would be read
        return Written(MALFORMED, SPELLED, tuple(calls)) if calls else None
    return None


def _saved(answer: _Answer) -> str:
    """Why only a forgiving reader reads the calls of `answer`; "" where they are the format's own."""
    opener, reading = answer.opener, answer.native
    if opener is None:
        return ""
    if not answer.opened():
        spelled = opener.text.strip() in answer.text
        return SPELLED if spelled else "its opener never came"
    if _BLANK.sub("", opener.head) not in _BLANK.sub("", answer.text):
        return f"behind its opener stands another format's call, not {opener.head!r}"
    repaired = [p.detail for p in reading.problems if p.kind == "repaired"]
    return f"it had to be repaired: {'; '.join(repaired)}" if repaired else ""


def _other(answer: _Answer) -> Written | None:
    """A call of another format, which its own marker opens: of several that read it, the one that writes it so."""
    found: list[tuple[bool, Written]] = []
    for name, wire in formats.FORMATS.items():
        own = answer.wire is not None and wire.open == answer.wire.open
        if own or not wire.native or not wire.open or wire.open not in answer.text:
            continue
        calls = [c for c in read(answer.text, wire, answer.tools).calls if c.name in answer.names]
        if calls:
            exact = _BLANK.sub("", wire.render(calls[:1])) in _BLANK.sub("", answer.text)
            found.append((exact, Written(OTHER, name, tuple(calls))))
    return max(found, key=lambda pair: pair[0], default=(False, None))[1]


def _fence(answer: _Answer) -> Written | None:
    reading = read(answer.content, json_fence.FORMAT, answer.tools, finish="length" if answer.cut else "stop")
    if reading.calls:
        return Written(FENCE, "", tuple(reading.calls), rescued=bool(_rescue(answer)))
    if reading.malformed:
        return Written(FENCE, f"it cannot be read: {reading.malformed[0].reason}")
    return None


def _rescue(answer: _Answer) -> list[ToolCall]:
    """The calls that `serve --rescue` would find."""
    return read(answer.content, answer.wire or "hermes", answer.tools, rescue=True).calls


def _rescued(answer: _Answer) -> Written | None:
    calls = _rescue(answer)
    if not calls:
        return None
    if any(re.search(rf"(?<![\w.\"']){re.escape(c.name)}\s*\(", answer.content) for c in calls):
        return Written(CODE, "", tuple(calls), rescued=True)
    return Written(MALFORMED, "the JSON of a call without the markers of a format", tuple(calls), rescued=True)


def _code(answer: _Answer) -> Written | None:
    """Code that calls a tool and that no reader takes for a call: with other code around it, or with variables."""
    called = re.compile(rf"(?<![\w.\"'])(?:{'|'.join(map(re.escape, sorted(answer.names)))})\s*\(")
    if not answer.names:
        return None
    pieces = [m[1] for m in _FENCED.finditer(answer.content)]
    pieces += re.findall(r"<code>(.*?)(?:</code>|\Z)", answer.content, re.DOTALL)
    if any(called.search(piece) for piece in pieces):
        return Written(CODE, "no reader takes it for a call")
    return None


def _broken(answer: _Answer) -> Written | None:
    """The look of a call, and nothing that reads it."""
    found = call_text(answer.content, answer.names)
    if found is None:
        opened = [f.open for f in formats.FORMATS.values() if f.native and f.open and f.open in answer.content]
        return Written(MALFORMED, f"{shown(opened[0])} and no call behind it") if opened else None
    if any(m[1] == found for m in _FENCED.finditer(answer.content)):
        return Written(FENCE, "it cannot be read")
    return Written(MALFORMED, "it looks like a call and cannot be read")


def shown(text: str) -> str:
    """`text` so that it can be read and typed: characters of private use by their code points."""
    return _PRIVATE.sub(lambda m: f"<U+{ord(m[0]):04X}>", text)


def mostly(kinds: Iterable[str]) -> str | None:
    """The kind that is met most; of two that are met as often a call goes before words, then the first met."""
    kinds = [k for k in kinds if k != UNFINISHED]
    return max(kinds, key=lambda k: (kinds.count(k), k != PROSE, -kinds.index(k)), default=None)
