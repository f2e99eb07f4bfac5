"""The loss of a group: cross-entropy at its targets, with no token and no logit computed that is not needed.

Three things make it cheaper than logits for every position of every padded row, with the same gradients:

- the output head runs at the targets' positions only;
- the prefix that the group's sequences share runs once; its keys and values are laid in front of each sequence by a
  `Tape`, a cache through which gradients flow;
- layers may be checkpointed: their activations are computed again in the backward pass instead of being kept.

A model is taken apart as mlx_lm's models are built. What cannot be taken apart so, or gives other numbers when it is
(`examine` tries on a few tokens), is computed whole, and that is said.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                              | used for                                      |
|---------------------------------------------------|-----------------------------------------------|
| `model.model`, `model.lm_head`, `embed_tokens.as_linear` | hidden states, and the head            |
| `models.cache.make_prompt_cache`, `KVCache`       | whether all caches are plain attention        |
| a cache's `offset`, `update_and_fetch`, `make_mask` | what attention asks of a cache (`Tape`)     |
| `models.base.create_causal_mask`                  | masks of attention that looks back a limited way |
| `model.layers[i](x, mask, cache)`                 | what is checkpointed                          |
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from punie_mlx.errors import ConfigError
from punie_mlx.train.plan import Group

LOGITS_AT_ONCE = 1 << 28  # logits computed at once; more are computed, and computed again, in pieces
PROBE = ((5, 6, 7, 8, 9, 10, 11, 12), (5, 6, 7, 8, 13, 14, 15, 16))  # two rows with a common half
TOLERANCE = {mx.float32: 1e-4}  # mean difference over mean value
HALF_TOLERANCE = 5e-2  # another order of sums changes half precision, and now and then the choice of an expert

Arrays = tuple[mx.array, mx.array, mx.array, mx.array, mx.array, mx.array]


class Tape:
    """A cache of one attention layer that keeps the graph: records keys and values, or replays them.

    Without `recorded` it records what a prefix of one row (1, heads, P, width) gives; with it, that stands in front of
    the keys and values of each row of a batch.
    """

    def __init__(self, recorded: tuple[mx.array, mx.array] | None = None) -> None:
        self.recorded = recorded
        self.offset = 0 if recorded is None else recorded[0].shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.recorded is None:
            self.recorded = keys, values
            return keys, values
        old = [mx.broadcast_to(x, (keys.shape[0], *x.shape[1:])) for x in self.recorded]
        return mx.concatenate([old[0], keys], axis=2), mx.concatenate([old[1], values], axis=2)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        if not return_array and window_size is None:
            return "causal"
        from mlx_lm.models.base import create_causal_mask

        return create_causal_mask(length, offset=self.offset, window_size=window_size)


@dataclass(frozen=True)
class Seam:
    """How a model is taken apart for training."""

    gathers: bool
    """Whether the head can be run at chosen positions."""
    shares: bool
    """Whether a prefix can be computed once for several sequences."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    def hidden(self, model: Any, tokens: mx.array, cache: Sequence[Tape] | None = None) -> mx.array:
        """States (B, S, width) that `project` makes logits of; without a seam the logits themselves."""
        return (model.model if self.gathers else model)(tokens, cache=cache)

    def project(self, model: Any, states: mx.array) -> mx.array:
        """Logits (..., vocabulary)."""
        return _head(model)(states) if self.gathers else states


def _head(model: Any) -> Callable[[mx.array], mx.array]:
    return model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear


def examine(model: Any, share: str = "auto") -> Seam:
    """How `model` can be taken apart: tried on two short rows. `share` is `auto`, `on` or `off`.

    Raises ConfigError where `share` is `on` and the model cannot.
    """
    was_training = model.training
    model.eval()
    try:
        gathers, why_not_gathers = _attempt(lambda: _check_head(model))
        seam = Seam(gathers, False)
        shares, why_not = (False, "switched off") if share == "off" else _attempt(lambda: _check_tape(model, seam))
    finally:
        model.train(was_training)
    if share == "on" and not shares:
        raise ConfigError(f"share_prefix is on, and this model cannot share a prefix ({why_not}): set it to auto")
    notes = []
    if not gathers:
        notes.append(f"logits are computed at every position: {why_not_gathers}")
    notes.append(
        "shared prompt prefixes are computed once" if shares else f"shared prompt prefixes are computed anew: {why_not}"
    )
    return Seam(gathers, shares, tuple(notes))


def _attempt(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        problem = check()
    except Exception as e:  # whatever a model of unknown make does when it is taken apart
        problem = f"{type(e).__name__}: {e}"
    return not problem, problem


def _differs(a: mx.array, b: mx.array) -> bool:
    if a.shape != b.shape:
        return True
    tolerance = TOLERANCE.get(a.dtype, HALF_TOLERANCE)
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return not bool((mx.abs(a - b).mean() <= tolerance * mx.abs(a).mean()).item())  # NaN differs, too


def _check_head(model: Any) -> str:
    if not callable(getattr(model, "model", None)):
        return "the model has no part `model` that gives hidden states"
    tokens = mx.array(PROBE)
    return "its head does more than project" if _differs(model(tokens), _head(model)(model.model(tokens))) else ""


def _check_tape(model: Any, seam: Seam) -> str:
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    other = sorted({type(c).__name__ for c in make_prompt_cache(model) if type(c) is not KVCache})
    if other:
        return f"its layers keep other state than plain attention ({', '.join(other)})"
    rows = mx.array(PROBE)
    half = rows.shape[1] // 2
    whole = seam.hidden(model, rows)[:, half:]
    parted = seam.hidden(model, rows[:, half:], replay(model, seam, rows[:1, :half]))
    return "its attention reads the shared part otherwise" if _differs(whole, parted) else ""


def replay(model: Any, seam: Seam, prefix: mx.array) -> list[Tape]:
    """Compute `prefix` (1, P) once; the tapes that lay it in front of a batch."""
    tapes = [Tape() for _ in model.layers]
    seam.hidden(model, prefix, tapes)
    return [Tape(tape.recorded) for tape in tapes]


# ---- the loss ----


def as_arrays(group: Group) -> Arrays:
    """`group` as MLX arrays: prefix (1, P), suffix (B, S), rows, cols, targets, weights (M,)."""
    rows, cols, targets, weights = map(mx.array, (group.rows, group.cols, group.targets, group.weights))
    return mx.array(group.prefix[None]), mx.array(group.suffix), rows, cols, targets, weights


def group_loss(seam: Seam, model: Any, group: Group) -> mx.array:
    """Sum of weight · cross-entropy over the targets of `group`, a float32 scalar.

    Divided by the weight of its step (`Step.weight`) it is the group's part of the mean.
    """
    return loss_of_arrays(seam, model, *as_arrays(group))


def loss_of_arrays(
    seam: Seam,
    model: Any,
    prefix: mx.array,
    suffix: mx.array,
    rows: mx.array,
    cols: mx.array,
    targets: mx.array,
    weights: mx.array,
) -> mx.array:
    """`group_loss` of `as_arrays(group)`: a function of arrays only, as `mx.compile` wants it."""
    cache = replay(model, seam, prefix) if prefix.shape[1] else None
    states = seam.hidden(model, suffix, cache)[rows, cols]

    def loss(states: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        logits = seam.project(model, states).astype(mx.float32)
        return (nn.losses.cross_entropy(logits, targets) * weights).sum()

    pieces = _pieces(seam, model, len(targets))
    if pieces == 1:
        return loss(states, targets, weights)
    size = -(-len(targets) // pieces)
    total = mx.array(0.0)
    for i in range(0, len(targets), size):
        part = slice(i, i + size)
        # Targets and weights are bound, not passed: no gradient exists for them.
        total += mx.checkpoint(partial(loss, targets=targets[part], weights=weights[part]))(states[part])
    return total


def _pieces(seam: Seam, model: Any, targets: int) -> int:
    """In how many pieces the logits are computed: one, but where they are many and the head learns nothing."""
    if not seam.gathers:
        return 1
    head = model.lm_head if "lm_head" in model else model.model.embed_tokens
    if head.trainable_parameters():  # a checkpoint passes gradients to what it is given, which the head is not
        return 1
    vocabulary = head.weight.shape[0] if "weight" in head else 0
    return max(1, -(-targets * vocabulary // LOGITS_AT_ONCE))


# ---- gradient checkpointing ----


@contextmanager
def checkpointed(model: Any) -> Generator[None]:
    """Inside the block the layers of `model` keep no activations: they are computed again in the backward pass.

    Only these layers change, by a class of their own for the time of the block; other models are not touched.
    """
    layers = list(model.layers)
    dropouts = [d for layer in layers for d in _dropouts(layer)]
    made = {kind: type(kind.__name__, (_Checkpointed, kind), {}) for kind in {type(layer) for layer in layers}}
    before = [(module, type(module)) for module in (*layers, *dropouts)]
    try:
        for module, kind in before:
            module.__class__ = made.get(kind, _KeyedDropout)
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


def _dropouts(layer: Any) -> list[Any]:
    return [m for m in layer.modules() if isinstance(m, nn.Dropout)]


class _Keys:
    """The random keys of one call of a layer."""

    def __init__(self, key: mx.array) -> None:
        self.key = key

    def draw(self) -> mx.array:
        self.key, drawn = mx.random.split(self.key)
        return drawn


class _KeyedDropout(nn.Dropout):
    """A dropout that leaves out the same when it is computed again, where the random state has moved on."""

    drawn: _Keys

    def __call__(self, x: mx.array) -> mx.array:
        if self._p_1 == 1 or not self.training:
            return x
        return (1 / self._p_1) * mx.random.bernoulli(self._p_1, x.shape, key=self.drawn.draw()) * x


class _Checkpointed:
    """Laid over a layer's class: its call as a function of its parameters, input and tape, which is checkpointed."""

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        plain = super().__call__  # ty: ignore[missing-attribute]
        layer: Any = self
        given = [*args, *kwargs.values()]
        tape = next((a for a in given if isinstance(a, Tape)), None)
        recorded = tape.recorded if tape else None

        dropouts = _dropouts(layer) if layer.training else []

        def run(parameters: Any, x: mx.array, recorded: Any, key: Any) -> tuple[mx.array, Any]:
            layer.update(parameters)
            keys = _Keys(mx.stop_gradient(key)) if dropouts else None
            for dropout in dropouts:
                dropout.drawn = keys
            own = Tape(recorded) if tape else None
            swap = [own if a is tape and tape else a for a in given]
            out = plain(x, *swap[: len(args)], **dict(zip(kwargs, swap[len(args) :], strict=True)))
            return out, own.recorded if own and recorded is None else None

        parameters = layer.trainable_parameters()
        key = mx.random.randint(0, 1 << 30, (2,), mx.uint32) if dropouts else None
        out, new = mx.checkpoint(run)(parameters, x, recorded, key)
        layer.update(parameters)  # the traced ones must not stay behind
        if tape is not None and recorded is None:
            tape.recorded = new
        return out


def mean_loss(seam: Seam, model: Any, groups: Sequence[Group], weight: float) -> float:
    """The loss of `groups` summed and divided by `weight`: their mean, where that is the sum of their weights.

    One group is in memory at a time.
    """
    total = 0.0
    for group in groups:
        total += float(group_loss(seam, model, group))
    return total / weight


def added(a: Any, b: Any) -> Any:
    """Two trees of gradients, added; `a` may be None."""
    return b if a is None else tree_map(mx.add, a, b)
