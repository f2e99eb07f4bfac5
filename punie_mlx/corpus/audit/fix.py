"""`punie-mlx audit DATA --fix OUT`: a copy of the corpus in which what has one right answer is mended.

    quarantined   what cannot be mended: lines that are no rows, broken calls, empty answers
    rewritten     by `repair`: calls and results structured, types restored, turns joined, loose ends cut
    dropped       copies within a split; rows of `train` that stand, or whose query stands, in a held-out split or suite

These steps follow each other, each on what the one before has left, so a row that is in quarantine leaks nowhere. What
needs a judgement (cut results, arguments from nowhere, conflicting labels) is left and counted. The source stays as it
is; a row that needs nothing is written byte for byte as it was, and `audit-fix.json` tells every change.

Where a row has to become `messages`, or its calls `tool_calls`, so do the others: two shapes, or two spellings of
calls, would be a new fault.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.corpus.audit.model import ERROR, TRAIN, AuditRow, Check, Corpus, Finding
from punie_mlx.corpus.audit.read import read_row
from punie_mlx.corpus.audit.repair import repair
from punie_mlx.corpus.audit.run import CHECKS, audit
from punie_mlx.corpus.convert import QUARANTINE
from punie_mlx.corpus.rows import write_rows
from punie_mlx.corpus.structure import BadRow
from punie_mlx.errors import OutputError
from punie_mlx.files import atomic_dir, refuse_existing

REPORT = "audit-fix.json"
HOPELESS = ("bad_row", "no_answer", "broken_call", "empty_turn", "result_without_call")
MENDED = (
    *("mended_call", "encoded_arguments", "leftover_fence", "lost_type"),
    *("ends_unanswered", "consecutive_assistant", "double_wrapped", "result_as_user"),
)
EVENED = ("mixed_shapes", "mixed_spellings")
COPIES = ("duplicate",)
LEAKS = ("leak_row", "leak_query", "leak_suite")
FIXED = (*HOPELESS, *MENDED, *EVENED, *COPIES, *LEAKS)


@dataclass(frozen=True)
class Change:
    """What was done to the row at `where` (`file:line` of the source), because of which checks."""

    where: str
    action: str  # "rewritten", "dropped" or "quarantined"
    why: tuple[str, ...]
    detail: str = ""


@dataclass
class Fixed:
    """What a fix did. findings: check → how many before and after. left: those of them that are still there."""

    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    @property
    def left(self) -> dict[str, int]:
        """Check → findings that are left for a judgement."""
        return {name: n["after"] for name, n in self.findings.items() if n["after"]}

    def to_json(self) -> dict[str, Any]:
        """The report as it is written."""
        return asdict(self)

    def summary(self, out: Path) -> str:
        """The report in a few lines for people."""
        n = self.rows
        done = f"{n['rewritten']} rewritten, {n['dropped']} dropped, {n['quarantined']} in quarantine"
        lines = [f"{n['before']} rows: {done}; {n['after']} are in {out}"]
        lines += [f"  {name}: {c['before']} → {c['after']}" for name, c in self.findings.items()]
        return "\n".join(lines)


def fix(
    corpus: Corpus,
    findings: Iterable[Finding],
    out: Path,
    *,
    overwrite: bool = False,
    conflicts: bool = False,
    checks: Sequence[Check] = CHECKS,
) -> Fixed:
    """Write the mended copy of `corpus` to the directory `out`.

    findings: what an audit with `checks` found in it: what it did not look for is not mended. conflicts: put rows whose
    query gets a call in one row and none in another into quarantine, too. Raises `OutputError` or `DiskError`.
    """
    source, out = Path(corpus.path).absolute(), Path(out)
    refuse_existing(out, overwrite)
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise OutputError(f"{out} holds the source itself: name another directory")
    findings = list(findings)
    wanted = {f.check for f in findings}
    work = _Work(corpus, wanted)
    for step in (_quarantine, _mend, _copies, _leaks):
        step(work)
    if conflicts:
        _conflicts(work)
    after = audit(work.corpus, checks).findings
    report = _report(corpus, work, Counter(f.check for f in findings), Counter(f.check for f in after))
    with atomic_dir(out, overwrite=overwrite) as tmp:
        _write(tmp, corpus, work, report)
    return report


class _Work:
    """The corpus as far as it is mended, and every change; rows keep the place that they had in the source."""

    def __init__(self, corpus: Corpus, wanted: set[str]) -> None:
        self.corpus = corpus
        self.wanted = wanted
        self.changes: dict[str, Change] = {}
        self.quarantined: list[dict[str, Any]] = []
        self.lines: dict[str, str] = {}  # of rewritten rows

    def found(self, names: Sequence[str]) -> list[Finding]:
        """What the checks of these names, of those that are wanted, find now."""
        return [f for check in _named(names) if check.name in self.wanted for f in check.findings(self.corpus)]

    def take(self, rows: dict[str, AuditRow | None]) -> None:
        """Put other rows, or none, in the places named."""
        splits = {
            split: [new for row in old if (new := rows.get(row.where, row)) is not None]
            for split, old in self.corpus.splits.items()
        }
        self.corpus = replace(self.corpus, splits=splits, memo={})

    def drop(self, why: dict[str, list[str]], action: str, detail: Callable[[str], str]) -> None:
        """Take out the rows at the places of `why`."""
        for where, names in why.items():
            self.changes[where] = Change(where, action, tuple(dict.fromkeys(names)), detail(where))
        self.take(dict.fromkeys(why))

    def quarantine(self, row: AuditRow, names: Sequence[str], detail: str) -> None:
        entry = {"file": row.file, "line": row.line, "reason": names[0], "detail": detail, "row": row.text}
        self.quarantined.append(entry)
        self.changes[row.where] = Change(row.where, "quarantined", tuple(names), detail)


def _named(names: Sequence[str]) -> list[Check]:
    return [check for check in CHECKS if check.name in names]


# ---- the steps ----


def _quarantine(work: _Work, names: Sequence[str] = HOPELESS, severity: str = "") -> None:
    reasons: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in work.found(names):
        if not severity or finding.severity == severity:
            for where in (finding.where, *finding.also):
                reasons[where].append(finding)
    for where, found in reasons.items():
        if row := work.corpus.at(where):
            checks = tuple(dict.fromkeys(f.check for f in found))
            work.quarantine(row, checks, "; ".join(dict.fromkeys(f.detail for f in found)))
    work.take(dict.fromkeys(reasons))


def _mend(work: _Work) -> None:
    why: defaultdict[str, list[str]] = defaultdict(list)
    for finding in work.found(MENDED):
        why[finding.where].append(finding.check)
    shapes = {r.format for r in work.corpus.rows if r.where in why} - {"messages"}
    structured = any(r.calls for r in work.corpus.rows if r.where in why)
    uneven = bool(work.found(["mixed_spellings"]))
    shapes |= {"text", "completion"} if work.found(["mixed_shapes"]) else set()
    for row in work.corpus.rows:
        if row.turns and row.format in shapes:
            why[row.where].append("mixed_shapes")
        elif (uneven or structured) and any(c.spelling != "tool_calls" for c in row.calls):
            why[row.where].append("mixed_spellings")
    changed: dict[str, AuditRow | None] = {}
    for row in work.corpus.rows:
        if row.where in why:
            changed[row.where] = _mended(row, tuple(dict.fromkeys(why[row.where])), work)
    work.take(changed)


def _mended(row: AuditRow, why: tuple[str, ...], work: _Work) -> AuditRow | None:
    try:
        mended = repair(row)
    except BadRow as e:
        work.quarantine(row, (e.reason, *why), str(e))
        return None
    work.lines[row.where] = json.dumps(mended, ensure_ascii=False)
    own = any(name not in EVENED for name in why)
    work.changes[row.where] = Change(row.where, "rewritten", why, "" if own else "as the other rows are")
    return read_row(work.lines[row.where], row.split, row.file, row.line)


def _copies(work: _Work) -> None:
    found = {f.where: f for f in work.found(COPIES)}
    work.drop({where: [f.check] for where, f in found.items()}, "dropped", lambda where: found[where].detail)


def _leaks(work: _Work) -> None:
    """Out of `train`: the held-out splits stay what they were, and so do the figures measured on them."""
    why: defaultdict[str, list[str]] = defaultdict(list)
    against: defaultdict[str, list[str]] = defaultdict(list)
    for finding in work.found(LEAKS):
        places = (finding.where, *finding.also)
        for where in places:
            if (row := work.corpus.at(where)) and row.split == TRAIN:
                why[where].append(finding.check)
                against[where] += [p for p in places if p != where and not _in_train(p, work.corpus)]
    work.drop(why, "dropped", lambda where: f"stands in {', '.join(dict.fromkeys(against[where]))}")


def _in_train(where: str, corpus: Corpus) -> bool:
    row = corpus.at(where)
    return row is not None and row.split == TRAIN


def _conflicts(work: _Work) -> None:
    _quarantine(work, ["conflict"], ERROR)


# ---- what is written ----


def _report(corpus: Corpus, work: _Work, before: Counter[str], after: Counter[str]) -> Fixed:
    actions = Counter(c.action for c in work.changes.values())
    counts = {split: len(rows) for split, rows in work.corpus.splits.items()}
    total = {"before": len(corpus.rows), "after": len(work.corpus.rows)}
    return Fixed(
        rows=total | {action: actions[action] for action in ("rewritten", "dropped", "quarantined")},
        files={split: {"before": len(rows), "after": counts[split]} for split, rows in corpus.splits.items()},
        findings={n: {"before": before[n], "after": after[n]} for n, _ in (before | after).most_common()},
        changes=[work.changes[row.where] for row in corpus.rows if row.where in work.changes],
    )


def _write(tmp: Path, corpus: Corpus, work: _Work, report: Fixed) -> None:
    inputs = {}
    for split, rows in corpus.splits.items():
        path = corpus.path if corpus.path.is_file() else corpus.path / f"{split}.jsonl"
        inputs[path.name] = identity.hash_file(path)
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        kept = {row.where for row in work.corpus.splits[split]}
        with (tmp / path.name).open("wb") as f:
            for row in rows:
                if row.where in kept:
                    mended = work.lines.get(row.where)
                    f.write((lines[row.line - 1] if mended is None else _utf8(mended)) + b"\n")
    write_rows(tmp / QUARANTINE, work.quarantined)
    identity.write_json(tmp / REPORT, {"source": corpus.path.name, **report.to_json()})
    settings = {"fixed": [name for name in FIXED if name in work.wanted]}
    identity.write_manifest(tmp, identity.manifest("rows", inputs=inputs, settings=settings, report=report.rows))


def _utf8(line: str) -> bytes:
    """JSON may spell halves of surrogate pairs, which have no UTF-8: such a line stays ASCII."""
    try:
        return line.encode()
    except UnicodeEncodeError:
        return json.dumps(json.loads(line)).encode()
