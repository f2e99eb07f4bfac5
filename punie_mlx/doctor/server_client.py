"""A small HTTP client for a server under examination: nothing that it does raises, and nothing is read without end.

client = Client("http://127.0.0.1:8080/v1", key=None, timeout=60.0)
reply = client.post("/chat/completions", {"messages": [...]})
reply.status, reply.json, reply.broken
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from punie_mlx.errors import ConfigError

MOST_BYTES = 8 << 20
PIECE = 1 << 16

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back. status: 0 where nothing did. broken: how it ended too early, empty where it did not."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    broken: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.broken

    @property
    def refused(self) -> bool:
        """Answered as a request that cannot be served."""
        return 400 <= self.status < 500 and not self.broken

    @cached_property
    def json(self) -> Any:
        """The body, None where it is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    @property
    def error(self) -> str:
        """What the server says is wrong, in whatever shape it says so."""
        told = self.json
        for key in ("error", "message", "detail"):
            while isinstance(told, dict) and key in told:
                told = told[key]
        return told if isinstance(told, str) else self.text

    @property
    def outcome(self) -> str:
        """The status, or how it broke, in a few words."""
        return self.broken or f"HTTP {self.status}"


@dataclass(frozen=True)
class Client:
    """Sends requests to `url`, the base of the OpenAI routes. timeout: seconds that one answer may take."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def get(self, path: str, headers: Json | None = None) -> Reply:
        return self._send("GET", path, b"", headers or {}, self.timeout)

    def post(self, path: str, body: Any, *, timeout: float | None = None, headers: Json | None = None) -> Reply:
        """`body`: what is to be JSON, or bytes as they are to be sent."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", "Content-Length": str(len(payload)), **(headers or {})}
        return self._send("POST", path, payload, given, timeout or self.timeout)

    def begin(self, path: str, body: Any) -> Reply:
        """Only the first piece of the answer: the connection is closed on the rest, which ends the answer."""
        return self._send(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}, self.timeout, 1
        )

    def _send(
        self, method: str, path: str, payload: bytes, headers: Json, timeout: float, most: int = MOST_BYTES
    ) -> Reply:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        given = {"Accept": "*/*", **({"Authorization": f"Bearer {self.key}"} if self.key else {}), **headers}
        if payload:
            given.setdefault("Content-Length", str(len(payload)))
        try:
            connection.putrequest(method, parts.path + path, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(payload or None)
            return _read(connection.getresponse(), time.monotonic() + timeout, most, timeout)
        except TimeoutError:
            return Reply(broken=f"no answer within {timeout:g} s")
        except (OSError, http.client.HTTPException) as e:
            return Reply(broken=f"no answer: {e or type(e).__name__}")
        finally:
            connection.close()


def _read(response: http.client.HTTPResponse, deadline: float, most: int, timeout: float) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    found, broken = bytearray(), ""
    try:
        while len(found) < most and (piece := response.read1(PIECE)):
            found += piece
            if time.monotonic() > deadline:
                broken = f"the answer did not end within {timeout:g} s"
                break
        if most > 1 and response.length:
            broken = broken or f"the connection was closed {response.length} bytes before the end of the answer"
        if most > 1 and len(found) >= most:
            broken = f"the answer is longer than {most} bytes"
    except TimeoutError:
        broken = f"the answer stopped, and nothing came for {timeout:g} s"
    except (OSError, http.client.HTTPException) as e:
        broken = f"the connection broke after {len(found)} bytes of the answer ({type(e).__name__})"
    return Reply(response.status, headers, found.decode("utf-8", "replace"), broken)


def base_url(url: str) -> str:
    """`url` as the base of the OpenAI routes, `/v1` where it names no path. Raises `ConfigError`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"--url {url} is no address: give something like http://127.0.0.1:8080/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
