"""Training for real on the embedded base: what it learns, writes, refuses and leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from punie_mlx import hardware, identity
from punie_mlx.errors import ConfigError, DataError, DiskError, ModelError, OutputError, PunieError
from punie_mlx.train import run
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.metrics import Metrics
from punie_mlx.train.run import Batches, pad, train, turn_loss
from punie_mlx.weights import load_lazily


@pytest.fixture(scope="module")
def trained(tiny_base, rows, tmp_path_factory):
    """An adapter of 12 iterations, its report and config."""
    out = tmp_path_factory.mktemp("train") / "adapter"
    config = TrainConfig(
        model=str(tiny_base), data=str(rows), out=str(out), iters=12, steps_per_eval=4, steps_per_report=4
    )
    return out, train(config, quiet=True), config


def test_the_losses_fall_and_are_recorded(trained):
    out, report, _ = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    valid = [line["val_loss"] for line in lines if "val_loss" in line]
    assert len(losses) == 3 and len(valid) == 4
    assert losses[-1] < losses[0] and valid[-1] < valid[0]
    assert report.last_loss == pytest.approx(losses[-1], abs=1e-5)
    assert report.trained_tokens > 0 and report.samples == 24 and report.dropped == {}


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


def test_the_adapter_names_its_base_and_inputs(trained, tiny_base, rows):
    out, report, config = trained
    adapter = json.loads((out / "adapter_config.json").read_text())
    base = identity.fingerprint(tiny_base)
    assert adapter["punie"]["base_fingerprint"] == base
    manifest = identity.read_manifest(out)
    assert manifest["kind"] == "adapter" and manifest["settings"] == config.settings()
    assert manifest["inputs"] == {"model": base, "data": run.hash_data(rows)}
    assert report.fingerprint == identity.fingerprint(tiny_base, out)
    assert {p.name for p in out.iterdir()} == {
        "adapters.safetensors", "adapter_config.json", "manifest.json", "metrics.jsonl", "recipe.yaml",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(trained, tmp_path):
    from dataclasses import replace

    out, _, config = trained
    # Other steps between validations: measuring must not change what is learned.
    train(replace(config, out=str(tmp_path / "again"), steps_per_eval=5, val_batches=2), quiet=True)
    train(replace(config, out=str(tmp_path / "other"), seed=1, val_batches=1), quiet=True)
    first, again, other = (
        identity.hash_file(p / "adapters.safetensors") for p in (out, tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


def test_a_quantized_base_is_trained_too(tiny_base, rows, tmp_path):
    from mlx_lm.utils import save_model

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    model = load_lazily(base)
    nn.quantize(model, 64, 4)
    save_model(base, model)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))
    told = TrainConfig(model=str(base), data=str(rows), out=str(tmp_path / "out"), iters=8, val_batches=2)
    report = train(told, quiet=True)
    assert report.last_val_loss is not None and report.last_val_loss < report.first_val_loss
    mlx_lm.load(str(base), adapter_path=str(tmp_path / "out"))


def test_long_rows_never_give_nan(tiny_base, rows, make_row, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    long = make_row(1)
    long["messages"][1]["content"] *= 100
    (data / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (long, make_row(2))))
    config = TrainConfig(
        model=str(tiny_base), data=str(data), out=str(tmp_path / "out"), iters=4, steps_per_report=1, max_seq_length=512
    )
    report = train(config, quiet=True)
    assert report.dropped == {"too long": 2} and report.samples == 2
    assert report.first_val_loss is None  # there is no valid.jsonl
    weights = mx.load(str(tmp_path / "out" / "adapters.safetensors"))
    assert all(mx.isfinite(w).all().item() for w in weights.values())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(loss, tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as f, Metrics(f, 10, quiet=True) as metrics:
        metrics.on_val_loss_report({"iteration": 0, "val_loss": 2.0, "val_time": 0.1})
        with pytest.raises(PunieError, match=f"the train loss is {loss} at iteration 5: train with a lower"):
            metrics.on_train_loss_report({"iteration": 5, "train_loss": loss, "trained_tokens": 9})
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1  # JSON has no NaN


# ---- the loss and the batches ----


class Fixed(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self, logits: mx.array):
        super().__init__()
        self.logits = logits

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.broadcast_to(self.logits, (*tokens.shape, self.logits.size))


def test_the_loss_counts_the_turn_and_nothing_else():
    logits = mx.array([0.0, 1.0, 2.0, 3.0])
    surprise = nn.losses.cross_entropy(mx.broadcast_to(logits, (4, 4)), mx.arange(4))
    batch, bounds = pad([([3, 3, 1, 2], 2), ([0, 2, 1], 1)])
    loss, count = turn_loss(Fixed(logits), batch, bounds)
    wanted = [1, 2, 2, 1]  # targets of both turns: not the prompts, not the padding
    assert count.item() == 4
    assert loss.item() == pytest.approx(np.mean([surprise[t].item() for t in wanted]), rel=1e-5)


def test_a_turn_at_the_very_end_of_the_batch_is_whole():
    batch, bounds = pad([(list(range(32)), 31)])
    assert batch.shape == (1, 33)
    _, count = turn_loss(Fixed(mx.zeros(40)), batch, bounds)
    assert count.item() == 1


def test_an_epoch_sees_each_sample_once_with_neighbours_in_length():
    samples = [([i] * length, 1) for i, length in enumerate([90, 3, 40, 5, 80, 4, 41, 7, 6])]
    seen = []
    for batch, bounds in Batches(0)(samples, 2, 128):
        seen += batch[:, 0].tolist()
        lengths = bounds[:, 1].tolist()
        assert max(lengths) - min(lengths) <= 39  # in the order given, it would be 87
    assert sorted(seen) == list(range(9))  # also the one left over


def test_the_order_depends_on_the_seed_only():
    samples = [([i] * 5, 1) for i in range(20)]

    def order(seed: int) -> list[int]:
        np.random.seed(int(time.time()))
        return [batch[0, 0].item() for batch, _ in Batches(seed)(samples, 1, 128)]

    assert order(0) == order(0) != order(1)


def test_epochs_differ():
    samples = [([i] * 5, 1) for i in range(20)]
    batches = Batches(0)(samples, 1, 128, loop=True)
    first, second = ([next(batches)[0][0, 0].item() for _ in samples] for _ in range(2))
    assert first != second and sorted(first) == sorted(second)


# ---- what is refused ----


def told(tiny_base, rows, tmp_path, **changes) -> TrainConfig:
    settings = {"model": str(tiny_base), "data": str(rows), "out": str(tmp_path / "out"), "iters": 2}
    return TrainConfig(**{**settings, **changes})


def test_missing_inputs_are_named(tiny_base, rows, tmp_path):
    with pytest.raises(ModelError, match=r"model directory .* does not exist"):
        train(told(tiny_base, rows, tmp_path, model=str(tmp_path / "none")))
    with pytest.raises(DataError, match="does not exist"):
        train(told(tiny_base, rows, tmp_path, data=str(tmp_path / "none")))
    for name in ("model", "data", "out"):
        with pytest.raises(ConfigError, match=f"no {name} was given"):
            train(told(tiny_base, rows, tmp_path, **{name: ""}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "train.jsonl holds no rows"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"mess', r"train.jsonl:2: this line is not JSON"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "holds nothing to train on: no assistant turns"),
    ],
    ids=["empty", "not JSON", "no turns"],
)
def test_bad_rows_are_named(content, said, tiny_base, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        train(told(tiny_base, data, tmp_path))
    assert not (tmp_path / "out").exists()


def test_too_large_a_batch_is_said(tiny_base, rows, tmp_path):
    with pytest.raises(ConfigError, match="gives 24 samples: lower it"):
        train(told(tiny_base, rows, tmp_path, batch_size=25))


def test_an_existing_output_stays(tiny_base, rows, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        train(told(tiny_base, rows, tmp_path))
    assert list((tmp_path / "out").iterdir()) == []
    train(told(tiny_base, rows, tmp_path), overwrite=True, quiet=True)
    assert (tmp_path / "out" / "adapters.safetensors").is_file()


def test_no_room_is_said_before_training(tiny_base, rows, full_disk, tmp_path):
    with pytest.raises(DiskError, match="the adapter needs"):
        train(told(tiny_base, rows, tmp_path, out=str(full_disk / "adapter")), quiet=True)
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_runs_full_leaves_nothing(tiny_base, rows, full_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "require_disk", lambda *_: None)  # as if the room went while training
    with pytest.raises(DiskError, match="ran full"):
        train(told(tiny_base, rows, tmp_path, out=str(full_disk / "adapter")), quiet=True)
    assert list(full_disk.iterdir()) == []


def test_ctrl_c_leaves_nothing_and_says_so(tiny_base, rows, tmp_path):
    out = tmp_path / "out"
    verb = ["train", "--model", tiny_base, "--data", rows, "--out", out, "--iters", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "punie_mlx", *verb], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "of 100000 iterations: no adapter written" in said
    assert list(tmp_path.iterdir()) == []
