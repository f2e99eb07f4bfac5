"""Clients that misbehave, over raw sockets: what they get, and that nobody else feels them."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

LIMITED = """
import sys
from pathlib import Path
from punie_mlx.serve.config import ServeConfig
from punie_mlx.serve.process import serve

limits = dict(header_seconds=0.5, body_seconds=0.5, idle_seconds=1, stalled_seconds=0.5, connections=30)
serve(ServeConfig(Path(sys.argv[1]), port=0), body=50_000, header_bytes=8192, **limits)
"""
HALF_OPEN = 1000
PATIENCE = 20.0  # for what must happen soon


class Limited:
    """A server with small limits, started as its own process."""

    def __init__(self, url: str) -> None:
        self.url = url
        where = urlsplit(url)
        self.where = (str(where.hostname), int(where.port or 0))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.where, timeout=PATIENCE)

    def ask(self, data: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to `data`, read until the server closes the connection."""
        with self.connect() as s:
            s.sendall(data)
            return answer(s)


def answer(s: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b""
    while part := s.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture(scope="module")
def limited(scripted_model: Path) -> Iterator[Limited]:
    command = [sys.executable, "-c", LIMITED, str(scripted_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield Limited(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            assert process.wait(30) == 0


def root(url: str) -> str:
    return url.removesuffix("/v1")


def says_hello(url: str) -> bool:
    body = {"messages": [{"role": "user", "content": "#hello"}]}
    response = httpx.post(url + "/chat/completions", json=body, trust_env=False, timeout=PATIENCE)
    return response.json()["choices"][0]["message"]["content"] == "Hello, world 🌍!"


def load(url: str) -> int:
    content = httpx.get(root(url) + "/health", trust_env=False, timeout=PATIENCE).json()
    return content["running"] + content["waiting"]


def soon(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def request(body: Any, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


FOREVER = {"messages": [{"role": "user", "content": "#forever"}], "stream": True, "temperature": 0}
HELLO = {"messages": [{"role": "user", "content": "#hello"}]}


# ---- others go on ----


def test_a_client_that_is_killed_gives_its_slot_back(scripted_server: Any) -> None:
    assert soon(lambda: load(scripted_server.url) == 0)
    code = (
        "import httpx2, json, sys\n"
        "with httpx2.stream('POST', sys.argv[1] + '/chat/completions', json=json.loads(sys.argv[2]),"
        " trust_env=False, timeout=60) as r:\n"
        "    for line in r.iter_lines():\n        print('read', flush=True)\n        import time; time.sleep(0.2)\n"
    )
    command = [sys.executable, "-c", code, scripted_server.url, json.dumps(FOREVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None and client.stdout.readline() == "read\n"
        client.kill()
    assert says_hello(scripted_server.url)
    assert soon(lambda: load(scripted_server.url) == 0)


def test_half_open_connections_keep_nobody_out(scripted_server: Any) -> None:
    where = urlsplit(scripted_server.url)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = HALF_OPEN + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with contextlib.ExitStack() as opened:
            for i in range(HALF_OPEN):
                s = opened.enter_context(socket.create_connection((where.hostname, where.port), timeout=PATIENCE))
                s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local"[: i % 60])
            assert says_hello(scripted_server.url)
            response = httpx.get(scripted_server.url + "/models", trust_env=False, timeout=PATIENCE)
            assert response.status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert says_hello(scripted_server.url)


def test_a_client_that_does_not_read_is_disconnected(limited: Limited) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.settimeout(PATIENCE)
        s.connect(limited.where)
        s.sendall(request({**FOREVER, "logprobs": True, "top_logprobs": 20, "max_tokens": 4000}))
        assert s.recv(12) == b"HTTP/1.1 200"
        assert says_hello(limited.url)
        assert soon(lambda: load(limited.url) == 0)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := s.recv(1 << 20):
                received += part
        assert b"[DONE]" not in received


def test_a_client_that_reads_slowly_is_served(limited: Limited) -> None:
    """Slower than the time for a client that reads nothing; but it reads."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.settimeout(PATIENCE)
        s.connect(limited.where)
        s.sendall(request({**FOREVER, "logprobs": True, "top_logprobs": 10, "max_tokens": 500}, "Connection: close"))
        received = bytearray()
        for _ in range(15):
            received += s.recv(1024)
            time.sleep(0.1)
        while part := s.recv(1 << 16):
            received += part
    assert b"data: [DONE]" in received


# ---- headers ----


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_headers_that_do_not_come_are_not_waited_for(limited: Limited, sent: bytes) -> None:
    status, content = limited.ask(sent)
    assert status == 408 and "headers" in content["error"]["message"]


def test_headers_that_trickle_are_not_waited_for(limited: Limited) -> None:
    with limited.connect() as s:
        try:
            for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000:
                s.sendall(bytes([byte]))
                time.sleep(0.02)
            raise AssertionError("1,000 slow bytes were taken")
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_nor_are_those_of_a_second_request(limited: Limited) -> None:
    with limited.connect() as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert s.recv(12) == b"HTTP/1.1 200"
        s.sendall(b"GET /hea")
        received = b""
        while part := s.recv(65536):
            received += part
        assert b"HTTP/1.1 408" in received


def test_an_answer_may_take_longer_than_headers_and_idle_time(limited: Limited) -> None:
    with limited.connect() as s:
        s.sendall(request({**FOREVER, "max_tokens": 3000}, "Connection: close"))
        received = b""
        while part := s.recv(1 << 16):
            received += part
    assert b"data: [DONE]" in received and b"error" not in received


def test_an_idle_connection_is_closed(limited: Limited) -> None:
    with limited.connect() as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while s.recv(65536):
            pass  # nothing more comes, and it ends


def test_headers_that_are_too_large(limited: Limited) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 20_000
    status, content = limited.ask(head)
    assert status == 431 and "8192" in content["error"]["message"]


@pytest.mark.parametrize(
    "lines",
    [
        b"GET /health",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",  # the beginning of TLS
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: five",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header",
        b"GET /health HTTP/1.1",  # without a host
    ],
)
def test_what_is_no_http_is_refused(limited: Limited, lines: bytes) -> None:
    status, content = limited.ask(lines + b"\r\n\r\n")
    assert status in (400, 501) and content["error"]["type"] in ("invalid_request_error", "server_error")


def test_a_bad_chunk_ends_the_request(limited: Limited) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _ = limited.ask(head + b"zz\r\nno chunk\r\n")
    assert status == 400
    assert says_hello(limited.url)


def test_garbage_behind_a_request_that_is_answered(limited: Limited) -> None:
    with limited.connect() as s:
        s.sendall(request(FOREVER))
        assert s.recv(12) == b"HTTP/1.1 200"
        s.sendall(b"\x00 garbage\r\n\r\n" * 10)
        assert says_hello(limited.url)
    assert soon(lambda: load(limited.url) == 0)


# ---- bodies ----


def test_a_body_that_does_not_come_is_not_waited_for(limited: Limited) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
    status, content = limited.ask(head + b'{"messages"')
    assert status == 408 and "0.5 seconds" in content["error"]["message"]


def test_a_body_that_says_it_is_too_large_is_not_read(limited: Limited) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n"
    status, content = limited.ask(head)
    assert status == 413 and content["error"]["code"] == "body_too_large"


def test_a_client_that_still_sends_can_read_why_it_is_refused(limited: Limited) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 1_000_000}]}
    response = httpx.post(limited.url + "/chat/completions", json=body, trust_env=False, timeout=PATIENCE)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


def test_a_chunked_body_that_becomes_too_large(limited: Limited) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    url = limited.url + "/chat/completions"
    response = httpx.post(url, content=chunks(), trust_env=False, timeout=PATIENCE)
    assert response.status_code == 413


def test_a_client_that_asks_first_is_told_before_it_sends(limited: Limited) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n"
    status, _ = limited.ask(head + b"Expect: 100-continue\r\n\r\n")
    assert status == 413


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe{}", b"[" * 40_000, b'{"a":' * 9_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_a_body_that_is_no_request(limited: Limited, path: str, body: bytes) -> None:
    response = httpx.post(root(limited.url) + path, content=body, trust_env=False, timeout=PATIENCE)
    assert response.status_code == 400 and response.json()["error"]["message"]


# ---- connections ----


def test_too_many_connections_are_refused_and_then_taken_again(limited: Limited) -> None:
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(limited.connect()) for _ in range(30)]
        status, content = limited.ask(b"")
        assert status == 503 and "30 connections" in content["error"]["message"]
        assert held[0].fileno() > 0
    assert soon(lambda: taken(limited))
    assert says_hello(limited.url)


def taken(limited: Limited) -> bool:
    try:
        return httpx.get(root(limited.url) + "/health", trust_env=False, timeout=PATIENCE).status_code == 200
    except httpx.HTTPError:
        return False
