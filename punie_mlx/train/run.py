"""Rows → adapter.

    punie-mlx train --model data/tiny-base --data data/phase8_xml_format --out runs/adapter

mlx_lm's LoRA layers and trainer, with our own samples, batches and loss. What differs from its command: every
assistant turn is trained, not only the last message; samples are sorted by length before they are batched, so that
little is padding; the padding after a turn's end has no loss; validation does not disturb the order of training; a
sample that is too long is dropped, where one without a loss would turn the adapter into NaN.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                    | used for                                          |
|-----------------------------------------|---------------------------------------------------|
| `tuner.trainer.train`, `TrainingArgs`   | the loop; it takes our `loss` and `iterate_batches` |
| `tuner.callbacks.TrainingCallback`      | the losses that go to metrics.jsonl               |
| `tuner.utils.linear_to_lora_layers`     | LoRA layers on the last n layers                  |
| adapter_config.json: `num_layers`, `lora_parameters`, `fine_tune_type` | what `load(adapter_path=…)` reads |
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from punie_mlx import hardware, identity, weights
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import read_split
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.files import atomic_dir, refuse_existing, refuse_same
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.metrics import Metrics
from punie_mlx.train.samples import Sample, Samples, make_samples

PAD_TO = 32  # lengths are rounded up to this, so that few shapes are compiled
SMALL_FILES = 1 << 14  # configuration, losses and manifest beside the adapter's weights
CACHE_BYTES = 1 << 30  # freed buffers that MLX may keep between steps; mlx_lm's default gives all back at each step


@dataclass(frozen=True)
class Report:
    """What `train` made. Losses are None where none was measured."""

    out: Path
    iters: int
    layers: int
    samples: int
    dropped: dict[str, int]
    seconds: float
    trained_tokens: int
    first_loss: float | None
    last_loss: float | None
    first_val_loss: float | None
    last_val_loss: float | None
    fingerprint: str


def train(config: TrainConfig, *, base: Path | None = None, overwrite: bool = False, quiet: bool = False) -> Report:
    """Train the adapter that `config` describes and write it to `config.out`, whole or not at all.

    `base` is the directory of `config.model` where that is a name on the hub; `quiet` leaves the progress bar out.

    Raises:
        ConfigError: settings that cannot work together.
        ModelError: no model, or one without a chat template.
        DataError: no rows, a bad row (file:line), or no row that can be trained on.
        OutputError: `config.out` exists and `overwrite` is false.
        DiskError: there is too little room for the adapter, or the disk ran full.
    """
    for name in ("model", "data", "out"):
        if not getattr(config, name):
            raise ConfigError(f"no {name} was given: pass --{name} or name it in the recipe")
    out = Path(config.out)
    base = base or Path(config.model)
    refuse_same(out, base, Path(config.data))
    refuse_existing(out, overwrite)
    data = Path(config.data)
    rows = read_split(data, "train")  # before the model: bad rows are found at once
    valid_rows = read_split(data, "valid", required=False)
    fingerprint = identity.fingerprint(base)
    tokenizer = load_tokenizer(base)
    samples = _checked(make_samples(rows, tokenizer, config.max_seq_length), data / "train.jsonl", config)
    valid = make_samples(valid_rows, tokenizer, config.max_seq_length)
    mx.random.seed(config.seed)
    model = add_lora(load_for_training(base), config)
    trainable: Any = tree_flatten(model.trainable_parameters())
    hardware.require_disk(out, sum(p.nbytes for _, p in trainable) + SMALL_FILES, "the adapter")
    with atomic_dir(out, overwrite=overwrite) as tmp:
        started = time.perf_counter()
        with (tmp / "metrics.jsonl").open("w", encoding="utf-8") as f:
            metrics = Metrics(f, config.iters, quiet=quiet)
            _run(model, config, samples.items, valid.items, tmp, metrics)
        seconds = round(time.perf_counter() - started, 2)
        _write_configs(tmp, model, config, fingerprint)
        inputs = {"model": fingerprint, "data": hash_data(data)}
        report = _report(config, tmp, model, samples, metrics, seconds, identity.fingerprint(base, tmp))
        more = {k: v for k, v in dataclasses.asdict(report).items() if k != "out"}
        identity.write_manifest(tmp, identity.manifest("adapter", inputs=inputs, settings=config.settings(), **more))
    return report


def hash_data(data: Path) -> str:
    """Hash of what training reads of a data directory."""
    files = [data / f"{name}.jsonl" for name in ("train", "valid")]
    return identity.hash_files([f for f in files if f.is_file()], data)


def _checked(samples: Samples, path: Path, config: TrainConfig) -> Samples:
    if not samples.items:
        counts = ", ".join(f"{n} {reason}" for reason, n in samples.dropped.items()) or "no assistant turns"
        why = f" ({samples.first_failure})" if samples.first_failure else ""
        raise DataError(f"{path} holds nothing to train on: {counts}{why}: raise max_seq_length or mend the rows")
    if len(samples.items) < config.batch_size:
        raise ConfigError(f"batch_size is {config.batch_size} and {path} gives {len(samples.items)} samples: lower it")
    if samples.dropped:
        counts = ", ".join(f"{n} {reason}" for reason, n in samples.dropped.items())
        print(f"punie-mlx: dropped of {path}: {counts} {samples.first_failure}".rstrip(), file=sys.stderr)
    return samples


def load_for_training(base: Path) -> nn.Module:
    """The base model, frozen; on a CPU device in float32."""
    model = weights.load_lazily(base)
    if hardware.on_cpu():
        weights.compute_in_float32(model)
    model.freeze()
    mx.eval(model.parameters())
    return model


def add_lora(model: nn.Module, config: TrainConfig) -> nn.Module:
    """LoRA layers on the last layers of `model`, as many as `config` says or there are."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    linear_to_lora_layers(model, layer_count(model, config), lora_parameters(config))
    return model


def layer_count(model: nn.Module, config: TrainConfig) -> int:
    """How many layers get an adapter."""
    return min(config.layers, len(model.layers))


def lora_parameters(config: TrainConfig) -> dict[str, Any]:
    """LoRA's settings in mlx_lm's words."""
    return {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}


def _run(
    model: nn.Module, config: TrainConfig, samples: list[Sample], valid: list[Sample], out: Path, metrics: Metrics
) -> None:
    """Train `model` in place and save its adapter into `out`."""
    from mlx_lm.tuner.trainer import TrainingArgs
    from mlx_lm.tuner.trainer import train as loop

    args = TrainingArgs(
        batch_size=config.batch_size,
        iters=config.iters,
        val_batches=config.val_batches,
        steps_per_report=config.steps_per_report,
        steps_per_eval=config.steps_per_eval,
        steps_per_save=config.iters + 1,  # the last save is enough: an output is whole or absent
        adapter_file=str(out / "adapters.safetensors"),
        max_seq_length=config.max_seq_length,
        grad_checkpoint=config.grad_checkpoint,
        clear_cache_threshold=CACHE_BYTES,
    )
    model.train()
    quiet = contextlib.redirect_stdout(io.StringIO())  # it draws a bar of its own
    try:
        with metrics, quiet, weights.naming_a_full_disk(out), _uncompiled_on_cpu():
            loop(
                model=model,
                optimizer=optim.Adam(learning_rate=config.learning_rate),
                train_dataset=samples,
                val_dataset=valid if len(valid) >= config.batch_size else None,
                args=args,
                loss=turn_loss,
                iterate_batches=Batches(config.seed, metrics.on_batch),
                training_callback=metrics,
            )
    except KeyboardInterrupt:
        done = max(metrics.started - 1, 0)
        print(f"punie-mlx: stopped after {done} of {config.iters} iterations: no adapter written", file=sys.stderr)
        raise


@contextlib.contextmanager
def _uncompiled_on_cpu() -> Generator[None]:
    """Keep MLX from compiling on a CPU: it runs a C++ compiler for each shape, which takes longer than it saves.

    Where no compiler is installed MLX does without, so this also makes runs equal on both kinds of machine.
    """
    if not hardware.on_cpu():
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def turn_loss(model: nn.Module, batch: mx.array, bounds: mx.array) -> tuple[mx.array, mx.array]:
    """Mean cross-entropy over the tokens of each sample's turn, and their number.

    `bounds` holds first and one-past-last index of each turn.
    """
    logits = model(batch[:, :-1])
    targets = batch[:, 1:]
    position = mx.arange(1, targets.shape[1] + 1)  # of a target in the batch
    mask = mx.logical_and(position >= bounds[:, :1], position < bounds[:, 1:])
    count = mask.sum()
    loss = (nn.losses.cross_entropy(logits.astype(mx.float32), targets) * mask).sum() / count
    return loss, count


class Batches:
    """`iterate_batches` for mlx_lm's trainer: neighbours in length together, in an order that only the seed decides."""

    def __init__(self, seed: int, on_batch: Callable[[], None] = lambda: None) -> None:
        self.seed = seed
        self.on_batch = on_batch  # called for each training batch, not for those of validation

    def __call__(
        self,
        dataset: Sequence[Sample],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        seed: int | None = None,
        comm_group: Any = None,
    ) -> Iterator[tuple[mx.array, mx.array]]:
        if comm_group is not None and comm_group.size() > 1:
            raise ConfigError("training runs on one machine: start it without mlx.launch")
        # Its own generator for each call: a validation in between must not change the order of training.
        random = np.random.default_rng(self.seed if seed is None else seed)
        while True:
            order = random.permutation(len(dataset))  # ties in length, and who is left over, differ by epoch
            order = sorted(order, key=lambda i: len(dataset[i][0]))
            groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            for i in random.permutation(len(groups)):
                if loop:
                    self.on_batch()
                yield pad([dataset[j] for j in groups[i]])
            if not loop:
                return


def pad(samples: Sequence[Sample]) -> tuple[mx.array, mx.array]:
    """Tokens of `samples` padded to one length, and the bounds of their turns."""
    longest = max(len(tokens) for tokens, _ in samples)
    width = -(-longest // PAD_TO) * PAD_TO + 1  # one more than the inputs: targets are shifted by one
    batch = np.zeros((len(samples), width), np.int32)
    for row, (tokens, _) in zip(batch, samples, strict=True):
        row[: len(tokens)] = tokens
    return mx.array(batch), mx.array([(offset, len(tokens)) for tokens, offset in samples])


def _write_configs(out: Path, model: nn.Module, config: TrainConfig, fingerprint: str) -> None:
    content = {
        "fine_tune_type": "lora",
        "num_layers": layer_count(model, config),
        "lora_parameters": lora_parameters(config),
        "punie": {"base_fingerprint": fingerprint},
    }
    (out / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "recipe.yaml").write_text(config.recipe(), encoding="utf-8")


def _report(
    config: TrainConfig,
    tmp: Path,
    model: nn.Module,
    samples: Samples,
    metrics: Metrics,
    seconds: float,
    fingerprint: str,
) -> Report:
    return Report(
        out=Path(config.out),
        iters=config.iters,
        layers=layer_count(model, config),
        samples=len(samples.items),
        dropped=dict(samples.dropped),
        seconds=seconds,
        trained_tokens=metrics.tokens,
        first_loss=metrics.train[0] if metrics.train else None,
        last_loss=metrics.train[-1] if metrics.train else None,
        first_val_loss=metrics.valid[0] if metrics.valid else None,
        last_val_loss=metrics.valid[-1] if metrics.valid else None,
        fingerprint=fingerprint,
    )
