"""Checks of the corpus as a whole: what it is made of, and whether it is of one piece."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from punie_mlx.corpus.audit.across import queries
from punie_mlx.corpus.audit.model import (
    ERROR,
    NOTE,
    TRAIN,
    WARNING,
    AuditRow,
    Check,
    Corpus,
    Figure,
    Finding,
    by_split,
)

DIRECT = (0.10, 0.60)  # the share of rows without a call
DOMINANT = 0.60  # of all calls
RARE = 3  # calls of a tool
_ENOUGH = 20  # rows or calls: with fewer, a share says nothing
_MIXED = (0.10, 0.90)  # shares between which a habit is none
_OPENING = 4  # words


def _trained(corpus: Corpus) -> Sequence[AuditRow]:
    return corpus.splits.get(TRAIN) or corpus.rows


# ---- shares ----


def direct_share(corpus: Corpus) -> Iterator[Finding]:
    """Too few rows without a call, or too many."""
    rows = [row for row in _trained(corpus) if row.assistant]
    if len(rows) < _ENOUGH:
        return
    direct = sum(row.direct for row in rows)
    share = direct / len(rows)
    if share < DIRECT[0]:
        what = "the model will learn to call whatever is asked; add queries that need no tool, to about 30 %"
    elif share > DIRECT[1]:
        what = "the model will learn not to call; add rows with calls, to about 70 %"
    else:
        return
    yield Finding("", f"{direct} of {len(rows)} rows ({share:.1%}) are direct answers: {what}")


def _called(rows: Sequence[AuditRow]) -> Counter[str]:
    return Counter(call.name for row in rows for call in row.calls)


def tool_dominance(corpus: Corpus) -> Iterator[Finding]:
    """One tool that has most of the calls, where there are others."""
    called = _called(_trained(corpus))
    offered = {name for row in _trained(corpus) for name in row.offered}
    total = called.total()
    if total < _ENOUGH or len(called.keys() | offered) < 3:
        return
    (name, n), *_ = called.most_common(1)
    if n / total > DOMINANT:
        yield Finding("", f"{name} has {n} of {total} calls ({n / total:.1%}): the others are hardly learned")


def tool_unused(corpus: Corpus) -> Iterator[Finding]:
    """Tools that rows offer and no row calls."""
    rows, called = _trained(corpus), _called(_trained(corpus))
    offering: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name in row.offered:
            offering[name].append(row.where)
    for name, places in sorted(offering.items()):
        if not called[name]:
            yield Finding("", f"{name} is offered in {len(places)} rows and never called", tuple(places))


def tool_rare(corpus: Corpus) -> Iterator[Finding]:
    """Tools that are called once or twice."""
    rows = _trained(corpus)
    for name, n in sorted(_called(rows).items()):
        if n < RARE:
            places = dict.fromkeys(r.where for r in rows for c in r.calls if c.name == name)
            first, *also = places
            yield Finding(first, f"{name} is called {n} times" if n > 1 else f"{name} is called once", tuple(also))


# ---- of one piece ----


def _minority(corpus: Corpus, kinds: Mapping[str, list[str]], of: str) -> Iterator[Finding]:
    """A finding for each kind but the most frequent one; `kinds`: what → the places of its rows."""
    (main, most), *others = sorted(kinds.items(), key=lambda item: -len(item[1])) or [("", [])]
    for what, places in others:
        row = corpus.at(places[0])
        detail = f"{len(places)} rows {what}, {len(most)} rows {main}: {of}"
        yield Finding(places[0], detail, tuple(places[1:]), split=row.split if row else "")


def _kinds(corpus: Corpus, kind: Any) -> dict[str, list[str]]:
    out: defaultdict[str, list[str]] = defaultdict(list)
    for row in corpus.rows:
        if row.format != "bad":
            for what in kind(row):
                out[what].append(row.where)
    return out


def mixed_shapes(corpus: Corpus) -> Iterator[Finding]:
    """Rows of different shapes in one corpus."""
    shapes = {"messages": "hold messages", "text": "are ready-made text", "completion": "are prompt and completion"}
    yield from _minority(corpus, _kinds(corpus, lambda r: [shapes[r.format]]), "only messages are rendered as served")


def mixed_spellings(corpus: Corpus) -> Iterator[Finding]:
    """Calls that are spelled in several ways."""

    def spelled(row: AuditRow) -> set[str]:
        found = {c.spelling for c in row.calls} | {b.spelling for b in row.broken}
        return {"have calls in fences" if s == "fence" else f"have calls as {s}" for s in found}

    yield from _minority(corpus, _kinds(corpus, spelled), "a model that sees two spellings writes both")


def mixed_tools(corpus: Corpus) -> Iterator[Finding]:
    """Rows with and without offered tools."""
    kinds = _kinds(corpus, lambda r: ["offer tools" if r.tools else "offer no tools"])
    yield from _minority(corpus, kinds, "calls must be learned with the tools block that will be served")


# ---- preambles ----


def _calling(rows: Sequence[AuditRow]) -> list[tuple[AuditRow, str]]:
    """Each turn that begins a call: its row, and the text before the call."""
    return [(row, turn.preamble) for row in rows for turn in row.assistant if turn.calls or turn.broken]


def preamble_drift(corpus: Corpus) -> Iterator[Finding]:
    """Calls with a text before them and calls without, in one corpus."""
    turns = _calling(_trained(corpus))
    with_text = [row.where for row, text in turns if text]
    share = len(with_text) / len(turns) if turns else 0.0
    if len(turns) < _ENOUGH or not _MIXED[0] <= share <= _MIXED[1]:
        return
    openings = Counter(" ".join(text.split()[:_OPENING]) for _, text in turns if text)
    common = ", ".join(f"{words!r} {n}" for words, n in openings.most_common(3))
    yield Finding(
        "",
        f"{len(with_text)} of {len(turns)} turns with calls ({share:.1%}) say something before the call, in "
        f"{len(openings)} different openings ({common})",
        tuple(dict.fromkeys(with_text)),
    )


def preamble_tool(corpus: Corpus) -> Iterator[Finding]:
    """Preambles that name a tool which is then not called."""
    known = {name for row in corpus.rows for name in (*row.offered, *(c.name for c in row.calls)) if "_" in name}
    for row in corpus.rows:
        for turn in row.assistant:
            if not turn.calls:
                continue
            called = {c.name for c in turn.calls}
            inside = " ".join(str(c.arguments) for c in turn.calls)
            words = set(turn.preamble.replace("`", " ").replace(".", " ").split())
            named = sorted(n for n in (words & known) - called if n not in inside)
            if named:
                yield row.finding(f"says {', '.join(named)} and calls {', '.join(sorted(called))}")


# ---- figures ----


def _turns(rows: Sequence[AuditRow]) -> str:
    counts = [len(row.turns) for row in rows if row.turns]
    return f"{min(counts)}, {statistics.median(counts):g}, {max(counts)}" if counts else "-"


def _share(part: int, whole: int) -> dict[str, float]:
    return {"count": part, "share": part / whole if whole else 0.0}


def _direct(rows: Sequence[AuditRow]) -> dict[str, float]:
    return _share(sum(r.direct for r in rows), sum(bool(r.assistant) for r in rows))


def _preambles(rows: Sequence[AuditRow]) -> dict[str, float]:
    turns = _calling(rows)
    return _share(sum(bool(text) for _, text in turns), len(turns))


def _most_called(rows: Sequence[AuditRow]) -> dict[str, int]:
    return dict(_called(rows).most_common(3))


FIGURES = (
    Figure("rows", "rows", by_split(len)),
    Figure("queries", "distinct queries", by_split(lambda rows: len(queries(rows)))),
    Figure("turns", "messages: least, median, most", by_split(_turns)),
    Figure("direct", "rows without a call", by_split(_direct)),
    Figure("calls", "calls", by_split(lambda rows: sum(len(r.calls) for r in rows))),
    Figure("tools_called", "tools called", by_split(lambda rows: len(_called(rows)))),
    Figure("tools_offered", "tools offered", by_split(lambda rows: len({n for r in rows for n in r.offered}))),
    Figure("most_called", "most called", by_split(_most_called)),
    Figure("preambles", "calling turns with text first", by_split(_preambles)),
)

CHECKS = (
    Check(
        "direct_share",
        WARNING,
        "Share of direct answers",
        f"Outside {DIRECT[0]:.0%} to {DIRECT[1]:.0%} of the rows a model learns to call always, or never.",
        direct_share,
    ),
    Check(
        "tool_dominance",
        WARNING,
        "One tool has most of the calls",
        f"More than {DOMINANT:.0%}: the model will take it for the answer to everything.",
        tool_dominance,
    ),
    Check("tool_unused", NOTE, "Tools offered, never called", "They are learned as distractors only.", tool_unused),
    Check(
        "tool_rare",
        NOTE,
        f"Tools called less than {RARE} times",
        "Too few to learn a tool from: add rows, or take it out.",
        tool_rare,
    ),
    Check(
        "mixed_shapes",
        WARNING,
        "Rows of different shapes",
        "`punie-mlx convert` makes rows of messages and tools of ready-made text.",
        mixed_shapes,
    ),
    Check(
        "mixed_spellings",
        ERROR,
        "Calls in different spellings",
        "`punie-mlx convert` makes structured calls of fences and tags, which the template then spells.",
        mixed_spellings,
    ),
    Check(
        "mixed_tools",
        WARNING,
        "Rows with and without tools",
        "Rows without a tools block teach to call what is not offered.",
        mixed_tools,
    ),
    Check(
        "preamble_drift",
        NOTE,
        "Text before some calls, none before others",
        "The model will do either by chance, and agents that stream may take the text for the answer.",
        preamble_drift,
    ),
    Check(
        "preamble_tool",
        WARNING,
        "Preambles that name another tool",
        "The text says one tool and the call is another's: the model learns that names do not matter.",
        preamble_tool,
    ),
)
