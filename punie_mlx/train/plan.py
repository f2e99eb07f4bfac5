"""Samples → steps: what is computed together, so that no token is computed twice in a batch and little is padding.

The samples of a tool-calling corpus repeat each other: the turns of a conversation are prefixes of one another, and
conversations share their system and tools block. Two exact rewritings take that out of a batch:

- **nested**: a sample whose tokens begin another sample's is dropped, and its targets are laid on the longer one;
- **shared**: sequences with a common beginning become one *group*, whose prefix is computed once (`loss.py`).

How a batch is cut into groups is decided by dynamic programming over its sequences in lexicographic order, where those
with the longest common prefixes are neighbours: the fewest tokens computed win, padding counted, none above the budget.

A plan is a pure function of the samples, the seed and the number of the step: a run that is resumed needs nothing but
that number. In an epoch every sample comes once. Numpy only; nothing here knows the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

GROUP_COST = 64  # tokens that one more forward pass is worth: it must save more than its start costs
LEAST_PREFIX = 16  # tokens; a shorter common beginning is not worth a pass of its own


class Sample(Protocol):
    """What a plan needs of a sample: `tokens` (n,) int32; `spans` of targets with their weights; what it shares."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def spans(self) -> tuple[tuple[int, int, float], ...]: ...
    @property
    def cluster(self) -> str: ...


@dataclass(frozen=True)
class Group:
    """What one forward pass computes: B sequences behind one prefix of P tokens."""

    prefix: np.ndarray  # (P,) int32; P may be 0
    suffix: np.ndarray  # (B, S) int32, padded on the right
    rows: np.ndarray  # (M,) int32: rows and columns of `suffix` whose hidden states predict the targets
    cols: np.ndarray
    targets: np.ndarray  # (M,) int32
    weights: np.ndarray  # (M,) float32; 0 for what only fills up a shape

    @property
    def computed(self) -> int:
        """Tokens that go through the layers, padding too."""
        return self.prefix.size + self.suffix.size


@dataclass(frozen=True)
class Step:
    """One update of the weights: the groups of each rank, and the sums over all of them."""

    parts: tuple[tuple[Group, ...], ...]  # one tuple of groups for each rank
    samples: tuple[int, ...]  # indices of the samples, each once
    weight: float  # sum of the targets' weights over all ranks: what the loss is divided by
    supervised: int  # targets that have a weight, over all samples
    computed: int  # tokens through the layers, padding too
    given: int  # tokens of the samples, as if each were computed by itself without padding


@dataclass(frozen=True)
class _Sequence:
    """Samples that are nested in each other, as one row of tokens."""

    tokens: np.ndarray
    weights: np.ndarray  # (n,) float32: of each token as a target

    @property
    def first(self) -> int:
        """Position of the first target; the length where there is none."""
        found = np.flatnonzero(self.weights)
        return int(found[0]) if len(found) else len(self.tokens)


class Planner:
    """The steps of a training run. Raises ValueError for sizes below 1."""

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int,
        accumulate: int = 1,
        max_batch_tokens: int,
        share: bool,
        seed: int,
        world: int = 1,
        few_shapes: bool = False,
    ) -> None:
        """Plan over `samples`: `batch_size` of them for each of `world` ranks and `accumulate` batches make a step.

        `share`: whether a prefix may be computed once for several sequences (`loss.examine` knows). `few_shapes`: round
        lengths up, for a loss that is compiled anew for each shape.
        """
        if min(batch_size, accumulate, world, max_batch_tokens) < 1 or not samples:
            raise ValueError("a plan needs samples, and sizes of at least 1")
        self.samples = samples
        self.batch_size, self.accumulate, self.world = batch_size, accumulate, world
        self._budget, self._share, self._few_shapes = max_batch_tokens, share, few_shapes
        self._seed = seed
        self._chains = _chains(samples)
        self._clusters = {c: i for i, c in enumerate(sorted({s.cluster for s in samples}))}
        self._epoch: tuple[int, list[list[int]]] | None = None
        batches = -(-len(samples) // (batch_size * world))
        self.steps_per_epoch = -(-batches // accumulate)

    def step(self, index: int) -> Step:
        """Step `index` (from 0) of the run; the same at each call."""
        epoch, place = divmod(index, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        batches = self._epoch[1][place * self.accumulate : (place + 1) * self.accumulate]
        return self._step(batches)

    def _batches(self, epoch: int) -> list[list[int]]:
        """The samples of each batch of all ranks together: neighbours in what they share and in length."""
        random = np.random.default_rng([self._seed, epoch])
        rank = random.permutation(len(self._clusters)) if self._share else np.zeros(len(self._clusters), int)
        ties = random.permutation(len(self._chains))  # who stands beside whom, and is left over, differs by epoch

        def key(i: int) -> tuple[int, int, int]:
            longest = self.samples[self._chains[i][-1]]
            return int(rank[self._clusters[longest.cluster]]), rounded(len(longest.tokens)), int(ties[i])

        flat = [s for i in sorted(range(len(self._chains)), key=key) for s in self._chains[i]]
        size = self.batch_size * self.world
        batches = [flat[i : i + size] for i in range(0, len(flat), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def _step(self, batches: Sequence[Sequence[int]]) -> Step:
        parts: list[list[Group]] = [[] for _ in range(self.world)]
        for batch in batches:
            for rank in range(self.world):
                mine = batch[rank * self.batch_size : (rank + 1) * self.batch_size]
                sequences = _merged([self.samples[i] for i in mine])
                parts[rank] += _groups(sequences, self._budget, share=self._share, few_shapes=self._few_shapes)
        chosen = [self.samples[i] for batch in batches for i in batch]
        spans = [span for sample in chosen for span in sample.spans]
        return Step(
            parts=tuple(map(tuple, parts)),
            samples=tuple(i for batch in batches for i in batch),
            weight=float(sum((stop - start) * weight for start, stop, weight in spans)),
            supervised=sum(stop - start for start, stop, weight in spans if weight),
            computed=sum(group.computed for part in parts for group in part),
            given=sum(len(sample.tokens) for sample in chosen),
        )


def plan_once(samples: Sequence[Sample], *, batch_size: int, max_batch_tokens: int, share: bool) -> list[Step]:
    """Steps that take each of `samples` once, in an order that never changes: for validation."""
    planner = Planner(samples, batch_size=batch_size, max_batch_tokens=max_batch_tokens, share=share, seed=0)
    return [planner.step(i) for i in range(planner.steps_per_epoch)]


def rounded(length: int) -> int:
    """`length` rounded up to one of eight sizes for each power of two, multiples of 16: at most an eighth is added."""
    grain = max(16, 1 << max(length.bit_length() - 4, 0))
    return -(-length // grain) * grain


# ---- nested samples ----


def _order(samples: Sequence[Sample]) -> list[int]:
    """Indices of `samples` in lexicographic order of their tokens."""
    keys = [s.tokens.astype(">u4").tobytes() for s in samples]  # big-endian: bytes compare as the numbers do
    return sorted(range(len(samples)), key=keys.__getitem__)


def _begins(short: np.ndarray, long: np.ndarray) -> bool:
    return len(short) <= len(long) and bool(np.array_equal(short, long[: len(short)]))


def _chains(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of `samples` in chains, in each of which every sample begins the next."""
    chains: list[list[int]] = []
    for i in _order(samples):
        if chains and _begins(samples[chains[-1][-1]].tokens, samples[i].tokens):
            chains[-1].append(i)
        else:
            chains.append([i])
    return chains


def _merged(samples: Sequence[Sample]) -> list[_Sequence]:
    """One sequence for each chain of `samples`, in lexicographic order; targets that meet add their weights."""
    out = []
    for chain in _chains(samples):
        tokens = samples[chain[-1]].tokens
        weights = np.zeros(len(tokens), np.float32)
        for i in chain:
            for start, stop, weight in samples[i].spans:
                weights[start:stop] += weight
        out.append(_Sequence(tokens, weights))
    return out


# ---- groups ----


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning of two rows of tokens."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _groups(sequences: Sequence[_Sequence], budget: int, *, share: bool, few_shapes: bool) -> list[Group]:
    """`sequences` (in lexicographic order) cut into groups with the fewest computed tokens, each within `budget`.

    A single sequence above the budget is a group all the same.
    """
    n = len(sequences)
    common = [_common(a.tokens, b.tokens) for a, b in pairwise(sequences)]
    best = [0.0] + [float("inf")] * n  # tokens for the first k sequences
    cut = [(0, 0)] * (n + 1)  # where the last of their groups begins, and its prefix
    for begin in range(n):
        shared, longest = len(sequences[begin].tokens), 0
        for end in range(begin + 1, n + 1):
            last = sequences[end - 1]
            if end - 1 > begin:
                shared = min(shared, common[end - 2])
            shared = min(shared, last.first - 1)  # the state before the first target must be in the suffix
            longest = max(longest, len(last.tokens))
            for prefix in {0, _prefix(shared, end - begin, share, few_shapes)}:
                width = longest - prefix
                tokens = prefix + (end - begin) * (rounded(width) if few_shapes else width)
                if tokens > budget and end - begin > 1:
                    continue
                # One pass for the prefix, one for the rest.
                cost = best[begin] + tokens + GROUP_COST * (2 if prefix else 1)
                if cost < best[end]:
                    best[end], cut[end] = cost, (begin, prefix)
    out, end = [], n
    while end:
        begin, prefix = cut[end]
        out.append(_group(sequences[begin:end], prefix, few_shapes))
        end = begin
    return out[::-1]


def _prefix(shared: int, count: int, share: bool, few_shapes: bool) -> int:
    """How much of a common beginning of `shared` tokens is computed apart."""
    if not share or count < 2 or shared < LEAST_PREFIX:
        return 0
    return shared // 16 * 16 if few_shapes else shared


def _group(sequences: Sequence[_Sequence], prefix: int, few_shapes: bool) -> Group:
    width = max(len(s.tokens) for s in sequences) - prefix
    suffix = np.zeros((len(sequences), rounded(width) if few_shapes else width), np.int32)
    rows, cols, targets, weights = [], [], [], []
    for i, s in enumerate(sequences):
        suffix[i, : len(s.tokens) - prefix] = s.tokens[prefix:]
        places = np.flatnonzero(s.weights)
        rows.append(np.full(len(places), i))
        cols.append(places - prefix - 1)  # a state predicts the token after it
        targets.append(s.tokens[places])
        weights.append(s.weights[places])
    count = sum(map(len, targets))
    fill = (rounded(count) if few_shapes else max(count, 1)) - count
    flat = [np.concatenate([*part, np.zeros(fill)]) for part in (rows, cols, targets, weights)]
    return Group(
        sequences[0].tokens[:prefix], suffix, *(f.astype(np.int32) for f in flat[:3]), flat[3].astype(np.float32)
    )
