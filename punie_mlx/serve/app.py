"""The HTTP application: routes, errors and limits. It serves one model and never loads, fetches or opens anything."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from punie_mlx.serve import openapi, trace
from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.errors import ApiError
from punie_mlx.serve.guard import Guard
from punie_mlx.serve.inspect_live import PAGE, STREAM, Inspecting
from punie_mlx.serve.metrics import CONTENT_TYPE, Metrics
from punie_mlx.serve.settings import HttpSettings
from punie_mlx.serve.telemetry import Telemetry

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0  # a client that still sends gets so long to read why it is refused
REFUSALS = {400: "bad_request", 404: "not_found", 405: "not_found", 408: "slow", 413: "too_large", 429: "queue_full"}

Answering = Callable[[Request, bytes], Awaitable[Response]]


def build(chat: Chat, metrics: Metrics, settings: HttpSettings, telemetry: Telemetry | None = None) -> ASGIApp:
    """The application that serves `chat`, and exports the traces of its requests where there is a `telemetry`."""
    host = _Host(chat, metrics, settings)
    posts: dict[str, Answering] = {
        "/v1/chat/completions": chat.respond,
        "/v1/chat/completions/render": chat.render,
        "/v1/completions": chat.complete,
        "/tokenize": chat.tokenize,
    }
    gets = {
        "/v1/models": host.models,
        "/v1/models/{name:path}": host.model,
        "/health": host.health,
        "/metrics": host.metrics_text,
        "/openapi.json": host.openapi,
    }
    if settings.inspect:
        inspecting = Inspecting(chat)
        posts[STREAM] = inspecting.stream
        gets[PAGE] = inspecting.page
    routes = [
        *(Route(path, host.reading(answer), methods=["POST"]) for path, answer in posts.items()),
        *(Route(path, answer) for path, answer in gets.items()),
    ]
    middleware = [
        Middleware(Watch, metrics=metrics, telemetry=telemetry),
        *([_cors(settings)] if settings.origins else []),
        Middleware(Guard, settings=settings, refused=metrics.refused),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error}
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)
    app.router.redirect_slashes = False
    return app


def _cors(settings: HttpSettings) -> Middleware:
    methods = ["GET", "POST"]
    return Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=methods, allow_headers=["*"])


@dataclass(frozen=True)
class _Host:
    """The small routes, and the reading of bodies for the large ones."""

    chat: Chat
    metrics: Metrics
    settings: HttpSettings

    def reading(self, answer: Answering) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await read_body(request, self.settings)
                request.state.trace.enter("parse")
                if self.chat.settings.log_content:
                    log.info("%s %s", request.url.path, body.decode("utf-8", "backslashreplace"))
                return await answer(request, body)
            except ClientDisconnect:
                return Response(status_code=499)
            except ApiError as e:
                self.metrics.refused(REFUSALS.get(e.status, "failed"))
                request.state.trace.enter("respond")
                e.body |= request.state.trace.told()
                return Lingering(e) if e.status in (408, 413) else e.response()

        return endpoint

    def _served(self) -> dict[str, Any]:
        return {
            "id": self.chat.name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "punie-mlx",
            "fingerprint": self.chat.fingerprint,
            "max_model_len": self.chat.engine.loaded.context,
        }

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._served()]})

    async def model(self, request: Request) -> Response:
        self.chat.check_model(request.path_params["name"])
        return JSONResponse(self._served())

    async def health(self, request: Request) -> Response:
        alive, stats = self.chat.engine.alive, self.chat.engine.stats()
        content = {
            "status": "ok" if alive else "engine dead",
            "model": self.chat.name,
            "fingerprint": self.chat.fingerprint,
            "running": stats.running,
            "waiting": stats.waiting,
            "restarts": stats.restarts,
        }
        return JSONResponse(content, 200 if alive else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(secured=self.settings.api_key is not None))


_STARTED = int(time.time())


# ---- bodies ----


async def read_body(request: Request, settings: HttpSettings) -> bytes:
    """The body, if it is no larger and no slower than it may be. Raises `ApiError`."""
    too_large = ApiError(413, f"the request body is larger than {settings.body} bytes", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > settings.body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.body:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the request body took more than {settings.body_seconds:g} seconds") from None
    return bytes(body)


class Lingering(Response):
    """An error for a client that may still be sending: what it sends is thrown away for a while after the answer.

    Closed at once, the connection would be reset, and the client would never read the answer.
    """

    def __init__(self, error: ApiError) -> None:
        headers = {**(error.headers or {}), "Connection": "close"}
        super().__init__(json.dumps(error.body).encode(), error.status, headers, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if "100-continue" not in Request(scope).headers.get("expect", ""):
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    while (await receive()).get("more_body"):
                        pass
            except TimeoutError:
                pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# ---- errors ----


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


class Watch:
    """Counts and traces each request, and answers for what nothing else has caught; its log tells where, and never a
    value."""

    def __init__(self, app: ASGIApp, metrics: Metrics, telemetry: Telemetry | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there is no lifespan, and websockets are refused before
            return
        status, began = 0, time.monotonic()
        traced = trace.begin(scope, exported=self._telemetry is not None)
        scope.setdefault("state", {})["trace"] = traced

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:  # the server stops, and this request was given its time
            if not status:
                await ApiError(503, "the server is stopping", code="stopping").response()(scope, receive, watched)
        except Exception as e:
            where = "".join(traceback.format_tb(e.__traceback__))
            log.error("a request broke, %s:\n%s", type(e).__name__, where)  # its message may quote the request
            if status:
                raise _Broken from None  # the answer has begun: all that is left is to close the connection
            await ApiError(500, "internal error: the server's log has more").response()(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status)
            took = time.monotonic() - began
            log.debug("%s %s: %s after %.3f s", scope["method"], route, status, took)
            traced.end()
            if self._telemetry is not None and isinstance(traced, trace.Recorded):
                self._telemetry.export(traced, scope, route, status)


class _Broken(Exception):
    """An answer broke after it had begun, and has been logged."""
