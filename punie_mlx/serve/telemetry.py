"""Traces of requests as OpenTelemetry's spans, where its SDK is installed and somebody collects them.

    pip install 'punie-mlx[otel]'
    punie-mlx serve --model DIR --otel-endpoint http://127.0.0.1:4318      # or OTEL_EXPORTER_OTLP_ENDPOINT

Each request is one span, the child of the one that its `traceparent` names, and its phases are the children of that.
Names are those of the semantic conventions for generative AI; ours begin with `punie.`. What was said is exported with
--log-content only. Nothing of OpenTelemetry is imported before `connect` is asked to.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from punie_mlx.errors import ConfigError
from punie_mlx.serve.trace import Recorded, TracedAnswer
from punie_mlx.toolcalls.calls import CallFinished, Reasoning, Text, dumps

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PATH = "/v1/traces"
PROVIDER = "punie-mlx"
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
LAST_SECONDS = 3.0  # for a collector to take what is left when the server stops
# The request's settings, under the names of the conventions; those that are not set are not told.
ASKED = {
    "max_tokens": "limit", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty",
}  # fmt: skip


class Telemetry:
    """Exports traces with `tracer`. `content`: what was said, too. `close` ends it."""

    def __init__(self, tracer: Any, *, content: bool = False, close: Callable[[], object] = lambda: None) -> None:
        from opentelemetry.propagate import extract

        self._tracer = tracer
        self._extract = extract
        self._content = content
        self._close = close

    def export(self, trace: Recorded, scope: Scope, route: str, status: int) -> None:
        """Hand over a trace that has ended, of a request that was answered with `status` (0: not at all)."""
        from opentelemetry import trace as otel

        parent = self._extract(dict(Headers(scope=scope)))
        name = f"{trace.operation} {trace.model}" if trace.operation else f"{scope['method']} {route}"
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            **({"http.response.status_code": status} if status else {}),
            **_attributes(trace),
            **(_content(trace) if self._content else {}),
        }

        def ns(at: float) -> int:
            return trace.epoch_ns + round((at - trace.began) * 1e9)

        whole = self._tracer.start_span(
            name, context=parent, kind=otel.SpanKind.SERVER, attributes=attributes, start_time=ns(trace.began)
        )
        if error := _error(trace, status):
            whole.set_attribute("error.type", error)
            whole.set_status(otel.StatusCode.ERROR)
        inside = otel.set_span_in_context(whole, parent)
        for span in trace.spans:
            told = {f"punie.{key}": value for key, value in span.attributes.items()}
            child = self._tracer.start_span(span.name, context=inside, attributes=told, start_time=ns(span.start))
            child.end(ns(span.start if span.end is None else span.end))
        whole.end(ns(trace.began + trace.seconds))

    def close(self) -> None:
        """Export what is left, but do not wait long for a collector that is gone."""
        closing = threading.Thread(target=self._close, name="telemetry", daemon=True)
        closing.start()
        closing.join(LAST_SECONDS)


def connect(endpoint: str | None, *, model: str, fingerprint: str, content: bool) -> Telemetry | None:
    """Exports to `endpoint`, or to where the environment says; None where neither does. Raises `ConfigError`."""
    if endpoint is None and not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    if missing := [name for name in PACKAGES if not _installed(name)]:
        if endpoint is not None:
            raise ConfigError(f"--otel-endpoint needs {missing[0]}: pip install 'punie-mlx[otel]'")
        log.warning("no spans are exported, %s is not installed: pip install 'punie-mlx[otel]'", missing[0])
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") else {"service.name": PROVIDER}
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else named
    resource = Resource.create({**named, "punie.model": model, "punie.fingerprint": fingerprint})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=None if endpoint is None else _traces(endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Telemetry(provider.get_tracer("punie_mlx.serve"), content=content, close=provider.shutdown)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _traces(endpoint: str) -> str:
    """Where spans go at a collector's address, which may name the path itself."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--otel-endpoint {endpoint} is no address: give something like http://127.0.0.1:4318")
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + PATH


def _attributes(trace: Recorded) -> dict[str, Any]:
    """What the conventions have names for."""
    if trace.request is None:
        return {}
    asked = {key: getattr(trace.request, name, None) for key, name in ASKED.items()}
    found: dict[str, Any] = {
        "gen_ai.operation.name": trace.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": trace.request.model or trace.model,
        "gen_ai.response.model": trace.model,
        **{f"gen_ai.request.{key}": value for key, value in asked.items() if value is not None},
    }
    if trace.request.n > 1:
        found["gen_ai.request.choice.count"] = trace.request.n
    if trace.choices:
        generations = [c.generation for c in trace.choices]
        found |= {
            "gen_ai.response.finish_reasons": [c.finish_reason or "error" for c in trace.choices],
            "gen_ai.usage.input_tokens": generations[0].prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": generations[0].cached_tokens,
            "gen_ai.usage.output_tokens": sum(g.completion_tokens for g in generations),
        }
    return found


def _error(trace: Recorded, status: int) -> str:
    """What kind of failure it was, if it was one: the status, or that the answer ended before its time."""
    if not status or status >= 400:
        return str(status) if status else "cancelled"
    return "incomplete" if any(c.finish_reason is None for c in trace.choices) else ""


# ---- what was said ----


def _content(trace: Recorded) -> dict[str, str]:
    messages = getattr(trace.request, "messages", None)
    if messages is None:
        return {}
    said = [m.model_dump(mode="json", exclude_none=True) for m in messages]
    answers = [
        {"role": "assistant", "parts": _answered(c.reader), "finish_reason": c.finish_reason or "error"}
        for c in trace.choices
    ]
    return {
        "gen_ai.input.messages": dumps([{"role": m["role"], "parts": list(_parts(m))} for m in said]),
        "gen_ai.output.messages": dumps(answers),
    }


def _parts(message: Mapping[str, Any]) -> Any:
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(p.get("text", "") for p in content or [])
    if message["role"] == "tool":
        yield {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": text}
    elif text:
        yield {"type": "text", "content": text}
    for call in message.get("tool_calls") or []:
        function = call["function"]
        yield {"type": "tool_call", "id": call.get("id"), **{k: function.get(k) for k in ("name", "arguments")}}


def _answered(reader: Any) -> list[dict[str, Any]]:
    events = reader.events if isinstance(reader, TracedAnswer) else []
    thought = "".join(e.text for e in events if isinstance(e, Reasoning))
    text = "".join(e.text for e in events if isinstance(e, Text))
    calls = [e.call for e in events if isinstance(e, CallFinished)]
    return [
        *([{"type": "reasoning", "content": thought}] if thought else []),
        *([{"type": "text", "content": text}] if text else []),
        *({"type": "tool_call", "name": c.name, "arguments": c.arguments} for c in calls),
    ]
