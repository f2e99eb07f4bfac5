"""The estimate against what MLX reports, and the settings that it advises."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import _get_classes

from punie_mlx import hardware
from punie_mlx.errors import ConfigError
from punie_mlx.train import adapters, loss
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loop import compiling
from punie_mlx.train.memory import Layer, Profile, Shape, advice, estimate, estimate_shape, profile_of
from punie_mlx.train.plan import Group

QWEN = {
    "model_type": "qwen3", "hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6, "vocab_size": 1024,
    "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
MIXTURE = QWEN | {
    "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "moe_intermediate_size": 128, "norm_topk_prob": True,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 704,
    "num_attention_heads": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "vocab_size": 4096, "rope_theta": 1e4,
    "tie_word_embeddings": False,
}  # fmt: skip
GB = 10**9


def network(config: dict, settings: TrainConfig) -> nn.Module:
    mx.random.seed(0)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    adapters.attach(model, settings)
    model.train()
    mx.eval(model.parameters())
    return model


def group(shape: Shape) -> Group:
    """Random tokens of that shape."""
    random = np.random.default_rng(0)
    places = np.sort(random.permutation(shape.rows * shape.width)[: shape.targets])
    rows, cols = (part.astype(np.int32) for part in np.divmod(places, shape.width))
    prefix, suffix, targets = (
        random.integers(5, 1000, size).astype(np.int32)
        for size in (shape.prefix, (shape.rows, shape.width), shape.targets)
    )
    return Group(prefix, suffix, rows, cols, targets, np.ones(shape.targets, np.float32))


def peak(model: nn.Module, shape: Shape, *, checkpoint: bool) -> int:
    """Bytes that the loss of a group and its gradients take beside the weights."""
    seam = loss.examine(model)
    gradient = nn.value_and_grad(model, lambda *arrays: loss.loss_of_arrays(seam, model, *arrays))
    arrays = loss.as_arrays(group(shape))
    mx.eval(arrays)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with loss.checkpointed(model) if checkpoint else contextlib.nullcontext():
        mx.eval(gradient(*arrays))
    return mx.get_peak_memory() - before


@pytest.mark.parametrize(
    ("config", "settings", "shape"),
    [
        (QWEN, {}, Shape(1, 384, targets=32)),
        (QWEN, {"layers": 1}, Shape(4, 96, prefix=128, targets=64)),
        (QWEN, {"grad_checkpoint": True}, Shape(1, 384, targets=32)),
        (MIXTURE, {}, Shape(2, 128, targets=32)),
        (LLAMA, {"method": "dora", "targets": ("self_attn.*",)}, Shape(2, 96, targets=64)),
    ],
    ids=["qwen", "qwen, one layer, a prefix", "qwen, checkpointed", "mixture", "llama, dora"],
)
def test_the_estimate_is_near_what_mlx_reports(config, settings, shape):
    told = TrainConfig(**settings)
    with compiling("auto"):
        model = network(config, told)
        found = peak(model, shape, checkpoint=told.grad_checkpoint)
    parts = estimate(model, told, [shape]).parts
    beside = sum(size for name, size in parts.items() if name not in ("weights", "optimizer"))
    assert 0.6 < beside / found < 1.7, f"told {beside / 1e6:.1f} MB, found {found / 1e6:.1f} MB"


def test_what_lies_in_memory_is_counted_as_it_lies():
    settings = TrainConfig(layers=1, rank=4, targets=("q_proj",), optimizer="adamw")
    model = network(QWEN, settings)
    trained = 4 * 4 * (192 + 256)
    parts = estimate(model, settings, [Shape(1, 8)]).parts
    assert parts["optimizer"] == 2 * trained and parts["gradients"] == 2 * trained
    assert parts["weights"] == sum(v.nbytes for _, v in nn.utils.tree_flatten(model.parameters()))
    nn.quantize(model, 64, 4)
    assert estimate(model, settings, [Shape(1, 8)]).parts["weights"] < parts["weights"] / 4


def test_half_precision_takes_less_and_dora_keeps_what_it_dequantizes():
    settings = TrainConfig(layers=2, method="dora", targets=("o_proj",))
    model = network(QWEN, settings)
    whole = profile_of(model, settings)
    assert [layer.dense for layer in whole.layers] == [0, 0]
    model.set_dtype(mx.bfloat16)
    half = profile_of(model, settings)
    assert whole.layers[0].token / 2 < half.layers[0].token < whole.layers[0].token
    assert half.layers[0].hidden == 192 * 2 and half.layers[0].pair == 4 * 2
    nn.quantize(model, 64, 4)
    assert profile_of(model, settings).layers[0].dense == 192 * 256 * 2


def test_the_costliest_shape_decides():
    profile = profile_of(network(QWEN, TrainConfig()), TrainConfig())
    long, wide = Shape(1, 2048), Shape(16, 128)  # as many tokens, and more pairs of query and key
    model = network(QWEN, TrainConfig())
    assert estimate(model, TrainConfig(), [wide, long, Shape(1, 8)]).shape == long
    assert estimate_shape(profile, long, TrainConfig()).bytes > estimate_shape(profile, wide, TrainConfig()).bytes


def test_a_shape_is_that_of_its_group():
    shape = Shape(3, 32, prefix=16, targets=7)
    assert Shape.of(group(shape)) == shape
    assert shape.tokens == 112 and shape.pairs == 16 * 16 + 96 * 48


# ---- advice, on a model that no machine here could hold ----

LARGE = Profile(10 * GB, (Layer(10**7, 4e5, 8e3, 64.0, 0),) * 8, 2.0, 150_000, True)
BATCH = Shape(8, 2048, targets=512)


def need(shape: Shape = BATCH, **settings):
    config = TrainConfig(**settings)
    return estimate_shape(LARGE, shape, config), config


def test_nothing_is_said_where_it_fits():
    told, config = need()
    assert advice(told, told.bytes, config) == []


def test_what_is_advised_fits():
    told, config = need()
    lines = advice(told, told.bytes * 6 // 10, config)
    assert lines[0].startswith(f"training needs about {told.bytes / 1e9:.1f} GB (weights 10.0, ")
    assert "max_batch_tokens: 8192 (about " in lines[1] and "grad_checkpoint: true (about" in lines[1]
    fewer = estimate_shape(LARGE, replace(BATCH, rows=4, targets=256), config)
    again = estimate_shape(LARGE, BATCH, replace(config, grad_checkpoint=True))
    assert all(f"(about {e.bytes / 1e9:.1f} GB" in lines[1] and e.bytes < told.bytes * 0.6 for e in (fewer, again))


def test_what_changes_the_result_is_advised_last_and_named():
    told, config = need(Shape(1, 2048, targets=512), grad_checkpoint=True)
    lines = advice(told, told.bytes - 10**7, config)
    assert "max_batch_tokens" not in lines[1] and "grad_checkpoint" not in lines[1]
    assert "layers: 4 (about" in lines[1] and "max_seq_length: 1024 (about" in lines[1]
    assert lines[1].count("which learns otherwise") == 2


def test_a_base_that_is_too_large_is_said():
    told, config = need(Shape(1, 8, targets=4))
    assert "choose a smaller base" in advice(told, 9 * GB, config)[1]


def test_more_than_twice_of_what_is_there_is_refused():
    told, config = need()
    with pytest.raises(ConfigError, match=r"training needs about .* it would fit with "):
        advice(told, told.bytes // 2 - 1, config)
    assert advice(told, told.bytes // 2 + 1, config)


def test_the_memory_of_the_device():
    assert hardware.device_memory() == hardware.memory_bytes() or not hardware.on_cpu()
