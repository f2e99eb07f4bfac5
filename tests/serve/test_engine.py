"""The engine on a real model, in this process."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from punie_mlx import hardware, identity
from punie_mlx.errors import ModelError, ServerError
from punie_mlx.serve.engine import Engine, EngineBusyError, Limits, Sampling, load


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    engine = Engine.start(scripted_model, limits=Limits(requests=4))
    yield engine
    engine.stop()
    assert not engine.alive


def encode(engine: Engine, text: str) -> list[int]:
    return engine.loaded.tokenizer.encode(text, add_special_tokens=False)


GREEDY = Sampling()


async def say(engine: Engine, text: str, sampling: Sampling = GREEDY, limit: int = 50) -> tuple[str, str, int]:
    with engine.generate(encode(engine, text), sampling, limit) as generation:
        pieces = [piece async for piece in generation]
    return "".join(p.text for p in pieces), pieces[-1].finish or "", generation.cached_tokens


def test_text_comes_raw_with_its_control_tokens(engine: Engine) -> None:
    text, finish, _ = asyncio.run(say(engine, "<|im_start|>user\n#call"))
    assert text.startswith("<tool_call>\n<function=get_weather>")
    assert text.endswith("</tool_call>")  # and no <|im_end|>
    assert finish == "stop"


def test_length_ends_it(engine: Engine) -> None:
    assert asyncio.run(say(engine, "#forever", limit=3)) == ("la la la ", "length", 0)


def test_requests_share_a_batch(engine: Engine) -> None:
    async def several() -> list[tuple[str, str, int]]:
        return await asyncio.gather(*(say(engine, f"{i} #hello") for i in range(4)))

    assert [text for text, _, _ in asyncio.run(several())] == ["Hello, world 🌍!"] * 4


def test_a_seed_repeats_the_answer(engine: Engine) -> None:
    answers = [asyncio.run(say(engine, "#coin", Sampling(1.0, seed=s), 20))[0] for s in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]


def test_prompts_are_cached(engine: Engine) -> None:
    prompt = "a prompt that no other test sends " * 3
    first = asyncio.run(say(engine, prompt + "#hello"))[2]
    again = asyncio.run(say(engine, prompt + "#forever"))[2]
    assert (first, again) == (0, len(encode(engine, prompt)))


def test_a_prompt_that_is_wholly_cached_leaves_the_engine_alive(engine: Engine) -> None:
    """mlx_lm's own cache would leave no token to run, and its thread would die of that."""
    text, _, _ = asyncio.run(say(engine, "say it #hello", limit=2))
    for _ in range(2):
        assert asyncio.run(say(engine, "say it #hello" + text[:5]))[0] == ", world 🌍!"
    assert engine.alive


def test_cancelling_gives_the_slot_back(engine: Engine) -> None:
    async def one_and_away() -> None:
        with engine.generate(encode(engine, "#forever"), Sampling(), 4000) as generation:
            async for _ in generation:
                break

    async def until_idle() -> bool:
        await one_and_away()
        return (await say(engine, "#hello"))[0] == "Hello, world 🌍!"

    assert asyncio.run(until_idle())
    assert engine.running == 0


def test_what_waits_can_be_cancelled_too(engine: Engine) -> None:
    async def scenario() -> str:
        with engine.generate(encode(engine, "#forever"), Sampling(1.0, seed=1), 4000) as first:  # serves alone
            with engine.generate(encode(engine, "#forever"), Sampling(), 4000):
                pass
            async for _ in first:
                break
        return (await say(engine, "#hello"))[0]

    assert asyncio.run(scenario()) == "Hello, world 🌍!"


def test_too_many_requests_are_refused(engine: Engine) -> None:
    async def scenario() -> None:
        running = [engine.generate(encode(engine, "#forever"), Sampling(), 4000) for _ in range(4)]
        try:
            with pytest.raises(EngineBusyError):
                engine.generate(encode(engine, "#hello"), Sampling(), 10)
        finally:
            for generation in running:
                generation.__exit__(None, None, None)
        assert (await say(engine, "#hello"))[1] == "stop"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("prompt", "sampling", "limit"),
    [
        ([], Sampling(), 5),
        ([10**9], Sampling(), 5),
        ([-1], Sampling(), 5),
        ([1], Sampling(), 0),
        ([1], Sampling(1.0, top_k=10**6), 5),
        ([1], Sampling(1.0, min_p=3), 5),
        ([1], Sampling(-1.0), 5),
    ],
)
def test_what_would_kill_the_thread_never_reaches_it(
    engine: Engine, prompt: list[int], sampling: Sampling, limit: int
) -> None:
    with pytest.raises(ValueError):
        engine.generate(prompt, sampling, limit)


def test_a_dead_engine_says_so(scripted_model: Path) -> None:
    async def scenario() -> None:
        with engine.generate(encode(engine, "#forever"), Sampling(), 4000) as generation:
            pieces = generation.__aiter__()
            await anext(pieces)
            engine._generator.requests.put((object(), object(), object()))  # the thread falls over it
            with pytest.raises(ServerError, match="died"):
                async for _ in pieces:
                    pass

    engine = Engine.start(scripted_model)
    try:
        asyncio.run(scenario())
        assert not engine.alive
        with pytest.raises(ServerError, match="died"):
            engine.generate([1], Sampling(), 1)
    finally:
        engine.stop()


def test_stopping_cuts_off_what_runs(scripted_model: Path) -> None:
    async def scenario() -> None:
        engine = Engine.start(scripted_model)
        with engine.generate(encode(engine, "#forever"), Sampling(), 4000) as generation:
            pieces = generation.__aiter__()
            await anext(pieces)
            engine.stop()
            with pytest.raises(ServerError, match="stopping"):
                async for _ in pieces:
                    pass

    asyncio.run(scenario())


# ---- loading ----


@pytest.fixture
def copy(scripted_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scripted_model, tmp_path / "copy"))


def test_a_missing_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Engine.start(tmp_path / "none")


def test_broken_weights_are_a_model_error(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Engine.start(copy)


def test_a_model_without_template_is_a_model_error(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        load(copy)


def make_adapter(path: Path, width: int, **config: object) -> Path:
    path.mkdir()
    shape = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}
    (path / "adapter_config.json").write_text(json.dumps({**shape, **config}))
    name = "model.layers.0.self_attn.q_proj.lora_"
    arrays = {f"{name}a": mx.zeros((width, 2)), f"{name}b": mx.zeros((2, 128))}
    mx.save_safetensors(str(path / "adapters.safetensors"), arrays)
    return path


def width(model: Path) -> int:
    return json.loads((model / "config.json").read_text())["hidden_size"]


def test_an_adapter_is_laid_over_the_model(scripted_model: Path, tmp_path: Path) -> None:
    trained_on = {"base_fingerprint": identity.fingerprint(scripted_model)}
    adapter = make_adapter(tmp_path / "adapter", width(scripted_model), punie=trained_on)
    engine = Engine.start(scripted_model, adapter)
    try:
        assert any(n.endswith("lora_a") for n, _ in tree_flatten(engine.loaded.network.parameters()))
        assert asyncio.run(say(engine, "#hello"))[0] == "Hello, world 🌍!"
    finally:
        engine.stop()


def test_an_adapter_of_another_model_is_refused(scripted_model: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "a", width(scripted_model), punie={"base_fingerprint": "0123456789abcdef"})
    with pytest.raises(ModelError, match="0123456789ab"):
        load(scripted_model, other)
    misshapen = make_adapter(tmp_path / "b", width(scripted_model) + 1)
    with pytest.raises(ModelError, match="does not fit"):
        load(scripted_model, misshapen)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load(scripted_model, scripted_model)


def test_quantized_weights_compute_in_float32_on_the_cpu(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hardware.on_cpu():
        pytest.skip("only the CPU backend is slow in half precision")
    plain = load(copy).network
    nn.quantize(plain, group_size=64, bits=5)
    plain.set_dtype(mx.float16)
    mx.save_safetensors(str(copy / "model.safetensors"), dict(tree_flatten(plain.parameters())))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 64, "bits": 5}}))

    dense = load(copy).network
    assert isinstance(dense.lm_head, nn.Linear) and dense.lm_head.weight.dtype == mx.float32
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1000)
    quantized = load(copy).network
    assert isinstance(quantized.lm_head, nn.QuantizedLinear) and quantized.lm_head.scales.dtype == mx.float32
    tokens = mx.array([[300, 301, 302]])
    assert mx.allclose(dense(tokens), quantized(tokens), atol=1e-4).item()
