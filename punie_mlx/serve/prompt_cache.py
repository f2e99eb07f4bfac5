"""KV caches of past requests, found again by the tokens that they begin with.

It has the methods that mlx_lm's engine calls of its own `LRUPromptCache`, which would not do: an exact hit leaves no
token to run there, and the engine's thread dies of that; its search takes half a second where a prompt leaves a long
cached one early; a cache in use is not kept longer than one that is not.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_engine.py):

| name                                                       | used for                                        |
|------------------------------------------------------------|-------------------------------------------------|
| `fetch_nearest_cache(model, tokens)`, `insert_cache(model, tokens, prompt_cache, cache_type)`, `trim_to(n_bytes)` | |
|                                                            | what the engine calls                           |
| `models.cache.can_trim_prompt_cache`, `.trim_prompt_cache` | a prefix of a cache                             |
| a cache's `.offset` where it has one, `.nbytes`, `.state`  | the tokens that it holds, their size and arrays |
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache


@dataclass(frozen=True, eq=False)
class Entry:
    tokens: np.ndarray
    cache: list[Any]
    nbytes: int

    def usable(self, tokens: np.ndarray) -> int:
        """How many of the first `tokens` need not be run: at least the last one does."""
        most = len(tokens) - 1
        if can_trim_prompt_cache(self.cache):
            return min(self.common(tokens), most)
        held = len(self.tokens)
        return held if held <= most and self.common(tokens) == held else 0

    def begins(self, other: Entry) -> bool:
        return len(self.tokens) <= len(other.tokens) and self.common(other.tokens) == len(self.tokens)

    def common(self, tokens: np.ndarray) -> int:
        """Length of the common prefix."""
        n = min(len(self.tokens), len(tokens))
        different = self.tokens[:n] != tokens[:n]
        first = int(different.argmax()) if n else 0
        return first if n and different[first] else n


class PromptCache:
    """At most `prompts` entries, and `args.prompt_cache_bytes` bytes, which is known once the model is loaded. All
    belong to one model, so its name is not looked at."""

    def __init__(self, prompts: int, args: Any) -> None:
        self._prompts = prompts
        self._args = args
        self._entries: list[Entry] = []  # the last used last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[list[Any] | None, list[int]]:
        """A cache of the longest known beginning of `tokens`, to be changed at will; and the tokens after it."""
        wanted = np.array(tokens, np.int64)
        # Of equally long ones the one with the least to copy.
        found = max(self._entries, key=lambda e: (e.usable(wanted), -e.nbytes), default=None)
        usable = found.usable(wanted) if found is not None else 0
        if found is None or usable == 0:
            return None, tokens
        self._entries.remove(found)
        self._entries.append(found)
        cache = copy.deepcopy(found.cache)
        if usable < len(found.tokens):
            trim_prompt_cache(cache, len(found.tokens) - usable)
        return cache, tokens[usable:]

    def insert_cache(self, model: Any, tokens: list[int], prompt_cache: list[Any], *, cache_type: str = "") -> None:
        """Keep `prompt_cache`, which is that of `tokens`; instead of those that it makes superfluous."""
        mx.async_eval([c.state for c in prompt_cache])  # until then its arrays hold those of the whole batch
        trimmable = can_trim_prompt_cache(prompt_cache)
        offsets = [c.offset for c in prompt_cache if isinstance(getattr(c, "offset", None), int)]
        held = min([*offsets, len(tokens)])
        if trimmable and held < len(tokens):  # with a draft model it may be a token behind, and uneven
            for c in prompt_cache:
                c.trim(c.offset - held)
        new = Entry(np.array(tokens[:held] if trimmable else tokens, np.int64), prompt_cache, _nbytes(prompt_cache))
        shortest = 1 if trimmable else len(new.tokens)  # any prefix of it can be had, or only itself
        self._entries = [e for e in self._entries if not (len(e.tokens) >= shortest and e.begins(new))]
        self._entries.append(new)
        self.trim_to(n_bytes=self._args.prompt_cache_bytes)

    def trim_to(self, *, n_sequences: int | None = None, n_bytes: int | None = None) -> None:
        """Forget the least recently used, until there are no more than so many."""
        sequences = self._prompts if n_sequences is None else n_sequences
        total = self.nbytes
        while self._entries and (len(self._entries) > sequences or (n_bytes is not None and total > n_bytes)):
            total -= self._entries.pop(0).nbytes


def _nbytes(cache: list[Any]) -> int:
    return sum(c.nbytes for c in cache)
