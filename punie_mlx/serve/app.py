"""The HTTP application: routes, errors and limits. It serves one model and never loads, fetches or opens anything."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.errors import ApiError


@dataclass(frozen=True)
class HttpLimits:
    """What a client may ask of the server's memory and patience."""

    body: int = 16 * 2**20  # bytes
    body_seconds: float = 60.0


def build(chat: Chat, limits: HttpLimits = HttpLimits()) -> Starlette:
    """The application that serves `chat`."""
    served = {
        "id": chat.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "punie-mlx",
        "fingerprint": chat.fingerprint,
    }

    async def completions(request: Request) -> Response:
        try:
            return await chat.respond(request, await read_body(request, limits))
        except ClientDisconnect:
            return Response(status_code=499)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served]})

    async def model(request: Request) -> Response:
        chat.check_model(request.path_params["name"])
        return JSONResponse(served)

    async def health(request: Request) -> Response:
        alive = chat.engine.alive
        content = {
            "status": "ok" if alive else "engine dead",
            "model": chat.name,
            "fingerprint": chat.fingerprint,
            "running": chat.engine.running,
        }
        return JSONResponse(content, 200 if alive else 503)

    routes = [
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _internal_error}
    return Starlette(routes=routes, exception_handlers=handlers)


async def read_body(request: Request, limits: HttpLimits) -> bytes:
    """The body, if it is no larger and no slower than it may be. Raises `ApiError`."""
    too_large = ApiError(413, f"the request body is larger than {limits.body} bytes", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > limits.body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the request body took more than {limits.body_seconds:g} seconds") from None
    return bytes(body)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _internal_error(request: Request, error: Exception) -> Response:
    return ApiError(500, "internal error: the server's log has more").response()
