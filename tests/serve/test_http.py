"""The API over a real socket: a server process with a model whose answers are known."""

import concurrent.futures
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
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
def client(scripted_server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=scripted_server.url, timeout=30, trust_env=False) as client:
        yield client


def post(client: httpx.Client, key: str, **fields: Any) -> httpx.Response:
    return client.post("/chat/completions", json={"messages": [{"role": "user", "content": key}], **fields})


def answer(client: httpx.Client, key: str, **fields: Any) -> tuple[dict[str, Any], str]:
    response = post(client, key, **fields)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"], choice["finish_reason"]


def events(client: httpx.Client, key: str, **fields: Any) -> list[dict[str, Any]]:
    response = post(client, key, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


def calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


# ---- answers ----


def test_a_plain_answer(client: httpx.Client, scripted_server: Any) -> None:
    body = post(client, "#hello").json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello, world 🌍!"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["model"] == "scripted"
    assert body["system_fingerprint"] == scripted_server.ready["fingerprint"]
    usage = body["usage"]
    assert usage["completion_tokens"] == 4  # with the end token
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("#call", [("get_weather", {"city": "Paris"})]),
        ("#hermes", [("get_weather", {"city": "Rome"})]),
        ("#spaced-call", [("get_weather", {"city": "Oslo"})]),
        ("#two-calls", [("get_weather", {"city": "Bern"}), ("add", {"a": 1, "b": 2})]),
    ],
)
def test_calls(client: httpx.Client, key: str, expected: list[Any]) -> None:
    message, reason = answer(client, key, tools=[WEATHER, ADD])
    assert calls(message) == expected
    assert reason == "tool_calls"
    assert message["content"] == (None if key != "#spaced-call" else message["content"])
    assert len({c["id"] for c in message["tool_calls"]}) == len(expected)


def test_text_before_a_call_stays(client: httpx.Client) -> None:
    message, _ = answer(client, "#spaced-call", tools=[WEATHER])
    assert message["content"].strip() == "Let me look."


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("#broken", "Well. <tool_call>\n{no call at all\n</tool_call> So be it."),
        ("#cut", "<tool_call>\n\n<function=get_weather>\n<parameter=city>\nLis"),
        ("#fence", '```json\n{"name": "get_weather", "arguments": {"city": "Kyiv"}}\n```'),
    ],
)
def test_what_is_no_call_comes_back_whole_as_text(client: httpx.Client, key: str, text: str) -> None:
    assert answer(client, key, tools=[WEATHER]) == ({"role": "assistant", "content": text}, "stop")
    streamed = [e["choices"][0] for e in events(client, key, tools=[WEATHER])]
    assert "".join(c["delta"].get("content", "") for c in streamed) == text
    assert streamed[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_a_call_that_nobody_can_answer_is_text(client: httpx.Client, fields: dict[str, Any]) -> None:
    message, reason = answer(client, "#call", **fields)
    assert message["content"].startswith("<tool_call>") and message["content"].endswith("</tool_call>")
    assert "tool_calls" not in message and reason == "stop"


def test_tool_choice_none_shows_no_tools(client: httpx.Client) -> None:
    def prompt(**fields: Any) -> int:
        return post(client, "#hello", **fields).json()["usage"]["prompt_tokens"]

    assert prompt(tools=[WEATHER], tool_choice="none") == prompt() < prompt(tools=[WEATHER])


def test_thinking_is_reasoning_content(client: httpx.Client) -> None:
    message, _ = answer(client, "#think")
    assert message == {"role": "assistant", "content": "Good day.", "reasoning_content": "The user greets me."}


def test_a_call_cut_by_length_is_text_and_says_length(client: httpx.Client) -> None:
    message, reason = answer(client, "#cut", tools=[WEATHER], max_tokens=2)
    assert message["content"] == "<tool_call>\n\n<function=get_weather>\n<parameter=city>\nLis"
    assert reason == "length"


def test_stop_strings_across_tokens(client: httpx.Client) -> None:
    assert answer(client, "#stop", stop="three") == ({"role": "assistant", "content": "one two "}, "stop")
    assert answer(client, "#stop", stop=["zzz", "two"])[0]["content"] == "one "


def test_an_answer_may_be_empty(client: httpx.Client) -> None:
    assert answer(client, "#silent") == ({"role": "assistant", "content": ""}, "stop")


def test_without_max_tokens_the_context_is_the_limit(client: httpx.Client) -> None:
    body = post(client, "x" * 3500 + "#forever", stop=["never"]).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 4096


def test_a_later_turn_is_served_from_the_cache(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": "a first turn that is this test's own #hello"}]
    first = client.post("/chat/completions", json={"messages": turns}).json()
    turns += [first["choices"][0]["message"], {"role": "user", "content": "#think"}]
    second = client.post("/chat/completions", json={"messages": turns}).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


# ---- streams ----


def test_a_stream_of_a_call(client: httpx.Client) -> None:
    chunks = events(client, "#two-calls", tools=[WEATHER, ADD], stream_options={"include_usage": True})
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    *choices, last = [c["choices"][0] for c in chunks if c["choices"]]
    assert last == {"index": 0, "delta": {}, "finish_reason": "tool_calls", "logprobs": None}
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert not any(c["delta"].get("content") for c in choices)
    parts = [p for c in choices for p in c["delta"].get("tool_calls", ())]
    assert [(p["index"], p["function"].get("name")) for p in parts if "id" in p] == [(0, "get_weather"), (1, "add")]
    texts = ["".join(p["function"]["arguments"] for p in parts if p["index"] == i) for i in (0, 1)]
    assert [json.loads(t) for t in texts] == [{"city": "Bern"}, {"a": 1, "b": 2}]


def test_a_stream_without_usage_has_none(client: httpx.Client) -> None:
    chunks = events(client, "#hello")
    assert all(c["choices"] and "usage" not in c for c in chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Hello, world 🌍!"


def test_requests_side_by_side_do_not_mix(client: httpx.Client) -> None:
    keys = ["#hello", "#spaced-call", "#think"] * 4
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda key: answer(client, key, tools=[WEATHER]), keys))
    for key, (message, reason) in zip(keys, answers, strict=True):
        alone, same_reason = answer(client, key, tools=[WEATHER])
        for call in [*message.get("tool_calls", []), *alone.get("tool_calls", [])]:
            call["id"] = ""
        assert (message, reason) == (alone, same_reason)


# ---- the model, and who is served ----


def test_one_model_is_served_under_its_directory_name(client: httpx.Client, scripted_server: Any) -> None:
    (model,) = client.get("/models").json()["data"]
    assert model["id"] == "scripted" and model["object"] == "model"
    assert model["fingerprint"] == scripted_server.ready["fingerprint"]
    assert client.get("/models/scripted").json() == model
    assert answer(client, "#hello", model="scripted")[1] == "stop"


def test_another_model_is_404_and_loads_nothing(client: httpx.Client, scripted_model: Path, hermes_model: Path) -> None:
    for name in (str(scripted_model), str(hermes_model), "default_model", "mlx-community/x", ""):
        response = post(client, "#hello", model=name)
        assert response.status_code == 404
        assert error(response)["code"] == "model_not_found"
        assert error(response)["param"] == "model"
    assert client.get(f"/models/{hermes_model.name}").status_code == 404
    assert answer(client, "#hello")[1] == "stop"


# ---- bad requests ----


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": [1]}, "stop.0"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"100000000": 1}}, "logit_bias"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ],
)
def test_a_bad_request_is_400_and_harms_nobody(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = post(client, "#hello", **fields)
    assert response.status_code == 400
    assert error(response)["param"] == param
    assert answer(client, "#hello")[1] == "stop"


def test_too_long_a_prompt_names_both_numbers(client: httpx.Client) -> None:
    found = error(post(client, "x" * 5000))
    assert found["code"] == "context_length_exceeded"
    assert "4096" in found["message"] and "50" in found["message"]


def test_odd_parameters_harm_nobody(client: httpx.Client) -> None:
    for fields in (
        {"top_k": 1_000_000, "temperature": 1},
        {"temperature": 1e-320},
        {"min_p": 1e-320, "temperature": 1},
        {"seed": -(10**25), "temperature": 1},
        {"top_p": 0, "temperature": 1},
    ):
        assert answer(client, "#hello", **fields)[0]["content"] == "Hello, world 🌍!"


def test_bodies_that_are_no_request(client: httpx.Client) -> None:
    for body in (b"", b"{", b"[1]", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"\xff"):
        response = client.post("/chat/completions", content=body)
        assert response.status_code == 400, response.text
        assert error(response)["type"] == "invalid_request_error"


def test_too_large_a_body_is_413(client: httpx.Client) -> None:
    large = b"x" * (16 * 2**20 + 1)
    assert error(client.post("/chat/completions", content=large))["code"] == "body_too_large"

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        for i in range(0, len(large), 2**20):
            yield large[i : i + 2**20]

    with contextlib.suppress(httpx.WriteError):  # the server may close before all is sent
        assert client.post("/chat/completions", content=chunks()).status_code == 413
    assert answer(client, "#hello")[1] == "stop"


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert error(client.get("/nothing"))["type"] == "not_found_error"
    response = client.get("/chat/completions")
    assert response.status_code == 405 and "GET" in error(response)["message"]


# ---- clients that go away ----


def running(client: httpx.Client) -> int:
    health = client.get(f"http://{client.base_url.host}:{client.base_url.port}/health")
    assert health.json()["status"] == "ok"
    return health.json()["running"]


def until(what: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("extra", [{}, {"seed": 1}])
def test_a_client_that_leaves_frees_its_slot(client: httpx.Client, stream: bool, extra: dict[str, Any]) -> None:
    request = {"messages": [{"role": "user", "content": "#forever"}], "stream": stream, **extra}
    body = json.dumps(request).encode()
    url = client.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert until(lambda: running(client) == 1)
    assert until(lambda: running(client) == 0, 0.5 if not stream else 2)


def test_a_queue_that_is_full_is_429(client: httpx.Client) -> None:
    url = client.base_url
    body = json.dumps({"messages": [{"role": "user", "content": "#forever"}], "seed": 1, "temperature": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connections = [socket.create_connection((url.host, url.port)) for _ in range(128)]
    try:
        for connection in connections:
            connection.sendall(head + body)
        assert until(lambda: running(client) >= 127)
        refused = [post(client, "#hello") for _ in range(2)][-1]
    finally:
        for connection in connections:
            connection.close()
    if refused.status_code != 200:  # one may have ended in between
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert error(refused)["type"] == "rate_limit_error"
    assert until(lambda: running(client) == 0)
    assert answer(client, "#hello")[1] == "stop"
