"""Names of models: paths, hub names, and a hub that is away, silent or does not know the name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from punie_mlx.errors import ModelError
from punie_mlx.export.hub import resolve

PROGRAM = """
import sys, time
import punie_mlx
from punie_mlx.errors import PunieError
from punie_mlx.export import hub
hub.TIMEOUT = 1.0
try:
    print(hub.resolve(sys.argv[1]))
except PunieError as e:
    print(type(e).__name__, e.exit_code, e)
"""


def resolve_apart(name: str, tmp_path, **environment: str) -> str:
    """`resolve` in a process of its own: the hub's client reads its settings when it is imported."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./model", "/nowhere/model", "model", "runs/a/b", "~/nowhere-model", "here/model"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ModelError, match="does not exist"):
        resolve(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        resolve(tmp_path / "weights")


def test_offline_is_said(tmp_path):
    said = resolve_apart("some-org/some-model", tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("HubError 2 the model hub cannot be reached")
    assert "some-org/some-model is not in the local cache" in said


def test_a_refused_connection_is_said(tmp_path):
    said = resolve_apart("some-org/some-model", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("HubError 2 the model hub cannot be reached")


def test_a_silent_hub_does_not_hang(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = resolve_apart("some-org/some-model", tmp_path, HF_ENDPOINT=endpoint)
    assert said.startswith("HubError 2 the model hub cannot be reached")
    assert time.monotonic() - started < 30


@contextmanager
def hub_that_answers(status: int, headers: dict[str, str]):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_unknown_name_is_said(tmp_path):
    with hub_that_answers(404, {"X-Error-Code": "RepoNotFound"}) as endpoint:
        said = resolve_apart("some-org/some-model", tmp_path, HF_ENDPOINT=endpoint)
    assert said.startswith("HubError 2 some-org/some-model is neither a directory here nor a model on the hub")


def test_a_gated_model_is_said(tmp_path):
    with hub_that_answers(403, {"X-Error-Code": "GatedRepo"}) as endpoint:
        said = resolve_apart("some-org/some-model", tmp_path, HF_ENDPOINT=endpoint)
    assert said.startswith("HubError 2 some-org/some-model is gated")


def test_a_cached_model_needs_no_hub(tmp_path):
    snapshot = tmp_path / "hub" / "models--some-org--some-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--some-org--some-model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    said = resolve_apart("some-org/some-model", tmp_path, HF_HUB_OFFLINE="1")
    assert said.strip() == str(snapshot)
