"""From cases to figures: accuracy with its interval, by category and by check, seconds a query; and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from punie_mlx.errors import DataError
from punie_mlx.evals.score import CHECKS
from punie_mlx.evals.stats import McNemar, mcnemar, wilson

Record = Mapping[str, Any]


def summarize(cases: Sequence[Record], concurrency: int) -> dict[str, Any]:
    """The `summary` of a result. The first case is the warm-up: it is scored, but its time is left out."""
    return {
        **_rate(c["passed"] for c in cases),
        "by_category": _by(cases, "category"),
        "by_suite": _by(cases, "suite"),
        "by_check": {k: _rate(v for c in cases if (v := c["checks"][k]) is not None) for k in CHECKS},
        "call_or_not": _call_or_not(cases),
        "unread_calls": sum(c["unread_call"] for c in cases),
        "errors": sum(c["error"] is not None for c in cases),
        "seconds_per_query": _seconds(cases, concurrency),
    }


def _rate(outcomes: Iterable[bool]) -> dict[str, Any]:
    values = list(outcomes)
    n, k = len(values), sum(values)
    return {"accuracy": k / n if n else None, "interval": list(wilson(k, n)), "n": n, "passed": k}


def _by(cases: Sequence[Record], key: str) -> dict[str, Any]:
    names = sorted({c[key] for c in cases})
    return {name: _rate(c["passed"] for c in cases if c[key] == name) for name in names}


def _call_or_not(cases: Sequence[Record]) -> dict[str, Any]:
    """Did the model call a tool when it should, and keep from it when it should not?

    An empty answer, or one that holds the text of a call, is wrong on both sides: a model that cannot write calls
    (or anything) is not good at keeping from them.
    """
    wanted = _rate(bool(c["calls"]) for c in cases if c["expected_calls"])
    unwanted = _rate(
        not c["calls"] and bool(c["answer"]) and not c["unread_call"] for c in cases if not c["expected_calls"]
    )
    both = [r["accuracy"] for r in (wanted, unwanted) if r["accuracy"] is not None]
    return {"balanced_accuracy": sum(both) / len(both) if both else None, "call": wanted, "no_call": unwanted}


def _seconds(cases: Sequence[Record], concurrency: int) -> dict[str, Any]:
    walls = [c["seconds"]["wall"] for c in cases]
    counted = walls[1:] or walls
    return {
        "median": statistics.median(counted),
        "mean": statistics.fmean(counted),
        "n": len(counted),
        "warm_up": walls[0],
        "concurrency": concurrency,
        "note": "wall time of a case" + (", which shares the server with others" if concurrency > 1 else ""),
    }


def paired(first: Record, second: Record) -> McNemar:
    """McNemar's test on two results of the same suites. Raises `DataError` where their cases differ."""
    outcomes = [{(c["suite"], c["id"]): c["passed"] for c in r["cases"]} for r in (first, second)]
    if first["suite"]["hash"] != second["suite"]["hash"] or outcomes[0].keys() != outcomes[1].keys():
        raise DataError("the two results are not of the same cases: score both models on the same suite and limit")
    keys = list(outcomes[0])
    return mcnemar([outcomes[0][k] for k in keys], [outcomes[1][k] for k in keys])


def percent(rate: Record) -> str:
    """`93.0% [89.1, 95.6]`, or a dash where nothing was tried."""
    if not rate["n"]:
        return "–"
    lo, hi = rate["interval"]
    return f"{rate['accuracy']:.1%} [{100 * lo:.1f}, {100 * hi:.1f}]"


def table(result: Record) -> Table:
    """The result by category and check, for the terminal."""
    summary, seconds = result["summary"], result["summary"]["seconds_per_query"]
    shown = Table(
        title=f"{result['model']['name']} ({result['model']['fingerprint'][:12]})",
        caption=f"95% Wilson intervals; {seconds['median']:.2f} s a query (median of {seconds['n']} "
        f"at concurrency {seconds['concurrency']}, warm-up of {seconds['warm_up']:.2f} s left out)",
    )
    shown.add_column("")
    shown.add_column("passed", justify="right")
    shown.add_column("accuracy", justify="right")
    for group in ("by_category", "by_check"):
        for name, rate in summary[group].items():
            if rate["n"]:
                shown.add_row(name, f"{rate['passed']}/{rate['n']}", percent(rate))
        shown.add_section()
    for name, label in (("call", "calls when it should"), ("no_call", "keeps from calls when it should")):
        if (rate := summary["call_or_not"][name])["n"]:
            shown.add_row(label, f"{rate['passed']}/{rate['n']}", percent(rate))
    if summary["unread_calls"]:
        shown.add_row("answers that hold the text of a call", f"{summary['unread_calls']}/{summary['n']}", "")
    shown.add_section()
    shown.add_row("all", f"{summary['passed']}/{summary['n']}", percent(summary), style="bold")
    return shown
