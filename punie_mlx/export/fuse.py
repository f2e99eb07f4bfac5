"""Adapter + model → one float16 model.

    punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused

The delta is added in float32 and the sum is rounded once, to float16. A quantized base is dequantized first: put
back on its 4-bit grid, most of a LoRA delta would vanish.
"""

from __future__ import annotations

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
    layers = merge(loaded)
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
    """Replace adapted and quantized layers of `model` by dense ones, lazily; return how many took a delta."""
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    merged: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear | LoRASwitchLinear):
            merged.append((name, weights.dense(module.linear, _delta(module))))
        elif isinstance(module, LoRAEmbedding):
            merged.append((name, weights.dense(module.embedding, _delta(module))))
        elif hasattr(module, "fuse"):
            raise ModelError(
                f"{name} is a {type(module).__name__}: only LoRA adapters can be fused, train one of those"
            )
    if not merged:
        raise ModelError("the adapter changes no layer of this model: train it again")
    model.update_modules(tree_unflatten(merged))
    weights.densify(model)
    return len(merged)


def _delta(lora: Any) -> mx.array:
    """The update of one LoRA layer in float32, shaped as the weight that it changes."""
    a, b = lora.lora_a.astype(mx.float32), lora.lora_b.astype(mx.float32)
    if type(lora).__name__ == "LoRALinear":
        return lora.scale * (a @ b).T
    if type(lora).__name__ == "LoRASwitchLinear":
        return lora.scale * (b @ a)  # experts × out × rank @ experts × rank × in
    return lora.scale * (a @ b)
