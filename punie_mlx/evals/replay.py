"""The same requests to two servers in turns, streamed, by the client's clock alone: ours beside `mlx_lm.server`.

What a foreign server does inside cannot be known, so nothing is told of it but when its bytes came. Both servers are
fresh, get the same bodies in the same order, and take turns at being first, so that a slow moment of the machine and
the caches of prompts are the same for both.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from punie_mlx import hardware
from punie_mlx.errors import ServerError
from punie_mlx.evals.profile import FORMAT, SERVER, stats
from punie_mlx.evals.server_process import STARTUP_SECONDS, ServerProcess, serving

STOCK = "mlx_lm.server"
OURS = "punie-mlx"
PARTS = ("first_byte", "first_text", "rest")
"""From the request to the first byte of the answer, from there to the first text or call, and to the end."""
LOOK_SECONDS = 0.1
WARM_UP = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Streamed:
    """One streamed answer, in seconds since its request; None where it did not come to that."""

    status: int
    first_byte: float | None
    first_text: float | None
    total: float
    tokens: int | None

    @property
    def good(self) -> bool:
        return self.status == 200 and self.first_byte is not None and bool(self.tokens)

    @property
    def parts(self) -> dict[str, float]:
        """The time between the marks, which is all of it; an answer without text has none of its own."""
        byte = self.first_byte or 0.0
        text = self.total if self.first_text is None else self.first_text
        return dict(zip(PARTS, (byte, text - byte, self.total - text), strict=True))


@dataclass(frozen=True)
class Target:
    """A server that is up: `load` seconds from its start to its first token."""

    name: str
    url: str
    model: str
    load: float


def stream(target: Target, body: Json, seconds: float) -> Streamed:
    """Send `body`, streamed, and read the answer to its end. Raises `ServerError` where the connection breaks."""
    parts = urlsplit(target.url)
    asked = {**body, "model": target.model, "stream": True, "stream_options": {"include_usage": True}}
    payload = json.dumps(asked).encode()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    began = time.perf_counter()
    try:
        connection.request("POST", f"{parts.path}/chat/completions", payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first_byte = time.perf_counter() - began
        first_text, tokens = None, None
        for line in response:
            if first_text is None and _visible(line):
                first_text = time.perf_counter() - began
            tokens = _tokens(line) or tokens
        return Streamed(response.status, first_byte, first_text, time.perf_counter() - began, tokens)
    except (OSError, http.client.HTTPException) as e:
        raise ServerError(f"{target.name} broke off while it was compared: {e or type(e).__name__}") from e
    finally:
        connection.close()


def _event(line: bytes) -> Any:
    try:
        return json.loads(line[6:]) if line.startswith(b"data: {") else None
    except ValueError:
        return None


def _visible(line: bytes) -> bool:
    """Whether a line of a stream holds something of the answer."""
    event = _event(line)
    choices = event.get("choices") or [] if event else []
    shown = ("content", "reasoning", "reasoning_content", "tool_calls")
    return any((c.get("delta") or {}).get(key) for c in choices for key in shown)


def _tokens(line: bytes) -> int | None:
    if b'"completion_tokens"' not in line:
        return None
    return ((_event(line) or {}).get("usage") or {}).get("completion_tokens")


# ---- servers ----


@contextmanager
def ours(model: Path, adapter: Path | None, seconds: float = STARTUP_SECONDS) -> Generator[Target]:
    """`punie-mlx serve`, which has written its first token. Raises `ServerError`, `InputError`."""
    began = time.perf_counter()
    with serving(model, adapter, seconds=seconds) as (_, ready):
        yield _warm(OURS, ready.url, ready.model, began, seconds)


@contextmanager
def stock(model: Path, adapter: Path | None, seconds: float = STARTUP_SECONDS) -> Generator[Target]:
    """`mlx_lm.server`, which has written its first token; with the BLAS that ours has. Raises `ServerError`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ["--adapter-path", str(adapter)] if adapter else []
    verb = ["-m", "mlx_lm", "server", "--model", str(model), "--port", str(port), "--log-level", "ERROR", *more]
    # On a CPU MLX would run a C++ compiler for each kernel: ours spares itself that, too.
    environment = {"MLX_DISABLE_COMPILE": "1"} if hardware.on_cpu() else {}
    with tempfile.TemporaryFile() as stderr:
        began = time.perf_counter()
        process = ServerProcess(verb, stderr, what=STOCK, environment=environment)
        try:
            _listens(process, port, seconds)
            yield _warm(STOCK, f"http://127.0.0.1:{port}/v1", "default_model", began, seconds)
        finally:
            process.stop()


def _listens(process: ServerProcess, port: int, seconds: float) -> None:
    """Wait until somebody listens. Raises `ServerError`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if not process.alive():
                raise process.death("before it was ready") from None
            if time.monotonic() > deadline:
                raise ServerError(f"{STOCK} was not ready after {seconds:g} s{process.tail()}") from None
            time.sleep(LOOK_SECONDS)


def _warm(name: str, url: str, model: str, began: float, seconds: float) -> Target:
    target = Target(name, url, model, 0.0)
    found = stream(target, WARM_UP, seconds)
    if found.status != 200:
        raise ServerError(f"{name} answers a plain request with status {found.status}: nothing can be compared")
    return Target(name, url, model, time.perf_counter() - began)


# ---- the comparison ----


def compare(
    targets: Sequence[Target], bodies: Sequence[Json], *, repeats: int = 1, seconds: float = 600.0
) -> list[list[Streamed]]:
    """What each target took for each of `bodies`, `repeats` times; they take turns at being first."""
    found: list[list[Streamed]] = [[] for _ in targets]
    for turn in range(repeats * len(bodies)):
        body = bodies[turn % len(bodies)]
        order = [(turn + i) % len(targets) for i in range(len(targets))]
        for i in order:
            found[i].append(stream(targets[i], body, seconds))
    return found


def profile_of_target(target: Target, streamed: Sequence[Streamed], about: Json) -> dict[str, Any]:
    """A profile by the client's clock: what only the server could tell is null. The first request is the warm-up."""
    counted = [s for s in streamed[1:] or streamed if s.good]
    walls = [s.total for s in counted]
    total = math.fsum(walls)
    phases = {name: stats((s.parts[name] for s in counted), total) for name in PARTS}
    rates = [s.tokens / s.total for s in counted if s.tokens]
    return {
        "kind": "profile",
        "format": FORMAT,
        **about,
        "server": target.name,
        "phases": {**{name: stats(()) for name in SERVER}, **phases},
        "phases_order": list(PARTS),
        "inside": {},
        "per_request": {
            "time_to_first_byte": stats(s.first_byte for s in counted),
            "time_to_first_text": stats(s.first_text for s in counted if s.first_text is not None),
            "exchange": stats(walls),
            "tokens_per_second": {**stats(rates), "total": None},
            "tokens": stats(float(s.tokens) for s in counted if s.tokens),
        },
        "cases": None,
        "requests": len(counted),
        "failed": sum(not s.good for s in streamed),
        "wall": stats(walls),
        "unaccounted_share": None,  # the marks are all on one clock: there is nothing that could disagree
        "warm_up": {"load": target.load, "start": None, "first_case": None, "first_request": streamed[0].total},
    }


def ratios(ours: Sequence[Streamed], other: Sequence[Streamed]) -> dict[str, Any]:
    """Ours over the other's, request by request: the median, and the middle half. Below 1 is less of it."""
    pairs = [(a, b) for a, b in zip(ours[1:] or ours, other[1:] or other, strict=True) if a.good and b.good]
    kinds = {
        "time_to_first_byte": [_over(a.first_byte, b.first_byte) for a, b in pairs],
        "time_to_first_text": [_over(a.first_text, b.first_text) for a, b in pairs],
        "exchange": [_over(a.total, b.total) for a, b in pairs],
        "tokens_per_second": [_over((a.tokens or 0) / a.total, (b.tokens or 0) / b.total) for a, b in pairs],
    }
    return {
        **{name: _middle([v for v in values if v is not None]) for name, values in kinds.items()},
        "requests": len(pairs),
        "as_many_tokens": sum(a.tokens == b.tokens for a, b in pairs),
    }


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _middle(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(("median", "low", "high"))
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": median, "low": low, "high": high}
