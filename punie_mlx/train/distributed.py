"""Training as several processes, each on its own part of every batch (data parallel).

    mlx.launch --backend ring -n 2 --hosts 127.0.0.1 -- punie-mlx train --model … --data … --out …

`mlx.launch` (it comes with MLX) starts the processes and tells each its rank; they sum their gradients over a ring of
TCP connections. On one machine two processes help where one cannot use all of it, as on a CPU; give each its share of
the cores (`--env OPENBLAS_NUM_THREADS=1`). Two Macs, with punie-mlx, model and data at the same paths on both, and
`hosts.json` = `[{"ssh": "mac1", "ips": ["192.168.2.1"]}, {"ssh": "mac2", "ips": ["192.168.2.2"]}]`:

    mlx.launch --backend ring --hostfile hosts.json -- punie-mlx train --model … --data … --out …

That one was not run by us: what is tested are processes on one machine. Only rank 0 writes, so OUT is on its machine;
to resume, OUT.training must lie at that path on all of them, on a shared disk or copied.

What happens when one of the processes ends, tried with MLX 0.32's ring on Linux: the system closes its connections and
mostly every other rank gets an error in its next collective operation, within a second; but now and then MLX waits for
ever, as it does for a process that hangs or never came up, and does not even hear Ctrl-C meanwhile. So every rank also
holds a connection to rank 0 (lifeline.py) whose end tells it within seconds that another is dead, and a watch ends a
process that has waited `PATIENCE` seconds for one that lives but hangs (`PUNIE_MLX_PEER_TIMEOUT` sets another number).
Either way the exit code is not 0, a message says what happened, and the last checkpoint stays.

MLX touch points (held by tests/train/test_distributed.py): `mx.distributed.init`, `all_sum`, `all_max`, `all_min`, the
variables `MLX_RANK` and `MLX_HOSTFILE`, and that `mx.eval` lets other threads run while it waits.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from punie_mlx.errors import ConfigError, PunieError
from punie_mlx.train.lifeline import SECRET, Lifeline

LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # set by mlx.launch, and by mpirun, for each process that it starts
TIMEOUT = "PUNIE_MLX_PEER_TIMEOUT"
PATIENCE = 1800.0  # seconds: another rank may be scoring a checkpoint, or loading a large model from a slow disk
JOINING = 300.0  # seconds that the processes may lie apart at the start
GRACE = 3.0  # seconds that MLX has to raise its own error once another process is known to be dead
BUFFER = 32 << 20  # bytes summed at once: many small arrays would cost a round of messages each
AGAIN = "the last checkpoint is kept: start all processes again with --resume"


class World:
    """The processes of one training. `rank` counts from 0; a training that was not launched as several is `World()`.

    Every method but the properties is a collective operation: all ranks must call the same ones in the same order.

    Raises (every collective operation):
        PunieError: another process ended.
    """

    def __init__(self, group: Any = None, patience: float = PATIENCE) -> None:
        self._group = group
        self._patience = patience
        self._lifeline: Lifeline | None = None
        self.rank: int = group.rank() if group is not None else 0
        self.size: int = group.size() if group is not None else 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, tree: Any) -> Any:
        """The element-wise sum of every rank's `tree` of arrays, evaluated; the same bits on all ranks.

        All ranks give the same structure, shapes and dtypes; sums are made in the arrays' own dtypes. With one process
        it is `tree` itself.
        """
        if self.size == 1:
            return tree
        return self._packed(tree, lambda flat: self._together(mx.distributed.all_sum, flat))

    def broadcast(self, tree: Any) -> Any:
        """Rank 0's `tree` of arrays, bit for bit, on all ranks; the others give one of the same shapes and dtypes."""
        if self.size == 1:
            return tree

        def send(flat: mx.array) -> mx.array:
            # As bytes: adding zeros to floats would lose the sign of -0.0.
            bits = flat.view(mx.uint8)
            bits = bits if self.leads else mx.zeros_like(bits)
            return self._together(mx.distributed.all_sum, bits).view(flat.dtype)

        return self._packed(tree, send)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank: a decision in which all ranks are alike."""
        if self.size == 1:
            return flag
        return bool(self._together(mx.distributed.all_max, mx.array([int(flag)], mx.int32)).item())

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.any(False)

    def require_same(self, what: str, value: str) -> None:
        """Raise `ConfigError` on all ranks unless all have the same `value`; `what` names it, as in "the data"."""
        if self.size == 1:
            return
        digest = mx.array(np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)).astype(mx.int32)
        highest = self._together(mx.distributed.all_max, digest)
        if not mx.array_equal(highest, self._together(mx.distributed.all_min, digest)):
            raise ConfigError(f"the {self.size} processes do not have the same {what}: give all of them the same")

    def hold_on(self) -> None:
        """Connect every rank to rank 0, to notice when one dies; without a list of hosts, or a way, there is none."""
        hosts = os.environ.get("MLX_HOSTFILE")
        if self.size == 1 or not hosts:
            return
        host = json.loads(Path(hosts).read_text())[0][0].rsplit(":", 1)[0].strip("[]")
        try:
            port, secret = 0, bytes(SECRET)
            if self.leads:
                self._lifeline, port, secret = Lifeline.listen(host)
            port, *secret = self.broadcast(mx.array([port, *secret])).tolist()
            if port and not self.leads:
                self._lifeline = Lifeline.connect(host, port, bytes(secret))
        except OSError as e:
            print(f"punie-mlx: rank {self.rank} will not notice if others end ({e})", file=sys.stderr)

    def _together(self, operation: Callable[..., mx.array], array: mx.array) -> mx.array:
        mx.eval(array)  # one's own work first: the watch is for the others
        try:
            with self._watched():
                result = operation(array, group=self._group)
                mx.eval(result)
        except RuntimeError as e:
            raise PunieError(
                f"rank {self.rank} of {self.size} has lost another process of this training ({e}): see what that one "
                f"said; {AGAIN}"
            ) from e
        return result

    @contextmanager
    def _watched(self) -> Generator[None]:
        """End this process, loudly, where the block does not end: MLX waits in it and cannot be woken."""
        done = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + self._patience
            while not done.wait(min(self._patience, 1.0)):
                if self._lifeline and self._lifeline.lost.is_set() and not done.wait(GRACE):
                    _end(f"rank {self.rank} of {self.size} has lost another process of this training")
                if time.monotonic() >= deadline:
                    _end(
                        f"rank {self.rank} of {self.size} waited {self._patience:.0f} s for the other processes: one "
                        "of them hangs or cannot be reached"
                    )

        threading.Thread(target=watch, daemon=True, name="watch").start()
        try:
            yield
        finally:
            done.set()

    @staticmethod
    def _packed(tree: Any, operation: Callable[[mx.array], mx.array]) -> Any:
        """`operation` on the arrays of `tree`, many at once, as one vector."""
        leaves: Any = tree_flatten(tree)
        done: dict[str, mx.array] = {}
        for batch in _batches(leaves):
            flat = operation(mx.concatenate([a.reshape(-1) for _, a in batch]))
            ends = np.cumsum([a.size for _, a in batch]).tolist()
            parts = mx.split(flat, ends[:-1])
            done |= {name: part.reshape(a.shape) for (name, a), part in zip(batch, parts, strict=True)}
        mx.eval(done)
        return tree_map_with_path(lambda name, _: done[name or ""], tree)


def world() -> World:
    """The processes that this one was launched with. Call it before any long work, on all ranks.

    Raises:
        ConfigError: it was launched as one of several, but they cannot be joined.
    """
    if not _launched():
        return World()
    patience = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(patience) if patience else None
    except ValueError as e:
        raise ConfigError(f"{TIMEOUT} is {patience!r}: it must be a number of seconds") from e
    limit = seconds or JOINING
    print(f"punie-mlx: waiting up to {limit:.0f} s for the other processes of this training", file=sys.stderr)
    # A thread could not watch here: MLX holds the interpreter's lock until the last process has come.
    faulthandler.dump_traceback_later(limit, exit=True, file=2)
    try:
        group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as e:
        raise ConfigError(
            f"this process cannot join the others of this training ({e}): start all of them, with mlx.launch, and let "
            "them reach each other's ports"
        ) from e
    finally:
        faulthandler.cancel_dump_traceback_later()
    joined = World(group, seconds or PATIENCE)
    joined.hold_on()
    return joined


def _launched() -> bool:
    if not any(name in os.environ for name in LAUNCHED):
        return False
    hosts = os.environ.get("MLX_HOSTFILE")
    try:
        # For one process `mlx.launch` writes an empty list of hosts, which MLX itself cannot read.
        return hosts is None or bool(Path(hosts).read_text().strip())
    except OSError as e:
        raise ConfigError(f"the list of hosts {hosts} cannot be read ({e.strerror}): start with mlx.launch") from e


def _batches(leaves: Sequence[tuple[str, mx.array]]) -> Generator[list[tuple[str, mx.array]]]:
    """Runs of arrays of one dtype that fit `BUFFER` together; a larger one alone."""
    batch: list[tuple[str, mx.array]] = []
    filled = 0
    for name, array in leaves:
        if batch and (array.dtype != batch[0][1].dtype or filled + array.nbytes > BUFFER):
            yield batch
            batch, filled = [], 0
        batch.append((name, array))
        filled += array.nbytes
    if batch:
        yield batch


def _end(reason: str) -> None:
    print(f"punie-mlx: {reason}: see what that one said; {AGAIN}", file=sys.stderr, flush=True)
    os._exit(1)
