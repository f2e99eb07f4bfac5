"""Optimizers, schedules, clipping, and a state that goes through a file and back."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from punie_mlx.errors import ConfigError
from punie_mlx.train.config import CHOICES, TrainConfig
from punie_mlx.train.optimizers import (
    FALLS,
    OPTIMIZERS,
    STATES,
    clip,
    current_rate,
    learning_rate,
    make_optimizer,
    state_from_arrays,
    state_to_arrays,
)


class Net(nn.Module):
    """Frozen layers before trained ones, a vector and a stack of matrices: all that an adapter holds."""

    def __init__(self):
        super().__init__()
        mx.random.seed(1)
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)]
        self.experts = mx.random.normal((2, 4, 4))
        self.layers[0].freeze()

    def __call__(self, x):
        for layer in self.layers:
            x = mx.tanh(layer(x))
        return (x**2).sum() + (self.experts**2).sum()


def steps(net, optimizer, count, first=0):
    """`count` steps on inputs that only their number decides; the rate of each."""
    rates = []
    for i in range(first, first + count):
        x = mx.random.normal((5, 4), key=mx.random.key(i))
        _, grads = nn.value_and_grad(net, lambda net, x=x: net(x))(net)
        optimizer.update(net, grads)
        mx.eval(net.parameters(), optimizer.state)
        rates.append(current_rate(optimizer))
    return rates


def weights(net):
    return dict(tree_flatten(net.parameters()))


def test_each_choice_has_its_row():
    assert set(CHOICES["optimizer"]) == OPTIMIZERS.keys() == STATES.keys()
    assert set(CHOICES["schedule"]) == FALLS.keys()


@pytest.mark.parametrize("name", CHOICES["optimizer"])
def test_a_saved_state_goes_on_bit_for_bit(name, tmp_path):
    decay = 0.0 if name == "adam" else 0.1
    config = TrainConfig(optimizer=name, learning_rate=1e-2, schedule="cosine", warmup=2, weight_decay=decay)
    whole = Net()
    before = weights(Net())
    rates = steps(whole, make_optimizer(config, 8), 8)
    half, first = Net(), make_optimizer(config, 8)
    steps(half, first, 4)
    mx.save_safetensors(str(tmp_path / "optimizer.safetensors"), state_to_arrays(first))
    second = make_optimizer(config, 8)
    second.init(half.trainable_parameters())
    state_from_arrays(second, mx.load(str(tmp_path / "optimizer.safetensors")))
    assert steps(half, second, 4, first=4) == rates[4:]
    after = weights(whole)
    assert all(mx.array_equal(value, after[key]) for key, value in weights(half).items())
    changed = {key for key, value in after.items() if not mx.array_equal(value, before[key])}
    assert changed == {key for key in after if not key.startswith("layers.0")}


def test_a_compiled_step_sees_a_state_that_is_put_back():
    config = TrainConfig(learning_rate=1e-2)
    net, optimizer = Net(), make_optimizer(config, 4)
    optimizer.init(net.trainable_parameters())
    held = optimizer.state
    saved = {k: mx.array(v) for k, v in state_to_arrays(optimizer).items()}
    steps(net, optimizer, 2)
    state_from_arrays(optimizer, saved)
    assert optimizer.state is held and held["step"].item() == 0


@pytest.mark.parametrize("other", [{"optimizer": "lion"}, {"optimizer": "muon"}])
def test_a_state_of_another_optimizer_is_refused(other):
    net, ours, theirs = Net(), make_optimizer(TrainConfig(), 1), make_optimizer(TrainConfig(**other), 1)
    for optimizer in (ours, theirs):
        optimizer.init(net.trainable_parameters())
    with pytest.raises(ConfigError, match="not this run's"):
        state_from_arrays(ours, state_to_arrays(theirs))


def test_muon_takes_matrices_and_leaves_the_rest_to_adamw():
    """Orthogonalizing a stack of experts as one matrix would mix them."""
    net = Net()
    optimizer = make_optimizer(TrainConfig(optimizer="muon"), 1)
    optimizer.init(net.trainable_parameters())
    names = {name.removeprefix("states.").rpartition(".")[0] for name in state_to_arrays(optimizer)}
    assert {n for n in names if n.startswith("0.")} == {"0.layers.1.weight", "0.layers.2.weight"}
    assert {n for n in names if n.startswith("1.")} == {"1.layers.1.bias", "1.layers.2.bias", "1.experts"}


def rate_at(config, total, step):
    rate = learning_rate(config, total)
    return rate(mx.array(step, mx.uint64)).item() if callable(rate) else rate


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {0: 1, 5: 1, 99: 1}),
        ({"warmup": 4}, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 9: 1}),
        ({"schedule": "linear"}, {0: 1, 5: 0.5, 9: 0.1, 10: 0, 50: 0}),
        ({"schedule": "linear", "final_rate": 0.2}, {0: 1, 5: 0.6, 10: 0.2, 50: 0.2}),
        ({"schedule": "cosine"}, {0: 1, 5: 0.5, 9: 0.5 * (1 + math.cos(0.9 * math.pi)), 10: 0}),
        ({"schedule": "linear", "warmup": 2}, {0: 0.5, 1: 1, 2: 1, 6: 0.5, 10: 0}),
    ],
)
def test_the_rate_of_each_step(settings, wanted):
    config = TrainConfig(learning_rate=2e-3, **settings)
    found = {step: rate_at(config, 10, step) / 2e-3 for step in wanted}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_gradient_is_scaled_to_the_longest_allowed():
    grads = {"a": mx.array([3.0, 0.0]), "b": [mx.array([[4.0]])]}
    clipped, norm = clip(grads, 1.0)
    assert norm.item() == 5
    assert clipped["a"].tolist() == pytest.approx([0.6, 0], abs=1e-5) and clipped["b"][0].item() == pytest.approx(0.8)
    for max_norm in (0.0, 6.0):
        same, norm = clip(grads, max_norm)
        assert norm.item() == 5 and same["a"].tolist() == [3, 0]


def test_half_precision_does_not_overflow_in_the_length():
    grads = {"a": mx.full((4,), 300.0, mx.float16)}
    clipped, norm = clip(grads, 1.0)
    assert norm.item() == 600 and clipped["a"].dtype == mx.float16
    assert clipped["a"][0].item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_no_number_is_never_hidden(bad, max_norm):
    clipped, norm = clip({"a": mx.array([1.0, bad]), "b": mx.array([2.0])}, max_norm)
    assert not math.isfinite(norm.item())
    assert not math.isfinite(clipped["a"][1].item()) and clipped["b"].item() == 2
