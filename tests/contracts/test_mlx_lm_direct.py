"""What `punie_mlx/direct.py` holds of mlx_lm that is private or has changed between releases."""

from __future__ import annotations

import inspect

import mlx.core as mx
import pytest
from mlx_lm import utils
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.tuner.utils import load_adapters

from punie_mlx import direct


def test_generate_step_runs_one_token_ahead_in_the_cache_that_it_is_given(tiny_base):
    """After the k-th token the cache holds the prompt and all k, the last one too; what it has more can be trimmed."""
    asked = inspect.signature(generate_step).parameters
    assert {"prompt", "model", "max_tokens", "sampler", "prompt_cache"} <= set(asked)
    model, _ = utils.load_model(tiny_base)
    model.set_dtype(mx.float32)
    mx.disable_compile()
    try:
        prompt, cache = [1, 300, 301, 302], make_prompt_cache(model)
        steps, tokens = generate_step(mx.array(prompt), model, max_tokens=8, prompt_cache=cache), []
        for token, _ in steps:
            tokens.append(token)
            assert cache[0].offset == len(prompt) + len(tokens)
            if len(tokens) == 3:
                break
        steps.close()
        assert can_trim_prompt_cache(cache) and trim_prompt_cache(cache, 3) == 3
        # Trimmed to the prompt but its last token, it goes on as if it were new.
        trim_prompt_cache(cache, 1)
        again = [t for t, _ in generate_step(mx.array(prompt[-1:]), model, max_tokens=3, prompt_cache=cache)]
        assert again == tokens
    finally:
        mx.enable_compile()


def test_a_sampler_takes_log_probabilities_of_one_row(tiny_base):
    model, _ = utils.load_model(tiny_base)
    model.set_dtype(mx.float32)
    seen = []

    def sampler(logprobs):
        seen.append((logprobs.shape, float(mx.exp(logprobs).sum())))
        return mx.argmax(logprobs, axis=-1)

    mx.disable_compile()
    try:
        assert len(list(generate_step(mx.array([1, 5]), model, max_tokens=1, sampler=sampler))) == 1
    finally:
        mx.enable_compile()
    (rows, width), total = seen[0]
    assert rows == 1 and width > 1000 and abs(total - 1) < 1e-3


def test_load_adapters_takes_a_network_and_a_directory():
    assert list(inspect.signature(load_adapters).parameters) == ["model", "adapter_path"]


@pytest.fixture(scope="module")
def loaded(tiny_base):
    yield direct.Model(tiny_base)
    mx.enable_compile()


def test_steps_give_a_token_its_text_and_the_log_probabilities_that_it_was_drawn_from(loaded):
    prompt = loaded.tokenizer.encode("<|im_start|>user\nWhat is recursion?<|im_end|>\n<|im_start|>assistant\n")
    steps = list(loaded.steps(prompt, None, 60))
    tokens = [token for token, _, _ in steps if token is not None]
    assert all(isinstance(token, int) for token in tokens) and tokens[-1] in loaded.ends
    for token, text, logprobs in steps:
        if token is None:
            assert logprobs is None and text
            continue
        flat = logprobs.reshape(-1).astype(mx.float32)
        assert flat.size > max(tokens) and abs(mx.exp(flat).sum().item() - 1) < 1e-3
        assert mx.argmax(flat).item() == token  # greedy
        assert token not in loaded.ends or text == ""
    said = "".join(text for _, text, _ in steps)
    assert said == loaded.tokenizer.decode([t for t in tokens if t not in loaded.ends]) and said


def test_steps_after_a_prefix_in_a_cache_are_those_of_the_whole_prompt(loaded):
    prompt = loaded.tokenizer.encode("<|im_start|>user\nWhat is recursion?<|im_end|>\n<|im_start|>assistant\n")
    whole = [token for token, _, _ in loaded.steps(prompt, None, 8)]
    cache = make_prompt_cache(loaded.network)
    loaded.network(mx.array([prompt[:6]]), cache=cache)
    assert [token for token, _, _ in loaded.steps(prompt[6:], cache, 8)] == whole


def test_steps_end_when_told_so_and_give_what_was_held_back(loaded):
    prompt = loaded.tokenizer.encode("<|im_start|>user\nWhat is recursion?<|im_end|>\n<|im_start|>assistant\n")
    steps, seen = loaded.steps(prompt, None, 60), []
    for token, text, _ in steps:
        seen.append((token, text))
        if len(seen) == 2:
            assert steps.send(True) == (None, "", None)
    (first, _), (second, held), *rest = seen
    assert held == "" and rest == [(None, " ")]  # the detokenizer waits with a space for what follows it
    assert "".join(text for _, text in seen) == loaded.tokenizer.decode([first, second])


def test_each_look_at_a_detokenizers_last_segment_says_what_is_new(loaded):
    detokenizer = loaded.tokenizer.detokenizer
    detokenizer.add_token(loaded.tokenizer.encode("is", add_special_tokens=False)[0])
    assert detokenizer.last_segment and not detokenizer.last_segment
