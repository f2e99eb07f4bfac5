"""What `punie_mlx/serve/` holds of mlx_lm that is private or has changed between releases.

One test for each line of the tables in `engine.py`, `loading.py` and `prompt_cache.py`: when mlx_lm moves, these say
where.
"""

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import server
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch
from mlx_lm.models.cache import KVCache, LRUPromptCache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load as load_model

from punie_mlx.serve import engine, lookup
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.loading import Provider
from punie_mlx.serve.prompt_cache import PromptCache

SOURCE = inspect.getsource(server.ResponseGenerator)
GENERATE = inspect.getsource(server.ResponseGenerator._generate)


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


def test_generate_can_be_called_again() -> None:
    """It keeps what it knows in local variables, and loads first."""
    assert set(re.findall(r"self\.([\w.]+)(?: =[^=]|, )", GENERATE)) == set()
    assert GENERATE.index("load_default()") < GENERATE.index("while not self._stop")
    assert re.findall(r"del self\.(\w+)", GENERATE) == ["prompt_cache"]


def test_requests_come_from_next_request_or_were_put_off() -> None:
    assert parameters(server.ResponseGenerator._next_request) == ["self", "timeout"]
    assert "return self._next_request(timeout)" in GENERATE
    assert "request = get_next_request(timeout=timeout)" in GENERATE


def test_the_batch_steps_within_the_time_budget() -> None:
    assert "for _ in self._time_budget:\n" in GENERATE
    assert SOURCE.count("_time_budget") == 2


def test_who_may_join_the_batch_and_who_is_served_alone() -> None:
    assert parameters(server.ResponseGenerator._is_batchable) == ["self", "args"]
    assert "batchable = self._is_batchable(args)" in GENERATE
    assert parameters(server.ResponseGenerator._serve_single) == ["self", "request", "stream"]
    single = inspect.getsource(server.ResponseGenerator._serve_single)
    assert "rqueue.put((tokens_processed, tokens_total))" in single
    assert single.rstrip().endswith("except Exception as e:\n            rqueue.put(e)")  # all else is within its try
    assert parameters(server.ResponseGenerator._log_cache_stats) == ["self"]


def test_samplers_and_processors_are_made_by_name() -> None:
    assert len(re.findall(r"[\[ ]_make_sampler\(args, (?:current_)?tokenizer\)", SOURCE)) == 2
    assert len(re.findall(r"[\[ ]_make_logits_processors\(args\)", SOURCE)) == 2
    assert server._make_sampler is engine._make_sampler
    assert server._make_logits_processors is engine._make_logits_processors


def test_the_batch_generator_is_made_by_name_and_used_by_three_methods() -> None:
    assert server.BatchGenerator is engine._Batch
    assert "batch_generator = BatchGenerator(" in GENERATE
    used = set(re.findall(r"batch_generator\.(\w+)\(", GENERATE))
    assert used == {"insert_segments", "next", "extract_cache", "remove", "close"}
    assert parameters(BatchGenerator.next) == ["self"]
    assert parameters(BatchGenerator.insert_segments)[:2] == ["self", "segments"]
    assert parameters(BatchGenerator.remove) == ["self", "uids", "return_prompt_caches"]
    assert "segments=[segments]," in GENERATE  # the list that `_tokenize` gave


def test_a_word_from_a_stopped_request_removes_it() -> None:
    """`_Batch.next` relies on it."""
    names = [f.name for f in dataclasses.fields(PromptProcessingBatch.Response)]
    assert names == ["uid", "progress", "end_of_segment", "end_of_prompt"]
    loop = GENERATE[GENERATE.index("for r in prompt_responses:") :]
    seen = re.sub(r"\s+", " ", loop[: loop.index("# Save the caches")]).strip()
    assert seen == (
        'for r in prompt_responses: result = batch_results[r.uid] result["rqueue"].put(r.progress) '
        'if result["ctx"]._should_stop: uids_to_remove.append(r.uid)'
    )
    assert re.search(r"batch_generator\.remove\(uids_to_remove\)\s+for uid in uids_to_remove:", GENERATE)


def test_log_probabilities_are_only_indexed_and_read() -> None:
    """Those that nobody wants are replaced by something that can do just that."""
    assert "logprobs" in {f.name for f in dataclasses.fields(GenerationBatch.Response)}
    assert re.findall(r"r\.logprobs\S*", GENERATE) == ["r.logprobs[r.token].item(),", "r.logprobs,"]
    assert server._format_top_logprobs(engine._UNWANTED, -1, None) == ()
    assert engine._UNWANTED[5].item() == 0.0


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
    provider = Provider(tmp_path, None, Limits(), None, None)
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


def test_stream_generate_finds_the_speculative_steps_by_name() -> None:
    module = sys.modules["mlx_lm.generate"]
    stock = engine._stock_steps
    assert vars(module)["speculative_generate_step"] is engine._speculative_steps
    assert parameters(stock)[:4] == ["prompt", "model", "draft_model", "stream"]
    called = inspect.getsource(module.stream_generate)
    assert (
        "token_generator = speculative_generate_step(\n            prompt, model, draft_model, stream, **kwargs"
        in called
    )
    used = {"max_tokens", "prompt_cache", "sampler", "logits_processors", "prefill_step_size"}
    assert used <= set(parameters(stock)) and used <= set(parameters(lookup.steps))
    assert "if self.model_provider.draft_model is not None:\n                    cache += make_prompt_cache" in SOURCE


def test_an_exact_hit_of_stocks_cache_leaves_no_token() -> None:
    """Why ours is our own; the rest of it is in tests/serve/test_prompt_cache.py."""
    layer = KVCache()
    layer.update_and_fetch(mx.zeros((1, 1, 3, 8)), mx.zeros((1, 1, 3, 8)))
    stock = LRUPromptCache(2)
    stock.insert_cache("model", [1, 2, 3], [layer])
    assert stock.fetch_nearest_cache("model", [1, 2, 3])[1] == []


def test_what_is_called_of_the_prompt_cache_ours_has() -> None:
    used = set(re.findall(r"self\.prompt_cache\.(\w+)", SOURCE))
    assert used - {"stats_by_type"} <= set(dir(PromptCache))  # that is for `_log_cache_stats`, which is overridden
    for name in ("fetch_nearest_cache", "insert_cache", "trim_to"):
        assert parameters(getattr(PromptCache, name)) == parameters(getattr(LRUPromptCache, name))


def test_control_tokens_are_in_the_text(scripted_model: Path) -> None:
    """Were they skipped, no call could be read."""
    detokenizer = load_tokenizer(scripted_model).detokenizer
    vocabulary = load_tokenizer(scripted_model).get_vocab()
    for token in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        detokenizer.add_token(vocabulary[token])
    detokenizer.finalize()
    assert detokenizer.text == "<think></think><tool_call></tool_call>"


def test_loading(scripted_model: Path) -> None:
    loaded: Any = load_model(str(scripted_model), return_config=True)
    network, tokenizer, config = loaded
    assert config["vocab_size"] == network.lm_head.weight.shape[0]
    assert tokenizer.eos_token_ids == {config["eos_token_id"]}
    assert parameters(load_adapters) == ["model", "adapter_path"]
