"""The model under test in a process of its own: as a server, reached only as a user reaches it, or without one.

    with serving(model) as (process, ready): ...          a ready line, then HTTP at `ready.url`
    with answering(model) as (process, ready): ...        a ready line, then one JSON line for each `process.ask`

The process dies with its parent, also when that is killed: it is started through `punie_mlx.evals.leash`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All that the line says."""


class ServerProcess:
    """A started process. Make one with `serving` or `answering`."""

    def __init__(
        self,
        verb: Sequence[str],
        stderr: IO[bytes],
        *,
        what: str = "server",
        asked: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._what = what
        self._stderr = stderr
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "punie_mlx.evals.leash", str(os.getpid()), *verb],
            stdin=subprocess.PIPE if asked else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(environment or {})},
            # A Ctrl-C in the terminal goes to the whole group: the evaluation is to stop the server, in its own order.
            start_new_session=True,
        )
        threading.Thread(target=self._drain, name=f"{what}-stdout", daemon=True).start()

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
                raise ServerError(f"the {self._what} was not ready after {seconds:g} s{self.tail()}") from None
            if line is None:
                raise self.death("before it was ready")
            if ready := _ready(line):
                return ready

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one line. Not for two threads at once. Raises `ServerError`, after which it cannot go on."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except OSError:
            line = None
        except queue.Empty:
            self.kill()  # the next answer would be taken for this one's
            raise ServerError(f"the {self._what} did not answer within {seconds:g} s{self.tail()}") from None
        if line is None:
            raise self.death("while it was asked")
        return json.loads(line)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def alive(self) -> bool:
        return self._process.poll() is None

    def death(self, when: str) -> ServerError | InputError:
        """The error that says how it ended."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return ServerError(f"the {self._what} closed its output {when}{self.tail()}")
        if code == InputError.exit_code and (lines := self._tail_lines()):
            return InputError(lines[-1].removeprefix("punie-mlx: "))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ServerError(f"the {self._what} {how} {when}{self.tail()}")

    def _tail_lines(self) -> list[str]:
        # Not read(): the server writes at the file position that both share.
        fd = self._stderr.fileno()
        size = os.fstat(fd).st_size
        text = os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
        return text.splitlines()[-TAIL_LINES:]

    def tail(self) -> str:
        """The end of its stderr, as the last part of a message."""
        lines = self._tail_lines()
        return "; its last words:\n" + "\n".join(f"  {line}" for line in lines) if lines else "; it said nothing"

    def stop(self) -> None:
        """Ask it to end; kill it where it does not."""
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(OSError):  # what was not read by who has gone
                self._process.stdin.close()


def _ready(line: str) -> Ready | None:
    try:
        value = json.loads(line)
        if value["event"] != "ready":
            return None
        return Ready(value["url"], value["model"], value["fingerprint"], value["pid"], value)
    except (ValueError, TypeError, KeyError):
        return None


@contextmanager
def serving(
    model: Path,
    adapter: Path | None = None,
    *,
    seconds: float = STARTUP_SECONDS,
    serve_options: Sequence[str] = (),
) -> Generator[tuple[ServerProcess, Ready]]:
    """Start a server for `model` on a free port, yield it when it is ready, and stop it.

    serve_options: what else `punie-mlx serve` is told.

    Raises:
        InputError: the server refused the model, adapter or options.
        ServerError: it ended, or was not ready in time.
    """
    verb = ["serve", *_what(model, adapter), "--port", "0", *serve_options]
    with _started(verb, seconds) as started:
        yield started


@contextmanager
def answering(
    model: Path, adapter: Path | None = None, *, seconds: float = STARTUP_SECONDS
) -> Generator[tuple[ServerProcess, Ready]]:
    """Start `model` without a server (`punie_mlx.direct`), yield it when it can be asked, and stop it.

    Raises what `serving` raises.
    """
    verb = ["-m", "punie_mlx.direct", *_what(model, adapter)]
    with _started(verb, seconds, what="model", asked=True) as started:
        yield started


def _what(model: Path, adapter: Path | None) -> list[str]:
    return ["--model", str(model), *(["--adapter", str(adapter)] if adapter else [])]


@contextmanager
def _started(verb: Sequence[str], seconds: float, **how: Any) -> Generator[tuple[ServerProcess, Ready]]:
    with tempfile.TemporaryFile() as stderr:
        process = ServerProcess(verb, stderr, **how)
        try:
            yield process, process.wait_ready(seconds)
        finally:
            process.stop()
