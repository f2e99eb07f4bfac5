"""Training as a process: killed at any moment, stopped politely, and in the end what it would have been undisturbed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from punie_mlx.train.config import make_config
from punie_mlx.train.run import train

STEPS = 90
RECIPE = f"""
iters: {STEPS}
batch_size: 2
layers: 1
dropout: 0.1
optimizer: adamw
schedule: cosine
warmup: 5
val_batches: 1
steps_per_eval: 11
steps_per_report: 7
save_every: 3
keep: 2
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with rows of plain questions and a recipe."""
    path = tmp_path_factory.mktemp("kill")
    for name, numbers in (("train", range(30)), ("valid", range(40, 43))):
        rows = [
            {"messages": [{"role": "user", "content": f"{i} + {i}"}, {"role": "assistant", "content": str(2 * i)}]}
            for i in numbers
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "recipe.yaml").write_text(RECIPE)
    return path


def start(model: Path, ground: Path, *more: str) -> subprocess.Popen[str]:
    verb = ["train", "--model", model, "--data", ground, "--recipe", ground / "recipe.yaml", "--out", ground / "out"]
    command = [sys.executable, "-m", "punie_mlx", *map(str, verb), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def step_of(ground: Path) -> int:
    """The newest checkpoint."""
    return max((int(p.name) for p in (ground / "out.training" / "checkpoints").glob("[0-9]*")), default=0)


def wait_for(process: subprocess.Popen[str], ground: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while step_of(ground) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.002)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.slow
def test_killed_and_stopped_it_ends_with_the_same_bytes(ground, tiny_base, tmp_path):
    chance = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    reached = 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = start(tiny_base, ground, *(["--resume"] if reached else []))
        wait_for(process, ground, reached + 1 + chance.randrange(STEPS // 6))
        time.sleep(chance.random() * 0.2)
        before = step_of(ground)
        returned, said = end(process, number)
        assert returned == code, said
        reached = step_of(ground)
        assert before <= reached < STEPS and not (ground / "out").exists()
        if number != signal.SIGKILL:
            assert f"after step {reached} of {STEPS}, which is saved: --resume goes on from there" in said
            assert "Traceback" not in said
    _, said = (process := start(tiny_base, ground, "--resume")).communicate(timeout=120)
    assert process.returncode == 0, said
    assert not (ground / "out.training").exists() and not list(ground.glob(".out*"))
    places = {"model": str(tiny_base), "data": str(ground), "out": str(tmp_path / "whole")}
    train(make_config(ground / "recipe.yaml", places), quiet=True)
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (ground / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_ctrl_c_leaves_at_once(ground, tiny_base, tmp_path):
    """In the middle of a step that would take minutes; what was saved before stays."""
    question, answer = {"role": "user", "content": "many words " * 100}, {"role": "assistant", "content": "?"}
    slow = tmp_path / "slow"
    slow.mkdir()
    shutil.copyfile(ground / "valid.jsonl", slow / "valid.jsonl")
    (slow / "train.jsonl").write_text((json.dumps({"messages": [question, answer]}) + "\n") * 200)
    (slow / "recipe.yaml").write_text("iters: 3\naccumulate: 200\nlayers: 1\nmax_seq_length: 4000\n")
    process = start(tiny_base, slow)
    assert process.stderr
    said = process.stderr.readline()
    while "validation loss" not in said:  # it has been measured once, and is in its first step
        assert process.poll() is None, said
        said = process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again leaves at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    for pipe in (process.stdout, process.stderr):
        assert pipe
        pipe.close()
