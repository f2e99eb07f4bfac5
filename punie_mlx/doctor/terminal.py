"""Findings for a terminal: the worst first, evidence side by side where there is room, then what to type where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from punie_mlx.doctor.facts import ANSWERS, RAW_ANSWERS, answers, headed
from punie_mlx.doctor.findings import SEVERITIES, Examined, Finding, Shown
from punie_mlx.pages.text import visible

STYLES = {"high": "bold red", "medium": "yellow", "low": "cyan"}
SIDE_BY_SIDE = 100  # columns from which two pieces of evidence stand beside each other
RAW = 120  # characters of what a model wrote that stand in a table
WIDTH = 140  # where the output is no terminal: a log should not wrap as one


def console(*, err: bool = False) -> Console:
    """A console that does not wrap a log as narrowly as a terminal."""
    made = Console(stderr=err, highlight=False)
    return made if made.is_terminal else Console(stderr=err, width=WIDTH, highlight=False)


def show(found: Examined, out: Console) -> None:
    """Print all that was found, and what was learned on the way."""
    for finding in found.findings:
        out.print(_finding(finding, wide=out.width >= SIDE_BY_SIDE))
    for heading, facts in _facts(found.facts):
        out.print(Text(heading, "bold"))
        out.print(Padding(facts, (0, 0, 1, 2)))
    for why, checks in _skipped(found.skipped).items():
        out.print(Text(f"not checked, since {visible(why)}: {', '.join(checks)}", "dim"))
    out.print(Text(summary(found), "bold"))


def summary(found: Examined) -> str:
    """One line: how many findings of which severity, and how many checks found nothing."""
    counts = {s: sum(f.severity == s for f in found.findings) for s in SEVERITIES}
    told = ", ".join(f"{n} {severity}" for severity, n in counts.items() if n)
    clean = f"{_counted(len(found.passed), 'check')} found nothing"
    return f"{_counted(len(found.findings), 'finding')} ({told}); {clean}" if told else f"no findings; {clean}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _skipped(skipped: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Checks that were left out, by the reason: many have the same."""
    reasons: dict[str, list[str]] = {}
    for check, why in skipped:
        reasons.setdefault(why, []).append(check)
    return reasons


def _finding(finding: Finding, *, wide: bool) -> RenderableType:
    head = Text.assemble(
        (f"{finding.severity:6} ", STYLES[finding.severity]), (finding.check, "bold"), "  ", visible(finding.summary)
    )
    body = Table(box=None, show_header=False, pad_edge=False)
    body.add_column(style="dim")
    body.add_column(overflow="fold")
    body.add_row("effect", Text(visible(finding.effect)))
    body.add_row("remedy", Text(visible(finding.remedy)))
    return Group(head, Padding(Group(_evidence(finding.shown, wide=wide), body), (0, 0, 1, 2)))


def _evidence(shown: tuple[Shown, ...], *, wide: bool) -> RenderableType:
    panels = [_panel(piece) for piece in shown]
    if not wide or len(panels) != 2:
        return Group(*panels)
    beside = Table.grid(expand=True)
    for _ in panels:
        beside.add_column(ratio=1)
    beside.add_row(*panels)
    return beside


def _panel(piece: Shown) -> Panel:
    text = Text(visible(piece.text), overflow="fold")
    if piece.tokens:
        ids = " ".join(f"{visible(spelling)!r}:{token}" for token, spelling in piece.tokens)
        text.append(f"\n{ids}", "dim")
    return Panel(text, title=Text(visible(piece.label), overflow="ellipsis"), title_align="left", border_style="dim")


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    for heading, rows in headed(facts):
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, what in rows:
            table.add_row(Text(visible(name)), Text(visible(what)))
        yield heading, table
    if rows := answers(facts, RAW):
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head in ANSWERS:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        yield RAW_ANSWERS, table
