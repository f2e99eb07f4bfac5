"""All checks of the doctor, by area, and the page of explanation that each of them has."""

from __future__ import annotations

from pathlib import Path

from punie_mlx.doctor import (
    adapter,
    behaviour,
    data,
    roundtrip,
    server_checks,
    template_calls,
    template_results,
    template_text,
    template_thinking,
    template_tools,
    template_turns,
    vocabulary,
)
from punie_mlx.doctor.findings import AREAS, Check
from punie_mlx.errors import ConfigError

PAGES = Path(__file__).parent / "explained"


def checks(*areas: str) -> tuple[Check, ...]:
    """The checks of `areas`, or all of them, in the order in which they are made."""
    every: tuple[Check, ...] = (
        *template_tools.CHECKS,
        *template_calls.CHECKS,
        *template_results.CHECKS,
        *template_turns.CHECKS,
        *template_thinking.CHECKS,
        *template_text.CHECKS,
        *roundtrip.CHECKS,
        *vocabulary.CHECKS,
        *adapter.CHECKS,
        *data.CHECKS,
        *behaviour.CHECKS,
        *server_checks.CHECKS,
    )
    return tuple(c for area in areas or AREAS for c in every if c.area == area)


def explanation(check: str) -> str:
    """The page of a check. Raises `ConfigError` for one that is unknown."""
    known = sorted(c.id for c in checks())
    if check not in known:
        raise ConfigError(f"there is no check {check!r}: choose one of {', '.join(known)}")
    return (PAGES / f"{check}.md").read_text(encoding="utf-8")
