"""What the server counts, for Prometheus: in a registry of its own; the engine's state is read when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from punie_mlx.serve.engine import Engine
    from punie_mlx.serve.generation import Generation

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_EngineState(engine))

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"punie_{name}", told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"punie_{name}", told, registry=registry, buckets=buckets)

        self._requests = counter("requests", "HTTP requests answered", "route", "status")
        self._refused = counter("requests_refused", "Requests that were not served", "kind")
        self._generations = counter("generations", "Generations that ended", "reason")
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("prompt_tokens_cached", "Tokens of prompts that the prompt cache spared")
        self._generated = counter("generated_tokens", "Tokens generated")
        self._hits = counter("prompt_cache_hits", "Generations that found some of their prompt in the cache")
        self._malformed = counter("calls_malformed", "Calls that could not be read, and were returned as text")
        self._rescued = counter("calls_rescued", "Calls read outside the wire format")
        self._constrained = counter("grammar", "Answers by the state of their grammar", "state")
        self._queued = histogram("queue_seconds", "From the request to the start of its prefill", SECONDS)
        self._first = histogram("time_to_first_token_seconds", "From the request to its first token", SECONDS)
        self._rate = histogram("tokens_per_second", "Decoding speed of one generation", TOKENS_PER_SECOND)

    def finished(self, generation: Generation, reason: str) -> None:
        """`generation` has just ended for `reason`."""
        now = time.monotonic()
        self._generations.labels(reason).inc()
        self._prompt.inc(generation.prompt_tokens)
        self._generated.inc(generation.completion_tokens)
        if generation.cached_tokens:
            self._hits.inc()
            self._cached.inc(generation.cached_tokens)
        if generation.started is not None:
            self._queued.observe(max(generation.started - generation.created, 0.0))
        if generation.first is not None:
            self._first.observe(max(generation.first - generation.created, 0.0))
            if generation.completion_tokens > 1 and now > generation.first:
                self._rate.observe((generation.completion_tokens - 1) / (now - generation.first))

    def malformed(self, n: int) -> None:
        self._malformed.inc(n)

    def rescued(self, n: int) -> None:
        self._rescued.inc(n)

    def constrained(self, state: str) -> None:
        """An answer was given with a grammar in `state`: off, lazy or enforced."""
        self._constrained.labels(state).inc()

    def refused(self, kind: str) -> None:
        self._refused.labels(kind).inc()

    def request(self, route: str, status: int) -> None:
        """A request to `route` was answered. `route` is one of ours, and no path that a client made up."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineState(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        gauges = {
            "engine_alive": ("Whether the engine takes requests", float(self._engine.alive)),
            "running": ("Requests that are in prefill or decoding", stats.running),
            "waiting": ("Requests that wait for their turn", stats.waiting),
            "prompt_cache_entries": ("Sequences in the prompt cache", stats.cached_prompts),
            "prompt_cache_bytes": ("Bytes of the prompt cache", stats.cached_bytes),
        }
        counters = {
            "engine_restarts": ("Times that the engine's loop was started again", stats.restarts),
            "model_reloads": ("Times that the model was loaded again", stats.reloads),
        }
        for name, (told, value) in gauges.items():
            yield GaugeMetricFamily(f"punie_{name}", told, value)
        for name, (told, value) in counters.items():
            yield CounterMetricFamily(f"punie_{name}", told, value)

    def describe(self) -> list[Metric]:
        return []  # nothing is asked of the engine before the first scrape
