"""Arrays of safetensors files, read without mlx: kinds and shapes from the head alone, values where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from punie_mlx.errors import ModelError
from punie_mlx.identity import model_files

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """An array in a file; `kind` as safetensors names it, such as "F32"."""

    kind: str
    shape: tuple[int, ...]


def head(file: Path) -> dict[str, Entry]:
    """Name → entry of each array. Raises `ModelError` where `file` is no safetensors file."""
    try:
        with safetensors.safe_open(str(file), "np") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: Entry(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, safetensors.SafetensorError) as e:
        raise ModelError(f"{file} is no safetensors file ({e}): download or make it again") from e


def shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of each array of a model's weights; none where there are none. Raises `ModelError`."""
    try:
        files = [f for f in model_files(model) if f.suffix == ".safetensors"]
    except ModelError:
        return {}
    return {name: entry.shape for f in files for name, entry in head(f).items()}


def values(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each array of floating-point numbers of a file, as float32 or wider but for float16. Raises `ModelError`."""
    try:
        arrays = safetensors.deserialize(Path(file).read_bytes())
    except (OSError, safetensors.SafetensorError) as e:
        raise ModelError(f"{file} is no safetensors file ({e}): download or make it again") from e
    for name, told in arrays:
        if told["dtype"] in _KINDS:
            raw = np.frombuffer(told["data"], _KINDS[told["dtype"]])
            if told["dtype"] == "BF16":  # the upper half of a float32; numpy has no such kind
                raw = (raw.astype(np.uint32) << 16).view(np.float32)
            yield name, raw.reshape(told["shape"])
