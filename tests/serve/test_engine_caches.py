"""KV caches: an agent's turn prefills only what is new; bounds, quantized caches, draft models."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_mlx.errors import ConfigError, ModelError
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Generation, Limits, Sampling

TASK = "<|im_start|>user\nFind the file that has the class, and read it.<|im_end|>\n<|im_start|>assistant\n"
GREEDY = Sampling()


def start(model: Path, limits: Limits = Limits(), **options: Any) -> Engine:  # noqa: B008
    return Engine.start(model, limits=limits, **options)


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[Engine]:
    engine = start(tiny_base)
    yield engine
    engine.stop()


async def answer(
    engine: Engine, prompt: list[int], limit: int = 12, sampling: Sampling = GREEDY
) -> tuple[list[int], Generation]:
    with engine.generate(prompt, sampling, limit) as generation:
        tokens = [p.token async for pieces in generation for p in pieces if p.token is not None]
        return tokens, generation


def encode(engine: Engine, text: str) -> list[int]:
    return engine.loaded.tokenizer.encode(text, add_special_tokens=False)


async def agent(engine: Engine, task: str, turns: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Answers, and (prefilled, new) tokens of each turn."""
    prompt, known = encode(engine, task), 0
    answers, work = [], []
    for turn in range(turns):
        tokens, generation = await answer(engine, prompt)
        answers.append(tokens)
        work.append((len(prompt) - generation.cached_tokens, len(prompt) - known))
        known = len(prompt) + len(tokens)
        result = f"<|im_end|>\n<|im_start|>user\nresult {turn} of the tool<|im_end|>\n<|im_start|>assistant\n"
        prompt = prompt + tokens + encode(engine, result)
    return answers, work


def test_a_turn_prefills_only_what_is_new(engine: Engine) -> None:
    _, work = asyncio.run(agent(engine, TASK, 12))
    for prefilled, new in work[1:]:
        assert prefilled <= new + 1  # the last token of an answer cut by length may not have been run


def test_agents_side_by_side_keep_their_caches(engine: Engine) -> None:
    async def several() -> list[Any]:
        return await asyncio.gather(*(agent(engine, f"{i} is my name. {TASK}", 5) for i in range(8)))

    for _, work in asyncio.run(several()):
        assert all(prefilled <= new + 1 for prefilled, new in work[1:])


def test_the_cache_changes_no_answer(engine: Engine, tiny_base: Path) -> None:
    cold = start(tiny_base, Limits(prompt_cache_bytes=0))
    try:
        without, work = asyncio.run(agent(cold, "Once more. " + TASK, 4))
        assert cold.stats().cached_prompts == cold.stats().cached_bytes == 0
    finally:
        cold.stop()
    assert all(prefilled > new for prefilled, new in work[1:])
    assert asyncio.run(agent(engine, "Once more. " + TASK, 4))[0] == without


def test_a_stopped_prompt_leaves_its_prefill_behind(engine: Engine) -> None:
    async def scenario() -> int:
        prompt = encode(engine, "A prompt whose client goes away. " + TASK)
        with engine.generate(prompt, GREEDY, 50) as generation:
            async for _ in generation:
                break
        return len(prompt) - (await answer(engine, prompt))[1].cached_tokens

    assert asyncio.run(scenario()) == 1


def test_the_caches_stay_within_their_bytes(engine: Engine, tiny_base: Path) -> None:
    one = engine.stats().cached_bytes // engine.stats().cached_prompts
    small = start(tiny_base, Limits(prompt_cache_bytes=3 * one))
    try:
        for i in range(5):
            asyncio.run(answer(small, encode(small, f"{i} {TASK}")))
            assert small.stats().cached_bytes <= 3 * one
        assert small.stats().cached_prompts >= 1
    finally:
        small.stop()


# ---- served one at a time ----


def test_a_quantized_cache_serves_and_is_found_again(tiny_base: Path) -> None:
    engine = start(tiny_base, Limits(kv_bits=8))
    try:
        _, work = asyncio.run(agent(engine, TASK, 4))
        assert all(prefilled <= new + 1 for prefilled, new in work[1:])

        async def together() -> list[Any]:
            return await asyncio.gather(*(answer(engine, encode(engine, f"{i} {TASK}")) for i in range(3)))

        assert all(len(tokens) > 0 for tokens, _ in asyncio.run(together()))
        assert engine.constrainable
    finally:
        engine.stop()


def test_bits_that_the_cache_cannot_have_are_refused(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="7 bits"):
        start(tiny_base, Limits(kv_bits=7))


def test_a_draft_model_changes_no_answer(engine: Engine, tiny_base: Path, tmp_path: Path) -> None:
    """Another model of the same vocabulary: the tiny one without its last layers' say."""
    draft = Path(shutil.copytree(tiny_base, tmp_path / "draft"))
    arrays: Any = mx.load(str(draft / "model.safetensors"))
    noisy = {k: v + 0.02 * mx.random.normal(v.shape).astype(v.dtype) for k, v in arrays.items()}
    mx.save_safetensors(str(draft / "model.safetensors"), noisy, metadata={"format": "mlx"})
    expected = asyncio.run(agent(engine, "With a draft. " + TASK, 4))[0]
    drafting = start(tiny_base, draft=draft)
    try:
        answers, work = asyncio.run(agent(drafting, "With a draft. " + TASK, 4))
        assert answers == expected
        assert all(prefilled <= new + 2 for prefilled, new in work[1:])
        assert not drafting.constrainable
        with pytest.raises(ValueError, match="draft"):
            asyncio.run(_masked(drafting))
    finally:
        drafting.stop()


def test_prompt_lookup_changes_no_answer(engine: Engine, tiny_base: Path) -> None:
    expected = asyncio.run(agent(engine, "Looked up. " + TASK, 4))[0]
    guessing = start(tiny_base, Limits(lookup=True))
    try:
        answers, work = asyncio.run(agent(guessing, "Looked up. " + TASK, 4))
        assert answers == expected
        assert all(prefilled <= new + 2 for prefilled, new in work[1:])
        assert guessing.constrainable and guessing.guesses and not engine.guesses

        async def held(engine: Engine) -> tuple[list[int], Generation]:
            def mask(tokens: mx.array, logits: mx.array) -> mx.array:
                tried = mx.arange(logits.shape[-1])
                return mx.where((tried >= 5) & (tried < 25), logits, -mx.inf)

            with engine.generate(encode(engine, TASK), GREEDY, 30, processor=mask) as generation:
                return [p.token async for pieces in generation for p in pieces if p.token is not None], generation

        (plain, alone), (masked, generation) = asyncio.run(held(engine)), asyncio.run(held(guessing))
        assert masked == plain and set(masked) <= set(range(5, 25))
        assert alone.guesses is None
        assert generation.guesses is not None and generation.guesses.guessed >= generation.guesses.accepted > 0
    finally:
        guessing.stop()


async def _masked(engine: Engine) -> None:
    engine.generate([1], GREEDY, 5, processor=lambda tokens, logits: logits)


def test_a_draft_model_of_another_vocabulary_is_refused(tiny_base: Path, scripted_model: Path) -> None:
    with pytest.raises(ModelError, match="another vocabulary"):
        start(tiny_base, draft=scripted_model)


@pytest.mark.parametrize("limits", [Limits(kv_bits=8), Limits(lookup=True)])
def test_one_that_is_served_alone_can_be_cancelled(tiny_base: Path, limits: Limits) -> None:
    async def scenario(engine: Engine) -> int:
        prompt = encode(engine, TASK)
        with engine.generate(prompt, GREEDY, 500) as generation:
            async for _ in generation:
                break
        prompt = encode(engine, "again " * 400)
        with engine.generate(prompt, GREEDY, 500) as generation:
            while generation.progress is None and generation.first is None:
                await asyncio.sleep(0.0005)
            assert generation.progress is not None
        tokens, _ = await answer(engine, encode(engine, TASK), 3)
        return len(tokens)

    engine = start(tiny_base, limits)
    try:
        assert asyncio.run(scenario(engine)) == 3
        assert engine.running == 0 and engine.stats().restarts == 0
    finally:
        engine.stop()


# ---- what it is started with ----


def test_the_context_and_the_template_can_be_set(scripted_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(scripted_model, tmp_path / "model"))
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    engine = start(model, Limits(context=100), chat_template="{{ messages[0].content }}")
    try:
        assert engine.loaded.context == 100
        assert engine.loaded.chat_template == "{{ messages[0].content }}"
        assert engine.loaded.generation_config == {"temperature": 0.6}
    finally:
        engine.stop()
    (model / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="generation_config"):
        start(model)


def test_a_cached_prompt_holds_its_own_memory_only(engine: Engine) -> None:
    """What is cut out of a batch is lazy, and would hold the arrays of the whole batch."""

    async def batch() -> None:
        prompts = [encode(engine, f"{i:02} words of a long prompt" * 20) for i in range(32)]
        await asyncio.gather(*(answer(engine, p, 20) for p in prompts))

    asyncio.run(agent(engine, TASK, 2))  # all that is made once
    memory, cached = mx.get_active_memory(), engine.stats().cached_bytes
    asyncio.run(batch())
    assert mx.get_active_memory() - memory < 2 * (engine.stats().cached_bytes - cached)
