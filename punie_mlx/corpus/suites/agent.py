"""The shipped suite of a coding agent's cases: as many of each category as `WEIGHTS` says, deterministically.

    punie-mlx generate OUT --suite data/suites/agent.jsonl

Half of the cases of each category offer tool sets that no training row offers; in the first four categories their name
says so. Every question belongs to the suite's share of the questions by its hash (`generate.bucket`), and is neither
equal nor near to one of the corpus or of another case (`audit.near`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from punie_mlx.corpus.audit.near import NearIndex, normalize, reworded, shingles
from punie_mlx.corpus.generate import RESERVED, SIZES, bucket, rows, several_asks, tool_sets
from punie_mlx.corpus.rows import write_rows
from punie_mlx.corpus.skills import SKILLS, question
from punie_mlx.corpus.suites.draft import Draft, expect
from punie_mlx.corpus.suites.hard_cases import HARD
from punie_mlx.corpus.suites.proof import SUBSTITUTES
from punie_mlx.corpus.world import TOOLS
from punie_mlx.errors import ConfigError
from punie_mlx.files import atomic_file, refuse_existing

CASES = 560
NEW = ", new tool set"
SPARE = 6  # drafts that are made for each case that is wanted: most are dropped for being near another
TRIES = 4000  # to draw one draft


def _single(r: Random, offered: Sequence[str]) -> Draft:
    ask = SKILLS[r.choice(sorted(offered))](r)
    return Draft("one tool of many", ask.query, expect([ask]), ask.files)


def _several(r: Random, offered: Sequence[str]) -> Draft | None:
    query, asks = several_asks(r, set(offered))
    files = {name: text for ask in asks for name, text in ask.files.items()}
    settings = [a.tool for a in asks if a.tool in ("set_options", "set_threshold")]
    if len(asks) < 2 or len(set(settings)) < len(settings):  # two values for one setting: which one is meant?
        return None
    return Draft("several calls", query, expect(asks), files)


def _missing(r: Random, offered: Sequence[str]) -> Draft | None:
    """A question whose tool is not offered, and no other one with which the same could be done."""
    absent = sorted(t for t in set(TOOLS) - set(offered) if not SUBSTITUTES[t] & set(offered))
    return Draft("tool missing", SKILLS[r.choice(absent)](r).query, {"calls": []}) if absent else None


def _direct(r: Random, offered: Sequence[str]) -> Draft:
    return Draft("direct answer", question(r)[0], {"calls": []})


EASY = {"one tool of many": _single, "several calls": _several, "tool missing": _missing, "direct answer": _direct}
MAKERS = {**EASY, **HARD}
# Of 56 cases, those of each category on known tool sets; as many are on new ones.
WEIGHTS = {**dict.fromkeys(EASY, 3), "one tool of many": 5, **dict.fromkeys(HARD, 2)}


def _plan(count: int) -> list[tuple[str, bool]]:
    """Category, and whether the tool set is new, of each case: mixed, so that the first n cases are a fair sample."""
    shares = {(name, new): weight for name, weight in WEIGHTS.items() for new in (False, True)}
    total, made, plan = sum(shares.values()), dict.fromkeys(shares, 0), []
    for n in range(1, count + 1):
        most_behind = max(shares, key=lambda k: shares[k] * n / total - made[k])
        made[most_behind] += 1
        plan.append(most_behind)
    return plan


def _drafts(category: str, sets: Sequence[tuple[str, ...]], seed: int) -> Iterator[tuple[tuple[str, ...], Draft]]:
    """Drafts of one category, without end, on one tool set after the other."""
    r = Random(f"suite {seed} {category} {sets[0]}")
    while True:
        for offered in sets:
            for _ in range(TRIES):
                made = MAKERS[category](r, offered)
                if made is None and category not in HARD and category != "several calls":
                    break  # this set can have none
                if made and bucket(made.query) == "suite" and made.query.lower() not in RESERVED:
                    yield offered, made
                    break
                if made is None and r.random() < 0.02:
                    break


class _Apart:
    """Takes questions that are neither equal nor near to one that was taken before."""

    def __init__(self, known: Iterable[str], sought: Iterable[str]) -> None:
        known = list(known)
        self._index = NearIndex([shingles(normalize(t)) for t in (*known, *sought)])
        self._reworded: set[tuple[str, ...]] = set()
        self._size = 0
        for text in known:
            self._add(text)

    def near(self, text: str) -> bool:
        return reworded(text) in self._reworded or self._index.first(shingles(normalize(text))) is not None

    def take(self, text: str) -> bool:
        if self.near(text):
            return False
        self._add(text)
        return True

    def _add(self, text: str) -> None:
        self._reworded.add(reworded(text))
        self._index.add(self._size, shingles(normalize(text)))
        self._size += 1


def suite(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` evaluation cases. Raises `ConfigError` where there are not so many that differ enough."""
    known = tool_sets(seed)
    new = tool_sets(seed + 1, avoid=map(frozenset, known))
    plan = _plan(count)
    pools = {}
    for kind in dict.fromkeys(plan):
        stream = _drafts(kind[0], new if kind[1] else known, seed)
        pools[kind] = [next(stream) for _ in range(SPARE * plan.count(kind))]
    asked = [m["content"] for split, n in SIZES.items() for row in rows(split, n, seed) for m in row["messages"]
             if m["role"] == "user"]  # fmt: skip
    drafted = [q for pool in pools.values() for _, d in pool for q in d.questions]
    corpus, cases = _Apart([*asked, *RESERVED], drafted), _Apart([*asked, *RESERVED], drafted)
    left = {kind: iter(pool) for kind, pool in pools.items()}
    found: list[dict[str, Any]] = []
    for kind in plan:
        apart = ((o, d) for o, d in left[kind] if not any(map(corpus.near, d.questions)) and cases.take(d.query))
        offered, made = next(apart, (None, None))
        if made is None or offered is None:
            raise ConfigError(f"--cases {count}: there are not so many different cases of {kind[0]}; ask for fewer")
        case = made.case(len(found), offered)
        found.append({**case, "category": made.category + (NEW if kind[1] and kind[0] in EASY else "")})
    return found


def write_suite(out: Path, count: int = CASES, seed: int = 0, *, overwrite: bool = False) -> None:
    """Write `count` cases to the file `out`. Raises `OutputError` where it exists and `overwrite` is false."""
    refuse_existing(out, overwrite)
    with atomic_file(out) as tmp:
        write_rows(tmp, suite(count, seed))
