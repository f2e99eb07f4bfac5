"""Gemma 4 and FunctionGemma: calls with strings between markers of their own.

    <|tool_call>call:NAME{KEY:<|"|>text<|"|>,KEY:1,KEY:[true,{KEY:null}]}<tool_call|>
    <start_function_call>call:NAME{KEY:<escape>text<escape>}<end_function_call>

Nothing is escaped in a string, so its end needs a rule: a marker ends it where a comma and the next key, or a closing
bracket follows; any other is data. A string that holds just that can be told apart by token ids only. A word without
markers is a string, and reported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.toolcalls.blocks import Block
from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import json_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern, quote
from punie_mlx.toolcalls.grammar_strings import Limits
from punie_mlx.toolcalls.grammar_values import Style
from punie_mlx.toolcalls.jsonwriter import DEPTH, SPECIAL, Transcriber
from punie_mlx.toolcalls.pystream import CONSTANTS
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, literal, spaces
from punie_mlx.toolcalls.wire import NO_OPENING, Format, Opening


@dataclass(frozen=True)
class Spelling:
    """The markers around a call, and the one around strings."""

    open: str
    close: str
    quote: str


GEMMA_4 = Spelling("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Spelling("<start_function_call>", "<end_function_call>", "<escape>")
THINK = ("<|channel>thought\n", "<channel|>")
_CHANNEL = "<|channel>"
_HEAD = re.compile(r"call:\s*([^\s{}<>()\[\],\"']{1,200})\s*\{")
_HEAD_BEGINS = re.compile(r"(?:c(?:a(?:l(?:l(?::\s*([^\s{}<>()\[\],\"']{0,200})\s*)?)?)?)?)?\Z")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_KEY = re.compile(r"([^\s:{}\[\],<>\"'][^:{}\[\],<>\"'\n]{0,200})\s*:|\"((?:[^\"\\\n]|\\.){0,200})\"\s*:")
_KEY_BEGINS = re.compile(r"(?:[^\s:{}\[\],<>\"'][^:{}\[\],<>\"'\n]{0,200}\s*|\"(?:[^\"\\\n]|\\.?){0,200}(?:\"\s*)?)\Z")
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BARE = re.compile(r"[^,}\]<]*")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?\Z", re.ASCII)
_RUN: Callable[..., Any] = re.compile(f"[^<{SPECIAL}]*").match
_LONGEST = 4000  # digits; Python converts no more
_MISSING = 2  # brackets that may be missing before a closing marker


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as Gemma 4's template writes them, but that keys keep their order."""
    return "".join(f"{GEMMA_4.open}call:{c.name}{_value(c.arguments)}{GEMMA_4.close}" for c in calls)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f"{GEMMA_4.quote}{value}{GEMMA_4.quote}"
    if isinstance(value, Mapping):
        entries = (f"{k if _PLAIN_KEY.match(k) else _value(k)}:{_value(v)}" for k, v in value.items())
        return "{" + ",".join(entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    return dumps(value)


def opens(window: Window, at: int) -> tuple[int, str]:
    """Match `call:NAME{` at `at`: the position after the bracket, and the name."""
    found = _HEAD.match(window.text, at)
    if found:
        return found.end(), found[1]
    return (MORE if _HEAD_BEGINS.match(window.text, at) else NO), ""


def in_block(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A call between the markers of either spelling."""
    spellings = (Spelling(format.open, format.close, GEMMA_4.quote), FUNCTION_GEMMA)
    end, opening = first(window, at, [s.open for s in spellings])
    if end < 0:
        return Opening(end)
    body = spaces(window, end)
    found, name = opens(window, body)
    if found > 0:
        return Opening(body, Body(sink, next(s for s in spellings if s.open == opening)))
    return Opening(found, name=name)


def channel(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """Thinking may begin anywhere, not only before an answer; an empty or doubled beginning frames nothing."""
    if sink.in_reasoning or not any(format.think):
        return NO_OPENING
    opening = literal(window, at, format.think[0])
    if opening > 0:
        return NO_OPENING if sink.fresh else Opening(at, Stray(sink, 0))
    empty = literal(window, at, format.think[0].rstrip() + format.think[1])
    end = literal(window, at, _CHANNEL)
    again = literal(window, end, _CHANNEL) if end > 0 else NO
    if empty > 0 or again > 0:
        return Opening(at, Stray(sink, max(empty, end) - at))
    return Opening(MORE if MORE in (opening, empty, end, again) else NO)


class Stray:
    """Consumes a marker of `size` characters that frames nothing; thinking may begin behind it."""

    def __init__(self, sink: Sink, size: int) -> None:
        self.done = False
        self._sink = sink
        self._size = size

    def step(self, window: Window) -> bool:
        """Consume the marker."""
        self._sink.mark(window, window.pos + self._size)
        self.done = True
        return True


class Body(Block):
    """Reads the calls of one block."""

    def __init__(self, sink: Sink, spelling: Spelling) -> None:
        super().__init__(sink, (spelling.open,), spelling.close)
        self._spelling = spelling

    def next(self, window: Window) -> bool:
        """A call, or the end of the block; anything else is text again."""
        at = spaces(window, window.pos)
        close = literal(window, at, self.closer)
        if close > 0:
            return self.over(window, close)
        if window.text.startswith((",", ";"), at):
            at = spaces(window, at + 1)
        end, name = opens(window, at)
        if end > 0:
            self.sink.mark(window, at)
            return self.begin(window, end, name, Arguments(self.sink.arguments, self._spelling))
        if MORE in (close, end) and not window.ended:
            return False
        return self.over(window, at if at == len(window.text) else window.pos)


class Arguments(Transcriber):
    """The arguments of one call, from behind its `{` on."""

    def __init__(self, emit: Callable[[str], None], spelling: Spelling) -> None:
        super().__init__(emit, _RUN)
        self._quote, self._closer = spelling.quote, spelling.close
        self._open = ["{"]
        self._state = self._element

    def _in_string(self) -> bool:
        return self._state == self._string

    # ---- between values ----

    def _element(self, window: Window, at: int) -> int:
        """The next entry or element, or the closing bracket."""
        at = spaces(window, at)
        if window.text.startswith(self._closing(), at):
            return self._close(at + 1)
        if self._open[-1] == "[":
            return self._value(window, at)
        end, key = self._key(window, at)
        if end > 0:
            self._writer.key(key)
            self._state = self._value
        return self._break("what stands where a key should is none", at) if end == NO else end

    def _after(self, window: Window, at: int) -> int:
        """After a value: a comma or the closing bracket."""
        at = spaces(window, at)
        if at == len(window.text):
            return MORE
        if window.text[at] == ",":
            self._state = self._element
            return at + 1
        if window.text[at] == self._closing():
            return self._close(at + 1)
        end = literal(window, at, self._closer)
        if end > 0 and len(self._open) <= _MISSING:
            self._repaired(f"missing {'}' * len(self._open)}")
            while not self.done:
                self._close(at)
            return at
        return MORE if end == MORE else self._break("what follows a value is neither a comma nor its bracket", at)

    def _closing(self) -> str:
        return "}" if self._open[-1] == "{" else "]"

    def _close(self, end: int) -> int:
        self._open.pop()
        self._writer.close()
        self.done = not self._open
        self._state = self._after
        return end

    def _key(self, window: Window, at: int) -> tuple[int, str]:
        """Match a key, bare or between quotes, and its colon."""
        start = literal(window, at, self._quote)
        if start > 0:
            return self._quoted_key(window, start)
        found = _KEY.match(window.text, at)
        if found is None:
            begins = start == MORE or _KEY_BEGINS.match(window.text, at)
            return (MORE if begins else NO), ""
        if found[1] is None:
            return found.end(), _unquoted(f'"{found[2]}"')
        return found.end(), found[1].rstrip()

    def _quoted_key(self, window: Window, start: int) -> tuple[int, str]:
        text, mark = window.text, window.text.find("<", start)
        while mark >= 0 and (end := literal(window, mark, self._quote)) == NO:
            mark = text.find("<", mark + 1)
        if mark < 0 or end == MORE:
            return MORE, ""
        colon = spaces(window, end)
        if colon == len(text):
            return MORE, ""
        return (colon + 1, text[start:mark]) if text[colon] == ":" else (NO, "")

    # ---- values ----

    def _value(self, window: Window, at: int) -> int:
        text, at = window.text, spaces(window, at)
        if at == len(text):
            return MORE
        char = text[at]
        if char in "[{":
            if self._writer.depth >= DEPTH:
                return self._break("nested too deeply", at)
            self._open.append(char)
            self._writer.open(char)
            self._state = self._element
            return at + 1
        end = literal(window, at, self._quote)
        if end > 0:
            self._writer.string()
            self._state = self._string
        return self._bare(window, at) if end == NO else end

    def _bare(self, window: Window, at: int) -> int:
        """A value without markers, up to a comma, a bracket or the end of the call."""
        text = window.text
        if text[at] == '"':
            if quoted := _QUOTED.match(text, at):
                self._repaired("a string in plain quotes")
                return self._scalar(dumps(_unquoted(quoted.group())), quoted.end())
            if not window.ended:
                return MORE
        end = at
        while True:
            found = _BARE.match(text, end)
            end = found.end() if found else end
            if end == len(text):
                return MORE
            if text[end] != "<":
                break
            closer = literal(window, end, self._closer)
            if closer == MORE:
                return MORE
            if closer > 0:
                break
            end += 1
        return self._scalar(self._word(text[at:end].rstrip()), end)

    def _word(self, word: str) -> str:
        if word in CONSTANTS:
            return CONSTANTS[word]
        found = _NUMBER.match(word) if len(word) < _LONGEST else None
        if found and found.lastindex is None:
            return str(int(word))
        if found and math.isfinite(value := float(word)):
            return dumps(value)
        self._repaired("a string without its marks")
        return dumps(word)

    def _scalar(self, json: str, end: int) -> int:
        self._writer.scalar(json)
        self._state = self._after
        return end

    def _string(self, window: Window, at: int) -> int:
        text = window.text
        mark = text.find("<", at)
        while mark >= 0:
            end = literal(window, mark, self._quote)
            follows = self._ends(window, end) if end > 0 else end
            if follows > 0:
                self._piece(text[at:mark])
                self._writer.end_string()
                self._state = self._after
                return end
            if follows == MORE:
                break
            mark = text.find("<", mark + 1)
        stop = mark if mark >= 0 else len(text)
        self._piece(text[at:stop])
        return stop if stop > at else MORE

    def _piece(self, text: str) -> None:
        if text:
            self._writer.piece(text)

    def _ends(self, window: Window, at: int) -> int:
        """Whether the marker before `at` ends a string, by what follows it."""
        if self._quote in window.solid:
            return at
        text, at = window.text, spaces(window, at)
        if at == len(text):
            return at if window.ended else MORE
        if text[at] == self._closing():
            return at
        if text[at] != ",":
            return literal(window, at, self._closer)
        if self._open[-1] == "[":
            return at
        at = spaces(window, at + 1)
        if at == len(text):
            return at if window.ended else MORE
        if text[at] == "}":
            return at
        end, _ = self._key(window, at)
        return end


def _unquoted(text: str) -> str:
    """The text of a JSON string; as it stands, without its quotes, where it is none."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text[1:-1]


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    style = _style(rules, GEMMA_4.quote)
    heads = (rf"{pattern(s.open)}\s*call:" for s in (GEMMA_4, FUNCTION_GEMMA))
    return Frame(
        json_calls(rules, tools, "", style=style),
        before=f"{format.open}call:",
        between=f"{format.close}{format.open}call:",
        after=format.close,
        never=(*heads, pattern(_CHANNEL), pattern(THINK[1])),
        again=True,
    )


def _style(rules: Rules, mark: str) -> Style:
    """How values are written; a string that holds its own mark cannot be."""

    def text(value: str) -> str:
        return f"{rules.spell(mark)} {quote(value)} {rules.spell(mark)}"

    def string(limits: Limits) -> str:
        never = (pattern(mark),) if limits else ()
        return f"{rules.spell(mark)} {rules.text_until(mark, never, limits=limits)}"

    return Style(
        string=string,
        text=text,
        key=lambda name: quote(name) if _PLAIN_KEY.match(name) else text(name),
        any_key=r"/[A-Za-z_][A-Za-z0-9_.\-]{0,63}/",
        is_plain=lambda name: bool(_PLAIN_KEY.match(name)),
        quoted=False,
        comma='","',
        colon='":"',
    )


FORMAT = Format(
    "gemma",
    render,
    (in_block, channel),
    open=GEMMA_4.open,
    close=GEMMA_4.close,
    think=THINK,
    ends=("<turn|>", THINK[1], "<end_of_turn>", "<eos>", "<|tool_response>", "<start_function_response>"),
    grammar=grammar,
)
