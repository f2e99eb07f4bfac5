"""A profile in the terminal: where the time went, what a request took, and ours beside another server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from punie_mlx.evals.profile import FIGURES, TOLERANCE, adds_up
from punie_mlx.evals.tables import Grid

Json = Mapping[str, Any]
TIMES = FIGURES[:-1]
REQUEST = {
    "time_to_first_token": "time to first token (server)", "time_to_first_byte": "time to first byte",
    "time_to_first_text": "time to first text", "exchange": "whole exchange (client)",
    "tokens_per_second": "tokens a second", "tokens": "tokens",
}  # fmt: skip
COUNTS = ("tokens_per_second", "tokens")
LESS_IS_BETTER = "a time below 1 is shorter, tokens a second above 1 are more"


def grids(profile: Json) -> Iterator[Grid]:
    """All tables of a profile."""
    yield _phases(profile)
    yield _requests(profile)
    if profile.get("comparison"):
        yield _comparison(profile)


def warnings(profile: Json) -> Iterator[str]:
    """What must not be overlooked."""
    if not adds_up(profile):
        share = profile["unaccounted_share"]
        told = "all" if share is None else f"{share:.1%}"
        yield (
            f"THE PHASES DO NOT ADD UP: {told} of the wall time is unaccounted for, and {TOLERANCE:.0%} may be. "
            "Do not use these figures; run again on a quiet machine, and report it if it stays"
        )
    for other in profile.get("comparison") or ():
        if other["failed"]:
            yield f"{other['server']} did not answer {other['failed']} requests; they are left out"


def _phases(profile: Json) -> Grid:
    rows = []
    for name in profile["phases_order"]:
        rows.append((name, *_cells(profile["phases"][name])))
        inside = {k.partition(".")[2]: v for k, v in profile["inside"].items() if k.partition(".")[0] == name}
        rows += [(f"  of which {part}", *_cells(found)) for part, found in inside.items()]
    wall = profile["wall"]
    rows.append(("all", *(_seconds(wall[k]) for k in TIMES), "100.0%"))
    rows.append(("unaccounted", "", "", "", "", _percent(profile["unaccounted_share"], 2)))
    title = f"{profile['model'].get('label') or profile['model']['name']} on {profile['server'] or 'another server'}"
    return Grid(
        f"{title}: a case's time, {profile['cases']} cases one after the other",
        ("phase", *TIMES, "share"),
        tuple(rows),
        _warm_up(profile["warm_up"]),
    )


def _warm_up(found: Json) -> str:
    known = {
        "the server's start took": found["load"], "the first case": found["first_case"],
        "its first request": found["first_request"],
    }  # fmt: skip
    told = ", ".join(f"{what} {_seconds(value)}" for what, value in known.items() if value is not None)
    return f"left out as warm-up: {told}" if told else ""


def _requests(profile: Json) -> Grid:
    rows = [
        (told, *_figures(name, found)) for name, told in REQUEST.items() if (found := profile["per_request"].get(name))
    ]
    return Grid(f"a request's, {profile['requests']} requests", ("", *TIMES[:3]), tuple(rows))


def _comparison(profile: Json) -> Grid:
    ours, other = profile["comparison"]
    found = profile["ratios"]
    rows: list[tuple[str, ...]] = []
    for name, told in REQUEST.items():
        if name not in found:
            continue
        middle = [_ratio(found[name][k]) for k in ("median", "low", "high")]
        p50 = [_figures(name, p["per_request"][name])[0] for p in (ours, other)]
        rows.append((told, *p50, middle[0], f"{middle[1]} to {middle[2]}"))
    loads = (ours["warm_up"]["load"], other["warm_up"]["load"])
    rows.append(("start to first token", *map(_seconds, loads), _ratio(loads[0] / loads[1]), ""))
    note = f"{found['requests']} streamed requests in turns, {found['as_many_tokens']} with as many tokens from both; "
    headers = ("client's clock, p50", ours["server"], other["server"], "ratio", "middle half")
    return Grid("the same requests to both", headers, tuple(rows), note + LESS_IS_BETTER)


def _cells(found: Json) -> tuple[str, ...]:
    return (*(_seconds(found[k]) for k in TIMES), _percent(found["share"]))


def _figures(name: str, found: Json) -> tuple[str, ...]:
    shown = _count if name in COUNTS else _seconds
    return tuple(shown(found[k]) for k in TIMES[:3])


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:,.2f} ms" if abs(value) < 1 else f"{value:,.2f} s"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _percent(share: float | None, places: int = 1) -> str:
    return "–" if share is None else f"{share:.{places}%}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
