"""Calls that a model wrote in its answer, outside its wire format: found on request, and marked as such.

    {"name": NAME, "arguments": {…}}       an object or a list of them, anywhere in the answer
    ```json …```                           a fence with nothing else in it
    save_config(path="x", n=3)             a call in Python at the end of a line; also in a list, or in a fence
    saved = save_config(path="x", n=3)     a statement of its own, also between other lines of a fence of Python

or any of these as a whole piece of inline code. It counts if it names an offered tool and its arguments fit the
tool's schema: none is missing, unknown or of another type. Anything else is text, as are calls in mid-sentence, in
other code and in thinking. A model that makes one call in its own format knows how to: then nothing is rescued, so
what follows a find is held back until the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Problem,
    Text,
    Tool,
    ToolCall,
    dumps,
)
from punie_mlx.toolcalls.formats import json_fence, pythonic
from punie_mlx.toolcalls.jsoncalls import Found, decode
from punie_mlx.toolcalls.jsonstream import JsonStream
from punie_mlx.toolcalls.pystream import PyArguments
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces
from punie_mlx.toolcalls.wire import Reader

_LINE_END = re.compile(r"[ \t;]*(?:\r?\n|\Z)")
_LINE_ENDING = re.compile(r"[ \t;]*\r?\Z")
_LEADS = re.compile(r"""(?:\[\s*)?\{\s*(["'])(?:name|parameters|arguments|function|type|id)\1\s*:""")
_LEADING = re.compile(r"""(?:\[\s*)?(?:\{\s*(?:["']\w{0,10}(?:["']\s*)?)?)?\Z""")
_CODE_END = re.compile(r"[`\n]")
_STATEMENT = re.compile(r"(?:[A-Za-z_]\w*[ \t]*=[ \t]*)?(?:await[ \t]+)?")
_STATEMENT_BEGUN = re.compile(r"[A-Za-z_]\w*[ \t]*(?:=[ \t]*\w*[ \t]*)?\Z")
_WORD_BEGUN = re.compile(r"(?<![\w.])[\w.]+\Z")
_PYTHON = re.compile(r"```(?:py(?:thon)?3?|tool_code|)[ \t]*\r?\n", re.IGNORECASE)


LONGEST_NAME = 256  # characters of a tool's name that are looked back for


@dataclass(frozen=True, slots=True)
class Find:
    """What stands at a place up to `end` (or `MORE`): calls, or text."""

    end: int
    calls: tuple[tuple[ToolCall, tuple[Problem, ...]], ...] = ()
    code: str = ""  # what the text is in then: a fence of "python" or of "other" code


@dataclass(frozen=True, slots=True)
class Held:
    """A find that waits for the end, with its text."""

    raw: str
    find: Find


class Rescue:
    """Reads with `reader`, and looks through the answer that it finds for calls."""

    def __init__(self, reader: Reader, sink: Sink) -> None:
        self._reader = reader
        self._sink = sink
        self._active = bool(sink.tools)
        self._out: list[Event] = []
        self._held: list[Event | Held] = []  # from the first find on
        self._scanner = Scanner(sink.tools)

    def step(self, window: Window) -> bool:
        """Read on; return whether there may be more to decide."""
        if self._reader.step(window):
            return True
        if self._active:
            self._look(last=window.ended)
        return False

    def where(self, window: Window) -> str:
        """As its reader says: what is looked for here is text until the end."""
        return self._reader.where(window)

    def _look(self, last: bool) -> None:
        """Look through what was read since the last time."""
        events, self._out = self._sink.events, []
        for event in events:
            self._take(event)
        if last:
            self._end()
        self._sink.events = self._out

    def _take(self, event: Event) -> None:
        if not self._active:
            self._out.append(event)
        elif isinstance(event, Text):
            for found in self._scanner.feed(event.text):
                self._keep(found)
        else:
            self._part()
            if isinstance(event, CallStarted):
                self._release()
            self._keep(event)

    def _part(self) -> None:
        """The text of the answer is over, or something else parts it."""
        for found in self._scanner.end():
            self._keep(found)
        self._scanner = Scanner(self._sink.tools)

    def _keep(self, found: Event | Held) -> None:
        if self._held or isinstance(found, Held):
            self._held.append(found)
        else:
            self._out.append(found)

    def _release(self) -> None:
        """The model makes a call of its own: what was found is text."""
        self._out += [Text(e.raw) if isinstance(e, Held) else e for e in self._held]
        self._held = []
        self._active = False

    def _end(self) -> None:
        self._part()
        index = 0
        for kept in self._held:
            if isinstance(kept, Held):
                self._out += _events(kept, index)
                index += len(kept.find.calls)
            else:
                self._out.append(kept)
        self._held = []


def _events(held: Held, index: int) -> list[Event]:
    out: list[Event] = []
    for i, (call, problems) in enumerate(held.find.calls, index):
        out += [CallStarted(i, call.name), ArgumentsDelta(i, dumps(call.arguments))]
        out.append(CallFinished(i, call, problems, held.raw if i == index else "", rescued=True))
    return out


class Scanner:
    """Looks for calls in one text that arrives in pieces."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._window = Window()
        self._before = "\n"  # the character before the window
        self._blank = True  # nothing but blanks stands before the window on its line
        self._code_of = ""  # the language of the fence that is open
        names = "|".join(map(re.escape, sorted(tools, key=len, reverse=True)))
        self._hint = re.compile(rf"[\n`{{\[]|(?<![\w.])(?:{names})(?![\w.])")

    def feed(self, piece: str) -> list[Text | Held]:
        """Take in `piece`; return what is decided."""
        return self._read() if self._window.feed(piece) else []

    def end(self) -> list[Text | Held]:
        """The text is over; return the rest of it."""
        self._window.end(clean=True)
        return self._read()

    def _read(self) -> list[Text | Held]:
        window, out = self._window, []
        while window.pos < len(window.text):
            found = self._next()
            if found.end == MORE:
                break
            raw = self._consume(found.end)
            self._code_of = found.code
            out.append(Held(raw, found) if found.calls else Text(raw))
        return out

    def _consume(self, to: int) -> str:
        window = self._window
        raw = window.text[window.pos : to]
        window.pos = to
        self._before = raw[-1:] or self._before
        line = raw[raw.rfind("\n") + 1 :]
        self._blank = ("\n" in raw or self._blank) and not line.strip()
        return raw

    def _next(self) -> Find:
        """The text up to where a call may begin, or what stands there."""
        text, at = self._window.text, self._window.pos
        if self._code_of:
            return self._code(at)
        start = spaces(self._window, at) if self._blank else at
        if start > at:
            return Find(start)
        char, found = text[at], Find(NO)
        if char == "\n":
            return Find(at + 1)
        if char == "`":
            several = text.startswith("``", at) or at + 1 == len(text)
            return self._fence(at) if several else self._inline(at)
        if (self._blank and (char.isalpha() or char in "_[")) or self._word_begins(at):
            found = self._lines(at)
        if found.end == NO and char in "{[":
            found = self._json(at)
        return found if found.end != NO else Find(self._next_hint(at))

    def _word_begins(self, at: int) -> bool:
        """Whether a word may begin at `at` that is the name of a tool."""
        text = self._window.text
        before = text[at - 1] if at else self._before
        return text[at].isidentifier() and not (before.isalnum() or before in "_.")

    def _next_hint(self, at: int) -> int:
        """The place after `at` at which something may begin."""
        text = self._window.text
        hint = self._hint.search(text, at + 1)
        end = hint.start() if hint else len(text)
        begun = None if self._window.ended else _WORD_BEGUN.search(text, max(at + 1, len(text) - LONGEST_NAME), end)
        if begun and end == len(text) and any(name.startswith(begun.group()) for name in self._tools):
            return begun.start()
        return end

    def _code(self, at: int) -> Find:
        """The text of a fence of code, a statement in it that is a call, or its end."""
        window, code = self._window, self._code_of
        text = window.text
        before = text[at - 1] if at else self._before
        if code == "python" and before == "\n" and text[at].isidentifier():
            found = self._lines(at)
            if found.end == MORE or found.calls:
                return replace(found, code=code)
        end = literal(window, at, json_fence.MARK)
        if end == MORE and not window.ended:
            return Find(MORE)
        if end > 0:
            return Find(end)
        stop = _CODE_END.search(text, at + (text[at] == "`"))
        if stop is None:
            return Find(len(text), code=code)
        return Find(stop.end() if stop.group() == "\n" else stop.start(), code=code)

    def _cut(self, found: Find) -> Find:
        """What is not decided when the text is over is text."""
        return Find(len(self._window.text)) if found.end == MORE and self._window.ended else found

    def _lines(self, at: int) -> Find:
        """A Python call, or a list of them, up to the end of a line; `NO` where none begins."""
        text = self._window.text
        if not self._window.ended and _STATEMENT_BEGUN.match(text, at):
            return Find(MORE)
        statement = _STATEMENT.match(text, at)
        found = self._python(statement.end() if statement else at)
        if found.end < 0 or not found.calls:
            return self._cut(found)
        if not self._window.ended and _LINE_ENDING.match(text, found.end):
            return Find(MORE)
        return found if _LINE_END.match(text, found.end) else Find(found.end)

    def _inline(self, at: int) -> Find:
        """A piece of inline code, which may be a call as a whole."""
        text = self._window.text
        found = self._json(at + 1) if text[at + 1] in "{[" else Find(NO)
        if found.end == NO:
            found = self._python(at + 1)
        if found.end == MORE:
            return self._cut(found)
        if found.calls and found.end == len(text) and not self._window.ended:
            return Find(MORE)
        if found.calls and text.startswith("`", found.end):
            return Find(found.end + 1, found.calls)
        end = _CODE_END.search(text, max(found.end, at + 1))
        if end is None:
            return Find(len(text) if self._window.ended else MORE)
        return Find(end.end())

    def _fence(self, at: int) -> Find:
        """Several marks: a fence of Markdown, or nothing."""
        window = self._window
        found = json_fence.fence(window, at)
        if found.end == MORE:
            return self._cut(Find(MORE))
        if found.end == NO:
            return Find(at + 2 if window.text.startswith("``", at) else at + 1)
        if found.body < 0:
            return Find(found.end, self._fitting(found.calls))
        inside = self._python_fence(found.body)
        if inside.end != NO:
            return self._cut(inside)
        return Find(found.body, code="python" if _PYTHON.match(window.text, at) else "other")

    def _python_fence(self, at: int) -> Find:
        """Python calls and nothing else up to the closing mark."""
        window, calls = self._window, ()
        while True:
            at = spaces(window, at)
            end = literal(window, at, json_fence.MARK)
            if end == MORE and window.ended and at == len(window.text):
                end = at
            if end == MORE:
                return Find(MORE)
            if end > 0:
                return Find(end, calls) if calls else Find(NO)
            found = self._python(at)
            if found.end < 0 or not found.calls:
                return Find(MORE if found.end == MORE else NO)
            calls += found.calls
            at = found.end + window.text.startswith(";", found.end)

    def _python(self, at: int) -> Find:
        """A Python call, or a list of them; `NO` where none begins, text where it cannot be one of an offered tool."""
        window = self._window
        if not window.text.startswith("[", at):
            return self._call(at)
        calls, at = (), spaces(window, at + 1)
        while True:
            found = self._call(at)
            if found.end < 0 or not found.calls:
                return found if not calls or found.end == MORE else Find(at)
            calls += found.calls
            at = spaces(window, found.end)
            if at == len(window.text):
                return Find(MORE)
            if window.text[at] == "]":
                return Find(at + 1, calls)
            if window.text[at] != ",":
                return Find(at)
            at = spaces(window, at + 1)

    def _call(self, at: int) -> Find:
        window = self._window
        end, name = pythonic.opens(window, at, self._tools)
        if name and name not in self._tools:
            return Find(NO)
        if end < 0:
            word = window.text[at:]
            possible = name or not word or any(tool.startswith(word) for tool in self._tools)
            return Find(end if possible else NO)
        positional = list(self._tools[name].properties)
        reader = PyArguments(_ignore, positional)
        end = reader.read(window, end)
        if not reader.done:
            return Find(end if reader.broken else MORE)
        try:
            call = Found(name, reader.value(), "; ".join(reader.repairs))
        except ValueError:
            return Find(end)
        return Find(end, () if reader.duplicates else self._fitting([call]))

    def _json(self, at: int) -> Find:
        """A JSON object with a name and arguments, or a list of them; `NO` where none begins."""
        window = self._window
        if _LEADS.match(window.text, at) is None:
            return self._cut(Find(MORE if _LEADING.match(window.text, at) else NO))
        stream = JsonStream(_ignore)
        end = stream.read(window, at)
        if not (stream.done or stream.broken):
            return self._cut(Find(MORE))
        if stream.broken:
            return Find(max(end, at + 1))
        calls, _, junk = decode(window.text[at:end])
        return Find(end, () if junk else self._fitting(calls))

    def _fitting(self, calls: Sequence[Found]) -> tuple[tuple[ToolCall, tuple[Problem, ...]], ...]:
        """`calls` with what was mended in them, if all are of offered tools and fit; else nothing."""
        if any(not self._fits(call) for call in calls):
            return ()
        return tuple(
            (ToolCall(c.name, c.arguments), (Problem("repaired", c.repaired),) if c.repaired else ()) for c in calls
        )

    def _fits(self, call: Found) -> bool:
        wrong = [*schema.check(call.name, call.arguments, self._tools)]
        return not wrong and not [*schema.mismatches(call.name, call.arguments, self._tools)]


def _ignore(_: str) -> None:
    pass
