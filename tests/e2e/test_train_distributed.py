"""Training as two processes, by the real command line: equal to one with the doubled batch, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import punie_mlx  # noqa: F401  (the BLAS, before mlx)
from punie_mlx import identity
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.metrics import read_metrics
from punie_mlx.train.run import train

ITERS = 10
READ = {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object", "properties": {}}}}
ENV = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


def row(i: int) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "read_file", "arguments": {"path": f"src/module{i}.py"}}}
    messages = [
        {"role": "user", "content": f"Show me src/module{i}.py"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "limit = 7\n" * (i % 5)},
        {"role": "assistant", "content": f"It sets the limit to {i}." + " Good." * (i % 3)},
    ]
    return {"messages": messages, "tools": [READ]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of 26 samples, which batches of four do not divide."""
    path = tmp_path_factory.mktemp("rows")
    for name, numbers in (("train", range(13)), ("valid", range(20, 23))):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    return path


def verb(tiny_base: Path, rows: Path, out: Path, *more: str) -> list[str]:
    """The command of one process: two samples of each batch of four."""
    options = ["--model", tiny_base, "--data", rows, "--out", out, "--iters", ITERS, "--batch-size", 2, "--layers", 2]
    options += ["--save-every", 2, "--steps-per-eval", 3, "--steps-per-report", 1]
    return [sys.executable, "-m", "punie_mlx", "train", *map(str, options), *more]


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that are free, as `mlx.launch` takes them."""
    while True:
        with ExitStack() as held, ExitStack() as tried:
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    tried.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return list(range(first, first + count))


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, rows: Path) -> Path:
    """The output of an undisturbed training under `mlx.launch`."""
    out = tmp_path_factory.mktemp("launched") / "adapter"
    launch = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring", "-n", "2", "--hosts", "127.0.0.1"]
    launch += ["--starting-port", str(free_ports(2)[0]), "--"]
    done = subprocess.run(
        [*launch, *verb(tiny_base, rows, out)],
        capture_output=True, text=True, env=ENV, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{out}: {ITERS} steps") == 1, done.stdout  # one of them reports
    return out


def figures(out: Path, kind: str, name: str) -> list[float]:
    return [line[name] for line in read_metrics(out / "metrics.jsonl") if line["kind"] == kind]


def test_two_processes_are_one_with_the_doubled_batch(launched, tiny_base, rows, tmp_path):
    import mlx.core as mx

    config = TrainConfig(
        model=str(tiny_base), data=str(rows), out=str(tmp_path / "one"),
        iters=ITERS, batch_size=4, layers=2, save_every=2, steps_per_eval=3, steps_per_report=1,
    )  # fmt: skip
    train(config, quiet=True)
    one = tmp_path / "one"
    for kind, name in (("train", "loss"), ("valid", "loss"), ("train", "grad_norm")):
        assert figures(launched, kind, name) == pytest.approx(figures(one, kind, name), rel=1e-5), (kind, name)
    assert figures(launched, "train", "supervised_tokens") == figures(one, "train", "supervised_tokens")
    assert len(figures(launched, "train", "loss")) == ITERS  # one of them writes
    theirs, ours = (mx.load(str(out / "adapters.safetensors")) for out in (launched, one))
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        # Adam divides by the gradient's size, so what is summed in another order differs most where that is next to 0.
        assert mx.allclose(array, theirs[name], rtol=1e-3, atol=1e-6), name


def start(command: list[str], hosts: Path) -> Iterator[subprocess.Popen[str]]:
    """Both ranks, without a launcher that would end the one when the other dies."""
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    for rank in range(2):
        env = {**ENV, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
        yield subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr of a process that must end by itself."""
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, err


def await_checkpoint(out: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not (out.with_name(f"{out.name}.training") / "checkpoints" / f"{step:07}").is_dir():
        assert all(p.poll() is None for p in processes), [ends(p) for p in processes]
        assert time.monotonic() < deadline, f"no checkpoint of step {step}"
        time.sleep(0.005)


def test_a_killed_rank_ends_the_other_and_both_go_on_from_the_checkpoint(launched, tiny_base, rows, tmp_path):
    out = tmp_path / "adapter"
    processes = list(start(verb(tiny_base, rows, out), tmp_path / "hosts"))
    await_checkpoint(out, 2, processes)
    processes[1].kill()
    assert ends(processes[1])[0] == -signal.SIGKILL
    code, err = ends(processes[0])
    assert code == 1 and "has lost another process of this training" in err, err
    assert not out.exists()

    processes = list(start(verb(tiny_base, rows, out, "--resume"), tmp_path / "hosts"))
    await_checkpoint(out, 4, processes)
    processes[1].terminate()  # one of them is told to stop, and both do
    told = [ends(p) for p in processes]
    assert {code for code, _ in told} == {128 + signal.SIGTERM}, told
    assert "which is saved" in told[0][1]
    assert not out.exists()

    processes = list(start(verb(tiny_base, rows, out, "--resume"), tmp_path / "hosts"))
    told = [ends(p) for p in processes]
    assert [code for code, _ in told] == [0, 0], told
    assert identity.hash_file(out / "adapters.safetensors") == identity.hash_file(launched / "adapters.safetensors")
    assert figures(out, "train", "loss") == figures(launched, "train", "loss")
    assert [p.name for p in tmp_path.iterdir() if p.name != "hosts"] == ["adapter"]
