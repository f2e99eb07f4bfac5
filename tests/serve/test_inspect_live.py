"""/inspect: where it is, whom it lets in, and that what it tells of an answer is what a chat answers."""

from __future__ import annotations

import asyncio
import json
import math
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

from punie_mlx.errors import ConfigError
from punie_mlx.pages import frame
from punie_mlx.serve.check import check
from punie_mlx.serve.config import ServeConfig, make_config
from punie_mlx.serve.delivery import Delta
from punie_mlx.serve.generation import Generation, Piece, Waker
from punie_mlx.serve.inspect_live import WatchedAnswer, WatchedChoice
from punie_mlx.serve.inspect_page import page
from punie_mlx.serve.process import claim, closed
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.stream import StreamParser

KEY = "a-key"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any], scripted_model: Path) -> Iterator[Any]:
    with serving(scripted_model, "--inspect") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url.removesuffix("/v1"), timeout=30, trust_env=False) as client:
        yield client


def body(key: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": key}], **fields}


def choices(text: str) -> list[dict[str, Any]]:
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines]


def watch(client: httpx.Client, key: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """The first event, the steps, and the last one."""
    response = client.post("/inspect/stream", json=body(key, **fields))
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    first, *steps, last = choices(response.text)
    return first, [s["step"] for s in steps], last


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "tool_calls": [{**c, "id": ""} for c in message.get("tool_calls", [])]}


# ---- the same as a chat ----


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("#hello", {}),
        ("#think", {}),
        ("#spaced-call", {"tools": [WEATHER]}),
        ("#two-calls", {"tools": [WEATHER, ADD]}),
        ("#two-calls", {"tools": [WEATHER, ADD], "tool_choice": "none", "constrain": "off"}),
        ("#call", {"tools": [WEATHER, ADD], "tool_choice": "required", "parallel_tool_calls": False}),
        ("#hermes", {"tools": [WEATHER], "constrain": "off"}),
        ("#fence", {"tools": [WEATHER], "constrain": "off", "rescue": True}),
        ("#broken", {"tools": [WEATHER], "constrain": "off"}),
        ("#cut", {"tools": [WEATHER], "constrain": "off", "max_tokens": 2}),
        ("#stop", {"stop": "three"}),
        ("#silent", {}),
    ],
)
def test_it_answers_what_a_chat_answers(client: httpx.Client, key: str, fields: dict[str, Any]) -> None:
    asked = client.post("/v1/chat/completions", json=body(key, **fields), headers={"X-Punie-Trace": "1"}).json()
    trace, (chat,) = asked["punie_trace"], asked["choices"]
    first, steps, last = watch(client, key, **fields)
    tokens = [s for s in steps if "id" in s]
    assert [[t, first["tokens"][str(t)]["text"]] for t in first["prompt"]] == trace["prompt"]
    assert [[s["id"], s["completes"]] for s in tokens] == [o for o in trace["output"] if o[0] is not None]
    assert without_ids(last["message"]) == without_ids(chat["message"])
    assert last["finish_reason"] == chat["finish_reason"]
    for call in (*last["message"].get("tool_calls", []), *chat["message"].get("tool_calls", [])):
        assert call["id"].startswith("call_")
    assert [p["kind"] for p in last["punie"]["problems"]] == [p["kind"] for p in chat["punie"]["problems"]]
    assert last["punie"]["grammar"] == chat["punie"]["grammar"]
    kinds = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][k] for k in kinds] == [asked["usage"][k] for k in kinds]
    events = [e for s in steps for e in s["events"]]
    for call in (e for e in events if e["kind"] == "call"):
        assert json.loads(call.pop("json")) == call["arguments"]
    assert _joined(events) == _joined(trace["events"])


def _joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of which neighbours of the same kind and call are one, wherever they were cut."""
    out: list[dict[str, Any]] = []
    for event in events:
        grows = next((k for k in ("text", "json") if k in event), None)
        same = out and grows and all(out[-1].get(k) == v for k, v in event.items() if k != grows)
        if same:
            out[-1][grows] += event[grows]
        else:
            out.append(dict(event))
    return out


def test_states_follow_the_tokens(client: httpx.Client) -> None:
    _, steps, _ = watch(client, "#two-calls", tools=[WEATHER, ADD])
    states = {s["text"]: s["state"] for s in steps if "id" in s}
    assert states["<tool_call>"] == states["\n<function="] == "call"
    assert states["get_weather>\n<parameter=city>\n"] == "arguments"
    assert states["</tool_call>"] == "content"
    _, steps, _ = watch(client, "#think")
    assert [s["state"] for s in steps if "id" in s] == ["reasoning", "reasoning", "content", "content"]
    assert [s["kind"] for s in steps if "id" in s] == ["control", "text", "control", "text"]
    assert steps[-2]["kind"] == "end" and steps[-2]["markers"]["<|im_end|>"] > 0.9


def test_events_stand_with_the_token_that_decided_them(client: httpx.Client) -> None:
    _, steps, _ = watch(client, "#spaced-call", tools=[WEATHER])
    by_text = {s["text"]: [e["kind"] for e in s["events"]] for s in steps if "id" in s}
    assert "call_started" in by_text["get_weather>\n<parameter=city>\n"]
    assert by_text["<tool_call>"] == [] and "call" in by_text["Oslo\n</parameter>\n</function>\n"]


def test_probabilities_are_those_of_logprobs(client: httpx.Client) -> None:
    first, steps, _ = watch(client, "#coin", temperature=1, seed=5, max_tokens=6)
    assert first["watched"].keys() == {"<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>"}
    asked = body("#coin", temperature=1, seed=5, max_tokens=6, logprobs=True, top_logprobs=2)
    (choice,) = client.post("/v1/chat/completions", json=asked).json()["choices"]
    content = choice["logprobs"]["content"]
    tokens = [s for s in steps if "id" in s]
    assert [t["text"] for t in tokens] == [c["token"] for c in content] and len(tokens) == 6
    assert [t["probability"] for t in tokens] == pytest.approx([math.exp(c["logprob"]) for c in content], rel=1e-4)
    for token in tokens[1:]:
        assert token["probability"] == pytest.approx(0.5, abs=0.01)
        assert {t["text"] for t in token["top"][:2]} == {"heads ", "tails "}
        assert len(token["top"]) == 5 and token["rest"] < 0.01
    _, steps, _ = watch(client, "#call", tools=[WEATHER])
    assert steps[0]["markers"]["<tool_call>"] > 0.9 and steps[1]["markers"]["</think>"] in (None, 0.0)


def test_the_grammar_stands_in_the_probabilities(client: httpx.Client) -> None:
    _, steps, _ = watch(client, "#hello", tools=[WEATHER], tool_choice="required", max_tokens=1)
    assert steps[0]["text"] == "<tool_call>" and steps[0]["markers"]["<tool_call>"] == pytest.approx(1)


def test_steps_come_one_by_one_and_a_client_that_leaves_frees_its_slot(client: httpx.Client) -> None:
    with client.stream("POST", "/inspect/stream", json=body("#forever")) as response:
        lines = response.iter_lines()
        events = [json.loads(line.removeprefix("data: ")) for line, _ in zip(lines, range(9), strict=False) if line]
        assert len(events) == 5 and all(e["choices"][0]["step"]["text"] == "la " for e in events[1:])
        assert client.get("/health").json()["running"] == 1
    end = time.monotonic() + 5
    while client.get("/health").json()["running"]:
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.02)


def test_it_is_traced_and_counted_as_a_chat(client: httpx.Client) -> None:
    asked = body("#two-calls", tools=[WEATHER, ADD])
    chat = client.post("/v1/chat/completions", json=asked, headers={"X-Punie-Trace": "1"}).json()["punie_trace"]
    watched = client.post("/inspect/stream", json=asked, headers={"X-Punie-Trace": "1"}).text
    *_, sealed, _ = [line.removeprefix("data: ") for line in watched.split("\n\n") if line.startswith("data: ")]
    trace = json.loads(sealed)["punie_trace"]
    assert [s["name"] for s in trace["spans"]] == [s["name"] for s in chat["spans"]]
    assert trace["prompt"] == chat["prompt"] and trace["output"] == chat["output"]
    counted = 'punie_requests_total{route="/inspect/stream",status="200"} '
    before = _read(client, counted)
    client.post("/inspect/stream", json=asked)
    assert _read(client, counted) == before + 1


def _read(client: httpx.Client, metric: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(metric)]
    return float(line.removeprefix(metric))


def test_what_was_told_of_a_token_is_not_kept_until_the_end() -> None:
    likeliest = ((7, -0.1), (8, -3.0))

    async def watched() -> tuple[WatchedChoice, list[Delta]]:
        reader = WatchedAnswer(StreamParser(formats.get("qwen3_coder")), offered=False)
        generation = Generation(1, Waker(asyncio.get_running_loop()), {})
        for finish in (None, "length"):
            generation.add(Piece("a", 7, finish, -0.1, likeliest))
        choice = WatchedChoice(0, generation, reader, ())
        return choice, [delta for deltas, _ in [step async for step in choice.steps()] for delta in deltas]

    choice, told = asyncio.run(watched())
    assert [d["step"].piece and d["step"].piece.top for d in told] == [likeliest, likeliest, None]
    assert [(p.token, p.text, p.top) for p in choice.pieces] == 2 * [(7, "a", ())]


def test_bad_requests_are_told_as_everywhere(client: httpx.Client) -> None:
    for fields, param in (
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        response = client.post("/inspect/stream", json=body("#hello", **fields))
        assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert client.post("/inspect/stream", content=b"{").status_code == 400
    assert client.post("/inspect/stream", json=body("#hello", model="other")).status_code == 404
    assert client.get("/inspect/stream").status_code == 405 and client.post("/inspect").status_code == 405


# ---- who may ----


def test_the_page_may_ask_its_own_server_and_stand_in_no_frame(client: httpx.Client) -> None:
    response = client.get("/inspect")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert response.text == page()
    assert "connect-src &#x27;self&#x27;" in response.text and "unsafe" not in response.text
    assert "connect-src" not in frame.policy("a", "b") and frame.policy("a", "b", asks=True).endswith("'self'")


def test_pages_of_others_and_other_names_are_refused(client: httpx.Client, server: Any) -> None:
    port = urlsplit(server.url).port
    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "https://evil.example"}):
        for method, path in (("GET", "/inspect"), ("POST", "/inspect/stream")):
            response = client.request(method, path, json=body("#hello"), headers=headers)
            assert response.status_code == 403, (headers, path)


# ---- the option ----


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_may_be_inspected(host: str) -> None:
    config = ServeConfig(Path("m"), host=host, inspect=True, api_key=KEY)
    assert config.http().inspect and not ServeConfig(Path("m"), host=host).http().inspect


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "", "my-mac.local", "localhost.example"])
def test_other_addresses_are_refused_with_a_key_too(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--inspect .* --host .*127\.0\.0\.1"):
        ServeConfig(Path("m"), host=host, inspect=True, api_key=KEY)


def test_insecure_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: m\ninspect: true\n")
    assert make_config(tmp_path / "c.yaml").inspect
    with pytest.raises(ConfigError, match="--inspect and --insecure"):
        make_config(tmp_path / "c.yaml", {"insecure": True})


def test_a_name_of_loopback_that_leads_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(Path("m"), host="localhost", inspect=True, api_key=KEY)
    everywhere = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("0.0.0.0", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: everywhere)
    with claim("localhost", 0) as listener, pytest.raises(ConfigError, match="--inspect"):
        closed(config, listener)


def test_check_tells_where_the_page_is(tiny_base: Path) -> None:
    report = check(ServeConfig(tiny_base, host="::1", port=8123, inspect=True))
    assert report.inspect == "http://[::1]:8123/inspect" and report.inspect in report.summary()
    assert json.loads(report.to_json())["inspect"] == report.inspect
    without = check(ServeConfig(tiny_base))
    assert without.inspect is None and "inspect" not in without.summary()


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "punie_mlx", "serve", "--model", str(tmp_path), "--inspect", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "--inspect" in refused.stderr and "Traceback" not in refused.stderr
