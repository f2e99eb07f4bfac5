"""What a model writes before anything reads it: each token with its probability, and those of the tokens one watches.

model = direct.Model(directory)
for step in raw.watch(model, prompt, {"<tool_call>": 151657}, most=200):
    print(step.text, step.probability, step.watched)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from punie_mlx.direct import NO_SECONDS, Model

TOP = 5


@dataclass(frozen=True)
class Step:
    """One token: `text` is what it completes, `spelling` the token by itself.

    Probabilities are the model's own, before temperature: `watched` by label, `top` as (token, spelling, probability),
    the likeliest first. `end`: it ends the answer.
    """

    token: int
    spelling: str
    text: str
    probability: float
    watched: Mapping[str, float] = field(default_factory=dict)
    top: tuple[tuple[int, str, float], ...] = ()
    end: bool = False


def watch(
    model: Model,
    prompt: list[int],
    watched: Mapping[str, int],
    *,
    most: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    seconds: float = NO_SECONDS,
) -> Iterator[Step]:
    """The steps of an answer to `prompt`, at most `most` tokens or `seconds`; the end token is the last of them."""
    began = time.monotonic()
    held: list[Step] = []  # the last token, and the end token behind it: text that was held back belongs to the former
    with closing(model.steps(prompt, None, most, temperature, seed)) as steps:
        for token, text, logprobs in steps:
            if token is None:
                held[:1] = [replace(step, text=step.text + text) for step in held[:1]]
                continue
            if token not in model.ends:
                yield from held
                held = []
            held.append(_step(model, token, text, logprobs, watched))
            if time.monotonic() - began > seconds:
                steps.send(True)
    yield from held


def likelihood(model: Model, prompt: list[int], tokens: list[int]) -> list[float]:
    """The probability of each of `tokens` behind `prompt` and the tokens before it, whatever the model would write."""
    if not tokens:
        return []
    logits = model.network(mx.array([[*prompt, *tokens[:-1]]]))[0, -len(tokens) :].astype(mx.float32)
    probabilities = mx.softmax(logits, axis=-1)
    found: Any = probabilities[mx.arange(len(tokens)), mx.array(tokens)].tolist()
    return found


def _step(model: Model, token: int, text: str, logprobs: Any, watched: Mapping[str, int]) -> Step:
    probabilities = np.asarray(mx.exp(logprobs.reshape(-1).astype(mx.float32)))
    likeliest = [int(i) for i in np.argsort(-probabilities, kind="stable")[:TOP]]

    def probability(i: int) -> float:
        return float(probabilities[i]) if 0 <= i < probabilities.size else 0.0

    return Step(
        token=token,
        spelling=model.spelled(token),
        text=text,
        probability=probability(token),
        watched={label: probability(i) for label, i in watched.items()},
        top=tuple((i, model.spelled(i), probability(i)) for i in likeliest),
        end=token in model.ends,
    )
