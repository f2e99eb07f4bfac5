"""How much of an adapter is left in each layer once its model is rounded: to float16, and to n bits.

    punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused --retention-bits 8,6,5,4

For a layer with the weight W that the adapter is laid over (a quantized one dequantized), the merged weight W + Δ, and
what is in the file in the end, W' (W + Δ in float16; or that, quantized by MLX's affine mode and dequantized):

    ratio  = ‖Δ‖ / ‖W‖                       how large the adapter's change is
    kept   = <W' - W, Δ> / <Δ, Δ>            the part of the change that is still there, along its own direction
    cosine = <W' - W, Δ> / (‖W' - W‖ ‖Δ‖)    how much of all that has changed is the adapter, and not rounding

The reference is W itself, never W rounded in the same way: W is what the adapter learned to correct, so W' - W is what
a user gets in the place of Δ. Against a rounded W the noise that both share would cancel, and a model that is mostly
noise would look whole; and on a base that was in 4 bits before, rounding back to its grid (which keeps next to
nothing) is told apart from rounding elsewhere only because W is on that grid. Read the two figures together: a low
`kept` is an adapter that is gone, a low `cosine` with `kept` near 1 is an adapter under noise that the base has too.

DoRA and full adapters are measured the same: Δ is the merged weight less W. Experts of a mixture are measured over
all of them, and the worst is named. One layer is in memory at a time, in float32, and of that a block of rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from punie_mlx.errors import ConfigError
from punie_mlx.export.quantize import BITS, GROUP_SIZES

DEFAULT_BITS = (8, 6, 5, 4)
FLOAT16 = "float16"
KEPT_LEAST = 0.5
"""Below it a layer is nearer to the base's than to the one that was trained."""
COSINE_LEAST = 0.1
"""Below it the rounding is ten times as long as the change. Rounding spreads over all directions and a low-rank change
lies in few: of a layer 2,048 wide and an adapter of rank 8, 10·√(8/2048) = 0.6 of the change is then noise in the
adapter's own directions, which is as bad as losing half of it."""
BLOCK = 1 << 24  # weights that are rounded at once


@dataclass(frozen=True)
class Change:
    """One weight that an adapter changes: its name, and both states of it, computed when they are asked for."""

    name: str
    before: Callable[[], mx.array]
    after: Callable[[], mx.array]


@dataclass
class _Sums:
    """Inner products of one layer (or expert) in one precision; float64 across blocks."""

    delta: float = 0.0  # <Δ, Δ>
    along: float = 0.0  # <W' - W, Δ>
    moved: float = 0.0  # <W' - W, W' - W>

    def add(self, other: _Sums) -> None:
        self.delta += other.delta
        self.along += other.along
        self.moved += other.moved

    def figures(self) -> dict[str, float]:
        if not self.delta:
            return {"kept": 1.0, "cosine": 1.0}  # there was nothing to lose
        lengths = math.sqrt(self.moved * self.delta)
        return {
            "kept": round(self.along / self.delta, 4),
            "cosine": round(self.along / lengths, 4) if lengths else 0.0,
        }


def check_bits(bits: Sequence[int], group_size: int) -> None:
    """Raise `ConfigError` for widths that MLX cannot quantize to."""
    if wrong := [b for b in bits if b not in BITS]:
        raise ConfigError(f"--retention-bits {wrong[0]}: MLX quantizes to {', '.join(map(str, BITS))} bits")
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group size {group_size}: MLX has groups of {', '.join(map(str, GROUP_SIZES))} weights")


def measure(changes: Iterable[Change], bits: Sequence[int] = DEFAULT_BITS, group_size: int = 64) -> dict[str, Any]:
    """The retention of all `changes`, as it stands in a manifest. Raises `ConfigError`."""
    check_bits(bits, group_size)
    bits = sorted(set(bits), reverse=True)
    layers = [_layer(change, bits, group_size) for change in changes]
    found = {"layers": layers, "bits": list(bits), "group_size": group_size}
    return {**found, "warnings": warnings(found)}


def _layer(change: Change, bits: Sequence[int], group_size: int) -> dict[str, Any]:
    before, after = change.before().astype(mx.float32), change.after().astype(mx.float32)
    mx.eval(before, after)
    quantized = before.ndim > 1 and before.shape[-1] % group_size == 0  # norms and biases never are
    widths: tuple[int, ...] = (0, *(bits if quantized else ()))  # 0: float16
    experts = before.shape[0] if before.ndim == 3 else 1
    sums = [[_Sums() for _ in range(experts)] for _ in widths]
    weight = 0.0
    for expert in range(experts):
        w, w1 = (_rows(a[expert] if before.ndim == 3 else a) for a in (before, after))
        step = max(1, BLOCK // w.shape[1])
        for start in range(0, w.shape[0], step):
            block, block1 = w[start : start + step], w1[start : start + step]
            weight += _dot(block, block)
            for i, width in enumerate(widths):
                sums[i][expert].add(_compare(block, block1, width, group_size))
    figures = {str(width) if width else FLOAT16: _figures(s) for width, s in zip(widths, sums, strict=True)}
    delta = sum(s.delta for s in sums[0])
    told = {"name": change.name, "ratio": _significant(math.sqrt(delta / weight)) if weight else 0.0}
    if not quantized:  # it stays in float16 in a quantized model
        told["quantized"] = False
        figures |= {str(width): figures[FLOAT16] for width in bits}
    return told | figures


def _rows(array: mx.array) -> mx.array:
    return array.reshape(1, -1) if array.ndim < 2 else array


def _figures(experts: Sequence[_Sums]) -> dict[str, Any]:
    """kept and cosine over all experts, and of the one that keeps least where there are several."""
    total = _Sums()
    for one in experts:
        total.add(one)
    figures: dict[str, Any] = total.figures()
    if len(experts) > 1:
        each = [one.figures() for one in experts]
        worst = min(range(len(each)), key=lambda i: (each[i]["kept"], i))
        figures["worst_expert"] = {"expert": worst, **each[worst]}
    return figures


def _compare(before: mx.array, after: mx.array, width: int, group_size: int) -> _Sums:
    rounded = after.astype(mx.float16)
    if width:
        codes, scales, biases = mx.quantize(rounded, group_size, width)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        rounded = mx.dequantize(codes, scales, biases, group_size, width)
    moved, delta = rounded.astype(mx.float32) - before, after - before
    return _Sums(_dot(delta, delta), _dot(moved, delta), _dot(moved, moved))


def _dot(a: mx.array, b: mx.array) -> float:
    """<a, b>, summed by row first: one long sum in float32 would lose digits."""
    total: Any = (a * b).sum(axis=-1).sum()
    return total.item()


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


# ---- what it says ----


def warnings(found: Mapping[str, Any]) -> list[str]:
    """One line for each precision in which layers are about to lose the adapter."""
    lines = []
    for key in (FLOAT16, *map(str, found["bits"])):
        layers = [layer for layer in found["layers"] if layer["ratio"]]
        lost = [layer for layer in layers if layer[key]["kept"] < KEPT_LEAST]
        buried = [layer for layer in layers if layer[key]["cosine"] < COSINE_LEAST and layer not in lost]
        if lost:
            worst = min(lost, key=lambda layer: layer[key]["kept"])
            lines.append(
                f"{_in(key)} {_some(lost, layers)} less than half of the adapter's change "
                f"({worst['name']}: {worst[key]['kept']:.0%}): take more bits, "
                "or fuse onto the 16-bit original of a quantized base (--base)"
            )
        if buried:
            worst = min(buried, key=lambda layer: layer[key]["cosine"])
            lines.append(
                f"{_in(key)} {_some(buried, layers)} the adapter under rounding ten times as large "
                f"({worst['name']}: cosine {worst[key]['cosine']:.2f}): take more bits, or train with a higher scale"
            )
    return lines


def label(key: str) -> str:
    """`float16` or `5-bit`."""
    return key if key == FLOAT16 else f"{key}-bit"


def _in(key: str) -> str:
    return "in float16" if key == FLOAT16 else f"in {key} bits"


def _some(part: Sequence[Any], whole: Sequence[Any]) -> str:
    return f"{len(part)} of {len(whole)} layers keep"


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The median layer, in the shape of a layer: half of all layers keep more, half less."""
    keys = (FLOAT16, *map(str, found["bits"]))
    layers = found["layers"]
    middle = {
        key: {name: round(statistics.median(layer[key][name] for layer in layers), 4) for name in ("kept", "cosine")}
        for key in keys
    }
    return {"name": "median", "ratio": _significant(statistics.median(layer["ratio"] for layer in layers)), **middle}


def worst(found: Mapping[str, Any], count: int = 5) -> list[Mapping[str, Any]]:
    """The layers that keep least in the fewest bits that were measured."""
    key = str(found["bits"][-1]) if found["bits"] else FLOAT16
    return sorted(found["layers"], key=lambda layer: (layer[key]["kept"], layer["name"]))[:count]


def table(found: Mapping[str, Any], count: int = 5) -> Any:
    """The worst layers and the median as a table for the terminal: kept / cosine."""
    from rich.table import Table

    keys = (FLOAT16, *map(str, found["bits"]))
    shown = Table(
        title="what is left of the adapter: part kept / cosine",
        caption=f"the {min(count, len(found['layers']))} worst of {len(found['layers'])} layers, "
        f"groups of {found['group_size']}; all of them are in manifest.json",
    )
    shown.add_column("layer")
    shown.add_column("‖Δ‖/‖W‖", justify="right")
    for key in keys:
        shown.add_column(label(key), justify="right")
    for layer in worst(found, count):
        shown.add_row(layer["name"].removeprefix("model."), *_cells(layer, keys))
    shown.add_section()
    shown.add_row("median", *_cells(summary(found), keys), style="bold")
    return shown


def _cells(layer: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{layer['ratio']:.2%}", *(f"{layer[k]['kept']:.2f}/{layer[k]['cosine']:.2f}" for k in keys)]
