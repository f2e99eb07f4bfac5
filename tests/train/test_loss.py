"""The loss of a group has the value and the gradients of the plain way, on several kinds of models."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from punie_mlx.errors import ConfigError
from punie_mlx.train import loss as train_loss
from punie_mlx.train.loss import added, checkpointed, examine, group_loss, mean_loss
from punie_mlx.train.plan import Planner

COMMON = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
    "vocab_size": 128, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_intermediate_size": 48, "norm_topk_prob": True,
}  # fmt: skip
SSM = {"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 8}
WINDOW = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 24}
PLAIN = {"qwen3": {}, "llama": {"tie_word_embeddings": False}, "qwen3_moe": MOE}


def build(kind, lora=True, **more):
    """A random model of a kind; with LoRA layers that already change it."""
    mx.random.seed(1)
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    model = module.Model(module.ModelArgs.from_dict({"model_type": kind, **COMMON, **more}))
    if lora:
        model.freeze()
        linear_to_lora_layers(model, 2, {"rank": 4, "scale": 4.0, "dropout": 0.0})
        model.update(tree_map(lambda p: p + 0.05 * mx.random.normal(p.shape), model.trainable_parameters()))
    model.train()
    mx.eval(model.parameters())
    return model


@dataclass(frozen=True)
class Piece:
    tokens: np.ndarray
    spans: tuple[tuple[int, int, float], ...]
    cluster: str = ""


def samples():
    """Conversations of two turns behind one prompt, with weights of their own."""
    r = np.random.default_rng(3)
    tools = r.integers(10, 120, 40).tolist()
    out = []
    for n in range(3):
        first = tools + r.integers(10, 120, 8 + 5 * n).tolist()
        second = first + r.integers(10, 120, 9 + n).tolist()
        for tokens, weight in ((first, 1.0), (second, 0.5)):
            out.append(Piece(np.array(tokens, np.int32), ((len(tokens) - 5, len(tokens), weight),)))
    return out


def the_step(share, given=None):
    given = given or samples()
    planner = Planner(given, batch_size=len(given), max_batch_tokens=4096, share=share, seed=0)
    return planner.step(0)


def plainly(model, given):
    """Loss and gradients with all logits of each sample by itself."""
    total, grads = mx.array(0.0), None
    for s in given:
        tokens = mx.array(s.tokens[None])

        def one(tokens=tokens, spans=s.spans):
            each = nn.losses.cross_entropy(model(tokens[:, :-1]).astype(mx.float32), tokens[:, 1:])[0]
            return sum(each[a - 1 : b - 1].sum() * w for a, b, w in spans)

        value, new = nn.value_and_grad(model, one)()
        total, grads = total + value, added(grads, new)
    return total.item(), grads


def grouped(model, seam, step):
    total, grads = mx.array(0.0), None
    for group in step.parts[0]:
        value, new = nn.value_and_grad(model, lambda g: group_loss(seam, model, g))(group)
        total, grads = total + value, added(grads, new)
        mx.eval(total, grads)
    return total.item(), grads


def difference(a, b):
    """Largest difference of two trees, relative to the largest value of each tensor."""
    a, b = dict(tree_flatten(a)), dict(tree_flatten(b))
    assert a.keys() == b.keys() and a
    assert max(mx.abs(v).max().item() for v in a.values()) > 0
    return max((mx.abs(a[k] - b[k]).max() / (mx.abs(a[k]).max() + 1e-9)).item() for k in a)


@pytest.mark.parametrize("kind", PLAIN)
def test_gradients_are_those_of_the_plain_path(kind):
    model = build(kind, **PLAIN[kind])
    seam = examine(model)
    assert seam.gathers and seam.shares and seam.notes == ("shared prompt prefixes are computed once",)
    step = the_step(True)
    assert any(g.prefix.size for g in step.parts[0]) and step.computed < step.given / 2
    value, grads = grouped(model, seam, step)
    wanted, plain = plainly(model, samples())
    assert value == pytest.approx(wanted, rel=1e-5)
    assert difference(plain, grads) < 1e-5


@pytest.mark.parametrize("kind", PLAIN)
def test_checkpointed_layers_give_the_same_gradients_and_are_as_before_afterwards(kind):
    model = build(kind, **PLAIN[kind])
    seam, step = examine(model), the_step(True)
    before, classes = grouped(model, seam, step), [type(layer) for layer in model.layers]
    call = classes[0].__call__
    with checkpointed(model):
        assert type(model.layers[0]) is not classes[0]
        inside = grouped(model, seam, step)
    assert [type(layer) for layer in model.layers] == classes and classes[0].__call__ is call
    assert inside[0] == pytest.approx(before[0], rel=1e-6)
    assert difference(before[1], inside[1]) < 1e-5
    assert difference(before[1], grouped(model, seam, step)[1]) == 0


def test_checkpointing_takes_less_memory():
    model = build("qwen3", lora=False, num_hidden_layers=8)
    seam = examine(model)
    long = [Piece(np.arange(1, 301, dtype=np.int32) % 120, ((295, 300, 1.0),))]
    step = the_step(True, long)

    def peak():
        mx.clear_cache()
        mx.reset_peak_memory()
        grouped(model, seam, step)
        return mx.get_peak_memory()

    kept = peak()
    with checkpointed(model):
        again = peak()
    assert again < 0.7 * kept


def test_full_training_has_the_same_gradients():
    model = build("qwen3", lora=False)
    value, grads = grouped(model, examine(model), the_step(True))
    wanted, plain = plainly(model, samples())
    assert value == pytest.approx(wanted, rel=1e-5) and difference(plain, grads) < 1e-5


def test_logits_in_pieces_are_the_same(monkeypatch):
    model = build("llama", tie_word_embeddings=False)
    seam, step = examine(model), the_step(True)
    whole = grouped(model, seam, step)
    monkeypatch.setattr(train_loss, "LOGITS_AT_ONCE", 128 * 4)
    assert train_loss._pieces(seam, model, 30) == 8
    parted = grouped(model, seam, step)
    assert parted[0] == pytest.approx(whole[0], rel=1e-6) and difference(whole[1], parted[1]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "more", "gathers", "said"),
    [
        ("mamba", SSM, False, "other state than plain attention"),
        ("llama", WINDOW, True, "other state than plain attention (RotatingKVCache)"),
        ("gemma2", {"final_logit_softcapping": 1.0}, False, "its head does more than project"),
    ],
)
def test_models_that_cannot_be_taken_apart_are_computed_whole(kind, more, gathers, said):
    model = build(kind, lora=False, **more)
    seam = examine(model)
    assert seam.gathers is gathers and any(said in note for note in seam.notes)
    step = the_step(seam.shares)
    value, grads = grouped(model, seam, step)
    wanted, plain = plainly(model, samples())
    assert value == pytest.approx(wanted, rel=1e-4) and difference(plain, grads) < 1e-4


def test_sharing_is_switched_off_and_demanded():
    assert examine(build("qwen3"), "off").notes == ("shared prompt prefixes are computed anew: switched off",)
    with pytest.raises(ConfigError, match="cannot share a prefix"):
        examine(build("mamba", lora=False, **SSM), "on")


def test_examining_changes_nothing():
    model = build("qwen3")
    key = mx.array(mx.random.state[0])
    before = dict(tree_flatten(tree_map(mx.array, model.parameters())))
    examine(model)
    assert model.training and mx.array_equal(key, mx.random.state[0])
    assert all(mx.array_equal(v, before[k]) for k, v in tree_flatten(model.parameters()))


def test_the_mean_is_over_weights():
    model = build("qwen3")
    seam, step = examine(model), the_step(True)
    mean = mean_loss(seam, model, step.parts[0], step.weight)
    assert mean == pytest.approx(plainly(model, samples())[0] / (5 * 3 * 1.5), rel=1e-5)
