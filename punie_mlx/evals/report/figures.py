"""Figures as the page shows them, and what it counts out of the cases: pairs of runs, and the cases behind a confusion.

Rates come from the run files (`summary.py` made them): a mapping with accuracy, interval, n and passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.errors import DataError
from punie_mlx.evals.compare import compare
from punie_mlx.evals.report.inputs import Json, Run
from punie_mlx.evals.summary import case_key, pairs_of_tools

Key = tuple[str, str]
"""Suite and id of a case."""

Rate = Mapping[str, Any]

NOTHING = "–"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"


def interval(ends: Sequence[float] | None) -> str:
    """`93.7–98.3`, in percent."""
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}" if ends else ""


def of(rate: Rate) -> str:
    """`240/245`."""
    return f"{rate['passed']:,}/{rate['n']:,}"


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """A time as short as it can be said: 2.31 s, 412 ms, 0.18 ms."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.2f} ms"


def size(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.2f} MB"


def repeats(run: Run) -> dict[Key, list[Json]]:
    """The tries of each case, in order."""
    found: dict[Key, list[Json]] = defaultdict(list)
    for case in run.cases:
        found[case_key(case)].append(case)
    return dict(found)


def compared(runs: Sequence[Run]) -> Json | None:
    """The comparison of all runs with the first, as `punie-mlx compare` makes it; None where there is none."""
    try:
        return compare([r.record for r in runs]) if len(runs) > 1 else None
    except DataError:
        return None


def against(runs: Sequence[Run]) -> list[Json | None]:
    """How each run compares with the first; None for the first, and for those that were asked something else."""
    if found := compared(runs):
        return [row["against_baseline"] for row in found["runs"]]
    pairs = (compared([runs[0], other]) for other in runs[1:])
    return [None, *(pair["runs"][1]["against_baseline"] if pair else None for pair in pairs)]


def confused(cases: Sequence[Json]) -> dict[tuple[str, str], list[Key]]:
    """The cases in which a tool was expected and another called, by that pair, the most frequent first."""
    found: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for case in cases:
        for pair in pairs_of_tools(case):
            if pair[0] != pair[1]:
                found[pair].append(case_key(case))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
