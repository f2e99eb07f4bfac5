"""How answers reach their clients: patience, keep-alive, several at once, and what a failure leaves; real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn

from punie_mlx.chat.render import safe_prompt
from punie_mlx.serve import app, chat_api
from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.delivery import merged
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.metrics import Metrics
from punie_mlx.serve.settings import ChatSettings, HttpSettings
from punie_mlx.toolcalls import formats

Serving = Callable[[ChatSettings], contextlib.AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    """One answer at a time, so that others wait."""
    engine = Engine.start(scripted_model, limits=Limits(decode_batch=1, prefill_batch=1))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def serving_with(engine: Engine) -> Serving:
    @contextlib.contextmanager
    def serving_with(settings: ChatSettings) -> Generator[httpx.Client]:
        metrics = Metrics(engine)
        chat = Chat(engine, "scripted", "0", formats.get("qwen3_coder"), settings, metrics)
        config = uvicorn.Config(app.build(chat, metrics, HttpSettings()), port=0, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
        until(lambda: engine.running == 0)

    return serving_with


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def body(key: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": key}], **fields}


def lines(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line)


def metric(client: httpx.Client, line: str) -> bool:
    return line in client.get("/metrics").text.splitlines()


# ---- patience ----


def test_an_answer_that_takes_too_long_is_an_error_and_gives_its_slot_back(
    serving_with: Serving, engine: Engine
) -> None:
    with serving_with(ChatSettings(request_seconds=0.1)) as client:
        response = client.post("/v1/chat/completions", json=body("#forever"))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "request_timeout"
        until(lambda: engine.running == 0)

        with client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True)) as response:
            *events, error, done = [line.removeprefix("data: ") for line in lines(response)]
        assert done == "[DONE]" and json.loads(error)["error"]["code"] == "request_timeout"
        assert any(json.loads(e)["choices"][0]["delta"].get("content") for e in events)
        until(lambda: engine.running == 0)
        assert metric(client, 'punie_generations_total{reason="timeout"} 2.0')
        assert client.post("/v1/chat/completions", json=body("#hello")).status_code == 200


def test_a_stream_that_waits_says_so_and_then_answers(serving_with: Serving, engine: Engine) -> None:
    with serving_with(ChatSettings(keepalive_seconds=0.02)) as client:
        with (
            client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True)),
            client.stream("POST", "/v1/chat/completions", json=body("#hello", stream=True)) as waiting,
        ):
            until(lambda: engine.stats().running == 1)
            told = lines(waiting)
            assert json.loads(next(told).removeprefix("data: "))["choices"][0]["delta"] == {"role": "assistant"}
            assert next(told).startswith(": ")
        with client.stream("POST", "/v1/chat/completions", json=body("#hello", stream=True)) as response:
            events = [line for line in lines(response) if not line.startswith(":")]
        assert events[-1] == "data: [DONE]" and len(events) > 2


def test_the_comment_says_how_far_it_is(serving_with: Serving, engine: Engine) -> None:
    with serving_with(ChatSettings(keepalive_seconds=0.02)) as client, contextlib.ExitStack() as open_:
        streams = [
            open_.enter_context(client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True)))
            for _ in range(3)
        ]
        until(lambda: engine.stats().waiting == 2)
        waiting = lines(streams[-1])
        next(waiting)
        assert next(waiting) == ": queued"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_is_never_served(serving_with: Serving, engine: Engine, stream: bool) -> None:
    with serving_with(ChatSettings()) as client:
        with client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True)):
            until(lambda: engine.stats().running == 1)
            request = json.dumps(body("#hello", stream=stream)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n"
            with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
                connection.sendall(head.encode() + request)
                until(lambda: engine.stats().waiting == 1)
            until(lambda: engine.stats().waiting == 0)
            assert engine.stats().running == 1
        until(lambda: metric(client, 'punie_generations_total{reason="cancelled"} 2.0'))


def test_nobody_waits_while_a_large_prompt_is_encoded(serving_with: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    held, entered = threading.Event(), threading.Event()
    large = "x" * 100_000

    def slow(tokenizer: Any, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        if messages[0]["content"] == large:
            entered.set()
            assert held.wait(20)
        return safe_prompt(tokenizer, messages, *args, **kwargs)

    monkeypatch.setattr(chat_api, "safe_prompt", slow)
    with serving_with(ChatSettings()) as client:
        refused: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: refused.append(client.post("/v1/chat/completions", json=body(large))))
        asking.start()
        assert entered.wait(20)
        assert client.post("/v1/chat/completions", json=body("#hello")).status_code == 200
        held.set()
        asking.join()
        error = refused[0].json()["error"]
        assert (refused[0].status_code, error["code"]) == (400, "context_length_exceeded")


# ---- several at once ----


def test_several_answers_to_one_request(serving_with: Serving, engine: Engine) -> None:
    coins = body("#coin", n=4, temperature=1, seed=3, max_tokens=6)
    with serving_with(ChatSettings(choices=4)) as client:
        whole = client.post("/v1/chat/completions", json=coins).json()
        assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
        texts = [c["message"]["content"] for c in whole["choices"]]
        assert len(set(texts)) > 1
        assert whole["usage"]["completion_tokens"] == 4 * 6
        alone = client.post("/v1/chat/completions", json=body("#coin", temperature=1, seed=5, max_tokens=6)).json()
        assert alone["choices"][0]["message"]["content"] == texts[2]  # choice i has the seed of the request, plus i

        streamed = dict.fromkeys(range(4), "")
        ends = []
        with client.stream("POST", "/v1/chat/completions", json={**coins, "stream": True}) as response:
            for line in lines(response):
                if line != "data: [DONE]":
                    (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                    streamed[choice["index"]] += choice["delta"].get("content", "")
                    ends += [choice["index"]] if choice["finish_reason"] == "length" else []
        assert [text.rstrip() for text in streamed.values()] == [text.rstrip() for text in texts]
        assert sorted(ends) == [0, 1, 2, 3]

        refused = client.post("/v1/chat/completions", json=body("#coin", n=5))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"


def test_n_answers_that_do_not_fit_the_queue_leave_nothing_behind(serving_with: Serving, engine: Engine) -> None:
    full = replace(ChatSettings(), choices=128)
    with serving_with(full) as client, contextlib.ExitStack() as open_:
        stream = client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True))
        open_.enter_context(stream)
        until(lambda: engine.running == 1)
        refused = client.post("/v1/chat/completions", json=body("#forever", n=128, stream=True))
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert engine.running <= 1


# ---- failures ----


def test_an_engine_that_fails_ends_streams_and_answers_with_an_error(serving_with: Serving, engine: Engine) -> None:
    with serving_with(ChatSettings()) as client:
        with client.stream("POST", "/v1/chat/completions", json=body("#forever", stream=True)) as response:
            found = lines(response)
            next(found), next(found)
            engine.cut_off()
            *_, error, done = found
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"

        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/chat/completions", json=body("#forever")))
        )
        asking.start()
        until(lambda: engine.running == 1)
        engine.cut_off()
        asking.join()
        assert answers[0].status_code == 500 and answers[0].json()["error"]["code"] == "engine_failed"
        assert client.post("/v1/chat/completions", json=body("#hello")).status_code == 200


# ---- deltas ----


def test_neighbours_that_continue_each_other_are_one() -> None:
    def call(index: int, arguments: str, **first: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **first, "function": {"arguments": arguments}}]}

    assert merged([{"content": "a"}, {"content": "b"}, {"reasoning_content": "c"}, {"content": "d"}]) == [
        {"content": "ab"}, {"reasoning_content": "c"}, {"content": "d"},
    ]  # fmt: skip
    assert merged([call(0, "{", id="x"), call(0, "}"), call(1, "", id="y"), call(1, "{"), call(1, "}")]) == [
        call(0, "{}", id="x"), call(1, "{}", id="y"),
    ]  # fmt: skip
