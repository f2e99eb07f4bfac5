"""The server as a process: what it writes, when it refuses, how it ends."""

import contextlib
import json
import signal
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

from punie_mlx import identity
from punie_mlx.corpus.world import TOOLS

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


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
    with serving(hermes_model) as server:
        body = {"messages": [{"role": "user", "content": "#hermes"}], "tools": [WEATHER]}
        message = httpx.post(server.url + "/chat/completions", json=body, trust_env=False).json()["choices"][0][
            "message"
        ]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}


def test_guessing_ahead_changes_no_answer_and_is_counted(serving: Callable[..., Any], tiny_base: Path) -> None:
    def ask(url: str, **more: Any) -> dict[str, Any]:
        question = "Count the lines of api/jasper/willow.py"
        body = {"messages": [{"role": "user", "content": question}], "tools": [TOOLS["count_lines"]], "max_tokens": 90}
        return httpx.post(url + "/chat/completions", json={**body, **more}, trust_env=False, timeout=60).json()

    def said(answer: dict[str, Any]) -> tuple[str | None, list[Any]]:
        message = answer["choices"][0]["message"]
        return message["content"], [call["function"] for call in message.get("tool_calls") or []]

    demands: list[dict[str, Any]] = [{}, {"tool_choice": "required"}, {"presence_penalty": 0.5}]
    with serving(tiny_base) as plain, serving(tiny_base, "--prompt-lookup") as guessing:
        for demand in demands:
            wanted, got = ask(plain.url, **demand), ask(guessing.url, **demand)
            assert said(wanted) == said(got)
            assert "completion_tokens_details" not in wanted["usage"]
            assert got["usage"]["completion_tokens_details"].keys() == {
                "accepted_prediction_tokens", "rejected_prediction_tokens"
            }  # fmt: skip
        held = ask(guessing.url, tool_choice="required")
        assert said(held)[1]
        assert held["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(
    serving: Callable[..., Any], scripted_model: Path, number: signal.Signals
) -> None:
    with serving(scripted_model) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "#hello"}]}).encode()
        assert httpx.post(server.url + "/chat/completions", content=body, trust_env=False).status_code == 200
        server.process.send_signal(number)
        assert server.process.wait(20) == 0


FOREVER = {"messages": [{"role": "user", "content": "#forever"}], "stream": True, "seed": 1}


@contextlib.contextmanager
def answering(server: Any, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun."""
    url = server.url + "/chat/completions"
    with httpx.stream("POST", url, json=FOREVER | fields, trust_env=False, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        yield (line for line in lines if line)


def test_answers_under_way_are_finished_after_a_signal(serving: Callable[..., Any], scripted_model: Path) -> None:
    with serving(scripted_model) as server, answering(server, max_tokens=600) as lines:
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = lines
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/models", trust_env=False)
        assert server.process.wait(20) == 0
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_what_takes_longer_is_cut_off_properly(serving: Callable[..., Any], scripted_model: Path) -> None:
    with serving(scripted_model, "--drain", "0.2") as server, answering(server) as lines:
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = lines
        assert server.process.wait(20) == 0
    assert done == "data: [DONE]"
    event = json.loads(last.removeprefix("data: "))  # a fast machine is done before it is cut off
    assert "stopping" in event["error"]["message"] if "error" in event else event["choices"][0]["finish_reason"]


def test_a_second_signal_stops_it_now(serving: Callable[..., Any], scripted_model: Path) -> None:
    with serving(scripted_model, "--drain", "3600") as server, contextlib.ExitStack() as begun:
        streams = [begun.enter_context(answering(server)) for _ in range(8)]  # each slows the others down
        server.process.send_signal(signal.SIGTERM)
        while accepts(server.url):  # until it has seen the first one: two that wait are one
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = streams[0]
        assert server.process.wait(20) == 0
    assert done == "data: [DONE]"
    assert "stopping" in json.loads(last.removeprefix("data: "))["error"]["message"]


def accepts(url: str) -> bool:
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_client_that_never_ends_its_request_holds_nobody(serving: Callable[..., Any], scripted_model: Path) -> None:
    with serving(scripted_model, "--drain", "0.2") as server:
        where = urlsplit(server.url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert httpx.get(server.url + "/models", trust_env=False).status_code == 200
            server.process.terminate()
            assert server.process.wait(20) == 0
            assert s.recv(12) == b"HTTP/1.1 503"


def test_no_text_of_a_request_is_logged(scripted_model: Path, tmp_path: Path) -> None:
    quiet, loud = (
        logged(scripted_model, tmp_path / name, *more) for name, more in (("q", ()), ("l", ("--log-content",)))
    )
    assert "POST /v1/chat/completions: 200" in quiet and "400" in quiet  # it did log
    assert "xyzzy" not in quiet
    assert "xyzzy" in loud


def logged(model: Path, file: Path, *more: str) -> str:
    """What a server logs of requests that say xyzzy in all places where it may be quoted."""
    said = {"role": "user", "content": "xyzzy #broken"}
    tool = {"type": "function", "function": {"name": "xyzzy", "parameters": {"type": "object"}}}
    bodies: list[Any] = [
        {"messages": [said]},
        {"messages": [said], "tools": [tool]},
        {"messages": [said], "tools": [tool], "tool_choice": "required"},
        {"messages": [said], "stream": True},
        {"messages": [said], "metadata": {"xyzzy": "xyzzy"}},
        {"messages": [{"role": "xyzzy", "content": "xyzzy"}]},
        {"messages": [said], "model": "xyzzy"},
        {"messages": [said], "stop": [1, "xyzzy"]},
        {"messages": [said], "response_format": {"type": "json_schema", "json_schema": {"name": "xyzzy"}}},
        {"messages": [said], "chat_template_kwargs": {"xyzzy": "xyzzy"}},
        "xyzzy",
    ]
    command = [sys.executable, "-m", "punie_mlx", "serve", "--model", str(model), "--port", "0"]
    with file.open("w") as stderr:
        options = ["--log-level", "debug", *more]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            for path in ("/chat/completions", "/chat/completions/render", "/completions"):
                for body in bodies:
                    short = body | {"max_tokens": 30} if isinstance(body, dict) else body
                    httpx.post(url + path, json=short, trust_env=False, timeout=30)
            httpx.post(url + "/completions", json={"prompt": "xyzzy"}, trust_env=False, timeout=30)
            httpx.get(url + "/xyzzy?xyzzy=1", headers={"X-Xyzzy": "xyzzy"}, trust_env=False)
            process.terminate()
            assert process.wait(30) == 0
    return file.read_text()


# ---- what is refused before anything is loaded ----


def test_other_machines_may_not_call_without_a_key(
    serving: Callable[..., Any], scripted_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUNIE_MLX_API_KEY", raising=False)
    done = serve("--model", scripted_model, "--host", "0.0.0.0", "--port", 0)
    assert done.returncode == 2 and "--api-key" in done.stderr and "--insecure" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    monkeypatch.setenv("PUNIE_MLX_API_KEY", "from-the-environment")
    with serving(scripted_model, "--host", "0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url + "/models", trust_env=False).status_code == 401
        key = {"Authorization": "Bearer from-the-environment"}
        assert httpx.get(url + "/models", headers=key, trust_env=False).status_code == 200


# ---- a template of one's own ----

HERMES = """{%- if tools %}<|im_start|>system
Write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>{{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>
{{ c.function | tojson }}
</tool_call>{% endfor %}{% if not loop.last %}<|im_end|>
{% endif %}{% endfor %}"""


def test_a_template_of_ones_own(serving: Callable[..., Any], scripted_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "hermes.jinja"
    template.write_text(HERMES)
    with serving(scripted_model, "--chat-template", str(template), "--name", "mine", "--constrain", "off") as server:
        assert server.ready["model"] == "mine"
        assert server.ready["fingerprint"] != identity.fingerprint(scripted_model)  # it decides what is said
        body = {"model": "mine", "messages": [{"role": "user", "content": "#hermes"}], "tools": [WEATHER]}
        response = httpx.post(server.url + "/chat/completions", json=body, trust_env=False)
        (call,) = response.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_check_says_what_would_be_served_and_exits(tiny_base: Path, scripted_model: Path, tmp_path: Path) -> None:
    done = serve("--check", "--json", "--model", tiny_base)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ok"], report["format"]) == (True, "qwen3_coder")
    assert report["fingerprint"] == identity.fingerprint(tiny_base)
    template = tmp_path / "toolless.jinja"
    template.write_text(HERMES.replace("{{ tools | tojson }}", ""))
    done = serve("--check", "--model", scripted_model, "--chat-template", template)
    assert done.returncode == 2 and "shows no tools" in done.stdout and "shows no tools" in done.stderr
    assert "Traceback" not in done.stderr


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
