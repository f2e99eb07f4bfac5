"""LFM2, Llama 4 and others: calls as Python writes them.

    <|tool_call_start|>[NAME(KEY="text", KEY=1), NAME()]<|tool_call_end|>

The list may also stand between `<|python_start|>` and its end (Llama 4) or in `<function_calls>` (OLMo 3), or bare in
the text: a bare one counts where it begins with a call, of an offered tool if any are offered, and a closing marker
behind it is framing. Between markers a call needs no list around it, and may be written as JSON. Strings end at their
quote: one that holds quotes of its own kind, not escaped, cannot be read.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.toolcalls import jsoncalls
from punie_mlx.toolcalls.blocks import Block
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar_calls import python_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.pystream import CONSTANTS, KEY, PyArguments
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, spaces
from punie_mlx.toolcalls.wire import NO_OPENING, Format, Opening

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
PYTHON_OPEN, PYTHON_CLOSE = "<|python_start|>", "<|python_end|>"
_OTHERS = {PYTHON_OPEN: PYTHON_CLOSE, "<function_calls>": "</function_calls>"}
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NAME_LIMIT = 200
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(r'[\\"\n\r\t]')


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them; keys that Python cannot write as `**{"key": value}`."""
    return f"{OPEN}[{', '.join(f'{c.name}({_arguments(c.arguments)})' for c in calls)}]{CLOSE}"


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={literal(v)}" if _is_name(k) else f"**{literal({k: v})}" for k, v in arguments.items())


def _is_name(key: str) -> bool:
    return bool(_IDENTIFIER.match(key)) and not keyword.iskeyword(key)


def literal(value: Any) -> str:
    """`value` as a Python literal, its strings in double quotes."""
    if isinstance(value, str):
        return '"' + _ESCAPED.sub(lambda found: _ESCAPES[found.group()], value) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    return repr(value)


def opens(window: Window, at: int, tools: Mapping[str, Tool]) -> tuple[int, str]:
    """Match `NAME(` and the beginning of an argument, or `)`: the position after the bracket, and the name.

    With `MORE` the name is given too, where its bracket has come.
    """
    text = window.text
    found = _NAME.match(text, at)
    if found is None:
        return (MORE if at == len(text) else NO), ""
    end = found.end()
    if end - at > _NAME_LIMIT:
        return NO, ""
    if end == len(text):
        return MORE, ""
    if text[end] != "(":
        return NO, ""
    name = found.group()
    legal = _argument_follows(window, spaces(window, end + 1), bool(_parameters(tools.get(name))))
    return (end + 1 if legal > 0 else legal), name


def _argument_follows(window: Window, at: int, positional: bool) -> int:
    text = window.text
    if at == len(text):
        return MORE
    if text[at] == ")":
        return at + 1
    if text[at] == "*":
        brace = spaces(window, at + 2)
        if brace >= len(text):
            return MORE if "**".startswith(text[at : at + 2]) else NO
        return at + 1 if text.startswith("**", at) and text[brace] == "{" else NO
    found = KEY.match(text, at)
    if found is None:
        return at + 1 if positional and (text[at] in "\"'[{(+-." or text[at].isdigit()) else NO
    equals = spaces(window, found.end())
    if equals + 1 >= len(text):
        return MORE
    if text[equals] == "=" and text[equals + 1] != "=":
        return at + 1
    return at + 1 if positional and found.group() in CONSTANTS else NO


def _parameters(tool: Tool | None) -> list[str]:
    return list(tool.properties) if tool else []


def in_block(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """Calls between markers."""
    pairs = {format.open: format.close, **_OTHERS}
    end, opening = first(window, at, tuple(pairs))
    if end < 0:
        return Opening(end)
    body = spaces(window, end)
    as_json = jsoncalls.opens(window, body)
    if as_json > 0:
        return Opening(body, jsoncalls.JsonBody(sink, pairs[opening], opened=opening))
    listed = window.text.startswith("[", body)
    found, name = opens(window, spaces(window, body + 1) if listed else body, sink.tools)
    if found > 0:
        return Opening(body, Body(sink, tuple(pairs), pairs[opening]))
    return Opening(MORE if MORE in (found, as_json) else NO, name=name)


def bare(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A list of calls in the text, that begins with a call."""
    if not window.text.startswith("[", at):
        return NO_OPENING
    found, name = opens(window, spaces(window, at + 1), sink.tools)
    if name and sink.tools and name not in sink.tools:
        return NO_OPENING
    if found > 0:
        found = _ends_if_empty(window, spaces(window, found))
    if found > 0:
        return Opening(at, Body(sink, strays=tuple(filter(None, (format.close, *_OTHERS.values())))))
    return Opening(found, name=name if sink.tools else "")


def _ends_if_empty(window: Window, at: int) -> int:
    """After the bracket of a call: a call without arguments counts where a comma or the list's end follows."""
    if not window.text.startswith(")", at):
        return at + 1
    at = spaces(window, at + 1)
    if at == len(window.text):
        return at if window.ended and window.clean else MORE
    return at + 1 if window.text[at] in ",]" else NO


class Body(Block):
    """Reads calls from a list, or from a block between markers.

    strays: markers that may end a list which no marker opened.
    """

    def __init__(
        self, sink: Sink, openers: Sequence[str] = (), closer: str = "", *, strays: Sequence[str] = ()
    ) -> None:
        super().__init__(sink, openers, closer)
        self._strays = strays
        self._listed = False
        self._first = True

    def next(self, window: Window) -> bool:
        """Another call, the end of the list, the end of the block; anything else is text again."""
        if self._first:
            self._first = False
            self._listed = window.text.startswith("[", window.pos)
            return self._call(window, spaces(window, window.pos + self._listed))
        text, at = window.text, spaces(window, window.pos)
        if at == len(text):
            return self.over(window, at) if window.ended else False
        if not self._listed:
            return self._block_end(window, at)
        if text[at] == "]":
            return self._end_list(window, at + 1)
        after = spaces(window, at + 1)  # behind the comma
        if text.startswith("]", after):
            return self._end_list(window, after + 1)
        return self._another(window, after, listed=True)

    def after(self, window: Window) -> bool:
        """A call in a list is one when a comma or the end of the list follows."""
        at = spaces(window, window.pos)
        if not self._listed:
            return self.finish()
        if at < len(window.text):
            legal = window.text[at] in ",]"
            return self.finish() if legal else self.fail("what follows a call is neither a comma nor the list's end")
        if not window.ended:
            return False
        return self.finish() if window.clean else self.cut_off(window, "")

    def _call(self, window: Window, at: int) -> bool:
        end, name = opens(window, at, self.sink.tools)
        return self.begin(window, end, name, PyArguments(self.sink.arguments, _parameters(self.sink.tools.get(name))))

    def _end_list(self, window: Window, end: int) -> bool:
        self._listed = False
        self.sink.mark(window, end)
        if not self.closer:
            self._step = self._stray
        return True

    def _stray(self, window: Window) -> bool:
        """After a list in the text: a marker that should have been opened before it."""
        end, _ = first(window, spaces(window, window.pos), self._strays)
        if end == MORE and not window.ended:
            return False
        return self.over(window, max(end, window.pos))

    def _block_end(self, window: Window, at: int) -> bool:
        """Outside a list, in a block: its end, another list, or a call without one."""
        end, _ = first(window, at, (self.closer,))
        if end > 0:
            return self.over(window, end)
        if end == MORE and not window.ended:
            return False
        if window.text[at] in ",;":
            at = spaces(window, at + 1)
        listed = window.text.startswith("[", at)
        return self._another(window, spaces(window, at + 1) if listed else at, listed)

    def _another(self, window: Window, at: int, listed: bool) -> bool:
        """Whether a call begins at `at`; what lies before it is framing."""
        end, name = opens(window, at, self.sink.tools)
        if end == MORE and not window.ended:
            return False
        if end == NO or not name:
            return self.over(window, window.pos)
        self.sink.mark(window, at)
        self._listed = listed
        return self._call(window, at) if end > 0 else self.cut_off(window, name)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return Frame(
        python_calls(rules, tools),
        before=f"{format.open}[",
        between=", ",
        after=f"]{format.close}",
        never=(rf"\[\s*{rules.any_name}\s*\(", pattern(OPEN), pattern(PYTHON_OPEN)),
        anywhere=bool(format.open),
        again=bool(format.open),
    )


FORMAT = Format(
    "pythonic",
    render,
    (in_block, bare),
    hints="<[",
    open=OPEN,
    close=CLOSE,
    ends=("<|im_end|>", "<|endoftext|>", "<|eot|>", "<|eom|>", "<|eot_id|>", "<|eom_id|>"),
    grammar=grammar,
)
