"""The wire formats, one module each: how a call is rendered, how it is read, and its grammar. This is their table."""

from __future__ import annotations

from collections.abc import Sequence

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.formats import (
    deepseek,
    gemma,
    glm,
    harmony,
    hermes,
    json_fence,
    kimi,
    llama3_json,
    mimo,
    minimax,
    mistral,
    pythonic,
    qwen3_coder,
    seed_oss,
    smollm3,
)
from punie_mlx.toolcalls.wire import Format

_MODULES = (
    qwen3_coder,
    seed_oss,
    mimo,
    hermes,
    smollm3,
    harmony,
    mistral,
    llama3_json,
    pythonic,
    glm,
    kimi,
    minimax,
    deepseek,
    gemma,
    json_fence,
)
FORMATS = {m.FORMAT.name: m.FORMAT for m in _MODULES}


def get(name: str) -> Format:
    """The format called `name`. Raises `ConfigError`."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ConfigError(f"there is no wire format {name!r}: choose one of {', '.join(sorted(FORMATS))}") from None


def render(name: str, calls: Sequence[ToolCall]) -> str:
    """`calls` as the format `name` writes them. Raises `ConfigError` for an unknown format."""
    return get(name).render(calls)
