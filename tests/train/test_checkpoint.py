"""Checkpoints: whole or not at all, noticed where they are damaged, and kept as long as they are needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import pytest
from mlx.utils import tree_unflatten

from punie_mlx.errors import DataError, DiskError
from punie_mlx.train import checkpoint
from punie_mlx.train.adapters import describe, trainable
from punie_mlx.train.checkpoint import Progress, Window
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loop import compiling
from punie_mlx.train.optimizers import make_optimizer, state_to_arrays
from punie_mlx.train.prepare import load_for_training


class Small(nn.Module):
    """Something with weights, where no language model is needed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)


def saved(directory: Path, *steps: int, best: int = 0) -> None:
    model, optimizer = Small(), optim.Adam(1e-2)
    optimizer.init(model.trainable_parameters())
    for step in steps:
        checkpoint.save(directory, Progress(step=step, best_step=best), model, optimizer, {"num_layers": 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "schedule": "cosine", "warmup": 2, "iters": 9},
        {"optimizer": "muon", "method": "dora"},
        {"optimizer": "adafactor"},
    ],
    ids=lambda settings: settings["optimizer"],
)
def test_weights_optimizer_and_schedule_come_back_as_they_were(settings, tiny_base, tmp_path):
    """The next update from the checkpoint is, bit for bit, the one that would have come."""
    config = TrainConfig(layers=1, **settings)
    with compiling("auto"):
        models = [load_for_training(tiny_base, config) for _ in range(2)]
        optimizers = [make_optimizer(config, 9) for _ in range(2)]
        for _ in range(3):
            optimizers[0].update(
                models[0], tree_unflatten([(k, mx.sin(v + 1)) for k, v in trainable(models[0]).items()])
            )
        path = checkpoint.save(tmp_path, Progress(step=3), models[0], optimizers[0], describe(models[0], config))
        checkpoint.restore(path, models[1], optimizers[1])
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.update(model, tree_unflatten([(k, mx.cos(v)) for k, v in trainable(model).items()]))
        left, right = (trainable(m) | state_to_arrays(o) for m, o in zip(models, optimizers, strict=True))
        assert left.keys() == right.keys()
        assert all(mx.array_equal(value, right[name]) for name, value in left.items())
        mlx_lm.load(str(tiny_base), adapter_path=str(path))  # stock mlx_lm reads a checkpoint


def test_progress_is_what_it_was_to_the_last_bit(tmp_path):
    progress = Progress(
        step=7, tokens=1234, seconds=1.5, skips=[{"step": 2, "reason": "the loss is nan", "rows": ["a:1"]}],
        best_step=5, best=[1 / 3, -0.1], stale=1, first_loss=2 / 3, window=Window(loss=0.1 + 0.2, weight=3.0, tokens=3),
    )  # fmt: skip
    model, optimizer = Small(), optim.SGD(1e-2)
    path = checkpoint.save(tmp_path, progress, model, optimizer, {})
    assert path.name == "0000007" and checkpoint.read(path) == progress
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter_config.json", "adapters.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["adapters.safetensors", "optimizer.safetensors", "adapter_config.json", "state.json"])
@pytest.mark.parametrize("damage", [cut, turn_a_bit, Path.unlink], ids=["cut", "a bit", "missing"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(name, damage, tmp_path):
    saved(tmp_path, 10, 20)
    damage(tmp_path / "0000020" / name)
    with pytest.raises(DataError, match=name):
        checkpoint.read(tmp_path / "0000020")
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == tmp_path / "0000010"
    assert len(said) == 1 and "0000020" in said[0] and "going back" in said[0]
    assert not (tmp_path / "0000020").exists()


def test_a_state_that_was_edited_is_noticed(tmp_path):
    saved(tmp_path, 10)
    path = tmp_path / "0000010" / "state.json"
    path.write_text(path.read_text().replace('"step": 10', '"step": 11'))
    assert checkpoint.newest(tmp_path, lambda text: None) is None


def test_nothing_is_found_where_nothing_is(tmp_path):
    (tmp_path / ".0000010.x.partial").mkdir()
    assert checkpoint.found(tmp_path) == [] and checkpoint.newest(tmp_path, lambda text: None) is None
    assert checkpoint.found(tmp_path / "none") == []


def test_the_newest_are_kept_and_what_each_of_them_calls_the_best(tmp_path):
    saved(tmp_path, 10, 20, best=0)
    saved(tmp_path, 30, 40, best=10)
    saved(tmp_path, 50, best=50)
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["0000010", "0000040", "0000050"]
    saved(tmp_path, 60, 10_000_000, best=50)
    checkpoint.prune(tmp_path, keep=1)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["0000050", "10000000"]


def test_a_checkpoint_is_whole_or_absent(tmp_path, full_disk):
    saved(full_disk, 1)
    (full_disk / "filler").write_bytes(bytes(shutil.disk_usage(full_disk).free))
    try:
        with pytest.raises(DiskError, match="ran full"):
            saved(full_disk, 2)
        assert [p.name for p in checkpoint.found(full_disk)] == ["0000001"]
        assert json.loads((full_disk / "0000001" / "state.json").read_text())["progress"]["step"] == 1
    finally:
        (full_disk / "filler").unlink()
        shutil.rmtree(full_disk / "0000001")
