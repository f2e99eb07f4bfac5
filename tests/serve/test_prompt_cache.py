"""The prompt cache: the longest known beginning is found, and no more is kept than may be."""

import random
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from punie_mlx.serve.prompt_cache import PromptCache


def made(prompts: int = 10, n_bytes: int = 10**9) -> PromptCache:
    return PromptCache(prompts, SimpleNamespace(prompt_cache_bytes=n_bytes))


def layer(tokens: list[int]) -> KVCache:
    """A layer whose keys are the tokens, so that it can be seen what it holds."""
    cache = KVCache()
    keys = mx.array(tokens, mx.float32).reshape(1, 1, len(tokens), 1)
    cache.update_and_fetch(keys, keys)
    return cache


def held(cache: list[Any]) -> list[int]:
    return cache[0].keys[0, 0, : cache[0].offset, 0].tolist()


def test_the_longest_beginning_is_found() -> None:
    cache = made()
    for tokens in ([1, 2, 3, 4], [1, 2, 5, 6, 7], [8, 9]):
        cache.insert_cache("m", tokens, [layer(tokens)])
    for wanted, known in (([1, 2, 3, 9], 3), ([1, 2, 5, 6, 7, 8], 5), ([1, 9], 1), ([8, 9, 1], 2)):
        found, rest = cache.fetch_nearest_cache("m", wanted)
        assert found is not None and held(found) == wanted[:known] and rest == wanted[known:]
    assert cache.fetch_nearest_cache("m", [7, 1]) == (None, [7, 1])


def test_the_last_token_is_always_left_to_be_run() -> None:
    cache = made()
    cache.insert_cache("m", [1, 2, 3], [layer([1, 2, 3])])
    for wanted in ([1, 2, 3], [1, 2], [1]):
        found, rest = cache.fetch_nearest_cache("m", wanted)
        assert rest == wanted[-1:]
        assert (held(found) if found else []) == wanted[:-1]


def test_what_is_found_can_be_changed() -> None:
    cache = made()
    cache.insert_cache("m", [1, 2, 3], [layer([1, 2, 3])])
    for _ in range(2):
        found, _ = cache.fetch_nearest_cache("m", [1, 2, 9])
        assert found is not None and held(found) == [1, 2]
        found[0].update_and_fetch(mx.full((1, 1, 2, 1), 7.0), mx.full((1, 1, 2, 1), 7.0))


def test_beginnings_of_a_longer_one_are_superfluous() -> None:
    cache = made()
    for tokens in ([1, 2], [1, 3], [1, 2, 3], [1, 2, 3]):
        cache.insert_cache("m", tokens, [layer(tokens)])
    assert len(cache) == 2


@pytest.mark.parametrize("kind", ["arrays", "rotated"])
def test_one_that_cannot_be_trimmed_is_found_only_whole(kind: str) -> None:
    def one(tokens: list[int]) -> Any:
        if kind == "arrays":
            arrays = ArraysCache(1)
            arrays[0] = mx.zeros((1, len(tokens)))
            return arrays
        rotating = RotatingKVCache(2)
        rotating.update_and_fetch(mx.zeros((1, 1, len(tokens), 1)), mx.zeros((1, 1, len(tokens), 1)))
        return rotating

    cache = made()
    for tokens in ([1, 2, 3], [1, 2, 3, 4, 5]):
        cache.insert_cache("m", tokens, [one(tokens)])
    assert len(cache) == 2  # the shorter cannot be had of the longer
    for wanted, rest in (([1, 2, 3, 4], [4]), ([1, 2, 3, 4, 5], [4, 5]), ([1, 2, 3, 4, 5, 6], [6])):
        assert cache.fetch_nearest_cache("m", wanted)[1] == rest
    assert cache.fetch_nearest_cache("m", [1, 2, 3])[0] is None


def test_one_that_holds_less_than_its_tokens_is_kept_for_what_it_holds() -> None:
    cache = made()
    cache.insert_cache("m", [1, 2, 3, 4], [layer([1, 2, 3]), layer([1, 2])])  # a draft model's is a token behind
    found, rest = cache.fetch_nearest_cache("m", [1, 2, 3, 4, 5])
    assert found is not None
    assert rest == [3, 4, 5] and [c.offset for c in found] == [2, 2]


def test_the_least_recently_used_goes_first() -> None:
    cache = made(prompts=2)
    cache.insert_cache("m", [1, 1], [layer([1, 1])])
    cache.insert_cache("m", [2, 2], [layer([2, 2])])
    cache.fetch_nearest_cache("m", [1, 1, 1])
    cache.insert_cache("m", [3, 3], [layer([3, 3])])
    assert [cache.fetch_nearest_cache("m", [t, t, 0])[0] is None for t in (1, 2, 3)] == [False, True, False]


def test_bytes_are_bounded() -> None:
    size = layer([1]).nbytes
    cache = made(n_bytes=2 * size)
    for token in range(5):
        cache.insert_cache("m", [token], [layer([token])])
    assert len(cache) == 2 and cache.nbytes == 2 * size
    cache.trim_to(n_bytes=size)
    assert len(cache) == 1
    cache.trim_to(n_bytes=-5)  # running requests need more than there is
    assert len(cache) == cache.nbytes == 0
    tiny = made(n_bytes=0)
    tiny.insert_cache("m", [1], [layer([1])])
    assert len(tiny) == 0


def test_against_a_plain_search() -> None:
    numbers = random.Random(5)
    cache, known = made(prompts=100), []
    for _ in range(300):
        tokens = [numbers.randrange(3) for _ in range(numbers.randrange(1, 9))]
        expected = max((common(tokens, k) for k in known), default=0)
        found, rest = cache.fetch_nearest_cache("m", tokens)
        assert len(tokens) - len(rest) == min(expected, len(tokens) - 1)
        assert (held(found) if found else []) + rest == tokens
        if numbers.random() < 0.3:
            cache.insert_cache("m", tokens, [layer(tokens)])
            known.append(tokens)


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
