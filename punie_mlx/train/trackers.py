"""The figures of a run, sent on to Weights & Biases, TensorBoard or trackio. metrics.jsonl holds all of them anyway.

| name          | where the figures go                                                                            |
|---------------|-------------------------------------------------------------------------------------------------|
| `wandb`       | the account of `wandb login`; with WANDB_MODE=offline ./wandb, which `wandb sync` sends later   |
| `tensorboard` | `tensorboard/` beside metrics.jsonl, for `tensorboard --logdir OUT`                             |
| `trackio`     | this machine's trackio directory, for `trackio show`                                            |

Each is an extra of its name: `pip install 'punie-mlx[wandb]'`.
A package is imported only where it is asked for. One that is missing or cannot begin is an error before training
starts; one that fails later is left out from there on, with a warning, since no figure is worth a run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from punie_mlx.errors import ConfigError

TENSORBOARD = "tensorboard"  # directory of its files, beside metrics.jsonl
RUN = "trackers.json"  # the name under which the services know a run, so that a resumed one goes on there


class Tracker(Protocol):
    """One run at one of them; any of these may raise anything."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run."""

    directory: Path
    project: str
    name: str
    """Unique, and the same when the run is resumed."""
    settings: Mapping[str, Any]
    from_step: int


class _Wandb:
    def __init__(self, wandb: Any, run: Run) -> None:
        # Not its capture of the console: it would copy the moving bar line by line.
        settings = wandb.Settings(console="off")
        name, config = run.name, dict(run.settings)
        self._run = wandb.init(
            project=run.project, id=name, name=name, config=config, resume="allow", settings=settings
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, package: Any, run: Run) -> None:
        path = run.directory / TENSORBOARD
        if not run.from_step:
            shutil.rmtree(path, ignore_errors=True)  # of another run, which was given up
        # Figures of steps that are taken once more are hidden by those that follow.
        purge = run.from_step + 1 if run.from_step else None
        self._writer = package.SummaryWriter(str(path), purge_step=purge)
        rows = [f"| {name} | {value} |" for name, value in run.settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]), run.from_step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # not only every two minutes: a run may be killed

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, trackio: Any, run: Run) -> None:
        self._package = trackio
        config = dict(run.settings)
        self._run = trackio.init(project=run.project, name=run.name, config=config, resume="allow", embed=False)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._package.finish()  # not the run's own: that one would be finished, and say so, once more at exit


@dataclass(frozen=True)
class Kind:
    """One row of the table above."""

    package: str
    """What is imported."""
    begin: Callable[[Any, Run], Tracker]
    """Begins or takes up a run, given the imported package."""
    remedy: str = ""
    """What to do where that fails."""


TRACKERS: dict[str, Kind] = {
    "wandb": Kind("wandb", _Wandb, "run `wandb login`, or set WANDB_MODE=offline"),
    "tensorboard": Kind("tensorboardX", _TensorBoard),
    "trackio": Kind("trackio", _Trackio),
}


def require(names: Sequence[str]) -> None:
    """Raise `ConfigError` where a tracker of `names` is unknown or its package is missing. It imports nothing."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"report_to names {name!r}: it must be one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"report_to names {name}, and its package {TRACKERS[name].package} is not installed: "
                f"pip install 'punie-mlx[{name}]', or leave it out"
            )


class Trackers:
    """All that were asked for. `say` takes warnings.

    Raises (on construction):
        ConfigError: a name that is unknown, a package that is missing, or one that cannot begin a run.
    """

    def __init__(
        self,
        names: Sequence[str],
        directory: Path,
        project: str,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
        from_step: int = 0,
    ) -> None:
        require(names)
        self._say = say
        self._open: dict[str, Tracker] = {}
        if not names:
            return
        plain = json.loads(json.dumps(settings, default=str))
        run = Run(directory, project, _name(directory / RUN, from_step), plain, from_step)
        for name in dict.fromkeys(names):
            kind = TRACKERS[name]
            try:
                with contextlib.redirect_stdout(sys.stderr):  # standard output holds results, not greetings
                    self._open[name] = kind.begin(importlib.import_module(kind.package), run)
            except Exception as e:
                self.close()
                remedy = f"{kind.remedy}, or leave it out" if kind.remedy else "mend that, or leave it out"
                raise ConfigError(f"report_to names {name}, which cannot begin ({_told(e)}): {remedy}") from e

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send on what of `figures` is a number, as `kind/name`. It never raises."""
        numbers = {f"{kind}/{k}": v for k, v in figures.items() if type(v) in (int, float)}
        for name in list(self._open) if numbers else []:
            self._try(name, lambda tracker: tracker.log(step, numbers))

    def close(self) -> None:
        """End the run at all of them. It never raises."""
        for name in list(self._open):
            self._try(name, lambda tracker: tracker.close())
        self._open.clear()

    def _try(self, name: str, action: Callable[[Tracker], None]) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                action(self._open[name])
        except Exception as e:
            del self._open[name]
            self._say(f"{name} failed and gets no more figures ({_told(e)}): metrics.jsonl holds all of them")


def _name(path: Path, from_step: int) -> str:
    """A new name for the run, or where it goes on, the one that it was begun with."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if from_step > 0:
            return str(json.loads(path.read_text())["name"])
    stem = re.sub(r"[^\w.-]", "-", path.parent.absolute().name.removesuffix(".training"))
    name = f"{stem}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):  # a run that cannot be taken up there is no reason to stop
        path.write_text(json.dumps({"name": name}) + "\n")
    return name


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
