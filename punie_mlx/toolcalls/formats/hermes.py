"""Hermes, Qwen2.5 and Qwen3: calls as JSON.

    <tool_call>
    {"name": NAME, "arguments": {…}}
    </tool_call>

The end of the JSON is found by its strings and brackets, never by searching the closing tag, which a string may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps
from punie_mlx.toolcalls.grammar_calls import named_json
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.jsoncalls import JsonBody, fence, opens
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.tagged import Dialect
from punie_mlx.toolcalls.window import MORE, Window, literal, spaces
from punie_mlx.toolcalls.wire import Format, Opening

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def renderer(open: str, close: str) -> Callable[[Sequence[ToolCall]], str]:
    """What writes calls between `open` and `close`."""

    def render(calls: Sequence[ToolCall]) -> str:
        """`calls` as the model family's own template writes them."""
        bodies = (dumps({"name": c.name, "arguments": c.arguments}) for c in calls)
        return "\n".join(f"{open}\n{body}\n{close}" for body in bodies)

    return render


render = renderer(OPEN, CLOSE)


def in_block(window: Window, at: int, sink: Sink, format: Format) -> Opening:
    """A JSON call after `<tool_call>`, as it is or in a fence of Markdown."""
    end = literal(window, at, format.open)
    if end < 0:
        return Opening(end)
    body = spaces(window, end)
    fenced = fence(window, body)
    if fenced == MORE:
        return Opening(MORE)
    if fenced > 0:
        body = spaces(window, fenced)
    found = opens(window, body)
    if found < 0:
        return Opening(found)
    return Opening(body, JsonBody(sink, format.close, opened=format.open, fenced=fenced > 0))


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules; some models leave the newlines out."""
    rules.loose = True
    opening = f'{format.open}\n{{"name": "'
    return Frame(
        named_json(rules, tools),
        before=opening,
        between=f"}}\n{format.close}\n{opening}",
        after=f"}}\n{format.close}",
        never=(rf"{pattern(format.open)}\s*(`|[{{\[]|<function=)",),
        again=True,
    )


_TAGS = Dialect(trim=True)  # of Qwen3-Coder, which its relatives mix up with JSON
FORMAT = Format("hermes", render, (in_block, _TAGS.in_block), open=OPEN, close=CLOSE, grammar=grammar)
