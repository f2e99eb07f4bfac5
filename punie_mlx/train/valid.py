"""Measuring a model while it is trained, without a trace in the training: always the same samples, no random number.

What was measured decides which checkpoint becomes the adapter (`pick`) and whether training ends early (`patience`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from punie_mlx.train.checkpoint import Progress
from punie_mlx.train.distributed import World
from punie_mlx.train.loss import Seam, mean_loss
from punie_mlx.train.plan import plan_once
from punie_mlx.train.samples import Sample
from punie_mlx.train.select import Behaviour, Probe

STREAM = 1  # keeps the choice of samples apart from other draws with the same seed


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of `samples` by `seed`, in their order; all where there are fewer, or for -1."""
    if count < 0 or count >= len(samples):
        return list(samples)
    chosen = np.random.default_rng([seed, STREAM]).permutation(len(samples))[:count]
    return [samples[i] for i in sorted(chosen)]


class Validator:
    """The mean loss over fixed samples, computed by all ranks together."""

    def __init__(
        self, samples: Sequence[Sample], seam: Seam, world: World, *, batch_size: int, max_batch_tokens: int
    ) -> None:
        self._seam, self._world = seam, world
        steps = plan_once(samples, batch_size=batch_size, max_batch_tokens=max_batch_tokens, share=seam.shares)
        self._weight = sum(step.weight for step in steps)
        self._groups = [group for step in steps[world.rank :: world.size] for part in step.parts for group in part]

    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy over the supervised tokens, in nats; the same number on every rank."""
        was_training = model.training
        model.eval()  # no dropout
        try:
            mine = mean_loss(self._seam, model, self._groups, self._weight)
        finally:
            model.train(was_training)
        return self._world.sum(mx.array(mine, mx.float32)).item()


def score(probe: Probe, model: nn.Module, world: World) -> Behaviour:
    """What `probe` counts, once for all ranks: the first asks, the others are told."""
    names = ("calls_right", "calls", "direct_right", "direct", "seconds")
    mine = probe.score(model) if world.rank == 0 else None
    figures: Any = mx.array([float(getattr(mine, name)) if mine else 0.0 for name in names])
    *counts, seconds = world.sum(figures).tolist()
    return Behaviour(*map(int, counts), seconds)


def judge(progress: Progress, loss: float | None, behaviour: Behaviour | None, *, pick: str, patience: int) -> bool:
    """Take a measurement after `progress.step` steps into `progress`; return whether it is the best so far.

    By behaviour the share of right cases counts, and where it is the same the validation loss; else the loss alone.
    After `patience` measurements without a better one the run is ended; 0 is never.
    """
    by_loss = -loss if loss is not None and math.isfinite(loss) else -math.inf
    measured = [behaviour.accuracy, by_loss] if pick == "behaviour" and behaviour else [by_loss]
    if measured[0] > -math.inf and (not progress.best or measured > progress.best):
        # JSON has no infinity; -1e30 is below any loss
        progress.best, progress.best_step, progress.stale = [max(m, -1e30) for m in measured], progress.step, 0
        return True
    progress.stale += 1
    if patience and progress.stale >= patience:
        progress.ended = f"no better checkpoint in {progress.stale} validations"
    return False
