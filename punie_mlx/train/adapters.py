"""What of a model is trained: LoRA, DoRA, or the weights of its last layers themselves.

The layers are mlx_lm's, so that stock `mlx_lm.load(base, adapter_path=…)` reads what is saved. LoRA: Hu et al. 2021;
DoRA: Liu et al. 2024. mlx_lm's DoRA cannot do everything that its LoRA can [measured, mlx-lm 0.32.2]: it counts the
columns of a 3-, 5- or 6-bit layer as `packed * (32 // bits)` and crashes in the first step, and knows neither experts
nor quantized embeddings. `check` says so before anything is trained.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                                   | used for                                            |
|--------------------------------------------------------|-----------------------------------------------------|
| `tuner.utils.linear_to_lora_layers(…, use_dora)`       | LoRA and DoRA layers in the last n layers           |
| its `keys`: module paths inside a layer                | `targets`                                           |
| its choice where `keys` is absent                      | every linear, embedding and expert layer of a layer |
| `models.switch_layers.{SwitchLinear, QuantizedSwitchLinear}` | the expert layers of a mixture                |
| adapter_config.json: `fine_tune_type`, `num_layers`, `lora_parameters` | what `load(adapter_path=…)` reads   |
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from punie_mlx.errors import ConfigError
from punie_mlx.train.config import TrainConfig, nearest


def check(model: nn.Module, config: TrainConfig) -> None:
    """Raise `ConfigError` where `config.method` or `config.targets` cannot work on `model`.

    Give it the model as its directory has it: what was made dense to compute on a CPU does not tell any more that stock
    mlx_lm, or a Mac, could not load the adapter.
    """
    chosen = _chosen(model, config)
    refusals = {"dora": _dora_refuses, "full": _full_refuses}
    if refuses := refusals.get(config.method):
        for modules, names in chosen:
            for name in names:
                if why := refuses(modules[name]):
                    raise ConfigError(f"the method {config.method} cannot train {name}: {why}")


def attach(model: nn.Module, config: TrainConfig) -> None:
    """Freeze `model` and make trainable in place what `config` says; `config.seed` decides the initial values.

    lora, dora: adapters on the modules of the last `config.layers` layers that `config.targets` name. They change
    nothing until the first step: LoRA's b is 0, and DoRA's m is the length of each row.
    full: the weights of those modules themselves (norms, too, where there are no targets), in float32, since Adam's
    steps vanish in half precision. Embeddings, the last norm and the head stay as they are, as in mlx_lm.

    Raises `ConfigError` for targets that match nothing, and as `check`.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    check(model, config)
    mx.random.seed(config.seed)
    model.freeze()
    if config.method == "full":
        for modules, names in _chosen(model, config):
            for module in (modules[name] for name in names):
                module.unfreeze()
                module.set_dtype(mx.float32)
        return
    parameters: dict[str, Any] = lora_parameters(config)
    if config.targets:
        parameters["keys"] = {name for _, names in _chosen(model, config) for name in names}
    linear_to_lora_layers(model, layer_count(model, config), parameters, use_dora=config.method == "dora")


def describe(model: nn.Module, config: TrainConfig, base_fingerprint: str = "") -> dict[str, Any]:
    """The content of adapter_config.json for a `model` that went through `attach`, as stock mlx_lm loads it."""
    content: dict[str, Any] = {"fine_tune_type": config.method, "num_layers": layer_count(model, config)}
    if config.method != "full":
        content["lora_parameters"] = lora_parameters(config)
        if config.targets:
            layers = _layers(model, config)
            keys = {name for layer in layers for name, m in layer.named_modules() if "lora_a" in m}
            content["lora_parameters"]["keys"] = sorted(keys)
    if base_fingerprint:
        content["punie"] = {"base_fingerprint": base_fingerprint}
    return content


def trainable(model: nn.Module) -> dict[str, mx.array]:
    """The arrays that are trained, by name: what adapters.safetensors holds."""
    flat: Any = tree_flatten(model.trainable_parameters())
    return dict(flat)


def layer_count(model: nn.Module, config: TrainConfig) -> int:
    """How many layers are trained."""
    there = len(model.layers)
    return there if config.layers == -1 else min(config.layers, there)


def lora_parameters(config: TrainConfig) -> dict[str, Any]:
    """LoRA's settings in mlx_lm's words."""
    return {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}


# ---- which modules ----


def _layers(model: nn.Module, config: TrainConfig) -> list[nn.Module]:
    return list(model.layers)[-layer_count(model, config) :]


def _chosen(model: nn.Module, config: TrainConfig) -> list[tuple[dict[str, nn.Module], list[str]]]:
    """For each layer that is trained: its modules by path, and the paths of those that `config` chooses."""
    eligible = _has_weights if config.method == "full" else _is_adaptable
    found = []
    for layer in _layers(model, config):
        modules = {name: m for name, m in layer.named_modules() if eligible(m)}
        found.append((modules, [n for n in modules if not config.targets or _matches(n, config.targets)]))
    for target in config.targets:
        if not any(_matches(name, (target,)) for modules, _ in found for name in modules):
            raise ConfigError(_no_such_target(target, model, config, {n for modules, _ in found for n in modules}))
    if not any(names for _, names in found):
        raise ConfigError(f"the last {len(found)} layers of this model hold nothing that {config.method} can train")
    return found


def _matches(name: str, targets: Iterable[str]) -> bool:
    """Whether a module path, or the end of it, is one of `targets`, each of which may be a pattern."""
    parts = name.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(end, target) for target in targets for end in ends)


def _no_such_target(target: str, model: nn.Module, config: TrainConfig, names: set[str]) -> str:
    eligible = _has_weights if config.method == "full" else _is_adaptable
    elsewhere = {name for layer in model.layers for name, m in layer.named_modules() if eligible(m)}
    if any(_matches(name, (target,)) for name in elsewhere):
        count = layer_count(model, config)
        return f"the target {target!r} stands only in layers before the last {count}: raise layers, or leave it out"
    near = nearest(target, names | {name.rpartition(".")[2] for name in names})
    hint = f"did you mean {near}? " if near else ""
    return f"the target {target!r} is no module of a layer: {hint}They are {', '.join(sorted(names))}"


def _is_adaptable(module: nn.Module) -> bool:
    """Whether mlx_lm puts an adapter on it."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    linear = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding, SwitchLinear, QuantizedSwitchLinear)
    return isinstance(module, linear) or hasattr(module, "to_lora")


def _has_weights(module: Mapping[str, Any]) -> bool:
    return any(isinstance(value, mx.array) and not name.startswith("_") for name, value in module.items())


def _dora_refuses(module: nn.Module) -> str:
    if isinstance(module, nn.QuantizedLinear) and 32 % module.bits:
        return (
            f"mlx_lm's DoRA miscounts the columns of a {module.bits}-bit layer and crashes: choose the method lora, "
            "or a base in 4, 8 or 16 bits"
        )
    if not isinstance(module, nn.Linear | nn.QuantizedLinear | nn.Embedding):
        name = type(module).__name__
        return f"mlx_lm has no DoRA for a {name}: choose the method lora, or targets without it"
    return ""


def _full_refuses(module: Any) -> str:
    if "scales" in module:
        return "quantized weights have no gradient: choose the method lora, or a base in 16 bits (punie-mlx fuse)"
    return ""
