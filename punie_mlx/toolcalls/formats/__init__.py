"""The wire formats, one module each: how a call is rendered and how it is read. This is their table.

A format is read natively (a server trusts it), or only by the converter: `json_fence` is how models write calls
that were never taught a format, and a server that read it would take examples in prose for calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.formats import hermes, json_fence, qwen3_coder


@dataclass(frozen=True)
class Format:
    """One wire format. `bare_function`: a call may begin without its opening tag if its tool is offered."""

    name: str
    render: Callable[[Sequence[ToolCall]], str]
    bare_function: bool = False
    native: bool = True


FORMATS = {
    f.name: f
    for f in (
        Format("qwen3_coder", qwen3_coder.render, bare_function=True),
        Format("hermes", hermes.render),
        Format("json_fence", json_fence.render, native=False),
    )
}


def get(name: str) -> Format:
    """The format called `name`. Raises `ConfigError`."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ConfigError(f"there is no wire format {name!r}: choose one of {', '.join(sorted(FORMATS))}") from None


def render(name: str, calls: Sequence[ToolCall]) -> str:
    """`calls` as the format `name` writes them. Raises `ConfigError` for an unknown format."""
    return get(name).render(calls)
