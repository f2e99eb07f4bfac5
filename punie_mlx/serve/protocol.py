"""uvicorn's HTTP/1.1 with limits on what a connection may hold: headers, idleness, a reader that does not read.

What we hold of uvicorn that is private (`tests/e2e/test_robust.py` and `tests/serve/test_trace.py` pin it by using it):

| touch point                                       | why                                                          |
|---------------------------------------------------|--------------------------------------------------------------|
| `H11Protocol.connection_made`, `.connection_lost` | bounds their number; ends all timers                         |
| `.data_received`, `.cycle`, `.cycle.response_complete` | a header that began must end                            |
| `.send_400_response`, called inside an `except`   | answers in OpenAI's shape, with 431 for headers too large    |
| `.app_state`, which each `scope["state"]` copies  | when the request's first byte came                            |
| `.pause_writing`, `.resume_writing`, `.transport` | the client takes nothing of what it is sent                  |
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from punie_mlx.serve import errors
from punie_mlx.serve.settings import HttpSettings
from punie_mlx.serve.trace import ARRIVED

log = logging.getLogger(__name__)


def bounded(settings: HttpSettings) -> type[H11Protocol]:
    """A protocol class with these limits: uvicorn makes its protocols itself, so they are bound to the class."""
    return cast(type[H11Protocol], type("Bounded", (BoundedProtocol,), {"settings": settings}))


class BoundedProtocol(H11Protocol):
    """One connection. Use `bounded(settings)`."""

    settings = HttpSettings()
    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = dict(self.app_state)  # of this connection alone
        if len(self.connections) > self.settings.connections:
            self._refuse(503, f"{self.settings.connections} connections are open: try again later")
            return
        self._header_timer = self.loop.call_later(self.settings.header_seconds, self._header_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_stall_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # ---- headers ----

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.app_state.setdefault(ARRIVED, time.monotonic())
        super().data_received(data)
        if self._answering():
            self._stop_header_timer()
        elif self._header_timer is None and not self.transport.is_closing():  # the next request has begun
            self._header_timer = self.loop.call_later(self.settings.header_seconds, self._header_late)

    def on_response_complete(self) -> None:
        self.app_state.pop(ARRIVED, None)
        super().on_response_complete()
        if self._answering():  # a pipelined request
            self._stop_header_timer()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _header_late(self) -> None:
        self._header_timer = None
        if not self._answering():
            self._refuse(408, f"the request's headers took more than {self.settings.header_seconds:g} seconds")

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]  # uvicorn calls this from its `except`, and does not pass it on
        status = getattr(error, "error_status_hint", 400)
        if status == 431:
            msg = f"the request's headers are larger than {self.settings.header_bytes} bytes"
        elif error is not None:
            msg = f"this is no valid HTTP/1.1 request: {error}"
        self._refuse(status, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close; where an answer is under way, close only."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(errors.body(status, message)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    # ---- a client that does not read ----

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _watch(self, waiting: int) -> None:
        self._stall_timer = self.loop.call_later(self.settings.stalled_seconds, self._look, waiting)

    def _look(self, before: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting < before:  # slow, but it reads
            self._watch(waiting)
            return
        log.info("a client took nothing for %g seconds: disconnected", self.settings.stalled_seconds)
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
