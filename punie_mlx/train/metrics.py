"""What a running training shows and records: a bar on stderr, and each measurement as a line of metrics.jsonl.

A line is `{"kind": …, "step": …, …}` with `step` the number of optimizer steps done:

| kind         | figures                                                                                        |
|--------------|------------------------------------------------------------------------------------------------|
| `train`      | loss, learning_rate, grad_norm, supervised_tokens, tokens_per_second, peak_memory, …, seconds   |
| `valid`      | loss, seconds                                                                                  |
| `select`     | calls_right, calls, direct_right, direct, seconds                                              |
| `skip`       | reason, rows                                                                                   |
| `checkpoint` | path                                                                                           |
| `resume`     |                                                                                                |

Losses are means over supervised tokens, `tokens_per_second` counts supervised tokens, memory is in bytes. A line is on
the disk before the next step begins, so a killed run loses at most the line that it was writing.
"""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from punie_mlx.errors import DiskError, OutputError
from punie_mlx.files import atomic_file
from punie_mlx.train.trackers import Trackers

METRICS = "metrics.jsonl"
DIGITS = 7  # significant digits of a figure: what float32 holds
PAUSE = 10.0  # seconds between two lines of progress where stderr is no terminal

# What is said aloud of a measurement, beside the bar; kinds that are not listed are only written.
SAID: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "valid": lambda f: f"validation loss {_number(f.get('loss'))}",
    "select": lambda f: (
        f"{f.get('calls_right')} of {f.get('calls')} calls and "
        f"{f.get('direct_right')} of {f.get('direct')} direct answers right"
    ),
    "skip": lambda f: f"skipped, {f.get('reason')}: {_listed(f.get('rows'))}",
}


class Recorder:
    """Writes `directory`/metrics.jsonl, moves the bar, and passes figures on to trackers. A context manager.

    `total_steps` is where the bar ends; `quiet` leaves all output away, not the file. `from_step` > 0 goes on with the
    file of a run that was resumed there: lines up to that step stay, later ones go, since they will be measured again.
    `trackers` are names of `punie_mlx.train.trackers.TRACKERS`; `project` and `settings` are what they show of the run.
    Where training runs as several processes only rank 0 records; the others take `Recorder.silent()`.

    Raises (on construction):
        ConfigError: a tracker that is unknown or not installed.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        total_steps: int,
        *,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        project: str = "",
        settings: Mapping[str, Any] | None = None,
        from_step: int = 0,
    ) -> None:
        self._prepare(total_steps, quiet, from_step)
        self._trackers = Trackers(trackers, Path(directory), project, settings or {}, self.say, from_step)
        self.path: Path | None = Path(directory) / METRICS
        try:
            keep(self.path, from_step)
            self._file = self.path.open("ab", buffering=0)
        except OSError as e:
            raise OutputError(f"{self.path} cannot be written: {e.strerror or e}") from e

    @classmethod
    def silent(cls) -> Recorder:
        """A recorder that writes and shows nothing, for the ranks that are not the first."""
        recorder = cls.__new__(cls)
        recorder._prepare(0, True, 0)
        return recorder

    def _prepare(self, total_steps: int, quiet: bool, from_step: int) -> None:
        self.path = None
        self._file: FileIO | None = None
        self._trackers: Trackers | None = None
        self._quiet = quiet
        self._total, self._first, self._step = total_steps, from_step, from_step
        self._begun, self._said = time.monotonic(), -math.inf
        self._shown: dict[str, str] = {"loss": "", "speed": "", "memory": ""}
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._drawn = console.is_terminal and not quiet
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not self._drawn)
        self._task = self._bar.add_task("train", total=total_steps, completed=from_step, status="")

    def __enter__(self) -> Recorder:
        self._begun = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # each of them, also where one before it fails
            if self._file:
                stack.callback(self._file.close)
            if self._trackers:
                stack.callback(self._trackers.close)
            stack.callback(self._bar.stop)

    def record(self, kind: str, step: int, **figures: Any) -> None:
        """Write one measurement, after `step` steps; say it aloud where `SAID` has a sentence for its kind.

        Numbers may be Python's, numpy's or MLX's scalars. NaN and infinity become null, since JSON has neither.

        Raises:
            DiskError: the disk is full.
        """
        if self._file is None:
            return
        clean = {name: plain(value) for name, value in figures.items()}
        self._write(json.dumps({"kind": kind, "step": int(step), **clean}, ensure_ascii=False) + "\n")
        if self._trackers:
            self._trackers.log(kind, int(step), clean)
        if kind in SAID:
            self.say(f"step {step}: {SAID[kind](clean)}")
        if kind == "train":
            self._show(int(step), clean)

    def _write(self, line: str) -> None:
        assert self._file is not None
        left = line.encode()
        try:
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise DiskError(f"the disk ran full while writing {self.path}: free some space and resume") from e
            raise

    def advance(self, step: int, loss: Any = None) -> None:
        """Move the bar to `step` steps done; `loss` is shown beside it."""
        self._step = int(step)
        if not self._drawn:
            return
        if loss is not None:
            self._shown["loss"] = f"loss {_number(plain(loss))}"
        status = " ".join(filter(None, self._shown.values()))
        self._bar.update(self._task, completed=self._step, status=status)

    def say(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if not self._quiet:
            self._bar.console.print(text)

    def _show(self, step: int, figures: Mapping[str, Any]) -> None:
        """The newest figures, in the bar or as a line of their own."""
        self._shown["loss"] = f"loss {_number(figures.get('loss'))}"
        if (speed := figures.get("tokens_per_second")) is not None:
            self._shown["speed"] = f"{speed:,.0f} tokens/s"
        if (memory := figures.get("peak_memory")) is not None:
            self._shown["memory"] = f"{memory / 1e9:.2f} GB"
        self.advance(step)
        now = time.monotonic()
        if not self._drawn and (now - self._said >= PAUSE or step >= self._total):
            self._said = now
            parts = [f"step {step}/{self._total}", *filter(None, self._shown.values()), self._left(step, now)]
            self.say(", ".join(filter(None, parts)))

    def _left(self, step: int, now: float) -> str:
        done = step - self._first
        if done < 1 or step >= self._total:
            return ""
        minutes, seconds = divmod(round((now - self._begun) / done * (self._total - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left"


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: floats rounded to `DIGITS`, None for those that are no number."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # a scalar (or array) of numpy or MLX
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The measurements in a metrics.jsonl, in order; lines that a killed run left half-written are left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("kind"), str) and type(line.get("step")) is int:
            lines.append(line)
    return lines


def keep(path: Path, step: int) -> None:
    """Keep the measurements of `path` up to `step`, all gone for 0; the file is replaced whole."""
    lines = read_metrics(path) if step > 0 and path.exists() else []
    with atomic_file(path) as tmp:
        kept = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["step"] <= step)
        tmp.write_text("".join(kept), encoding="utf-8")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "not a number"


def _listed(rows: Any, most: int = 4) -> str:
    """`rows` as text, the first few by name."""
    rows = list(rows) if isinstance(rows, list) else [rows]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, rows[:most])) + more
