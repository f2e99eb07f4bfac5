"""A small HTTP client for a server under examination: nothing that it does raises, and nothing is read without end.

client = Client("http://127.0.0.1:8080/v1", key=None, timeout=60.0)
reply = client.post("/chat/completions", {"messages": [...]})
reply.status, reply.json, reply.broken
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from punie_mlx.errors import ConfigError

MOST_BYTES = 2 << 20
PIECE = 1 << 16
PROOF = 200  # characters of an error that are kept
HIDDEN = "[the key]"
LEAST_KEY = 4  # characters: what is shorter is no secret, and stands everywhere

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back. status: 0 where nothing did. broken: how it ended too early, empty where it did not.

    given_up: there was no end of it within the seconds and bytes that it may have.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    broken: str = ""
    given_up: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.broken

    @property
    def refused(self) -> bool:
        """Answered as a request that cannot be served."""
        return 400 <= self.status < 500 and not self.broken

    @property
    def json(self) -> Any:
        """The body, None where it is no JSON; not kept, since it may take much more memory than its text."""
        return parsed(self.text)

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

    def hide(self, text: str) -> str:
        """`text` without the key, which a server may repeat; also where text that was left out goes through it."""
        key = self.key or ""
        if len(key) < LEAST_KEY:
            return text
        text = text.replace(key, HIDDEN)
        for n in range(len(key) - 1, LEAST_KEY - 1, -1):
            text = text.replace(f"{key[:n]} …", f"{HIDDEN} …").replace(f"… {key[-n:]}", f"… {HIDDEN}")
        return text

    def _send(
        self, method: str, path: str, payload: bytes, headers: Json, timeout: float, most: int = MOST_BYTES
    ) -> Reply:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port or kind.default_port, timeout=timeout)
        given = {"Accept": "*/*", **({"Authorization": f"Bearer {self.key}"} if self.key else {}), **headers}
        if payload:
            given.setdefault("Content-Length", str(len(payload)))
        try:
            connection.connect()
            with _closed_after(connection.sock, timeout) as over:
                try:
                    connection.putrequest(method, parts.path + path, skip_accept_encoding=True)
                    for name, value in given.items():
                        connection.putheader(name, value)
                    connection.endheaders(payload or None)
                    return _read(connection.getresponse(), over, most, timeout)
                except (OSError, http.client.HTTPException):
                    if over.is_set():
                        raise TimeoutError from None
                    raise
        except TimeoutError:
            return Reply(broken=f"no answer within {timeout:g} s", given_up=True)
        except (OSError, http.client.HTTPException, UnicodeError) as e:  # the last of a name that no host can have
            return Reply(broken=f"no answer: {self.hide(str(e))[:PROOF] or type(e).__name__}")
        finally:
            connection.close()


@contextlib.contextmanager
def _closed_after(sock: socket.socket, seconds: float) -> Generator[threading.Event]:
    """Shuts `sock` after `seconds` and then sets the event: its own clock starts anew with each byte that comes."""
    over = threading.Event()

    def end() -> None:
        over.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, over: threading.Event, most: int, timeout: float) -> Reply:
    headers = {name.lower(): value for name, value in response.getheaders()}
    found, broken, late = bytearray(), "", False
    try:
        while len(found) < most and (piece := response.read1(PIECE)):
            found += piece
        if most > 1 and response.length:
            broken = f"the connection was closed {response.length} bytes before the end of the answer"
    except TimeoutError:
        late = True
    except (OSError, http.client.HTTPException) as e:
        broken = f"the connection broke after {len(found)} bytes of the answer ({type(e).__name__})"
    large = 1 < most <= len(found)
    if large:
        broken = f"the answer is longer than {most} bytes"
        del found[PIECE:]
    elif late or over.is_set():
        late, broken = True, f"the answer did not end within {timeout:g} s"
    return Reply(response.status, headers, found.decode("utf-8", "replace"), broken, given_up=late or large)


def parsed(text: Any) -> Any:
    """The value that `text` is in JSON; None where it is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def base_url(url: str) -> str:
    """`url` as the base of the OpenAI routes, `/v1` where it names no path. Raises `ConfigError`."""
    named = url.rpartition("@")[2]  # not what stands before it, which may be a password
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable or not parts.path.isascii() or re.search(r"[\x00-\x20\x7f]", parts.netloc + parts.path):
        raise ConfigError(f"--url {named} is no address: give something like http://127.0.0.1:8080/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
