"""The engine on a real model, in this process: answers, cancelling, limits, loading."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from punie_mlx import hardware, identity
from punie_mlx.errors import ModelError, ServerError
from punie_mlx.serve.engine import Engine, load
from punie_mlx.serve.generation import EngineBusyError, Generation, Limits, Piece, Sampling


@pytest.fixture(scope="module")
def engine(scripted_model: Path) -> Iterator[Engine]:
    engine = Engine.start(scripted_model, limits=Limits(requests=4))
    yield engine
    engine.stop()
    assert not engine.alive


def encode(engine: Engine, text: str) -> list[int]:
    return engine.loaded.tokenizer.encode(text, add_special_tokens=False)


GREEDY = Sampling()


@contextlib.contextmanager
def running(model: Path, limits: Limits = Limits()) -> Generator[Engine]:  # noqa: B008
    engine = Engine.start(model, limits=limits)
    try:
        yield engine
    finally:
        engine.stop()


def counted(engine: Engine) -> list[int]:
    """Grows with each call of the network."""
    steps: list[int] = []
    network = engine.loaded.network
    plain = type(network)

    class Counted(plain):
        def __call__(self, *args: object, **kwargs: object) -> object:
            steps.append(1)
            return plain.__call__(self, *args, **kwargs)

    network.__class__ = Counted
    return steps


async def say(engine: Engine, text: str, sampling: Sampling = GREEDY, limit: int = 50) -> tuple[str, str, int]:
    with engine.generate(encode(engine, text), sampling, limit) as generation:
        pieces = [piece async for pieces in generation for piece in pieces]
    return "".join(p.text for p in pieces), pieces[-1].finish or "", generation.cached_tokens


def test_text_comes_raw_with_its_control_tokens(engine: Engine) -> None:
    text, finish, _ = asyncio.run(say(engine, "<|im_start|>user\n#call"))
    assert text.startswith("<tool_call>\n<function=get_weather>")
    assert text.endswith("</tool_call>")  # and no <|im_end|>
    assert finish == "stop"


def test_length_ends_it(engine: Engine) -> None:
    assert asyncio.run(say(engine, "#forever", limit=3)) == ("la la la ", "length", 0)


def test_pieces_have_their_tokens(engine: Engine) -> None:
    async def scenario() -> tuple[list[Piece], Generation]:
        with engine.generate(encode(engine, "#hello"), GREEDY, 50) as generation:
            return [piece async for pieces in generation for piece in pieces], generation

    pieces, generation = asyncio.run(scenario())
    assert [p.token for p in pieces[:-1]] == encode(engine, "Hello, world 🌍!")
    assert pieces[-1].token is None and pieces[-1].finish == "stop"  # the end token
    assert {p.finish for p in pieces[:-1]} == {None}
    assert generation.completion_tokens == len(pieces)
    assert generation.progress is not None and generation.progress[0] == generation.progress[1]
    assert generation.started is not None and generation.first is not None
    assert generation.created <= generation.started <= generation.first


def test_all_that_has_come_is_given_at_once(engine: Engine) -> None:
    async def scenario() -> list[int]:
        with engine.generate(encode(engine, "#forever"), GREEDY, 30) as generation:
            while len(generation._items) < 30:  # not looking while it writes
                await asyncio.sleep(0.001)
            return [len(pieces) async for pieces in generation]

    assert asyncio.run(scenario()) == [30]


def test_what_the_loaded_model_is(engine: Engine, scripted_model: Path) -> None:
    loaded = engine.loaded
    assert loaded.vocabulary == json.loads((scripted_model / "config.json").read_text())["vocab_size"]
    vocabulary = loaded.tokenizer.get_vocab()
    assert loaded.eos == {vocabulary["<|im_end|>"]}
    assert loaded.control[vocabulary["<tool_call>"]] == "<tool_call>"
    assert loaded.context == 4096 and loaded.generation_config == {}
    assert "<tools>" in loaded.chat_template


def test_requests_share_a_batch(engine: Engine) -> None:
    async def several() -> list[tuple[str, str, int]]:
        return await asyncio.gather(*(say(engine, f"{i} #hello") for i in range(4)))

    assert [text for text, _, _ in asyncio.run(several())] == ["Hello, world 🌍!"] * 4


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


def test_what_waits_can_be_cancelled_and_never_starts(scripted_model: Path) -> None:
    async def scenario(engine: Engine) -> Generation:
        with engine.generate(encode(engine, "#forever"), GREEDY, 4000) as first:
            async for _ in first:
                break
            with engine.generate(encode(engine, "#forever"), GREEDY, 4000) as second:  # there is one slot
                pass
            async for _ in first:
                break
        assert (await say(engine, "#hello"))[0] == "Hello, world 🌍!"
        return second

    with running(scripted_model, Limits(decode_batch=1, prefill_batch=1)) as engine:
        second = asyncio.run(scenario(engine))
        assert second.started is None and second.progress is None


def test_a_slot_is_free_within_three_steps_of_a_cancellation(scripted_model: Path) -> None:
    """Steps are counted in the network itself."""

    async def scenario(engine: Engine) -> int:
        steps = counted(engine)
        with engine.generate(encode(engine, "#forever"), GREEDY, 4000) as stays:
            with engine.generate(encode(engine, "#forever"), GREEDY, 4000) as goes:
                async for _ in goes:
                    break
                job, freed_at = engine._open[goes], []
                leave = job.leave
                job.leave = lambda: freed_at.append(len(steps)) or leave()
                cancelled_at = len(steps)
            while not freed_at:
                await asyncio.sleep(0.001)
            async for _ in stays:
                break
        return freed_at[0] - cancelled_at

    with running(scripted_model) as engine:
        assert asyncio.run(scenario(engine)) <= 3


def test_a_newcomer_joins_at_the_next_step(scripted_model: Path) -> None:
    async def scenario(engine: Engine) -> int:
        steps = counted(engine)
        with engine.generate(encode(engine, "#forever"), GREEDY, 4000) as first:
            async for _ in first:
                break
            came_at = len(steps)
            assert (await say(engine, "#hello"))[1] == "stop"
            return len(steps) - came_at

    with running(scripted_model) as engine:
        # Prefill, three pieces, the end, each beside a step of the first; stock lets its half second pass before.
        assert asyncio.run(scenario(engine)) < 30


def test_one_in_its_prefill_ends_at_the_next_step(scripted_model: Path) -> None:
    async def scenario(engine: Engine) -> tuple[int, int]:
        prompt = encode(engine, "#hello") * 1000
        with engine.generate(prompt, GREEDY, 10) as generation:
            while generation.progress is None:
                await asyncio.sleep(0.0005)
        while engine._generator.inside:
            await asyncio.sleep(0.0005)
        assert generation.progress is not None
        await say(engine, "#hello")
        return generation.progress

    with running(scripted_model, Limits(prefill_step=10)) as engine:
        done, total = asyncio.run(scenario(engine))
        assert done < 100 and total == 1000


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
        ([1], Sampling(1.0, top_p=0), 5),
        ([1], Sampling(1.0, seed=-1), 5),
        ([1], Sampling(1.0, seed=2**64), 5),
        ([1], Sampling(float("nan")), 5),
        ([1], Sampling(repetition_penalty=0), 5),
        ([1], Sampling(presence_penalty=float("inf")), 5),
        ([1], Sampling(logit_bias=((10**9, 1.0),)), 5),
        ([1], Sampling(logit_bias=((-1, 1.0),)), 5),
    ],
)
def test_what_would_kill_the_thread_never_reaches_it(
    engine: Engine, prompt: list[int], sampling: Sampling, limit: int
) -> None:
    with pytest.raises(ValueError):
        engine.generate(prompt, sampling, limit)


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


def make_adapter(path: Path, model: Path, wider: int = 0, **config: object) -> Path:
    path.mkdir()
    base = json.loads((model / "config.json").read_text())
    width, queries = base["hidden_size"] + wider, base["num_attention_heads"] * base["head_dim"]
    shape = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}
    (path / "adapter_config.json").write_text(json.dumps({**shape, **config}))
    name = "model.layers.0.self_attn.q_proj.lora_"
    arrays = {f"{name}a": mx.zeros((width, 2)), f"{name}b": mx.zeros((2, queries))}
    mx.save_safetensors(str(path / "adapters.safetensors"), arrays)
    return path


def test_an_adapter_is_laid_over_the_model(scripted_model: Path, tmp_path: Path) -> None:
    trained_on = {"base_fingerprint": identity.fingerprint(scripted_model)}
    adapter = make_adapter(tmp_path / "adapter", scripted_model, punie=trained_on)
    engine = Engine.start(scripted_model, adapter)
    try:
        assert any(n.endswith("lora_a") for n, _ in tree_flatten(engine.loaded.network.parameters()))
        assert asyncio.run(say(engine, "#hello"))[0] == "Hello, world 🌍!"
    finally:
        engine.stop()


def test_an_adapter_of_another_model_is_refused(scripted_model: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "a", scripted_model, punie={"base_fingerprint": "0123456789abcdef"})
    with pytest.raises(ModelError, match="0123456789ab"):
        load(scripted_model, other)
    misshapen = make_adapter(tmp_path / "b", scripted_model, wider=1)
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
