"""A float model → n bits.

    punie-mlx quantize --model runs/fused --out runs/5bit --bits 5 --group-size 64

Each group of weights in a row shares one float16 scale and bias, so 5 bits at group 64 cost 5.5 bits a weight. A
layer whose width is not divisible by the group size stays as it is, and the report says so.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py): `utils.quantize_model`, which skips such layers
without a word, and `utils.compute_bits_per_weight`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten

from punie_mlx import identity
from punie_mlx.errors import ConfigError
from punie_mlx.export import store
from punie_mlx.files import atomic_dir, refuse_existing, refuse_same
from punie_mlx.weights import load_lazily

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize` made; `skipped` names each layer that kept its float16 weights, and why."""

    out: Path
    bits: int
    group_size: int
    bits_per_weight: float
    layers: int
    skipped: dict[str, str]
    bytes: int
    fingerprint: str


def check_settings(bits: int, group_size: int) -> None:
    """Raise `ConfigError` for bits or a group size that MLX has no kernel for."""
    if bits not in BITS:
        raise ConfigError(f"--bits {bits}: MLX quantizes to {', '.join(map(str, BITS))} bits, choose one of these")
    if group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(f"--group-size {group_size}: MLX has groups of {sizes} weights, choose one of these")


def quantize(
    model: Path | str, out: Path | str, *, bits: int = 5, group_size: int = 64, overwrite: bool = False
) -> QuantizeReport:
    """Write `model` in `bits` bits to the directory `out`.

    Raises:
        ConfigError: bits or group size that MLX does not have, or a model that is quantized already.
        ModelError: no model directory.
        OutputError: `out` exists and `overwrite` is false.
        DiskError: the disk has no room for the result.
    """
    from mlx_lm.utils import compute_bits_per_weight, quantize_model

    model, out = Path(model), Path(out)
    check_settings(bits, group_size)
    refuse_same(out, model)
    refuse_existing(out, overwrite)
    source = identity.fingerprint(model)
    config = store.read_config(model)
    if store.is_quantized(config):
        raise ConfigError(f"{model} is quantized already: quantize the float16 model that punie-mlx fuse writes")
    loaded = load_lazily(model)
    loaded.update(tree_unflatten(list(store.half(loaded).items())))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its figure; the report carries ours
        loaded, config = quantize_model(loaded, store.without_quantization(config), group_size, bits)
    layers, skipped = _outcome(loaded, group_size)
    if not layers:
        raise ConfigError(f"no layer of {model} has a width divisible by {group_size}: try --group-size 32")
    bits_per_weight = round(compute_bits_per_weight(loaded), 3)
    weights = store.half(loaded)
    del loaded
    store.require_room(out, weights, model, f"the {bits}-bit model")
    with atomic_dir(out, overwrite=overwrite) as tmp:
        store.write_model(tmp, weights, config, model)
        made = identity.fingerprint(tmp)
        settings = {"bits": bits, "group_size": group_size, "mode": "affine"}
        more = {"fingerprint": made, "bits_per_weight": bits_per_weight, "layers": layers, "skipped": skipped}
        identity.write_manifest(
            tmp, identity.manifest("quantized", inputs={"model": source}, settings=settings, **more)
        )
    size = store.size_bytes(out)
    return QuantizeReport(out, bits, group_size, bits_per_weight, layers, skipped, size, made)


def _outcome(model: nn.Module, group_size: int) -> tuple[int, dict[str, str]]:
    """How many layers were quantized, and name → reason of those that could have been and were not."""
    layers, skipped = 0, {}
    for name, module in model.named_modules():
        if hasattr(module, "scales"):
            layers += 1
        elif hasattr(module, "to_quantized"):
            width = _width(module)
            divisible = width % group_size == 0
            why = "the architecture keeps it" if divisible else f"width {width} is not divisible by {group_size}"
            skipped[name] = why
    return layers, skipped


def _width(module: Any) -> int:
    return module.weight.shape[-1]
