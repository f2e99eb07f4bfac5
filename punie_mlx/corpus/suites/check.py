"""What is wrong with a suite that can be read: its figures, and warnings. `punie-mlx suite check` shows both.

A warning is data: a name and a function of the suite that finds the cases it is about.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from punie_mlx.corpus.audit import near
from punie_mlx.corpus.suite import Case, Problem, Suite, examine
from punie_mlx.corpus.suites.distance import Distance
from punie_mlx.corpus.suites.matchers import ExpectedCall, fits
from punie_mlx.toolcalls.values import problem

FEW = 10  # cases of a category below which its interval says next to nothing
MOST = 0.5  # of the cases that a model without sense may pass
NAMED = 5  # cases that a warning names


@dataclass(frozen=True)
class Warned:
    """Something to look at: which check found it, what, and the cases that it is about."""

    check: str
    text: str
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SameCall:
    """A call as a model without sense would make it, whatever it is asked."""

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, ensure_ascii=False)})"


@dataclass(frozen=True)
class Checked:
    """A suite file, what is wrong with its lines, its figures, warnings, and its distance from each corpus."""

    suite: Suite
    problems: tuple[Problem, ...]
    warnings: tuple[Warned, ...]
    senseless: Mapping[str, int]
    """What a model without sense does → how many cases it passes."""
    distances: tuple[Distance, ...] = ()

    def to_json(self) -> dict[str, Any]:
        suite = self.suite
        return {
            "path": str(suite.path), "hash": suite.hash, "cases": len(suite.cases),
            "categories": counts(suite, "category"), "sources": counts(suite, "source"),
            "licences": counts(suite, "licence"), "problems": [asdict(p) for p in self.problems],
            "warnings": [asdict(w) for w in self.warnings], "senseless": dict(self.senseless),
            "distances": [_distance_json(d) for d in self.distances],
        }  # fmt: skip


def _distance_json(found: Distance) -> dict[str, Any]:
    overlap = {
        str(n): {category: {**asdict(o), "share": o.share} for category, o in by.items()}
        for n, by in found.overlap.items()
    }
    return {
        "corpus": str(found.corpus), "rows": found.rows, "leaks": [asdict(k) for k in found.leaks], "overlap": overlap,
        "nearest": [asdict(n) for n in found.nearest],
    }  # fmt: skip


def check(path: Path) -> Checked:
    """Look at one file. Raises `DataError` where it cannot be read."""
    suite, problems = examine(path)
    if not suite.cases and not problems:
        problems = [Problem(1, "the suite holds no case: write one JSON object a line")]
    warnings = [Warned(name, *found) for name, look in WARNINGS.items() for found in look(suite)]
    senseless = dict(_senseless(suite))
    for what, passed in senseless.items():
        if passed > MOST * len(suite.cases):
            warnings.append(Warned("senseless", f"a model that {what} passes {passed} of {len(suite.cases)} cases"))
    return Checked(suite, tuple(problems), tuple(warnings), senseless)


def counts(suite: Suite, field: str) -> dict[str, int]:
    """How many cases have each value of a field of theirs; "" where they have none."""
    return dict(Counter(getattr(case, field) or "" for case in suite.cases))


# ---- warnings: what is said, and the cases ----

Found = Iterator[tuple[str, tuple[str, ...]]]


def _copies(suite: Suite) -> Found:
    """The same question, tools and conversation: the second counts the first once more."""
    first: dict[str, Case] = {}
    for case in suite.cases:
        known = first.setdefault(_asks(case), case)
        if known is not case:
            yield f"{case.id} asks what {known.id} asks: {_cut(case.query)}", (known.id, case.id)


def _asks(case: Case) -> str:
    earlier = [] if case.messages is None else case.messages[:-1]
    said = [near.normalize(text) for text in (case.query, *case.follow_ups)]
    return json.dumps([said, case.system, sorted(case.schemas), earlier, case.files], sort_keys=True)


def _near_copies(suite: Suite) -> Found:
    """Questions of one category that are nearly the same, with the same tools."""
    groups: defaultdict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in suite.cases:
        if case.messages is None:
            groups[(case.category, *sorted(case.schemas))].append(case)
    for cases in groups.values():
        known = {near.normalize(c.query): c for c in reversed(cases)}
        known = dict(reversed(known.items()))  # in the order of the suite, each by its first case
        index = near.Queries({normal: c.query for normal, c in known.items()}, known)
        told: set[str] = set()
        for normal, case in known.items():
            hit = index.near(normal, case.query)
            if hit is not None and hit in told:
                yield f"{case.id} asks nearly what {known[hit].id} asks: {_cut(case.query)}", (known[hit].id, case.id)
            told.add(normal)


def _few(suite: Suite) -> Found:
    small = {name: n for name, n in counts(suite, "category").items() if n < FEW}
    if small:
        told = ", ".join(f"{name} {n}" for name, n in small.items())
        yield f"categories with fewer than {FEW} cases, whose intervals say little: {told}", ()


def _unsigned(suite: Suite) -> Found:
    for field in ("source", "licence"):
        missing = tuple(case.id for case in suite.cases if getattr(case, field) is None)
        if missing and len(missing) < len(suite.cases):
            yield f"{len(missing)} cases have no {field}, others have: {_ids(missing)}", missing


def _any_call_does(suite: Suite) -> Found:
    """One tool and no arguments that are looked at: whoever calls at all passes."""
    found = tuple(
        case.id
        for case in suite.cases
        if len(case.tools) == 1 and case.expects_call and case.expect.answer is None and case.expect.files is None
        and all(not e.looks_at_arguments for calls in case.alternatives for e in calls)
    )  # fmt: skip
    if found:
        yield f"{len(found)} cases are passed by any call of the one tool that is offered: {_ids(found)}", found


def _breaks_the_schema(suite: Suite) -> Found:
    """What is expected, but the tool would refuse."""
    for case in suite.cases:
        for call in (e for calls in case.alternatives for e in calls):
            for name in call.names:
                if reason := _refused(call, case.schemas[name]):
                    yield f"{case.id} expects a call of {name} that its schema refuses: {reason}", (case.id,)


def _refused(call: ExpectedCall, schema: Mapping[str, Any]) -> str | None:
    if call.arguments is not None and not call.match:
        return problem(call.arguments, schema)
    for name, value in (call.arguments or {}).items():
        below = schema.get("properties", {}).get(name)
        if isinstance(below, Mapping) and (found := problem(value, below, name)):
            return found
    return None


WARNINGS: Mapping[str, Callable[[Suite], Found]] = {
    "duplicate": _copies,
    "near_duplicate": _near_copies,
    "few_cases": _few,
    "no_source": _unsigned,
    "any_call": _any_call_does,
    "schema": _breaks_the_schema,
}


# ---- models without sense ----


def _senseless(suite: Suite) -> Iterator[tuple[str, int]]:
    """What a model does that does not read the question, and how many cases it passes by its calls alone."""
    if not suite.cases:
        return
    yield "never calls", sum(not c.expects_call and not _answer_holds_something(c) for c in suite.cases)
    takers = _takers(suite)
    passed = [
        (len({case.id for case, one in takers[call.name] if fits(one, call, case.schemas, "arguments")}), str(call))
        for call in _calls_seen(suite)
    ]
    if passed:
        most, call = max(passed, key=lambda item: item[0])
        yield f"always calls {_cut(call)}", most


def _takers(suite: Suite) -> Mapping[str, Sequence[tuple[Case, ExpectedCall]]]:
    """Tool → the cases that one call of it can pass, and what they expect of it."""
    found: defaultdict[str, list[tuple[Case, ExpectedCall]]] = defaultdict(list)
    for case in suite.cases:
        for (one,) in (calls for calls in case.alternatives if len(calls) == 1):
            for name in one.names:
                found[name].append((case, one))
    return found


def _answer_holds_something(case: Case) -> bool:
    answer = case.expect.answer
    return answer is not None and bool(answer.contains or answer.matches)


def _calls_seen(suite: Suite) -> list[SameCall]:
    """Every call that some case expects, with the arguments that are spelled out; each once."""
    found = {}
    for case in suite.cases:
        for calls in case.alternatives:
            for call in (SameCall(name, e.arguments or {}) for e in calls[:1] for name in e.names):
                found.setdefault(str(call), call)
    return list(found.values())


def _ids(cases: Sequence[str]) -> str:
    return ", ".join(cases[:NAMED]) + (f" and {len(cases) - NAMED} more" if len(cases) > NAMED else "")


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 70 else flat[:69] + "…"
