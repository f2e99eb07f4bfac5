"""Calls in fences of Markdown, as models write them that were never taught a wire format.

    ```json
    {"name": NAME, "arguments": {…}}
    ```

Each fence becomes a call, stays text (a fence of code is no call), or is broken: it names a function and has
arguments, but cannot be read. A fence is held back until that is known, which for code is at its first characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Malformed, Problem, Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import named_json
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.jsoncalls import Found, JsonBody, decode
from punie_mlx.toolcalls.jsonstream import JsonStream
from punie_mlx.toolcalls.prose import Decider, Prose
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces
from punie_mlx.toolcalls.wire import Format

MARK = "```"
_OPEN = re.compile(r"```([\w+.-]*)[ \t]*\r?\n?")
_NAME = re.compile(r"""["']name["']\s*:""")
_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters)["']\s*:""")


def render(calls: Sequence[ToolCall]) -> str:
    """Each call as one fence."""
    return "\n\n".join(f"```json\n{dumps({'name': c.name, 'arguments': c.arguments})}\n```" for c in calls)


@dataclass(frozen=True)
class Segment:
    """A piece of a message: text, the calls of one fence, or a fence that is broken (`reason` says how)."""

    raw: str
    calls: tuple[Found, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """What begins at a mark: `end` is where reading goes on (or `NO`, or `MORE`); without calls and reason it is text.

    `body`: of a fence of code, where its text begins; `end` is the same, and the next mark closes it.
    """

    end: int
    calls: tuple[Found, ...] = ()
    reason: str = ""
    body: int = NO


def fence(window: Window, at: int) -> Fence:
    """The fence that opens at `at`, read up to its end if it may be a call."""
    text = window.text
    end = literal(window, at, MARK)
    opening = _OPEN.match(text, at)
    if end < 0 or opening is None:
        return Fence(end)
    body = spaces(window, opening.end())
    if body == len(text):
        return Fence(opening.end(), body=opening.end()) if window.ended else Fence(MORE)
    if text[body] not in "{[":
        return Fence(opening.end(), body=opening.end())
    if not window.ended and text.find(MARK, body) < 0:
        return Fence(MORE)
    stream = JsonStream(_ignore)
    over = stream.read(window, body)
    if not (stream.done or stream.broken or window.ended):
        return Fence(MORE)
    if stream.done:
        return _closed(window, at, body, over)
    return _broken(window, at, over if stream.broken else body)


def _ignore(_: str) -> None:
    pass


def _closed(window: Window, at: int, body: int, over: int) -> Fence:
    """The JSON of a fence is complete at `over`."""
    text, mark = window.text, spaces(window, over)
    end = literal(window, mark, MARK)
    if end == MORE and not window.ended:
        return Fence(MORE)
    if end < 0 and mark < len(text):
        return _broken(window, at, over)
    calls, reason, junk = decode(text[body:over])
    end = max(end, mark)
    if calls and not junk:
        return Fence(end, tuple(calls))
    return _judge(text[at:end], end, reason or "an entry of the list is no call")


def _broken(window: Window, at: int, start: int) -> Fence:
    """The body is not one JSON value: what lies up to the next mark from `start` on is the broken body."""
    text = window.text
    mark = text.find(MARK, start)
    if mark >= 0:
        return _judge(text[at : mark + len(MARK)], mark + len(MARK), "the body is not JSON")
    return _judge(text[at:], len(text), "cut off") if window.ended else Fence(MORE)


def _judge(raw: str, end: int, reason: str) -> Fence:
    """A fence that cannot be read: broken if it was meant to be a call, else text."""
    name = _NAME.search(raw)
    return Fence(end, reason=reason if name and _ARGUMENTS.search(raw, name.end()) else "")


def split(text: str) -> Iterator[Segment]:
    """The segments of `text` in order; joined, their `raw` is `text`."""
    window = Window()
    window.text, window.ended = text, True
    done = at = 0
    while (at := text.find(MARK, at)) >= 0:
        found = fence(window, at)
        if found.calls or found.reason:
            if at > done:
                yield Segment(text[done:at])
            yield Segment(text[at : found.end], found.calls, found.reason)
            done = found.end
        at = found.end if found.body < 0 else code_end(text, found.body)
    if done < len(text):
        yield Segment(text[done:])


def code_end(text: str, start: int) -> int:
    """The end of a fence of code, so that its closing mark opens no other."""
    mark = text.find(MARK, start)
    return len(text) if mark < 0 else mark + len(MARK)


class Fences(Prose):
    """Reads a stream with calls in fences."""

    def __init__(self, format: Format, sink: Sink) -> None:
        super().__init__(format, sink)
        self._in_code = False

    def _calls(self) -> tuple[Decider, ...]:
        return (self._fence,)

    def _fence(self, window: Window, at: int) -> int:
        found = Fence(literal(window, at, MARK)) if self._in_code else fence(window, at)
        if found.end < 0:
            return found.end
        if found.calls or found.reason:
            self._white_space(window, at, self._format.framing)
            raw = self._sink.take(window, found.end)
            self._report(found, raw, cut=window.ended and found.reason == "cut off")
            self._sink.fresh = True
        else:
            self._in_code = found.body >= 0
            self._sink.text(window, found.end)
        return found.end

    def _report(self, found: Fence, raw: str, cut: bool) -> None:
        sink = self._sink
        for call in found.calls:
            problems = [Problem("repaired", call.repaired)] if call.repaired else []
            problems += schema.mismatches(call.name, call.arguments, sink.tools)
            sink.start(call.name)
            sink.arguments(dumps(call.arguments))
            sink.finish(call.arguments, problems)
        if cut and (begun := _begun(raw)):
            sink.cut_off(begun.name, begun.arguments)
        elif found.reason:
            sink.malformed(found.reason)


def _begun(raw: str) -> Malformed | None:
    """The call that is cut off in the fence `raw`, as far as it came; None where its name is not known."""
    opening = _OPEN.match(raw)
    inner, window = Sink(()), Window()
    window.text, window.ended = raw[opening.end() if opening else 0 :].lstrip(), True
    body = JsonBody(inner)
    while not body.done:
        body.step(window)
    cut = [e for e in inner.events if isinstance(e, Malformed) and e.truncated]
    return cut[0] if cut else None


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    opening = '```json\n{"name": "'
    return Frame(
        named_json(rules, tools),
        before=opening,
        between=f"}}\n```\n\n{opening}",
        after="}\n```",
        never=(r"```\w*\s*[{\[]",),
    )


FORMAT = Format("json_fence", render, hints="`<", reader=Fences, native=False, grammar=grammar)
