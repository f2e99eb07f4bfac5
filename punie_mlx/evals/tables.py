"""Tables of one run and of several, as plain grids: the terminal shows them here, a README in `evals.markdown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from punie_mlx.evals.compare import points, unique_labels
from punie_mlx.evals.summary import percent, percent_of

Json = Mapping[str, Any]
SHOWN = 60  # characters of a value that differs


@dataclass(frozen=True)
class Grid:
    """A table of text: the first column names the row, the others are figures unless `prose`."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: bool = False


def terminal(grid: Grid) -> Table:
    """The grid for the terminal. What stands in it is text, not markup."""
    shown = Table(title=Text(grid.title), caption=Text(grid.note) if grid.note else None)
    for i, header in enumerate(grid.headers):
        shown.add_column(header, justify="left" if i == 0 or grid.prose else "right", overflow="fold")
    for row in grid.rows:
        shown.add_row(*map(Text, row))
    return shown


# ---- runs beside each other ----


def runs_grid(runs: Sequence[Json]) -> Grid:
    """One row for each run: what it scored, without comparing."""
    columns = (*RATES, *_worth_a_column([r["summary"] for r in runs]), SECONDS)
    rows = [
        (label, run["model"]["fingerprint"][:12], *(cell(run["summary"]) for _, cell in columns))
        for label, run in zip(unique_labels(runs), runs, strict=True)
    ]
    return Grid("runs", ("run", "fingerprint", *(name for name, _ in columns)), tuple(rows), NOTE)


def categories_grid(runs: Sequence[Json]) -> Grid:
    """One row for each category, one column for each run."""
    names = sorted({name for r in runs for name in r["summary"]["by_category"]})
    rows = [(name, *(_rate(r["summary"]["by_category"].get(name)) for r in runs)) for name in names]
    return Grid("by category", ("category", *unique_labels(runs)), tuple(rows), NOTE)


NOTE = "95% intervals"


def _rate(found: Json | None) -> str:
    return f"{percent(found)} {found['passed']}/{found['n']}" if found and found["n"] else "–"


def _accuracy(summary: Json) -> str:
    return _rate(summary.get("accuracy") if isinstance(summary.get("accuracy"), Mapping) else summary)


def _balanced(summary: Json) -> str:
    both = summary["call_or_not"]
    return percent_of(both["balanced_accuracy"], both["interval"])


def _parse_failures(summary: Json) -> str:
    return f"{summary['parse_failures']['failed']}/{summary['parse_failures']['n']}"


def _retried(summary: Json) -> str:
    return percent(summary["with_retry"]) if summary["with_retry"] else "–"


def _lenient(summary: Json) -> str:
    return percent(summary["lenient"]) if summary["lenient"] else "–"


def _all_of_k(summary: Json) -> str:
    if not summary["pass_hat_k"]:
        return "–"
    last = summary["pass_hat_k"][-1]
    return f"k={last['k']}: {percent_of(last['value'], last['interval'])}"


def _median(summary: Json) -> str:
    seconds = summary["seconds_per_query"]
    return f"{seconds['median']:.2f}"


RATES = (("accuracy", _accuracy), ("call or not", _balanced), ("unread calls", _parse_failures))
SECONDS = ("s a query", _median)
# Columns that stand there only if a run has something to say in them.
OPTIONAL = (
    ("with retries", _retried, lambda s: s["with_retry"]),
    ("lenient", _lenient, lambda s: s["lenient"] and s["lenient"]["passed"] != _passed(s)),
    ("pass^k", _all_of_k, lambda s: s["pass_hat_k"]),
)


def _passed(summary: Json) -> int:
    accuracy = summary["accuracy"]
    return accuracy["passed"] if isinstance(accuracy, Mapping) else summary["passed"]


def _worth_a_column(summaries: Sequence[Json]) -> list[tuple[str, Any]]:
    return [(name, cell) for name, cell, said in OPTIONAL if any(said(s) for s in summaries)]


# ---- a comparison ----


def comparison_grid(comparison: Json) -> Grid:
    """One row for each run: its scores, and how it stands against the baseline."""
    columns = (*RATES, *_worth_a_column(comparison["runs"]), SECONDS)
    against = ("difference", "gained", "lost", "p", "Holm's p", "verdict")
    rows = [
        (row["label"], *(cell(row) for _, cell in columns), *_against(row["against_baseline"]))
        for row in comparison["runs"]
    ]
    tests = {row["against_baseline"]["test"] for row in comparison["runs"] if row["against_baseline"]}
    note = f"{NOTE}; differences in points against {comparison['baseline']}; p: {', '.join(sorted(tests))}"
    return Grid("comparison", ("run", *(name for name, _ in columns), *against), tuple(rows), note)


def _against(found: Json | None) -> tuple[str, ...]:
    if found is None:
        return "baseline", "", "", "", "", ""
    lo, hi = found["interval"]
    verdict = found["verdict"]
    if verdict == "no significant difference" and found["not_worse"]["holds"]:
        verdict = f"not worse by more than {100 * found['not_worse']['margin']:g}"
    return (
        f"{points(found['difference'])} [{points(lo)}, {points(hi)}]",
        str(found["only_this"]), str(found["only_baseline"]), _p(found["p"]), _p(found["p_holm"]), verdict,
    )  # fmt: skip


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def changed_grid(comparison: Json) -> Grid:
    """What differs in the making of the runs."""
    rows = [(row["key"], *map(_value, row["values"])) for row in comparison["changed"]]
    labels = [r["label"] for r in comparison["runs"]]
    return Grid(
        "what changed", ("", *labels), tuple(rows), "all else of model, settings and versions is the same", True
    )


def _value(value: Any) -> str:
    text = "–" if value is None else str(value)
    if len(text) == 64 and not text.strip("0123456789abcdef"):
        return text[:12]  # a fingerprint
    return text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"  # of paths, the end tells more


def _reason(text: str | None) -> str:
    text = text or "–"
    return text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}…"


def by_category_grid(comparison: Json) -> Grid:
    """The categories of a comparison."""
    labels = [r["label"] for r in comparison["runs"]]
    rows = [(c["category"], *(_rate(c["runs"][label]) for label in labels)) for c in comparison["by_category"]]
    return Grid("by category", ("category", *labels), tuple(rows), f"{NOTE}; shown, not tested")


def flips_grid(comparison: Json, label: str, most: int | None = None) -> Grid:
    """The cases that one run lost and gained against the baseline; the first `most` of each."""
    found = comparison["flips"][label]
    sides = [[f for f in found if (f["after"] < f["before"]) is lost] for lost in (True, False)]
    rows = [
        (f"{f['suite']}/{f['id']}", f["category"], _change(f), _reason(f["reason"]))
        for side in sides
        for f in side[:most]
    ]
    hidden = len(found) - len(rows)
    note = f"{len(sides[0])} lost, {len(sides[1])} gained" + (f"; {hidden} more in --json" if hidden else "")
    headers = ("case", "category", "passed", "why it failed")
    return Grid(f"{label} against {comparison['baseline']}", headers, tuple(rows), note, prose=True)


def _change(flip: Json) -> str:
    return f"{_share(flip['before'])} → {_share(flip['after'])}"


def _share(value: float) -> str:
    return {0.0: "no", 1.0: "yes"}.get(value) or f"{value:.0%}"
