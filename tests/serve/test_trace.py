"""Traces of requests to a real server over a socket: whether they add up, tell the truth, and reach a collector."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

from punie_mlx.errors import ConfigError
from punie_mlx.provider import PunieProvider
from punie_mlx.serve import app, telemetry
from punie_mlx.serve.chat_api import Chat
from punie_mlx.serve.constrain import Constrainer, Mask
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.metrics import Metrics
from punie_mlx.serve.protocol import bounded
from punie_mlx.serve.settings import ChatSettings, HttpSettings
from punie_mlx.serve.trace import UNTRACED
from punie_mlx.toolcalls import formats

ASKED = {"X-Punie-Trace": "1"}
PHASES = ["receive", "parse", "render", "queue", "prefill", "decode", "respond", "trace"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
LONG = "a" * 600  # a prompt of so many tokens
Serving = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    """One answer at a time, so that others wait."""
    engine = Engine.start(scripted_model, limits=Limits(decode_batch=1, prefill_batch=1))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def serving_with(engine: Engine) -> Serving:
    """`with serving_with(telemetry, settings) as url`"""
    loaded, wire = engine.loaded, formats.get("qwen3_coder")
    constrainer = Constrainer(loaded.tokenizer, width=loaded.vocabulary, eos=loaded.eos, wire=wire)

    @contextlib.contextmanager
    def serving_with(exports: Any = None, settings: ChatSettings | None = None) -> Generator[str]:
        metrics, limits = Metrics(engine), HttpSettings()
        chat = Chat(engine, "scripted", "0", wire, settings or ChatSettings(), metrics, constrainer)
        application = app.build(chat, metrics, limits, exports)
        config = uvicorn.Config(application, port=0, log_config=None, lifespan="off", http=bounded(limits))
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
        until(lambda: engine.running == 0)

    return serving_with


@pytest.fixture(scope="module")
def url(serving_with: Serving) -> Iterator[str]:
    with serving_with() as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with client_of(url) as client:
        yield client


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, trust_env=False, headers=ASKED)


def until(what: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def body(key: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": key}], **fields}


def post(client: httpx.Client, key: str, **fields: Any) -> dict[str, Any]:
    return client.post("/chat/completions", json=body(key, **fields)).json()


def events(client: httpx.Client, key: str, **fields: Any) -> list[dict[str, Any]]:
    text = client.post("/chat/completions", json=body(key, stream=True, **fields)).text
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data:")]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


def spans(trace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in trace["spans"]}


def seconds(span: dict[str, Any]) -> float:
    return span["end"] - span["start"]


def adds_up(trace: dict[str, Any]) -> None:
    found = trace["spans"]
    assert found[0]["start"] == 0
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(found))
    assert all(seconds(s) >= 0 for s in found)
    assert sum(map(seconds, found)) == pytest.approx(trace["wall"], rel=0.02)


# ---- what a trace says ----


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "required"}])
def test_the_spans_add_up(client: httpx.Client, streamed: bool, fields: dict[str, Any]) -> None:
    began = time.monotonic()
    if streamed:
        *before, last = events(client, "#call", **fields)
        assert not any("punie_trace" in e for e in before)
        assert last["choices"] == [] and last["id"] == before[0]["id"]
    else:
        last = post(client, "#call", **fields)
    took, trace = time.monotonic() - began, last["punie_trace"]
    assert [s["name"] for s in trace["spans"]] == PHASES
    adds_up(trace)
    assert 0 < trace["wall"] <= took  # the client's clock


def test_a_stream_tells_what_a_whole_answer_tells(client: httpx.Client) -> None:
    whole = post(client, "#spaced-call", tools=[WEATHER], seed=1)["punie_trace"]
    streamed = events(client, "#spaced-call", tools=[WEATHER], seed=1, stream_options={"include_usage": True})
    assert streamed[-2]["usage"]["completion_tokens"] == spans(whole)["decode"]["attributes"]["tokens"]
    last = streamed[-1]["punie_trace"]
    assert whole.keys() == last.keys()
    assert [whole[k] for k in ("prompt", "output")] == [last[k] for k in ("prompt", "output")]
    assert [s.keys() for s in whole["spans"]] == [s.keys() for s in last["spans"]]
    names = [s.get("attributes", {}).keys() for s in whole["spans"]]
    assert names == [s.get("attributes", {}).keys() for s in last["spans"]]


def test_tokens_and_events_are_what_the_model_wrote(client: httpx.Client, engine: Engine) -> None:
    asked = body("#spaced-call", tools=[WEATHER])
    trace = client.post("/chat/completions", json=asked).json()["punie_trace"]
    rendered = client.post("/chat/completions/render", json=asked).json()
    assert [t for t, _ in trace["prompt"]] == rendered["tokens"]
    assert "".join(text for _, text in trace["prompt"]) == rendered["text"]
    written = "".join(text for _, text in trace["output"])
    assert written.startswith("\n \nLet me look.\n\n<tool_call>\n<function=get_weather>") and "Oslo" in written
    assert all(engine.loaded.tokenizer.decode([t]) == text for t, text in trace["output"])
    kinds = [e["kind"] for e in trace["events"]]
    assert kinds == ["text", "marker", "call_started", "arguments", "call", "marker"]
    (call,) = [e for e in trace["events"] if e["kind"] == "call"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Oslo"})


def test_a_grammar_takes_time_and_none_takes_none(client: httpx.Client) -> None:
    held = spans(post(client, "#call", tools=[WEATHER], tool_choice="required")["punie_trace"])
    for phase in ("render", "prefill", "decode"):
        assert 0 < held[phase]["attributes"]["grammar_seconds"] < seconds(held[phase])
    decode = held["decode"]["attributes"]
    assert 0 < decode["step_seconds"] <= seconds(held["decode"]) and decode["read_seconds"] > 0
    free = spans(post(client, "#call")["punie_trace"])
    assert all("grammar_seconds" not in free[phase]["attributes"] for phase in ("prefill", "decode"))


def test_a_prompt_that_is_in_the_cache_is_told(client: httpx.Client) -> None:
    first, second = (spans(post(client, LONG + "#hello")["punie_trace"])["prefill"]["attributes"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"] > 600
    assert first["cached_tokens"] < 100 and second["cached_tokens"] == second["prompt_tokens"] - 1


def test_several_answers_have_spans_and_tokens_of_their_own(client: httpx.Client) -> None:
    trace = post(client, "#coin", n=2, seed=3, temperature=1, max_tokens=20)["punie_trace"]
    adds_up(trace)
    first, second = trace["choices"]
    assert trace["output"] == first["output"] != second["output"]
    # One after the other, since the engine has room for one.
    assert spans(second)["queue"]["end"] > spans(first)["prefill"]["end"]
    assert spans(trace)["decode"]["attributes"]["tokens"] == 40


def test_plain_text_is_traced_too(client: httpx.Client) -> None:
    trace = client.post("/completions", json={"prompt": "#hello"}).json()["punie_trace"]
    assert [s["name"] for s in trace["spans"]] == PHASES
    assert [text for _, text in trace["prompt"]] == ["#hello"] and trace["events"] == []


# ---- time is told where it goes ----


def test_a_slow_sender_is_waited_for_in_receive(url: str) -> None:
    payload = json.dumps(body("#hello")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Punie-Trace: 1\r\nContent-Length: {len(payload)}"
    )
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
        rest = head[40:].encode() + b"\r\nConnection: close\r\n\r\n"
        for part, wait in ((head[:40].encode(), 0.4), (rest, 0.1), (payload, 0)):
            raw.sendall(part)
            time.sleep(wait)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    trace = json.loads(answer.partition(b"\r\n\r\n")[2])["punie_trace"]
    assert seconds(spans(trace)["receive"]) > 0.3  # from the first byte of the head on
    adds_up(trace)


def test_an_answer_that_waits_for_another_is_in_the_queue(client: httpx.Client, url: str, engine: Engine) -> None:
    with ThreadPoolExecutor() as pool, client_of(url) as other:
        with other.stream("POST", "/chat/completions", json=body("#forever", stream=True)) as running:
            lines = running.iter_lines()  # kept: it closes the connection with itself
            next(lines)
            waiting = pool.submit(post, client, "#hello")
            until(lambda: engine.stats().waiting == 1)
            time.sleep(0.2)
        trace = waiting.result()["punie_trace"]
    assert seconds(spans(trace)["queue"]) > 0.19
    adds_up(trace)


def test_requests_at_once_have_their_own_traces(url: str) -> None:
    def one(city: str) -> dict[str, Any]:
        with client_of(url) as client:
            return post(client, f"{city}#hello", tools=[WEATHER])["punie_trace"]

    cities = ["Bern", "Rome", "Oslo", "Kyiv"]
    with ThreadPoolExecutor() as pool:
        traces = list(pool.map(one, cities))
    for city, trace in zip(cities, traces, strict=True):
        adds_up(trace)
        prompt = "".join(text for _, text in trace["prompt"])
        assert [c for c in cities if c in prompt] == [city]
        assert [text for _, text in trace["output"]] == ["Hello", ", world ", "🌍!"]


# ---- requests that come to nothing ----


def test_a_refused_request_tells_how_far_it_came(client: httpx.Client) -> None:
    checked = client.post("/chat/completions", json={"messages": []})
    assert checked.status_code == 400 and checked.json()["error"]["param"] == "messages"
    assert [s["name"] for s in checked.json()["punie_trace"]["spans"]] == ["receive", "parse", "respond"]
    rendered = client.post("/chat/completions", json=body("a" * 5000)).json()  # more than the model's context
    assert [s["name"] for s in rendered["punie_trace"]["spans"]] == ["receive", "parse", "render", "respond"]
    adds_up(rendered["punie_trace"])


def test_an_answer_that_takes_too_long_tells_where(serving_with: Serving) -> None:
    with serving_with(settings=ChatSettings(request_seconds=0.8)) as url, client_of(url) as client:
        trace = post(client, "#forever")["punie_trace"]
    assert [s["name"] for s in trace["spans"]] == [*PHASES[:6], "respond"]
    assert trace["wall"] > 0.8 and len(trace["output"]) > 1
    adds_up(trace)


def test_who_does_not_ask_gets_none(url: str) -> None:
    for headers in ({}, {"X-Punie-Trace": "0"}):
        with httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers) as client:
            assert "punie_trace" not in post(client, "#hello")
            assert not any("punie_trace" in e for e in events(client, "#hello"))
            assert "punie_trace" not in client.post("/chat/completions", json={"messages": []}).json()
    assert (UNTRACED.mask, UNTRACED.shown) == (Mask, False)


# ---- clients ----


def test_the_openai_client_takes_it(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", default_headers=ASKED, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "#call"}]
        tools: Any = [WEATHER]
        whole = client.chat.completions.create(model="scripted", messages=messages, tools=tools)
        assert whole.model_extra and whole.model_extra["punie_trace"]["wall"] > 0
        with client.chat.completions.stream(model="scripted", messages=messages, tools=tools) as stream:
            for _ in stream:
                pass
            (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.anyio
async def test_pydantic_ai_takes_it(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", default_headers=ASKED, max_retries=0) as client:
        agent = Agent(OpenAIChatModel("scripted", provider=PunieProvider(openai_client=client)))
        assert (await agent.run("#hello")).output == "Hello, world 🌍!"
        async with agent.run_stream("#hello") as streamed:
            assert await streamed.get_output() == "Hello, world 🌍!"
            assert streamed.usage.output_tokens == 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---- OpenTelemetry ----

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextlib.contextmanager
def in_memory(**options: Any) -> Generator[tuple[telemetry.Telemetry, Callable[[], list[Any]]]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield (
        telemetry.Telemetry(provider.get_tracer("test"), **options),
        lambda: sorted(exporter.get_finished_spans(), key=lambda s: (s.start_time, -(s.end_time or 0))),
    )
    provider.shutdown()


def test_spans_are_exported_under_their_parent(serving_with: Serving) -> None:
    with in_memory() as (exports, found), serving_with(exports) as url:
        asked = body("#call", tools=[WEATHER], max_tokens=50, seed=7)
        answer = httpx.post(
            url + "/chat/completions", json=asked, headers={"traceparent": PARENT}, trust_env=False, timeout=30
        )
        httpx.get(url + "/models", trust_env=False)
        until(lambda: found())
        whole, *phases = found()
    assert "punie_trace" not in answer.json()
    assert whole.name == "chat scripted" and whole.kind.name == "SERVER" and whole.status.is_ok
    assert f"{whole.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{whole.parent.span_id:016x}" == PARENT.split("-")[2]
    told, usage = dict(whole.attributes), answer.json()["usage"]
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.provider.name"] == "punie-mlx"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "scripted"
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.seed"]) == (50, 7)
    assert told["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/chat/completions", 200)
    assert [p.name for p in phases] == PHASES[:-1]  # nothing was shown
    assert {p.parent.span_id for p in phases} == {whole.context.span_id}
    assert phases[0].start_time == whole.start_time and phases[-1].end_time == whole.end_time
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(phases))
    assert abs(whole.start_time - time.time_ns()) < 60e9
    assert dict(phases[5].attributes)["punie.grammar_seconds"] > 0
    exported = json.dumps([dict(s.attributes) for s in (whole, *phases)])
    assert not any(said in exported for said in ("#call", "Paris", "get_weather"))


def test_what_was_said_is_exported_only_where_it_is_wanted(serving_with: Serving) -> None:
    with in_memory(content=True) as (exports, found), serving_with(exports) as url:
        httpx.post(url + "/chat/completions", json=body("#call", tools=[WEATHER]), trust_env=False, timeout=30)
        until(lambda: found())
        told = dict(found()[0].attributes)
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "#call"}]}
    ]
    (answer,) = json.loads(told["gen_ai.output.messages"])
    assert answer["parts"] == [{"type": "tool_call", "name": "get_weather", "arguments": {"city": "Paris"}}]


def test_failures_are_exported_as_such(serving_with: Serving, engine: Engine) -> None:
    with in_memory() as (exports, found), serving_with(exports) as url:
        httpx.post(url + "/chat/completions", json={"messages": []}, trust_env=False)
        until(lambda: found())
        refused = found()[0]
        with httpx.stream("POST", url + "/chat/completions", json=body("#forever", stream=True), trust_env=False) as r:
            next(r.iter_lines())
        until(lambda: len(found()) > 4)
        left = next(s for s in found() if s.name == "chat scripted")
    assert refused.name == "POST /v1/chat/completions"
    assert (dict(refused.attributes)["error.type"], refused.status.is_ok) == ("400", False)
    assert (dict(left.attributes)["error.type"], left.status.is_ok) == ("incomplete", False)


class Collector(HTTPServer):
    """Takes spans as a collector does, over OTLP/HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[tuple[str, ExportTraceServiceRequest]] = []


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(data)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.mark.parametrize("named", [True, False])
def test_a_collector_gets_them(
    serving_with: Serving, collector: Collector, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "false")
    if not named:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    exports = telemetry.connect(endpoint if named else None, model="scripted", fingerprint="f", content=False)
    assert exports is not None
    with serving_with(exports) as url:
        httpx.post(url + "/chat/completions", json=body("#hello"), trust_env=False, timeout=30)
    exports.close()
    ((path, request),) = collector.received
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    about = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (about["service.name"], about["punie.fingerprint"]) == ("punie-mlx", "f")
    assert {s.name for scope in resource.scope_spans for s in scope.spans} == {"chat scripted", *PHASES[:-1]}


def test_nothing_is_exported_where_nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in telemetry.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert telemetry.connect(None, model="m", fingerprint="f", content=False) is None
    with pytest.raises(ConfigError, match="no address"):
        telemetry.connect("collector", model="m", fingerprint="f", content=False)
    monkeypatch.setattr(telemetry, "PACKAGES", ("opentelemetry.no_such_thing",))
    with pytest.raises(ConfigError, match=r"punie-mlx\[otel\]"):
        telemetry.connect("http://127.0.0.1:4318", model="m", fingerprint="f", content=False)


def test_nothing_of_opentelemetry_is_imported_before_it_is_needed() -> None:
    code = "import sys, punie_mlx.serve.process; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# ---- the start ----


def test_the_ready_line_tells_how_long_the_start_took(scripted_server: Any) -> None:
    start = scripted_server.ready["start"]
    adds_up(start)
    assert [s["name"] for s in start["spans"]] == ["check", "fingerprint", "telemetry", "load", "warm_up", "prepare"]
    assert seconds(spans(start)["load"]) > 0 and seconds(spans(start)["warm_up"]) > 0
