"""An audit for people and for programs: a table for the terminal, and JSON with every finding."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.table import Table
from rich.text import Text

from punie_mlx.corpus.audit.model import SEVERITIES, Audit, Check, Finding, shown

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Group:
    """A check with all that it found."""

    check: Check
    findings: Sequence[Finding]

    @cached_property
    def severity(self) -> str:
        """The worst severity of its findings; its own where it found nothing."""
        return min((f.severity for f in self.findings), key=SEVERITIES.index, default=self.check.severity)

    @cached_property
    def splits(self) -> Counter[str]:
        """Split → how many findings; those of the corpus as a whole under ""."""
        return Counter(f.split for f in self.findings)


def groups(audit: Audit) -> list[Group]:
    """The checks that found something, the worst first, then those with most findings."""
    by_check: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in audit.findings:
        by_check[finding.check].append(finding)
    found = [Group(check, by_check[check.name]) for check in audit.checks if check.name in by_check]
    return sorted(found, key=lambda g: (SEVERITIES.index(g.severity), -len(g.findings)))


def plain(text: str) -> str:
    """`text` without what a terminal would obey and what UTF-8 cannot hold: escapes stand for it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def summary(audit: Audit) -> str:
    """One line: rows, checks, findings."""
    corpus, severities = audit.corpus, audit.severities
    rows = ", ".join(f"{split} {len(rows)}" for split, rows in corpus.splits.items())
    found = ", ".join(f"{severities[s]} {s}{'s' * (severities[s] != 1)}" for s in SEVERITIES if severities[s])
    clean = len(audit.checks) - len({f.check for f in audit.findings})
    return plain(
        f"{corpus.path}: {len(corpus.rows)} rows ({rows}); {found or 'nothing found'}; {clean} of "
        f"{len(audit.checks)} checks are clean"
    )


# ---- terminal ----


def figures_table(audit: Audit) -> Table:
    """The numbers to know, by split."""
    splits = list(audit.corpus.splits)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for split in (*splits, "all") if len(splits) > 1 else splits:
        table.add_column(plain(split), justify="right", overflow="fold")
    for name, values in audit.figures.items():
        keys = (*splits, "") if len(splits) > 1 else splits
        table.add_row(Text(audit.titles[name]), *(Text(plain(shown(values.get(key, "")))) for key in keys))
    return table


def findings_table(audit: Audit, limit: int = 1) -> Table:
    """The checks that found something: how often in each split, and the first `limit` findings with their places."""
    splits = list(audit.corpus.splits)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "", "all", *splits):
        table.add_column(plain(title), justify="left" if title in ("check", "") else "right", no_wrap=True)
    table.add_column("for example", overflow="fold")
    for group in groups(audit):
        counts = [str(group.splits[s] or "·") for s in splits]
        name, severity = Text(group.check.name), Text(group.severity, STYLES[group.severity])
        table.add_row(name, severity, str(len(group.findings)), *counts, _examples(group, limit))
    return table


def _examples(group: Group, limit: int) -> Text:
    text = Text(group.check.title, "bold")
    for finding in group.findings[:limit]:
        text.append("\n")
        if finding.where:
            text.append(plain(finding.where) + " ", "not bold cyan")
        text.append(plain(finding.detail), "not bold")
    return text


# ---- JSON ----


def to_json(audit: Audit) -> dict[str, Any]:
    """The audit with every finding, under the checks that found something."""
    corpus = audit.corpus
    return {
        "data": str(corpus.path),
        "rows": {split: len(rows) for split, rows in corpus.splits.items()},
        "summary": {s: audit.severities[s] for s in SEVERITIES},
        "figures": {name: {split or "all": v for split, v in values.items()} for name, values in audit.figures.items()},
        "checks": [_group_json(g) for g in groups(audit)],
        "clean": [c.name for c in audit.checks if not audit.of(c.name)],
        "skipped": dict(audit.skipped),
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.check.name,
        "severity": group.severity,
        "title": group.check.title,
        "help": group.check.help,
        "count": len(group.findings),
        "by_split": {split or "corpus": n for split, n in group.splits.items()},
        "findings": [_finding_json(f) for f in group.findings],
    }


def _finding_json(finding: Finding) -> Mapping[str, Any]:
    return {
        "where": finding.where or None,
        "split": finding.split or None,
        "severity": finding.severity,
        "detail": finding.detail,
        "also": list(finding.also),
    }


def json_text(audit: Audit) -> str:
    """`to_json` as text that UTF-8 can hold: a lone surrogate in a row becomes its JSON escape."""
    text = json.dumps(to_json(audit), indent=2, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def lines(audit: Audit) -> Iterator[str]:
    """What is said beside the tables: which checks were not run, and why."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, why in audit.skipped.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        yield f"not run ({why}): {', '.join(names)}"
