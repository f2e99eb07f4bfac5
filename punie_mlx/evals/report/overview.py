"""The head of the page: what was scored and how, what to be careful with, the table of runs, and the categories."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from punie_mlx.evals.report import figures
from punie_mlx.evals.report.figures import Rate, interval, of, percent, probability
from punie_mlx.evals.report.inputs import Inputs, Run
from punie_mlx.pages.plots import bar
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, compact, join, tag

SHORT = 12  # characters of a hash that are shown

CHECKS = {
    "names": "right tools", "arguments": "right arguments", "order": "right order", "answer": "right answer",
    "parallel": "together or apart, as asked", "execution": "tools ran", "files": "files as they should be",
}  # fmt: skip


def name(run: Run) -> Html:
    """The run's letter and label, as everywhere on the page."""
    return tag("span", sign(run), " ", tag("span", run.label, class_="text"), class_="run")


def sign(run: Run) -> Html:
    return tag("b", run.letter, class_=f"sign {run.colour}")


def title(inputs: Inputs) -> str:
    suites = dict.fromkeys(f["name"] for run in inputs.runs for f in run.record["suite"]["files"])
    if not inputs.runs:
        return "Results"
    models = ", ".join(dict.fromkeys(run.label for run in inputs.runs[:4])) + (" …" if len(inputs.runs) > 4 else "")
    return f"{models} on {', '.join(suites)}"


def head(inputs: Inputs) -> Html:
    """Each run with its model and suite, then the settings."""
    if not inputs.runs:
        return Html("")
    models = [r.record["model"] for r in inputs.runs]
    suites = [_suite(r) for r in inputs.runs]
    one = len(set(suites)) == 1
    cells = {
        "run": [name(r) for r in inputs.runs],
        "served as": [m["name"] for m in models],
        "fingerprint": [_hash(m["fingerprint"]) for m in models],
        "trained on": [_hash(m["trained_on"]) if m.get("trained_on") else "" for m in models],
        "suite": [] if one else suites,
    }
    kept = {k: v for k, v in cells.items() if any(v)}
    rows = zip(*kept.values(), strict=True)
    made = table([Column(c, number=False) for c in kept], rows, caption="What was scored")
    return join([tag("p", "Suite: ", suites[0]) if one else "", made, _settings(inputs.runs)])


def _suite(run: Run) -> Html:
    suite = run.record["suite"]
    files = ", ".join(f"{f['name']} ({f['cases']:,} cases)" for f in suite["files"])
    return join([tag("span", files, class_="text"), " ", _hash(suite["hash"])])


def _hash(value: str) -> Html:
    return tag("code", value[:SHORT], title=value, class_="hash")


def _settings(runs: Sequence[Run]) -> Html:
    """Settings and versions; one column where all runs agree."""
    groups: list[tuple[str, list[Mapping[str, Any]]]] = [
        ("setting", [r.record["settings"] for r in runs]),
        ("version of", [r.record["versions"] for r in runs]),
        ("full hash", [_hashes(r) for r in runs]),
    ]
    parts = [_compared(runs, what, values) for what, values in groups]
    return tag("details", tag("summary", "Settings, versions and full hashes"), *parts)


def _hashes(run: Run) -> dict[str, str]:
    model = run.record["model"]
    found = {"model": model["fingerprint"], "suite": run.record["suite"]["hash"], "training data": model["trained_on"]}
    return {k: v for k, v in found.items() if v}


def _compared(runs: Sequence[Run], what: str, values: Sequence[Mapping[str, Any]]) -> Html:
    names = list(dict.fromkeys(n for v in values for n in v))
    same = all(v == values[0] for v in values)
    shown = values[:1] if same else values
    heads = ["every run" if len(runs) > 1 else runs[0].label] if same else [f"{r.letter} {r.label}" for r in runs]
    rows = [[n, *(_plainly(v.get(n, "–")) for v in shown)] for n in names]
    columns = [Column(c, number=False) for c in (what, *heads)]
    return table(columns, rows, caption=f"{what}, by run")


def _plainly(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else compact(value)


def warnings(inputs: Inputs) -> list[str]:
    """What a reader of this page has to know before believing it."""
    runs = inputs.runs
    found = [f"{r.letter} {r.label}: {w}" for r in runs for w in r.record.get("warnings", ())]
    if len({r.record["suite"]["hash"] for r in runs}) > 1:
        found.append("The runs are of different suites: runs of another suite than A's are not tested against A.")
    elif len(runs) > 1 and None in figures.against(runs)[1:]:
        found.append("The runs are not of the same cases (another limit or number of repeats): not all are tested.")
    limited = {r.record["settings"]["limit"] for r in runs} - {None}
    if limited:
        found.append(f"Only the first {', '.join(map(str, sorted(limited)))} cases of each suite were run.")
    for i, run in enumerate(runs):
        twin = next(
            (r for r in runs[:i] if r.record["model"]["fingerprint"] == run.record["model"]["fingerprint"]), None
        )
        if twin:
            found.append(f"{twin.letter} {twin.label} and {run.letter} {run.label} are the same model, by its hash.")
    if shared := [r.letter for r in runs if r.record["settings"]["concurrency"] > 1]:
        found.append(f"{', '.join(shared)}: several cases were in flight at once, so seconds say little of the model.")
    if errors := [f"{r.letter} {r.summary['errors']:,}" for r in runs if r.summary["errors"]]:
        found.append(f"Cases that ended with an error: {', '.join(errors)}.")
    old = [r.letter for r in runs if r.record.get("upgraded_from")]
    if old:
        found.append(f"{', '.join(old)}: written by an earlier version, without tokens and HTTP bodies.")
    versions = {compact(r.record["versions"]) for r in runs}
    if len(versions) > 1:
        found.append("The runs were made with different versions of the software; see below.")
    return found


def told(found: Sequence[str]) -> Html:
    if not found:
        return Html("")
    items = join(tag("li", w) for w in found)
    return tag("aside", tag("h2", "Mind"), tag("ul", items), class_="warnings", aria_label="Warnings")


# ---- the table of runs ----


def summary(runs: Sequence[Run]) -> Html:
    """A row for each run; columns that no run can fill are left out."""
    found = [r.summary for r in runs]
    cells = {
        Column("run", number=False): [name(r) for r in runs],
        Column("accuracy", number=False): [_bar(r.summary, r) for r in runs],
        Column("", title="passed at the first try"): [tag("b", percent(s["accuracy"])) for s in found],
        Column("95% interval", title="interval of the accuracy, in percent"): [interval(s["interval"]) for s in found],
        Column("passed"): [of(s) for s in found],
        Column("lenient", title="strings compared loosely, as BFCL does"): [_share(s["lenient"]) for s in found],
        Column("with retry", title="passed at once, or after an error was handed back to the model"): [
            _share(s["with_retry"]) for s in found
        ],
        Column("pass^k", title="the chance that k tries of a case all pass"): [_always(s) for s in found],
        Column("balanced", title="mean of: calls when it should, keeps from calls when it should"): [
            percent(s["call_or_not"]["balanced_accuracy"]) for s in found
        ],
        Column("parse failures", title="tries with a call that was malformed, cut off or not read"): [
            f"{s['parse_failures']['failed']:,}" for s in found
        ],
        Column("errors", title="tries that ended with an error"): [f"{s['errors']:,}" for s in found],
        **(_tested(runs) if len(runs) > 1 else {}),
    }
    kept = {c: values for c, values in cells.items() if any(values)}
    made = table(list(kept), list(zip(*kept.values(), strict=True)), caption="Summary of the runs", class_="summary")
    return join([made, _explained(runs)])


def _bar(rate: Rate, run: Run) -> Html:
    return tag("span", bar(rate["accuracy"] or 0.0, rate["interval"], run.colour), class_="barcell")


def _share(rate: Rate | None) -> str:
    return percent(rate["accuracy"]) if rate else ""


def _always(summary: Rate) -> Html | str:
    if not summary["pass_hat_k"]:
        return ""
    last = summary["pass_hat_k"][-1]
    return join([percent(last["value"]), tag("span", f" k={last['k']}", class_="soft")])


def _tested(runs: Sequence[Run]) -> dict[Column, list[object]]:
    found = figures.against(runs)

    def column(show: Callable[[Mapping[str, Any]], str], other: str = "") -> list[object]:
        return [show(t) if t else (other or figures.NOTHING) if i else "" for i, t in enumerate(found)]

    return {
        Column("only A", title="cases that the first run passed, or passed more often"): column(
            lambda t: f"{t['only_baseline']:,}"
        ),
        Column("only this", title="cases that this run passed, or passed more often"): column(
            lambda t: f"{t['only_this']:,}"
        ),
        Column("p", title="exact test against the first run, paired case by case"): column(
            lambda t: probability(t["p"]), "not paired"
        ),
        Column("p, Holm", title="adjusted for the number of comparisons"): column(lambda t: probability(t["p_holm"])),
    }


def _explained(runs: Sequence[Run]) -> Html:
    said = "Bars and whiskers: accuracy at the first try with its 95% interval."
    compared = figures.compared(runs)
    tests = sorted({t["test"] for t in figures.against(runs) if t}) if len(runs) > 1 else []
    if tests:
        said += f" Against {runs[0].letter} ({runs[0].label}), case by case: {', '.join(tests)}."
    words = tag("p", compared["words"]) if compared else ""
    return join([words, tag("p", said, class_="soft small")])


# ---- categories and checks ----


def categories(runs: Sequence[Run]) -> Html:
    return _cards(runs, "by_category", {})


def checks(runs: Sequence[Run]) -> Html:
    return _cards(runs, "by_check", CHECKS)


def _cards(runs: Sequence[Run], group: str, titles: Mapping[str, str]) -> Html:
    """A small table for each name of a group, runs under each other."""
    names = dict.fromkeys(n for r in runs for n in r.summary[group])
    cards = []
    for key in names:
        rates = [(r, r.summary[group][key]) for r in runs if key in r.summary[group]]
        if any(rate["n"] for _, rate in rates):
            cards.append(card(titles.get(key, key), rates))
    return tag("div", *cards, class_="cards")


def card(heading: str, rates: Sequence[tuple[Run, Rate]]) -> Html:
    """One quantity, by run: bar, share, interval, count."""
    heads = [Column("run", number=False), Column("bar", False), Column("share"), Column("95%"), Column("passed")]
    rows = [
        [
            join([sign(run), tag("span", f" {run.label}", class_="away")]),
            _bar(rate, run),
            percent(rate["accuracy"]),
            tag("span", interval(rate["interval"]), class_="soft"),
            tag("span", of(rate), class_="soft"),
        ]
        for run, rate in rates
        if rate["n"]
    ]
    made = table(heads, rows, caption=heading, class_="rates")
    return tag("section", tag("h3", heading), made, class_="card")


def legend(runs: Sequence[Run]) -> Html:
    return tag("p", *(tag("span", name(r), class_="key") for r in runs), class_="legend") if len(runs) > 1 else Html("")


def footer(made: datetime.datetime, notes: Sequence[str]) -> Html:
    said = [f"Made by punie-mlx report on {made:%Y-%m-%d %H:%M} UTC. It is one file: nothing is fetched.", *notes]
    return tag("footer", *(tag("p", line, class_="soft small") for line in said))
