"""Seed-OSS: the tags of Qwen3-Coder between markers of its own, with values verbatim.

    <seed:tool_call>
    <function=NAME>
    <parameter=KEY>VALUE</parameter>
    </function>
    </seed:tool_call>

Nothing is escaped, so a string that spells `</parameter>` with a legal continuation cannot be read back from text.
Objects and arrays are written as Python prints them, and read as such where the schema declares them.
What the model reflects on its thinking budget, `<seed:cot_budget_reflect>…`, is part of its thinking.
"""

from __future__ import annotations

from collections.abc import Sequence

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.grammar_values import PYTHON
from punie_mlx.toolcalls.tagged import Dialect
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<seed:tool_call>", "</seed:tool_call>"
DIALECT = Dialect()


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them: values other than strings as Python prints them."""
    return "\n".join(f"{OPEN}\n{_function(c)}\n{CLOSE}" for c in calls)


def _function(call: ToolCall) -> str:
    parameters = "".join(f"<parameter={k}>{v}</parameter>\n" for k, v in call.arguments.items())
    return f"<function={call.name}>\n{parameters}</function>"


_TAGS = Tags("\n<function=", ">\n", "<parameter=", ">", "</parameter>\n", "</function>", "\n", "\n", style=PYTHON)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)


FORMAT = Format(
    "seed_oss",
    render,
    (DIALECT.in_block, DIALECT.bare),
    open=OPEN,
    close=CLOSE,
    think=("<seed:think>", "</seed:think>"),
    framing="\n\n",
    ends=("<seed:eos>",),
    grammar=grammar,
)
