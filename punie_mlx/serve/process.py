"""The server as a process: claim the port, load the model, say that it is ready, serve, stop cleanly.

    punie-mlx serve --model data/tiny-base --port 0

stdout carries one JSON line, the ready line; everything else goes to stderr. SIGTERM or SIGINT ends it once the
answers under way are done, or `drain_seconds` later; a second one ends it now.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn

import uvicorn
import uvicorn.server

from punie_mlx import identity
from punie_mlx.chat.render import read_template
from punie_mlx.errors import ConfigError, ModelError, PortError
from punie_mlx.serve import app, wire
from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.config import ServeConfig, check_private
from punie_mlx.serve.constrain import Constrainer
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.inspect_live import PAGE
from punie_mlx.serve.metrics import Metrics
from punie_mlx.serve.protocol import bounded
from punie_mlx.serve.settings import HttpSettings
from punie_mlx.serve.telemetry import connect
from punie_mlx.serve.trace import Recorded

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FILES_BESIDE_CONNECTIONS = 256  # of the model, the logs, the event loop
FEW_CONNECTIONS = 1024  # a limit below is worth a warning
CLOSING_SECONDS = 2.0  # for streams that were cut off to say so
KILL_SECONDS = 5.0  # after a second signal, for whatever still holds the process
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(config: ServeConfig, **limits: Any) -> None:
    """Serve until SIGINT or SIGTERM; `limits` are fields of `HttpSettings` that are no options.

    Raises `PortError`, `ConfigError`, `ModelError`.
    """
    start_logging(config.log_level)
    start = Recorded(first="check")
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), stopping_on_signals(), claim(config.host, config.port) as listener:
        settings = replace(closed(config, listener), **limits)
        identity.model_files(config.model)
        if config.adapter is not None:
            identity.check_adapter(config.model, config.adapter)
        template = read_template(config.chat_template) if config.chat_template else None
        start.enter("fingerprint")
        fingerprint = fingerprint_of(config, template)
        start.enter("telemetry")
        telemetry = connect(
            config.otel_endpoint, model=config.served_name, fingerprint=fingerprint, content=config.log_content
        )
        start.enter("load")
        engine = Engine.start(
            config.model, config.adapter, config.limits(), draft=config.draft_model, chat_template=template
        )
        start.enter("warm_up", time.monotonic() - engine.loaded.warm_up_seconds)
        start.enter("prepare")
        try:
            metrics = Metrics(engine)
            chat = make_chat(engine, config, fingerprint, metrics)
            url = f"http://{address(listener)}/v1"
            log.info("serving %s (%s calls) at %s", chat.name, chat.wire.name, url)
            if config.inspect:
                log.info("inspect: open %s in a browser", url.removesuffix("/v1") + PAGE)
            ready = {"event": "ready", "url": url, "model": chat.name, "fingerprint": fingerprint, "pid": os.getpid()}
            application = app.build(chat, metrics, settings, telemetry)

            def say() -> None:
                start.end()
                print(json.dumps(ready | {"start": start.timeline()}), file=stdout, flush=True)

            run(application, listener, settings, started=say, cut_off=engine.cut_off)
        finally:
            engine.stop()
            if telemetry is not None:
                telemetry.close()


def start_logging(level: str) -> None:
    """Our log at `level`, to stderr; of others only warnings, since what they tell may be a client's."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("punie_mlx").setLevel(level.upper())


# ---- what is served ----


def make_chat(engine: Engine, config: ServeConfig, fingerprint: str, metrics: Metrics) -> Chat:
    """The model's endpoint, with its wire format and grammar. Raises `ModelError`."""
    loaded = engine.loaded
    try:
        speaks = wire.choose(
            loaded.chat_template, loaded.tokenizer.get_vocab(), config.tool_call_format, config.reasoning_format
        )
    except ConfigError as e:
        raise ModelError(f"{config.model}: {e}") from e
    constrainer = None
    if engine.constrainable:
        constrainer = Constrainer(loaded.tokenizer, width=loaded.vocabulary, eos=loaded.eos, wire=speaks)
    else:
        log.warning("with a draft model nothing can be constrained: calls are read as the model writes them")
    settings = config.chat(loaded.generation_config)
    return Chat(engine, config.served_name, fingerprint, speaks, settings, metrics, constrainer)


def fingerprint_of(config: ServeConfig, template: str | None) -> str:
    """What decides the answers: the model, its adapter, and a chat template in the place of its own."""
    base = identity.fingerprint(config.model, config.adapter)
    return base if template is None else identity.hash_json([base, template])


# ---- where ----


@contextlib.contextmanager
def claim(host: str, port: int) -> Generator[socket.socket]:
    """A listening socket, ours alone from now on: early clients wait for the model. Raises `PortError`."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise PortError(f"{host} is no address of this machine: {e}") from e
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


def closed(config: ServeConfig, listener: socket.socket) -> HttpSettings:
    """What clients may do. Raises `ConfigError` where anybody on the network could call, and nobody said so."""
    loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
    if config.inspect and not loopback:  # as a name can resolve to anything
        check_private(listener.getsockname()[0], config.insecure)
    if not (loopback or config.api_key or config.insecure):
        raise ConfigError(
            f"--host {config.host} can be reached from other machines: set --api-key (or PUNIE_MLX_API_KEY), "
            "or say --insecure if everybody there may call"
        )
    guarded = loopback and not config.api_key and not config.insecure
    settings = config.http(LOOPBACK_NAMES | {config.host.lower()} if guarded else None)
    return replace(settings, connections=allow_connections(settings.connections))


def allow_connections(wanted: int) -> int:
    """Raise the process's limit of open files for `wanted` connections; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_BESIDE_CONNECTIONS
    endless = resource.RLIM_INFINITY
    if soft != endless and soft < needed:
        raised = needed if hard == endless else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == endless or soft >= needed:
        return wanted
    allowed = max(soft - FILES_BESIDE_CONNECTIONS, 16)
    level = logging.WARNING if allowed < FEW_CONNECTIONS else logging.DEBUG
    log.log(level, "the limit of open files (%d) allows %d connections only: raise it with ulimit -n", soft, allowed)
    return allowed


# ---- until when ----


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
    """uvicorn's server, which says when it takes requests, and ends streams with an error instead of in the middle."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], cut_off: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started
        self._cut_off = cut_off
        self._told = 0  # signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        self._told += 1
        if self._told == 1:
            # On its way out uvicorn raises the signal again, and `stopping_on_signals` turns it into exit code 0.
            self._captured_signals.append(sig)
        else:
            killer = threading.Timer(KILL_SECONDS, os._exit, [1])
            killer.daemon = True
            killer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cutting = asyncio.create_task(self._cut_off_in_time())
        await super().shutdown(sockets)
        cutting.cancel()

    async def _cut_off_in_time(self) -> None:
        """Cut off what still runs when its time is over, or when a second signal comes; then end what is left."""
        loop = asyncio.get_running_loop()
        log.info("stopping: %d connections are open", len(self.server_state.connections))
        grace: int | float = self.config.timeout_graceful_shutdown or 0
        await self._until(loop.time() + grace - CLOSING_SECONDS, lambda: self._told > 1)
        self._cut_off()
        await self._until(loop.time() + CLOSING_SECONDS, lambda: False)
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

    @staticmethod
    async def _until(end: float, over: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < end and not over():
            await asyncio.sleep(0.05)


def run(
    application: Any,
    listener: socket.socket,
    settings: HttpSettings,
    *,
    started: Callable[[], None],
    cut_off: Callable[[], None],
) -> None:
    """Serve `application` until a signal. `started` is called once requests are taken, `cut_off` when it is told to
    stop and answers still run after the time to drain."""
    config = uvicorn.Config(
        application,
        http=bounded(settings),
        ws="none",
        lifespan="off",
        log_config=None,  # uvicorn's own writes its access log to stdout
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody is believed to speak for another
        backlog=2048,
        h11_max_incomplete_event_size=settings.header_bytes,
        timeout_keep_alive=settings.idle_seconds,  # ty: ignore[invalid-argument-type]
        timeout_graceful_shutdown=settings.drain_seconds + CLOSING_SECONDS,  # ty: ignore[invalid-argument-type]
    )
    asyncio.run(_Server(config, started, cut_off).serve(sockets=[listener]))
