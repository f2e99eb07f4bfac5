"""What a training run is told: defaults, a YAML recipe over them, options over both."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from punie_mlx.errors import ConfigError

NOT_A_RESULT = ("model", "data", "out")  # where things lie does not change what is trained


@dataclass(frozen=True)
class TrainConfig:
    """One LoRA training run. Raises `ConfigError` for values that cannot work."""

    model: str = ""
    """Directory or hub name of the base."""
    data: str = ""
    """Directory with train.jsonl and, if there is one, valid.jsonl."""
    out: str = ""
    """Directory of the adapter."""
    iters: int = 500
    """Optimizer steps."""
    batch_size: int = 1
    """Samples a step; a sample is one assistant turn with all that comes before it."""
    learning_rate: float = 1e-4
    """Adam's constant learning rate."""
    layers: int = 8
    """How many layers, from the last, get an adapter; all if the model has fewer."""
    rank: int = 8
    """Rank of each update."""
    scale: float = 20.0
    """What the update is multiplied by (mlx_lm's `scale`, not `alpha`)."""
    dropout: float = 0.0
    """Dropout in front of the update."""
    max_seq_length: int = 2048
    """Longer samples are dropped and counted, never cut."""
    seed: int = 0
    """Decides the initial update and the order of samples."""
    val_batches: int = 25
    """Batches of validation each time; -1 for all."""
    steps_per_eval: int = 100
    """Steps between validations."""
    steps_per_report: int = 25
    """Steps between lines of metrics.jsonl."""
    grad_checkpoint: bool = False
    """Compute activations twice to save memory."""

    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "layers", "rank", "steps_per_eval", "steps_per_report"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be a positive number")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.max_seq_length < 8:
            raise ConfigError(f"max_seq_length is {self.max_seq_length}: it must be at least 8 tokens")
        if self.val_batches < 1 and self.val_batches != -1:
            raise ConfigError(f"val_batches is {self.val_batches}: it must be at least 1, or -1 for all")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: it must be a non-negative integer below 2^63")

    def settings(self) -> dict[str, Any]:
        """What of this config decides the result: all but where things lie."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_A_RESULT}

    def recipe(self) -> str:
        """This config as a recipe that makes the same run again; its `out` is where the recipe lies."""
        content = {k: v for k, v in dataclasses.asdict(self).items() if k != "out"}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


KINDS: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(TrainConfig)}


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML recipe, checked. Raises `ConfigError` that names the file and the key."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"the recipe {path} cannot be read ({e.strerror}): data/recipes/ holds examples") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"the recipe {path} is not YAML ({' '.join(str(e).split())}): mend it") from e
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} must hold `key: value` lines: data/recipes/ holds examples")
    return {check_key(str(k), str(path)): _coerce(str(k), v, str(path)) for k, v in content.items()}


def check_key(key: str, where: str) -> str:
    """`key` if it is one of `TrainConfig`. Raises `ConfigError` with the nearest name."""
    if key in KINDS:
        return key
    near = difflib.get_close_matches(key.replace("-", "_"), KINDS, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(KINDS)}"
    raise ConfigError(f"{where}: there is no setting `{key}`: {hint}")


def _coerce(key: str, value: Any, where: str) -> Any:
    """`value` as the type of `key`: YAML reads 1e-4 as a string and 20 as an integer."""
    kind = KINDS[key]
    try:
        if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if type(value) is kind:
            return value
    except ValueError:
        pass
    names: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    raise ConfigError(f"{where}: `{key}` must be {names[kind]}, not {value!r}")


def make_config(recipe: Path | str | None = None, options: Mapping[str, Any] | None = None) -> TrainConfig:
    """Defaults, then the recipe, then those `options` that are not None. Raises `ConfigError`."""
    settings = read_recipe(recipe) if recipe is not None else {}
    given = {k: v for k, v in (options or {}).items() if v is not None}
    settings |= {check_key(k, "option"): _coerce(k, v, "option") for k, v in given.items()}
    return TrainConfig(**settings)
