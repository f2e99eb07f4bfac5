"""What goes wrong inside the engine is felt by the request that it belongs to, and by no other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_mlx.errors import ServerError
from punie_mlx.serve.engine import DEATHS, Engine
from punie_mlx.serve.generation import Limits, Sampling

GREEDY = Sampling()


@pytest.fixture
def engine(scripted_model: Path) -> Iterator[Engine]:
    engine = Engine.start(scripted_model, limits=Limits(decode_batch=4, prefill_batch=4))
    yield engine
    engine.stop()
    assert not engine.alive


async def say(engine: Engine, text: str, limit: int = 50, **options: Any) -> str:
    prompt = engine.loaded.tokenizer.encode(text, add_special_tokens=False)
    with engine.generate(prompt, GREEDY, limit, **options) as generation:
        return "".join([piece.text async for pieces in generation for piece in pieces])


def break_the_next_step(engine: Engine, times: int = 1) -> None:
    """The network raises on its next calls, as it does where memory runs out."""
    network = engine.loaded.network
    plain = type(network)
    left = [times]

    class Broken(plain):
        def __call__(self, *args: object, **kwargs: object) -> object:
            if left[0]:
                left[0] -= 1
                raise RuntimeError("out of memory")
            return plain.__call__(self, *args, **kwargs)

    network.__class__ = Broken


def raising(tokens: mx.array, logits: mx.array) -> mx.array:
    raise RuntimeError("a broken processor")


def misshapen(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits[:, :3]


@pytest.mark.parametrize("processor", [raising, misshapen])
def test_a_processor_that_fails_fails_its_own_request_only(engine: Engine, processor: Any) -> None:
    async def scenario() -> list[str | BaseException]:
        good = [say(engine, f"{i} #hello") for i in range(3)]
        return await asyncio.gather(*good, say(engine, "#hello", processor=processor), return_exceptions=True)

    *good, bad = asyncio.run(scenario())
    assert good == ["Hello, world 🌍!"] * 3
    assert isinstance(bad, ServerError)
    assert engine.alive and engine.stats().restarts == 0


def test_a_failed_step_fails_what_had_begun_and_serves_what_waited(engine: Engine) -> None:
    async def scenario() -> tuple[list[str | BaseException], str]:
        begun = [asyncio.ensure_future(say(engine, f"{i} #forever", 4000)) for i in range(4)]  # all slots
        while engine.stats().running < 4 or any(g.first is None for g in engine._open):
            await asyncio.sleep(0.001)
        waits = asyncio.ensure_future(say(engine, "#hello"))
        await asyncio.sleep(0)
        break_the_next_step(engine)
        return await asyncio.gather(*begun, return_exceptions=True), await waits

    failed, served = asyncio.run(scenario())
    assert all(isinstance(f, ServerError) and "out of memory" in str(f) for f in failed)
    assert served == "Hello, world 🌍!"
    assert engine.alive
    stats = engine.stats()
    assert (stats.restarts, stats.reloads, stats.running, stats.waiting) == (1, 0, 0, 0)


def test_what_had_not_begun_is_tried_again(engine: Engine) -> None:
    async def scenario() -> list[str]:
        break_the_next_step(engine)
        return await asyncio.gather(*(say(engine, f"{i} #hello") for i in range(4)))

    assert asyncio.run(scenario()) == ["Hello, world 🌍!"] * 4
    assert engine.stats().restarts == 1


def test_a_culprit_is_tried_alone_and_harms_nobody(engine: Engine) -> None:
    """Its prompt cannot be computed, whoever is beside it."""
    poison = engine.loaded.tokenizer.encode("#coin", add_special_tokens=False)[-1]
    network = engine.loaded.network
    plain = type(network)

    class Allergic(plain):
        def __call__(self, inputs: mx.array, *args: object, **kwargs: object) -> object:
            if (inputs == poison).any().item():
                raise RuntimeError("poisoned")
            return plain.__call__(self, inputs, *args, **kwargs)

    network.__class__ = Allergic

    async def scenario() -> list[str | BaseException]:
        good = [say(engine, f"{i} #hello") for i in range(3)]
        return await asyncio.gather(say(engine, "#coin x"), *good, return_exceptions=True)

    bad, *good = asyncio.run(scenario())
    assert isinstance(bad, ServerError) and "poisoned" in str(bad)
    assert good == ["Hello, world 🌍!"] * 3
    assert engine.stats().restarts == 1 and engine.alive


def test_a_request_that_is_none_at_all_harms_nobody(engine: Engine) -> None:
    async def scenario() -> str:
        engine._generator.requests.put((object(), object(), object()))
        return await say(engine, "#hello")

    assert asyncio.run(scenario()) == "Hello, world 🌍!"
    assert engine.stats().restarts == 1


@pytest.mark.parametrize("broken", ["missing", "not a number"])
def test_a_model_that_cannot_compute_is_loaded_again(engine: Engine, broken: str) -> None:
    tokenizer, head = engine.loaded.tokenizer, engine.loaded.network.lm_head
    assert asyncio.run(say(engine, "#hello")) == "Hello, world 🌍!"
    if broken == "missing":
        del engine.loaded.network.lm_head
    else:
        head.weight = head.weight * float("nan")
        break_the_next_step(engine)
    assert asyncio.run(say(engine, "#hello")) == "Hello, world 🌍!"  # tried again on the new weights
    stats = engine.stats()
    assert (stats.restarts, stats.reloads) == (1, 1)
    assert engine.loaded.tokenizer is tokenizer
    assert engine.loaded.network.lm_head is not head


def test_an_engine_that_dies_on_and_on_says_so(engine: Engine) -> None:
    async def scenario() -> None:
        prompt = engine.loaded.tokenizer.encode("#hello")
        while engine.alive:
            engine._generator.requests.put((object(), object(), object()))
            await asyncio.sleep(0.001)
        assert engine.stats().restarts == DEATHS
        with pytest.raises(ServerError):
            engine.generate(prompt, GREEDY, 5)

    asyncio.run(scenario())
    assert engine.running == 0


def test_a_finished_answer_ends_a_row_of_deaths(engine: Engine) -> None:
    async def scenario() -> None:
        for _ in range(DEATHS + 1):
            engine._generator.requests.put((object(), object(), object()))
            assert await say(engine, "#hello") == "Hello, world 🌍!"

    asyncio.run(scenario())
    assert engine.alive and engine.stats().restarts == DEATHS + 1


def test_an_engine_that_ends_fails_all_that_waits(engine: Engine) -> None:
    async def scenario() -> None:
        for _ in range(DEATHS):
            engine._generator.requests.put((object(), object(), object()))
        with pytest.raises(ServerError, match="died"):
            await say(engine, "#forever", 4000)  # behind them

    asyncio.run(scenario())


def test_a_client_whose_event_loop_is_gone_frees_its_slot(engine: Engine) -> None:
    async def abandoned() -> None:
        engine.generate(engine.loaded.tokenizer.encode("#forever", add_special_tokens=False), GREEDY, 4000)

    asyncio.run(abandoned())  # the loop is closed while it writes

    async def until_free() -> str:
        answer = await say(engine, "#hello")
        while engine._generator.inside:
            await asyncio.sleep(0.001)
        return answer

    assert asyncio.run(until_free()) == "Hello, world 🌍!"
