"""Which wire format a served model speaks: what its template shows, or what the user says that it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import detect, formats
from punie_mlx.toolcalls.wire import Format

AUTO, NONE = "auto", "none"


def choose(
    chat_template: str | Mapping[str, str] | None,
    vocabulary: Collection[str],
    format: str = AUTO,
    reasoning: str = AUTO,
) -> Format:
    """The format of a model's calls, with the tags of its thinking.

    format: "auto", or a name. reasoning: "auto", "none" (all of it is content), or "OPEN,CLOSE". Raises `ConfigError`.
    """
    found = detect.examine(chat_template, vocabulary)
    return with_reasoning(_named(format, found) if format != AUTO else _found(found), reasoning)


def check_names(format: str, reasoning: str) -> None:
    """Raises `ConfigError` for what `choose` would refuse whatever the model."""
    wire = formats.get("qwen3_coder" if format == AUTO else format)
    if not wire.native:
        raise ConfigError(
            f"--tool-call-format {format} cannot be told from an answer that only shows a call: serve the model "
            "in its own format, with --rescue to read such calls too"
        )
    if reasoning not in (AUTO, NONE):
        _tags(reasoning)


def with_reasoning(wire: Format, reasoning: str) -> Format:
    """`wire`, its thinking framed as `reasoning` says."""
    if reasoning == AUTO:
        return wire
    if wire.reader is not None:
        raise ConfigError(
            f"--reasoning-format {reasoning}: the format {wire.name} has channels, and no tags around thinking: "
            "leave the option out"
        )
    if reasoning == NONE:
        return replace(wire, think=("", ""))
    tags = _tags(reasoning)
    return replace(wire, think=tags, hints="".join(dict.fromkeys((*wire.hints, *(tag[0] for tag in tags)))))


def _tags(reasoning: str) -> tuple[str, str]:
    opening, comma, closing = (part.strip() for part in reasoning.partition(","))
    if not (opening and comma and closing) or opening == closing:
        raise ConfigError(f"--reasoning-format {reasoning!r} must be auto, none, or two tags: '<think>,</think>'")
    return opening, closing


def _found(found: detect.Detection) -> Format:
    try:
        return found.wire()
    except ConfigError as e:
        raise ConfigError(f"{e}. --tool-call-format NAME serves it all the same, in the format that you name") from e


def _named(name: str, found: detect.Detection) -> Format:
    """The format called `name`; with what the template says of its markers, if it is the one that fits."""
    check_names(name, AUTO)
    return found.wire() if found.format == name else formats.get(name)
