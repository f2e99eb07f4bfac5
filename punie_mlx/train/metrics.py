"""What a running training shows and records: a bar on stderr, and each measured loss as a line of metrics.jsonl."""

from __future__ import annotations

import json
import math
from typing import Any, TextIO

from mlx_lm.tuner.callbacks import TrainingCallback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from punie_mlx.errors import PunieError


class Metrics(TrainingCallback):
    """Receives mlx_lm's reports; stops a run whose loss is no number. A context manager: the bar runs inside."""

    def __init__(self, file: TextIO, iters: int, *, quiet: bool = False) -> None:
        self.train: list[float] = []
        self.valid: list[float] = []
        self.tokens = 0
        self.started = 0  # iterations whose batch was taken
        self._file = file
        self._quiet = quiet
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet)
        self._task = self._bar.add_task("train", total=iters, loss="")

    def __enter__(self) -> Metrics:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_batch(self) -> None:
        """A training batch was taken: the one before it is done."""
        self._bar.update(self._task, completed=self.started)
        self.started += 1

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.train.append(float(train_info["train_loss"]))
        self.tokens = int(train_info["trained_tokens"])
        self._bar.update(self._task, completed=train_info["iteration"], loss=f"loss {self.train[-1]:.3f}")
        self._record(train_info, "train_loss")

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.valid.append(float(val_info["val_loss"]))
        if not self._quiet:
            last = f", training loss {self.train[-1]:.3f}" if self.train else ""
            self._bar.console.print(f"iteration {val_info['iteration']}: validation loss {self.valid[-1]:.3f}{last}")
        self._record(val_info, "val_loss")

    def _record(self, info: dict[str, Any], loss: str) -> None:
        line = {k: v if k == "iteration" else round(float(v), 6) for k, v in info.items()}
        if not math.isfinite(line[loss]):
            raise PunieError(
                f"the {loss.replace('_', ' ')} is {line[loss]} at iteration {line['iteration']}: "
                "train with a lower learning rate or scale"
            )
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
