"""Training as several processes: what they sum, what they decide together, and how they end when one of them does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import punie_mlx  # noqa: F401  (the BLAS, before mlx)
from punie_mlx.errors import ConfigError
from punie_mlx.train import distributed
from punie_mlx.train.distributed import World, world
from punie_mlx.train.lifeline import Lifeline

Start = Callable[..., list[subprocess.Popen[str]]]

HEAD = """
import sys
import punie_mlx, mlx.core as mx
from punie_mlx.errors import PunieError
from punie_mlx.train import distributed
def say(*words): print(*words, flush=True)
"""


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Start]:
    """`ring(code, 2)` runs Python code as the ranks of a ring over loopback, or only those in `ranks`."""
    with ExitStack() as stack:

        def start(code: str, size: int, ranks: tuple[int, ...] | None = None, **env: str) -> list[subprocess.Popen]:
            with ExitStack() as held:
                sockets = [held.enter_context(socket.socket()) for _ in range(size)]
                for s in sockets:
                    s.bind(("127.0.0.1", 0))
                hosts = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets]
            (tmp_path / "hosts.json").write_text(json.dumps(hosts))
            env = {**os.environ, "MLX_HOSTFILE": str(tmp_path / "hosts.json"), "OPENBLAS_NUM_THREADS": "1", **env}
            started = []
            for rank in range(size) if ranks is None else ranks:
                command, mine = [sys.executable, "-c", HEAD + code], {**env, "MLX_RANK": str(rank)}
                pipe = subprocess.PIPE
                process = subprocess.Popen(command, env=mine, stdout=pipe, stderr=pipe, text=True)
                stack.enter_context(process)
                stack.callback(process.kill)
                started.append(process)
            return started

        yield start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that does not end within a minute fails the test."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_three_ranks_sum_send_and_decide(ring):
    """Everything that ranks do together, in one start; rank r gives r + 1 wherever the rank counts."""
    code = """
import math
distributed.BUFFER = 64  # several rounds
w = distributed.world()
one = float(w.rank + 1)
tree = {"a": mx.full((3, 5), one), "b": [mx.array(one), mx.full((2,), w.rank + 1, mx.int32)], "c": mx.full(40, one),
        "d": mx.full((4,), one, mx.bfloat16)}
total = w.sum(tree)
assert total["a"].shape == (3, 5) and total["c"].shape == (40,) and total["b"][0].shape == ()
assert total["b"][1].dtype == mx.int32 and total["d"].dtype == mx.bfloat16
for array in (total["a"], total["b"][0], total["b"][1], total["c"], total["d"]):
    assert bool((array == 6).all()), array
mine = [mx.array([-0.0, 1.5, math.nan, math.inf]) + w.rank, mx.array([w.rank, 7], mx.uint32)]
mine[0][0] = -0.0 if w.leads else 5.0
got = w.broadcast(mine)
assert [math.copysign(1, got[0][0].item()), got[0][1].item(), math.isnan(got[0][2].item())] == [-1, 1.5, True]
assert got[1].tolist() == [0, 7]
assert w.any(w.rank == 2) and not w.any(False) and w.sum({}) == {}
w.barrier()
w.require_same("settings", "alike")
try:
    w.require_same("data", f"of rank {min(w.rank, 1)}")
except PunieError as e:
    say(w.rank, w.size, w.leads, type(e).__name__, e)
"""
    for rank, process in enumerate(ring(code, 3)):
        returncode, out, err = ended(process)
        assert returncode == 0, err
        said = "ConfigError the 3 processes do not have the same data: give all of them the same"
        assert out == f"{rank} 3 {rank == 0} {said}\n"


def test_a_rank_that_is_killed_ends_the_others(ring):
    code = """
w = distributed.world()
w.barrier()
say("ready")
while True:
    w.sum({"gradients": mx.ones(1_000_000)})
"""
    processes = ring(code.replace("while", "try:\n  while").replace("    w.sum", "      w.sum") + END, 3)
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    processes[1].kill()
    for rank in (0, 2):
        returncode, _, err = ended(processes[rank])
        assert returncode == 1
        assert f"rank {rank} of 3 has lost another process of this training" in err and "--resume" in err


# What the command line makes of an error.
END = """
except PunieError as e:
  print("punie-mlx:", e, file=sys.stderr)
  sys.exit(e.exit_code)
"""


def test_a_rank_that_hangs_ends_the_others(ring):
    code = """
w = distributed.world()
assert w._patience == 500
w.barrier()
w._patience = 2.0
say("ready")
while True:
    w.barrier()
"""
    first, second = ring(code, 2, PUNIE_MLX_PEER_TIMEOUT="500")
    for process in (first, second):
        assert process.stdout and process.stdout.readline() == "ready\n"
    second.send_signal(signal.SIGSTOP)
    returncode, _, err = ended(first)
    assert returncode == 1
    assert "rank 0 of 2 waited 2 s for the other processes" in err and "--resume" in err


def test_a_rank_that_dies_without_an_error_from_mlx_ends_the_others(ring):
    """MLX's ring sometimes waits for ever for a dead neighbour; here the connections of the ring stay open."""
    code = """
import time
distributed.GRACE = 0.2
w = distributed.world()
w.barrier()
if w.rank == 1:
    w._lifeline.close()
    time.sleep(600)
w.barrier()
"""
    first = ring(code, 2)[0]
    returncode, _, err = ended(first)
    assert returncode == 1
    assert "rank 0 of 2 has lost another process of this training" in err and "--resume" in err


def test_the_lifeline_holds_only_those_who_know_its_secret():
    line, port, secret = Lifeline.listen("127.0.0.1")
    for knock in (b"", secret[:-1], b"x" * len(secret), secret[:-1] + b"x" * 100):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(knock)
    other = Lifeline.connect("127.0.0.1", port, secret)
    assert not line.lost.wait(0.2)
    other.close()
    assert line.lost.wait(10) and other.lost.wait(10)
    line.close()


def test_the_lifeline_tells_the_others_of_the_end_of_rank_0():
    line, port, secret = Lifeline.listen("127.0.0.1")
    others = [Lifeline.connect("127.0.0.1", port, secret) for _ in range(2)]
    while len(line._sockets) < 3:
        time.sleep(0.01)
    line.close()
    for other in others:
        assert other.lost.wait(10)
        other.close()
    with pytest.raises(OSError):
        Lifeline.connect("127.0.0.1", port, secret)


def test_a_rank_that_never_comes_ends_the_others(ring):
    [alone] = ring("distributed.world()", 2, ranks=(0,), PUNIE_MLX_PEER_TIMEOUT="1")
    returncode, _, err = ended(alone)
    assert returncode == 1
    assert "waiting up to 1 s for the other processes" in err and "Timeout" in err


# ---- without other processes ----


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*distributed.LAUNCHED, "MLX_HOSTFILE", distributed.TIMEOUT):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_is_a_world_of_its_own(unlaunched, tmp_path):
    import mlx.core as mx

    alone = world()
    tree = {"a": mx.ones(3)}
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert alone.sum(tree) is tree and alone.broadcast(tree) is tree
    assert alone.any(True) and not alone.any(False)
    alone.barrier()
    alone.require_same("data", "x")
    (tmp_path / "hosts").write_text("\n")  # what `mlx.launch -n 1` writes
    unlaunched.setenv("MLX_RANK", "0")
    unlaunched.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert world().size == 1


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MLX_RANK": "0"}, "cannot join the others"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "none.json"}, r"none\.json cannot be read"),
        ({"MLX_RANK": "0", distributed.TIMEOUT: "soon"}, "'soon': it must be a number"),
    ],
)
def test_a_launch_that_cannot_work_is_refused(env, message, unlaunched):
    """Not taken for a world of one process: each of them would train alone and write the same output."""
    for name, value in env.items():
        unlaunched.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        world()


def test_a_large_array_goes_alone_and_dtypes_apart():
    import mlx.core as mx

    leaves = [("a", mx.ones(2)), ("b", mx.ones(2)), ("c", mx.ones(2, mx.int32)), ("d", mx.ones(BIG, mx.int32))]
    leaves.append(("e", mx.ones(1, mx.int32)))
    batches = [[name for name, _ in batch] for batch in distributed._batches(leaves)]
    assert batches == [["a", "b"], ["c"], ["d"], ["e"]]
    assert isinstance(World(), World)


BIG = distributed.BUFFER // 4
