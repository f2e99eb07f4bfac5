"""Qwen3-Coder, Qwen3.5 and 3.6: calls as tags, values as plain text between them, one newline on either side.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Nothing is escaped, so a string that spells `</parameter>` with a legal continuation cannot be read back from text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.formats import hermes
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.tagged import Dialect
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DIALECT = Dialect(trim=True)


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them."""
    return "\n".join(f"{OPEN}\n{_function(c)}\n{CLOSE}" for c in calls)


def _function(call: ToolCall) -> str:
    parameters = "".join(f"<parameter={k}>\n{value(v)}\n</parameter>\n" for k, v in call.arguments.items())
    return f"<function={call.name}>\n{parameters}</function>"


def value(value: Any) -> str:
    """Strings as they stand, objects and arrays as JSON, other scalars as Python prints them."""
    return dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)


_TAGS = Tags("\n<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>", "\n", "\n")


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)


FORMAT = Format(
    "qwen3_coder",
    render,
    (DIALECT.in_block, hermes.in_block, DIALECT.bare),
    open=OPEN,
    close=CLOSE,
    framing="\n\n",
    grammar=grammar,
)
