"""A model in memory: read, put under its adapter, tried, and provided to the engine.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_engine.py):

| name                                                       | used for                                  |
|------------------------------------------------------------|-------------------------------------------|
| `utils.load(…, tokenizer_config, return_config)`           | network, tokenizer and config             |
| `tuner.utils.load_adapters`                                | the adapter, laid over the network        |
| `tokenizer.eos_token_ids`, `.added_tokens_decoder`         | end tokens, control tokens                |
| `models.cache.make_prompt_cache`, `.can_trim_prompt_cache` | whether a draft model, or bits, can be had |
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load as load_with_mlx_lm

from punie_mlx import hardware, identity, weights
from punie_mlx.errors import ConfigError, ModelError, ServerError
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.lookup import PromptLookup

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 32768  # for the few configs that name none
KV_GROUP = 64
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    network: Any
    tokenizer: Any
    config: dict[str, Any]
    context: int  # tokens of prompt and answer together
    vocabulary: int  # width of the logits
    generation_config: dict[str, Any]
    control: dict[int, str]  # the vocabulary's added tokens: id → spelling
    eos: frozenset[int]
    warm_up_seconds: float = 0.0  # of the first computation, before which Metal compiles its kernels

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template


def load(
    model: Path, adapter: Path | None = None, limits: Limits = DEFAULT_LIMITS, template: str | None = None
) -> Loaded:
    """Load `model`, with `adapter` laid over it; in float32 where MLX computes on the CPU. `template` replaces its
    chat template. Raises `ModelError`, or `ConfigError` where it cannot be served within `limits`."""
    model = Path(model)
    identity.model_files(model)
    if adapter is not None:
        identity.check_adapter(model, Path(adapter))
    network, tokenizer, config = _read(model, {"chat_template": template} if template else {})
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer of {model} has no chat template: add chat_template.jinja to the directory")
    if adapter is not None:
        try:
            network = load_adapters(network, str(adapter))
        except Exception as e:
            raise ModelError(f"the adapter {adapter} does not fit the model {model}: {e}") from e
    _prepare(network)
    began = time.monotonic()
    vocabulary = probe(network).shape[-1]
    warm_up = time.monotonic() - began
    text_config = {**config, **config.get("text_config", {})}
    context = text_config.get("max_position_embeddings") or DEFAULT_CONTEXT
    loaded = Loaded(
        network=network,
        tokenizer=tokenizer,
        config=config,
        context=min(context, limits.context or context),
        vocabulary=vocabulary,
        generation_config=_generation_config(model),
        control={index: token.content for index, token in tokenizer.added_tokens_decoder.items()},
        eos=frozenset(tokenizer.eos_token_ids),
        warm_up_seconds=warm_up,
    )
    if limits.kv_bits is not None:
        _check_kv_bits(network, limits.kv_bits)
    return loaded


def load_draft(draft: Path, loaded: Loaded) -> Any:
    """The network of a draft model for `loaded`. Raises `ModelError` or `ConfigError`."""
    identity.model_files(Path(draft))
    network, tokenizer, _ = _read(Path(draft), {})
    if tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise ModelError(f"the draft model {draft} has another vocabulary than the model: choose one of its family")
    _refuse_uneven(loaded)
    _prepare(network)
    return network


def _refuse_uneven(loaded: Loaded) -> None:
    if not all(map(_rewinds, make_prompt_cache(loaded.network))):
        raise ConfigError(
            "the model's cache cannot be rewound, so no tokens can be guessed ahead: leave out the draft model or "
            "--prompt-lookup"
        )


def _rewinds(cache: Any) -> bool:
    """Whether tokens can be taken back, however many there are: one that rotates forgets what they have replaced."""
    return can_trim_prompt_cache([cache]) and not any(hasattr(c, "max_size") for c in getattr(cache, "caches", [cache]))


def probe(network: Any) -> mx.array:
    """Logits of one token: whether `network` can compute. Raises where it cannot."""
    logits = network(mx.array([[0]]))
    if mx.isnan(logits).any().item():
        raise ServerError("the model's logits are not numbers: its weights are broken")
    return logits


def _read(model: Path, tokenizer_config: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    try:
        loaded: Any = load_with_mlx_lm(str(model), tokenizer_config=tokenizer_config, return_config=True)
    except Exception as e:
        raise ModelError(f"the model {model} cannot be loaded: {e}") from e
    return loaded  # three values with return_config


def _prepare(network: Any) -> None:
    network.eval()
    if hardware.on_cpu():
        mx.disable_compile()  # on a CPU MLX runs a C++ compiler for each kernel, seconds at every start
        weights.compute_in_float32(network)
    mx.eval(network.parameters())


def _generation_config(model: Path) -> dict[str, Any]:
    path = model / "generation_config.json"
    try:
        read = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as e:
        raise ModelError(f"{path} is not JSON: {e}") from e
    return read if isinstance(read, dict) else {}


def _check_kv_bits(network: Any, bits: int) -> None:
    cache = make_prompt_cache(network)
    try:
        network(mx.array([[0]]), cache=cache)
        cache = [c.to_quantized(group_size=KV_GROUP, bits=bits) if hasattr(c, "to_quantized") else c for c in cache]
        mx.eval(network(mx.array([[0]]), cache=cache))
    except Exception as e:
        raise ConfigError(f"the model's KV cache cannot be quantized to {bits} bits: {e or type(e).__name__}") from e


class Provider:
    """What `ResponseGenerator` wants of a model provider, for exactly one model. Loads in the engine's thread, since
    MLX arrays belong to the thread that made them."""

    def __init__(self, model: Path, adapter: Path | None, limits: Limits, draft: Path | None, template: str | None):
        self._source = (model, adapter, limits, template)
        self.draft = draft
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.loaded: Loaded | None = None
        self.reloads = 0
        # Caches of one kind only can meet under this key: those of a draft model, or quantized, fit no other engine.
        self.model_key = (str(model), str(adapter), str(draft), limits.kv_bits)
        self.model: Any = None
        self.tokenizer: Any = None
        self.processor = None  # of images
        self.draft_model: Any = None
        self.is_batchable = False
        self.cli_args = SimpleNamespace(
            decode_concurrency=limits.decode_batch,
            prompt_concurrency=limits.prefill_batch,
            prefill_step_size=limits.prefill_step,
            prompt_cache_bytes=limits.prompt_cache_bytes,
            kv_bits=limits.kv_bits,
            kv_group_size=KV_GROUP,
            quantized_kv_start=0,
            chat_template_args={},
        )

    def load_default(self) -> None:
        """Called whenever `_generate` begins: loads, the first time; later only where the network does not compute."""
        if self.loaded is None:
            try:
                self._load(load(*self._source))
            except Exception as e:  # the waiting main thread raises it
                self.error = e
            finally:
                self.ready.set()
            return
        try:
            probe(self.model)
        except Exception:
            log.exception("the model does not compute any more: it is loaded again")
            self.reloads += 1
            self.model = self.draft_model = None
            # The same tokenizer: others may be using it.
            self._load(replace(load(*self._source), tokenizer=self.tokenizer))

    def _load(self, loaded: Loaded) -> None:
        if self.draft is not None:
            self.draft_model = load_draft(self.draft, loaded)
        elif self._source[2].lookup:
            _refuse_uneven(loaded)
            self.draft_model = PromptLookup()
        self.model, self.tokenizer = loaded.network, loaded.tokenizer
        cache = make_prompt_cache(self.model)
        self.is_batchable = self.draft_model is None and all(hasattr(c, "merge") for c in cache)
        if self.cli_args.prompt_cache_bytes is None:
            self.cli_args.prompt_cache_bytes = max(hardware.memory_bytes() - mx.get_active_memory(), 2**30) // 4
        self.loaded = loaded

    def load(self, model: Any, adapter: Any = None, draft: Any = None) -> tuple[Any, Any]:
        return self.model, self.tokenizer  # whatever the name: no request can load anything

    def reset(self) -> None:
        self.model = self.tokenizer = self.draft_model = self.loaded = None
