#!/usr/bin/env python3
"""One contestant of bench_train.py: our loop, mlx_lm's, or mlx_lm's with its sort mended, on the same samples.

    echo '{"side": "ours", "data": "data/phase8_xml_format", "samples": 32}' | python scripts/train_peers.py

The line of stdin is a `Job`, the last line of stdout its figures. Float32, LoRA on the last 8 layers (rank 8, scale
20), Adam with a constant rate, no clipping of gradients, the same base, seed and initial weights; one pass over the
samples, in batches of `batch`, the number of samples being a multiple of it: mlx_lm drops a remainder.

- **stock**: `mlx_lm.tuner.trainer.train` with its own loss, batches and `CacheDataset`, nothing replaced. It learns
  one stretch of tokens a row, so each assistant turn is a row, as `ChatDataset` with `mask_prompt` gives it for a
  conversation that ends on that turn. Its sort is without effect: `itemlen` returns the number of keys of the row.
- **mended**: the same, with an `itemlen` that returns the number of tokens.
- **ours**: `punie_mlx.train.loop.Trainer` over `plan.Planner`.

Stock's mask reaches one token too far: it trains the padding after each turn's end, too. So that both learn the same
tokens, our steps get that target as well (`with_padding`), here and nowhere else.

The clock runs over the training loop, cutting batches included; loading, rendering, tokenizing and validation are
outside of it. Warm-up is, too: a few steps, or a whole pass where the step is compiled (each shape is compiled anew),
after which weights and optimizer are put back to the start and the peak of memory is forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# isort: off
import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
import mlx.core as mx

# isort: on
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import TrainingArgs, default_loss, evaluate, iterate_batches
from mlx_lm.tuner.trainer import train as stock_train
from mlx_lm.tuner.utils import linear_to_lora_layers

from punie_mlx import weights
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import Row, read_split
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.distributed import World
from punie_mlx.train.loop import Trainer
from punie_mlx.train.loss import as_arrays, examine, loss_of_arrays
from punie_mlx.train.plan import Group, Planner, Step
from punie_mlx.train.prepare import load_for_training
from punie_mlx.train.samples import Sample, SampleOptions, make_samples

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 2048  # mlx_lm's max_seq_length; samples are shorter, so that it cuts nothing, not even the padding's target
VALID = 64  # samples of validation
WARM_UP = 3  # steps, where nothing is compiled
NUDGE = 0.02  # standard deviation of LoRA's b in the second comparison of gradients: at 0 those of a vanish


@dataclass(frozen=True)
class Job:
    """What a contestant is asked."""

    side: str = "ours"  # ours, stock, mended
    task: str = "run"  # run, curve (ours until its validation loss is `goal`), check (ours against stock, one batch)
    model: str = str(ROOT / "data" / "tiny-base")
    data: str = ""
    samples: int = 0  # about how many; 0: all
    loss_on: str = "turns"  # turns, or last: the last assistant turn of each row only
    batch: int = 8
    rate: float = 1e-4
    seed: int = 0
    compiled: bool = False
    goal: float = 0.0


# ---- the samples, for all alike ----


def load(job: Job, split: str, count: int) -> list[Sample]:
    """About `count` samples of a split, a multiple of the batch: of rows of all lengths, the longest among them."""
    rows = read_split(Path(job.data), split)
    options = SampleOptions(max_seq_length=LENGTH - 1, loss_on=job.loss_on)
    chosen = spread(rows, count, job.loss_on == "last")
    found = make_samples(chosen, load_tokenizer(Path(job.model)), options).items
    for sample in found:
        ((_, stop, weight),) = sample.spans  # stock can do no more than one stretch, to the end
        if (stop, weight) != (len(sample.tokens), 1.0):
            raise ValueError(f"{sample.where}: the comparison needs turns that end their sample, with a weight of 1")
    return found[: len(found) // job.batch * job.batch]


def spread(rows: Sequence[Row], count: int, one_each: bool) -> list[Row]:
    """Every k-th row by length, in the order of the file, so that they give about `count` samples (0: all)."""
    turns = sum(1 if one_each else sum(m["role"] == "assistant" for m in row.messages) for row in rows)
    step = -(-turns // count) if count else 1
    by_length = sorted(range(len(rows)), key=lambda i: -len(json.dumps(rows[i].to_json())))
    return [rows[i] for i in sorted(by_length[::step])]


class Turns:
    """Samples as mlx_lm's datasets are: rows, and `process` to make tokens and offset of one."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"messages": self._samples[i], "tools": None}

    def process(self, row: dict[str, Any]) -> tuple[list[int], int]:
        sample: Sample = row["messages"]
        return sample.tokens.tolist(), sample.spans[0][0]


class Mended(CacheDataset):
    """`CacheDataset` whose `itemlen` is the length of the item."""

    def itemlen(self, idx: int) -> int:
        return len(self[idx][0])


DATASETS = {"stock": CacheDataset, "mended": Mended}


# ---- the models ----


def our_model(job: Job) -> Any:
    model = load_for_training(Path(job.model), TrainConfig(seed=job.seed))
    return ready(model)


def stock_model(job: Job) -> Any:
    """As `mlx_lm.lora` makes it ready."""
    model: Any = weights.load_lazily(Path(job.model))
    weights.compute_in_float32(model)
    model.freeze()
    mx.random.seed(job.seed)
    linear_to_lora_layers(model, min(8, len(model.layers)), {"rank": 8, "scale": 20.0, "dropout": 0.0})
    return ready(model)


def ready(model: Any) -> Any:
    """`model` in float32 (ours is already, on a CPU), in memory, in training mode."""
    weights.compute_in_float32(model)
    model.train()
    mx.eval(model.parameters())
    return model


def start_of(model: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(model.trainable_parameters())
    return [(name, mx.array(value)) for name, value in flat]


def put_back(model: Any, start: list[tuple[str, mx.array]], optimizer: optim.Optimizer) -> None:
    """Weights and optimizer as they were before the first step, in place: a compiled step holds them."""
    model.update(tree_unflatten(start))
    for key, value in optimizer.state.items():
        if key != "learning_rate":
            optimizer.state[key] = tree_map(mx.zeros_like, value)
    mx.eval(model.trainable_parameters(), optimizer.state)


def validate(model: Any, valid: Sequence[Sample], batch: int) -> float:
    """Mean loss over `valid` as mlx_lm computes it: one measure for all."""
    dataset: Any = Mended(Turns(valid))
    loss = float(evaluate(model, dataset, batch, -1, LENGTH))
    model.train()
    return loss


# ---- the clock ----


class Clock:
    """Wall and processor time of the training loop, and its peak of memory."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.peak = 0

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Time what is inside; several times add up."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        mx.clear_cache()
        mx.reset_peak_memory()
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]
        self.peak = max(self.peak, mx.get_peak_memory())

    def figures(self) -> dict[str, Any]:
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": self.wall, "cpu_seconds": self.cpu, "peak_memory": self.peak, "peak_rss": rss}


@contextlib.contextmanager
def compiling(on: bool) -> Generator[None]:
    """MLX's own switch for all that compiles, activation functions of models too."""
    (mx.enable_compile if on else mx.disable_compile)()
    try:
        yield
    finally:
        mx.enable_compile()


# ---- stock ----


class Watch:
    """mlx_lm's callback, called at the end of each pass: starts the clock after the warm-up and stops it at the end."""

    def __init__(self, clock: Clock, warm_until: int, again: Any) -> None:
        self._clock, self._warm_until, self._again = clock, warm_until, again
        self.warm_tokens = self.tokens = 0
        self.loss = 0.0

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        if train_info["iteration"] == self._warm_until:
            self.warm_tokens = int(train_info["trained_tokens"])
            self._again()
            self._clock.start()
        else:
            self._clock.stop()
            self.tokens = int(train_info["trained_tokens"]) - self.warm_tokens
            self.loss = float(train_info["train_loss"])

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None: ...


def run_stock(job: Job, samples: list[Sample], valid: list[Sample]) -> dict[str, Any]:
    """One pass of mlx_lm's loop."""
    model, optimizer, clock = stock_model(job), optim.Adam(job.rate), Clock()
    start, passes = start_of(model), len(samples) // job.batch

    def again() -> None:
        put_back(model, start, optimizer)
        np.random.seed(job.seed)

    def loop(samples: list[Sample], updates: int, watch: Any = None) -> None:
        with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
            args = TrainingArgs(
                batch_size=job.batch, iters=updates, steps_per_report=passes, steps_per_save=updates + 1,
                adapter_file=f"{made}/adapters.safetensors", max_seq_length=LENGTH,
            )  # fmt: skip
            dataset: Any = DATASETS[job.side](Turns(samples))
            stock_train(model, optimizer, dataset, args=args, training_callback=watch)

    with compiling(job.compiled):
        if not job.compiled:
            loop(samples[: WARM_UP * job.batch], WARM_UP)
        again()
        warm_until = passes if job.compiled else 0
        watch = Watch(clock, warm_until, again)
        if not warm_until:
            clock.start()
        loop(samples, warm_until + passes, watch)
        figures = {"tokens": watch.tokens, "updates": passes, "train_loss": watch.loss} | clock.figures()
        return figures | {"valid_loss": validate(model, valid, job.batch)}


# ---- ours ----


def with_padding(step: Step) -> Step:
    """`step` with the token that stock trains, too: the padding after the end of each turn, predicted from the end."""
    turns = len(step.samples)
    parts = tuple(tuple(map(_with_padding, part)) for part in step.parts)
    return replace(step, parts=parts, weight=step.weight + turns, supervised=step.supervised + turns)


def _with_padding(group: Group) -> Group:
    real = group.weights > 0  # the others fill up a shape
    rows, cols = group.rows[real], group.cols[real]
    last = np.append((np.diff(cols) != 1) | (np.diff(rows) != 0), True)  # of a turn, as its targets lie side by side
    found: dict[str, Any] = {
        "rows": rows[last], "cols": cols[last] + 1, "targets": np.zeros(last.sum(), np.int32),
        "weights": group.weights[real][last],
    }  # fmt: skip
    return replace(group, **{name: np.concatenate([getattr(group, name), new]) for name, new in found.items()})


class Ours:
    """Our loop, one step at a time."""

    def __init__(self, job: Job, samples: list[Sample]) -> None:
        self.job, self.samples = job, samples
        self.model, self.optimizer = our_model(job), optim.Adam(job.rate)
        self.start = start_of(self.model)
        self.seam = examine(self.model)
        self.trainer = Trainer(
            self.model, self.seam, self.optimizer, world=World(), clip_norm=0.0, seed=job.seed, compiled=job.compiled
        )
        self.planner = self.plan()

    def plan(self) -> Planner:
        config = TrainConfig()
        return Planner(
            self.samples, batch_size=self.job.batch, max_batch_tokens=config.max_batch_tokens, share=self.seam.shares,
            seed=self.job.seed, few_shapes=self.job.compiled,
        )  # fmt: skip

    def warm_up(self) -> None:
        updates = self.planner.steps_per_epoch if self.job.compiled else WARM_UP
        for i in range(updates):
            self.update(i)
        put_back(self.model, self.start, self.optimizer)
        self.planner = self.plan()  # the time to order the samples counts

    def update(self, i: int) -> tuple[int, float, int]:
        """Make update `i`; supervised tokens, loss, and tokens computed."""
        step = with_padding(self.planner.step(i))
        outcome = self.trainer.step(i, step)
        return step.supervised, outcome.loss, step.computed


def run_ours(job: Job, samples: list[Sample], valid: list[Sample]) -> dict[str, Any]:
    """One pass of our loop."""
    clock = Clock()
    with compiling(job.compiled):
        ours = Ours(job, samples)
        ours.warm_up()
        updates = ours.planner.steps_per_epoch
        with clock.running():
            ours.planner = ours.plan()
            made = [ours.update(i) for i in range(updates)]
        figures = {
            "tokens": sum(tokens for tokens, _, _ in made), "updates": updates,
            "train_loss": float(np.mean([loss for _, loss, _ in made])),
            "computed": sum(computed for _, _, computed in made), "notes": list(ours.seam.notes),
        }  # fmt: skip
        return figures | clock.figures() | {"valid_loss": validate(ours.model, valid, job.batch)}


def curve(job: Job, samples: list[Sample], valid: list[Sample]) -> dict[str, Any]:
    """How long ours takes to a validation loss of `goal`: measured twelve times a pass, three passes at most."""
    clock, points = Clock(), []
    with compiling(job.compiled):
        ours = Ours(job, samples)
        ours.warm_up()
        updates = ours.planner.steps_per_epoch
        every, done = max(1, updates // 12), 0
        while done < 3 * updates and (not points or points[-1]["valid_loss"] > job.goal):
            with clock.running():
                for i in range(done, done + every):
                    ours.update(i)
            done += every
            loss = validate(ours.model, valid, job.batch)
            points.append({"updates": done, "seconds": clock.wall, "valid_loss": loss})
    reached = points[-1]["valid_loss"] <= job.goal
    return {"goal": job.goal, "reached": reached, **points[-1], "points": points}


# ---- the same numbers? ----


def check(job: Job, samples: list[Sample]) -> dict[str, Any]:
    """Loss and gradients of our first batch, against stock's loss on the same samples; both runs' initial weights.

    Errors are relative: of the loss, and the largest over the arrays of |ours - stock| over |stock| (lengths). Once at
    the start, where LoRA's b is 0 and only b has a gradient, and once with b moved away from it.
    """
    stock, ours = stock_model(job), our_model(job)
    start, mine = dict(start_of(stock)), dict(start_of(ours))
    same = start.keys() == mine.keys() and all(bool(mx.array_equal(start[k], mine[k])) for k in start)
    seam = examine(ours)
    planner = Planner(
        samples, batch_size=job.batch, max_batch_tokens=TrainConfig().max_batch_tokens, share=seam.shares, seed=job.seed
    )
    step = with_padding(planner.step(0))
    found: dict[str, Any] = {"same_start": same, "computed": step.computed}
    with compiling(False):
        for name, deviation in (("start", 0.0), ("moved", NUDGE)):
            for model in (stock, ours):
                move(model, deviation, job.seed)
            theirs = stock_gradient(stock, [samples[i] for i in step.samples], job.batch)
            found[name] = differences(theirs, our_gradient(ours, seam, step))
    found["worst"] = max(found[name][key] for name in ("start", "moved") for key in ("loss", "gradients"))
    return found


def move(model: Any, deviation: float, seed: int) -> None:
    """Draw each b of LoRA anew."""
    mx.random.seed(seed)
    moved = [(n, mx.random.normal(v.shape) * deviation) for n, v in start_of(model) if n.endswith("lora_b")]
    model.update(tree_unflatten(moved))


def stock_gradient(model: Any, samples: list[Sample], batch: int) -> tuple[Any, int, Any]:
    dataset: Any = CacheDataset(Turns(samples))
    (arrays,) = iterate_batches(dataset, batch, LENGTH)
    (loss, tokens), grads = nn.value_and_grad(model, default_loss)(model, *arrays)
    return loss.item(), tokens.item(), grads


def our_gradient(model: Any, seam: Any, step: Step) -> tuple[Any, int, Any]:
    def loss(arrays: Any) -> mx.array:
        return sum((loss_of_arrays(seam, model, *a) for a in arrays), start=mx.array(0.0)) / step.weight

    value, grads = nn.value_and_grad(model, loss)([as_arrays(group) for group in step.parts[0]])
    return value.item(), step.supervised, grads


def differences(stock: tuple[Any, int, Any], ours: tuple[Any, int, Any]) -> dict[str, float]:
    if stock[1] != ours[1]:
        raise ValueError(f"stock trains {stock[1]} tokens of the first batch and ours {ours[1]}: compare the same")
    theirs, mine = (dict(tree_flatten(grads)) for grads in (stock[2], ours[2]))
    lengths = {name: float(mx.linalg.norm(g)) for name, g in theirs.items()}
    worst = max(float(mx.linalg.norm(mine[n] - g)) / lengths[n] for n, g in theirs.items() if lengths[n])
    return {"loss": abs(ours[0] - stock[0]) / stock[0], "gradients": worst}


def do(job: Job) -> dict[str, Any]:
    """The figures of a job."""
    samples = load(job, "train", job.samples)
    if job.task == "check":
        return check(job, samples)
    valid = load(replace(job, loss_on="turns"), "valid", VALID if job.samples > VALID else job.samples or VALID)
    given = {"samples": len(samples), "longest": max(len(s.tokens) for s in samples)}
    runs = {"ours": run_ours, "stock": run_stock, "mended": run_stock}
    return given | (curve if job.task == "curve" else runs[job.side])(job, samples, valid)


def main() -> int:
    job = Job(**json.loads(sys.stdin.readline()))
    print(json.dumps({"job": dataclasses.asdict(job)} | do(job)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
