"""Stages: steps whose results are directories that are whole or absent, and are not done twice.

A stage's directory appears under its final name when it is finished, with a manifest that holds the key of its inputs
(hashes of files, settings) and the hash of what it made. `Runner` skips a stage whose key is the same and whose files
are as they were written, so a road of stages goes on after any stop, SIGKILL included, where that stop was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.files import atomic_dir, sweep_partials


@dataclass(frozen=True)
class Stage:
    """One step: where its result lies, what decides it, and how it is made in an empty directory."""

    name: str
    path: Path
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    make: Callable[[Path], object]
    identify: Callable[[Path], str]
    """Hash of what later stages depend on: a figure in a report that differs must not do their work again."""

    @property
    def key(self) -> str:
        """Hash of all that decides the result."""
        return identity.hash_json({"stage": self.name, "inputs": dict(self.inputs), "settings": dict(self.settings)})


Say = Callable[[str], None]


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Runner:
    """Runs stages that are not done, and remembers what it did."""

    def __init__(self, restart: bool, say: Say) -> None:
        self.restart = restart
        self.say = say
        self.seconds: dict[str, float] = {}
        self.skipped: list[str] = []

    def run(self, stage: Stage) -> str:
        """The hash of what `stage` made, now or in an earlier run."""
        if not self.restart and (done := finished(stage)):
            self.skipped.append(stage.name)
            self.seconds[stage.name] = done["seconds"]
            self.say(f"{stage.name}: done already, {stage.path}")
            return done["output"]
        self.say(f"{stage.name}: {stage.path} …")
        started = time.perf_counter()
        with atomic_dir(stage.path, overwrite=True) as tmp:
            stage.make(tmp)
            seconds = round(time.perf_counter() - started, 2)
            output = stage.identify(tmp)
            entry = {
                "name": stage.name, "key": stage.key, "output": output, "files": hash_tree(tmp), "seconds": seconds,
            }  # fmt: skip
            own = identity.read_manifest(tmp) or identity.manifest(
                stage.name, inputs=stage.inputs, settings=stage.settings
            )
            identity.write_manifest(tmp, {**own, "stage": entry})
        self.seconds[stage.name] = seconds
        return output


def finished(stage: Stage) -> dict[str, Any] | None:
    """What the manifest says of a finished `stage`; None if it is not done, or its inputs or files changed."""
    entry = (identity.read_manifest(stage.path) or {}).get("stage") or {}
    if entry.get("key") != stage.key or entry.get("files") != hash_tree(stage.path):
        return None
    return entry


def hash_tree(directory: Path) -> str:
    """Hash of all files below `directory` but its manifest."""
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != identity.MANIFEST]
    return identity.hash_files(files, directory)


def clear_partials(directories: Iterable[Path], say: Say) -> None:
    """Remove what a run that was stopped left half-written in `directories`."""
    for directory in directories:
        for path in sweep_partials(directory) if directory.is_dir() else ():
            say(f"removed {path}, left half-written by a run that was stopped")


@contextmanager
def bar(waiting: str = "loading the server", told: str = "{} passed") -> Generator[Callable[..., None]]:
    """A progress bar on stderr. What it yields takes the steps done, those in all, and what `told` says before it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(waiting, total=None)
        yield lambda done, total, value=None: shown.update(
            task, description=told.format(value), completed=done, total=total
        )
