"""The directory of a training that is not finished, and what becomes of it.

    OUT.training/
      run.json         which run this is: its settings, and the hashes of model and rows
      recipe.yaml  metrics.jsonl  quarantine.jsonl
      checkpoints/     see `checkpoint.py`
      .lock            held while a process works here

It lies beside OUT, which appears whole at the end. Where a process was killed, what it left here is taken up again with
`resume`, if it is the same run: same settings, same model, same rows. Without a checkpoint it holds nothing that could
be lost, and is swept away.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError, OutputError
from punie_mlx.files import link, link_tree, locked, refuse_existing, sweep_partials
from punie_mlx.train import checkpoint
from punie_mlx.train.metrics import METRICS
from punie_mlx.train.trackers import TENSORBOARD

LOCK, RUN, CHECKPOINTS, QUARANTINE = ".lock", "run.json", "checkpoints", "quarantine.jsonl"
RESUMES = ("no", "yes", "auto")
Say = Callable[[str], None]


def beside(out: Path) -> Path:
    """Where the training of `out` lies while it is not finished."""
    return out.with_name(f"{out.name}.training")


@dataclass(frozen=True)
class Run:
    """What a run is, as far as it decides the result."""

    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Hashes by name: model, data, and the suite where one is used."""
    processes: int = 1

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What is otherwise in `other`, the content of a run.json, in words; empty where nothing is."""
        theirs = other.get("settings") or {}
        keys = [k for k in {**self.settings, **theirs} if self.settings.get(k) != theirs.get(k)]
        found = [f"{k} was {theirs.get(k)!r} and is {self.settings.get(k)!r}" for k in keys]
        hashes = other.get("inputs") or {}
        inputs = [k for k in {**self.inputs, **hashes} if self.inputs.get(k) != hashes.get(k)]
        found += [f"the {name} has changed" for name in inputs]
        if other.get("processes") != self.processes:
            found.append(f"there were {other.get('processes')} processes and are {self.processes}")
        return found


class Work:
    """One such directory, held by this process (see `claimed`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    def file(self, name: str) -> Path:
        return self.path / name

    def content(self) -> dict[str, Any]:
        """What run.json says; empty where there is none that can be read."""
        try:
            content = json.loads(self.file(RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return bool(checkpoint.found(self.checkpoints))

    def clear(self) -> None:
        """Remove everything but the lock."""
        for path in self.path.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def begin(self, run: Run, *, overwrite: bool) -> None:
        """Make this the directory of a new `run`; `overwrite` is remembered, so that resuming need not repeat it."""
        self.clear()
        self.checkpoints.mkdir()
        content = {
            "id": uuid.uuid4().hex, "settings": dict(run.settings), "inputs": dict(run.inputs),
            "processes": run.processes, "versions": identity.versions(), "overwrite": overwrite,
        }  # fmt: skip
        identity.write_json(self.file(RUN), content)


def check_free(out: Path, work: Path, *, overwrite: bool, resume: str) -> None:
    """Raise `OutputError` where `out`, or what an unfinished run left in `work`, stands in the way of this run."""
    left = Work(work)
    if resume == "yes" and not left.begun:
        done = " It is finished." if out.exists() else ""
        raise OutputError(f"there is no checkpoint in {work} to go on from.{done} Leave --resume out to begin a run")
    if resume == "no" and left.begun and not overwrite:
        raise OutputError(
            f"{work} holds a training that is not finished: pass --resume to go on with it, or --overwrite to begin "
            "a new one"
        )
    if not (resume != "no" and (left.content().get("overwrite") or finished(out, left))):
        refuse_existing(out, overwrite)


def finished(out: Path, work: Work) -> bool:
    """Whether `out` is what the run in `work` made: it was killed before it could clear up."""
    made = (identity.read_manifest(out) or {}).get("run")
    return made is not None and made == work.content().get("id")


@contextmanager
def claimed(path: Path, *, writes: bool = True) -> Generator[Work]:
    """Hold `path` against other runs; where no checkpoint is in it at the end it goes.

    Of several processes of one run only one `writes` and holds it. Raises `OutputError` where another run is there.
    """
    if not writes:
        yield Work(path)
        return
    with locked(path / LOCK, "training run"):
        work = Work(path)
        for directory in (path, work.checkpoints):
            sweep_partials(directory)
        try:
            yield work
        finally:
            if not work.begun:
                work.remove()


def take_up(work: Work, run: Run, *, resume: str, overwrite: bool, say: Say) -> Path | None:
    """The checkpoint from which to go on; None for a new run, for which `work` is then ready.

    Raises:
        ConfigError: the run in `work` had other settings, another model or other rows, and `resume` is `yes`.
    """
    there = work.content()
    if work.begun and resume != "no":
        if not (differences := run.differences(there)):
            if there.get("versions") != identity.versions():
                say("other versions of packages are installed than at the start: numbers may differ a little")
            if path := checkpoint.newest(work.checkpoints, say):
                return path
            say("no checkpoint is whole: beginning again")
        elif resume == "yes":
            raise ConfigError(
                f"{work.path} holds another run ({'; '.join(differences)}): go on with what it had, or begin a new one "
                "with --overwrite"
            )
        else:
            say(f"{work.path} holds another run ({'; '.join(differences)}): beginning again")
    work.begin(run, overwrite=overwrite or (resume != "no" and bool(there.get("overwrite"))))
    return None


def assemble(work: Work, picked: Path, out: Path) -> None:
    """Put what the run has made into the directory `out`, so that `work` stays whole until `out` is."""
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        link(picked / name, out / name)
    for name in (METRICS, QUARANTINE):
        if work.file(name).exists():
            shutil.copyfile(work.file(name), out / name)
    link_tree(work.file(TENSORBOARD), out / TENSORBOARD)
    for path in checkpoint.found(work.checkpoints):
        link_tree(path, out / CHECKPOINTS / path.name, without=frozenset({checkpoint.OPTIMIZER}))
