"""What `punie_mlx/direct.py` holds of mlx_lm that is private or has changed between releases."""

from __future__ import annotations

import inspect

import mlx.core as mx
from mlx_lm import utils
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.tuner.utils import load_adapters


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
