"""Prompt lookup: the same tokens as plain decoding, whatever is guessed, and a cache that holds only what was said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import gemma3_text
from mlx_lm.models.cache import make_prompt_cache

from punie_mlx.chat.render import safe_prompt
from punie_mlx.errors import ConfigError
from punie_mlx.serve import loading, lookup
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.sampling import Penalties, greedy

BASE = Path(__file__).resolve().parents[2] / "data/tiny-base"
TOOL = {
    "type": "function",
    "function": {
        "name": "move_file",
        "parameters": {
            "type": "object",
            "properties": {"source": {"type": "string"}, "destination": {"type": "string"}},
        },
    },
}
QUESTIONS = ("Move api/jasper/willow.py to core/jasper/willow.py", "What is dependency injection?", "Move move move")


@pytest.fixture(scope="module")
def base() -> Iterator[loading.Loaded]:
    yield loading.load(BASE, None, Limits(), None)


def prompt(base: loading.Loaded, question: str) -> list[int]:
    return safe_prompt(base.tokenizer, [{"role": "user", "content": question}], [TOOL]).tokens


def plain(base: loading.Loaded, tokens: list[int], most: int, processors: list[Any] | None = None) -> list[int]:
    stream = mx.new_stream(mx.default_device())
    steps = generate_step(
        mx.array(tokens), base.network, stream, max_tokens=most, sampler=greedy, logits_processors=processors
    )
    return [token for token, _ in steps]


def looked_up(
    base: loading.Loaded,
    tokens: list[int],
    most: int,
    processors: list[Any] | None = None,
    *,
    context: lookup.Context | None = None,
    stop: int | None = None,
) -> tuple[list[int], list[Any], lookup.Context]:
    drafter = lookup.PromptLookup()
    drafter.context = context or lookup.Context(tokens)
    cache = make_prompt_cache(base.network)
    steps = lookup.steps(
        mx.array(tokens), base.network, drafter, mx.new_stream(mx.default_device()), max_tokens=most,
        prompt_cache=cache, sampler=greedy, logits_processors=processors, prefill_step_size=32,
    )  # fmt: skip
    out: list[int] = []
    for token, _, _ in steps:
        out.append(token)
        if len(out) == stop:
            break
    steps.close()
    return out, cache, drafter.context


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_tokens_are_those_of_plain_decoding(base, question):
    tokens = prompt(base, question)
    made, cache, context = looked_up(base, tokens, 60)
    assert made == plain(base, tokens, 60)
    assert context.guessed >= context.accepted > 0, "nothing was guessed right: this proves nothing"
    assert cache[0].offset <= len(tokens) + len(made)


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_wrong_guesses_change_nothing(base, question):
    tokens = prompt(base, question)
    wanted = plain(base, tokens, 40)
    misleading = lookup.Context(tokens, [token for t in wanted for token in (t, 5, 6, 7)])
    made, _, context = looked_up(base, tokens, 40, context=misleading)
    assert made == wanted
    assert context.guessed > context.accepted


@pytest.mark.parametrize("question", QUESTIONS)
def test_processors_see_what_they_would_see_without_guesses(base, question):
    tokens = prompt(base, question)
    penalties = [[Penalties(0.5, 0.7, base.vocabulary)] for _ in range(2)]
    assert looked_up(base, tokens, 40, penalties[0])[0] == plain(base, tokens, 40, penalties[1])


def test_a_cache_goes_on_wherever_the_answer_was_ended(base):
    tokens = prompt(base, QUESTIONS[2])
    wanted = plain(base, tokens, 40)
    for stop in range(1, 30):
        context = lookup.Context(tokens, wanted)  # knows the answer: everything comes in guesses
        made, cache, _ = looked_up(base, tokens, 40, context=context, stop=stop)
        assert made == wanted[:stop]
        held = cache[0].offset
        assert len(tokens) <= held < len(tokens) + stop
        rest = mx.array([*tokens, *made][held:])
        stream = mx.new_stream(mx.default_device())
        steps = generate_step(rest, base.network, stream, max_tokens=3, prompt_cache=cache, sampler=greedy)
        assert [t for t, _ in steps] == wanted[stop : stop + 3]


def test_what_followed_last_is_guessed_the_longest_run_first():
    context = lookup.Context([1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3])
    assert context.guess(3) == [4, 9, 2]  # 1 2 3 came once; 2 3 was followed by 7 more recently
    assert lookup.Context([1, 2, 3]).guess(3) == []
    assert context.guess(0) == []


def test_guesses_grow_with_success_and_shrink_without():
    context = lookup.Context(list(range(100)) * 2)
    context.settle(lookup.FIRST, lookup.FIRST)
    assert len(context.guess(99)) == 2 * lookup.FIRST
    context.settle(8, 0)
    assert len(context.guess(99)) == 2


def test_skeletons_spell_the_calls_up_to_their_values(base):
    marks = lookup.skeletons(base.tokenizer, "qwen3_coder", [TOOL])
    assert marks.count(lookup.GAP) == 3  # two values, and the end
    opener = base.tokenizer.convert_tokens_to_ids("<tool_call>")
    context = lookup.Context([7, opener], marks)
    context.settle(8, 8)
    text = base.tokenizer.decode(context.guess(99))
    assert (
        "<tool_call>" + text == "<tool_call>\n<function=move_file>\n<parameter=source>\n"[: len("<tool_call>" + text)]
    )
    assert lookup.GAP not in context.guess(99) and "move_file" in text


@pytest.mark.parametrize("parameters", [{}, {"properties": None}, {"properties": []}, {"properties": {"a": True}}])
def test_odd_schemas_have_skeletons(base, parameters):
    marks = lookup.skeletons(base.tokenizer, "qwen3_coder", [{"function": {"name": "go", "parameters": parameters}}])
    assert "go" in base.tokenizer.decode([t for t in marks if t != lookup.GAP])


def test_a_prefill_tells_how_far_it_is_and_can_be_ended(base):
    tokens, told = prompt(base, QUESTIONS[0]), []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done:
            raise InterruptedError

    drafter = lookup.PromptLookup()
    drafter.progress = progress
    cache = make_prompt_cache(base.network)
    steps = lookup.steps(
        mx.array(tokens), base.network, drafter, mx.new_stream(mx.default_device()), max_tokens=1,
        prompt_cache=cache, sampler=greedy, prefill_step_size=32,
    )  # fmt: skip
    with pytest.raises(InterruptedError):
        next(steps)
    assert told == [(0, len(tokens)), (32, len(tokens))] and cache[0].offset == 32


def test_a_model_whose_cache_rotates_is_refused(base):
    size = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 8, "num_attention_heads": 1, "head_dim": 8}
    window = {"sliding_window": 4, "sliding_window_pattern": 2, "num_key_value_heads": 1, "vocab_size": 8}
    network = gemma3_text.Model(gemma3_text.ModelArgs(model_type="gemma3_text", **size, **window))
    loading._refuse_uneven(base)
    with pytest.raises(ConfigError, match="cannot be rewound"):
        loading._refuse_uneven(replace(base, network=network))


def test_nothing_is_guessed_beyond_the_answers_length(base):
    tokens = prompt(base, QUESTIONS[0])
    wanted = plain(base, tokens, 7)
    for most in range(1, 8):
        made, cache, _ = looked_up(base, tokens, most, context=lookup.Context(tokens, wanted))
        assert made == wanted[:most]
        assert cache[0].offset < len(tokens) + most
