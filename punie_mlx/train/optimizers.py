"""Optimizers, the schedule of their learning rate, the length of their gradients, and their state as arrays.

A schedule is a function of the optimizer's own step, which is part of its state: who restores the state restores the
schedule. Sources: Adam (Kingma & Ba 2015, without the correction of its first steps, as in mlx_lm), AdamW (Loshchilov &
Hutter 2019), Lion (Chen et al. 2023), Adafactor (Shazeer & Stern 2018), Muon (Jordan et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from punie_mlx.errors import ConfigError
from punie_mlx.train.config import TrainConfig

Rate = float | Callable[[mx.array], mx.array]
Fall = Callable[[mx.array], mx.array]  # the part of the way that is done, 0 to 1 → the part of the rate that is left

FALLS: dict[str, Fall | None] = {
    "constant": None,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + mx.cos(math.pi * done)),
}
OPTIMIZERS: dict[str, Callable[[Rate, float], optim.Optimizer]] = {
    "adam": lambda rate, _: optim.Adam(rate),
    "adamw": lambda rate, decay: optim.AdamW(rate, weight_decay=decay),
    "sgd": lambda rate, decay: optim.SGD(rate, weight_decay=decay),
    "lion": lambda rate, decay: optim.Lion(rate, weight_decay=decay),
    # `learning_rate` means what it says: neither replaced by the paper's own rate, nor scaled by a weight that, as
    # LoRA's b, begins at 0.
    "adafactor": lambda rate, decay: optim.Adafactor(
        rate, weight_decay=decay, relative_step=False, scale_parameter=False
    ),
    # Orthogonalizing is for matrices: vectors (DoRA's m, norms) and stacks of experts go to AdamW.
    "muon": lambda rate, decay: optim.MultiOptimizer(
        [optim.Muon(rate, weight_decay=decay), optim.AdamW(rate, weight_decay=decay)],
        [lambda name, weight: weight.ndim == 2],
    ),
}
STATES: dict[str, float] = {"adam": 2, "adamw": 2, "sgd": 1, "lion": 1, "muon": 1, "adafactor": 0.1}  # values a weight


def make_optimizer(config: TrainConfig, total_steps: int) -> optim.Optimizer:
    """The optimizer that `config` names, its learning rate on its schedule over `total_steps`.

    Call its `init(model.trainable_parameters())` before `state_from_arrays`.
    """
    return OPTIMIZERS[config.optimizer](learning_rate(config, total_steps), config.weight_decay)


def learning_rate(config: TrainConfig, total_steps: int) -> Rate:
    """The rate as a number, or as a function of the step (0 is the first).

    In the warmup it rises by equal parts, so that the last of its steps has the whole rate; then it falls from there,
    and would reach `final_rate` with the step after the last.
    """
    top, warmup, final = config.learning_rate, config.warmup, config.final_rate
    fall = FALLS[config.schedule]
    if fall is None and not warmup:
        return top
    way = max(total_steps - warmup, 1)

    def rate(step: mx.array) -> mx.array:
        at = step.astype(mx.float32)
        part = mx.array(1.0)
        if fall is not None:
            part = final + (1 - final) * fall(mx.clip((at - warmup) / way, 0, 1))
        if warmup:
            part = mx.where(at < warmup, (at + 1) / warmup, part)
        return top * part

    return rate


def clip(grads: Any, max_norm: float) -> tuple[Any, mx.array]:
    """`grads` scaled down to the length `max_norm`, and the length they had (float32 scalar, over the whole tree).

    A `max_norm` of 0 leaves them as they are; so does a length that is not finite, which the caller must check: scaled
    by it, infinite gradients would pass for zeros.
    """
    total = sum((mx.square(g.astype(mx.float32)).sum() for _, g in _flat(grads)), start=mx.array(0.0))
    norm = mx.sqrt(total)
    if not max_norm:
        return grads, norm
    factor = mx.where(mx.isfinite(norm), mx.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
    return tree_map(lambda g: (g * factor).astype(g.dtype), grads), norm


def current_rate(optimizer: optim.Optimizer) -> float:
    """The learning rate of the last step; before the first one, that of the first."""
    return optimizer.learning_rate.item()


def state_to_arrays(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """The whole state by name (step and rate, too), as safetensors hold it."""
    return dict(_flat(optimizer.state))


def state_from_arrays(optimizer: optim.Optimizer, arrays: Mapping[str, mx.array]) -> None:
    """Put back what `state_to_arrays` gave, in place, so that a compiled step which holds the state sees it.

    Raises `ConfigError` where `arrays` are the state of another optimizer, or of one over other weights.
    """
    own = state_to_arrays(optimizer)
    alike = {k for k, v in own.items() if k in arrays and (arrays[k].shape, arrays[k].dtype) == (v.shape, v.dtype)}
    if wrong := sorted((own.keys() | arrays.keys()) - alike):
        raise ConfigError(
            f"the optimizer of the checkpoint is not this run's ({len(wrong)} values differ, as {wrong[0]}): "
            "resume with the settings that the run had, or start again with --overwrite"
        )
    _replace(optimizer.state, "", arrays)


def _replace(tree: Any, path: str, arrays: Mapping[str, mx.array]) -> None:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, mx.array):
            tree[key] = arrays[f"{path}{key}"]
        else:
            _replace(value, f"{path}{key}.", arrays)


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(tree)
    return flat
