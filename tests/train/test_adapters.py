"""What is trained of a model: which modules, from which values, and what is refused before it starts."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear
from mlx_lm.utils import _get_classes

from punie_mlx import weights
from punie_mlx.errors import ConfigError
from punie_mlx.train.adapters import attach, check, describe, trainable
from punie_mlx.train.config import TrainConfig

DENSE = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-6, "vocab_size": 128,
    "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip
MIXTURE = DENSE | {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [2], "moe_intermediate_size": 64, "norm_topk_prob": True,
}  # fmt: skip
TOKENS = mx.array([[1, 5, 20, 8]])
QKVO = ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]


def network(config=DENSE, *, bits: int = 0, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """A random model: layers 0 and 1 of the mixture have experts, its last one has none."""
    mx.random.seed(3)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, 64, bits)
    return model


def attached(model: nn.Module, **settings) -> nn.Module:
    attach(model, TrainConfig(**settings))
    return model


def trained(model: nn.Module) -> dict[int, list[str]]:
    """Layer → the modules in it that have something to train."""
    found: dict[int, set[str]] = {}
    for name in trainable(model):
        _, _, layer, *path = name.split(".")
        found.setdefault(int(layer), set()).add(".".join(path[:-1]))
    return {layer: sorted(names) for layer, names in found.items()}


def test_every_linear_layer_of_the_last_layers_as_mlx_lm():
    found = trained(attached(network(), layers=2))
    assert list(found) == [1, 2]
    assert found[1] == found[2] == sorted([*QKVO, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])


@pytest.mark.parametrize(("layers", "wanted"), [(1, 1), (3, 3), (8, 3), (-1, 3)])
def test_as_many_layers_as_asked_or_there_are(layers, wanted):
    model = attached(network(), layers=layers)
    assert len(trained(model)) == wanted
    assert describe(model, TrainConfig(layers=layers))["num_layers"] == wanted


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("q_proj", "v_proj"), ["self_attn.q_proj", "self_attn.v_proj"]),
        (("self_attn.*",), QKVO),
        (("mlp.gate_proj",), ["mlp.gate_proj"]),
        (("*_proj",), sorted([*QKVO, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])),
        (("[qk]_proj",), ["self_attn.k_proj", "self_attn.q_proj"]),
    ],
)
def test_targets_are_names_or_patterns(targets, wanted):
    model = attached(network(), layers=1, targets=targets)
    assert trained(model) == {2: wanted}
    assert isinstance(dict(model.named_modules())[f"model.layers.2.{wanted[0]}"], LoRALinear)
    assert describe(model, TrainConfig(layers=1, targets=targets))["lora_parameters"]["keys"] == wanted


def test_experts_get_an_adapter_too():
    model = attached(network(MIXTURE), layers=-1, targets=("switch_mlp.*",))
    assert list(trained(model)) == [0, 1]
    assert isinstance(model.layers[0].mlp.switch_mlp.up_proj, LoRASwitchLinear)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ("qproj",)}, "'qproj' is no module of a layer: did you mean q_proj? They are mlp.down_proj, mlp"),
        ({"targets": ("q_proj", "attention.*")}, "'attention.*' is no module"),
        ({"targets": ("input_layernorm",)}, "no module of a layer: .*They are mlp.down_proj"),
        ({"targets": ("gadget",), "method": "full"}, "input_layernorm, "),
    ],
)
def test_a_target_that_matches_nothing_is_named(settings, said):
    with pytest.raises(ConfigError, match=said.replace("*'", r"\*'").replace("?", r"\?")):
        attach(network(), TrainConfig(**settings))


def test_a_target_in_earlier_layers_only_is_said():
    with pytest.raises(ConfigError, match="only in layers before the last 1: raise layers"):
        attach(network(MIXTURE), TrainConfig(layers=1, targets=("switch_mlp.*",)))


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_nothing_changes_before_the_first_step(method):
    model = network()
    before = model(TOKENS)
    assert mx.allclose(attached(model, method=method)(TOKENS), before, atol=1e-5)


def test_the_seed_decides_the_first_values():
    def values(seed: int, disturbed: int) -> mx.array:
        model = network()
        mx.random.seed(disturbed)  # whatever was drawn before
        attach(model, TrainConfig(seed=seed))
        return trainable(model)["model.layers.2.mlp.up_proj.lora_a"]

    assert mx.array_equal(values(5, 0), values(5, 1))
    assert not mx.array_equal(values(5, 0), values(6, 0))


def test_dora_trains_the_length_of_each_row_too():
    model = attached(network(bits=4), method="dora", layers=1, targets=("q_proj",))
    layer = model.layers[2].self_attn.q_proj
    assert isinstance(layer, DoRALinear)
    assert {name.rpartition(".")[2] for name in trainable(model)} == {"lora_a", "lora_b", "m"}
    assert mx.isfinite(model(TOKENS)).all().item()


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_dora_on_a_base_that_it_crashes_on_is_refused(bits):
    """Stock mlx_lm begins, and dies in its first step."""
    config = TrainConfig(method="dora")
    model = network(bits=bits)
    with pytest.raises(ConfigError, match=rf"{bits}-bit layer and crashes: choose the method lora, or a base in 4"):
        attach(model, config)
    with pytest.raises(ConfigError, match="crashes"):
        check(model, config)
    weights.densify(model)  # nothing tells any more: why `check` wants the model as it was read
    check(model, config)
    attach(network(bits=bits), TrainConfig(method="lora"))


def test_dora_on_experts_is_refused_unless_the_targets_leave_them_out():
    with pytest.raises(ConfigError, match=r"mlp.switch_mlp.\w+: mlx_lm has no DoRA for a SwitchLinear"):
        attach(network(MIXTURE), TrainConfig(method="dora"))
    assert trained(attached(network(MIXTURE), method="dora", targets=("q_proj",))) == {
        i: ["self_attn.q_proj"] for i in range(3)
    }


def test_full_trains_the_last_layers_whole_and_nothing_else():
    model = attached(network(dtype=mx.bfloat16), method="full", layers=1)
    names = set(trainable(model))
    assert names == {name for name, _ in weights_of(model) if name.startswith("model.layers.2.")}
    assert "model.layers.2.input_layernorm.weight" in names
    assert {value.dtype for value in trainable(model).values()} == {mx.float32}
    assert model.layers[1].mlp.up_proj.weight.dtype == mx.bfloat16


def test_full_trains_targets_only():
    model = attached(network(), method="full", layers=2, targets=("mlp.up_proj", "*_layernorm"))
    wanted = ["input_layernorm", "mlp.up_proj", "post_attention_layernorm"]
    assert trained(model) == {1: wanted, 2: wanted}
    assert "lora_parameters" not in describe(model, TrainConfig(method="full"))


def test_full_on_a_quantized_base_is_refused():
    with pytest.raises(ConfigError, match="quantized weights have no gradient: choose the method lora"):
        attach(network(bits=4), TrainConfig(method="full"))
    attach(network(bits=4), TrainConfig(method="full", targets=("input_layernorm",)))


def test_the_config_beside_the_adapter_names_its_base():
    model = attached(network(), layers=2)
    assert describe(model, TrainConfig(layers=2), "f" * 64) == {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0},
        "punie": {"base_fingerprint": "f" * 64},
    }


def weights_of(model: nn.Module) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())
