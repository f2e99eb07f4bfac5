"""How far a suite is from a corpus: queries that stand in it, nearly stand in it, and the runs of words they share.

    found = distance(suite, read_corpus(path))
    found.leaks                       cases that are asked in the corpus, exactly or nearly, each with its row
    found.overlap[5]["all"].share     of the suite's runs of five words, those that a user says in the corpus

All that users say counts, on both sides: the query, follow-ups and the user's messages of a case; every user turn of a
row. Words are those of the normal form (case, punctuation and white space do not count). A follow-up or an earlier
message of fewer than `OWN` words ("yes, do it") is nobody's own and is no leak. Near is what the audit calls near.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from punie_mlx.chat.messages import text_of
from punie_mlx.corpus.audit import near
from punie_mlx.corpus.audit.model import Corpus
from punie_mlx.corpus.suite import Case, Suite

NGRAMS = (3, 5, 8)
OWN = 4  # words
ALL = "all"


@dataclass(frozen=True)
class Leak:
    """A case that the corpus asks. `kind`: "exact" or "near"; `row`: `file:line`; `rows`: how many rows ask it."""

    kind: str
    case: str
    where: str
    query: str
    row: str
    said: str
    rows: int = 1


@dataclass(frozen=True)
class Overlap:
    """Of `runs` different runs of words of a suite (or a category), `shared` stand in the corpus."""

    runs: int
    shared: int

    @property
    def share(self) -> float:
        return self.shared / self.runs if self.runs else 0.0


@dataclass(frozen=True)
class Nearest:
    """The row that shares most of a case's runs of words: `shared` of `runs`."""

    case: str
    row: str
    said: str
    shared: int
    runs: int


@dataclass(frozen=True)
class Distance:
    """What a suite and a corpus have in common. `overlap`: n → category (and "all") → runs of n words."""

    corpus: Path
    rows: int
    leaks: tuple[Leak, ...]
    overlap: Mapping[int, Mapping[str, Overlap]]
    nearest: tuple[Nearest, ...]


@dataclass(frozen=True)
class _Said:
    """What a user says somewhere in the corpus: the first text of a normal form, its row, and how many rows have it."""

    text: str
    row: str
    rows: int


def distance(suite: Suite, corpus: Corpus, ngrams: Sequence[int] = NGRAMS) -> Distance:
    """What `suite` shares with `corpus`. The nearest rows are those by the shortest of `ngrams`."""
    said = _said(corpus)
    return Distance(
        corpus.path,
        len(corpus.rows),
        tuple(_leaks(suite, said)),
        {n: _overlap(suite.cases, said, n) for n in ngrams},
        tuple(_nearest(suite.cases, said, min(ngrams))),
    )


def asked(case: Case) -> list[str]:
    """All that the user says in a case, the query first."""
    earlier = [text_of(m) for m in (case.messages or ())[:-1] if m["role"] == "user"]
    return [case.query, *case.follow_ups, *earlier]


def runs(text: str, n: int) -> set[str]:
    """The runs of `n` words of a text; none where it is shorter."""
    words = near.normalize(text).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def _said(corpus: Corpus) -> dict[str, _Said]:
    """Normal form → who says it in the corpus."""
    found: dict[str, _Said] = {}
    # The audit's rows know their file by its name; a reader of this report is to find it.
    folder = corpus.path.parent if corpus.path.is_file() else corpus.path
    for row in corpus.rows:
        for normal, text in {near.normalize(q): q for q in row.queries}.items():
            known = found.get(normal)
            found[normal] = (
                _Said(known.text, known.row, known.rows + 1) if known else _Said(text, f"{folder / row.where}", 1)
            )
    found.pop("", None)
    return found


def _leaks(suite: Suite, said: Mapping[str, _Said]) -> Iterator[Leak]:
    questions = [
        (i, near.normalize(text), text)
        for i, case in enumerate(suite.cases)
        for place, text in enumerate(asked(case))
        if place == 0 or len(near.normalize(text).split()) >= OWN
    ]
    index = near.Queries({normal: s.text for normal, s in said.items()}, [normal for _, normal, _ in questions])
    told = set()
    for i, normal, text in questions:
        hit = normal if normal in said else index.near(normal, text)
        if hit is not None and (i, hit) not in told:
            told.add((i, hit))
            kind = "exact" if hit == normal else "near"
            row = said[hit]
            yield Leak(kind, suite.cases[i].id, suite.where(i), text, row.row, row.text, row.rows)


def _overlap(cases: Sequence[Case], said: Mapping[str, _Said], n: int) -> dict[str, Overlap]:
    known = set().union(*(runs(normal, n) for normal in said))
    found: defaultdict[str, set[str]] = defaultdict(set)
    for case in cases:
        for text in asked(case):
            for key in (ALL, case.category):
                found[key] |= runs(text, n)
    categories = dict.fromkeys([ALL, *(c.category for c in cases)])
    return {key: Overlap(len(found[key]), len(found[key] & known)) for key in categories}


def _nearest(cases: Sequence[Case], said: Mapping[str, _Said], n: int) -> Iterator[Nearest]:
    """For each case with a run of `n` words, the row that shares most of them, if one shares any."""
    own = {case.id: set().union(*(runs(text, n) for text in asked(case))) for case in cases}
    sought = set().union(*own.values())
    holders: defaultdict[str, list[int]] = defaultdict(list)
    rows = list(said.items())
    for i, (normal, _) in enumerate(rows):
        for run in runs(normal, n) & sought:
            holders[run].append(i)
    for case, found in own.items():
        counts = Counter(i for run in found for i in holders.get(run, ()))
        if counts:
            best, shared = min(counts.items(), key=lambda item: (-item[1], item[0]))
            yield Nearest(case, rows[best][1].row, rows[best][1].text, shared, len(found))
