"""DSML, in which DeepSeek V3.2 and V4 spell calls: the tags of an invocation, with the type of each value.

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="NAME">
    <｜DSML｜parameter name="KEY" string="true">VALUE</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

`string="false"` says that the value is JSON; what the schema declares goes before what the tag says. V4 calls the block
`tool_calls`. This is a spelling of `deepseek`, no format of the table.
Nothing is escaped, so a string that spells the closing tag with a legal continuation cannot be read back from text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.tagged import Dialect, Tag, plain
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
FRAMING = "\n\n"
DIALECT = Dialect(
    function=Tag("<｜DSML｜invoke ", attributes=True),
    function_end="</｜DSML｜invoke>",
    parameter=Tag("<｜DSML｜parameter ", attributes=True),
    parameter_end="</｜DSML｜parameter>",
    open=OPEN,
    close=CLOSE,
)
_V4 = replace(DIALECT, open="<｜DSML｜tool_calls>", close="</｜DSML｜tool_calls>")
BLOCKS = (DIALECT.open, _V4.open)
OPENERS = (DIALECT.in_block, _V4.in_block, DIALECT.bare)


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as DeepSeek's own encoder writes them."""
    return f"{OPEN}\n{''.join(map(_invoke, calls))}{CLOSE}" if calls else ""


def _invoke(call: ToolCall) -> str:
    parameters = "".join(_parameter(k, v) for k, v in call.arguments.items())
    return f'<｜DSML｜invoke name="{call.name}">\n{parameters}</｜DSML｜invoke>\n'


def _parameter(key: str, value: Any) -> str:
    is_string = "true" if isinstance(value, str) else "false"
    return f'<｜DSML｜parameter name="{key}" string="{is_string}">{plain(value)}</｜DSML｜parameter>\n'


_TAGS = Tags(
    '\n<｜DSML｜invoke name="',
    '">\n',
    '<｜DSML｜parameter name="',
    '" string="true">',
    "</｜DSML｜parameter>\n",
    "</｜DSML｜invoke>\n",
    "",
    between='<｜DSML｜invoke name="',
    after_json_key='" string="false">',
)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)
