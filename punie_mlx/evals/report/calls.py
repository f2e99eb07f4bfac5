"""Call or not, and which tool was called where another was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from punie_mlx.evals.report.figures import Key, confused
from punie_mlx.evals.report.inputs import Run
from punie_mlx.evals.report.overview import card, name
from punie_mlx.evals.summary import NONE
from punie_mlx.pages.tables import Column, scrolling, table
from punie_mlx.pages.text import Html, join, tag

MOST_NAMES = 14  # tools of a matrix; more are listed as pairs
MOST_PAIRS = 40
FIRST_PAIRS = 8  # the others are folded
MOST_LINKS = 4

Counts = Mapping[str, Mapping[str, int]]
"""Expected tool → called tool → how often."""

Link = Callable[[Key], Html]
"""A link to a case, by its short name."""


def call_or_not(runs: Sequence[Run]) -> Html:
    """Did it call when it should, and keep from it when it should not?"""
    sides = {"call": "A call was expected: it called", "no_call": "No call was expected: none made, and answered"}
    cards = [card(said, [(r, r.summary["call_or_not"][key]) for r in runs]) for key, said in sides.items()]
    return tag("div", *cards, class_="cards")


def confusions(runs: Sequence[Run], link: Link) -> Html:
    parts = (tag("section", tag("h3", name(run)), _confusion(run, link)) for run in runs)
    return tag("div", *parts, class_="figures")


def _confusion(run: Run, link: Link) -> Html:
    counts: Counts = run.summary["confusion"]
    right = sum(called.get(wanted, 0) for wanted, called in counts.items())
    wrong = sum(n for called in counts.values() for n in called.values()) - right
    if not wrong:
        return tag("p", f"All {right:,} expectations were met: no tool was taken for another.")
    said = tag("p", f"{right:,} expectations were met, {wrong:,} were not.")
    pairs = confused(run.cases)
    names = sorted({n for pair in pairs for n in pair}, key=lambda n: (n == NONE, n))
    shown = _matrix(counts, names) if len(names) <= MOST_NAMES else Html("")
    return join([said, shown, _pairs(pairs, link, fold=bool(shown))])


def _matrix(counts: Counts, names: Sequence[str]) -> Html:
    """Expected × called, of the tools that were confused. A cell is the darker, the more often it came."""
    rows = [n for n in names if n in counts]
    columns = [m for m in names if any(m in counts[n] for n in rows)]
    most = max(counts[n].get(m, 0) for n in rows for m in columns)
    called = (tag("th", tag("span", _said(m)), scope="col", class_="turned") for m in columns)
    body = [
        tag("tr", tag("th", _said(n), scope="row"), *(_cell(counts[n].get(m, 0), n == m, most) for m in columns))
        for n in rows
    ]
    caption = "Tools expected, by the tools that were called; only tools that were confused"
    head = tag("tr", tag("th", "expected ↓  called →", scope="col"), *called)
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_="matrix")
    return scrolling(made, caption)


def _said(name: str) -> str:
    return "no call" if name == NONE else name


def _cell(count: int, right: bool, most: int) -> Html:
    if not count:
        return tag("td", tag("span", "0", class_="away"))
    level = 1 + round(3 * count / most)
    return tag("td", f"{count:,}", class_=f"{'right' if right else 'wrong'} l{level}")


def _pairs(pairs: Mapping[tuple[str, str], list[Key]], link: Link, *, fold: bool) -> Html:
    rows = []
    for (wanted, called), keys in list(pairs.items())[:MOST_PAIRS]:
        distinct = list(dict.fromkeys(keys))
        more = f" and {len(distinct) - MOST_LINKS:,} more" if len(distinct) > MOST_LINKS else ""
        rows.append(
            [_said(wanted), _said(called), f"{len(keys):,}", join([join(map(link, distinct[:MOST_LINKS]), ", "), more])]
        )
    columns = [Column("expected", False), Column("called", False), Column("times"), Column("cases", False)]
    caption = "What was called in the place of what"
    first, rest = (rows, []) if fold else (rows[:FIRST_PAIRS], rows[FIRST_PAIRS:])
    made = table(columns, first, caption=caption, class_="dense")
    left = f"{len(pairs) - MOST_PAIRS:,} rarer pairs are left out." if len(pairs) > MOST_PAIRS else ""
    note = tag("p", left, class_="soft small") if left else ""
    if fold:
        return tag("details", tag("summary", "The pairs, with their cases"), made, note)
    more = tag(
        "details", tag("summary", f"{len(rest):,} more"), table(columns, rest, caption=caption, class_="dense"), note
    )
    return join([made, more if rest else ""])
