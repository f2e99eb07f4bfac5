"""Tokens a second that a model decodes: one sequence at a time, by the bare engine, without a server.

The networks are those that the server computes (`divergence.load`): on a CPU, quantized layers are computed as dense
float32 where that fits, so that all widths of one model are equally fast there, and only their size differs.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py): `generate.generate_step`, which does not stop at
end tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from punie_mlx.export.divergence import load
from punie_mlx.export.prompts import Said


@dataclass(frozen=True)
class Speed:
    """Decode rates behind several prompts: their median, and the slowest and fastest of them."""

    tokens_per_second: float
    slowest: float
    fastest: float


def decode_rate(model: Path, prompts: Sequence[Said], tokens: int = 64) -> Speed:
    """How fast the model in a directory writes `tokens` tokens behind each of `prompts`. Raises `ModelError`.

    The time of the prompt and of the first token does not count, nor does a first sequence that warms up.
    """
    from mlx_lm.generate import generate_step

    network = load(model)
    rates = []
    for said in (prompts[0], *prompts):
        steps = generate_step(mx.array(said.tokens[: said.start]), network, max_tokens=tokens)
        next(steps)
        started = time.perf_counter()
        count = sum(1 for _ in steps)
        rates.append(count / (time.perf_counter() - started))
    return Speed(statistics.median(rates[1:]), min(rates[1:]), max(rates[1:]))
