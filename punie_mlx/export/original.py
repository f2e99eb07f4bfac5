"""Is this 16-bit model the one that a quantized model was made from?

    punie-mlx fuse --model 4BIT --base ORIGINAL --adapter runs/adapter --out runs/fused

Rounding leaves traces that another model cannot have. Each quantized layer is compared with the original, rounded here
in the same way (bits, group size, mode, type of the scales):

- its error, ‖dequantized - original‖ / ‖original‖, must be what that rounding explains;
- its codes must be the ones that rounding gives. Calibration that tunes scales only, as DWQ does, keeps them. A model
  that was trained a little further from the same base has hardly more error, and other codes.

Layers that were not quantized must be the original's. Quantizers that choose other codes (GPTQ, AWQ) cannot be told
from another model here, so they are refused too; the figures are shown, and `--force-base` goes on.

One layer of each model is in memory at a time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from punie_mlx import weights
from punie_mlx.errors import ModelError
from punie_mlx.export import store

EXPLAINED = 1.5
"""How many times the error of plain rounding a layer may have; tuned scales move it by a few percent."""
SAME_CODES = 0.99
"""The part of a layer's codes that must be equal; another machine may round some ties the other way."""
SAME_WEIGHTS = 0.005
"""Relative error of a layer that was not quantized; bfloat16 against float16 is 0.002."""
FREE = frozenset(
    {
        *store.QUANTIZATION_KEYS, "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache",
        "architectures", "eos_token_id", "bos_token_id", "pad_token_id",
    }
)  # fmt: skip
"""Keys of a config that may differ between a model and its quantization."""


@dataclass(frozen=True)
class Layer:
    """How one layer of the quantized model compares with the original."""

    name: str
    error: float
    expected: float
    """What rounding here gives; 0 for a layer that was not quantized."""
    codes: float | None
    """The part of the codes that is the same; None for a layer that was not quantized."""

    @property
    def explained(self) -> bool:
        if self.codes is None:
            return self.error <= SAME_WEIGHTS
        return self.error <= EXPLAINED * self.expected and self.codes >= SAME_CODES


def check_original(model: Path, base: Path, *, force: bool = False) -> dict[str, Any]:
    """Compare the quantized `model` with `base`; what a manifest tells of it.

    Raises `ModelError` where `base` cannot be its original; with `force` only where the shapes differ.
    """
    config, original = store.read_config(model), store.read_config(base)
    if not store.is_quantized(config):
        raise ModelError(f"{model} is not quantized, so it is its own original: leave out --base")
    if store.is_quantized(original):
        raise ModelError(f"--base {base} is quantized itself: give the 16-bit model that {model} was made from")
    if different := _different(config, original):
        raise ModelError(
            f"--base {base} has another architecture than {model} ({'; '.join(different[:3])}): "
            "give the model that it was quantized from"
        )
    layers = _compare(model, base)
    wrong = [layer for layer in layers if not layer.explained]
    told = _told(layers) | {"forced": bool(wrong)}
    if wrong and not force:
        raise ModelError(
            f"--base {base} is not the original of {model}: {len(wrong)} of {len(layers)} layers differ by more than "
            f"rounding explains ({'; '.join(map(_figures, wrong[:3]))}). Give the model that it was quantized from, or "
            "pass --force-base if it was quantized by other means than MLX's"
        )
    return told


def _different(config: Mapping[str, Any], original: Mapping[str, Any], place: str = "") -> list[str]:
    """What both configs say, and not the same. Keys of only one of them are left to the shapes."""
    found = []
    for key in sorted((config.keys() & original.keys()) - FREE):
        one, other = config[key], original[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _different(one, other, f"{place}{key}.")
        elif one != other:
            found.append(f"{place}{key}: {one} and {other}")
    return found


def _compare(model: Path, base: Path) -> list[Layer]:
    ours, theirs = _modules(model), _modules(base)
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise ModelError(f"--base {base} has no layer {missing[0]}: give the model that {model} was quantized from")
    found: list[Layer] = []
    for name in list(ours):
        module, original = ours.pop(name), theirs.pop(name)  # their weights go with them
        if hasattr(module, "scales"):
            found.append(_quantized(name, module, original, model, base))
        else:
            found += _plain(name, module, original, model, base)
    return found


def _modules(directory: Path) -> dict[str, Any]:
    """name → module of those that hold weights themselves, which nothing else keeps hold of."""
    loaded = weights.load_lazily(directory)
    return {name: module for name, module in loaded.named_modules() if _own(module)}


def _own(module: nn.Module) -> dict[str, mx.array]:
    return {k: v for k, v in module.items() if isinstance(v, mx.array) and not k.startswith("_")}


def _quantized(name: str, module: Any, original: Any, model: Path, base: Path) -> Layer:
    found, wanted = weights.dense(module).weight, original.weight
    _same_shape(name, found, wanted, model, base)
    wanted = wanted.astype(module.scales.dtype if module.mode == "affine" else wanted.dtype)
    codes, *rest = mx.quantize(wanted, module.group_size, module.bits, module.mode)
    rounded = mx.dequantize(codes, *rest, group_size=module.group_size, bits=module.bits, mode=module.mode)
    wanted = wanted.astype(mx.float32)
    return Layer(name, _error(found, wanted), _error(rounded, wanted), _same_codes(module, codes))


def _plain(name: str, module: Any, original: Any, model: Path, base: Path) -> list[Layer]:
    found = []
    for key, value in _own(module).items():
        other = original.get(key)
        if other is not None:
            _same_shape(f"{name}.{key}", value, other, model, base)
            found.append(Layer(f"{name}.{key}", _error(value, other.astype(mx.float32)), 0.0, None))
    return found


def _same_shape(name: str, found: mx.array, wanted: mx.array, model: Path, base: Path) -> None:
    if found.shape != wanted.shape:
        raise ModelError(
            f"{name} is {_times(wanted)} in --base {base} and {_times(found)} in {model}: "
            "give the model that it was quantized from"
        )


def _times(array: mx.array) -> str:
    return " × ".join(map(str, array.shape))


def _error(found: mx.array, wanted: mx.array) -> float:
    length: Any = mx.linalg.norm(wanted)
    off: Any = mx.linalg.norm(found.astype(mx.float32) - wanted)
    return off.item() / length.item() if length.item() else 0.0


def _same_codes(module: Any, wanted: mx.array) -> float:
    """The part of a layer's codes that equal those in `wanted`, packed alike."""
    found, bits, size = module.weight, module.bits, module.group_size
    if found.shape != wanted.shape:
        return 0.0
    if module.mode == "affine":  # with scales of 1 and biases of 0 the weights are the codes, however they are packed
        ones, zeros = mx.ones(module.scales.shape), mx.zeros(module.scales.shape)
        same = mx.dequantize(found, ones, zeros, size, bits) == mx.dequantize(wanted, ones, zeros, size, bits)
    else:  # 4 or 8 bits, which never straddle two words
        different = (found ^ wanted)[..., None] >> mx.arange(0, 32, bits, dtype=mx.uint32)
        same = different & ((1 << bits) - 1) == 0
    part: Any = same.astype(mx.float32).mean(axis=-1).mean()
    return part.item()


def _told(layers: list[Layer]) -> dict[str, Any]:
    rounded = [layer for layer in layers if layer.codes is not None]
    worst = max(rounded, key=lambda layer: layer.error / layer.expected if layer.expected else 0.0)
    return {
        "layers": len(layers),
        "median_error": round(statistics.median(layer.error for layer in rounded), 5),
        "median_expected": round(statistics.median(layer.expected for layer in rounded), 5),
        "least_same_codes": round(min(layer.codes or 0.0 for layer in rounded), 5),
        "worst": {k: v if isinstance(v, str) else round(v or 0.0, 5) for k, v in asdict(worst).items()},
    }


def _figures(layer: Layer) -> str:
    if layer.codes is None:
        return f"{layer.name}: error {layer.error:.2%}, and it was never rounded"
    return f"{layer.name}: error {layer.error:.2%} of {layer.expected:.2%} expected, {layer.codes:.1%} same codes"
