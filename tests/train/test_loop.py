"""One step: the same gradients however it is cut up, and nothing touched where they are no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import Row
from punie_mlx.train.adapters import trainable
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.distributed import World
from punie_mlx.train.loop import Trainer, compiling, seed_of
from punie_mlx.train.loss import Seam, examine
from punie_mlx.train.optimizers import make_optimizer, state_to_arrays
from punie_mlx.train.plan import Planner
from punie_mlx.train.prepare import load_for_training
from punie_mlx.train.samples import Sample, SampleOptions, make_samples
from punie_mlx.train.valid import Validator, choose


@pytest.fixture(scope="module")
def samples(tiny_base, make_row) -> list[Sample]:
    """Six turns of three rows, of different lengths."""
    rows = [Row(**make_row(i), file="train.jsonl", line=i) for i in range(1, 4)]
    for i, row in enumerate(rows):
        row.messages[-1]["content"] += " That is all." * i
    return make_samples(rows, load_tokenizer(tiny_base), SampleOptions()).items


@pytest.fixture
def trainer(tiny_base) -> Iterator[Callable[..., Trainer]]:
    """A trainer over a fresh model, whose adapter has been given values, so that all of it has a gradient."""

    def make(**settings: Any) -> Trainer:
        config = TrainConfig(**{"optimizer": "adamw", "layers": 2, **settings})
        model = load_for_training(tiny_base, config)
        given = np.random.default_rng(1)
        values = [(k, mx.array(given.normal(0, 0.02, v.shape), v.dtype)) for k, v in trainable(model).items()]
        model.load_weights(values, strict=False)
        optimizer = make_optimizer(config, 10)
        optimizer.init(model.trainable_parameters())
        return Trainer(
            model, examine(model), optimizer,
            world=World(), clip_norm=config.clip_norm, seed=config.seed, grad_checkpoint=config.grad_checkpoint,
        )  # fmt: skip

    with compiling("auto"):
        yield make


def plan(samples: list[Sample], batch_size: int, accumulate: int = 1, budget: int = 8192, share=True) -> Planner:
    sizes = {"batch_size": batch_size, "accumulate": accumulate, "max_batch_tokens": budget}
    return Planner(samples, share=share, seed=0, **sizes)


@pytest.mark.parametrize(("batch_size", "accumulate", "budget"), [(1, 6, 8192), (2, 3, 8192), (6, 1, 200)])
def test_parts_and_accumulation_make_the_update_of_one_batch(batch_size, accumulate, budget, trainer, samples):
    """The mean is over supervised tokens, not over batches of different sizes."""
    whole, parted = trainer(clip_norm=0.0), trainer(clip_norm=0.0)
    first = whole.step(0, plan(samples, 6).step(0))
    step = plan(samples, batch_size, accumulate, budget).step(0)
    assert len(step.parts[0]) > 1
    second = parted.step(0, step)
    assert second.loss == pytest.approx(first.loss, rel=1e-5) and second.norm == pytest.approx(first.norm, rel=1e-4)
    moments = state_to_arrays(whole.optimizer)
    for name, value in state_to_arrays(parted.optimizer).items():
        assert mx.allclose(value, moments[name], rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_neither_the_update_nor_the_model(dropout, trainer, samples, monkeypatch):
    """What is computed again is what was computed: dropout, too, leaves out the same."""
    plain, again = (trainer(dropout=dropout, grad_checkpoint=True) for _ in range(2))
    kinds = [type(module) for module in again.model.modules()]
    step = plan(samples, 6).step(0)
    second = again.step(0, step)
    assert [type(module) for module in again.model.modules()] == kinds
    with monkeypatch.context() as patch:
        patch.setattr(mx, "checkpoint", lambda function: function)
        first = plain.step(0, step)
    assert (second.loss, second.norm) == pytest.approx((first.loss, first.norm), rel=1e-5)
    moments = state_to_arrays(plain.optimizer)
    for name, value in state_to_arrays(again.optimizer).items():
        assert mx.allclose(value, moments[name], rtol=1e-3, atol=1e-8), name


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_no_number_changes_nothing_and_names_its_row(value, trainer, samples):
    made = trainer()
    start, stop, _ = samples[3].spans[0]
    bad = [*samples[:3], replace(samples[3], spans=((start, stop, value),)), *samples[4:]]
    step = plan(bad, 6).step(0)
    before = {k: mx.array(v) for k, v in (trainable(made.model) | state_to_arrays(made.optimizer)).items()}
    outcome = made.step(0, step)
    assert outcome.problem == "the loss is nan" and made.blame(step, bad) == [samples[3].where]
    after = trainable(made.model) | state_to_arrays(made.optimizer)
    assert all(mx.array_equal(after[name], value) for name, value in before.items())
    assert after["step"].item() == 0  # nor has the schedule moved
    assert made.step(1, plan(samples, 6).step(0)).problem == ""


def test_weights_that_are_no_numbers_are_noticed_at_once(trainer, samples):
    made = trainer()
    name = next(iter(trainable(made.model)))
    made.model.load_weights([(name, mx.full(trainable(made.model)[name].shape, math.nan))], strict=False)
    step = plan(samples, 2).step(0)
    assert made.step(0, step).problem
    assert set(made.blame(step, samples)) == {samples[i].where for i in step.samples}


def test_a_gradient_is_clipped_and_its_own_length_told(trainer, samples):
    free, held = trainer(clip_norm=0.0, optimizer="sgd"), trainer(clip_norm=0.01, optimizer="sgd")
    step = plan(samples, 6).step(0)
    start = {k: mx.array(v) for k, v in trainable(free.model).items()}
    assert free.step(0, step).norm == pytest.approx(norm := held.step(0, step).norm)
    assert norm > 0.1

    def moved(made: Trainer) -> float:
        return math.sqrt(sum(mx.square(v - start[k]).sum().item() for k, v in trainable(made.model).items()))

    assert moved(held) / moved(free) == pytest.approx(0.01 / norm, rel=1e-2)


def test_dropout_depends_on_the_step_and_on_nothing_before_it(trainer, samples):
    made = trainer(dropout=0.5, learning_rate=1e-12)  # the weights hardly change
    step = plan(samples, 2).step(0)
    losses = [made.step(number, step).loss for number in (3, 4)]
    mx.random.normal((7,))
    assert made.step(3, step).loss == pytest.approx(losses[0], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4
    assert len({seed_of(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}) == 8


def test_validation_leaves_no_trace(trainer, samples):
    """No random number, no dropout left off: the step after it is what it would have been."""
    plain, measured = trainer(dropout=0.5), trainer(dropout=0.5)
    steps = [plan(samples, 2).step(i) for i in range(3)]
    validator = Validator(samples, measured.seam, World(), batch_size=2, max_batch_tokens=8192)
    found = []
    for number, step in enumerate(steps):
        plain.step(number, step)
        found.append(validator.loss(measured.model))
        assert validator.loss(measured.model) == found[-1] and measured.model.training
        measured.step(number, step)
    other = trainable(measured.model)
    assert all(mx.array_equal(value, other[name]) for name, value in trainable(plain.model).items())
    assert found[-1] < found[0]


def test_the_validation_loss_is_the_mean_over_supervised_tokens(trainer, samples):
    made = trainer()
    total = count = 0.0
    made.model.eval()
    for sample in samples:
        logits = made.model(mx.array(sample.tokens)[None, :-1])[0]
        surprise = nn.losses.cross_entropy(logits, mx.array(sample.tokens[1:]))
        for start, stop, _ in sample.spans:
            total, count = total + surprise[start - 1 : stop - 1].sum().item(), count + stop - start
    made.model.train()
    validator = Validator(samples, made.seam, World(), batch_size=4, max_batch_tokens=300)
    assert validator.loss(made.model) == pytest.approx(total / count, rel=1e-5)


def test_the_same_samples_are_validated_each_time(samples):
    def places(count: int, seed: int) -> list[int]:
        return [next(i for i, s in enumerate(samples) if s is c) for c in choose(samples, count, seed)]

    chosen = places(3, 5)
    assert chosen == places(3, 5) == sorted(chosen) and len(chosen) == 3
    assert any(places(3, seed) != chosen for seed in range(5))
    assert places(-1, 0) == places(99, 0) == list(range(6))


class Words(nn.Module):
    """The least that has hidden states, dropout and a head."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.dropout = nn.Embedding(2048, 8), nn.Dropout(0.3)

        def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
            return self.dropout(self.embed(tokens))

    def __init__(self):
        super().__init__()
        self.model, self.lm_head = self.Inner(), nn.Linear(8, 2048)


def test_a_compiled_step_is_the_plain_one(samples):
    """Its random numbers, too, and the weights that it reads are those of the step before."""
    losses = []
    for compiled in (False, True):
        mx.random.seed(0)
        model = Words()
        config = TrainConfig(learning_rate=0.1)
        optimizer = make_optimizer(config, 10)
        with compiling("on" if compiled else "off"):
            made = Trainer(model, Seam(True, False), optimizer, world=World(), clip_norm=1.0, seed=0, compiled=compiled)
            step = plan(samples, 6, share=False).step(0)
            losses.append([made.step(number, step).loss for number in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len({round(loss, 5) for loss in losses[0]}) == 4
