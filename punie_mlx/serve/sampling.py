"""From logits to a token, on the engine's thread: samplers that batch, processors that never raise.

A sampler takes log-probabilities [rows, vocabulary] and returns a token for each row. A processor takes the tokens of
one row so far and its logits [1, vocabulary], and returns logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence

import mlx.core as mx

from punie_mlx.serve.generation import Sampling

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

KEPT_SAMPLERS = 256


def check(sampling: Sampling, vocabulary: int) -> None:
    """Raises `ValueError` where `sampling` cannot be computed with logits of width `vocabulary`."""
    s = sampling
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    if not (
        0 <= s.temperature < math.inf
        and 0 < s.top_p <= 1
        and 0 <= s.top_k < vocabulary
        and 0 <= s.min_p <= 1
        and (s.seed is None or 0 <= s.seed < 2**64)
        and all(map(math.isfinite, penalties))
        and s.repetition_penalty > 0
        and all(0 <= token < vocabulary and math.isfinite(bias) for token, bias in s.logit_bias)
    ):
        raise ValueError(f"out of range for a vocabulary of {vocabulary}: {sampling}")


# ---- sampling ----


def greedy(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)


class Random:
    """Draws by `sampling`, from random numbers of its own: what else is in the batch does not change them."""

    def __init__(self, sampling: Sampling) -> None:
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.key(seed)
        self._temperature = sampling.temperature
        self._top_k = sampling.top_k
        self._top_p = sampling.top_p
        self._min_p = sampling.min_p

    def __call__(self, logprobs: mx.array) -> mx.array:
        keys = mx.random.split(self._key)
        self._key = keys[0]
        logits, tokens = logprobs.astype(mx.float32) / self._temperature, None
        if self._top_k:  # the rest is computed with the best only
            tokens = mx.argpartition(-logits, kth=self._top_k - 1, axis=-1)[..., : self._top_k]
            logits = mx.take_along_axis(logits, tokens, axis=-1)
        if self._top_p < 1:
            logits = nucleus(logits, self._top_p)
        if self._min_p > 0:
            floor = mx.max(logits, axis=-1, keepdims=True) + math.log(self._min_p)
            logits = mx.where(logits < floor, -mx.inf, logits)
        drawn = mx.random.categorical(logits, key=keys[1])
        return drawn if tokens is None else mx.take_along_axis(tokens, drawn[..., None], axis=-1).squeeze(-1)


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """`logits` of the likeliest tokens that together have a probability of `top_p`; -inf for the others."""
    ordered = mx.sort(logits, axis=-1)
    probabilities = mx.softmax(ordered, axis=-1, precise=True)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    dropped = (above >= top_p).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ordered, mx.minimum(dropped, logits.shape[-1] - 1), axis=-1)
    return mx.where(logits < threshold, -mx.inf, logits)


class Samplers:
    """The samplers of an engine. Requests with equal settings and no seed share one: their batch samples once."""

    def __init__(self) -> None:
        self._shared: dict[tuple[float, ...], Sampler] = {}

    def get(self, sampling: Sampling) -> Sampler:
        if sampling.temperature == 0:
            return greedy
        if sampling.seed is not None:
            return Random(sampling)
        settings = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        if settings not in self._shared and len(self._shared) >= KEPT_SAMPLERS:
            self._shared.clear()
        return self._shared.setdefault(settings, Random(sampling))


# ---- processing ----


def processors(
    sampling: Sampling,
    prompt: Sequence[int],
    vocabulary: int,
    last: Processor | None,
    failed: Callable[[Exception], None],
) -> list[Processor]:
    """What changes the logits of a row: penalties, bias, then `last`; none of it raises, but tells `failed`."""
    made: list[Processor] = []
    if sampling.repetition_penalty != 1:
        made.append(Repetition(sampling.repetition_penalty, prompt, vocabulary))
    if sampling.presence_penalty or sampling.frequency_penalty:
        made.append(Penalties(sampling.presence_penalty, sampling.frequency_penalty, vocabulary))
    if sampling.logit_bias:
        made.append(Bias(sampling.logit_bias, vocabulary))
    if last is not None:
        made.append(last)
    return [Guarded(p, failed) for p in made]


class Counts:
    """How often each token was generated; what stands before the first call is prompt."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._prompt: int | None = None

    def __call__(self, tokens: mx.array) -> mx.array:
        if self._prompt is None:
            self._prompt = tokens.shape[0]
        counts = mx.zeros(self._vocabulary)
        generated = tokens[self._prompt :]
        return counts.at[generated].add(1.0) if generated.shape[0] else counts


class Penalties:
    """OpenAI's presence and frequency penalties."""

    def __init__(self, presence: float, frequency: float, vocabulary: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._counts = Counts(vocabulary)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        counts = self._counts(tokens)
        return logits - (counts * self._frequency + (counts > 0) * self._presence).astype(logits.dtype)


class Repetition:
    """Divides (below zero: multiplies) the logits of tokens that the prompt or the answer has already."""

    def __init__(self, penalty: float, prompt: Sequence[int], vocabulary: int) -> None:
        self._penalty = penalty
        self._prompt = mx.zeros(vocabulary).at[mx.array(list(prompt))].add(1.0)
        self._counts = Counts(vocabulary)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        seen = self._prompt + self._counts(tokens) > 0
        return mx.where(seen, mx.where(logits > 0, logits / self._penalty, logits * self._penalty), logits)


class Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, bias: Sequence[tuple[int, float]], vocabulary: int) -> None:
        tokens, added = mx.array([t for t, _ in bias]), mx.array([b for _, b in bias], mx.float32)
        self._bias = mx.zeros(vocabulary).at[tokens].add(added)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        return logits + self._bias.astype(logits.dtype)


class Guarded:
    """A processor whose failure is that of its own request: an exception would end the engine's thread."""

    def __init__(self, processor: Processor, failed: Callable[[Exception], None]) -> None:
        self._processor = processor
        self._failed = failed
        self._broken = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._broken:
            return logits
        try:
            processed = self._processor(tokens, logits)
            if processed.shape != logits.shape:
                raise ValueError(f"a logits processor made {processed.shape} of {logits.shape}")
        except Exception as e:
            self._broken = True
            self._failed(e)
            return logits
        return processed
