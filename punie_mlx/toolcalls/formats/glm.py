"""GLM-4.5 to 4.7: the bare name of a function, then keys and values in tags, other values than strings as JSON.

    <tool_call>NAME
    <arg_key>KEY</arg_key>
    <arg_value>VALUE</arg_value>
    </tool_call>

GLM-4.7 leaves the newlines out. A word after `<tool_call>` is a name only where an argument or `</tool_call>` follows.
Nothing is escaped, so a string that spells `</arg_value>` with a legal continuation cannot be read back from text.
"""

from __future__ import annotations

from collections.abc import Sequence

from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.formats import hermes
from punie_mlx.toolcalls.grammar_calls import Tags, tag_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules
from punie_mlx.toolcalls.tagged import Dialect, Tag, plain
from punie_mlx.toolcalls.wire import Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DIALECT = Dialect(
    function=None,
    function_end="",
    parameter=Tag("<arg_key>", "</arg_key>", then="<arg_value>"),
    parameter_end="</arg_value>",
    spelled=True,
)


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them."""
    return "\n".join(f"{OPEN}{c.name}\n{_arguments(c)}{CLOSE}" for c in calls)


def _arguments(call: ToolCall) -> str:
    pairs = call.arguments.items()
    return "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{plain(v)}</arg_value>\n" for k, v in pairs)


_TAGS = Tags("", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "", "", "\n", loose=True)


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules."""
    return tag_calls(rules, format, tools, DIALECT, _TAGS)


FORMAT = Format(
    "glm",
    render,
    (DIALECT.in_block, hermes.in_block),
    open=OPEN,
    close=CLOSE,
    framing="\n",
    ends=("<|user|>", "<|observation|>", "<|endoftext|>", "<|role_end|>"),
    grammar=grammar,
)
