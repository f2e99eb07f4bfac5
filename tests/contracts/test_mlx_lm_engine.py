"""What `punie_mlx/serve/engine.py` holds of mlx_lm that is private or has changed between releases.

One test for each line of the table in its docstring: when mlx_lm moves, these say where.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import server
from mlx_lm.models.cache import KVCache, LRUPromptCache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load as load_model

from punie_mlx.serve import engine

SOURCE = inspect.getsource(server.ResponseGenerator)


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # ty: ignore[invalid-argument-type]


def test_response_generator_is_made_of_a_provider_and_a_cache() -> None:
    assert parameters(server.ResponseGenerator.__init__) == ["self", "model_provider", "prompt_cache"]
    assert "self._generation_thread = Thread(target=self._run_generate)" in SOURCE
    assert "self.requests = Queue()" in SOURCE


def test_requests_are_triples_and_answers_are_only_put() -> None:
    assert "self.requests.put((response_queue, request, generation_args))" in SOURCE
    used = set(re.findall(r"""(?:\brqueue|"rqueue"\])\.(\w+)""", SOURCE))
    assert used == {"put"}


def test_what_is_put() -> None:
    put = set(re.findall(r"""(?:\brqueue|"rqueue"\])\.put\(\s*([\w.]+|\()""", SOURCE))
    assert put == {"ctx", "e", "Response", "None", "r.progress", "("}


def test_tokenize_returns_five_values() -> None:
    assert parameters(server.ResponseGenerator._tokenize) == ["self", "tokenizer", "request", "args"]
    calls = re.findall(r"([\w, ()\n]+?)=\s*\(?\s*self\._tokenize\(", SOURCE)
    assert calls and all(call.count(",") == 4 for call in calls)


def test_run_generate_is_the_whole_thread() -> None:
    assert parameters(server.ResponseGenerator._run_generate) == ["self"]
    assert callable(mx.clear_streams)


def test_the_context_can_be_stopped_and_counts_cached_tokens() -> None:
    fields = {f.name for f in dataclasses.fields(server.GenerationContext)}
    assert {"prompt_cache_count", "_should_stop"} <= fields
    assert parameters(server.GenerationContext.stop) == ["self"]


def test_a_response_has_text_and_finish_reason() -> None:
    assert {f.name for f in dataclasses.fields(server.Response)} == {
        "text", "token", "logprob", "finish_reason", "top_tokens",
    }  # fmt: skip


def test_life_and_end_of_the_thread() -> None:
    assert parameters(server.ResponseGenerator.generation_available) == ["self"]
    assert parameters(server.ResponseGenerator.stop_and_join) == ["self"]
    assert "while not self._stop:" in SOURCE


def test_nothing_is_read_of_the_provider_that_ours_has_not(tmp_path: Path) -> None:
    provider = engine._Provider(tmp_path, None, engine.Limits())
    assert set(re.findall(r"model_provider\.(\w+)", SOURCE)) <= set(dir(provider))
    assert set(re.findall(r"cli_args\.(\w+)", SOURCE)) <= set(vars(provider.cli_args))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ModelDescription", ["model", "draft", "adapter"]),
        ("SamplingArguments", ["temperature", "top_p", "top_k", "min_p", "xtc_probability", "xtc_threshold"]),
        (
            "LogitsProcessorArguments",
            ["logit_bias", "repetition_penalty", "repetition_context_size", "presence_penalty",
             "presence_context_size", "frequency_penalty", "frequency_context_size"],
        ),
        (
            "GenerationArguments",
            ["model", "sampling", "logits", "stop_words", "max_tokens", "num_draft_tokens", "logprobs",
             "top_logprobs", "seed", "chat_template_kwargs"],
        ),
        ("CompletionRequest", ["request_type", "prompt", "messages", "tools", "role_mapping"]),
    ],
)  # fmt: skip
def test_fields_of_a_request(kind: str, names: list[str]) -> None:
    assert [f.name for f in dataclasses.fields(getattr(server, kind))] == names


def test_no_processors_come_of_our_arguments() -> None:
    """Each would cost time on every token, and may raise in the engine's thread."""
    assert server._make_logits_processors(engine._arguments(engine.Sampling(), 1)) == []


def test_an_exact_hit_of_the_cache_leaves_no_token_and_ours_leaves_one() -> None:
    def filled(cache: LRUPromptCache) -> LRUPromptCache:
        layer = KVCache()
        layer.update_and_fetch(mx.zeros((1, 1, 3, 8)), mx.zeros((1, 1, 3, 8)))
        cache.insert_cache("model", [1, 2, 3], [layer])
        return cache

    assert filled(LRUPromptCache(2)).fetch_nearest_cache("model", [1, 2, 3])[1] == []
    cache, rest = filled(engine._PromptCache(2)).fetch_nearest_cache("model", [1, 2, 3])
    assert len(rest) + cache[0].offset == 3 and rest[-1] == 3
    assert filled(engine._PromptCache(2)).fetch_nearest_cache("model", [1, 2, 3, 4])[1] == [4]
    assert engine._PromptCache(2).fetch_nearest_cache("model", [1, 2]) == (None, [1, 2])


def test_control_tokens_are_in_the_text(scripted_model: Path) -> None:
    """Were they skipped, no call could be read."""
    detokenizer = load_tokenizer(scripted_model).detokenizer
    vocabulary = load_tokenizer(scripted_model).get_vocab()
    for token in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        detokenizer.add_token(vocabulary[token])
    detokenizer.finalize()
    assert detokenizer.text == "<think></think><tool_call></tool_call>"


def test_loading(scripted_model: Path) -> None:
    network, tokenizer, config = load_model(str(scripted_model), return_config=True)
    assert config["vocab_size"] == network.lm_head.weight.shape[0]
    assert tokenizer.eos_token_ids == {config["eos_token_id"]}
    assert parameters(load_adapters) == ["model", "adapter_path"]
