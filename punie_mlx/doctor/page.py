"""The findings as one HTML file: evidence side by side, with its tokens, and the page of each check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from punie_mlx.doctor.facts import ANSWERS, RAW_ANSWERS, answers, headed
from punie_mlx.doctor.findings import Examined, Finding, Shown
from punie_mlx.doctor.table import explanation
from punie_mlx.doctor.terminal import summary
from punie_mlx.pages import frame
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, join, spaced, tag

RAW = 600  # characters of what a model wrote that stand in a table
STYLE = """
.finding { border-left: .35rem solid #2b6cb0; padding: .1rem 0 .1rem 1rem; margin: 1.5rem 0; }
.finding.high { border-color: #c0392b; }
.finding.medium { border-color: #b7791f; }
.finding h2 { font-size: 1.1rem; margin: 0; }
.severity { font-size: .8rem; text-transform: uppercase; letter-spacing: .05em; }
.evidence { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.evidence figure { margin: 0; min-width: 0; }
.evidence figcaption { font-size: .85rem; opacity: .8; }
.evidence pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
.evidence u { text-decoration: none; opacity: .45; }
.evidence .token { border-bottom: 2px solid currentColor; margin-right: 2px; }
.evidence .token sub { opacity: .7; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; overflow-wrap: anywhere; }
dl.facts dd { margin: 0; min-width: 0; }
"""


def page(found: Examined, name: str) -> str:
    """The page of what was found in `name`."""
    body = [
        tag("h1", f"What is wrong with {name}" if found.findings else f"Nothing is wrong with {name}"),
        tag("p", summary(found)),
        *map(_finding, found.findings),
        *_facts(found.facts),
        *_others(found),
    ]
    return frame.document(f"punie-mlx doctor: {name}", tag("main", *body), style=STYLE)


def _finding(finding: Finding) -> Html:
    return tag(
        "section",
        tag("p", finding.severity, class_="severity"),
        tag("h2", tag("code", finding.check), " ", *_words(finding.summary)),
        tag("div", *map(_shown, finding.shown), class_="evidence"),
        tag("p", tag("strong", "Effect: "), *_words(finding.effect)),
        tag("p", tag("strong", "Remedy: "), *_words(finding.remedy)),
        tag("details", tag("summary", "What this check looks at"), tag("pre", explanation(finding.check))),
        class_=f"finding {finding.severity}",
    )


def _words(text: str) -> list[object]:
    """`text` with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one of them has no other
        return [text]
    return [tag("code", part) if i % 2 else part for i, part in enumerate(parts)]


def _shown(piece: Shown) -> Html:
    tokens = [tag("span", spaced(text), tag("sub", token), class_="token") for token, text in piece.tokens]
    count = f"{len(tokens)} tokens"
    return tag(
        "figure",
        tag("figcaption", piece.label),
        tag("pre", spaced(piece.text), tabindex="0"),
        tag("details", tag("summary", count), tag("pre", *tokens)) if tokens else "",
    )


def _facts(facts: dict[str, Any]) -> Iterator[Html]:
    for heading, rows in headed(facts):
        yield tag("h2", heading)
        cells = [tag("dt", name or heading) + tag("dd", what) for name, what in rows]
        yield tag("dl", Html("".join(cells)), class_="facts")
    if rows := answers(facts, RAW):
        yield tag("h2", RAW_ANSWERS.capitalize())
        columns = [Column(name, number=name.startswith("P(")) for name in ANSWERS]
        yield table(columns, rows, caption=RAW_ANSWERS)


def _others(found: Examined) -> Iterator[Html]:
    if found.skipped:
        yield tag("h2", "Not checked")
        yield tag("ul", *(tag("li", tag("code", check), f": {why}") for check, why in found.skipped))
    if found.passed:
        yield tag("h2", "Nothing found by")
        yield tag("p", join((tag("code", check) for check in found.passed), ", "))
