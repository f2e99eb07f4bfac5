"""What the doctor says: findings, the checks that make them, and the examination that runs checks in order of harm.

Each module of checks ends with a tuple `CHECKS`; `table.py` puts them together. A check is a function of its subject
(a `Specimen`, a server, a probed model) that yields findings and nothing where all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("high", "medium", "low")
"""high: agents fail. medium: some conversations fail. low: it costs time, or is one change away from failing."""

AREAS = ("template", "round-trip", "vocabulary", "adapter", "data", "behaviour", "server")

Tokens = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Shown:
    """A piece of evidence word for word: what was rendered, answered or found, with its tokens where they are known."""

    label: str
    text: str
    tokens: Tokens = ()

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"label": self.label, "text": self.text}
        return shown | ({"tokens": [list(t) for t in self.tokens]} if self.tokens else {})


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `summary` in one line, `effect` is what an agent sees of it, `remedy` what to do."""

    check: str
    severity: str
    summary: str
    shown: tuple[Shown, ...]
    effect: str
    remedy: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"the severity {self.severity!r} of {self.check} is none of {SEVERITIES}")
        if not self.shown:
            raise ValueError(f"the finding {self.check} has no evidence")

    @property
    def evidence(self) -> str:
        """All that is shown, as one text."""
        return "\n".join(f"{s.label}: {s.text}" for s in self.shown)

    def to_json(self) -> dict[str, Any]:
        """The keys that `--json` promises, and the evidence in parts."""
        return {
            "check": self.check,
            "severity": self.severity,
            "summary": self.summary,
            "evidence": self.evidence,
            "shown": [s.to_json() for s in self.shown],
            "effect": self.effect,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Check:
    """A named check. `follows`: checks whose findings explain this one's, which is then left out."""

    id: str
    area: str
    title: str
    run: Callable[[Any], Iterable[Finding]]
    follows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examined:
    """What came of some checks: findings in order of harm, ids of checks that found nothing, and what was not checked.

    facts: what was learned on the way, such as the wire format and the flags to type, by name.
    """

    findings: tuple[Finding, ...] = ()
    passed: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Examined) -> Examined:
        return Examined(
            in_order(self.findings + other.findings),
            self.passed + other.passed,
            self.skipped + other.skipped,
            self.facts | other.facts,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [f.to_json() for f in self.findings],
            "passed": list(self.passed),
            "skipped": [{"check": check, "why": why} for check, why in self.skipped],
            "facts": self.facts,
        }


class Skip(Exception):
    """A check cannot say anything about its subject; its text says why."""


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; those of one severity as they come."""
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def examine(subject: Any, checks: Sequence[Check]) -> Examined:
    """Run `checks` on `subject`."""
    found: dict[str, list[Finding]] = {}
    skipped = []
    for check in checks:
        try:
            found[check.id] = list(check.run(subject))
        except Skip as e:
            skipped.append((check.id, str(e)))
    failed = {check for check, findings in found.items() if findings}
    named = [c for c in checks if c.id in failed and not failed.intersection(c.follows)]
    for check in checks:
        if check.id in failed and check not in named:
            skipped.append((check.id, f"it follows from {', '.join(f for f in check.follows if f in failed)}"))
    return Examined(
        findings=in_order(f for c in named for f in found[c.id]),
        passed=tuple(c.id for c in checks if c.id in found and c.id not in failed),
        skipped=tuple(skipped),
    )
