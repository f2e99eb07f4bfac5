"""Qwen3-Coder, Qwen3.5 and 3.6: calls as tags, values as plain text between them.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Nothing is escaped on this wire, so what ends a value needs a rule. `</parameter>` ends it only where the next tag
shows that it did; any other tag in a value is data. A value that is never closed ends before the next parameter that
the tool declares, or before a `</function>` that closes the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.toolcalls.calls import Problem, ToolCall, dumps, escape
from punie_mlx.toolcalls.schema import coerce, is_plain_string
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, named, spaces

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_CALL_END = re.compile(r"</function>\s*</tool_call>")
_LAST_END = re.compile(r"(?<=\n)</function>\s*\Z")  # on a line of its own: less may be a tag inside a value


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them; scalars other than strings as Python prints them."""
    return "\n".join(f"{OPEN}\n{_function(c)}\n{CLOSE}" for c in calls)


def _function(call: ToolCall) -> str:
    parameters = "".join(f"{PARAMETER}{k}>\n{_value(v)}\n{PARAMETER_END}\n" for k, v in call.arguments.items())
    return f"{FUNCTION}{call.name}>\n{parameters}{FUNCTION_END}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)


def opens(window: Window, at: int) -> tuple[int, str]:
    """Match `<function=NAME>` with a legal continuation at `at`: the position after the tag, and the name."""
    end, name = named(window, at, FUNCTION)
    if end < 0:
        return end, name
    follows = _tag_after(window, end)
    return (end, name) if follows > 0 else (follows, name)


def _tag_after(window: Window, at: int) -> int:
    """After white space: a parameter, the end of the function, or of the call."""
    at = spaces(window, at)
    found = (named(window, at, PARAMETER)[0], literal(window, at, FUNCTION_END), literal(window, at, CLOSE))
    return max(found) if max(found) > 0 else MORE if MORE in found else NO


class Body:
    """Reads the functions of one `<tool_call>` block, from the first `<function=` on; `done` when it is over."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.done = False
        self._sink = sink
        self._step = self._header
        self._closers_may_come = True
        self._begin(name)

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _begin(self, name: str) -> None:
        self._name = name
        self._tool = self._sink.tools.get(name)
        self._arguments: dict[str, Any] = {}
        self._problems: list[Problem] = []
        self._step = self._header

    def _header(self, window: Window) -> bool:
        end, _ = opens(window, window.pos)
        self._sink.take(window, end)
        self._sink.start(self._name)
        self._step = self._between
        return True

    def _between(self, window: Window) -> bool:
        """Between parameters: the next one, or the end of the function."""
        at = spaces(window, window.pos)
        end, key = named(window, at, PARAMETER)
        if end > 0:
            self._sink.take(window, end)
            self._begin_value(key)
            return True
        if (end := literal(window, at, FUNCTION_END)) > 0:
            self._sink.take(window, end)
            self._finish()
            self._step = self._after
            return True
        if (end := literal(window, at, CLOSE)) > 0:
            self._sink.take(window, end)
            self._finish(Problem("unclosed_function", self._name))
            self.done = True
            return True
        if not window.ended:
            return False
        if window.clean and at == len(window.text):
            self._finish(Problem("unclosed_function", self._name))
            self.done = True
            return True
        return self._cut_off(window)

    def _finish(self, *problems: Problem) -> None:
        self._sink.arguments("}" if self._arguments else "{}")
        self._sink.finish(self._name, self._arguments, [*self._problems, *problems])

    def _cut_off(self, window: Window) -> bool:
        self._sink.take(window, len(window.text))
        self._sink.malformed(f"the call of {self._name} is cut off")
        self.done = True
        return True

    def _after(self, window: Window) -> bool:
        """After a function: the end of the block, or another function in it; anything else is text again."""
        at = spaces(window, window.pos)
        close = literal(window, at, CLOSE)
        if close > 0:
            self._sink.mark(window, close)
            self.done = True
            return True
        end, name = opens(window, at)
        if end > 0:
            self._sink.mark(window, at)
            self._begin(name)
            return True
        if MORE in (close, end) and not window.ended:
            return False
        self.done = True
        return True

    # ---- values ----

    def _begin_value(self, key: str) -> None:
        self._key = key
        self._duplicate = key in self._arguments
        self._parts: list[str] = []
        self._at_start = True
        schema = self._tool.properties.get(key, {"type": "string"}) if self._tool else {"type": "string"}
        root = self._tool.parameters if self._tool else {}
        self._schema, self._root = schema, root
        self._streams = not self._duplicate and is_plain_string(schema, root)
        if not self._duplicate:
            self._sink.arguments(f"{', ' if self._arguments else '{'}{dumps(key)}: " + ('"' if self._streams else ""))
        self._step = self._value_start

    def _value_start(self, window: Window) -> bool:
        """One newline after the opening tag is framing."""
        text, at = window.text, window.pos
        if not window.ended and (at == len(text) or text[at:] == "\r"):
            return False
        size = 2 if text.startswith("\r\n", at) else 1 if text.startswith("\n", at) else 0
        self._sink.take(window, at + size)
        self._at_start = size > 0
        self._step = self._value
        return True

    def _value(self, window: Window) -> bool:
        text, start = window.text, window.pos
        held = None  # the first `</function>` that may turn out to end the value
        at = text.find("<", start)
        while at >= 0:
            end, problem = self._ending(window, at, held is None)
            if end >= 0:
                return self._end_value(window, at, end, problem)
            if end == MORE and not window.ended:
                break
            if held is None and text.startswith(FUNCTION_END, at):
                held = at
            at = text.find("<", at + 1)
        if window.ended:
            return self._never_closed(window)
        self._pass_on(window, held if held is not None else at if at >= 0 else len(text))
        return False

    def _ending(self, window: Window, at: int, first: bool) -> tuple[int, Problem | None]:
        """Whether the tag at `at` ends the value: where reading goes on, and what is wrong with such an end."""
        unclosed = Problem("unclosed_parameter", self._key)
        end = literal(window, at, PARAMETER_END)
        if end > 0:
            if window.ended and spaces(window, end) == len(window.text):
                return end, None
            follows = _tag_after(window, end)
            return (end if follows > 0 else follows), None
        new, key = named(window, at, PARAMETER) if self._after_newline(window, at) else (NO, "")
        if new > 0 and self._expected(key):
            return at, unclosed
        function = literal(window, at, FUNCTION_END) if first or not self._closers_may_come else NO
        if function > 0:
            ends = self._call_follows(window, at, function)
            return (at if ends > 0 else ends), unclosed
        return (MORE if MORE in (end, new, function) else NO), None

    def _after_newline(self, window: Window, at: int) -> bool:
        return window.text[at - 1] == "\n" if at > window.pos else self._at_start

    def _expected(self, key: str) -> bool:
        """Whether `key` may follow an unclosed value: not given yet, and declared where the tool is known."""
        given = key in self._arguments or key == self._key
        return not given and (self._tool is None or key in self._tool.properties)

    def _call_follows(self, window: Window, at: int, after: int) -> int:
        """Whether `</function>` at `at` is followed by the end of this call and the beginning of the next."""
        if not self._closers_may_come:
            return after if _CALL_END.match(window.text, at) else NO
        for tag in (CLOSE, OPEN):
            after = literal(window, spaces(window, after), tag)
            if after < 0:
                return after
        return named(window, spaces(window, after), FUNCTION)[0]

    def _never_closed(self, window: Window) -> bool:
        """All text is there and nothing closed the value."""
        found = _CALL_END.search(window.text, window.pos)
        if found is None and window.clean:
            found = _LAST_END.search(window.text, window.pos)
        if found is None:
            return self._cut_off(window)
        self._closers_may_come = False  # so that nothing looks through the rest for them again
        return self._end_value(window, found.start(), found.start(), Problem("unclosed_parameter", self._key))

    def _pass_on(self, window: Window, to: int) -> None:
        """Consume the value up to `to`, but for a newline that may be the framing one."""
        text, start = window.text, window.pos
        if to > start and text[to - 1] == "\n":
            to -= 1
        if to > start and text[to - 1] == "\r" and text[to : to + 1] in ("", "\n"):
            to -= 1
        self._add(self._sink.take(window, to))

    def _add(self, piece: str) -> None:
        if not piece:
            return
        self._at_start = False
        self._parts.append(piece)
        if self._streams:
            self._sink.arguments(escape(piece))

    def _end_value(self, window: Window, at: int, end: int, problem: Problem | None) -> bool:
        rest = window.text[window.pos : at]
        self._sink.take(window, end)
        self._add(rest.removesuffix("\r\n") if rest.endswith("\r\n") else rest.removesuffix("\n"))
        raw = "".join(self._parts)
        if problem:
            self._problems.append(problem)
        if self._duplicate:
            self._problems.append(Problem("duplicate_parameter", self._key, raw))
        elif self._streams:
            self._sink.arguments('"')
            self._arguments[self._key] = raw
        else:
            value, wrong = coerce(raw, self._schema, self._root)
            if wrong:
                self._problems.append(Problem("type_mismatch", f"{self._key}: {wrong}", raw))
            self._sink.arguments(dumps(value))
            self._arguments[self._key] = value
        self._step = self._between
        return True
