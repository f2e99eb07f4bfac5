"""mlx_lm's own reader of calls: which one it takes for a template, and what that makes of a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from punie_mlx.chat.render import StockParser, stock_parser
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import ModelError
from punie_mlx.toolcalls.calls import ToolCall

# mlx_lm's readers of each format, the likelier first. For the others it has none.
READERS = {
    "qwen3_coder": ("qwen3_coder",),
    "mimo": ("qwen3_coder",),
    "hermes": ("json_tools",),
    "smollm3": ("json_tools",),
    "mistral": ("mistral",),
    "pythonic": ("pythonic",),
    "glm": ("glm47",),
    "kimi": ("kimi_k2",),
    "minimax": ("minimax_m2",),
    "gemma": ("gemma4", "function_gemma"),
}


def chosen(specimen: Specimen) -> StockParser | None:
    """The reader that mlx_lm takes for `specimen`, or None: by the model's configuration, its template, its tokens."""
    named = configured(specimen)
    template = specimen.tokenizer.chat_template  # several by name, where the model has them: mlx_lm looks at none then
    try:
        return stock_parser(template, specimen.vocabulary, named)
    except ModelError:
        return None


def configured(specimen: Specimen) -> str | None:
    """The reader that the model's tokenizer_config.json names."""
    if specimen.directory is None:
        return None
    try:
        config = json.loads((specimen.directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    named = config.get("tool_parser_type") if isinstance(config, dict) else None
    return named if isinstance(named, str) else None


def able(specimen: Specimen, turn: str, tools: Sequence[dict[str, Any]], call: ToolCall) -> StockParser | None:
    """The first of mlx_lm's readers for the format of `specimen` that finds `call` in `turn`, and no other."""
    for name in READERS.get(specimen.wire.name, ()) if specimen.wire else ():
        reader = stock_parser(None, {}, name)
        if reader is not None and read(reader, turn, tools) == [call]:
            return reader
    return None


def read(reader: StockParser, turn: str, tools: Sequence[dict[str, Any]]) -> list[ToolCall] | str:
    """The calls that `reader` finds in `turn`, as mlx_lm's server looks for them; or why it finds none."""
    bodies = _between(turn, reader.opening, reader.closing)
    if not bodies:
        return f"{reader.name} waits for {reader.opening!r}, which is not there"
    calls: list[ToolCall] = []
    for body in bodies:
        try:
            found = reader.read(body, list(tools))
            calls += [_call(c) for c in (found if isinstance(found, list) else [found])]
        except Exception as e:  # a reader of somebody else's: whatever it raises, the server has no call then
            return f"{reader.name} raises {type(e).__name__}: {e}"
    return calls


def _between(turn: str, opening: str, closing: str) -> list[str]:
    end = re.escape(closing) if closing else r"\Z"
    return re.findall(f"{re.escape(opening)}(.*?){end}", turn, re.DOTALL)


def _call(value: Any) -> ToolCall:
    arguments = value["arguments"]
    return ToolCall(value["name"], json.loads(arguments) if isinstance(arguments, str) else dict(arguments))
