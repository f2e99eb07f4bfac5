"""Distilled weight quantization (DWQ): scales and biases of a quantized model, tuned until it says what float16 says.

    punie-mlx quantize --model runs/fused --out runs/4bit --bits 4 --dwq data/phase8_xml_format

The teacher is the float16 model itself, and what is asked of both are our own rows: each step takes one assistant turn
of the training split, behind the prompt that the server would send, and lowers KL(teacher ‖ student) at the positions
of the turn. The integer weights stay as they are, so the result is an ordinary quantized model of the same size.

Before, on the way and at the end the student is measured on turns of the validation split, with its scales rounded to
float16 as they will be written. The best of these is kept: where that is the beginning, the plain quantization is
written, and the report says so. No turn of the validation or test split is tuned on. Both models are in memory, the
student's scales with Adam's two moments.

The objective is that of `mlx_lm.quant.dwq.dwq_quantize` (pinned by tests/contracts/test_mlx_lm_quantize.py: the same
turn gives the same scales). Its loop is not called: its loss falls on every position of a row, and a served prompt is
ten times as long as its turn; it keeps what it has last, not what was best, and prints on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from punie_mlx import hardware
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import read_split
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.export.divergence import Divergence, Teacher, divergence_of, load
from punie_mlx.export.prompts import MAX_TOKENS, Said, assistant_turns, shuffled
from punie_mlx.export.quantize import UNIFORM, Quantized, QuantizeReport, in_memory, write
from punie_mlx.files import refuse_existing, refuse_same

TUNED = ("scales", "biases")
MOST_BITS = 6  # eight bits leave nothing to tune


@dataclass(frozen=True)
class DwqConfig:
    """How the scales are tuned."""

    steps: int = 300
    """Turns that are learned from, one a step; fewer where the rows hold fewer."""
    learning_rate: float = 4e-4
    """Of Adam, as a part of the mean scale, so that it fits any width and model; it falls to 0 in a cosine."""
    temperature: float = 2.0
    """What both models' logits are divided by in the loss."""
    measured: int = 96
    """Turns of the validation split that the student is measured on."""
    measurements: int = 4
    """How often, after the first time."""
    max_tokens: int = MAX_TOKENS
    """Longer turns are left out."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "temperature", "measured", "measurements", "max_tokens"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} of DWQ is {getattr(self, name)}: it must be above 0")


@dataclass(frozen=True)
class Tuning:
    """What came of it: the divergence on the validation split before and after, and whether the tuned one was kept."""

    before: Divergence
    after: Divergence
    kept: bool
    """False: nothing that was tried is better than the plain quantization, which was written."""
    step: int
    """The step whose scales were kept."""
    steps: int

    def words(self) -> str:
        """In one line."""
        before = f"KL to float16 on {self.before.tokens:,} positions of the validation split: {self.before.mean:.3g}"
        if not self.kept:
            return f"{before}, and nothing better after {self.steps} steps: the plain quantization was kept"
        return f"{before} before, {self.after.mean:.3g} after step {self.step} of {self.steps}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[int, int, float], None]
"""Called with the steps done, the steps in all, and the lowest mean divergence so far."""


def distill(
    model: Path | str,
    out: Path | str,
    *,
    data: Path,
    bits: int = 4,
    group_size: int = 64,
    recipe: str = UNIFORM,
    config: DwqConfig | None = None,
    away: Collection[Said] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[QuantizeReport, Tuning]:
    """Write `model` in `bits` bits to the directory `out`, its scales tuned on the rows of `data`, but not on the
    turns `away`.

    Raises:
        ConfigError: settings that there are not, or bits that leave nothing to tune.
        DataError: rows that cannot be read, or hold no turn to tune or to measure on.
        ModelError: no model directory.
        OutputError: `out` exists and `overwrite` is false.
        DiskError: the disk has no room for the result.
    """
    model, out, config = Path(model), Path(out), config or DwqConfig()
    if bits > MOST_BITS:
        raise ConfigError(f"--dwq tunes {MOST_BITS} bits or less: {bits} bits leave nothing to tune")
    refuse_same(out, model)
    refuse_existing(out, overwrite)
    made = in_memory(model, bits=bits, group_size=group_size, recipe=recipe)
    turns, measured = splits(data, load_tokenizer(model), config, away)
    teacher = Teacher.of(model, measured)
    tuning = tune(made, load(model), turns, teacher, config, progress)
    settings = {"bits": bits, "group_size": group_size, "mode": "affine", "recipe": recipe, "dwq": asdict(config)}
    return write(made, model, out, settings, overwrite=overwrite, more={"dwq": tuning.to_json()}), tuning


def splits(data: Path, tokenizer: Any, config: DwqConfig, away: Collection[Said] = ()) -> tuple[list[Said], list[Said]]:
    """The turns to tune on, and those to measure on; none of the latter, of the test split or `away` is among the
    former. Raises `DataError`."""
    rows = {name: read_split(data, name, required=name != "test") for name in ("train", "valid", "test")}
    turns = {name: shuffled(assistant_turns(r, tokenizer, config.max_tokens), config.seed) for name, r in rows.items()}
    kept_away = {*turns["valid"], *turns["test"], *away}
    tuned = [said for said in turns["train"] if said not in kept_away][: config.steps]
    for name, found in (("train", tuned), ("valid", turns["valid"])):
        if not found:
            raise DataError(f"{data}/{name}.jsonl holds no assistant turn that the model's template renders: add rows")
    return tuned, turns["valid"][: config.measured]


def tune(
    made: Quantized,
    teacher: Any,
    turns: Sequence[Said],
    measured: Teacher,
    config: DwqConfig,
    progress: Progress | None = None,
) -> Tuning:
    """Tune the scales and biases of `made` in place on `turns`, or leave them where nothing better is found."""
    network: Any = made.network
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "scales")}
    plain = {name: (layer.scales, layer.biases) for name, layer in layers.items()}
    _prepare(network, layers)
    best = before = divergence_of(measured, network)
    best_at, found = 0, None
    marks = {round(len(turns) * (i + 1) / config.measurements) for i in range(config.measurements)}
    step = _step(network, teacher, config.temperature, _adam(network, config, len(turns)))
    for i, said in enumerate(turns, 1):
        step(said)
        if i in marks:
            rounded, now = _measured(network, measured)
            if now.mean < best.mean:
                best, best_at, found = now, i, rounded
        if progress:
            progress(i, len(turns), best.mean)
    network.update_modules(tree_unflatten(list(layers.items())))
    for name, layer in layers.items():
        layer.scales, layer.biases = plain[name]
    if found:
        network.update(tree_unflatten(found))
    return Tuning(before, best, found is not None, best_at, len(turns))


def _prepare(network: Any, layers: dict[str, Any]) -> None:
    """Make `network` compute in float32, with nothing but scales and biases to learn."""
    network.set_dtype(mx.float32)
    network.freeze()
    mx.eval(network.parameters())
    if hardware.on_cpu():
        mx.disable_compile()
        dense = [(name, _UNPACKED[type(m)](m)) for name, m in layers.items() if type(m) in _UNPACKED]
        network.update_modules(tree_unflatten(dense))
    network.apply_to_modules(_unfreeze)


def _unfreeze(_: str, module: Any) -> None:
    if hasattr(module, "scales") and module.bits <= MOST_BITS and module.mode == "affine":
        module.unfreeze(keys=list(TUNED), recurse=False)


def _adam(network: Any, config: DwqConfig, steps: int) -> optimizers.Optimizer:
    learned: dict[str, mx.array] = dict(tree_flatten(network.trainable_parameters()))
    scales = [np.abs(np.array(value)).reshape(-1) for name, value in learned.items() if name.endswith(".scales")]
    rate = optimizers.cosine_decay(config.learning_rate * float(np.mean(np.concatenate(scales))), steps)
    return optimizers.Adam(learning_rate=rate, bias_correction=True)


def _step(network: Any, teacher: Any, temperature: float, optimizer: optimizers.Optimizer) -> Callable[[Said], None]:
    """One step of `optimizer` on one turn."""

    def loss(tokens: mx.array, start: int, wanted: mx.array) -> mx.array:
        found = _soft(network(tokens)[:, start - 1 :], temperature)
        return (mx.exp(wanted) * (wanted - found)).sum(axis=-1).mean()

    gradients = nn.value_and_grad(network, loss)

    def step(said: Said) -> None:
        tokens = mx.array(said.tokens[:-1])[None]
        wanted = mx.stop_gradient(_soft(teacher(tokens)[:, said.start - 1 :], temperature))
        value, found = gradients(tokens, said.start, wanted)
        optimizer.update(network, found)
        mx.eval(network.trainable_parameters(), optimizer.state, value)

    return step


def _soft(logits: mx.array, temperature: float) -> mx.array:
    scaled = logits.astype(mx.float32) / temperature
    return scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)


def _measured(network: Any, measured: Teacher) -> tuple[list[tuple[str, mx.array]], Divergence]:
    """The scales as they would be written, and the divergence of the network with them."""
    exact = network.trainable_parameters()
    rounded: Any = tree_map(lambda value: value.astype(mx.float16).astype(mx.float32), exact)
    network.update(rounded)
    found = divergence_of(measured, network)
    network.update(exact)
    flat: Any = tree_flatten(rounded)
    return flat, found


# ---- on a CPU, where a quantized matmul is ten times slower than unpacking the weights and multiplying them ----


class _UnpackedLinear(nn.Module):
    """A `QuantizedLinear` that multiplies unpacked weights; its scales and biases can be learned all the same."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name in ("weight", "scales", "biases", "bias"):
            if name in layer:
                self[name] = layer[name]
        self.group_size, self.bits, self.mode = layer.group_size, layer.bits, layer.mode
        self.freeze()

    def dense(self) -> mx.array:
        return mx.dequantize(self.weight, self.scales, self.biases, self.group_size, self.bits)

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.dense().T
        return y + self.bias if "bias" in self else y


class _UnpackedEmbedding(_UnpackedLinear):
    """The same of a `QuantizedEmbedding`, which may be the output too."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.dense()[x]

    def as_linear(self, x: mx.array) -> mx.array:
        return x @ self.dense().T


_UNPACKED = {nn.QuantizedLinear: _UnpackedLinear, nn.QuantizedEmbedding: _UnpackedEmbedding}
