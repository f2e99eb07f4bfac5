"""The cases that failed, in the order of the suite: each a line that unfolds, as far as the page has room for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from punie_mlx.evals.report.figures import Key, repeats
from punie_mlx.evals.report.inputs import Run
from punie_mlx.evals.report.overview import sign
from punie_mlx.evals.report.unfold import Tries, body
from punie_mlx.pages.text import Html, clipped, join, tag

MOST_QUERY = 110  # characters of a question in the line of its case
LEFT_OUT = tag("p", "Left out, to keep the page small: see the run file.", class_="soft small")


@dataclass(frozen=True)
class Limits:
    """How much of the cases the page holds."""

    cases: int = 300
    """Cases that unfold; further ones are only listed."""
    bytes: int = 8_000_000
    """About the most that the whole page may take."""


@dataclass(frozen=True)
class Case:
    """One case that failed somewhere."""

    key: Key
    category: str
    query: str
    seconds: float
    tries: Tries
    anchor: str

    def failed(self, run: Run) -> bool:
        return any(not c["passed"] for c in self.tries.get(run.index, ()))


def failures(runs: Sequence[Run]) -> list[Case]:
    """The cases that at least one run failed, in the order of the suites."""
    by_run = {run.index: repeats(run) for run in runs}
    keys = list(dict.fromkeys(k for found in by_run.values() for k in found))
    out: list[Case] = []
    anchors: set[str] = set()
    for key in keys:
        tries = {i: found[key] for i, found in by_run.items() if key in found}
        if all(c["passed"] for found in tries.values() for c in found):
            continue
        some = next(iter(tries.values()))[0]
        slowest = max(c["seconds"]["wall"] for found in tries.values() for c in found)
        out.append(Case(key, some["category"], some["query"], slowest, tries, _anchor(key, anchors)))
    return out


def _anchor(key: Key, taken: set[str]) -> str:
    """A name for links, unique in the page."""
    plain = "case-" + re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(key))
    name, i = plain, 1
    while name in taken:
        i += 1
        name = f"{plain}.{i}"
    taken.add(name)
    return name


def listed(runs: Sequence[Run], cases: Sequence[Case], limits: Limits, used: int) -> tuple[Html, list[str]]:
    """The list of `cases`, and what had to be left out; `used` bytes of the page are taken already."""
    lines = [_line(runs, case) for case in cases]
    folded_up = [_size(_item(runs, case, line, LEFT_OUT)) for case, line in zip(cases, lines, strict=True)]
    room = limits.bytes - used - sum(folded_up)
    notes: list[str] = []
    dropped = 0
    while lines and room < 0:  # so many that not even their lines fit
        lines.pop()
        room += folded_up.pop()
        dropped += 1
    parts, folded = [], 0
    for i, (case, line) in enumerate(zip(cases, lines, strict=False)):
        inside = body(runs, case.tries) if i < limits.cases else Html("")
        if not inside or _size(inside) > room:
            folded += 1
            inside = LEFT_OUT
        else:
            room -= _size(inside)
        parts.append(_item(runs, case, line, inside))
    if folded:
        notes.append(
            f"{folded:,} of {len(cases):,} failed cases are listed without their details, to keep the page small "
            f"({limits.cases:,} cases, {limits.bytes / 1e6:,.1f} MB). The run files hold all of it."
        )
    if dropped:
        notes.append(f"{dropped:,} failed cases are not even listed: the page is full. The run files hold all of them.")
    return tag("div", *parts, id="cases"), notes


def _size(text: str) -> int:
    return len(text.encode()) if not text.isascii() else len(text)


def _line(runs: Sequence[Run], case: Case) -> Html:
    marks = [_mark(run, case) for run in runs if run.index in case.tries]
    return join(
        [
            tag("span", case.key[1], class_="id"),
            tag("span", clipped(case.query, MOST_QUERY), class_="query text"),
            tag("span", case.category, class_="category"),
            tag("span", *marks, class_="marks"),
        ]
    )


def _mark(run: Run, case: Case) -> Html:
    failed = case.failed(run)
    said = "failed" if failed else "passed"
    return tag("span", sign(run), "✗" if failed else "✓", tag("span", f" {said}", class_="away"),
               class_="bad" if failed else "good", title=f"{run.label} {said}")  # fmt: skip


def _item(runs: Sequence[Run], case: Case, line: Html, inside: Html) -> Html:
    failed = " ".join(run.letter for run in runs if case.failed(run))
    passed = " ".join(run.letter for run in runs if run.index in case.tries and not case.failed(run))
    return tag(
        "details", tag("summary", line), tag("div", inside, id=case.anchor, class_="inside"), class_="case",
        data_failed=failed, data_passed=passed, data_category=case.category, data_seconds=f"{case.seconds:.4f}",
    )  # fmt: skip


def link(cases: Sequence[Case]) -> dict[Key, Html]:
    """Links to the cases of the list."""
    return {case.key: tag("a", case.key[1], href=f"#{case.anchor}") for case in cases}


def filters(runs: Sequence[Run], cases: Sequence[Case]) -> Html:
    """The form that filters and sorts; it appears where scripts run."""
    options = [tag("option", "any run", value="")]
    options += [tag("option", f"{r.letter} {r.label}", value=r.letter) for r in runs]
    if len(runs) > 1:
        options.append(tag("option", "some runs, not all", value="*"))
    names = sorted({case.category for case in cases})
    categories = [tag("option", "all", value=""), *(tag("option", n, value=n) for n in names)]
    orders = {"": "suite", "failed": "most runs failed", "category": "category", "seconds": "slowest first"}
    sorts = [tag("option", said, value=value) for value, said in orders.items()]
    fields = [
        tag("label", "Search ", Html('<input type="search" id="find" autocomplete="off" spellcheck="false">')),
        tag("label", "Failed by ", tag("select", *options, id="by")),
        tag("label", "Category ", tag("select", *categories, id="category")),
        tag("label", "Order ", tag("select", *sorts, id="order")),
        tag("button", "Fold all", type="button", id="fold"),
        tag("output", f"{len(cases):,} cases", id="count", aria_live="polite"),
    ]
    return tag("form", *fields, id="filter", role="search", aria_label="Failed cases", hidden=True)
