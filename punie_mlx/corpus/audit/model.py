"""What the audit works on: rows as they were read, checks, and what these found.

A check is data: a `Check` in the table of its module (`CHECKS`), whose `run` takes the whole corpus. A check that looks
at one row at a time is written as a function of that row and wrapped:

    def no_system(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
        if row.turns and row.turns[0].role not in SYSTEM:
            yield row.finding("the row has no system turn")

    CHECKS = (Check("no_system", NOTE, "Rows without a system turn", "why, and what to do", each(no_system)),)

A finding is made without its check's name and severity; `Check.findings` fills them in. A figure is a number that is no
fault: one value for each split, under "" the whole corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from punie_mlx.corpus.suite import Suite

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)  # the worst first
SYSTEM = frozenset({"system", "developer"})
FORMATS = ("messages", "text", "completion", "bad")
TRAIN = "train"


# ---- a row ----


@dataclass(frozen=True)
class Call:
    """A call that could be read.

    turn: index of its message. spelling: "tool_calls" (structured), "fence", or the wire format of its tags.
    repaired: what had to be mended to read it, "" where nothing was. encoded: its arguments are JSON text in the row.
    """

    name: str
    arguments: dict[str, Any]
    turn: int
    spelling: str
    raw: str = ""
    repaired: str = ""
    encoded: bool = False
    id: str = ""


@dataclass(frozen=True)
class Broken:
    """What was meant to be a call and cannot be read: why, and its text."""

    turn: int
    spelling: str
    reason: str
    raw: str


@dataclass(frozen=True)
class Turn:
    """One message of a row, taken apart.

    content: as the row has it. text: what is left of it without calls, thinking and tool results. preamble: the text
    before its first call. results: the tool results that it carries (of a `tool` message: its content; of a user turn:
    those spelled into it, unwrapped once).
    """

    index: int
    role: str
    content: str
    text: str = ""
    calls: tuple[Call, ...] = ()
    broken: tuple[Broken, ...] = ()
    reasoning: str = ""
    results: tuple[str, ...] = ()
    preamble: str = ""


@dataclass(frozen=True)
class AuditRow:
    """One line of the corpus, however it is written.

    split: name of the file without `.jsonl`. file: its name. line: from 1. text: the line as it stands. raw: its JSON
    value, None where it is none. format: one of `FORMATS`. problem: why the row is "bad". messages: role and
    content of each message (other keys are kept), None where the row cannot be taken apart. tools: OpenAI schemas that
    are offered, also those listed in a <tools> block of a text row.
    """

    split: str
    file: str
    line: int
    text: str
    raw: dict[str, Any] | None
    format: str
    problem: str = ""
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    turns: tuple[Turn, ...] = ()

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    @cached_property
    def queries(self) -> list[str]:
        """What the user says, tool results left out."""
        return [t.text for t in self.turns if t.role == "user" and t.text.strip()]

    @property
    def query(self) -> str:
        """The first of `queries`, or ""."""
        return self.queries[0] if self.queries else ""

    @cached_property
    def calls(self) -> list[Call]:
        """The calls that can be read, in order."""
        return [c for t in self.turns for c in t.calls]

    @cached_property
    def broken(self) -> list[Broken]:
        """What was meant to be a call and cannot be read."""
        return [b for t in self.turns for b in t.broken]

    @cached_property
    def results(self) -> list[tuple[int, str]]:
        """Index of the message, and text, of each tool result."""
        return [(t.index, r) for t in self.turns for r in t.results]

    @cached_property
    def assistant(self) -> list[Turn]:
        """The turns of the assistant."""
        return [t for t in self.turns if t.role == "assistant"]

    @cached_property
    def offered(self) -> dict[str, dict[str, Any]]:
        """Name → JSON schema of the parameters of each tool that is offered."""
        functions = [t.get("function", t) for t in self.tools]
        named = [f for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)]
        return {f["name"]: p if isinstance(p := f.get("parameters"), dict) else {} for f in named}

    @property
    def direct(self) -> bool:
        """Whether the assistant answers without calling, or trying to call, anything."""
        return bool(self.assistant) and not self.calls and not self.broken

    def finding(self, detail: str, *, also: Iterable[str] = (), severity: str = "") -> Finding:
        """A finding at this row; `also`: other places that belong to it."""
        return Finding(self.where, detail, tuple(also), severity, split=self.split)


# ---- the corpus ----


@dataclass(frozen=True)
class Corpus:
    """The rows of each split (train first), and what they are judged by.

    tokenizer: of the model that will be trained, with its chat template, or None. max_seq_length: in tokens.
    memo: what checks have measured that others need, too.
    """

    splits: Mapping[str, Sequence[AuditRow]]
    path: Path = Path()
    tokenizer: Any = None
    suites: Sequence[Suite] = ()
    max_seq_length: int = 2048
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def rows(self) -> list[AuditRow]:
        """All rows, split by split."""
        return [row for rows in self.splits.values() for row in rows]

    @cached_property
    def _by_place(self) -> dict[str, AuditRow]:
        return {row.where: row for row in self.rows}

    def at(self, where: str) -> AuditRow | None:
        """The row at `file:line`."""
        return self._by_place.get(where)


# ---- checks and what they find ----


@dataclass(frozen=True)
class Finding:
    """One fault: where (`file:line`, or "" for the corpus as a whole), what, and the other places that belong to it."""

    where: str
    detail: str
    also: tuple[str, ...] = ()
    severity: str = ""
    check: str = ""
    split: str = ""


@dataclass(frozen=True)
class Check:
    """A question to the corpus. `title` heads its findings; `help` says why they matter and what to do.

    needs: "tokenizer" or "suites", where the check is skipped without.
    """

    name: str
    severity: str
    title: str
    help: str
    run: Callable[[Corpus], Iterable[Finding]]
    needs: str = ""

    def findings(self, corpus: Corpus) -> Iterator[Finding]:
        """What the check finds, under its name and, where the finding has none of its own, its severity."""
        for found in self.run(corpus):
            yield replace(found, check=self.name, severity=found.severity or self.severity)


def each(look: Callable[[AuditRow, Corpus], Iterable[Finding]]) -> Callable[[Corpus], Iterator[Finding]]:
    """A check of one row at a time, run on every row."""

    def run(corpus: Corpus) -> Iterator[Finding]:
        for row in corpus.rows:
            yield from look(row, corpus)

    return run


def shown(value: Any) -> str:
    """A figure's value for people: `count (share)`, `name count, …`, or as it is."""
    if not isinstance(value, Mapping):
        return str(value)
    if value.keys() == {"count", "share"}:
        return f"{value['count']} ({value['share']:.1%})"
    return ", ".join(f"{key} {n}" for key, n in value.items()) or "-"


@dataclass(frozen=True)
class Figure:
    """A number to know, for each split and (under "") for the corpus.

    run: gives split → value, which `shown` can show: a number, a count with its `share`, or names with their counts.
    """

    name: str
    title: str
    run: Callable[[Corpus], Mapping[str, Any]]
    needs: str = ""


def by_split(count: Callable[[Sequence[AuditRow]], Any]) -> Callable[[Corpus], Mapping[str, Any]]:
    """The figure `count` of the rows of each split, and of all."""

    def run(corpus: Corpus) -> Mapping[str, Any]:
        return {**{split: count(rows) for split, rows in corpus.splits.items()}, "": count(corpus.rows)}

    return run


@dataclass(frozen=True)
class Audit:
    """What an audit found. skipped: name of each check that was not run, and why."""

    corpus: Corpus
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)  # of the figures
    skipped: Mapping[str, str] = field(default_factory=dict)

    def of(self, check: str) -> list[Finding]:
        """The findings of one check."""
        return [f for f in self.findings if f.check == check]

    @property
    def severities(self) -> Counter[str]:
        """How many findings of each severity."""
        return Counter(f.severity for f in self.findings)
