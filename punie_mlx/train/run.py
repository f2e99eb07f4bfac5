"""Rows → adapter.

    punie-mlx train --model data/tiny-base --data data/phase8_xml_format --out runs/adapter

A run is prepared (`prepare.py`) and goes through its steps (`session.py`, `loop.py`); on the way it is measured
(`valid.py`) and saved (`checkpoint.py`), in a directory beside OUT (`work.py`). OUT appears whole at the end. A run
that was stopped or killed goes on from its last checkpoint, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from punie_mlx import hardware, identity
from punie_mlx.errors import ConfigError
from punie_mlx.files import atomic_dir, refuse_same, sweep_partials
from punie_mlx.train import adapters, checkpoint
from punie_mlx.train.checkpoint import Progress
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.distributed import World
from punie_mlx.train.distributed import world as join
from punie_mlx.train.interrupt import Interrupt
from punie_mlx.train.loop import Trainer, compiling, wired
from punie_mlx.train.metrics import METRICS, Recorder
from punie_mlx.train.optimizers import make_optimizer, state_to_arrays
from punie_mlx.train.prepare import Inputs, Prepared, check_named, prepare, read_inputs
from punie_mlx.train.report import write_report
from punie_mlx.train.session import Session
from punie_mlx.train.work import QUARANTINE, RESUMES, Work, assemble, beside, check_free, claimed, finished, take_up

SMALL_FILES = 1 << 16  # configuration, figures and manifest beside the weights
RECIPE, REPORT = "recipe.yaml", "report.html"


@dataclass(frozen=True)
class Report:
    """What `train` made. Losses are None where none was measured."""

    out: Path
    steps: int
    """Optimizer steps that were taken, those without an update too."""
    layers: int
    """How many layers are trained."""
    samples: int
    dropped: dict[str, int]
    skipped: int
    """Steps whose update was left out."""
    picked: int
    """The step whose checkpoint became the adapter."""
    ended: str
    """Why it took fewer steps than it was told; empty if it did not."""
    seconds: float
    trained_tokens: int
    """Supervised tokens."""
    computed_tokens: int
    """Tokens that went through the layers."""
    given_tokens: int
    """Tokens of the samples, had each been computed by itself."""
    tokens_per_second: float
    """Supervised tokens a second, measurements and checkpoints apart."""
    peak_memory: int
    """Bytes."""
    first_loss: float | None
    last_loss: float | None
    first_val_loss: float | None
    last_val_loss: float | None
    notes: tuple[str, ...]
    fingerprint: str = ""
    """Of the base with this adapter laid over it."""

    def figures(self) -> dict[str, Any]:
        """All of it but where it lies, for the manifest."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "out"}


def train(
    config: TrainConfig,
    *,
    base: Path | None = None,
    overwrite: bool = False,
    resume: str = "no",
    work: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Train the adapter that `config` describes and write it to `config.out`, whole or not at all.

    `base` is the directory of `config.model` where that is a name on the hub; `quiet` leaves the progress bar out.
    `resume`: `yes` goes on with the unfinished run of the same settings, `auto` does so if there is one, `no` refuses
    to lose one unless `overwrite` is set. `work` is where an unfinished run lies, OUT.training by default; one that is
    given stays when the run is done.

    Raises:
        ConfigError: settings that cannot work together, or others than those of the run to be resumed.
        ModelError: no model, or one without a chat template.
        DataError: no rows, a bad row (file:line), or no row that can be trained on.
        OutputError: `config.out` exists and `overwrite` is false, or an unfinished run stands in the way.
        DiskError: there is too little room for the checkpoints, or the disk ran full.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint was saved.
        PunieError: three steps had a loss or gradient that is no finite number, or another process of this run ended.
    """
    if resume not in RESUMES:
        raise ConfigError(f"resume is {resume!r}: it must be one of {', '.join(RESUMES)}")
    check_named(config)
    world = join()
    out = Path(config.out)
    place = work or beside(out)
    if world.leads:
        refuse_same(place, Path(config.data), base or Path(config.model))
        check_free(out, place, overwrite=overwrite, resume=resume)
    inputs = read_inputs(config, base)
    world.require_same("settings, model or rows", identity.hash_json(dataclasses.asdict(inputs.run(world))))
    with claimed(place, writes=world.leads) as held:
        if world.leads:
            sweep_partials(out.parent, out.name)
        if world.any(resume != "no" and world.leads and finished(out, held)):
            report = _report_of(out)
        else:
            report = _train(_Job(inputs, world, held, resume, overwrite=overwrite, quiet=quiet))
        world.barrier()  # no process leaves before OUT is there
        if work is None and world.leads:
            held.remove()
    return report


@dataclass(frozen=True)
class _Job:
    """One call of `train`, on one rank."""

    inputs: Inputs
    world: World
    work: Work
    resume: str
    overwrite: bool
    quiet: bool

    def say(self, text: str) -> None:
        if self.world.leads and not self.quiet:
            print(f"punie-mlx: {text}", file=sys.stderr)


def _train(job: _Job) -> Report:
    config, world = job.inputs.config, job.world
    with compiling(config.compile) as compiled, wired():
        prepared = prepare(job.inputs, world, compiled=compiled, quiet=job.quiet or not world.leads)
        for note in prepared.notes:
            job.say(note)
        optimizer = make_optimizer(config, prepared.steps)
        optimizer.init(prepared.model.trainable_parameters())
        _require_disk(prepared, state_to_arrays(optimizer), job.work)
        start = _starting_point(job, prepared)
        progress = Progress()
        if start is not None:
            progress = checkpoint.read(start)
            checkpoint.restore(start, prepared.model, optimizer)
        world.require_same("checkpoint", f"{progress.step}")
        trainer = Trainer(
            prepared.model, prepared.seam, optimizer,
            world=world, clip_norm=config.clip_norm, seed=config.seed, compiled=compiled,
            grad_checkpoint=config.grad_checkpoint,
        )  # fmt: skip
        with _recorder(job, prepared, progress.step) as recorder, Interrupt(quiet=job.quiet or not world.leads) as stop:
            session = Session(prepared, trainer, job.work, world, recorder, stop, progress, go_on=_remedy(job.resume))
            session.run()
        return _finish(session, overwrite=job.overwrite) if world.leads else _report(session)


def _remedy(resume: str) -> str:
    return "the same command goes on from there" if resume == "auto" else "--resume goes on from there"


def _require_disk(prepared: Prepared, state: dict[str, mx.array], work: Work) -> None:
    """Room for the checkpoints that are kept, the best one and the one being written."""
    config = prepared.config
    arrays = [*adapters.trainable(prepared.model).values(), *state.values()]
    one = sum(a.nbytes for a in arrays) + SMALL_FILES
    kept = min(config.keep, -(-prepared.steps // config.save_every)) + (2 if config.pick != "last" else 1)
    hardware.require_disk(work.path, one * kept, f"the adapter, with {kept} checkpoints on the way,")


def _starting_point(job: _Job, prepared: Prepared) -> Path | None:
    """The checkpoint to go on from: the first process looks, and all take the same."""
    path, config = None, prepared.config
    if job.world.leads:
        run = job.inputs.run(job.world)
        path = take_up(job.work, run, resume=job.resume, overwrite=job.overwrite, say=job.say)
        job.work.file(RECIPE).write_text(config.recipe(), encoding="utf-8")
        lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in prepared.bad]
        if lines:
            job.work.file(QUARANTINE).write_text("".join(lines), encoding="utf-8")
    step = int(job.world.broadcast(mx.array(int(path.name) if path else 0)).item())
    return job.work.checkpoints / checkpoint.name_of(step) if step else None


def _recorder(job: _Job, prepared: Prepared, step: int) -> Recorder:
    if not job.world.leads:
        return Recorder.silent()
    config = prepared.config
    return Recorder(
        job.work.path, prepared.steps, quiet=job.quiet, trackers=config.report_to, project=config.project,
        settings=config.settings(), from_step=step,
    )  # fmt: skip


def _report(session: Session) -> Report:
    """What this run has made so far; without the fingerprint, which only a written adapter has."""
    progress, prepared = session.progress, session.prepared
    return Report(
        out=Path(prepared.config.out),
        steps=progress.step,
        layers=adapters.layer_count(prepared.model, prepared.config),
        samples=len(prepared.samples.items),
        dropped=dict(prepared.samples.dropped),
        skipped=len(progress.skips),
        picked=session.picked,
        ended=progress.ended,
        seconds=progress.seconds,
        trained_tokens=progress.tokens,
        computed_tokens=progress.computed,
        given_tokens=progress.given,
        tokens_per_second=round(progress.tokens / max(progress.step_seconds, 1e-9), 1),
        peak_memory=mx.get_peak_memory(),
        first_loss=progress.first_loss,
        last_loss=progress.last_loss,
        first_val_loss=progress.first_val_loss,
        last_val_loss=progress.last_val_loss,
        notes=prepared.notes,
    )


def _finish(session: Session, *, overwrite: bool) -> Report:
    """Write OUT, whole: the picked checkpoint, and what there is to say about it."""
    prepared, work = session.prepared, session.work
    config, there = prepared.config, work.content()
    report = _report(session)
    with atomic_dir(report.out, overwrite=overwrite or bool(there.get("overwrite"))) as tmp:
        assemble(work, work.checkpoints / checkpoint.name_of(report.picked), tmp)
        (tmp / RECIPE).write_text(config.recipe(), encoding="utf-8")
        report = dataclasses.replace(report, fingerprint=identity.fingerprint(prepared.base, tmp))
        manifest = identity.manifest(
            "adapter", inputs=prepared.hashes, settings=config.settings(), run=there.get("id"), **report.figures()
        )
        identity.write_manifest(tmp, manifest)
        write_report(tmp / REPORT, tmp / METRICS, manifest)
    return report


def _report_of(out: Path) -> Report:
    """The report of a finished run, from its manifest."""
    manifest = identity.read_manifest(out) or {}
    figures: dict[str, Any] = {f.name: manifest.get(f.name) for f in dataclasses.fields(Report) if f.name != "out"}
    return Report(out=out, **figures)
