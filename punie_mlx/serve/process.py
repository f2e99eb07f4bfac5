"""The server as a process: claim the port, load the model, say that it is ready, serve, stop cleanly.

    punie-mlx serve --model data/tiny-base --port 0

stdout carries one JSON line, the ready line; everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

from punie_mlx import identity
from punie_mlx.errors import ConfigError, ModelError, PortError
from punie_mlx.serve import app
from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.engine import Engine
from punie_mlx.toolcalls import detect
from punie_mlx.toolcalls.wire import Format

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAIN_SECONDS = 3  # for answers that are under way when the server is told to stop; then they are cut off


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, and where."""

    model: Path
    adapter: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM. Raises `PortError`, `ModelError`."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("punie_mlx").setLevel(logging.INFO)
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), stopping_on_signals(), claim(config.host, config.port) as listener:
        identity.model_files(config.model)
        if config.adapter is not None:
            identity.check_adapter(config.model, config.adapter)
        fingerprint = identity.fingerprint(config.model, config.adapter)
        engine = Engine.start(config.model, config.adapter)
        try:
            chat = Chat(engine, served_name(config.model), fingerprint, wire_format(engine, config.model))
            url = f"http://{address(listener)}/v1"
            log.info("serving %s (%s calls) at %s", chat.name, chat.wire.name, url)
            ready = {"event": "ready", "url": url, "model": chat.name, "fingerprint": fingerprint, "pid": os.getpid()}
            run(app.build(chat), listener, lambda: print(json.dumps(ready), file=stdout, flush=True), engine.cut_off)
        finally:
            engine.stop()


def served_name(model: Path) -> str:
    """The one name that requests may use: that of the directory."""
    return Path(model).resolve().name


def wire_format(engine: Engine, model: Path) -> Format:
    """The format in which the model writes its calls, as its template and vocabulary tell. Raises `ModelError`."""
    loaded = engine.loaded
    try:
        return detect.examine(loaded.chat_template, loaded.tokenizer.get_vocab()).wire()
    except ConfigError as e:
        raise ModelError(f"{model}: {e}") from e


@contextlib.contextmanager
def claim(host: str, port: int) -> Generator[socket.socket]:
    """A listening socket, ours alone from now on: early clients wait for the model. Raises `PortError`."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise PortError(f"{host} is no address of this machine: {e.strerror or e}") from e
    with socket.socket(family, kind, proto) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(2048)
        except OSError as e:
            raise PortError(
                f"{host}:{port} cannot be bound ({e.strerror or e}): "
                "stop what listens there, or choose another --port (0 takes any free one)"
            ) from e
        yield listener


def address(listener: socket.socket) -> str:
    """HOST:PORT as an address has it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def stopping_on_signals() -> Generator[None]:
    """End with exit code 0 on SIGINT and SIGTERM, while loading too; uvicorn takes over while it serves."""

    def stop(*_: Any) -> NoReturn:
        raise SystemExit(0)

    before = {s: signal.signal(s, stop) for s in STOP_SIGNALS}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None], cut_off: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started
        self._cut_off = cut_off

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._cut_off)
        await super().shutdown(sockets)


def run(application: Any, listener: socket.socket, started: Callable[[], None], cut_off: Callable[[], None]) -> None:
    """Serve `application` until a signal. `started` is called once requests are taken, `cut_off` when it is told to
    stop and answers still run after `DRAIN_SECONDS`: so streams end with an error, not in the middle."""
    config = uvicorn.Config(
        application,
        log_config=None,  # uvicorn's own writes its access log to stdout
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS + 2,
    )
    # On its way out uvicorn raises the signal again, and `stopping_on_signals` turns that into exit code 0.
    asyncio.run(_Server(config, started, cut_off).serve(sockets=[listener]))
