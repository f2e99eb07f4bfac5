"""What the scripts that load servers share: servers as processes, and a client that costs little itself.

The client speaks as much HTTP as it needs: one request a connection, the answer kept as bytes until it is over, so
that on a small machine it takes little from the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx import hardware

PATIENCE = 600.0  # seconds for one answer
STARTUP = 300.0
# The first part of an answer that a reader would see, in a stream or not.
VISIBLE = re.compile(rb'"(?:content|reasoning|reasoning_content|arguments|name)": ?"[^"]')


@dataclass(frozen=True)
class Server:
    """A process that serves; `path` is where it takes chat completions."""

    port: int
    process: subprocess.Popen[bytes]
    command: list[str]
    path: str = "/v1/chat/completions"

    def rss(self) -> int:
        """Its resident memory in bytes."""
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)])) * 1024

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return response.read()


@dataclass(frozen=True)
class Reply:
    """An answer and its times (`time.perf_counter`); `whole` is False where it was given up or broken off."""

    status: int
    body: bytes
    sent: float
    first: float | None  # its first visible text
    ended: float
    whole: bool

    @property
    def events(self) -> list[Any]:
        """The objects of a stream, without [DONE]."""
        lines = (line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: "))
        return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]

    @property
    def usage(self) -> dict[str, Any]:
        found = self.events[-1] if self.body.startswith((b"data:", b":")) else json.loads(self.body)
        return found["usage"]


@contextmanager
def ours(model: Path, *options: str) -> Generator[Server]:
    """`punie-mlx serve`, ready."""
    command = [sys.executable, "-m", "punie_mlx", "serve", "--model", str(model), "--port", "0", *options]
    with running(command, stdout=subprocess.PIPE) as (process, stderr):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise died(process, stderr)
        yield Server(int(re.findall(r":(\d+)/", json.loads(line)["url"])[0]), process, command)


@contextmanager
def stock(model: Path, *options: str) -> Generator[Server]:
    """`mlx_lm.server`, ready; on a CPU with the BLAS, and without the compiled kernels, that ours has too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port), *options]
    with running([*command, "--log-level", "ERROR"], stdout=subprocess.DEVNULL) as (process, stderr):
        server = Server(port, process, command)
        deadline = time.monotonic() + STARTUP
        while True:
            try:
                if json.loads(server.get("/health"))["status"] == "ok":
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise died(process, stderr)
            time.sleep(0.2)
        yield server


@contextmanager
def running(
    command: list[str], *, stdin: int | None = None, stdout: int | None = None
) -> Generator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process with the environment of a measurement; stopped at the end, also where a SIGTERM is the end."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if sys.platform == "linux" and hardware.load_fast_blas():
        environment["LD_PRELOAD"] = hardware.OPENBLAS
    if hardware.on_cpu():
        environment["MLX_DISABLE_COMPILE"] = "1"
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment) as process,
    ):
        try:
            yield process, stderr
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def died(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> SystemExit:
    process.kill()
    stderr.seek(0)
    return SystemExit(f"{process.args} ended with {process.wait()}:\n{stderr.read()[-4000:].decode(errors='replace')}")


async def post(server: Server, body: dict[str, Any], give_up: float | None = None) -> Reply:
    """Send a request and read the answer to its end; or go away `give_up` seconds after it was sent.

    Raises OSError where the server breaks the connection before its answer is whole.
    """
    payload = json.dumps(body).encode()
    head = (
        f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        sent = time.perf_counter()
        writer.write(head.encode() + payload)
        try:
            async with asyncio.timeout(PATIENCE if give_up is None else give_up):
                return await read(reader, sent)
        except TimeoutError:
            if give_up is None:
                raise
            writer.transport.abort()  # as a client that is killed, not one that says goodbye
            return Reply(0, b"", sent, None, time.perf_counter(), whole=False)
    finally:
        writer.close()


async def read(reader: asyncio.StreamReader, sent: float) -> Reply:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as e:
        raise ConnectionError(f"the connection ended after {len(e.partial)} bytes") from e
    raw, first = bytearray(), None
    while part := await reader.read(65536):
        looked = max(0, len(raw) - 64)
        raw += part
        if first is None and VISIBLE.search(raw, looked):
            first = time.perf_counter()
    ended = time.perf_counter()
    body, whole = dechunked(bytes(raw)) if b"transfer-encoding: chunked" in head.lower() else (bytes(raw), True)
    return Reply(int(head.split(b" ", 2)[1]), body, sent, first, ended, whole)


def dechunked(raw: bytes) -> tuple[bytes, bool]:
    """The body in `raw`, and whether its last chunk came."""
    parts, at = [], 0
    while (end := raw.find(b"\r\n", at)) > 0:
        size = int(raw[at:end], 16)
        if size == 0:
            return b"".join(parts), True
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts), False
