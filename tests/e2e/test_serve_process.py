"""The server as a process: what it writes, when it refuses, how it ends."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from punie_mlx import identity


def serve(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "punie_mlx", "serve", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_ready_line(serving: Callable[..., Any], scripted_model: Path) -> None:
    with serving(scripted_model) as server:
        ready = server.ready
        assert ready["event"] == "ready"
        assert ready["model"] == "scripted"
        assert ready["fingerprint"] == identity.fingerprint(scripted_model)
        assert ready["pid"] == server.process.pid
        assert ready["url"].startswith("http://127.0.0.1:") and ready["url"].endswith("/v1")
        assert httpx.get(ready["url"] + "/models", trust_env=False).status_code == 200
        server.process.terminate()
        assert server.process.stdout.read() == ""  # nothing else, ever


def test_a_hermes_model_is_served_too(serving: Callable[..., Any], hermes_model: Path) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    with serving(hermes_model) as server:
        body = {"messages": [{"role": "user", "content": "#hermes"}], "tools": [tool]}
        message = httpx.post(server.url + "/chat/completions", json=body, trust_env=False).json()["choices"][0][
            "message"
        ]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(
    serving: Callable[..., Any], scripted_model: Path, number: signal.Signals
) -> None:
    with serving(scripted_model) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "#hello"}]}).encode()
        assert httpx.post(server.url + "/chat/completions", content=body, trust_env=False).status_code == 200
        server.process.send_signal(number)
        assert server.process.wait(20) == 0


def test_a_signal_ends_it_while_it_answers(serving: Callable[..., Any], scripted_model: Path) -> None:
    """After a while the answer is cut off; its stream says so, and is ended properly."""
    body = {"messages": [{"role": "user", "content": "#forever"}], "stream": True, "seed": 1}
    with (
        serving(scripted_model) as server,
        httpx.stream("POST", server.url + "/chat/completions", json=body, trust_env=False, timeout=30) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = [line for line in lines if line]
        assert server.process.wait(20) == 0
    assert done == "data: [DONE]"
    event = json.loads(last.removeprefix("data: "))  # a fast machine is done before it is cut off
    assert "stopping" in event["error"]["message"] if "error" in event else event["choices"][0]["finish_reason"]


def test_a_port_in_use_is_refused_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--model", tmp_path / "none", "--port", port)
    assert done.returncode == 2
    assert str(port) in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    done = serve("--model", tmp_path / "none", "--port", 0)
    assert done.returncode == 2
    assert f"{tmp_path / 'none'} does not exist" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_an_adapter_of_another_model_is_refused(scripted_model: Path, tmp_path: Path) -> None:
    config = {"fine_tune_type": "lora", "num_layers": 1, "punie": {"base_fingerprint": "f" * 64}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").write_bytes(b"")
    done = serve("--model", scripted_model, "--adapter", tmp_path, "--port", 0)
    assert done.returncode == 2
    assert "trained on another model" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
