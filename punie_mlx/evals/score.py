"""From a trajectory to a verdict: one check for each thing that a case can ask for, each failure with its reason.

    score(case, run).passed                 strict: arguments as the suite gives them, and an answer that can be read
    score(case, run, lenient=True).passed   what a public leaderboard counts

| check       | asks                                                                                               |
|-------------|----------------------------------------------------------------------------------------------------|
| `names`     | are these the calls that are expected (of one of the alternatives), none missing, none too many?     |
| `arguments` | does each expected call get a call of its own that fits it? The best pairing counts, not the first   |
| `order`     | do they come in the order of the list?                                                             |
| `parallel`  | are all in one response, or no two?                                                                |
| `execution` | did every tool do what it was asked?                                                               |
| `files`     | is the scratch directory afterwards as it should be?                                               |
| `answer`    | is there a final answer, free of calls that nobody could read, that holds and lacks what it should? |

A check that does not apply to the case is None. Arguments and order are asked of one alternative together, so a run
does not pass by the names of one and the arguments of another.

Lenient: arguments are compared loosely (`punie_mlx/corpus/suites/matchers.py`); a case that expects no call passes
where none was made, whatever was said; and what happens after the first turn does not matter where the case looks at
the first turn only. Whatever passes strictly passes leniently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from punie_mlx.corpus.suite import Case, ExpectedText
from punie_mlx.corpus.suites.matchers import ExpectedCall, Level, assign, faults, fits
from punie_mlx.evals.agent import Call, Run
from punie_mlx.toolcalls.looks import call_text

SHOWN = 200  # characters of a text in a reason


@dataclass(frozen=True)
class Verdict:
    """`checks`: name of the check → passed, failed, or None where it does not apply. `reasons`: why it failed."""

    checks: dict[str, bool | None]
    reasons: tuple[str, ...]
    unread_call: bool
    """The answer holds the text of a call: the model wanted a tool, and the server could not read it."""

    @property
    def passed(self) -> bool:
        return not self.reasons


def score(case: Case, run: Run, *, lenient: bool = False) -> Verdict:
    """Judge one run. Every failed check has a reason; a run without a reason passed."""
    judged = _Judged(case, run, lenient)
    complaints = {name: check(judged) for name, check in CHECKS.items()}
    reasons = [run.error] if run.error and not judged.excused else []
    reasons += [f"{name}: {complaint}" for name, complaint in complaints.items() if complaint]
    checks = {name: None if complaint is None else not complaint for name, complaint in complaints.items()}
    return Verdict(checks, tuple(reasons), judged.unread is not None)


def scored_calls(case: Case, run: Run) -> list[Call]:
    """The calls that count: all of them, or those of the first turn that has any."""
    if case.expect.turns == "all" or not run.calls:
        return run.calls
    return [c for c in run.calls if c.turn == run.calls[0].turn]


@dataclass(frozen=True)
class _Judged:
    """A run of a case, and what several checks want to know of it."""

    case: Case
    run: Run
    lenient: bool

    @cached_property
    def calls(self) -> list[Call]:
        return scored_calls(self.case, self.run)

    @cached_property
    def unread(self) -> str | None:
        return call_text(self.run.answer or "", self.case.schemas)

    @cached_property
    def may_call(self) -> bool:
        return any(self.case.alternatives)

    @cached_property
    def words_count(self) -> bool:
        """Whether more than the calls is looked at."""
        return not self.lenient or (self.may_call and self.case.expect.turns == "all")

    @cached_property
    def excused(self) -> bool:
        """Whether an error of the run is none of the case's: what was to be seen had been seen before."""
        if self.run.limited and self.case.expect.turns == "first":
            return True
        spoke = any(turn.status < 400 for turn in self.run.turns) and not self.run.lost
        return spoke and not self.words_count and all(isinstance(c.arguments, dict) for c in self.calls)

    def fit(self, expected: ExpectedCall, call: Call, level: Level) -> bool:
        return fits(expected, call, self.case.schemas, level, self.lenient)

    def pairs(self, expected: Sequence[ExpectedCall], level: Level) -> list[int | None]:
        """For each expected call, the index of the call that is best taken for it."""
        return assign(expected, self.calls, lambda e, c: self.fit(e, c, level))

    def made(self, level: Level) -> bool:
        """Whether the calls of one alternative were made, and no other ones."""
        same = [e for e in self.case.alternatives if len(e) == len(self.calls)]
        return any(None not in self.pairs(e, level) for e in same)

    def made_in_order(self, level: Level) -> bool:
        """The same, one after the other as they are listed."""
        same = [e for e in self.case.alternatives if len(e) == len(self.calls)]
        return any(all(self.fit(e, c, level) for e, c in zip(a, self.calls, strict=True)) for a in same)


# ---- the checks: None where it does not apply, "" where it is passed, or what was expected and what came ----


def _names(judged: _Judged) -> str | None:
    if judged.made("names"):
        return ""
    return f"expected {_listed(judged.case.alternatives)}; got {_names_of(judged.calls)}"


def _arguments(judged: _Judged) -> str | None:
    alternatives = judged.case.alternatives
    if not any(e.looks_at_arguments for expected in alternatives for e in expected):
        return None
    return "" if judged.made("arguments") else _difference(judged)


def _order(judged: _Judged) -> str | None:
    if judged.case.expect.order == "any" or len(judged.calls) < 2 or not judged.made("names"):
        return None
    if judged.made_in_order("arguments" if judged.made("arguments") else "names"):
        return ""
    wanted = " | ".join(", ".join(map(_told, e)) for e in judged.case.alternatives if len(e) == len(judged.calls))
    got = ", ".join(f"{c.name}({_json(c.arguments)})" for c in judged.calls)
    return f"expected {wanted} in this order; got {got}"


def _parallel(judged: _Judged) -> str | None:
    together = judged.case.expect.parallel
    if together is None or not judged.calls:
        return None
    turns = [c.turn for c in judged.calls]
    if together:
        return "" if len(set(turns)) == 1 else f"expected all calls in one response; got them in responses {turns}"
    return "" if len(set(turns)) == len(turns) else f"expected no two calls in one response; got them in {turns}"


def _execution(judged: _Judged) -> str | None:
    if judged.case.expect.execution == "any" or not judged.may_call:
        return None
    if not judged.calls:
        return "expected a call that succeeds; got no call" if judged.case.expects_call else None
    failed = next((c for c in judged.calls if not c.ok), None)
    return f"{failed.name}: {failed.result or 'was never executed'}" if failed else ""


def _files(judged: _Judged) -> str | None:
    wanted, there = judged.case.expect.files, judged.run.files
    if wanted is None or not judged.words_count:
        return None
    if there is None:
        return f"expected {', '.join(wanted)} to be looked at; got no state of the scratch directory"
    found = {str(PurePosixPath(path)): text for path, text in there.items()}
    complaints = (_file_complaint(path, text, found.get(str(PurePosixPath(path)))) for path, text in wanted.items())
    return "; ".join(filter(None, complaints))


def _answer(judged: _Judged) -> str | None:
    run, wanted = judged.run, judged.case.expect.answer
    if not judged.words_count or (judged.excused and not run.answer):
        return None
    if run.error and not run.answer:
        return "expected one; got none"
    answer = run.answer or ""
    if not answer.strip():
        return "it is empty"
    if judged.unread is not None:
        return f"it holds the text of a call: {_short(judged.unread)}"
    return _text_complaint(wanted, answer) if wanted else ""


CHECKS: Mapping[str, Callable[[_Judged], str | None]] = {
    "names": _names,
    "arguments": _arguments,
    "order": _order,
    "parallel": _parallel,
    "execution": _execution,
    "files": _files,
    "answer": _answer,
}


# ---- what is said of a failure ----


def _difference(judged: _Judged) -> str:
    """The first expected call that was not made, of the alternative that came nearest; only what differs is shown."""
    nearest = max(judged.case.alternatives, key=lambda e: (_found(judged, e, "arguments"), _found(judged, e, "names")))
    pairs = judged.pairs(nearest, "arguments")
    left = [c for i, c in enumerate(judged.calls) if i not in pairs]
    if None not in pairs:
        return f"expected no other call; got {_names_of(left)}"
    missed = nearest[pairs.index(None)]
    near = next((c for c in left if c.name in missed.names), None)
    if near is None:
        return f"{_told(missed)}: expected {_json(missed.wanted())}; got no such call"
    wanted, got = missed.wanted(), near.arguments
    differ = faults(missed, got, judged.case.schemas[near.name], judged.lenient)
    if isinstance(got, dict) and "" not in differ:
        wanted, got = ({k: v for k, v in side.items() if k in differ} for side in (wanted, got))
    return f"{_told(missed)}: expected {_json(wanted)}; got {_json(got)}"


def _found(judged: _Judged, expected: Sequence[ExpectedCall], level: Level) -> int:
    """How many of the expected calls were made, less those that were not."""
    return sum(1 if i is not None else -1 for i in judged.pairs(expected, level))


def _file_complaint(path: str, wanted: str | ExpectedText | None, text: str | None) -> str | None:
    if wanted is None:
        return f"expected no {path}; got {_short(text)}" if text is not None else None
    if text is None:
        return f"expected {path}; it is not there"
    if isinstance(wanted, str):
        return f"{path}: expected {_short(wanted)}; got {_short(text)}" if text != wanted else None
    complaint = _text_complaint(wanted, text)
    return f"{path}: {complaint}" if complaint else None


def _text_complaint(wanted: ExpectedText, text: str) -> str:
    for part in wanted.contains or ():
        if part not in text:
            return f"{part!r} is not in {_short(text)}"
    if wanted.matches is not None and not re.search(wanted.matches, text):
        return f"{wanted.matches!r} matches nothing in {_short(text)}"
    for part in wanted.lacks or ():
        if part in text:
            return f"{part!r} must not be in {_short(text)}"
    return ""


def _listed(alternatives: Sequence[Sequence[ExpectedCall]]) -> str:
    return " | ".join(", ".join(map(_told, expected)) or "no call" for expected in alternatives)


def _told(expected: ExpectedCall) -> str:
    return " or ".join(expected.names)


def _names_of(calls: Sequence[Call]) -> str:
    return ", ".join(c.name for c in calls) or "no call"


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
