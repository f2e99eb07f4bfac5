"""The steps of a run from where it stands, with all that happens between them: figures, measurements, checkpoints."""

from __future__ import annotations

import dataclasses
import signal
import time

import mlx.core as mx

from punie_mlx.errors import PunieError, StoppedError
from punie_mlx.train import checkpoint
from punie_mlx.train.checkpoint import Progress, Window
from punie_mlx.train.distributed import World
from punie_mlx.train.interrupt import Interrupt
from punie_mlx.train.loop import Outcome, Trainer
from punie_mlx.train.metrics import Recorder
from punie_mlx.train.optimizers import current_rate
from punie_mlx.train.plan import Step
from punie_mlx.train.prepare import Prepared
from punie_mlx.train.valid import judge, score
from punie_mlx.train.work import Work

MOST_SKIPS = 3  # steps whose loss or gradient was no finite number; at the last of them the run stops


class Session:
    """The steps of a run from where it stands, with all that happens between them."""

    def __init__(
        self,
        prepared: Prepared,
        trainer: Trainer,
        work: Work,
        world: World,
        recorder: Recorder,
        stop: Interrupt,
        progress: Progress,
        *,
        go_on: str,
    ) -> None:
        self.prepared, self.trainer, self.work, self.progress = prepared, trainer, work, progress
        self._config, self._world, self._recorder, self._stop = prepared.config, world, recorder, stop
        self._go_on = go_on
        self._spent = progress.seconds  # in earlier processes
        self._began = time.perf_counter()

    @property
    def done(self) -> bool:
        return bool(self.progress.ended) or self.progress.step >= self.prepared.steps

    def run(self) -> None:
        """Take the steps that are left, and save the last. Raises `StoppedError`, `PunieError`, `DiskError`."""
        mx.reset_peak_memory()
        if self.progress.step:
            self._recorder.record("resume", self.progress.step)
        else:
            self._measure()
        while not self.done:
            outcome = self._step()
            step, better = self.progress.step, False
            if step % self._config.steps_per_report == 0 or self.done:
                self._report_losses()
            if step % self._config.steps_per_eval == 0 or self.done:
                better = self._measure()
            stopped = outcome.stop and not self.done
            if step % self._config.save_every == 0 or self.done or stopped or (better and self._config.pick != "last"):
                self._save()
            if stopped:
                self._world.barrier()  # the first process has saved before another one ends
                raise self._stopped()

    def _step(self) -> Outcome:
        began = time.perf_counter()
        step = self.prepared.planner.step(self.progress.step)
        outcome = self.trainer.step(self.progress.step, step, stop=self._stop.signum != 0)
        self.progress.step += 1
        self.progress.computed += step.computed
        self.progress.given += step.given
        window = self.progress.window
        seconds = time.perf_counter() - began
        window.seconds += seconds
        self.progress.step_seconds += seconds
        if outcome.problem:
            self._skip(step, outcome)
        else:
            self.progress.tokens += step.supervised
            window.tokens += step.supervised
            window.loss += outcome.loss * step.weight
            window.weight += step.weight
            window.norm = outcome.norm
        self._recorder.advance(self.progress.step, outcome.loss)
        return outcome

    def _skip(self, step: Step, outcome: Outcome) -> None:
        rows = self.trainer.blame(step, self.prepared.samples.items)
        self.progress.skips.append({"step": self.progress.step, "reason": outcome.problem, "rows": rows})
        self._recorder.record("skip", self.progress.step, reason=outcome.problem, rows=rows)
        if len(self.progress.skips) >= MOST_SKIPS:
            told = "; ".join(f"step {s['step']}: {s['reason']} at {_few(s['rows'])}" for s in self.progress.skips)
            saved = checkpoint.found(self.work.checkpoints)
            kept = f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was saved before"
            raise PunieError(
                f"{MOST_SKIPS} steps had a loss or gradient that is no finite number ({told}): mend these rows, or "
                f"train with a lower learning rate or scale; {kept}"
            )

    def _report_losses(self) -> None:
        """A line of figures over the steps since the last one."""
        progress, window = self.progress, self.progress.window
        loss = window.loss / window.weight if window.weight else None
        if loss is not None:
            progress.first_loss = loss if progress.first_loss is None else progress.first_loss
            progress.last_loss = loss
        self._recorder.record(
            "train", progress.step, loss=loss, learning_rate=current_rate(self.trainer.optimizer),
            grad_norm=window.norm, supervised_tokens=progress.tokens,
            tokens_per_second=window.tokens / max(window.seconds, 1e-9), peak_memory=mx.get_peak_memory(),
            active_memory=mx.get_active_memory(), epoch=progress.step / self.prepared.planner.steps_per_epoch,
            seconds=self._seconds(),
        )  # fmt: skip
        progress.window = Window()

    def _measure(self) -> bool:
        """Validation loss and behaviour, as far as they are wanted; whether this checkpoint is the best so far."""
        progress, began = self.progress, time.perf_counter()
        loss = behaviour = None
        if self.prepared.validator:
            loss = self.prepared.validator.loss(self.prepared.model)
            self._recorder.record("valid", progress.step, loss=loss, seconds=time.perf_counter() - began)
            progress.first_val_loss = loss if progress.first_val_loss is None else progress.first_val_loss
            progress.last_val_loss = loss
        if self.prepared.probe:
            behaviour = score(self.prepared.probe, self.prepared.model, self._world)
            self._recorder.record("select", progress.step, **dataclasses.asdict(behaviour))
        if progress.step == 0 or (loss is None and behaviour is None):  # the base itself cannot be picked
            return False
        return judge(progress, loss, behaviour, pick=self._config.pick, patience=self._config.patience)

    def _save(self) -> None:
        self.progress.seconds = self._seconds()
        if self._world.leads:
            path = checkpoint.save(
                self.work.checkpoints, self.progress, self.prepared.model, self.trainer.optimizer,
                self.prepared.adapter_config,
            )  # fmt: skip
            checkpoint.prune(self.work.checkpoints, self._config.keep)
            self._recorder.record("checkpoint", self.progress.step, path=f"{path.parent.name}/{path.name}")

    def _stopped(self) -> StoppedError:
        signum = self._stop.signum or signal.SIGTERM  # another process was told
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        where = f"step {self.progress.step} of {self.prepared.steps}"
        return StoppedError(f"stopped by {name} after {where}, which is saved: {self._go_on}", signum)

    def _seconds(self) -> float:
        return round(self._spent + time.perf_counter() - self._began, 2)

    @property
    def picked(self) -> int:
        """The step whose checkpoint becomes the adapter."""
        return self.progress.best_step if self._config.pick != "last" and self.progress.best else self.progress.step


def _few(rows: list[str], most: int = 3) -> str:
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")
