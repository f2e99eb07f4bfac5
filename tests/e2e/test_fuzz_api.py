"""The fuzzer of the API: a small run against ours finds nothing, one against a server with faults finds each."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.serve import openapi

DOCUMENT = json.dumps(openapi.document(secured=False)).encode()


def fuzz(root: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(root / "scripts" / "fuzz_api.py"), "--json", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text())


def test_a_small_run_finds_nothing(root: Path, scripted_model: Path, tmp_path: Path) -> None:
    code, result = fuzz(root, tmp_path / "out.json", "--model", str(scripted_model), "--examples", "50")
    assert result["failures"] == []
    assert code == 0 and result["examples"] >= 50
    for path in ("/v1/chat/completions", "/v1/chat/completions/render", "/v1/completions", "/tokenize"):
        assert result["statuses"][path].get("400", 0) > 0
    assert sum(found.get("200", 0) for found in result["statuses"].values()) > 5


class Faulty(http.server.BaseHTTPRequestHandler):
    """A server that describes itself as ours does, and answers otherwise."""

    protocol_version = "HTTP/1.0"
    answers = {  # noqa: RUF012
        "/openapi.json": (200, "application/json", DOCUMENT),
        "/health": (200, "application/json", b'{"status": "ok", "running": 0, "waiting": 0, "restarts": 1}'),
        "/v1/chat/completions": (500, "application/json", b'{"error": {}}'),
        "/v1/chat/completions/render": (400, "application/json", b'{"error": "text"}'),
        "/v1/completions": (200, "text/event-stream", b'data: {"choices": []}\n\n'),
        "/tokenize": (418, "application/json", b"{}"),
    }

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        default = (200, "application/json", b"{}")
        status, kind, body = self.answers.get(self.path.partition("?")[0], default)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_finds_what_is_wrong(root: Path, faulty: str, tmp_path: Path) -> None:
    code, result = fuzz(root, tmp_path / "out.json", "--url", faulty, "--examples", "40")
    assert code == 1
    found = [failure["why"] for failure in result["failures"]]
    for told in ("a 500:", "no error of OpenAI's shape", "a stream without [DONE]", "418 is not described", "restarts"):
        assert any(told in why for why in found), told
    assert any("/v1/chat/completions" in failure["request"] for failure in result["failures"] if failure["request"])
