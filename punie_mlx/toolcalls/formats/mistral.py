"""Mistral: calls behind `[TOOL_CALLS]`. Newer models put the name before the arguments, which is written here:

    [TOOL_CALLS]NAME[ARGS]{…}[TOOL_CALLS]NAME[ARGS]{…}
    [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}
    [TOOL_CALLS]NAME{…}

Older ones write a list of JSON:

    [TOOL_CALLS] [{"name": NAME, "arguments": {…}, "id": ID}]

A call without a name, which models do write, is reported with the name "".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from punie_mlx.toolcalls import jsoncalls
from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import json_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, quote
from punie_mlx.toolcalls.headed import MORE_HEADER, NO_HEADER, Header, Layout, arguments_follow, opener
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces
from punie_mlx.toolcalls.wire import Format, Opening

OPEN, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_EOS = "</s>"
_NAME = re.compile(r"[^\s\[\]{}<>()\"',;]{0,200}")
_ID = re.compile(r"\w{0,64}")


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the templates of the newer models write them."""
    return "".join(f"{OPEN}{c.name}{ARGUMENTS}{dumps(c.arguments)}" for c in calls)


def header(window: Window, at: int, first: bool) -> Header:
    """The name at `at`, and `[ARGS]`, which may be missing after `[TOOL_CALLS]`."""
    found = _NAME.match(window.text, at)
    end = found.end() if found else at
    if end == len(window.text):
        return MORE_HEADER
    name = window.text[at:end]
    if not name and not first:
        return NO_HEADER
    id, end = _call_id(window, end)
    if end < 0:
        return Header(end)
    separator = literal(window, end, ARGUMENTS)
    if separator > 0:
        return arguments_follow(window, separator, name, id)
    if separator == NO and first and name and not id:
        body = spaces(window, end)
        follows = MORE if body == len(window.text) else NO
        if follows == NO and window.text[body] == "{":
            follows = jsoncalls.opens(window, body)
        return Header(body if follows > 0 else follows, name)
    return Header(separator)


def _call_id(window: Window, at: int) -> tuple[str, int]:
    """The id at `at`, "" where there is none, and where it ends."""
    start = literal(window, at, CALL_ID)
    if start < 0:
        return "", MORE if start == MORE and literal(window, at, ARGUMENTS) == NO else at
    found = _ID.match(window.text, start)
    end = found.end() if found else start
    return window.text[start:end], MORE if end == len(window.text) else end


def in_list(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """Calls as JSON after `[TOOL_CALLS]`."""
    end = literal(window, at, format.open)
    if end < 0:
        return Opening(end)
    body = spaces(window, end)
    found = jsoncalls.opens(window, body)
    return Opening(body, jsoncalls.JsonBody(sink, opened=format.open, nameless=True)) if found > 0 else Opening(found)


LAYOUT = Layout(header, section=(OPEN,), closers=(_EOS,))


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules, and the list of older models."""
    id = '("," " "? "\\"id\\": \\"" /[A-Za-z0-9]{9}/ "\\"")?'
    listed = json_calls(rules, tools, quote('", "arguments": '), id, quoted=True)
    older = Frame(listed, before='[{"name": "', between='}, {"name": "', after="}]")
    newer = json_calls(rules, tools, rules.spell(ARGUMENTS))
    return Frame(newer, before=format.open, between=format.open, others=(older,))


FORMAT = Format(
    "mistral",
    render,
    (in_list, opener(LAYOUT)),
    hints="[<",
    open=OPEN,
    think=("[THINK]", "[/THINK]"),
    ends=(_EOS,),
    grammar=grammar,
)
