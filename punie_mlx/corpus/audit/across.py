"""Checks over several rows: copies, near copies, leaks between splits and into suites, and labels that disagree.

What is trained on is `train`; every other split is held out. A query is what the user says first, in its normal form.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from punie_mlx.corpus.audit import near
from punie_mlx.corpus.audit.model import ERROR, NOTE, SYSTEM, TRAIN, WARNING, AuditRow, Check, Corpus, Finding

_SHOWN = 70  # characters of a query in a message
_RUN = 8  # words: the shared run that counts as overlap with a suite
_PARTS = ("messages", "tools", "prompt", "completion", "text")  # of a row: what is trained on


# ---- what makes two rows the same ----


def identity(row: AuditRow) -> str:
    """What of a row is trained on, as text; other keys (ids, notes) make no other row of it."""
    if row.raw is None:
        return row.text
    parts = {key: row.raw[key] for key in _PARTS if key in row.raw}
    return json.dumps(parts, sort_keys=True) if parts else row.text


def content(row: AuditRow) -> str:
    """The normal form of what is said in a row: all turns but the system's, with their calls."""
    said = []
    for turn in row.turns:
        if turn.role not in SYSTEM:
            given = (f"{c.name} {json.dumps(c.arguments)}" for c in turn.calls if c.spelling == "tool_calls")
            said += [turn.content, *given]
    return near.normalize(" ".join(said))


def queries(rows: Iterable[AuditRow]) -> dict[str, list[AuditRow]]:
    """Query → the rows that begin with it, in order."""
    out: defaultdict[str, list[AuditRow]] = defaultdict(list)
    for row in rows:
        if key := near.normalize(row.query):
            out[key].append(row)
    return dict(out)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _show(text: str) -> str:
    return repr(_cut(" ".join(text.split())))


# ---- copies within a split ----


def duplicate(corpus: Corpus) -> Iterator[Finding]:
    """Every copy after the first, within its split."""
    for rows in corpus.splits.values():
        first: dict[str, AuditRow] = {}
        for row in rows:
            known = first.setdefault(identity(row), row)
            if known is not row:
                yield row.finding(f"the same row as {known.where}", also=[known.where])


def near_duplicate(corpus: Corpus) -> Iterator[Finding]:
    """Every row that is no copy, but much like an earlier one of its split."""
    for rows in corpus.splits.values():
        distinct = list({identity(row): row for row in reversed(rows)}.values())[::-1]
        sets = [near.shingles(content(row)) for row in distinct]
        index = near.NearIndex(sets)
        for i, row in enumerate(distinct):
            if found := index.first(sets[i]):
                where = distinct[found.index].where
                yield row.finding(f"{found.similarity:.0%} like {where}: {_show(row.query)}", also=[where])
            index.add(i, sets[i])


# ---- leaks between splits ----


def _held_out(corpus: Corpus) -> Iterator[tuple[str, Sequence[AuditRow], Sequence[AuditRow]]]:
    """For each pair of splits, the severity of a leak, the rows of the earlier one and those of the later.

    What is trained on and scored on is an error. Between two held-out splits it is a warning: one that chooses a
    checkpoint should not hold what the other one measures.
    """
    names = list(corpus.splits)
    for i, later in enumerate(names):
        for earlier in names[:i]:
            yield ERROR if earlier == TRAIN else WARNING, corpus.splits[earlier], corpus.splits[later]


def _once(found: Iterable[Finding]) -> Iterator[Finding]:
    """One finding for each row: a row that leaks from train into test is not told again for valid."""
    seen = set()
    for finding in found:
        if finding.where not in seen:
            seen.add(finding.where)
            yield finding


def leak_row(corpus: Corpus) -> Iterator[Finding]:
    """Rows of a later split that stand in an earlier one."""

    def all_pairs() -> Iterator[Finding]:
        for severity, earlier, later in _held_out(corpus):
            known: defaultdict[str, list[str]] = defaultdict(list)
            for row in earlier:
                known[identity(row)].append(row.where)
            for row in later:
                if places := known.get(identity(row)):
                    yield row.finding(f"the whole row stands at {places[0]}", also=places, severity=severity)

    return _once(all_pairs())


def leak_query(corpus: Corpus) -> Iterator[Finding]:
    """Rows of a later split whose query stands in an earlier one; whole rows that leak are among them."""

    def all_pairs() -> Iterator[Finding]:
        for severity, earlier, later in _held_out(corpus):
            known = queries(earlier)
            for query, rows in queries(later).items():
                for row in rows if query in known else ():
                    places = [r.where for r in known[query]]
                    yield row.finding(
                        f"the query stands at {places[0]}: {_show(row.query)}", also=places, severity=severity
                    )

    return _once(all_pairs())


def leak_near(corpus: Corpus) -> Iterator[Finding]:
    """Rows of a later split whose query is not in an earlier one, but nearly so."""

    def all_pairs() -> Iterator[Finding]:
        for _, earlier, later in _held_out(corpus):
            known, sought = queries(earlier), queries(later)
            index = near.Queries({query: rows[0].query for query, rows in known.items()}, sought)
            for query, rows in sought.items():
                if query not in known and (found := index.near(query, rows[0].query)):
                    other = known[found][0]
                    for row in rows:
                        yield row.finding(f"{_show(row.query)} is near {_show(other.query)}", also=[other.where])

    return _once(all_pairs())


# ---- leaks into suites ----


def leak_suite(corpus: Corpus) -> Iterator[Finding]:
    """Rows that ask what a suite will ask."""
    known = queries(corpus.rows)
    for suite in corpus.suites:
        for case in suite.cases:
            for row in known.get(near.normalize(case.query), ()):
                yield row.finding(
                    f"asks what case {case.id} of {suite.path.name} asks: {_show(case.query)}",
                    also=[f"{suite.path.name}#{case.id}"],
                    severity=ERROR if row.split == TRAIN else WARNING,
                )


def leak_suite_near(corpus: Corpus) -> Iterator[Finding]:
    """Rows that ask nearly what a suite will ask."""
    known = queries(corpus.rows)
    for suite in corpus.suites:
        asked = {near.normalize(case.query): case for case in suite.cases}
        index = near.Queries({query: case.query for query, case in asked.items()}, known)
        for query, rows in known.items():
            if query not in asked and (found := index.near(query, rows[0].query)):
                case = asked[found]
                for row in rows:
                    detail = f"{_show(row.query)} is near case {case.id} of {suite.path.name}: {_show(case.query)}"
                    yield row.finding(detail, also=[f"{suite.path.name}#{case.id}"])


def suite_overlap(corpus: Corpus) -> Iterator[Finding]:
    """For each suite, how many queries share a run of eight words with the rows that are trained on."""
    rows = corpus.splits.get(TRAIN) or corpus.rows
    runs: dict[str, str] = {}
    for row in rows if corpus.suites else ():
        for said in row.queries:
            for run in _runs(said):
                runs.setdefault(run, row.where)
    for suite in corpus.suites:
        long = {case.id: found for case in suite.cases if (found := _runs(case.query))}
        shared = {id: next(runs[r] for r in found if r in runs) for id, found in long.items() if found & runs.keys()}
        if shared:
            detail = (
                f"{len(shared)} of {len(suite.cases)} cases of {suite.path.name} share a run of {_RUN} words with what"
                f" users say in training ({len(long)} are as long as that): {', '.join(list(shared)[:5])}"
            )
            yield Finding("", detail, tuple(dict.fromkeys(shared.values())))


def _runs(text: str) -> set[str]:
    normal = near.normalize(text)
    return set(near.shingles(normal, _RUN)) if normal.count(" ") >= _RUN - 1 else set()


# ---- labels ----


def first_answer(row: AuditRow) -> tuple[str, ...] | None:
    """What the assistant does about the first query: its calls as JSON in a fixed order, () for a direct answer.

    Calls up to the first result count, also those of assistant turns that follow each other. None where it does not
    answer, or a call cannot be read.
    """
    asked, calls, answered = False, [], False
    for turn in row.turns:
        if turn.role == "assistant" and asked:
            if turn.broken:
                return None
            answered = True
            calls += [json.dumps([c.name, c.arguments], sort_keys=True) for c in turn.calls]
        elif answered:
            break
        asked |= turn.role == "user" and bool(turn.text.strip())
    return tuple(sorted(calls)) if answered else None


def conflict(corpus: Corpus) -> Iterator[Finding]:
    """Queries that get different answers from the same tools and the same system prompt."""
    groups: defaultdict[Any, list[AuditRow]] = defaultdict(list)
    for query, rows in queries(corpus.rows).items():
        for row in rows:
            system = row.turns[0].content if row.turns[0].role in SYSTEM else ""
            groups[query, system, frozenset(row.offered)].append(row)
    for rows in groups.values():
        answers: defaultdict[tuple[str, ...], list[AuditRow]] = defaultdict(list)
        for row in rows:
            if (answer := first_answer(row)) is not None:
                answers[answer].append(row)
        if len(answers) > 1:
            yield _disagreement(answers)


def _disagreement(answers: Mapping[tuple[str, ...], list[AuditRow]]) -> Finding:
    """The finding of one query. Call or no call is an error, which tool a warning, only the arguments a note."""
    named = {answer: ", ".join(json.loads(call)[0] for call in answer) or "no call" for answer in answers}
    differ = len(set(named.values())) > 1
    severity = ERROR if () in answers else WARNING if differ else NOTE
    told = named if differ else _differences(answers)
    counts: Counter[str] = Counter()
    for answer, rows in answers.items():
        counts[told[answer]] += len(rows)
    first, *others = sorted((row for rows in answers.values() for row in rows), key=_place)
    each = "; ".join(f"{what} ({n} rows)" if n > 1 else what for what, n in counts.items())
    return first.finding(f"{_show(first.query)}: {each}", also=[r.where for r in others], severity=severity)


def _differences(answers: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What follows the part that all answers begin with, cut to what a message can hold."""
    texts = {answer: " ".join(answer) for answer in answers}
    columns = enumerate(zip(*texts.values(), strict=False))
    differ = next((i for i, column in columns if len(set(column)) > 1), 0)
    same = max(0, differ - _SHOWN // 4)
    return {answer: ("…" if same else "") + _cut(text[same:]) for answer, text in texts.items()}


def _place(row: AuditRow) -> tuple[bool, str, int]:
    return row.split != TRAIN, row.file, row.line


CHECKS = (
    Check(
        "duplicate",
        WARNING,
        "Duplicate rows",
        "The row counts several times, in training and in every figure of its split. Keep one.",
        duplicate,
    ),
    Check(
        "near_duplicate",
        NOTE,
        "Near-duplicate rows",
        f"Jaccard similarity of {near.SHINGLE}-word shingles ≥ {near.SIMILAR:g}: little is learned from the second.",
        near_duplicate,
    ),
    Check(
        "leak_row",
        ERROR,
        "Rows that stand in two splits",
        "What is trained on cannot be scored on: the figure is too good. Take the row out of one of them.",
        leak_row,
    ),
    Check(
        "leak_query",
        ERROR,
        "Queries that stand in two splits",
        "The answer to a query that was trained on is remembered, not found. Split by query, not by row.",
        leak_query,
    ),
    Check(
        "leak_near",
        WARNING,
        "Queries nearly the same in two splits",
        "The same words but for fillers, endings and order, or, in long queries, most runs of three words.",
        leak_near,
    ),
    Check(
        "leak_suite",
        ERROR,
        "Queries that stand in a suite",
        "A suite scores what a model was never shown. Take the row out, or the case.",
        leak_suite,
        needs="suites",
    ),
    Check(
        "leak_suite_near",
        WARNING,
        "Queries nearly the same as in a suite",
        "As above, for queries that differ only in their wording.",
        leak_suite_near,
        needs="suites",
    ),
    Check(
        "suite_overlap",
        NOTE,
        f"Runs of {_RUN} words shared with a suite",
        "The usual measure of contamination; a high share with no leak above shows templates in common.",
        suite_overlap,
        needs="suites",
    ),
    Check(
        "conflict",
        WARNING,
        "One query, different labels",
        "The same query with the same tools and system prompt: an error where one row calls and another does not, a "
        "warning where the tools differ, a note where only the arguments do.",
        conflict,
    ),
)
