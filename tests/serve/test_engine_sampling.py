"""How tokens are drawn: alone as in a batch, and as the parameters say."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Limits, Piece, Sampling
from punie_mlx.serve.sampling import Bias, Penalties, Random, Repetition, Samplers, greedy, nucleus

LOGPROBS = mx.log(mx.array([[0.4, 0.3, 0.2, 0.07, 0.03]]))


# ---- samplers ----


def drawn(sampling: Sampling, logprobs: mx.array = LOGPROBS, times: int = 400) -> set[int]:
    rows = mx.broadcast_to(logprobs, (times, logprobs.shape[-1]))
    tokens: Any = Random(sampling)(rows).tolist()
    return set(tokens)


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(1.0, seed=1), {0, 1, 2, 3, 4}),
        (Sampling(1.0, seed=1, top_k=2), {0, 1}),
        (Sampling(1.0, seed=1, top_k=1), {0}),
        (Sampling(1.0, seed=1, top_p=0.65), {0, 1}),
        (Sampling(1.0, seed=1, top_p=0.75), {0, 1, 2}),
        (Sampling(1.0, seed=1, top_p=0.01), {0}),
        (Sampling(1.0, seed=1, min_p=0.45), {0, 1, 2}),
        (Sampling(1.0, seed=1, min_p=1.0), {0}),
        (Sampling(1.0, seed=1, top_k=3, top_p=0.7), {0, 1}),  # of the three: .44, .33, .22
        (Sampling(0.01, seed=1), {0}),
        (Sampling(2.0, seed=1, top_p=0.65), {0, 1, 2}),  # the temperature comes first
    ],
)
def test_what_can_be_drawn(sampling: Sampling, possible: set[int]) -> None:
    assert drawn(sampling) == possible


def test_frequencies_are_those_of_the_temperature() -> None:
    rows = mx.broadcast_to(LOGPROBS, (20000, 5))
    tokens = Random(Sampling(0.5, seed=7))(rows)
    expected = mx.softmax(LOGPROBS[0] / 0.5)
    for token in range(5):
        assert abs((tokens == token).mean().item() - expected[token].item()) < 0.015


def test_masked_tokens_are_never_drawn() -> None:
    masked = mx.where(mx.array([[True, False, True, False, False]]), LOGPROBS, -mx.inf)
    for sampling in (Sampling(1.0, seed=2), Sampling(1.0, seed=2, top_p=0.99), Sampling(1.0, seed=2, min_p=0.01)):
        assert drawn(sampling, masked) == {0, 2}
    assert drawn(Sampling(1.0, seed=2, top_k=4), masked) == {0, 2}


def test_the_nucleus_always_has_its_best() -> None:
    assert mx.isfinite(nucleus(LOGPROBS, 1e-9)).tolist() == [[True, False, False, False, False]]


def test_equal_settings_share_a_sampler_and_seeds_do_not() -> None:
    samplers = Samplers()
    assert samplers.get(Sampling()) is samplers.get(Sampling(seed=3)) is greedy
    assert samplers.get(Sampling(1.0)) is samplers.get(Sampling(1.0, presence_penalty=1.0))
    assert samplers.get(Sampling(1.0)) is not samplers.get(Sampling(0.9))
    assert samplers.get(Sampling(1.0, seed=3)) is not samplers.get(Sampling(1.0, seed=3))


# ---- processors ----


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    penalties = Penalties(0.5, 0.25, 5)
    logits = mx.zeros((1, 5))
    assert penalties(mx.array([0, 1, 1]), logits).tolist() == [[0, 0, 0, 0, 0]]  # all of it is prompt
    assert penalties(mx.array([0, 1, 1, 3, 3]), logits).tolist() == [[0, 0, 0, -1.0, 0]]
    assert penalties(mx.array([0, 1, 1, 3, 3, 0]), logits).tolist() == [[-0.75, 0, 0, -1.0, 0]]


def test_repetition_counts_the_prompt_too_wherever_it_is_seen() -> None:
    repetition = Repetition(2.0, [0, 1], 5)
    logits = mx.array([[4.0, -4.0, 4.0, -4.0, 4.0]])
    assert repetition(mx.array([1]), logits).tolist() == [[2.0, -8.0, 4.0, -4.0, 4.0]]  # 0 came from the cache
    assert repetition(mx.array([1, 3]), logits).tolist() == [[2.0, -8.0, 4.0, -8.0, 4.0]]


def test_bias_is_added() -> None:
    assert Bias([(1, 2.5), (4, -100.0)], 5)(mx.array([0]), mx.zeros((1, 5))).tolist() == [[0, 2.5, 0, 0, -100.0]]


# ---- on the engine ----


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    engine = Engine.start(scripted_model, limits=Limits(requests=64))
    yield engine
    engine.stop()


async def pieces(engine: Engine, text: str, sampling: Sampling, limit: int = 20, top: int = -1) -> list[Piece]:
    prompt = engine.loaded.tokenizer.encode(text, add_special_tokens=False)
    with engine.generate(prompt, sampling, limit, top_logprobs=top) as generation:
        return [piece async for pieces in generation for piece in pieces]


async def say(engine: Engine, text: str, sampling: Sampling, limit: int = 20) -> str:
    return "".join(p.text for p in await pieces(engine, text, sampling, limit))


def test_a_seed_repeats_the_answer_alone_and_in_any_batch(engine: Engine) -> None:
    async def alone(seed: int) -> str:
        return await say(engine, "#coin", Sampling(1.0, seed=seed))

    async def crowded() -> list[str]:
        others = [say(engine, "#coin", Sampling(1.0)) for _ in range(5)]
        others += [say(engine, "#forever", Sampling(0.5, top_p=0.5)), say(engine, "#forever", Sampling())]
        seeded = [alone(s) for s in range(8)]
        return (await asyncio.gather(*others[:3], *seeded, *others[3:]))[3:11]

    answers = [asyncio.run(alone(s)) for s in range(8)]
    assert len(set(answers)) == 8
    assert asyncio.run(crowded()) == answers


def test_seeded_requests_run_beside_others(engine: Engine) -> None:
    async def scenario() -> int:
        prompt = engine.loaded.tokenizer.encode("#coin", add_special_tokens=False)
        with (
            engine.generate(prompt, Sampling(1.0, seed=1), 4000) as one,
            engine.generate(prompt, Sampling(1.0, seed=2), 4000) as two,
        ):
            async for _ in one:
                break
            async for _ in two:
                break
            return len(engine._generator.inside)

    assert asyncio.run(scenario()) == 2


def test_without_a_seed_answers_differ(engine: Engine) -> None:
    async def several() -> list[str]:
        return await asyncio.gather(*(say(engine, "#coin", Sampling(1.0)) for _ in range(4)))

    assert len(set(asyncio.run(several()))) == 4


def test_parameters_reach_the_logits(engine: Engine) -> None:
    vocabulary = {p: engine.loaded.tokenizer.encode(p, add_special_tokens=False)[0] for p in ("heads ", "tails ")}
    heads, tails = vocabulary["heads "], vocabulary["tails "]
    only_tails = Sampling(1.0, logit_bias=((heads, -100.0), (tails, 100.0)))
    assert asyncio.run(say(engine, "#coin", only_tails, 10)) == "tails " * 10
    assert asyncio.run(say(engine, "#coin", Sampling(1.0, top_k=1, logit_bias=((heads, 1.0),)), 5)) == "heads " * 5
    in_turn = asyncio.run(say(engine, "#coin", Sampling(frequency_penalty=1e-3), 10))
    assert in_turn in ("heads tails " * 5, "tails heads " * 5)
    stops_repeating = asyncio.run(say(engine, "#forever", Sampling(presence_penalty=100.0), 10))
    assert stops_repeating.count("la ") == 1


def test_logprobs_are_given_where_they_are_asked_for(engine: Engine) -> None:
    vocabulary = {p: engine.loaded.tokenizer.encode(p, add_special_tokens=False)[0] for p in ("heads ", "tails ")}

    async def together() -> list[list[Piece]]:
        sampling = Sampling(1.0, logit_bias=((vocabulary["heads "], 0.5),))
        return await asyncio.gather(*(pieces(engine, "#coin", sampling, 6, top) for top in (-1, 0, 2)))

    unwanted, plain, top = asyncio.run(together())
    assert {(p.logprob, p.top) for p in unwanted} == {(0.0, ())}
    assert plain[0].logprob == pytest.approx(0)  # it cannot but begin so
    assert all(p.logprob < 0 and p.top == () for p in plain[1:])
    for piece in top:
        assert len(piece.top) == 2 and piece.top[0][1] > piece.top[1][1]
        assert piece.top[0][0] == vocabulary["heads "]
        assert dict(piece.top)[piece.token] == pytest.approx(piece.logprob)  # ty: ignore[invalid-argument-type]
