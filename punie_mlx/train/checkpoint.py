"""Checkpoints: all that a training run needs to go on as if it had never stopped.

    checkpoints/0000300/
      adapters.safetensors   what is trained
      adapter_config.json    with it, stock mlx_lm loads the checkpoint as an adapter
      optimizer.safetensors  the optimizer's state, the position in its schedule included
      state.json             where the run stands (`Progress`), and the hashes of the other files

A checkpoint appears whole. What was damaged afterwards (a disk that lost its last writes) is noticed by its hashes, and
the one before it is taken. Neither the order of samples nor random numbers need saving: both are functions of the seed
and the number of the step (`plan.Planner`, `loop.Trainer`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from punie_mlx import identity
from punie_mlx.errors import DataError
from punie_mlx.files import atomic_dir
from punie_mlx.train.adapters import trainable
from punie_mlx.train.optimizers import state_from_arrays, state_to_arrays
from punie_mlx.weights import naming_a_full_disk

WEIGHTS, CONFIG, OPTIMIZER, STATE = "adapters.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"


@dataclass
class Window:
    """Sums since the last line of metrics."""

    loss: float = 0.0
    """Sum of loss · weight of the steps that were taken."""
    weight: float = 0.0
    tokens: int = 0
    """Supervised tokens."""
    seconds: float = 0.0
    norm: float = 0.0
    """Gradient norm of the last step that was taken."""


@dataclass
class Progress:
    """Where a run stands, as JSON holds it. Steps are counted from 1, so `step` of them are done."""

    step: int = 0
    tokens: int = 0
    """Supervised tokens trained on."""
    computed: int = 0
    """Tokens that went through the layers for it."""
    given: int = 0
    """Tokens of the samples, had each been computed by itself."""
    seconds: float = 0.0
    """Since the first step, in all processes that the run took, measurements and checkpoints too."""
    step_seconds: float = 0.0
    """Of these, what the steps took."""
    skips: list[dict[str, Any]] = field(default_factory=list)
    """Steps whose update was left out: step, reason, rows."""
    best_step: int = 0
    """The checkpoint that would be picked now; 0: none yet."""
    best: list[float] = field(default_factory=list)
    """What it is measured by, the higher the better, the first number first."""
    stale: int = 0
    """Validations since then."""
    ended: str = ""
    """Why no further step is taken, although there are some left."""
    first_loss: float | None = None
    last_loss: float | None = None
    first_val_loss: float | None = None
    last_val_loss: float | None = None
    window: Window = field(default_factory=Window)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Progress:
        """The progress in the JSON of a checkpoint. Raises TypeError where it is none."""
        values: dict[str, Any] = {**content, "window": Window(**content["window"])}
        return cls(**values)


def name_of(step: int) -> str:
    """The directory of the checkpoint after `step` steps."""
    return f"{step:07d}"


def save(
    directory: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: optim.Optimizer,
    adapter_config: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `progress.step` into `directory`, whole or not at all. Raises `DiskError`."""
    path = directory / name_of(progress.step)
    with atomic_dir(path, overwrite=True) as tmp:
        with naming_a_full_disk(tmp):
            mx.save_safetensors(str(tmp / WEIGHTS), trainable(model), metadata={"format": "mlx"})
            mx.save_safetensors(str(tmp / OPTIMIZER), state_to_arrays(optimizer))
        (tmp / CONFIG).write_text(json.dumps(adapter_config, indent=2) + "\n", encoding="utf-8")
        content = {
            "progress": dataclasses.asdict(progress),
            "files": {name: identity.hash_file(tmp / name) for name in (WEIGHTS, OPTIMIZER, CONFIG)},
        }
        (tmp / STATE).write_text(json.dumps({**content, "hash": identity.hash_json(content)}, indent=2) + "\n")
    return path


def read(path: Path) -> Progress:
    """Where the run stood at the checkpoint `path`. Raises `DataError` where a file of it is missing or damaged."""
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        claimed = content.pop("hash")
        if claimed != identity.hash_json(content):
            raise DataError(f"{path / STATE} is damaged")
        for name, wanted in content["files"].items():
            if identity.hash_file(path / name) != wanted:
                raise DataError(f"{path / name} is damaged")
        return Progress.of(content["progress"])
    except FileNotFoundError as e:
        raise DataError(f"{e.filename} is missing") from e
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise DataError(f"{path / STATE} cannot be read ({e})") from e


def restore(path: Path, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put weights and optimizer back to how they were at the checkpoint `path`, which `read` has found whole."""
    weights: Any = mx.load(str(path / WEIGHTS))
    state: Any = mx.load(str(path / OPTIMIZER))
    model.load_weights(list(weights.items()), strict=False)
    optimizer.init(model.trainable_parameters())
    state_from_arrays(optimizer, state)
    mx.eval(model.trainable_parameters(), optimizer.state)


def found(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, the oldest first; they may be damaged."""
    return sorted(p for p in directory.glob("[0-9]" * 7 + "*") if p.is_dir() and p.name.isdigit())


def newest(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; those after it are removed. None where there is no whole one."""
    for path in reversed(found(directory)):
        try:
            read(path)
        except DataError as e:
            say(f"the checkpoint {path} cannot be used, {e}: going back to the one before it")
            shutil.rmtree(path, ignore_errors=True)
            continue
        return path
    return None


def prune(directory: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, and the best one of each of them."""
    paths = found(directory)
    kept = set(paths[-keep:])
    for path in list(kept):
        best = json.loads((path / STATE).read_text(encoding="utf-8"))["progress"]["best_step"]
        kept.add(directory / name_of(best))
    for path in paths:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
