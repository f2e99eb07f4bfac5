"""MiMo: the tags of Qwen3-Coder in one line, with values verbatim.

    <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>

Nothing is escaped, so a string that spells `</parameter>` with a legal continuation cannot be read back from text.
"""

from __future__ import annotations

from collections.abc import Sequence

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.formats import hermes, qwen3_coder
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.tagged import Dialect
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DIALECT = Dialect()


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them."""
    return "".join(f"{OPEN}{_function(c)}{CLOSE}" for c in calls)


def _function(call: ToolCall) -> str:
    parameters = "".join(f"<parameter={k}>{qwen3_coder.value(v)}</parameter>" for k, v in call.arguments.items())
    return f"<function={call.name}>{parameters}</function>"


_TAGS = Tags("<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "")


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)


FORMAT = Format(
    "mimo", render, (DIALECT.in_block, hermes.in_block, DIALECT.bare), open=OPEN, close=CLOSE, grammar=grammar
)
