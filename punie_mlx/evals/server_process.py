"""The server under test as a process of its own, reached only as a user reaches it: its ready line and HTTP.

The process dies with its parent, also when that is killed: it is started through `punie_mlx.evals.leash`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from punie_mlx.errors import InputError, ServerError

STARTUP_SECONDS = 900.0
STOP_SECONDS = 10.0
TAIL_LINES = 20
TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Ready:
    """What the ready line says."""

    url: str
    model: str
    fingerprint: str
    pid: int


class ServerProcess:
    """A started server. Make one with `serving`."""

    def __init__(self, model: Path, adapter: Path | None, stderr: IO[bytes]) -> None:
        verb = ["serve", "--model", str(model), "--port", "0", *(["--adapter", str(adapter)] if adapter else [])]
        self._stderr = stderr
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "punie_mlx.evals.leash", str(os.getpid()), *verb],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            # A Ctrl-C in the terminal goes to the whole group: the evaluation is to stop the server, in its own order.
            start_new_session=True,
        )
        threading.Thread(target=self._drain, name="server-stdout", daemon=True).start()

    def _drain(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def wait_ready(self, seconds: float) -> Ready:
        """The ready line. Raises `ServerError` (or `InputError`, where the server refused what it was given)."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ServerError(f"the server was not ready after {seconds:g} s{self.tail()}") from None
            if line is None:
                raise self.death("before it was ready")
            if ready := _ready(line):
                return ready

    def alive(self) -> bool:
        return self._process.poll() is None

    def death(self, when: str) -> ServerError | InputError:
        """The error that says how the server ended."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return ServerError(f"the server closed its output {when}{self.tail()}")
        if code == InputError.exit_code and (lines := self._tail_lines()):
            return InputError(lines[-1].removeprefix("punie-mlx: "))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ServerError(f"the server {how} {when}{self.tail()}")

    def _tail_lines(self) -> list[str]:
        # Not read(): the server writes at the file position that both share.
        fd = self._stderr.fileno()
        size = os.fstat(fd).st_size
        text = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
        return text.splitlines()[-TAIL_LINES:]

    def tail(self) -> str:
        """The end of the server's stderr, as the last part of a message."""
        lines = self._tail_lines()
        return "; its last words:\n" + "\n".join(f"  {line}" for line in lines) if lines else "; it said nothing"

    def stop(self) -> None:
        """Ask the server to end; kill it where it does not."""
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


def _ready(line: str) -> Ready | None:
    try:
        value = json.loads(line)
        if value["event"] != "ready":
            return None
        return Ready(value["url"], value["model"], value["fingerprint"], value["pid"])
    except (ValueError, TypeError, KeyError):
        return None


@contextmanager
def serving(
    model: Path, adapter: Path | None = None, *, seconds: float = STARTUP_SECONDS
) -> Generator[tuple[ServerProcess, Ready], None, None]:
    """Start a server for `model` on a free port, yield it when it is ready, and stop it.

    Raises:
        InputError: the server refused the model or adapter.
        ServerError: it ended, or was not ready in time.
    """
    with tempfile.TemporaryFile() as stderr:
        process = ServerProcess(model, adapter, stderr)
        try:
            yield process, process.wait_ready(seconds)
        finally:
            process.stop()
