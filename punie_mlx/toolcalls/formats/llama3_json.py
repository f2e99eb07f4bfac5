"""Llama 3.1 to 3.3: calls as JSON objects in the text itself, several of them joined by `;`.

    {"name": NAME, "parameters": {…}}; {"name": NAME, "parameters": {…}}

`<|python_tag|>` may stand before them. Behind it every object with a name and arguments is a call; elsewhere only one
whose tool is offered. An object that turns out to be no call is text. The model's built-in tools are called as
`<|python_tag|>NAME.call(key="value")`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from punie_mlx.toolcalls import jsoncalls, schema
from punie_mlx.toolcalls.calls import Problem, Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import named_json, whole_json
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.jsoncalls import JsonBody
from punie_mlx.toolcalls.jsonstream import JsonStream
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, literal, spaces
from punie_mlx.toolcalls.wire import Format, Opening

TAG = "<|python_tag|>"
_LEADS = re.compile(r"""\{\s*(["'])(?:name|parameters|arguments|function|type|id)\1\s*:""")
_MAY_LEAD = re.compile(r"""\{\s*(?:["']\w{0,10}(?:["']\s*)?)?\Z""")
_BUILT_IN = re.compile(r"([A-Za-z_]\w{0,63})\.call\((?=\s*(?:\)|[A-Za-z_]\w*\s*=))")
_MAY_BE_BUILT_IN = re.compile(r"[A-Za-z_]\w{0,63}(?:\.c?a?l?l?|\.call\(\s*(?:[A-Za-z_]\w*\s*)?)?\Z")
_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_KEY = re.compile(r"([A-Za-z_]\w*)\s*=\s*")
_MAY_BE_KEY = re.compile(r"[A-Za-z_]\w*\s*=?\s*\Z")


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes one, joined by `;`."""
    return "; ".join(dumps({"name": c.name, "parameters": c.arguments}) for c in calls)


def leads(window: Window, at: int) -> int:
    """Whether an object begins at `at` whose first key may be one of a call."""
    found = _LEADS.match(window.text, at)
    if found:
        return found.end()
    return MORE if at == len(window.text) or _MAY_LEAD.match(window.text, at) else NO


def bare(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A call without a marker, if its tool is offered."""
    if window.text[at] != "{":
        return Opening(NO)
    found = leads(window, at)
    offered = sink.tools.__contains__ if sink.tools else lambda name: True
    return Opening(at, Joined(sink, lambda: JsonBody(sink, accept=offered))) if found > 0 else Opening(found)


def tagged(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A call after `<|python_tag|>`."""
    end = literal(window, at, TAG)
    if end < 0:
        return Opening(end)
    body = spaces(window, end)
    found = jsoncalls.opens(window, body)
    if found > 0:
        return Opening(body, Joined(sink, lambda: JsonBody(sink, opened=TAG)))
    built_in = _BUILT_IN.match(window.text, body)
    if built_in:
        return Opening(built_in.end(), BuiltIn(sink, built_in.group(1)))
    return Opening(MORE if found == MORE or _MAY_BE_BUILT_IN.match(window.text, body) else NO)


class Joined:
    """Reads objects that `;` joins, each with a body that `make` gives; `done` when they are over."""

    def __init__(self, sink: Sink, make: Callable[[], JsonBody]) -> None:
        self.done = False
        self._sink = sink
        self._make = make
        self._body = make()

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._separator(window) if self._body.done else self._body.step(window) or self._body.done

    def _separator(self, window: Window) -> bool:
        at = spaces(window, window.pos)
        end = literal(window, at, ";") if self._body.calls else NO
        follows = spaces(window, end) if end > 0 else at
        found = leads(window, follows) if end > 0 else end
        if found == MORE and not window.ended:
            return False
        if found > 0:
            self._sink.mark(window, follows)
            self._body = self._make()
            return True
        marker = first(window, follows, (TAG, *_ENDS))[0] if end > 0 else NO
        if marker == MORE and not window.ended:
            return False
        if marker > 0 or (end > 0 and follows == len(window.text)):
            self._sink.mark(window, follows)
        self.done = True
        return True


class BuiltIn:
    """Reads the arguments of `NAME.call(key="value")`; `done` when they are over."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.done = False
        self._sink = sink
        self._name = name
        self._arguments: dict[str, Any] = {}
        self._key = ""
        self._stream = JsonStream(sink.arguments)
        self._problems: list[Problem] = []
        self._step = self._header

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _header(self, window: Window) -> bool:
        self._sink.start(self._name)
        self._sink.arguments("{")
        self._step = self._next
        return True

    def _next(self, window: Window) -> bool:
        """A key with its `=`, or the closing bracket."""
        text, at = window.text, spaces(window, window.pos)
        if at == len(text):
            return window.ended and self._cut_off(window)
        if text[at] == ")":
            self._sink.take(window, at + 1)
            self._sink.arguments("}")
            mismatches = schema.mismatches(self._name, self._arguments, self._sink.tools)
            self._sink.finish(self._arguments, [*self._problems, *mismatches])
            self.done = True
            return True
        if text[at] == "," and self._arguments:
            at = spaces(window, at + 1)
        found = _KEY.match(text, at)
        if at == len(text) or (found and found.end() == len(text)) or _MAY_BE_KEY.match(text, at):
            return window.ended and self._cut_off(window)
        if found is None or found.group(1) in self._arguments:
            return self._malformed("a built-in call that cannot be read")
        self._key = found.group(1)
        self._sink.take(window, found.end())
        self._sink.arguments(f"{', ' if self._arguments else ''}{dumps(self._key)}: ")
        self._stream = JsonStream(self._sink.arguments)
        self._step = self._value
        return True

    def _value(self, window: Window) -> bool:
        stream = self._stream
        self._sink.take(window, stream.read(window, window.pos))
        if stream.broken:
            return self._malformed(stream.broken)
        if not stream.done:
            return window.ended and self._cut_off(window)
        self._arguments[self._key] = stream.value()
        self._step = self._next
        return True

    def _malformed(self, reason: str) -> bool:
        self._sink.malformed(reason)
        self.done = True
        return True

    def _cut_off(self, window: Window) -> bool:
        self._sink.take(window, len(window.text))
        self._sink.cut_off()
        self.done = True
        return True


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return Frame(
        named_json(rules, tools, "parameters"),
        before='{"name": "',
        between='}; {"name": "',
        after="}",
        never=(r"""\{\s*["'](name|parameters|arguments|function|type|id)["']\s*:""", pattern(TAG)),
        alike=Frame(whole_json(rules, tools, "parameters"), between="; "),
    )


FORMAT = Format("llama3_json", render, (tagged, bare), hints="{<", ends=_ENDS, grammar=grammar)
