"""Arrays of safetensors files, read without mlx: names and shapes from the head alone, and values where asked for."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from punie_mlx.errors import ModelError
from punie_mlx.identity import model_files

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """An array in a file: its bytes are those from `start` to `end`."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def head(file: Path) -> dict[str, Entry]:
    """Name → entry of each array. Raises `ModelError` where `file` is no safetensors file."""
    try:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > file.stat().st_size:
                raise ValueError("its head is longer than the file")
            found = json.loads(f.read(length))
        return {
            name: Entry(e["dtype"], tuple(e["shape"]), *(8 + length + at for at in e["data_offsets"]))
            for name, e in found.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{file} is no safetensors file ({e}): download or make it again") from e


def shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of each array of a model's weights; none where there are none. Raises `ModelError`."""
    try:
        files = [f for f in model_files(model) if f.suffix == ".safetensors"]
    except ModelError:
        return {}
    return {name: entry.shape for f in files for name, entry in head(f).items()}


def values(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each array of floating-point numbers of a file, as float32 or wider. Raises `ModelError`."""
    for name, entry in head(file).items():
        if entry.kind not in _KINDS:
            continue
        with file.open("rb") as f:
            f.seek(entry.start)
            raw = np.frombuffer(f.read(entry.end - entry.start), _KINDS[entry.kind])
        if raw.size != np.prod(entry.shape, dtype=np.int64):
            raise ModelError(f"{file} ends in the middle of {name}: download or make it again")
        if entry.kind == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        yield name, raw.reshape(entry.shape)
