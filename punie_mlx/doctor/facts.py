"""What was learned on the way, for people: a terminal and a page show the same of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from punie_mlx.pages.text import clipped

ANSWERS = ("asked for", "writes", "right", "P(opener)", "P(fence)", "raw text")
RAW_ANSWERS = "what the model writes, before any parser"
"""Heads of the columns of `answers`, and what the table is called."""
_ONE_PROBE = "answers"


def headed(facts: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Heading → what stands under it, by name; what is empty is left out."""
    for heading, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        told = [(name, one_line(what)) for name, what in rows if name != _ONE_PROBE and what not in (None, "", [], {})]
        if told:
            yield heading, told


def answers(facts: dict[str, Any], most: int) -> list[tuple[str, ...]]:
    """A row of `ANSWERS` for each probe of the model, with at most `most` characters of what it wrote."""
    probed = facts.get("behaviour", {}).get(_ONE_PROBE, [])
    return [
        (
            one["asked"],
            f"{one['kind']} ({one['note']})" if one["note"] else one["kind"],
            one_line(one["right"]),
            *(f"{p:.4f}" if (p := one["chances"].get(label)) is not None else "" for label in ("opener", "fence")),
            clipped(one["text"], most),
        )
        for one in probed
    ]


def one_line(value: Any) -> str:
    """A fact as text: lists by commas, objects by name."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case dict():
            return "; ".join(f"{k}: {one_line(v)}" for k, v in value.items())
        case list() | tuple():
            return ", ".join(map(one_line, value))
        case float():
            return f"{value:.4g}"
    return str(value)
