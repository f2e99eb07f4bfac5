"""Small random models and adapters of real architectures, made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from punie_mlx import identity

DENSE = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-6, "vocab_size": 2048,
    "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip
MIXTURE = DENSE | {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "moe_intermediate_size": 64, "norm_topk_prob": True,
}  # fmt: skip


def save(path: Path, model: nn.Module, config: dict, tokenizer: Path) -> Path:
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(tokenizer / name, path / name)
    return path


@pytest.fixture(scope="session")
def make_model(tiny_base: Path) -> Callable[..., Path]:
    """`make_model(path, quantize=4, **config)`: a random model directory with the embedded tokenizer."""
    from mlx_lm.utils import _get_classes

    def make(path: Path, *, seed: int = 0, quantize: int = 0, dtype: mx.Dtype = mx.float16, **changes) -> Path:
        config = (MIXTURE if changes.get("model_type") == "qwen3_moe" else DENSE) | changes
        model_class, args_class = _get_classes(config)
        mx.random.seed(seed)
        model = model_class(args_class.from_dict(config))
        model.set_dtype(dtype)
        if quantize:
            nn.quantize(model, 64, quantize)
            config |= {"quantization": {"group_size": 64, "bits": quantize}}
            config["quantization_config"] = config["quantization"]
        return save(path, model, config, tiny_base)

    return make


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """`make_adapter(path, model)`: an adapter with random values, as `train` would write it."""
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    def make(path: Path, model: Path, *, size: float = 0.02, signed: bool = True, layers: int = 2) -> Path:
        network, _ = load_model(model)
        network.freeze()
        mx.random.seed(7)
        parameters = {"rank": 4, "scale": 10.0, "dropout": 0.0}
        linear_to_lora_layers(network, layers, parameters)
        values = {k: mx.random.normal(v.shape) * size for k, v in tree_flatten(network.trainable_parameters())}
        path.mkdir(parents=True)
        mx.save_safetensors(str(path / "adapters.safetensors"), values)
        config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
        if signed:
            config["punie"] = {"base_fingerprint": identity.fingerprint(model)}
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return make


@pytest.fixture(scope="session")
def make_trained() -> Callable[..., Path]:
    """`make_trained(path, base, method="dora")`: an adapter as `train` writes it, its values moved by chance."""
    return trained_adapter


def trained_adapter(path: Path, base: Path, **settings) -> Path:
    """An adapter as `train` writes it, its values moved by chance."""
    from mlx.utils import tree_unflatten
    from mlx_lm.utils import load_model

    from punie_mlx.train import adapters
    from punie_mlx.train.config import TrainConfig

    config = TrainConfig(layers=1, rank=4, **settings)
    network, _ = load_model(base)
    adapters.attach(network, config)
    moved = [(k, v + 0.03 * mx.random.normal(v.shape)) for k, v in adapters.trainable(network).items()]
    network.update(tree_unflatten(moved))
    path.mkdir()
    mx.save_safetensors(str(path / "adapters.safetensors"), adapters.trainable(network))
    content = adapters.describe(network, config, identity.fingerprint(base))
    (path / "adapter_config.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models of this folder's tests lie."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def base(models: Path, make_model: Callable[..., Path]) -> Path:
    return make_model(models / "base")


@pytest.fixture(scope="session")
def adapter(models: Path, base: Path, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(models / "adapter", base)
