"""The metrics, read as Prometheus reads them, of a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Sampling
from punie_mlx.serve.metrics import Metrics


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    engine = Engine.start(scripted_model)
    yield engine
    engine.stop()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, *values of its labels) → value."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}


def test_a_generation_is_counted(engine: Engine) -> None:
    metrics = Metrics(engine)
    prompt = engine.loaded.tokenizer.encode("#hello", add_special_tokens=False)

    async def answer() -> None:
        with engine.generate(prompt, Sampling(), 20) as generation:
            assert samples(metrics)[("punie_running",)] + samples(metrics)[("punie_waiting",)] == 1
            async for _ in generation:
                pass
            metrics.finished(generation, "stop")

    asyncio.run(answer())
    found = samples(metrics)
    assert found[("punie_generations_total", "stop")] == 1
    assert found[("punie_prompt_tokens_total",)] == len(prompt)
    assert found[("punie_generated_tokens_total",)] == 4  # three pieces and the end
    for name in ("queue_seconds", "time_to_first_token_seconds", "tokens_per_second"):
        assert found[(f"punie_{name}_count",)] == 1
    assert 0 <= found[("punie_queue_seconds_sum",)] <= found[("punie_time_to_first_token_seconds_sum",)]
    assert found[("punie_engine_alive",)] == 1
    assert found[("punie_running",)] == found[("punie_waiting",)] == 0
    assert found[("punie_engine_restarts_total",)] == found[("punie_model_reloads_total",)] == 0


def test_a_cache_hit_is_counted(engine: Engine) -> None:
    metrics = Metrics(engine)
    prompt = engine.loaded.tokenizer.encode("and so on" * 20 + "#hello", add_special_tokens=False)

    async def answer() -> int:
        with engine.generate(prompt, Sampling(), 20) as generation:
            async for _ in generation:
                pass
            metrics.finished(generation, "stop")
            return generation.cached_tokens

    asyncio.run(answer())
    assert ("punie_prompt_cache_hits_total",) in samples(metrics)
    assert samples(metrics)[("punie_prompt_cache_hits_total",)] == 0
    cached = asyncio.run(answer())
    assert cached > 100
    assert samples(metrics)[("punie_prompt_cache_hits_total",)] == 1
    assert samples(metrics)[("punie_prompt_tokens_cached_total",)] == cached
    assert samples(metrics)[("punie_prompt_cache_entries",)] >= 1
    assert samples(metrics)[("punie_prompt_cache_bytes",)] > 0


def test_a_generation_that_never_began(engine: Engine) -> None:
    metrics = Metrics(engine)

    async def leave() -> None:
        with engine.generate([1, 2, 3], Sampling(), 20) as generation:
            metrics.finished(generation, "cancelled")

    asyncio.run(leave())
    found = samples(metrics)
    assert found[("punie_generations_total", "cancelled")] == 1
    assert found[("punie_time_to_first_token_seconds_count",)] == 0


def test_what_is_told_is_counted_by_its_label(engine: Engine) -> None:
    metrics, other = Metrics(engine), Metrics(engine)  # registries of their own: nothing is registered twice
    metrics.malformed(2)
    metrics.rescued(1)
    metrics.constrained("lazy")
    metrics.refused("queue_full")
    metrics.request("/v1/models", 200)
    metrics.request("/v1/models", 200)
    found = samples(metrics)
    assert found[("punie_calls_malformed_total",)] == 2
    assert found[("punie_calls_rescued_total",)] == 1
    assert found[("punie_grammar_total", "lazy")] == 1
    assert found[("punie_requests_refused_total", "queue_full")] == 1
    assert found[("punie_requests_total", "/v1/models", "200")] == 2
    assert samples(other)[("punie_calls_malformed_total",)] == 0
