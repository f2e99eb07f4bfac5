"""Training for real on the embedded base: what it learns, writes, refuses, and leaves behind when it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

from punie_mlx import hardware, identity
from punie_mlx.errors import ConfigError, DataError, DiskError, ModelError, OutputError, PunieError, StoppedError
from punie_mlx.files import locked
from punie_mlx.train import checkpoint, command, prepare, session
from punie_mlx.train.checkpoint import Progress
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loop import Outcome, Trainer
from punie_mlx.train.run import train
from punie_mlx.train.valid import judge
from punie_mlx.train.work import LOCK, beside
from punie_mlx.weights import load_lazily


@pytest.fixture
def told(tiny_base, rows, tmp_path) -> Callable[..., TrainConfig]:
    """A config of two steps, with changes."""

    def make(**changes: Any) -> TrainConfig:
        settings = {"model": str(tiny_base), "data": str(rows), "out": str(tmp_path / "out"), "iters": 2, "layers": 2}
        return TrainConfig(**{**settings, "val_batches": 1, **changes})

    return make


@pytest.fixture(scope="module")
def trained(tiny_base, rows, tmp_path_factory):
    """An adapter of 12 steps, its report and config."""
    out = tmp_path_factory.mktemp("train") / "adapter"
    config = TrainConfig(
        model=str(tiny_base), data=str(rows), out=str(out), iters=12, steps_per_eval=4, steps_per_report=4, save_every=5
    )
    return out, train(config, quiet=True), config


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def weights_of(out: Path) -> bytes:
    return (out / "adapters.safetensors").read_bytes()


# ---- what it learns and writes ----


def test_the_losses_fall_and_are_recorded(trained):
    out, report, _ = trained
    losses, valid = ([line["loss"] for line in lines(out, kind)] for kind in ("train", "valid"))
    assert [line["step"] for line in lines(out, "train")] == [4, 8, 12]
    assert [line["step"] for line in lines(out, "valid")] == [0, 4, 8, 12]
    assert losses[-1] < losses[0] and valid[-1] < valid[0]
    assert report.last_loss == pytest.approx(losses[-1], abs=1e-5)
    assert (report.steps, report.picked, report.samples, report.dropped) == (12, 12, 24, {})
    assert 0 < report.computed_tokens <= report.given_tokens
    assert lines(out, "train")[-1]["supervised_tokens"] == report.trained_tokens > 0


def test_stock_mlx_lm_loads_the_adapter(trained, tiny_base):
    out, _, _ = trained
    tokens = mx.array([[1, 5, 20, 8]])
    plain, adapted = (mlx_lm.load(str(tiny_base), adapter_path=a)[0](tokens) for a in (None, str(out)))
    assert mx.abs(plain - adapted).max().item() > 0.05


def test_all_layers_are_trained_where_there_are_fewer_than_asked(trained):
    out, report, _ = trained
    config = json.loads((out / "adapter_config.json").read_text())
    assert report.layers == config["num_layers"] == 4
    assert config["lora_parameters"] == {"rank": 8, "scale": 20.0, "dropout": 0.0}


def test_the_result_is_whole_and_nothing_else_is_left(trained, tiny_base, rows):
    out, report, config = trained
    base = identity.fingerprint(tiny_base)
    assert json.loads((out / "adapter_config.json").read_text())["punie"]["base_fingerprint"] == base
    manifest = identity.read_manifest(out)
    assert manifest["kind"] == "adapter" and manifest["settings"] == config.settings()
    assert manifest["inputs"] == {"model": base, "data": prepare.hash_data(rows)}
    assert report.fingerprint == manifest["fingerprint"] == identity.fingerprint(tiny_base, out)
    assert {p.name for p in out.iterdir()} == {
        "adapters.safetensors", "adapter_config.json", "checkpoints", "manifest.json", "metrics.jsonl", "recipe.yaml",
        "report.html",
    }  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["adapter"]
    assert [p.name for p in checkpoint.found(out / "checkpoints")] == ["0000005", "0000010", "0000012"]
    assert weights_of(out) == weights_of(out / "checkpoints" / "0000012")
    assert not list(out.rglob("optimizer.safetensors"))  # of no use any more, and large


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(trained, tmp_path):
    out, _, config = trained
    # Measured, saved and reported at other times: that must not change what is learned.
    other = {"steps_per_eval": 5, "val_batches": 2, "save_every": 7, "steps_per_report": 3}
    train(replace(config, out=str(tmp_path / "again"), **other), quiet=True)
    train(replace(config, out=str(tmp_path / "other"), seed=1, val_batches=1), quiet=True)
    assert weights_of(out) == weights_of(tmp_path / "again") != weights_of(tmp_path / "other")


def test_every_row_is_seen_once_an_epoch(trained, told, rows):
    """The last batch of 24 samples in batches of 5 has only 4."""
    _, _, config = trained
    report = train(told(batch_size=5, epochs=1.0), quiet=True)
    prepared = prepare.prepare(prepare.read_inputs(config, None), command.World(), compiled=False)
    assert report.steps == 5
    assert report.trained_tokens == sum(sample.supervised for sample in prepared.samples.items)


def test_a_quantized_base_is_trained_too(tiny_base, told, tmp_path):
    from mlx_lm.utils import save_model

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    model = load_lazily(base)
    nn.quantize(model, 64, 4)
    save_model(base, model)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))
    report = train(told(model=str(base), iters=8), quiet=True)
    assert report.last_val_loss is not None and report.last_val_loss < report.first_val_loss
    mlx_lm.load(str(base), adapter_path=str(tmp_path / "out"))


def test_long_rows_never_give_nan(make_row, told, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    long = make_row(1)
    long["messages"][1]["content"] *= 100
    (data / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (long, make_row(2))))
    report = train(told(data=str(data), iters=4, max_seq_length=512), quiet=True)
    assert sum(report.dropped.values()) == 2 and report.samples == 2
    assert report.first_val_loss is None  # there is no valid.jsonl
    weights = mx.load(str(tmp_path / "out" / "adapters.safetensors"))
    assert all(mx.isfinite(w).all().item() for w in weights.values())


# ---- a run that dies, and goes on ----


class Killed(BaseException):
    """Ends a run as a crash would: nothing may catch it."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, before_step: int) -> Iterator[None]:
    """The process is gone just before it has made that step."""
    plain = Trainer.step

    def step(self: Trainer, number: int, *args: Any, **more: Any) -> Outcome:
        if number == before_step:
            raise Killed
        return plain(self, number, *args, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "step", step)
        yield


FULL = {
    "iters": 9, "batch_size": 2, "accumulate": 2, "dropout": 0.2, "optimizer": "adamw", "weight_decay": 0.01,
    "schedule": "cosine", "warmup": 2, "steps_per_eval": 4, "steps_per_report": 5, "save_every": 2,
}  # fmt: skip


def comparable(out: Path) -> list[dict[str, Any]]:
    """What was measured, without what a clock or the machine decides, and without that it was resumed."""
    kept = ("kind", "step", "loss", "learning_rate", "grad_norm", "supervised_tokens", "epoch", "path")
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k in kept} for line in every if line["kind"] != "resume"]


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(told, tmp_path, monkeypatch):
    whole = train(told(**FULL), quiet=True)
    config = told(**FULL, out=str(tmp_path / "killed"))
    for before in (3, 4, 8):  # between two checkpoints; at one; after several
        with dying(monkeypatch, before):
            train(config, resume="auto", quiet=True)
        assert not (tmp_path / "killed").exists() and beside(tmp_path / "killed").is_dir()
        mx.random.seed(before)  # what a new process has drawn before does not matter
    report = train(config, resume="yes", quiet=True)
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "out")
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "out")
    assert [line["step"] for line in lines(tmp_path / "killed", "resume")] == [2, 4, 8]
    same = ("trained_tokens", "computed_tokens", "first_loss", "last_loss", "first_val_loss", "last_val_loss", "steps")
    assert all(getattr(report, name) == getattr(whole, name) for name in same)
    assert not beside(tmp_path / "killed").exists()


def test_a_damaged_checkpoint_costs_its_steps_only(told, tmp_path, monkeypatch, capsys):
    config = told(iters=5, save_every=1)
    with dying(monkeypatch, 3):
        train(config, quiet=True)
    (beside(tmp_path / "out") / "checkpoints" / "0000003" / "optimizer.safetensors").write_bytes(b"")
    train(config, resume="yes")
    assert "0000003" in capsys.readouterr().err
    assert lines(tmp_path / "out", "resume")[0]["step"] == 2
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


def test_an_unfinished_run_is_not_lost_by_accident(told, tmp_path, monkeypatch):
    config, unfinished = told(iters=4, save_every=1), beside(tmp_path / "out")
    with dying(monkeypatch, 2):
        train(config, quiet=True)
    with pytest.raises(OutputError, match=r"out\.training holds .* not finished: pass --resume .*or --overwrite"):
        train(config, quiet=True)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.0001 and is 0\.001; rank was 8 and is 4"):
        train(replace(config, rank=4, learning_rate=1e-3), resume="yes", quiet=True)
    other = tmp_path / "data"
    shutil.copytree(config.data, other)
    (other / "train.jsonl").write_text((other / "train.jsonl").read_text() * 2)
    with pytest.raises(ConfigError, match="the data has changed"):
        train(replace(config, data=str(other)), resume="yes", quiet=True)
    assert [p.name for p in checkpoint.found(unfinished / "checkpoints")] == ["0000001", "0000002"]
    # What only decides what is kept and shown may differ.
    report = train(replace(config, save_every=3, steps_per_report=1, keep=1), resume="yes", quiet=True)
    assert report.steps == 4 and not unfinished.exists()
    with pytest.raises(OutputError, match="It is finished"):
        train(config, resume="yes", quiet=True)


def test_another_base_is_not_gone_on_with(told, tiny_base, tmp_path, monkeypatch):
    config = told(iters=4, save_every=1, model=str(tmp_path / "base"))
    shutil.copytree(tiny_base, tmp_path / "base")
    with dying(monkeypatch, 2):
        train(config, quiet=True)
    template = tmp_path / "base" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another one #}")
    with pytest.raises(ConfigError, match="the model has changed"):
        train(config, resume="yes", quiet=True)
    report = train(config, resume="auto", quiet=True)  # as the pipeline does: what is void is made anew
    assert report.steps == 4 and lines(tmp_path / "out", "resume") == []


def test_overwrite_begins_again_and_keeps_the_old_result_until_the_end(told, tmp_path, monkeypatch):
    train(told(iters=1), quiet=True)
    old = weights_of(tmp_path / "out")
    config = told(iters=3, save_every=1, seed=7)
    with dying(monkeypatch, 2):
        train(config, overwrite=True, quiet=True)
    assert weights_of(tmp_path / "out") == old
    report = train(config, resume="yes", quiet=True)  # that it may be overwritten was said at the start
    assert report.steps == 3 and weights_of(tmp_path / "out") != old
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_run_killed_before_its_first_checkpoint_stands_in_nobodys_way(told, tmp_path):
    left = beside(tmp_path / "out")
    (left / "checkpoints" / ".0000001.x.partial").mkdir(parents=True)
    (left / "run.json").write_text('{"settings": ')
    train(told(), quiet=True)
    assert not left.exists() and (tmp_path / "out").is_dir()


def test_killed_between_the_result_and_clearing_up_nothing_is_done_twice(told, tmp_path, monkeypatch):
    config = told()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("punie_mlx.train.work.Work.remove", lambda self: (_ for _ in ()).throw(Killed))
        train(config, quiet=True)
    made = (tmp_path / "out" / "manifest.json").read_bytes()
    report = train(config, resume="yes", quiet=True)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == made and report.steps == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_runs_do_not_share_a_directory(told, tmp_path):
    said = f"another training run \\(process {os.getpid()}\\) works in"
    with locked(beside(tmp_path / "out") / LOCK, "training run"), pytest.raises(OutputError, match=said):
        train(told(), quiet=True)
    train(told(), quiet=True)


def test_a_lock_on_a_directory_that_was_just_removed_is_none(tmp_path, monkeypatch):
    """The run that held it ended, and cleared up, between this one's opening of the file and its lock."""
    file, plain, calls = tmp_path / "work" / LOCK, fcntl.flock, []

    def flock(descriptor: Any, operation: int) -> None:
        if not calls:
            shutil.rmtree(file.parent)
        calls.append(operation)
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(file, "training run"):
        assert file.read_text() == str(os.getpid()) and len(calls) == 2
        with pytest.raises(OutputError, match="another training run"), locked(file, "training run"):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(number, told, tmp_path, monkeypatch):
    plain = session.Session._step

    def step(self: session.Session) -> Outcome:
        if self.progress.step == 2:
            signal.raise_signal(number)
        return plain(self)

    config = told(iters=5)
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="after step 3 of 5, which is saved") as e:
        patch.setattr(session.Session, "_step", step)
        train(config, quiet=True)
    assert e.value.exit_code == 128 + number and "--resume" in str(e.value)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [p.name for p in checkpoint.found(beside(tmp_path / "out") / "checkpoints")] == ["0000003"]
    train(config, resume="yes", quiet=True)
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


# ---- steps that are no numbers ----


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Before these steps an adapter weight is NaN, and after them what it was."""
    plain = Trainer.step

    def step(self: Trainer, number: int, *args: Any, **more: Any) -> Outcome:
        name, value = next(iter(checkpoint.trainable(self.model).items()))
        if number in steps:
            self.model.load_weights([(name, mx.full(value.shape, float("nan")))], strict=False)
        outcome = plain(self, number, *args, **more)
        if number in steps:
            self.model.load_weights([(name, value)], strict=False)
        return outcome

    monkeypatch.setattr(Trainer, "step", step)


def test_a_step_that_is_no_number_is_skipped_and_named(told, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 1, 3)
    report = train(told(iters=5, steps_per_report=5))
    assert report.skipped == 2 and report.steps == 5
    skips = lines(tmp_path / "out", "skip")
    assert [s["step"] for s in skips] == [2, 4] and all(s["reason"] == "the loss is nan" for s in skips)
    assert all("train.jsonl:" in row for s in skips for row in s["rows"])
    assert skips[0]["rows"][0] in capsys.readouterr().err
    assert lines(tmp_path / "out", "train")[0]["loss"] > 0  # the mean of the steps that were taken
    weights = mx.load(str(tmp_path / "out" / "adapters.safetensors"))
    assert all(mx.isfinite(w).all().item() for w in weights.values())


def test_the_third_one_stops_the_run_and_leaves_the_last_checkpoint(told, tmp_path, monkeypatch):
    poison(monkeypatch, 0, 2, 4)
    with pytest.raises(PunieError, match=r"step 1: the loss is nan at .*train\.jsonl:\d+.*step 5: .*0000004"):
        train(told(iters=9, save_every=1), quiet=True)
    kept = checkpoint.found(beside(tmp_path / "out") / "checkpoints")
    assert kept[-1].name == "0000004" and len(checkpoint.read(kept[-1]).skips) == 2
    assert not (tmp_path / "out").exists()


# ---- which checkpoint, and when it is enough ----


def test_the_best_checkpoint_by_loss_is_kept_and_picked(told, tmp_path, monkeypatch):
    """With a rate that ruins what it has learned, the best one is not the last."""
    config = told(iters=8, steps_per_eval=2, pick="loss", keep=1, learning_rate=0.02, optimizer="sgd", clip_norm=0.0)
    report = train(config, quiet=True)
    measured = {line["step"]: line["loss"] for line in lines(tmp_path / "out", "valid") if line["step"]}
    best = min(measured, key=lambda step: measured[step])
    assert report.picked == best != 8
    assert [p.name for p in checkpoint.found(tmp_path / "out" / "checkpoints")] == [f"{best:07}", "0000008"]
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "out" / "checkpoints" / f"{best:07}")


def test_it_ends_early_where_nothing_gets_better(told, tmp_path):
    config = told(iters=30, steps_per_eval=1, patience=2, pick="loss", learning_rate=1e-30)
    report = train(config, quiet=True)
    assert report.steps == 3 and report.picked == 1 and "no better" in report.ended
    assert lines(tmp_path / "out", "checkpoint")[-1]["step"] == 3


def test_behaviour_is_measured_by_answers_and_picks_the_checkpoint(told, root, tmp_path, monkeypatch):
    suite = tmp_path / "suite.jsonl"
    suite.write_text("".join((root / "data/suites/discrimination.jsonl").read_text().splitlines(True)[:3]))
    monkeypatch.setattr(prepare, "MAX_TOKENS", 8)
    report = train(told(pick="behaviour", select=str(suite), select_cases=3, steps_per_eval=1), quiet=True)
    scored = lines(tmp_path / "out", "select")
    assert [line["step"] for line in scored] == [0, 1, 2] and scored[0]["calls"] + scored[0]["direct"] == 3
    assert report.picked in (1, 2)
    assert identity.read_manifest(tmp_path / "out")["inputs"]["suite"] == identity.hash_file(suite)


class Counted:
    """A behaviour with that share of right cases."""

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy


def test_behaviour_comes_before_the_loss_and_the_loss_decides_where_it_is_the_same():
    progress = Progress()
    better = []
    for step, (accuracy, loss) in enumerate(
        [(0.5, 1.0), (0.4, 0.1), (0.5, 1.1), (0.5, 0.9), (0.6, 5.0), (0.6, None)], 1
    ):
        progress.step = step
        better.append(judge(progress, loss, Counted(accuracy), pick="behaviour", patience=0))
    assert better == [True, False, False, True, True, False] and progress.best_step == 5 and progress.stale == 1


def test_a_loss_that_is_no_number_is_never_the_best():
    progress = Progress(step=1)
    assert not judge(progress, float("nan"), None, pick="loss", patience=2) and progress.best == []
    assert not judge(progress, float("inf"), None, pick="loss", patience=2) and "2 validations" in progress.ended
    assert json.dumps(progress.best) == "[]"


def test_picking_needs_something_to_measure(told, rows, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copyfile(rows / "train.jsonl", data / "train.jsonl")
    for settings in ({"pick": "loss"}, {"patience": 3}):
        with pytest.raises(ConfigError, match=r"has no valid\.jsonl"):
            train(told(data=str(data), **settings), quiet=True)


# ---- what is refused ----


def test_missing_inputs_are_named(told, tmp_path):
    with pytest.raises(ModelError, match=r"model directory .* does not exist"):
        train(told(model=str(tmp_path / "none")))
    with pytest.raises(DataError, match="does not exist"):
        train(told(data=str(tmp_path / "none")))
    for name in ("model", "data", "out"):
        with pytest.raises(ConfigError, match=f"no {name} was given"):
            train(told(**{name: ""}))
    with pytest.raises(ConfigError, match="resume is 'maybe'"):
        train(told(), resume="maybe")
    with pytest.raises(OutputError, match=r"no checkpoint in .* Leave --resume out"):
        train(told(), resume="yes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "train.jsonl holds no rows"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"mess', r"train.jsonl:2: this line is not JSON"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "holds nothing to train on: 1 no assistant turn"),
    ],
    ids=["empty", "not JSON", "no turns"],
)
def test_bad_rows_are_named(content, said, told, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        train(told(data=str(data)))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_bad_rows_can_be_left_out_and_are_kept_apart(told, make_row, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps(make_row(1)) + '\n{"mess\n')
    report = train(told(data=str(data), skip_bad=True), quiet=True)
    assert report.samples == 2
    (bad,) = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    assert bad["line"] == 2 and bad["raw"] == '{"mess' and "not JSON" in bad["reason"]


def test_too_large_a_batch_is_said(told, tmp_path):
    with pytest.raises(ConfigError, match="gives 24 samples: lower it"):
        train(told(batch_size=25))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_stays(told, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        train(told())
    assert list((tmp_path / "out").iterdir()) == []
    train(told(), overwrite=True, quiet=True)
    assert (tmp_path / "out" / "adapters.safetensors").is_file()


def test_no_room_is_said_before_training(told, full_disk):
    with pytest.raises(DiskError, match="the adapter, with 2 checkpoints on the way, needs"):
        train(told(layers=4, out=str(full_disk / "adapter")), quiet=True)
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_runs_full_leaves_nothing_half_written(told, full_disk, monkeypatch):
    monkeypatch.setattr(hardware, "require_disk", lambda *_: None)  # as if the room went while training
    with pytest.raises(DiskError, match="ran full"):
        train(told(layers=4, out=str(full_disk / "adapter")), quiet=True)
    assert list(full_disk.iterdir()) == []


# ---- the verb ----


def test_a_dry_run_says_what_would_be_done_and_does_nothing(told, tmp_path, capsys):
    config = told(batch_size=2, epochs=2.0)
    assert command.run_train(config, base=None, overwrite=False, dry_run=True) is None
    assert "24 steps, 2.00 epochs of 12 steps, on 24 samples" in (said := capsys.readouterr().out)
    assert "GB of memory" in said and "tokens computed for" in said
    command.run_train(config, base=None, overwrite=False, dry_run=True, as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"] == 24 and 0 < plan["computed_tokens"] < plan["given_tokens"]
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_what_came_of_it(told, capsys):
    command.run_train(told(), base=None, overwrite=False, as_json=True, quiet=True)
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 2 and report["fingerprint"]
    shown = {
        **report,
        "out": Path(report["out"]),
        "picked": 1,
        "ended": "enough",
        "skipped": 1,
        "dropped": {"empty": 3},
    }
    said = command.summary(command.Report(**shown))
    for part in (
        "2 steps in",
        "that of step 1",
        "ended early: enough",
        "1 steps were skipped",
        "3 empty",
        "validation loss",
    ):
        assert part in said


def test_a_disk_without_room_for_a_lock_is_said(full_disk):
    (full_disk / "filler").write_bytes(bytes(shutil.disk_usage(full_disk).free - 4096))
    (full_disk / "run").mkdir()
    with contextlib.suppress(OSError), (full_disk / "rest").open("wb", buffering=0) as f:
        while f.write(bytes(512)):
            pass
    with pytest.raises(DiskError, match="free some space"), locked(full_disk / "run" / LOCK, "training run"):
        pytest.fail("held without room to say by whom")
