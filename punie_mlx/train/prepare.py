"""All that is known of a training before its first step, and all that can be refused by then."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from rich.console import Console
from rich.progress import track

from punie_mlx import hardware, identity, weights
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import BadRow, Row, read_split
from punie_mlx.corpus.suite import Suite, read_suite
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.files import refuse_same
from punie_mlx.train import adapters, memory, select, trackers
from punie_mlx.train.config import PLACES, TrainConfig
from punie_mlx.train.distributed import World
from punie_mlx.train.loss import Seam, examine
from punie_mlx.train.plan import Planner
from punie_mlx.train.samples import SampleOptions, Samples, make_samples
from punie_mlx.train.valid import Validator, choose
from punie_mlx.train.work import QUARANTINE, Run

MAX_TOKENS = 256  # of an answer by which behaviour is scored
LOOKED_AT = 500  # steps that are planned beforehand, for what they need and what they save


@dataclass(frozen=True)
class Inputs:
    """What a run reads, read and found good; no model is loaded for it."""

    config: TrainConfig
    base: Path
    rows: list[Row]
    valid_rows: list[Row]
    bad: list[BadRow]
    """Rows that are left out: none, unless the config says `skip_bad`."""
    suite: Suite | None
    hashes: Mapping[str, str]

    def run(self, world: World) -> Run:
        """What identifies this run."""
        return Run(self.config.settings(), self.hashes, world.size)


def read_inputs(config: TrainConfig, base: Path | None) -> Inputs:
    """Read rows and suite, and see that the model is there.

    Raises:
        ConfigError, ModelError, DataError, OutputError: see `punie_mlx.train.run.train`.
    """
    check_named(config)
    trackers.require(config.report_to)
    base, data = base or Path(config.model), Path(config.data)
    refuse_same(Path(config.out), base, data)
    bad: list[BadRow] = []
    rows = read_split(data, "train", bad=bad if config.skip_bad else None)
    valid_rows = read_split(data, "valid", required=False, bad=bad if config.skip_bad else None)
    if not valid_rows and (config.pick == "loss" or config.patience):
        name = "pick is loss" if config.pick == "loss" else f"patience is {config.patience}"
        raise ConfigError(f"{name}, and {data} has no valid.jsonl to measure the loss on: add one, or leave it out")
    hashes = {"model": identity.fingerprint(base), "data": hash_data(data)}
    suite = None
    if config.select:
        suite = read_suite(Path(config.select))
        hashes["suite"] = identity.hash_file(Path(config.select))
    return Inputs(config, base, rows, valid_rows, bad, suite, hashes)


def check_named(config: TrainConfig) -> None:
    """Raise `ConfigError` unless model, data and out are named."""
    for name in PLACES:
        if not getattr(config, name):
            raise ConfigError(f"no {name} was given: pass --{name} or name it in the recipe")


def hash_data(data: Path) -> str:
    """Hash of what training reads of a data directory."""
    files = [data / f"{name}.jsonl" for name in ("train", "valid")]
    return identity.hash_files([f for f in files if f.is_file()], data)


@dataclass(frozen=True)
class Prepared:
    """A run that could begin: the model in memory with what is trained attached, and what will be done."""

    config: TrainConfig
    base: Path
    hashes: Mapping[str, str]
    samples: Samples
    valid: Samples
    bad: tuple[BadRow, ...]
    """Rows for quarantine.jsonl."""
    model: nn.Module
    seam: Seam
    planner: Planner
    steps: int
    adapter_config: Mapping[str, Any]
    validator: Validator | None
    probe: select.Probe | None
    memory: memory.Estimate
    saving: tuple[int, int]
    """Tokens that the plan computes, and tokens of the samples one by one, over the first steps, an epoch at most."""
    notes: tuple[str, ...]
    """What the user should know before it begins."""


def prepare(inputs: Inputs, world: World, *, compiled: bool, quiet: bool = False) -> Prepared:
    """Make samples of the rows, load the model and plan; `quiet` leaves the progress bar out.

    Raises:
        ConfigError: settings that cannot work together, or not on this model.
        ModelError: a model without a chat template, or one that cannot be loaded.
        DataError: no row can be trained on.
    """
    config, data = inputs.config, Path(inputs.config.data)
    tokenizer = load_tokenizer(inputs.base)
    options = SampleOptions.of(config)
    samples = make_samples(_counted(inputs.rows, "rendering rows", quiet), tokenizer, options)
    valid = make_samples(_counted(inputs.valid_rows, "rendering validation rows", quiet), tokenizer, options)
    _check_samples(samples, valid, data / "train.jsonl", config)
    bad = (*inputs.bad, *samples.quarantined, *valid.quarantined)
    probe = None
    if inputs.suite is not None:
        probe = select.prepare(
            tokenizer, inputs.suite, cases=config.select_cases, max_tokens=MAX_TOKENS,
            template_kwargs=config.template_kwargs,
        )  # fmt: skip
    model = load_for_training(inputs.base, config)
    seam = examine(model, config.share_prefix)
    planner = Planner(
        samples.items, batch_size=config.batch_size, accumulate=config.accumulate,
        max_batch_tokens=config.max_batch_tokens, share=seam.shares, seed=config.seed, world=world.size,
        few_shapes=compiled,
    )  # fmt: skip
    steps = math.ceil(config.epochs * planner.steps_per_epoch) if config.epochs else config.iters
    ahead = [planner.step(i) for i in range(min(steps, planner.steps_per_epoch, LOOKED_AT))]
    shapes = (memory.Shape.of(group) for step in ahead for part in step.parts for group in part)
    needed = memory.estimate(model, config, shapes, gathers=seam.gathers)
    chosen = choose(valid.items, config.val_batches * config.batch_size, config.seed)
    sizes = {"batch_size": config.batch_size, "max_batch_tokens": config.max_batch_tokens}
    return Prepared(
        config=config,
        base=inputs.base,
        hashes=inputs.hashes,
        samples=samples,
        valid=valid,
        bad=bad,
        model=model,
        seam=seam,
        planner=planner,
        steps=steps,
        adapter_config=adapters.describe(model, config, inputs.hashes["model"]),
        validator=Validator(chosen, seam, world, **sizes) if chosen else None,
        probe=probe,
        memory=needed,
        saving=(sum(step.computed for step in ahead), sum(step.given for step in ahead)),
        notes=(
            *_notes(samples, data / "train.jsonl"),
            *_notes(valid, data / "valid.jsonl"),
            *([f"{len(bad)} bad rows are left out: {QUARANTINE} names them"] if bad else []),
            *seam.notes,
            *memory.advice(needed, hardware.device_memory(), config),
        ),
    )


def _counted(rows: Sequence[Row], what: str, quiet: bool) -> Iterable[Row]:
    """`rows`, with a bar on a terminal: tens of thousands take a minute."""
    hidden = quiet or not sys.stderr.isatty()
    return track(rows, what, console=Console(stderr=True), transient=True, disable=hidden)


def load_for_training(base: Path, config: TrainConfig) -> nn.Module:
    """The base with what is trained attached, in training mode; on a CPU device in float32.

    Raises `ModelError`, and `ConfigError` for what cannot be trained on this model.
    """
    model = weights.load_lazily(base)
    adapters.check(model, config)
    if hardware.on_cpu():
        weights.compute_in_float32(model)
    adapters.attach(model, config)
    model.train()
    mx.eval(model.parameters())
    return model


def _check_samples(samples: Samples, valid: Samples, path: Path, config: TrainConfig) -> None:
    if not config.skip_bad and (failed := [*samples.quarantined, *valid.quarantined]):
        first = samples.first_failure or valid.first_failure
        more = f" ({len(failed)} such rows in all)" if len(failed) > 1 else ""
        raise DataError(f"{first}{more}: mend the row, or pass --skip-bad to train without it")
    if not samples.items:
        why = f" ({samples.first_failure})" if samples.first_failure else ""
        counts = _counts(samples.dropped) or "no samples"
        raise DataError(f"{path} holds nothing to train on: {counts}{why}: raise max_seq_length or mend the rows")
    if len(samples.items) < config.batch_size:
        raise ConfigError(f"batch_size is {config.batch_size} and {path} gives {len(samples.items)} samples: lower it")


def _notes(samples: Samples, path: Path) -> list[str]:
    notes = [f"{path}: {count} {what}" for what, count in samples.notes.items()]
    if samples.dropped:
        notes.append(f"dropped of {path}: {_counts(samples.dropped)} {samples.first_failure}".rstrip())
    return notes


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())
