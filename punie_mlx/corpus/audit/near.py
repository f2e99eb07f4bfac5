"""Texts that are nearly the same: normal forms, and an exact join of sets whose Jaccard similarity is high.

The join is prefix filtering (Chaudhuri, Ganti, Kaushik, "A Primitive Operator for Similarity Joins", ICDE 2006;
Bayardo, Ma, Srikant, "Scaling Up All Pairs Similarity Search", WWW 2007; with the positions of Xiao et al., PPJoin).
With the shingles of each set ordered from rare to frequent, two sets with |x ∩ y| ≥ t·|x ∪ y| share one among the first
|x| - ⌈t·|x|⌉ + 1 of each. So a text meets only those that share a rare shingle with it. Unlike MinHash with LSH it
misses none, needs no seed, and stays fast on templates: what all rows share is frequent, and stands in no prefix.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

SHINGLE = 3  # words
SIMILAR = 0.8  # the Jaccard similarity of shingles from which two texts are nearly the same
_WORD = re.compile(r"\w+")
_WHOLE = re.compile(r"\w(?:\S*\w)?")  # a path or a number stays one word
_ENDING = re.compile(r"([^\W\d_]{4,}?)(?:ing|ed|es|(?<!s)s)")
# Words that make a question longer or more polite, but no other one.
_POLITE = "please hi hey hello can could would will you me my i i'd i'm just some now thanks thank kindly"
_FILLERS = frozenset(f"a an the all whole entire want need like to {_POLITE}".split())


def normalize(text: str) -> str:
    """`text` without what does not make another text of it: case, width of letters, white space, punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def reworded(text: str) -> tuple[str, ...]:
    """What stays the same when a question is put a little differently: its words but fillers, endings and order.

    Names, paths and numbers count: a template with another value in it is another question.
    """
    words = _WHOLE.findall(unicodedata.normalize("NFKC", text).casefold())
    kept = [m[1] if (m := _ENDING.fullmatch(w)) else w for w in words if w not in _FILLERS]
    return tuple(sorted(kept)) or (normalize(text),)


def shingles(normal: str, size: int = SHINGLE) -> frozenset[str]:
    """All runs of `size` words of a normal form, or the whole of it where it is shorter."""
    words = normal.split()
    return frozenset(" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))) if words else _NONE


_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """Set `index` is similar: |x ∩ y| / |x ∪ y|."""

    index: int
    similarity: float


class NearIndex:
    """Sets of shingles, joined at a Jaccard similarity of `threshold` or more.

    Every set that is added or looked for must be among `universe`, which gives the frequencies. Time grows with the
    number of pairs that share a rare shingle; `first` stops at the first match, so thousands of copies cost nothing.
    """

    def __init__(self, universe: Collection[frozenset[str]], threshold: float = SIMILAR) -> None:
        counts = Counter(s for found in universe for s in found)
        self._rank = {s: i for i, s in enumerate(sorted(counts, key=lambda s: (counts[s], s)))}
        self._threshold = threshold
        self._sets: dict[int, frozenset[int]] = {}
        self._holders: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)  # rank → index, place, size

    def _prefix(self, found: frozenset[str]) -> tuple[frozenset[int], list[int]]:
        ranks = sorted(self._rank[s] for s in found)
        return frozenset(ranks), ranks[: len(ranks) - math.ceil(self._threshold * len(ranks) - 1e-9) + 1]

    def add(self, index: int, found: frozenset[str]) -> None:
        """Make set `index` findable; the empty set never is."""
        self._sets[index], prefix = self._prefix(found)
        for place, rank in enumerate(prefix if found else ()):
            self._holders[rank].append((index, place, len(found)))

    def first(self, found: frozenset[str]) -> Match | None:
        """A set that was added and is similar: of those that share its rarest shingles, the earliest."""
        return next(self.matches(found), None)

    def matches(self, found: frozenset[str]) -> Iterator[Match]:
        """All sets that were added and are similar to `found`."""
        ranks, prefix = self._prefix(found)
        size, seen = len(ranks), set()
        share = self._threshold / (1 + self._threshold)  # |x ∩ y| ≥ share · (|x| + |y|), the same condition
        for place, rank in enumerate(prefix if found else ()):
            for index, other_place, other in self._holders.get(rank, ()):
                if index in seen:
                    continue
                seen.add(index)
                # Shared are at most this shingle and what follows it in both.
                if min(size - place, other - other_place) < share * (size + other) - 1e-9:
                    continue
                shared = len(ranks & self._sets[index])
                similarity = shared / (size + other - shared)
                if similarity >= self._threshold - 1e-9:
                    yield Match(index, similarity)


class Queries:
    """Questions, findable by what is nearly the same: the same words put differently, or most runs of three words.

    The second rule is for long questions, which one value more or less does not tell apart.
    """

    def __init__(self, known: Mapping[str, str], sought: Iterable[str]) -> None:
        """`known` (normal form → text) can be found; `sought` are the normal forms that will be looked for."""
        self._known = list(known)
        self._same: dict[tuple[str, ...], int] = {}
        self._index = NearIndex([shingles(q) for q in (*known, *sought)])
        for i, (query, text) in enumerate(known.items()):
            self._same.setdefault(reworded(text), i)
            self._index.add(i, shingles(query))

    def near(self, query: str, text: str) -> str | None:
        """The normal form of a known question that is near `query` (a normal form, and its text), but not the same."""
        i = self._same.get(reworded(text))
        if i is not None and self._known[i] != query:
            return self._known[i]
        found = next((m for m in self._index.matches(shingles(query)) if self._known[m.index] != query), None)
        return self._known[found.index] if found else None
