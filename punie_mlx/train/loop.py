"""One step of training: the gradients of all its groups, over all ranks, and the update they make.

The loss of a step is the mean over its supervised tokens, wherever they are computed: each group's sum is divided by
the weight of the whole step, so that parts, accumulated batches and ranks add up to what one large batch would give.
Groups are computed one after another, with one group's activations in memory at a time.

Random numbers (dropout) are drawn from `mx.random.state`, which is set before each step by the seed, the step and the
rank: a resumed run draws what the undisturbed one draws, and no two ranks draw the same.

A loss or gradient that is no finite number leaves weights, optimizer and schedule as they were; on every rank, since
what is looked at is the sum over the ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from punie_mlx import hardware
from punie_mlx.train.distributed import World
from punie_mlx.train.loss import Seam, added, as_arrays, checkpointed, loss_of_arrays, mean_loss
from punie_mlx.train.optimizers import clip
from punie_mlx.train.plan import Group, Step, plan_once
from punie_mlx.train.samples import Sample

CACHE_BYTES = 1 << 30  # freed buffers that MLX may keep between groups; giving all back costs time at each step


@dataclass(frozen=True)
class Outcome:
    """What a step gave."""

    loss: float
    """Mean over the supervised tokens of the step, before its update."""
    norm: float
    """Length of the gradient, before it was clipped."""
    stop: bool
    """Whether some rank was told to stop."""

    @property
    def problem(self) -> str:
        """Why the update was left out; empty where it was made."""
        for name, value in (("loss", self.loss), ("gradient", self.norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        return ""


class Trainer:
    """Makes the steps of a run. The model, whose trainable parameters change, must be in training mode."""

    def __init__(
        self,
        model: nn.Module,
        seam: Seam,
        optimizer: optim.Optimizer,
        *,
        world: World,
        clip_norm: float,
        seed: int,
        compiled: bool = False,
        grad_checkpoint: bool = False,
    ) -> None:
        self.model, self.seam, self.optimizer = model, seam, optimizer
        self._grad_checkpoint = grad_checkpoint
        self._world, self._clip_norm, self._seed = world, clip_norm, seed
        self._gradient = self._make_gradient(compiled)

    def _make_gradient(self, compiled: bool) -> Callable[..., tuple[mx.array, Any]]:
        """The loss of a group's arrays, times a scale, with its gradient."""

        def loss(scale: mx.array, *arrays: Any) -> mx.array:
            return loss_of_arrays(self.seam, self.model, *arrays) * scale

        gradient = nn.value_and_grad(self.model, loss)
        if not compiled:
            return gradient
        state = [self.model.state, mx.random.state]
        return mx.compile(gradient, inputs=state, outputs=state)

    def step(self, number: int, step: Step, *, stop: bool = False) -> Outcome:
        """Compute `step`, the one with that `number`, and update the weights. `stop` is told to all ranks."""
        mx.random.seed(seed_of(self._seed, number, self._world.rank))
        with checkpointed(self.model) if self._grad_checkpoint else nullcontext():
            loss, grads = self._sums(step.parts[self._world.rank], step.weight)
        if grads is None:  # the last batch of an epoch may leave nothing to a rank
            grads = tree_map(mx.zeros_like, self.model.trainable_parameters())
        loss, grads, stopped = self._world.sum((loss, grads, mx.array(float(stop))))
        grads, norm = clip(grads, self._clip_norm)
        figures: Any = mx.stack([loss, norm, stopped]).tolist()
        outcome = Outcome(figures[0], figures[1], figures[2] > 0)
        if not outcome.problem:
            self.optimizer.update(self.model, grads)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return outcome

    def _sums(self, groups: Sequence[Group], weight: float) -> tuple[mx.array, Any]:
        """Loss and gradients of `groups`, one after another, as their part of a mean over `weight`."""
        scale = mx.array(1.0 / weight if weight else math.nan, mx.float32)
        loss, grads = mx.array(0.0), None
        for group in groups:
            part, new = self._gradient(scale, *as_arrays(group))
            loss, grads = loss + part, added(grads, new)
            mx.eval(loss, grads)
            clear_cache()
        return loss, grads

    def blame(self, step: Step, samples: Sequence[Sample]) -> list[str]:
        """Where the samples of `step` stand whose own loss is no finite number; all of its samples if none is."""
        chosen = [samples[i] for i in step.samples]
        bad = [sample.where for sample in chosen if not math.isfinite(self._loss_of(sample))]
        return list(dict.fromkeys(bad or [sample.where for sample in chosen]))

    def _loss_of(self, sample: Sample) -> float:
        (step,) = plan_once([sample], batch_size=1, max_batch_tokens=len(sample.tokens), share=False)
        return mean_loss(self.seam, self.model, step.parts[0], 1.0)


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers of one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8], "big")


def clear_cache() -> None:
    """Give freed buffers back where they have become many."""
    if mx.get_cache_memory() > CACHE_BYTES:
        mx.clear_cache()


@contextmanager
def compiling(choice: str) -> Generator[bool]:
    """Yield whether the step is compiled (`auto`, `on`, `off`); on a CPU nothing else of the model is either.

    MLX runs a C++ compiler for each shape there, which takes longer than it saves. Where no compiler is installed MLX
    does without, so this also makes runs equal on both kinds of machine.
    """
    if choice == "on" or not hardware.on_cpu():
        yield choice != "off"
        return
    mx.disable_compile()
    try:
        yield False
    finally:
        mx.enable_compile()


@contextmanager
def wired() -> Generator[None]:
    """Let MLX keep what it works on from being swapped out, where the device says how much may be (Metal)."""
    limit = mx.device_info().get("max_recommended_working_set_size")
    if not limit:
        yield
        return
    before = mx.set_wired_limit(int(limit))
    try:
        yield
    finally:
        mx.set_wired_limit(before)
