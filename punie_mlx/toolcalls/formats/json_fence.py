"""Calls in fences of Markdown, as models write them that were never taught a wire format.

    ```json
    {"name": NAME, "arguments": {…}}
    ```

Read by the converter only. Each fence becomes a call, stays text (a fence of code is no call), or is broken: it names
a function and has arguments, but cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from punie_mlx.toolcalls.calls import ToolCall, dumps
from punie_mlx.toolcalls.formats import hermes
from punie_mlx.toolcalls.window import Window, spaces

_OPEN = re.compile(r"```([\w+.-]*)[ \t]*\r?\n?")
_CLOSE = re.compile(r"\s*```")
_INTENT = re.compile(r"""["']name["']\s*:.*["'](?:arguments|parameters)["']\s*:""", re.DOTALL)


def render(calls: Sequence[ToolCall]) -> str:
    """Each call as one fence."""
    return "\n\n".join(f"```json\n{dumps({'name': c.name, 'arguments': c.arguments})}\n```" for c in calls)


@dataclass(frozen=True)
class Segment:
    """A piece of a message: text, the calls of one fence, or a fence that is broken (`reason` says how)."""

    raw: str
    calls: tuple[hermes.Found, ...] = ()
    reason: str = ""


def split(text: str) -> Iterator[Segment]:
    """The segments of `text` in order; joined, their `raw` is `text`."""
    done = at = 0
    while found := _OPEN.search(text, at):
        end, segment = _fence(text, found)
        if segment is not None:
            if found.start() > done:
                yield Segment(text[done : found.start()])
            yield segment
            done = end
        at = end
    if done < len(text):
        yield Segment(text[done:])


def _fence(text: str, opening: re.Match[str]) -> tuple[int, Segment | None]:
    """Where the fence that `opening` begins is over, and what it is (None: text)."""
    window = Window()
    window.text, window.ended = text, True
    window.pos = body = spaces(window, opening.end())
    if body == len(text) or text[body] not in "{[":
        return _code_end(text, opening.end()), None
    end, over = hermes.Scanner().scan(window)
    close = _CLOSE.match(text, end) if over else None
    if close:
        calls, reason, junk = hermes.decode(text[body:end])
        if calls and not junk:
            return close.end(), Segment(text[opening.start() : close.end()], calls=tuple(calls))
        reason = reason or "an entry of the list is no call"
    else:
        # the brackets do not close before the fence does: what lies up to the next fence mark is the broken body
        mark = text.find("```", body)
        end, reason = (mark, "the body does not end before the fence") if mark >= 0 else (len(text), "cut off")
    stop = close.end() if close else min(end + 3, len(text))
    raw = text[opening.start() : stop]
    return stop, Segment(raw, reason=reason) if _INTENT.search(raw) else None


def _code_end(text: str, start: int) -> int:
    """The end of a fence of code, so that its closing mark opens no other."""
    mark = text.find("```", start)
    return len(text) if mark < 0 else mark + 3
