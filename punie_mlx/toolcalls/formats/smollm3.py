"""SmolLM3: the JSON of Hermes between the model's own markers, and a Python mode.

    <tool_call>{"name": NAME, "arguments": {…}}</tool_call>

    <code>
    print("hello")
    </code>

`dataclasses.replace(FORMAT, open=…, close=…)` reads other markers, and `between` writes them too. Code is a call of the
tool that takes it. It begins at the beginning of the answer or of a line, if such a tool is offered. Nothing is escaped
in it: `</code>` ends it at the beginning of a line, or where nothing but white space follows on its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from punie_mlx.toolcalls.calls import Tool, escape
from punie_mlx.toolcalls.formats import hermes
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.schema import is_plain_string
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, before_newline, literal
from punie_mlx.toolcalls.wire import NO_OPENING, Format, Opening

CODE, CODE_END = "<code>", "</code>"
_BLANKS = re.compile(r"[ \t]*\r?")


def _takes_code(tool: Tool) -> bool:
    code = tool.properties.get("code")
    return list(tool.properties) == ["code"] and code is not None and is_plain_string(code, tool.parameters)


def tool_for_code(sink: Sink) -> str:
    """The tool that code is a call of: `python`, unless exactly one offered tool takes nothing but a string `code`."""
    taking = [t.name for t in sink.tools.values() if _takes_code(t)]
    return taking[0] if len(taking) == 1 else "python"


def code(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A call as code."""
    end = literal(window, at, CODE)
    if end < 0:
        return Opening(end)
    alone = sink.fresh or "\n" in window.text[window.pos : at]
    name = tool_for_code(sink)
    if not alone or (sink.tools and name not in sink.tools):
        return NO_OPENING
    return Opening(at, CodeBody(sink, name))


class CodeBody:
    """Reads code up to its closing tag; one newline next to each tag is framing."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.done = False
        self._sink = sink
        self._name = name
        self._parts: list[str] = []
        self._step = self._header

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _header(self, window: Window) -> bool:
        self._sink.take(window, window.pos + len(CODE))
        self._sink.start(self._name)
        self._sink.arguments('{"code": "')
        self._step = self._first_line
        return True

    def _first_line(self, window: Window) -> bool:
        text, at = window.text, window.pos
        if not window.ended and (at == len(text) or text[at:] == "\r"):
            return False
        size = 2 if text.startswith("\r\n", at) else 1 if text.startswith("\n", at) else 0
        self._sink.take(window, at + size)
        self._line_start = size > 0
        self._step = self._read
        return True

    def _read(self, window: Window) -> bool:
        text = window.text
        at = text.find("<", window.pos)
        while at >= 0:
            ends = self._ends(window, at)
            if ends > 0:
                return self._finish(window, at, ends)
            if ends == MORE and not window.ended:
                break
            at = text.find("<", at + 1)
        if window.ended:
            self._sink.take(window, len(text))
            self._sink.cut_off()
            self.done = True
            return True
        self._pass_on(window, at if at >= 0 else len(text))
        return False

    def _ends(self, window: Window, at: int) -> int:
        """Whether the code ends at `at`: the position after the tag."""
        end = literal(window, at, CODE_END)
        if end < 0:
            return end
        if window.text[at - 1] == "\n" if at > window.pos else self._line_start:
            return end
        blank = _BLANKS.match(window.text, end)
        after = blank.end() if blank else end
        if after == len(window.text):
            return (end if window.clean else NO) if window.ended else MORE
        return end if window.text[after] == "\n" else NO

    def _pass_on(self, window: Window, to: int) -> None:
        """Pass on what is read, but for a newline that may be the framing one."""
        self._add(self._sink.take(window, before_newline(window.text, window.pos, to)))

    def _add(self, piece: str) -> None:
        if piece:
            self._line_start = False
            self._parts.append(piece)
            self._sink.arguments(escape(piece))

    def _finish(self, window: Window, at: int, end: int) -> bool:
        rest = window.text[window.pos : at]
        self._sink.take(window, end)
        self._add(rest.removesuffix("\r\n") if rest.endswith("\r\n") else rest.removesuffix("\n"))
        self._sink.arguments('"}')
        self._sink.finish({"code": "".join(self._parts)})
        self.done = True
        return True


def between(open: str, close: str) -> Format:
    """The format with other markers around the JSON."""
    return replace(FORMAT, render=hermes.renderer(open, close), open=open, close=close, hints="<" + open[:1])


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules; no text begins like code."""
    frame = hermes.grammar(rules, format, tools)
    return replace(frame, never=(*frame.never, r"\n\s*<code>"), never_first=r"\s*<code>")


FORMAT = Format(
    "smollm3", hermes.render, (hermes.in_block, code), open=hermes.OPEN, close=hermes.CLOSE, grammar=grammar
)
