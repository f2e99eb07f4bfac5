"""A float model → n bits, all layers alike or some of them wider.

    punie-mlx quantize --model runs/fused --out runs/5bit --bits 5 --group-size 64
    punie-mlx quantize --model runs/fused --out runs/4bit --bits 4 --recipe mixed

Each group of weights in a row shares one float16 scale and bias, so 5 bits at group 64 cost 5.5 bits a weight. A
layer whose width is not divisible by the group size stays as it is, and the report says so.

A mixed recipe gives more bits to the embedding and the output, and to the layers that lose most: those that keep
least of the adapter, by the retention in the manifest of a fused model, or, where there is none, those whose weights
change most. The config names the bits of each such layer, as stock `mlx_lm.load` reads them.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py and test_mlx_lm_quantize.py):

| name                                        | used for                                                    |
|---------------------------------------------|-------------------------------------------------------------|
| `utils.quantize_model`                      | the layers; it skips other widths without a word            |
| its `quant_predicate`, and that of a model  | bits of single layers: `True`, `False` or parameters         |
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from punie_mlx import identity
from punie_mlx.errors import ConfigError
from punie_mlx.export import lineage, store
from punie_mlx.files import atomic_dir, refuse_existing, refuse_same
from punie_mlx.weights import load_lazily, parameter_count

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """Which layers of a model get more bits than the others."""

    wider: Mapping[int, int]
    """Bits of the model → bits of those layers; without an entry the recipe has nothing to give."""
    always: tuple[str, ...] = ()
    """Last parts of the names of layers that are wider in any model."""
    weakest: float = 0.0
    """Which part of the other layers is wider too, those that lose most first."""


UNIFORM = "uniform"
RECIPES: Mapping[str, Recipe] = {
    UNIFORM: Recipe({bits: bits for bits in BITS}),
    "mixed": Recipe({2: 4, 3: 5, 4: 6, 5: 8, 6: 8}, ("lm_head", "embed_tokens"), 0.25),
}


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
    recipe: str = UNIFORM
    wider: dict[str, int] | None = None
    """Layers that have more bits, by name; None where all are alike."""


@dataclass(frozen=True)
class Quantized:
    """A model in few bits that is not written yet."""

    network: nn.Module
    config: dict[str, Any]
    layers: int
    skipped: dict[str, str]
    wider: dict[str, int]
    losses: str
    """By what the layers that lose most were found: retention, weight error, or nothing."""


def check_settings(bits: int, group_size: int, recipe: str = UNIFORM) -> None:
    """Raise `ConfigError` for bits or a group size that MLX has no kernel for, or a recipe that there is not."""
    if bits not in BITS:
        raise ConfigError(f"--bits {bits}: MLX quantizes to {', '.join(map(str, BITS))} bits, choose one of these")
    if group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(f"--group-size {group_size}: MLX has groups of {sizes} weights, choose one of these")
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe}: choose one of {', '.join(RECIPES)}")
    if bits not in RECIPES[recipe].wider:
        widths = ", ".join(map(str, sorted(RECIPES[recipe].wider)))
        raise ConfigError(f"--recipe {recipe} has nothing wider than {bits} bits: choose {widths}, or --recipe uniform")


def quantize(
    model: Path | str,
    out: Path | str,
    *,
    bits: int = 5,
    group_size: int = 64,
    recipe: str = UNIFORM,
    overwrite: bool = False,
) -> QuantizeReport:
    """Write `model` in `bits` bits to the directory `out`.

    Raises:
        ConfigError: bits, group size or recipe that there is not, or a model that is quantized already.
        ModelError: no model directory.
        OutputError: `out` exists and `overwrite` is false.
        DiskError: the disk has no room for the result.
    """
    model, out = Path(model), Path(out)
    refuse_same(out, model)
    refuse_existing(out, overwrite)
    made = in_memory(model, bits=bits, group_size=group_size, recipe=recipe)
    settings = {"bits": bits, "group_size": group_size, "mode": "affine", "recipe": recipe}
    return write(made, model, out, settings, overwrite=overwrite)


def in_memory(model: Path, *, bits: int, group_size: int, recipe: str = UNIFORM) -> Quantized:
    """The model of a directory in few bits, lazily. Raises `ConfigError` and `ModelError`."""
    from mlx_lm.utils import quantize_model

    check_settings(bits, group_size, recipe)
    identity.model_files(model)
    config = store.read_config(model)
    if store.is_quantized(config):
        raise ConfigError(f"{model} is quantized already: quantize the float16 model that punie-mlx fuse writes")
    loaded = load_lazily(model)
    loaded.update(tree_unflatten(list(store.half(loaded).items())))
    wider, losses = _wider(loaded, model, bits, group_size, RECIPES[recipe])
    predicate = _predicate(loaded, wider, group_size) if wider else None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its figure; the report carries ours
        loaded, config = quantize_model(
            loaded, store.without_quantization(config), group_size, bits, quant_predicate=predicate
        )
    layers, skipped = _outcome(loaded, group_size)
    if not layers:
        raise ConfigError(f"no layer of {model} has a width divisible by {group_size}: try --group-size 32")
    return Quantized(loaded, config, layers, skipped, wider, losses)


def write(
    made: Quantized,
    model: Path,
    out: Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    more: Mapping[str, Any] | None = None,
) -> QuantizeReport:
    """Write what was made of the directory `model` to `out`; its network is used up.

    `settings` hold at least bits, group_size and recipe; `more` goes into the manifest. Raises as `quantize` does.
    """
    bits, group_size, recipe = settings["bits"], settings["group_size"], settings["recipe"]
    weights = store.half(made.network)
    weight_bytes = sum(w.nbytes for w in weights.values())
    bits_per_weight = round(8 * weight_bytes / parameter_count(made.network), 3)
    made.network.clear()  # or it would hold each weight after its shard is written
    store.require_room(out, weights, model, f"the {bits}-bit model")
    source = identity.fingerprint(model)
    with atomic_dir(out, overwrite=overwrite) as tmp:
        files = store.write_model(tmp, weights, made.config, model)
        print_of = identity.fingerprint(tmp)
        told = {
            "fingerprint": print_of, "bits_per_weight": bits_per_weight, "weight_bytes": weight_bytes,
            "layers": made.layers, "skipped": made.skipped, "wider": made.wider, "wider_by": made.losses,
            "files": files, "sources": lineage.sources(model=model), **(more or {}),
        }  # fmt: skip
        identity.write_manifest(
            tmp, identity.manifest("quantized", inputs={"model": source}, settings=settings, **told)
        )
    size = store.size_bytes(out)
    return QuantizeReport(
        out, bits, group_size, bits_per_weight, made.layers, made.skipped, size, print_of, recipe, made.wider or None
    )


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


# ---- mixed recipes ----


def _predicate(
    model: nn.Module, wider: Mapping[str, int], group_size: int
) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    """What `quantize_model` asks of each layer: what the architecture says, and more bits for the `wider` ones."""
    own = getattr(model, "quant_predicate", None)

    def decide(name: str, module: nn.Module) -> bool | dict[str, Any]:
        said = own(name, module) if own else True
        if name not in wider or said is False:
            return said
        least = said.get("bits", 0) if isinstance(said, dict) else 0
        return {"group_size": group_size, "bits": max(wider[name], least), "mode": "affine"}

    return decide


def _wider(model: nn.Module, source: Path, bits: int, group_size: int, recipe: Recipe) -> tuple[dict[str, int], str]:
    """Layers that get more bits, by name, and by what those that lose most were found."""
    width = recipe.wider[bits]
    if width == bits:
        return {}, "nothing"
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "to_quantized") and _width(module) % group_size == 0
    }
    named = [name for name in layers if name.rpartition(".")[2] in recipe.always]
    others = {name: module for name, module in layers.items() if name not in named}
    losses = _retention_losses(source, bits)
    by = "retention" if losses else "weight error"
    if not losses and recipe.weakest:
        losses = _weight_losses(source, others.keys(), bits, group_size)
    known = sorted((name for name in others if name in losses), key=lambda name: (-losses[name], name))
    chosen = {*named, *known[: round(recipe.weakest * len(others))]}
    return {name: width for name in layers if name in chosen}, by


def _retention_losses(model: Path, bits: int) -> dict[str, float]:
    """How much of the adapter each layer of a fused model loses in `bits` bits: 1 - cosine; {} where none is told."""
    told = (identity.read_manifest(model) or {}).get("retention") or {}
    measured = sorted(told.get("bits") or (), key=lambda b: (abs(int(b) - bits), int(b)))
    if not measured:
        return {}
    key = str(measured[0])
    return {layer["name"]: 1 - layer[key]["cosine"] for layer in told.get("layers", ()) if layer.get(key)}


def _weight_losses(model: Path, names: Collection[str], bits: int, group_size: int) -> dict[str, float]:
    """‖W - Q(W)‖ / ‖W‖ of each layer named, of which one at a time is in memory."""
    losses = {}
    for name, module in load_lazily(model).named_modules():
        if name in names:
            losses[name] = _weight_error(module["weight"], bits, group_size)
            module.clear()
    return losses


def _weight_error(weight: mx.array, bits: int, group_size: int) -> float:
    exact = weight.astype(mx.float32)
    packed = mx.quantize(exact, group_size, bits)
    error = mx.linalg.norm((exact - mx.dequantize(*packed, group_size, bits)).reshape(-1))
    share: Any = (error / mx.maximum(mx.linalg.norm(exact.reshape(-1)), 1e-12)).item()
    return share
