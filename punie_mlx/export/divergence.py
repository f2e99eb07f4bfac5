"""How far a quantized model's next token is from that of the float16 model: KL(float16 ‖ variant).

    teacher = Teacher.of(Path("runs/fused"), held_out_turns)
    print(divergence(teacher, Path("runs/5bit")))

Measured at every position of the assistant's turns of held-out rows: each token of a turn, its end token included, is
predicted once, behind the prompt that the server would send and the tokens before it in the turn (those of the row,
not the model's own). Exact over the whole vocabulary, in float32. The float16 model's log-probabilities are computed
once and held; where all turns do not fit in `budget` bytes, the first of them that do (in an order decided by a seed)
are measured, and `tokens` says how many positions that were.

Weights are those of the directory. On a CPU they are computed in float32, as the server does there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from punie_mlx import hardware, identity, weights
from punie_mlx.errors import DataError
from punie_mlx.export.prompts import Said

BUDGET = 1 << 30  # bytes of log-probabilities that are held

Progress = Callable[[int, int], None]
"""Called with the turns done and the turns in all."""


@dataclass(frozen=True)
class Divergence:
    """KL in nats over `tokens` positions, and at how many of them both models put the same token first."""

    mean: float
    p99: float
    max: float
    tokens: int
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Teacher:
    """The float16 model's log-probabilities at each position of `turns`."""

    turns: tuple[Said, ...]
    log_probs: tuple[mx.array, ...]
    fingerprint: str

    @classmethod
    def of(cls, model: Path, turns: Sequence[Said], budget: int = BUDGET, progress: Progress | None = None) -> Teacher:
        """Compute them with the model in the directory `model`. Raises `ModelError`, `DataError`."""
        network = load(model)
        kept: list[Said] = []
        found: list[mx.array] = []
        used = 0
        for i, said in enumerate(turns):
            values = log_probs(network, said)
            mx.eval(values)
            used += values.nbytes
            if used > budget:
                break
            kept.append(said)
            found.append(values)
            if progress:
                progress(i + 1, len(turns))
        if not kept:
            raise DataError("no assistant turn of the held-out rows can be measured: give rows that the model renders")
        return cls(tuple(kept), tuple(found), identity.fingerprint(model))

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return sum(said.turn for said in self.turns)


def divergence(teacher: Teacher, model: Path, progress: Progress | None = None) -> Divergence:
    """KL(teacher ‖ the model in the directory `model`). Raises `ModelError`."""
    return divergence_of(teacher, load(model), progress)


def divergence_of(teacher: Teacher, network: nn.Module, progress: Progress | None = None) -> Divergence:
    """KL(teacher ‖ `network`)."""
    kl: list[float] = []
    same = 0
    for i, (said, wanted) in enumerate(zip(teacher.turns, teacher.log_probs, strict=True)):
        found = log_probs(network, said)
        # 0 at least: float32 rounds sums of such small differences to either side
        each = mx.maximum((mx.exp(wanted) * (wanted - found)).sum(axis=-1), 0.0)
        agreeing = (mx.argmax(wanted, axis=-1) == mx.argmax(found, axis=-1)).sum()
        mx.eval(each, agreeing)
        kl += [float(value) for value in np.array(each)]
        same += int(np.array(agreeing))
        if progress:
            progress(i + 1, len(teacher.turns))
    return Divergence(statistics.fmean(kl), percentile(kl, 0.99), max(kl), len(kl), same / len(kl))


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def log_probs(network: Any, said: Said) -> mx.array:
    """float32 log-probabilities (turn × vocabulary) of `network` at each token of the turn."""
    logits = network(mx.array(said.tokens[:-1])[None])[0, said.start - 1 :].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def load(model: Path) -> nn.Module:
    """The network of a directory, as the server computes it. Raises `ModelError`."""
    network = weights.load_lazily(model)
    network.eval()
    if hardware.on_cpu():
        mx.disable_compile()  # it would run a C++ compiler for each kernel
        weights.compute_in_float32(network)
    mx.eval(network.parameters())
    return network
