"""The example corpus: what a coding agent is asked, and what it should say, deterministically from a seed.

Each row offers one of 24 tool sets of 2 to 8 tools and holds one or two exchanges: a question, the call or calls, the
result as the tool would give it, and the answer; or a direct answer; or a refusal where the needed tool is not
offered. Every question belongs to one split by its hash, so none can stand in two:

    hash % 100 in [0, 20)   the evaluation suite
    hash % 100 in [20, 28)  validation
    hash % 100 in [28, 36)  test
    hash % 100 in [36, 100) training (and the pre-training of the embedded model)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from punie_mlx.corpus.lexicon import DIRS
from punie_mlx.corpus.rows import write_rows
from punie_mlx.corpus.skills import SKILLS, Ask, explore, question
from punie_mlx.corpus.world import TOOLS
from punie_mlx.files import atomic_dir
from punie_mlx.identity import manifest, write_manifest

BUCKETS = {"suite": range(0, 20), "valid": range(20, 28), "test": range(28, 36), "train": range(36, 100)}
# The five questions of data/suites/discrimination.jsonl, wherever their hashes would put them.
RESERVED = {
    "find all django view classes in the data/repos directory",
    "show me the userserializer class implementation",
    "what is dependency injection and when should i use it?",
    "find all files that use async/await in the codebase",
    "what's the difference between orm and raw sql?",
}
SIZES = {"train": 546, "valid": 68, "test": 69}
TOOL_SETS = 24
CALL_FREE = 0.3  # share of rows without a call
REFUSAL = "None of the offered tools can do that."
Spelling = Callable[[Sequence[Ask]], list[dict[str, Any]]]


def bucket(query: str) -> str:
    """The split that `query` belongs to, whatever its case and white space."""
    key = " ".join(query.lower().split())
    if key in RESERVED:
        return "suite"
    n = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    return next(name for name, numbers in BUCKETS.items() if n in numbers)


@dataclass(frozen=True)
class Mixture:
    """Shares of the harder kinds of question."""

    several: float = 0.2
    """Of the questions with calls, those that want more than one."""
    explore: float = 0.12
    """Of the questions with one call, those about the codebase, where the best of several fitting tools is wanted."""
    missing: float = 0.4
    """Of the questions without a call, those whose tool is not offered."""


CORPUS = Mixture()


@dataclass(frozen=True)
class Exchange:
    """A question with the calls that it wants (none: answer directly) and the final answer."""

    category: str
    query: str
    asks: tuple[Ask, ...]
    answer: str


def tool_sets(seed: int, count: int = TOOL_SETS, *, avoid: Iterable[frozenset[str]] = ()) -> list[tuple[str, ...]]:
    """`count` different sets of 2 to 8 tools, every tool in several of them, none equal to one of `avoid`."""
    r, found, seen = Random(f"tool sets {seed}"), [], set(avoid)
    while len(found) < count:
        chosen = tuple(r.sample(list(TOOLS), 2 + len(found) % 7))
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            found.append(chosen)
    return found


def answer_for(asks: Sequence[Ask]) -> str:
    """What the agent says once the results are in."""
    results = "; ".join(a.result for a in asks)
    return f"The result is: {results}" if len(asks) == 1 else f"The results are: {results}"


def _single(r: Random, offered: set[str], share: float) -> Exchange:
    ask = explore(r, offered) if r.random() < share else None
    ask = ask or SKILLS[r.choice(sorted(offered))](r)
    return Exchange("one tool of many", ask.query, (ask,), answer_for([ask]))


def _touched(ask: Ask) -> set[str]:
    """The top folders that a call reads or writes: calls of one turn must not see each other's files."""
    texts = [*ask.files, *(w for v in ask.arguments.values() for w in str(v).split())]
    return {t.split("/")[0] for t in texts if "/" in t or t in DIRS}


def several_asks(r: Random, offered: set[str]) -> tuple[str, list[Ask]]:
    """A question that wants two or three calls, or one where the drawn ones meddle with each other's files."""
    asks: list[Ask] = []
    for _ in range(2 if r.random() < 0.85 else 3):
        ask = SKILLS[r.choice(sorted(offered))](r)
        if not any(_touched(ask) & _touched(a) for a in asks):
            asks.append(ask)
    parts = [a.query.rstrip("?") for a in asks]
    return ", then ".join([parts[0], *(p[0].lower() + p[1:] for p in parts[1:])]), asks


def _several(r: Random, offered: set[str]) -> Exchange:
    query, asks = several_asks(r, offered)
    return Exchange("several calls" if len(asks) > 1 else "one tool of many", query, tuple(asks), answer_for(asks))


def _missing(r: Random, offered: set[str]) -> Exchange:
    tool = r.choice(sorted(set(TOOLS) - offered))
    return Exchange("tool missing", SKILLS[tool](r).query, (), REFUSAL)


def _direct(r: Random) -> Exchange:
    query, answer = question(r)
    return Exchange("direct answer", query, (), answer)


def exchange(r: Random, offered: Sequence[str], split: str, mix: Mixture, *, calls: bool) -> Exchange:
    """One exchange whose question belongs to `split`, with calls or without."""
    other = r.random() < (mix.several if calls else mix.missing)
    while True:
        if calls:
            made = _several(r, set(offered)) if other else _single(r, set(offered), mix.explore)
        else:
            made = _missing(r, set(offered)) if other else _direct(r)
        if bucket(made.query) == split:
            return made


def fenced(asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """The calls as the origin story's model wrote them, JSON fences, and the results as plain user turns."""
    blocks = [json.dumps({"name": a.tool, "arguments": a.arguments}, ensure_ascii=False) for a in asks]
    content = "\n\n".join(f"```json\n{b}\n```" for b in blocks)
    results = [{"role": "user", "content": f"Tool result: {a.result}"} for a in asks]
    return [{"role": "assistant", "content": content}, *results]


def messages_of(made: Exchange, spell: Spelling) -> list[dict[str, Any]]:
    """The turns of one exchange: the question, its calls and results as `spell` writes them, the answer."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": made.query}]
    if not made.asks:
        return [*turns, {"role": "assistant", "content": made.answer}]
    return [*turns, *spell(made.asks), {"role": "assistant", "content": made.answer}]


def row(r: Random, offered: Sequence[str], split: str, *, calls: bool) -> dict[str, Any]:
    """One training row in the fence format: one exchange, or (one in seven) two."""
    messages: list[dict[str, Any]] = []
    for _ in range(2 if r.random() < 0.15 else 1):
        messages += messages_of(exchange(r, offered, split, CORPUS, calls=calls), fenced)
    return {"messages": messages, "tools": [TOOLS[name] for name in offered]}


def rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different rows of `split`."""
    r, sets, found, seen = Random(f"{split} {seed}"), tool_sets(seed), [], set()
    while len(found) < count:
        calls = len(found) % 10 >= 10 * CALL_FREE
        made = row(r, sets[len(found) % len(sets)], split, calls=calls)
        first = made["messages"][0]["content"]
        if first not in seen:
            seen.add(first)
            found.append(made)
    r.shuffle(found)
    return found


def generate(
    out: Path, *, seed: int = 0, sizes: dict[str, int] | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Write train/valid/test.jsonl of the example corpus to the directory `out`; return the rows of each split.

    Raises:
        OutputError: `out` exists and `overwrite` is false.
    """
    sizes = sizes or SIZES
    with atomic_dir(out, overwrite=overwrite) as tmp:
        for split, count in sizes.items():
            write_rows(tmp / f"{split}.jsonl", rows(split, count, seed))
        write_manifest(tmp, manifest("corpus", inputs={}, settings={"seed": seed, "sizes": sizes}))
    return sizes
