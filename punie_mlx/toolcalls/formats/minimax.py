"""MiniMax M2: calls as invocations in one block, values as plain text, other values than strings as JSON.

    <minimax:tool_call>
    <invoke name="NAME">
    <parameter name="KEY">VALUE</parameter>
    </invoke>
    </minimax:tool_call>

Nothing is escaped, so a string that spells `</parameter>` with a legal continuation cannot be read back from text.
"""

from __future__ import annotations

from collections.abc import Sequence

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.tagged import Dialect, Tag, plain
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
DIALECT = Dialect(
    function=Tag("<invoke ", attributes=True),
    function_end="</invoke>",
    parameter=Tag("<parameter ", attributes=True),
)


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them."""
    return f"{OPEN}\n{''.join(map(_invoke, calls))}{CLOSE}" if calls else ""


def _invoke(call: ToolCall) -> str:
    parameters = "".join(f'<parameter name="{k}">{plain(v)}</parameter>\n' for k, v in call.arguments.items())
    return f'<invoke name="{call.name}">\n{parameters}</invoke>\n'


_TAGS = Tags(
    '\n<invoke name="', '">\n', '<parameter name="', '">', "</parameter>\n", "</invoke>\n", "", between='<invoke name="'
)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)


FORMAT = Format(
    "minimax",
    render,
    (DIALECT.in_block, DIALECT.bare),
    hints="<[",
    open=OPEN,
    close=CLOSE,
    framing="\n",
    ends=("[e~[",),
    grammar=grammar,
)
