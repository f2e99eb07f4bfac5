"""Who may call, as ASGI middleware: a key, the Host header, and the pages of browsers.

Without a key, everything on this machine may call; but a page that a browser shows may come from anywhere. So a page
of another origin is refused unless it was allowed, and a server on loopback answers only to names of loopback: a page
whose own name suddenly points here (DNS rebinding) has another.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from punie_mlx.serve.errors import ApiError
from punie_mlx.serve.settings import HttpSettings

OPEN = ("/health",)  # for load balancers and supervisors, which have no key
INSPECT = "/inspect"  # a page that knows nothing: a browser opens it without a key, and it asks its user for one


class Guard:
    """Passes on what may pass; `refused(kind)` is told of the rest."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, refused: Callable[[str], None]) -> None:
        self._app = app
        self._settings = settings
        self._refused = refused
        self._open = (*OPEN, INSPECT) if settings.inspect else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as e:
            self._refused(str(e.body["error"]["code"]))
            await e.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        settings = self._settings
        host, origin = headers.get("host", ""), headers.get("origin")
        if settings.hosts is not None and hostname(host) not in settings.hosts:
            message = f"this server does not answer to the name {host!r}: give it an --api-key to use other names"
            raise ApiError(403, message, code="unknown_host")
        if origin is not None and not self._allowed(origin, host):
            message = f"pages of {origin} may not call: --allow-origin {origin} allows them"
            raise ApiError(403, message, code="origin_not_allowed")
        if settings.api_key is not None and path not in self._open and not same(bearer(headers), settings.api_key):
            message = "an API key is needed: send the header `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _allowed(self, origin: str, host: str) -> bool:
        allowed = self._settings.origins
        return origin in allowed or "*" in allowed or (bool(host) and origin.partition("://")[2] == host)


def hostname(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def same(given: str, key: str) -> bool:
    """Whether they are equal, in a time that tells nothing of where they differ, nor of their lengths."""
    return hmac.compare_digest(*(hashlib.sha256(k.encode("utf-8", "surrogateescape")).digest() for k in (given, key)))
