"""Does an adapter belong to the model, and does it change anything? Read from its files, without loading the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from punie_mlx import identity, tensors
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.doctor.vocabulary import EMBEDDINGS
from punie_mlx.errors import ModelError

_LEAF = re.compile(r"\.(lora_a|lora_b|m)$")
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_SHOWN = 4


@dataclass(frozen=True)
class AdapterSubject:
    """An adapter and the model under examination. Raises `ModelError` where one of them is no such directory."""

    specimen: Specimen
    adapter: Path

    def __post_init__(self) -> None:
        identity.adapter_files(self.adapter)
        if self.specimen.directory is None:
            raise ModelError(f"the adapter {self.adapter} belongs to a model: give its directory")

    @property
    def model(self) -> Path:
        return Path(self.specimen.directory or "")

    @cached_property
    def config(self) -> dict[str, Any]:
        """adapter_config.json. Raises `ModelError`."""
        return _object(self.adapter / "adapter_config.json")

    @property
    def weights(self) -> Path:
        return self.adapter / "adapters.safetensors"


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("it holds no object")
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} cannot be read ({e}): train the adapter again") from e


def adapter_base(subject: AdapterSubject) -> Iterator[Finding]:
    punie = subject.config.get("punie")
    trained_on = punie.get("base_fingerprint") if isinstance(punie, Mapping) else None
    if trained_on is None:
        raise Skip("the adapter does not say what it was trained on: only punie-mlx train writes that down")
    model = identity.fingerprint(subject.model)
    if trained_on != model:
        yield Finding(
            "adapter-base",
            "high",
            "the adapter was trained on another model, or on this one before its files changed",
            (Shown("trained on", str(trained_on)[:12]), Shown("this model", model[:12])),
            "What it learned are small corrections of other weights, or of another template: calls come out broken, or "
            "as before the training. punie-mlx refuses to serve the two together.",
            "Name the model that it was trained on. If only its template or configuration changed since, train again: "
            "the prompts are other ones now.",
        )


def adapter_fit(subject: AdapterSubject) -> Iterator[Finding]:
    """Names may be written otherwise in a model's files than mlx_lm has them, so one that is missing proves nothing."""
    base, own = tensors.shapes(subject.model), tensors.head(subject.weights)
    if not base:
        raise Skip("the model directory holds no weights")
    wrong = [told for name, entry in own.items() if (told := _misfit(name, entry.shape, base))]
    layers = {int(m[1]) for name in base if (m := _LAYER.search(name))}
    beyond = sorted({int(m[1]) for name in own if (m := _LAYER.search(name))} - layers)
    if beyond and layers:
        wrong.insert(0, f"layer {beyond[0]} of the adapter; the model has layers 0 to {max(layers)}")
    if own and not {_place(_base_name(name)) for name in own} & {_place(name) for name in base}:
        wrong.append(f"{next(iter(own))}: none of the adapter's names stands in the model")
    if not own:
        wrong.append("the adapter holds no arrays")
    if wrong:
        yield Finding(
            "adapter-fit",
            "high",
            f"the adapter does not fit the model in {len(wrong)} places",
            tuple(Shown("misfit", w) for w in wrong[:_SHOWN]),
            "mlx_lm refuses to load it; releases that do not check leave out what does not fit, without a word, and "
            "the model answers as if it had not been trained.",
            "Name the model that the adapter was trained on.",
        )


def _base_name(name: str) -> str:
    return _LEAF.sub(".weight", name)


def _place(name: str) -> str:
    """`name` from the layer on: what stands before it may be turned about when a model is loaded."""
    found = _LAYER.search(name)
    return name[found.start() :] if found else name


def _misfit(name: str, shape: tuple[int, ...], base: Mapping[str, tuple[int, ...]]) -> str:
    """How an array of the adapter disagrees with the weight that it belongs to; "" where it does not."""
    leaf, weight = _LEAF.search(name), base.get(_base_name(name))
    if weight is None or len(weight) != 2 or len(shape) > 2:
        return ""
    packed = _base_name(name).removesuffix("weight") + "scales" in base  # a quantized weight: its columns are not known
    rows, columns = weight[0], None if packed else weight[1]
    # A linear layer takes as many numbers as its weight has columns; an embedding takes the number of a row.
    taken, given = (rows, columns) if _base_name(name).endswith(EMBEDDINGS) else (columns, rows)
    expected = {
        "lora_a": taken in (None, *shape[:1]),
        "lora_b": given in (None, *shape[-1:]),
        "m": shape == (rows,),
    }.get(leaf[1] if leaf else "", shape == weight)
    return "" if expected else f"{name} is {_size(shape)}, the weight is {_size(weight)}"


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def adapter_values(subject: AdapterSubject) -> Iterator[Finding]:
    counts = {name: int((~np.isfinite(array)).sum()) for name, array in tensors.values(subject.weights)}
    broken = [f"{name}: {count} values" for name, count in counts.items() if count]
    if broken:
        yield Finding(
            "adapter-values",
            "high",
            f"{len(broken)} arrays of the adapter hold values that are no numbers (NaN or infinity)",
            tuple(Shown("array", b) for b in broken[:_SHOWN]),
            "Each token's probability is NaN: the model writes one token over and over, or nothing.",
            "Train again with a lower learning rate; `punie-mlx train` stops at the first step that is no number. A "
            "prompt longer than the longest sequence does this in mlx_lm.lora.",
        )


def adapter_unmoved(subject: AdapterSubject) -> Iterator[Finding]:
    """LoRA's b is 0 before the first step; DoRA's m may have moved while b has not, so only LoRA is judged."""
    if subject.config.get("fine_tune_type", "lora") != "lora":
        raise Skip("only an adapter of LoRA shows whether it has moved")
    found = {name: bool(np.any(array)) for name, array in tensors.values(subject.weights) if name.endswith(".lora_b")}
    if found and not any(found.values()):
        yield Finding(
            "adapter-unmoved",
            "high",
            "the adapter changes nothing: it is as it was before the first step of the training",
            tuple(Shown("all zeros", name) for name in list(found)[:_SHOWN]),
            "The model answers as if it had no adapter.",
            "Train it: no row had a token to learn, or the learning rate was 0. `punie-mlx train` says how many tokens "
            "are supervised.",
        )


CHECKS = (
    Check("adapter-base", "adapter", "The adapter was trained on this model", adapter_base),
    Check("adapter-fit", "adapter", "Each array of the adapter has a weight that it fits", adapter_fit),
    Check("adapter-values", "adapter", "The adapter's values are numbers", adapter_values),
    Check("adapter-unmoved", "adapter", "The adapter changes something", adapter_unmoved),
)
