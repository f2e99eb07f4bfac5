"""What a training run is told: defaults, a YAML recipe over them, options over both."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from punie_mlx.corpus.rows import ROLES
from punie_mlx.errors import ConfigError

PLACES = ("model", "data", "out")  # where things lie does not change what is trained
RUN_ONLY = ("save_every", "keep", "steps_per_report", "report_to", "project")  # nor does what is kept and shown

CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("constant", "linear", "cosine"),
    "optimizer": ("adam", "adamw", "muon", "sgd", "lion", "adafactor"),
    "method": ("lora", "dora", "full"),
    "loss_on": ("turns", "last", "all"),
    "overlong": ("drop", "cut"),
    "pick": ("last", "loss", "behaviour"),
    "share_prefix": ("auto", "on", "off"),
    "compile": ("auto", "on", "off"),
    "report_to": ("wandb", "tensorboard", "trackio"),
}
LEAST: dict[str, int] = {
    "iters": 1, "batch_size": 1, "accumulate": 1, "max_batch_tokens": 8, "warmup": 0, "rank": 1, "max_seq_length": 8,
    "steps_per_eval": 1, "steps_per_report": 1, "patience": 0, "save_every": 1, "keep": 1, "select_cases": 1,
}  # fmt: skip
ALL_OR_MORE = ("layers", "val_batches")  # at least 1, or -1 for all
POSITIVE = ("learning_rate", "scale")
NOT_NEGATIVE = ("epochs", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Raises `ConfigError` for values that cannot work, alone or together."""

    model: str = ""
    """Directory or hub name of the base."""
    data: str = ""
    """Directory with train.jsonl and, if there is one, valid.jsonl."""
    out: str = ""
    """Directory of the adapter."""
    iters: int = 500
    """Optimizer steps, where `epochs` is 0."""
    epochs: float = 0.0
    """Passes over the samples; above 0 it decides the number of steps in the place of `iters`."""
    batch_size: int = 1
    """Samples a batch and process; a sample is one assistant turn with all that comes before it."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    max_batch_tokens: int = 8192
    """Tokens computed at once; a larger batch is computed in parts, with the same result."""
    learning_rate: float = 1e-4
    """The highest learning rate."""
    schedule: str = "constant"
    """The rate after the warmup: constant, or falling (linear, cosine) until the last step is done."""
    warmup: int = 0
    """Steps in which the rate rises to `learning_rate`."""
    final_rate: float = 0.0
    """The rate at the end of a linear or cosine schedule, as a fraction of `learning_rate`."""
    optimizer: str = "adam"
    """adam, adamw, muon, sgd, lion or adafactor."""
    weight_decay: float = 0.0
    """How strongly weights are drawn to 0; not for adam, whose form with it is adamw."""
    clip_norm: float = 1.0
    """Longest gradient that a step takes; a longer one is scaled down to it. 0: any."""
    method: str = "lora"
    """lora, dora (LoRA whose rows have a length of their own) or full (the weights themselves)."""
    layers: int = 8
    """How many layers, from the last, are trained; all if the model has fewer, or for -1."""
    rank: int = 8
    """Rank of each update."""
    scale: float = 20.0
    """What an update is multiplied by (mlx_lm's `scale`, not `alpha`)."""
    dropout: float = 0.0
    """Dropout in front of an update."""
    targets: tuple[str, ...] = ()
    """Modules of a layer that are trained: `q_proj`, `self_attn.*`. None: every one that has a weight to adapt."""
    loss_on: str = "turns"
    """Where the loss falls: every assistant turn, the last one of a row, or all of its text."""
    role_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of the tokens of a role's messages; without it the assistant's is 1 and others' 0."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further names for the chat template, say `enable_thinking: false`: as they will be served."""
    max_seq_length: int = 2048
    """Tokens of a sample; what becomes of longer ones says `overlong`."""
    overlong: str = "drop"
    """Samples that are too long are dropped, or cut from the left; both are counted."""
    skip_bad: bool = False
    """Put bad rows into quarantine instead of stopping before the start."""
    seed: int = 0
    """Decides the initial update, the order of samples and the dropout."""
    val_batches: int = 25
    """Batches of validation each time; -1 for all."""
    steps_per_eval: int = 100
    """Steps between validations."""
    steps_per_report: int = 25
    """Steps between lines of metrics.jsonl."""
    patience: int = 0
    """Validations without improvement after which training stops; 0: never."""
    save_every: int = 100
    """Steps between checkpoints: what a crash can cost."""
    keep: int = 3
    """Checkpoints that are kept, the newest; the best one is kept beside them."""
    pick: str = "last"
    """The checkpoint that becomes the adapter: the last, or the best by validation loss or by behaviour."""
    select: str = ""
    """Suite (.jsonl) on which checkpoints are scored by generating; they are chosen by it with `pick: behaviour`."""
    select_cases: int = 40
    """Cases of that suite, each time."""
    grad_checkpoint: bool = False
    """Compute activations twice to save memory."""
    share_prefix: str = "auto"
    """Compute a prompt prefix that samples share once; auto: where the model's caches allow it."""
    compile: str = "auto"
    """Compile the step; auto: not on a CPU, where compiling takes longer than it saves."""
    report_to: tuple[str, ...] = ()
    """wandb, tensorboard, trackio: where figures go beside metrics.jsonl."""
    project: str = "punie-mlx"
    """Name of the project there."""

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            if kind in (tuple, dict):  # what a caller passed stays the caller's: a list, a dict of integers
                object.__setattr__(self, name, _coerce(name, getattr(self, name), "setting"))
        self._check_numbers()
        for name, known in CHOICES.items():
            value = getattr(self, name)
            for chosen in (value,) if isinstance(value, str) else value:
                _check_choice(name, chosen, known)
        for role in self.role_weights:
            _check_choice("role_weights", role, tuple(sorted(ROLES)))
        self._check_together()

    def _check_numbers(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                unit = " tokens" if name.startswith("max_") else ""
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}{unit}")
        for name in ALL_OR_MORE:
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1, or -1 for all")
        for name in POSITIVE:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be a positive number")
        for name in NOT_NEGATIVE:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 0 or a positive number")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if not 0 <= self.final_rate <= 1:
            raise ConfigError(f"final_rate is {self.final_rate}: it is a fraction of learning_rate, from 0 to 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: it must be a non-negative integer below 2^63")
        for role, weight in self.role_weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"role_weights: {role} has the weight {weight}: it must be 0 or a positive number")

    def _check_together(self) -> None:
        """Settings that are fine alone; a setting without an effect is a mistake that nobody would notice."""
        wrong = {
            "weight_decay has no effect with the optimizer adam: choose adamw, or leave it out": (
                self.weight_decay and self.optimizer == "adam"
            ),
            "final_rate has no effect with the schedule constant: choose linear or cosine, or leave it out": (
                self.final_rate and self.schedule == "constant"
            ),
            f"warmup is {self.warmup}, and there are {self.iters} steps: lower it, or raise iters": (
                not self.epochs and self.warmup >= self.iters and self.warmup
            ),
            "dropout has no effect with the method full: leave it out": self.dropout and self.method == "full",
            "pick is behaviour, and there is no suite to pick by: pass --select FILE": (
                self.pick == "behaviour" and not self.select
            ),
        }
        for message, holds in wrong.items():
            if holds:
                raise ConfigError(message)

    def settings(self) -> dict[str, Any]:
        """What of this config decides the result, as JSON holds it: not where things lie, nor what is kept and shown.

        What `select` names is a place too, and counts all the same: its content must be hashed beside the settings.
        """
        return {k: v for k, v in self._plain().items() if k not in PLACES + RUN_ONLY}

    def recipe(self) -> str:
        """This config as a recipe that makes the same run again; its `out` is where the recipe lies."""
        content = {k: v for k, v in self._plain().items() if k != "out"}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def _plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else dict(v) if KINDS[k] is dict else v for k, v in values.items()}


KINDS: dict[str, type] = {
    f.name: dict if f.default is dataclasses.MISSING else type(f.default) for f in dataclasses.fields(TrainConfig)
}


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


def make_config(recipe: Path | str | None = None, options: Mapping[str, Any] | None = None) -> TrainConfig:
    """Defaults, then the recipe, then those `options` that are not None. Raises `ConfigError`."""
    settings = read_recipe(recipe) if recipe is not None else {}
    given = {k: v for k, v in (options or {}).items() if v is not None}
    settings |= {check_key(k, "option"): _coerce(k, v, "option") for k, v in given.items()}
    return TrainConfig(**settings)


def check_key(key: str, where: str) -> str:
    """`key` if it is one of `TrainConfig`. Raises `ConfigError` with the nearest name."""
    if key in KINDS:
        return key
    near = nearest(key.replace("-", "_"), KINDS)
    hint = f"did you mean `{near}`?" if near else f"the keys are {', '.join(KINDS)}"
    raise ConfigError(f"{where}: there is no setting `{key}`: {hint}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` may have meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = nearest(value.lower(), known)
        hint = f"did you mean {near}? It" if near else "it"
        raise ConfigError(f"{name} cannot be {value!r}: {hint} is one of {', '.join(known)}")


# ---- values as the type of their setting ----

EXPECTED: dict[type, str] = {
    int: "an integer", float: "a number", bool: "true or false", str: "text", tuple: "a list of names",
    dict: "`name: value` pairs",
}  # fmt: skip


def _coerce(key: str, value: Any, where: str) -> Any:
    """`value` as the type of `key`: YAML reads 1e-4 as a string and 20 as an integer, an option is text."""
    kind = KINDS[key]
    try:
        if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if kind is tuple:
            return _names(value)
        if kind is dict:
            pairs = _pairs(value)
            return {k: float(v) for k, v in pairs.items()} if key == "role_weights" else pairs
        if type(value) is kind:
            return value
    except (ValueError, TypeError):
        pass
    raise ConfigError(f"{where}: `{key}` must be {EXPECTED[kind]}, not {value!r}")


def _names(value: Any) -> tuple[str, ...]:
    """A list of names, or one with commas; each once. Raises `ValueError`."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError
    return tuple(dict.fromkeys(name.strip() for part in parts for name in part.split(",") if name.strip()))


def _pairs(value: Any) -> dict[str, Any]:
    """A mapping, a JSON object, or `name=value` texts with or without commas; JSON values. Raises `ValueError`."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json.loads(value)
    elif isinstance(value, str | list | tuple):
        value = dict(_pair(name) for name in _names(value))
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise ValueError
    json.dumps(dict(value))  # a recipe and a manifest must hold it: YAML's dates do not pass
    return dict(value)


def _pair(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ValueError
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ValueError from e
