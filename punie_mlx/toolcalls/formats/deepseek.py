"""DeepSeek V3, V3.1 and V3.2.

V3.1, which is written:

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3 has `function` before the separator, and the name and a fence after it:

    <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {…}
    ```<｜tool▁call▁end｜>

V3.2 writes tags instead, which `dsml` reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.formats import dsml
from punie_mlx.toolcalls.grammar_calls import json_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.headed import MORE_HEADER, NO_HEADER, Header, Layout, arguments_follow, opener, until
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_SECTION = (OPEN, "<｜tool_calls_begin｜>", "<｜tool calls begin｜>", "<｜tool▁calls｜>")  # as distilled models slip
_EOS = "<｜end▁of▁sentence｜>"
_NAME = re.compile(r"[^\s{}<>`]{1,200}")


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the template of V3.1 writes them."""
    return f"{OPEN}{''.join(_call(c) for c in calls)}{CLOSE}" if calls else ""


def _call(call: ToolCall) -> str:
    return f"{CALL}{call.name}{SEPARATOR}{dumps(call.arguments)}{CALL_END}"


def header(window: Window, at: int, first: bool) -> Header:
    """The markers and the name before the arguments at `at`, in the spelling of V3.1 or V3."""
    start = literal(window, at, CALL)
    if start == NO and first:
        start = at
    if start < 0:
        return Header(start)
    stop, end = until(window, start, SEPARATOR)
    if stop < 0:
        return Header(stop)
    name = window.text[start:stop].strip()
    if not _NAME.fullmatch(name):
        return NO_HEADER
    found = arguments_follow(window, end, name, end_marker=CALL_END)
    if found.end > 0 or found.end == MORE:
        return found if found.end > 0 or spaces(window, end) < len(window.text) else MORE_HEADER
    return _after_separator(window, spaces(window, end))


def _after_separator(window: Window, at: int) -> Header:
    found = _NAME.match(window.text, at)
    if found is None:
        return NO_HEADER
    if found.end() == len(window.text):
        return MORE_HEADER
    return arguments_follow(window, found.end(), found.group())


LAYOUT = Layout(header, _SECTION, (CLOSE,), begin=CALL, end=CALL_END, bare=True, closers=(_EOS,))


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules, and those of V3 and V3.2."""
    never = tuple(map(pattern, (OPEN, CALL, *dsml.BLOCKS)))
    if format.open in dsml.BLOCKS:
        frame = dsml.grammar(rules, format, tools)
        return replace(frame, never=(*frame.never, *never))
    head = f"function{SEPARATOR}"
    fenced = json_calls(rules, tools, rules.spell("\n```json\n"), rules.spell(f"\n```{CALL_END}"))
    return Frame(
        json_calls(rules, tools, rules.spell(SEPARATOR), rules.spell(CALL_END)),
        before=format.open + CALL,
        between=CALL,
        after=format.close,
        never=never,
        again=True,
        others=(Frame(fenced, before=head, between=f"\n{CALL}{head}", after=format.close),),
    )


FORMAT = Format(
    "deepseek", render, (opener(LAYOUT), *dsml.OPENERS), open=OPEN, close=CLOSE, ends=(_EOS,), grammar=grammar
)
