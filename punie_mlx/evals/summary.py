"""From cases to figures: accuracy with its interval, by category and by check, tools confused, tokens, seconds.

Where a case was run several times, `n` and `passed` count runs, but the cases are what was sampled: `accuracy` is the
mean over the cases of each one's rate, its interval takes the repeats of a case together (`stats.clustered`), and
`cases` says how many there were.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from punie_mlx.errors import DataError
from punie_mlx.evals.score import CHECKS
from punie_mlx.evals.stats import McNemar, clustered, mcnemar, mean_of_two, pass_hat_k, wilson

Record = Mapping[str, Any]
Outcome = Callable[[Record], bool | None]
NONE = "none"
"""In the confusion of tools: no call was expected, or none was made."""
PERCENTILES = (50, 90, 95, 99)


def summarize(cases: Sequence[Record], concurrency: int) -> dict[str, Any]:
    """The `summary` of a result. Warm-ups are scored, but their time is left out."""
    return {
        **rate(cases, _passed),
        "by_category": _by(cases, "category"),
        "by_suite": _by(cases, "suite"),
        "by_check": {k: rate(cases, lambda c, k=k: c["checks"].get(k)) for k in _checks(cases)},
        "with_retry": _or_none(rate(cases, lambda c: c.get("passed_with_retry"))),
        "lenient": _or_none(rate(cases, lambda c: c.get("lenient"))),
        "pass_hat_k": _pass_hat_k(cases),
        "call_or_not": _call_or_not(cases),
        "unread_calls": sum(c["unread_call"] for c in cases),
        "parse_failures": _parse_failures(cases),
        "errors": sum(c["error"] is not None for c in cases),
        "confusion": confusion(cases),
        "tokens": _tokens(cases),
        "seconds_per_query": _seconds(cases, concurrency),
    }


def case_key(case: Record) -> tuple[str, str]:
    """What names a case in all of its repeats."""
    return case["suite"], case["id"]


def by_case(cases: Iterable[Record], outcome: Outcome) -> dict[tuple[str, str], list[bool]]:
    """The outcomes of each case's repeats, without those where the outcome is None."""
    found: dict[tuple[str, str], list[bool]] = {}
    for case in cases:
        if (value := outcome(case)) is not None:
            found.setdefault(case_key(case), []).append(bool(value))
    return found


def _passed(case: Record) -> bool:
    return case["passed"]


def rate(cases: Iterable[Record], outcome: Outcome) -> dict[str, Any]:
    """Accuracy, interval, runs and passed runs; None of it where nothing was tried."""
    grouped = by_case(cases, outcome)
    runs = list(grouped.values())
    n, k = sum(map(len, runs)), sum(map(sum, runs))
    if n == len(runs):
        return {"accuracy": k / n if n else None, "interval": list(wilson(k, n)), "n": n, "passed": k}
    means = [sum(r) / len(r) for r in runs]
    accuracy, interval = math.fsum(means) / len(means), list(clustered(means, n))
    return {"accuracy": accuracy, "interval": interval, "n": n, "passed": k, "cases": len(runs)}


def _or_none(found: dict[str, Any]) -> dict[str, Any] | None:
    return found if found["n"] else None


def _checks(cases: Sequence[Record]) -> list[str]:
    """The names of all checks: those of today first, then what else the cases have."""
    return list(dict.fromkeys([*CHECKS, *(k for c in cases for k in c["checks"])]))


def _by(cases: Sequence[Record], key: str) -> dict[str, Any]:
    names = sorted({c[key] for c in cases})
    return {name: rate((c for c in cases if c[key] == name), _passed) for name in names}


def _pass_hat_k(cases: Sequence[Record]) -> list[dict[str, Any]]:
    """pass^k for each k up to the fewest repeats of a case; empty where each was run once."""
    runs = list(by_case(cases, _passed).values())
    fewest = min(map(len, runs), default=0)
    if fewest < 2:
        return []
    found = ((k, *pass_hat_k(runs, k)) for k in range(1, fewest + 1))
    return [{"k": k, "value": value, "interval": list(interval), "cases": len(runs)} for k, value, interval in found]


def expects_call(case: Record) -> bool | None:
    """Whether the case wants a call; None where it takes an answer with one or without."""
    wanted = {bool(calls) for calls in alternatives(case)}
    return wanted.pop() if len(wanted) == 1 else None


def _call_or_not(cases: Sequence[Record]) -> dict[str, Any]:
    """Did the model call a tool when it should, and keep from it when it should not?

    An empty answer, or one that holds the text of a call, is wrong on both sides: a model that cannot write calls
    (or anything) is not good at keeping from them. The interval is for the mean of two independent rates; where all
    cases are of one side, rate and interval are that side's.
    """
    wanted = rate((c for c in cases if expects_call(c) is True), lambda c: bool(c["calls"]))
    unwanted = rate((c for c in cases if expects_call(c) is False), kept_from_calls)
    sides = [r for r in (wanted, unwanted) if r["n"]]
    balanced = sum(r["accuracy"] for r in sides) / len(sides) if sides else None
    interval = None
    if len(sides) == 2:
        interval = list(mean_of_two(wanted["accuracy"], wanted["interval"], unwanted["accuracy"], unwanted["interval"]))
    elif sides:
        interval = sides[0]["interval"]
    return {"balanced_accuracy": balanced, "interval": interval, "call": wanted, "no_call": unwanted}


def kept_from_calls(case: Record) -> bool:
    """Whether a case that wants no call was answered without one."""
    return not case["calls"] and bool(case["answer"]) and not case["unread_call"]


def parse_failed(case: Record) -> bool:
    """Whether the model wrote something that wanted to be a call and could not be read as one."""
    return bool(case.get("parse_failures", int(case["unread_call"])))


def _parse_failures(cases: Sequence[Record]) -> dict[str, Any]:
    """How often at least one call of a run could not be read: of all runs, since such a call may come in any."""
    found = rate(cases, parse_failed)
    return {
        "rate": found["accuracy"], "interval": found["interval"], "n": found["n"], "failed": found["passed"],
        "calls": sum(c.get("parse_failures", int(c["unread_call"])) for c in cases),
    }  # fmt: skip


# ---- which tool for which ----


def confusion(cases: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Expected tool → called tool → how often. `none` stands for no call on either side.

    Calls are paired with the expectation's calls by name first; what is left over on both sides is paired in order,
    and what has no partner then was missed (`none` was called) or was too much (`none` was expected). Where the case
    leaves a choice of tools, one of them that was called is the expected one. Calls that are not scored (those of
    later turns, where only the first counts) are left out.
    """
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        for expected, called in pairs_of_tools(case):
            counts.setdefault(expected, Counter())[called] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts, key=lambda n: (n == NONE, n))}


def pairs_of_tools(case: Record) -> list[tuple[str, str]]:
    """Each expected tool of one run with the tool that was called for it."""
    called = [c["name"] for c in scored_calls(case)]
    return min((_pair(expected, called) for expected in alternatives(case)), key=lambda p: sum(a != b for a, b in p))


def alternatives(case: Record) -> Sequence[Sequence[Record]]:
    """The lists of calls of which one is expected."""
    return (case.get("expect") or {}).get("any_of") or [case["expected_calls"]]


def scored_calls(case: Record) -> Sequence[Record]:
    """The calls that count: all, or those of the first turn that has any where the case says so."""
    calls = case["calls"]
    if calls and (case.get("expect") or {}).get("turns") == "first":
        return [c for c in calls if c["turn"] == calls[0]["turn"]]
    return calls


def _pair(expected: Sequence[Record], called: Sequence[str]) -> list[tuple[str, str]]:
    left = list(called)
    pairs, missed = [], []
    for one in expected:
        names = [one["name"]] if isinstance(one["name"], str) else one["name"]
        hit = next((n for n in left if n in names), None)
        if hit is None:
            missed.append(names[0])
        else:
            left.remove(hit)
            pairs.append((hit, hit))
    size = max(len(missed), len(left))
    rest = zip(_filled(missed, size), _filled(left, size), strict=True)
    return [*pairs, *rest] or [(NONE, NONE)]


def _filled(names: list[str], size: int) -> list[str]:
    return names + [NONE] * (size - len(names))


# ---- tokens and time ----


def _tokens(cases: Sequence[Record]) -> dict[str, Any]:
    """Tokens of all responses whose usage the server told: `responses` of `of`."""
    usages = [t.get("usage") for c in cases for t in c["turns"]]
    told = [u for u in usages if u and isinstance(u.get("completion_tokens"), int)]
    per_case = [
        sum((t.get("usage") or {}).get("completion_tokens") or 0 for t in c["turns"]) for c in cases if c["turns"]
    ]
    cached = sum((u.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for u in told)
    return {
        "prompt": sum(u.get("prompt_tokens") or 0 for u in told),
        "cached": cached,
        "completion": sum(u["completion_tokens"] for u in told),
        "completion_per_case": statistics.fmean(per_case) if per_case and told else None,
        "responses": len(told),
        "of": len(usages),
    }


def timed(cases: Sequence[Record]) -> Sequence[Record]:
    """The cases whose time counts: all but the first of each session; all where there is no other.

    A file that does not tell its sessions had one.
    """
    return [c for i, c in enumerate(cases) if not c.get("warm_up", i == 0)] or cases


def _seconds(cases: Sequence[Record], concurrency: int) -> dict[str, Any]:
    counted = [c["seconds"]["wall"] for c in timed(cases)]
    return {
        "median": statistics.median(counted),
        "mean": statistics.fmean(counted),
        **{f"p{p}": percentile(counted, p) for p in PERCENTILES},
        "max": max(counted),
        "n": len(counted),
        "warm_up": cases[0]["seconds"]["wall"],
        "concurrency": concurrency,
        "note": "wall time of a case" + (", which shares the server with others" if concurrency > 1 else ""),
    }


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile, on the straight line between the two nearest values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# ---- two results ----


def paired(first: Record, second: Record) -> McNemar:
    """McNemar's test on two results of the same suites. Raises `DataError` where their cases differ."""
    outcomes = [{(*case_key(c), c.get("repeat", 0)): c["passed"] for c in r["cases"]} for r in (first, second)]
    if first["suite"]["hash"] != second["suite"]["hash"] or outcomes[0].keys() != outcomes[1].keys():
        raise DataError("the two results are not of the same cases: score both models on the same suite and limit")
    if any(c.get("repeat", 0) for c in first["cases"]):
        raise DataError("McNemar's test is for cases that were run once: compare these runs with `punie-mlx compare`")
    keys = list(outcomes[0])
    return mcnemar([outcomes[0][k] for k in keys], [outcomes[1][k] for k in keys])


# ---- for the terminal ----


def percent(rate: Record) -> str:
    """`93.0% [89.1, 95.6]`, or a dash where nothing was tried."""
    if not rate["n"]:
        return "–"
    lo, hi = rate["interval"]
    return f"{rate['accuracy']:.1%} [{100 * lo:.1f}, {100 * hi:.1f}]"


def percent_of(value: float | None, interval: Sequence[float] | None) -> str:
    """The same of a value that is no rate of cases."""
    if value is None or interval is None:
        return "–"
    return f"{value:.1%} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def table(result: Record) -> Table:
    """The result by category and check, for the terminal."""
    summary, seconds = result["summary"], result["summary"]["seconds_per_query"]
    shown = Table(
        title=escape(f"{result['model']['name']} ({result['model']['fingerprint'][:12]})"),
        caption=f"95% Wilson intervals; {seconds['median']:.2f} s a query (median of {seconds['n']} "
        f"at concurrency {seconds['concurrency']}, warm-up of {seconds['warm_up']:.2f} s left out)",
    )
    shown.add_column("")
    shown.add_column("passed", justify="right")
    shown.add_column("accuracy", justify="right")
    for group in ("by_category", "by_check"):
        for name, found in summary[group].items():
            if found["n"]:
                shown.add_row(escape(name), f"{found['passed']}/{found['n']}", percent(found))
        shown.add_section()
    for row in _further_rows(summary):
        shown.add_row(*row)
    shown.add_section()
    shown.add_row("all", f"{summary['passed']}/{summary['n']}", percent(summary), style="bold")
    return shown


def _further_rows(summary: Record) -> list[tuple[str, str, str]]:
    """What is said only where there is something to say."""
    both = summary["call_or_not"]
    sides = (("calls when it should", both["call"]), ("keeps from calls when it should", both["no_call"]))
    rows = [(label, f"{r['passed']}/{r['n']}", percent(r)) for label, r in sides if r["n"]]
    if all(r["n"] for _, r in sides):
        rows.append(("balanced: mean of the two", "", percent_of(both["balanced_accuracy"], both["interval"])))
    if summary["unread_calls"]:
        rows.append(("answers that hold the text of a call", f"{summary['unread_calls']}/{summary['n']}", ""))
    if (failures := summary["parse_failures"])["failed"]:
        text = percent_of(failures["rate"], failures["interval"])
        rows.append(("runs with a call that could not be read", f"{failures['failed']}/{failures['n']}", text))
    for name, label in (("with_retry", "passed, retries allowed"), ("lenient", "passed, judged leniently")):
        if (r := summary[name]) and r["passed"] != summary["passed"]:
            rows.append((label, f"{r['passed']}/{r['n']}", percent(r)))
    for row in summary["pass_hat_k"][1:]:
        label = f"pass^{row['k']}: all of {row['k']} runs pass"
        rows.append((label, f"{row['cases']} cases", percent_of(row["value"], row["interval"])))
    return rows
