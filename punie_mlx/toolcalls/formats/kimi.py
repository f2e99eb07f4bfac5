"""Kimi K2: calls as JSON arguments behind an id, which is the name and the number of the call.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>{…}<|tool_call_end|>
    <|tool_calls_section_end|>

On the wire there is no white space between these. NAME may hold dots and colons: INDEX is what follows the last colon.
It may be missing where NAME is that of an offered tool; any other id without one begins no call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import json_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.headed import NO_HEADER, Header, Layout, arguments_follow, opener, until
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import Window, literal
from punie_mlx.toolcalls.wire import Format, Opener, Opening

OPEN, CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_SECTION, _SECTION_END = (OPEN, "<|tool_call_section_begin|>"), (CLOSE, "<|tool_call_section_end|>")
_PREFIX = "functions."
_BEGINS = "<|tool_call"  # every marker that a call or a section can begin with


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model's own template writes them, numbered from 0."""
    return f"{OPEN}{''.join(_call(i, c) for i, c in enumerate(calls))}{CLOSE}" if calls else ""


def _call(index: int, call: ToolCall) -> str:
    return f"{CALL}{_PREFIX}{call.name}:{index}{ARGUMENTS}{dumps(call.arguments)}{CALL_END}"


def header(window: Window, at: int, first: bool, offered: Collection[str] = ()) -> Header:
    """The id of a call at `at`, between its markers."""
    start = literal(window, at, CALL)
    if start < 0:
        return Header(start)
    stop, end = until(window, start, ARGUMENTS)
    if stop < 0:
        return Header(stop)
    id = window.text[start:stop].strip()
    before, colon, index = id.rpartition(":")
    indexed = colon and (index.isdigit() or not index)
    name = (before if indexed else id).removeprefix(_PREFIX).strip()
    if not name or "\n" in name or not (indexed or name in offered):
        return NO_HEADER
    return arguments_follow(window, end, name, id, CALL_END)


LAYOUT = Layout(header, _SECTION, _SECTION_END, begin=CALL, end=CALL_END, bare=True, closers=("<|im_end|>",))


@lru_cache(maxsize=64)
def _opener(offered: frozenset[str]) -> Opener:
    return opener(replace(LAYOUT, header=partial(header, offered=offered)))


def in_section(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A section of calls, or a call without one."""
    begins = literal(window, at, _BEGINS)
    return _opener(frozenset(sink.tools))(window, at, sink, format) if begins > 0 else Opening(begins)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    number = f'":" /[0-9]{{1,3}}/ {rules.spell(ARGUMENTS)}'
    return Frame(
        json_calls(rules, tools, number, rules.spell(CALL_END)),
        before=f"{format.open}{CALL}{_PREFIX}",
        between=f"{CALL}{_PREFIX}",
        after=format.close,
        never=(pattern(CALL), pattern(format.open)),
        again=True,
    )


FORMAT = Format("kimi", render, (in_section,), open=OPEN, close=CLOSE, ends=("<|im_end|>",), grammar=grammar)
