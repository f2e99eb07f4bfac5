"""Adapter + model → one float16 model.

    punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused

The delta is added (and DoRA's rows are scaled) in float32, and the result is rounded once, to float16. A quantized base
is dequantized first: put back on its 4-bit grid, most of a LoRA delta would vanish. A full adapter holds whole weights,
which take the place of the model's.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                                     | used for                                   |
|----------------------------------------------------------|--------------------------------------------|
| `tuner.lora.{LoRALinear, LoRASwitchLinear, LoRAEmbedding}` | `lora_a`, `lora_b`, `scale`, what they wrap |
| `tuner.dora.{DoRALinear, DoRAEmbedding}`                 | the same, and `m`: the length of each row  |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from punie_mlx import identity, weights
from punie_mlx.errors import ModelError
from punie_mlx.export import store
from punie_mlx.files import atomic_dir, refuse_existing, refuse_same


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` made."""

    out: Path
    layers: int  # how many layers took a delta
    bytes: int
    fingerprint: str


def fuse(model: Path | str, adapter: Path | str, out: Path | str, *, overwrite: bool = False) -> FuseReport:
    """Write `model` with `adapter` added to its weights to the directory `out`, in float16.

    Raises:
        ModelError: no model, no adapter, or an adapter that was trained on another model.
        OutputError: `out` exists and `overwrite` is false.
        DiskError: the disk has no room for the result.
    """
    model, adapter, out = Path(model), Path(adapter), Path(out)
    refuse_same(out, model, adapter)
    refuse_existing(out, overwrite)
    base = identity.check_adapter(model, adapter)
    config = store.without_quantization(store.read_config(model))
    loaded = store.load_with_adapter(model, adapter)
    layers = _whole_layers(adapter) if store.adapter_method(adapter) == "full" else 0
    layers += merge(loaded)
    if not layers:
        raise ModelError(f"the adapter {adapter} changes no layer of this model: train it again")
    tensors = store.half(loaded)
    del loaded
    store.require_room(out, tensors, model, "the fused float16 model")
    with atomic_dir(out, overwrite=overwrite) as tmp:
        store.write_model(tmp, tensors, config, model)
        made = identity.fingerprint(tmp)
        inputs = {"model": base, "adapter": identity.hash_files(identity.adapter_files(adapter), adapter)}
        settings = {"dtype": "float16"}
        identity.write_manifest(
            tmp, identity.manifest("fused", inputs=inputs, settings=settings, fingerprint=made, layers=layers)
        )
    return FuseReport(out=out, layers=layers, bytes=store.size_bytes(out), fingerprint=made)


def merge(model: nn.Module) -> int:
    """Replace adapted and quantized layers of `model` by dense ones, lazily; return how many took a delta.

    Raises `ModelError` for an adapted layer of a kind that is not known here.
    """
    merged: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in DELTAS:
            merged.append((name, _merged(module)))
        elif hasattr(module, "fuse"):
            known = ", ".join(DELTAS)
            raise ModelError(f"{name} is a {kind}, which cannot be fused: train LoRA or DoRA adapters ({known})")
    if merged:
        model.update_modules(tree_unflatten(merged))
    weights.densify(model)
    return len(merged)


# kind of layer → what it wraps, and its update in float32, shaped as the weight that it changes
DELTAS: dict[str, tuple[str, Callable[[mx.array, mx.array], mx.array]]] = {
    "LoRALinear": ("linear", lambda a, b: (a @ b).T),
    "LoRASwitchLinear": ("linear", lambda a, b: b @ a),  # experts × out × rank @ experts × rank × in
    "LoRAEmbedding": ("embedding", lambda a, b: a @ b),
    "DoRALinear": ("linear", lambda a, b: (a @ b).T),
    "DoRAEmbedding": ("embedding", lambda a, b: a @ b),
}


def _merged(module: Any) -> nn.Module:
    """The dense float32 layer that does what the adapted `module` does.

    DoRA brings each row of W + delta to the length m (Liu et al. 2024, equation 5); a bias is added after that.
    """
    wrapped, delta = DELTAS[type(module).__name__]
    a, b = module.lora_a.astype(mx.float32), module.lora_b.astype(mx.float32)
    layer: Any = weights.dense(module[wrapped], module.scale * delta(a, b))
    if "m" in module:
        length = mx.linalg.norm(layer.weight, axis=1)
        layer.weight = (module.m.astype(mx.float32) / length)[:, None] * layer.weight
    return layer


def _whole_layers(adapter: Path) -> int:
    """How many modules a full adapter holds weights of."""
    tensors: Any = mx.load(str(adapter / "adapters.safetensors"))
    return len({name.rpartition(".")[0] for name in tensors})
