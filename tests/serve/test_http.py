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
from openai.types import Completion
from openai.types.chat import ChatCompletion

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CUT = "<tool_call>\n\n<function=get_weather>\n<parameter=city>\nLis"
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


def test_a_call_in_another_format_of_the_family_is_read(client: httpx.Client) -> None:
    message, reason = answer(client, "#hermes", tools=[WEATHER], constrain="off")
    assert (calls(message), reason) == ([("get_weather", {"city": "Rome"})], "tool_calls")


def test_text_before_a_call_stays(client: httpx.Client) -> None:
    message, _ = answer(client, "#spaced-call", tools=[WEATHER])
    assert message["content"].strip() == "Let me look."


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("#broken", "Well. <tool_call>\n{no call at all\n</tool_call> So be it."),
        ("#cut", CUT),
        ("#fence", '```json\n{"name": "get_weather", "arguments": {"city": "Kyiv"}}\n```'),
    ],
)
def test_what_is_no_call_comes_back_whole_as_text(client: httpx.Client, key: str, text: str) -> None:
    assert answer(client, key, tools=[WEATHER], constrain="off") == ({"role": "assistant", "content": text}, "stop")


def test_a_call_that_breaks_is_told_in_problems(client: httpx.Client) -> None:
    key = "#cut"
    (choice,) = post(client, key, tools=[WEATHER], constrain="off").json()["choices"]
    (problem,) = choice["punie"]["problems"]
    assert problem["kind"] in ("malformed", "truncated") and problem["detail"]
    assert problem["raw"] in choice["message"]["content"]
    streamed = [e["choices"][0] for e in events(client, key, tools=[WEATHER], constrain="off")]
    assert [p["raw"] for p in streamed[-1]["punie"]["problems"]] == [problem["raw"]]
    assert streamed[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none", "constrain": "off"}])
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
    message, reason = answer(client, "#cut", tools=[WEATHER], constrain="off", max_tokens=2)
    assert message["content"].startswith("<tool_call>") and CUT.startswith(message["content"])
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
    punie = {"grammar": {"state": "lazy", "relaxed": []}, "problems": [], "rescued": []}
    assert last == {"index": 0, "delta": {}, "finish_reason": "tool_calls", "logprobs": None, "punie": punie}
    assert chunks[-1]["usage"]["completion_tokens"] == 13
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
    return health.json()["running"] + health.json()["waiting"]


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
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert until(lambda: running(client) == 1)
    assert until(lambda: running(client) == 0, 0.5 if not stream else 2)


def test_a_queue_that_is_full_is_429(client: httpx.Client) -> None:
    url = client.base_url
    body = json.dumps({"messages": [{"role": "user", "content": "#forever"}], "seed": 1, "temperature": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
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


# ---- log-probabilities, plain text, and what would be sent ----


def root(client: httpx.Client) -> str:
    return str(client.base_url).removesuffix("/v1/")


def test_logprobs_are_those_of_all_tokens(client: httpx.Client) -> None:
    response = post(client, "#hello", logprobs=True, top_logprobs=2).json()
    ChatCompletion.model_validate(response, strict=True)
    (choice,) = response["choices"]
    tokens = choice["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens) == choice["message"]["content"]
    assert all(t["logprob"] <= 0 and t["top_logprobs"][0]["token"] == t["token"] for t in tokens)
    assert all(len(t["top_logprobs"]) == 2 for t in tokens)
    streamed = [e["choices"][0]["logprobs"] for e in events(client, "#hello", logprobs=True, top_logprobs=2)]
    assert [t for found in streamed if found for t in found["content"]] == tokens


def test_logprobs_end_with_the_stop_string(client: httpx.Client) -> None:
    (choice,) = post(client, "#stop", logprobs=True, stop="three").json()["choices"]
    assert choice["message"]["content"] == "one two "
    assert [t["token"] for t in choice["logprobs"]["content"]] == ["one ", "two thr", "ee four"]


def test_plain_text_is_continued(client: httpx.Client) -> None:
    body = client.post("/completions", json={"prompt": "#hello"}).json()
    Completion.model_validate(body, strict=True)
    assert body["choices"] == [{"index": 0, "text": "Hello, world 🌍!", "logprobs": None, "finish_reason": "stop"}]
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")

    tokens = client.post(f"{root(client)}/tokenize", json={"prompt": "#hello"}).json()["tokens"]
    for prompt in (tokens, [tokens]):
        same = client.post("/completions", json={"prompt": prompt}).json()
        assert (same["choices"], same["usage"]["prompt_tokens"]) == (body["choices"], len(tokens))


def test_several_prompts_and_answers_are_in_order(client: httpx.Client) -> None:
    body = client.post("/completions", json={"prompt": ["#hello", "#stop"], "n": 2}).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert [c["text"][:5] for c in body["choices"]] == ["Hello", "Hello", "one t", "one t"]
    alone = [client.post("/completions", json={"prompt": p}).json()["usage"] for p in ("#hello", "#stop")]
    assert body["usage"]["prompt_tokens"] == sum(u["prompt_tokens"] for u in alone)
    assert body["usage"]["completion_tokens"] == 2 * sum(u["completion_tokens"] for u in alone)


def test_plain_text_streams(client: httpx.Client) -> None:
    asked = {
        "prompt": "#stop",
        "stream": True,
        "stop": "four",
        "logprobs": 1,
        "stream_options": {"include_usage": True},
    }
    *lines, done = [line for line in client.post("/completions", json=asked).text.split("\n\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert done == "data: [DONE]" and chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    choices = [c["choices"][0] for c in chunks[:-1]]
    assert "".join(c["text"] for c in choices) == "one two three "
    assert choices[-1]["finish_reason"] == "stop"
    found = [c["logprobs"] for c in choices if c["logprobs"]]
    assert [o for f in found for o in f["text_offset"]] == [0, 4, 11]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": ["x"] * 200}, "prompt"),
        ({"prompt": "x", "n": 100}, "n"),
        ({}, "prompt"),
    ],
)
def test_bad_requests_for_text(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = client.post("/completions", json=fields)
    assert response.status_code == 400 and error(response)["param"].startswith(param)


def test_what_is_rendered_is_what_is_sent(client: httpx.Client) -> None:
    asked = {"messages": [{"role": "user", "content": "#hello"}], "tools": [WEATHER]}
    rendered = client.post("/chat/completions/render", json=asked).json()
    assert rendered["text"].endswith("#hello") and "get_weather" in rendered["text"]
    assert rendered["count"] == len(rendered["tokens"]) == len(rendered["token_strs"])
    assert "".join(rendered["token_strs"]) == rendered["text"]
    usage = client.post("/chat/completions", json=asked).json()["usage"]
    assert usage["prompt_tokens"] == rendered["count"]
    assert rendered["grammar"]["state"] == "lazy" and "start:" in rendered["grammar"]["lark"]
    as_tokens = client.post(f"{root(client)}/tokenize", json=asked).json()
    assert as_tokens["tokens"] == rendered["tokens"] and as_tokens["max_model_len"] == 4096


def test_a_narrowed_choice_shows_all_tools_where_a_grammar_holds_it(client: httpx.Client) -> None:
    choice = {"type": "function", "function": {"name": "add"}}
    asked = {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER, ADD], "tool_choice": choice}
    held = client.post("/chat/completions/render", json=asked).json()
    assert held["grammar"]["state"] == "enforced" and "get_weather" in held["text"]
    free = client.post("/chat/completions/render", json={**asked, "constrain": "off"}).json()
    assert free["grammar"] == {"state": "off", "reason": free["grammar"]["reason"], "relaxed": [], "lark": None}
    assert free["grammar"]["reason"] and "get_weather" not in free["text"] and '"add"' in free["text"]


def test_only_demands_are_held_where_the_request_says_so(client: httpx.Client) -> None:
    def state(**fields: Any) -> str:
        asked = {"messages": [{"role": "user", "content": "x"}], "constrain": "required-only", **fields}
        return client.post("/chat/completions/render", json=asked).json()["grammar"]["state"]

    assert state() == state(tools=[ADD]) == "off"
    assert state(tools=[ADD], tool_choice="required") == "enforced"
    assert state(response_format={"type": "json_object"}) == "enforced"


def test_rescue_reads_a_fence_where_the_request_wants_it(client: httpx.Client) -> None:
    fields = {"tools": [WEATHER], "constrain": "off"}
    (choice,) = post(client, "#fence", **fields, rescue=True).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], choice["finish_reason"]) == ("get_weather", "tool_calls")
    assert choice["punie"]["rescued"] == [call["id"]]
    assert "tool_calls" not in answer(client, "#fence", **fields)[0]


def test_metrics_count_answers(client: httpx.Client) -> None:
    def count(line: str) -> float:
        found = [x for x in client.get(f"{root(client)}/metrics").text.splitlines() if x.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    lines = (
        'punie_generations_total{reason="stop"}',
        "punie_calls_malformed_total",
        'punie_grammar_total{state="off"}',
    )
    before = [count(line) for line in lines]
    answer(client, "#cut", tools=[WEATHER], constrain="off")
    assert [count(line) for line in lines] == [n + 1 for n in before]
