"""A server that speaks the protocol over real HTTP and says what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

FINGERPRINT = "f" * 64
Reply = dict[str, Any] | int | None


def call(name: str, arguments: Any, id: str = "c1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def says(content: str | None = None, *calls: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """One assistant response."""
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    return {"message": message, "finish_reason": finish or ("tool_calls" if calls else "stop"), "index": 0}


class Scripted(ThreadingHTTPServer):
    """`reply(request body)` gives a choice, a status code, or None for a dropped connection; `models` None drops it,
    too."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: says("An answer.")
        self.models: list[dict[str, Any]] | None = [{"id": "m", "object": "model", "fingerprint": FINGERPRINT}]
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.traces = True  # tells its prompts, as our own server does
        self.beside: dict[str, Any] = {}  # what its responses hold beside the choice
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.server.models is None:
            self.close_connection = True
            return
        self._send(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.headers.append(dict(self.headers))
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            reply = server.reply(body)
        finally:
            with server.lock:
                server.in_flight -= 1
        if reply is None:
            self.close_connection = True
        elif isinstance(reply, int):
            self._send(reply, {"error": {"message": "told to fail", "type": "t", "code": None, "param": None}})
        else:
            tokens = len(json.dumps(body)) // 4
            usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
            full = {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": "m"}
            if server.traces and self.headers.get("X-Punie-Trace"):
                full["punie_trace"] = {"prompt": [[0, json.dumps(body)]], "output": [], "events": [], "spans": []}
            self._send(200, {**full, "choices": [reply], "usage": usage, **server.beside})


@pytest.fixture
def scripted():
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
