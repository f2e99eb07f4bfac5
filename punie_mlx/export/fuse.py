"""Adapter + model → one float16 model.

    punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused

The delta is added (and DoRA's rows are scaled) in float32, and the result is rounded once, to float16. A quantized base
is dequantized first: put back on its 4-bit grid, most of a LoRA delta would vanish. A full adapter holds whole weights,
which take the place of the model's. With `--base ORIGINAL` the delta goes onto the 16-bit model that the quantized one
was made from (`original.py` makes sure that it is that one).

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                                     | used for                                   |
|----------------------------------------------------------|--------------------------------------------|
| `tuner.lora.{LoRALinear, LoRASwitchLinear, LoRAEmbedding}` | `lora_a`, `lora_b`, `scale`, what they wrap |
| `tuner.dora.{DoRALinear, DoRAEmbedding}`                 | the same, and `m`: the length of each row  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from punie_mlx import identity, weights
from punie_mlx.errors import ModelError
from punie_mlx.export import lineage, store
from punie_mlx.export.original import check_original
from punie_mlx.export.retention import DEFAULT_BITS, Change, check_bits, measure
from punie_mlx.files import atomic_dir, refuse_existing, refuse_same

GROUP_SIZE = 64  # at which retention is measured


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` made."""

    out: Path
    layers: int  # how many layers took a delta
    bytes: int
    fingerprint: str
    retention: dict[str, Any] | None = None
    """What is left of the adapter in each layer, as in the manifest; None where it was not asked for."""
    original: dict[str, Any] | None = None
    """How the 16-bit base compares with the quantized model; None without one."""


def fuse(
    model: Path | str,
    adapter: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    force_base: bool = False,
    retention: Sequence[int] | None = DEFAULT_BITS,
    overwrite: bool = False,
) -> FuseReport:
    """Write `model` with `adapter` added to its weights to the directory `out`, in float16.

    `base` is the 16-bit original of a quantized `model`: the adapter is added to it instead. `retention` names the
    bits at which to measure what is left of the adapter; None leaves that out.

    Raises:
        ModelError: no model, no adapter, an adapter that was trained on another model, or a base of another model.
        ConfigError: bits that MLX does not have.
        OutputError: `out` exists and `overwrite` is false, or what was written cannot be read back.
        DiskError: the disk has no room for the result.
    """
    model, adapter, out = Path(model), Path(adapter), Path(out)
    onto = model if base is None else Path(base)
    refuse_same(out, model, adapter, onto)
    refuse_existing(out, overwrite)
    if retention is not None:
        check_bits(retention, GROUP_SIZE)
    inputs = {"model": identity.check_adapter(model, adapter)}
    original = None
    if base is not None:
        inputs["base"] = identity.fingerprint(onto)
        original = check_original(model, onto, force=force_base)
    inputs["adapter"] = identity.hash_files(identity.adapter_files(adapter), adapter)
    kept = None if retention is None else measure(changes(onto, adapter), retention, GROUP_SIZE)
    layers, tensors = _fused(onto, adapter)
    store.require_room(out, tensors, model, "the fused float16 model")
    told: dict[str, Any] = {"layers": layers}
    told |= {k: v for k, v in {"retention": kept, "original": original}.items() if v is not None}
    came_from = {"model": model, "adapter": adapter} | ({} if base is None else {"base": onto})
    with atomic_dir(out, overwrite=overwrite) as tmp:
        files = store.write_model(tmp, tensors, store.without_quantization(store.read_config(onto)), model)
        made = identity.fingerprint(tmp)
        told |= {"fingerprint": made, "files": files, "sources": lineage.sources(**came_from)}
        settings = {"dtype": "float16"}
        identity.write_manifest(tmp, identity.manifest("fused", inputs=inputs, settings=settings, **told))
    return FuseReport(out, layers, store.size_bytes(out), made, kept, original)


def _fused(model: Path, adapter: Path) -> tuple[int, dict[str, mx.array]]:
    """How many layers take a delta, and the tensors of the fused model, lazily. Raises `ModelError`."""
    loaded = store.load_with_adapter(model, adapter)
    layers = len(_whole_layers(adapter)) if store.adapter_method(adapter) == "full" else 0
    layers += merge(loaded)
    if not layers:
        raise ModelError(f"the adapter {adapter} changes no layer of this model: train it again")
    return layers, store.half(loaded)


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


def _whole_layers(adapter: Path) -> dict[str, Any]:
    """The modules that a full adapter holds weights of, each with its tensors by name."""
    found: dict[str, Any] = {}
    tensors: Any = mx.load(str(adapter / "adapters.safetensors"))
    for name, value in tensors.items():
        found.setdefault(name.rpartition(".")[0], {})[name] = value
    return found


# ---- what the retention is measured of ----


def changes(model: Path, adapter: Path) -> Iterator[Change]:
    """Each weight that `adapter` changes, as one at a time is needed: what went before is let go of."""
    loaded = store.load_with_adapter(model, adapter)
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in loaded.named_modules() if type(m).__name__ in DELTAS]
    del loaded  # it would hold the weights of every layer that was looked at
    while adapted:
        name, module = adapted.pop(0)
        wrapped = module[DELTAS[type(module).__name__][0]]
        yield Change(name, lambda m=wrapped: weights.dense(m).weight, lambda m=module: _merged(m)["weight"])
    if store.adapter_method(adapter) == "full":
        before = dict(tree_flatten(weights.load_lazily(model).parameters()))
        before = {name: before[name] for names in _whole_layers(adapter).values() for name in names}
        for layer in _whole_layers(adapter).values():
            for name, value in layer.items():
                own = before.pop(name)
                yield Change(name.removesuffix(".weight"), lambda w=own: w, lambda w=value: w)
