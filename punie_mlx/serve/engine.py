"""The engine: one model on mlx_lm's batching `ResponseGenerator`, driven from asyncio.

Prompts go in as tokens, text comes out in pieces. The engine knows nothing of messages, tools, calls or HTTP; and no
other module touches `mlx_lm.server`. What we hold of it that is private, or has changed between releases (each line
is pinned by `tests/contracts/test_mlx_lm_engine.py`):

| touch point                                          | why                                                      |
|------------------------------------------------------|----------------------------------------------------------|
| `ResponseGenerator(provider, prompt_cache)`          | starts the thread that loads, batches and generates      |
| `.requests.put((queue, request, args))`              | the way in; the engine only ever calls `queue.put(x)`    |
| puts `GenerationContext`, `Response`, progress, exceptions, `None` | the way out                                |
| `._tokenize`, which returns 5 values                 | overridden: prompts are rendered and encoded outside     |
| `._run_generate`                                     | overridden: ends MLX's streams with the thread, or their |
|                                                      | own threads may abort the process at its exit            |
| `GenerationContext.stop()`, `.prompt_cache_count`    | cancels a request; tokens that the prompt cache spared   |
| `Response.text`, `.finish_reason`                    | raw text: all control tokens are in it but the end token |
| `.generation_available()`, `._stop`, `.stop_and_join()` | whether the thread lives; ending it                   |
| what it reads of `model_provider` and `cli_args`     | `_Provider` stands in for mlx_lm's, which loads any name |
| the fields of `GenerationArguments` and its parts, of `CompletionRequest` | made here                           |
| `LRUPromptCache.fetch_nearest_cache`                 | overridden: an exact hit leaves no token to run, and     |
|                                                      | the thread dies of that                                  |
| `utils.load`, `tuner.utils.load_adapters`            | loading                                                  |

The stock server also hands its own stop words, tool parser and `<think>` machine to each request; they live in its
HTTP handler, not in the engine, so the text that arrives here is whole.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load as load_with_mlx_lm

from punie_mlx import hardware, identity, weights
from punie_mlx.errors import ModelError, ServerError

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 32768  # for the few configs that name none
POLL = 1.0  # seconds between looks at whether the engine's thread lives, while nothing arrives


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest; `top_k` 0, `top_p` 1 and `min_p` 0 restrict nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Limits:
    """How much runs at once, and how much may wait."""

    requests: int = 128  # running and waiting; one more is refused
    decode_batch: int = 32
    prefill_batch: int = 8
    prefill_step: int = 2048
    cached_prompts: int = 10


@dataclass(frozen=True)
class Piece:
    """Some generated text; `finish` is "stop" or "length" on the last one."""

    text: str
    finish: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    network: Any
    tokenizer: Any
    config: dict[str, Any]
    context: int  # tokens of prompt and answer together
    vocabulary: int  # width of the logits

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template


class EngineBusyError(ServerError):
    """As many requests run and wait as may."""


# ---- loading ----


def load(model: Path, adapter: Path | None = None) -> Loaded:
    """Load `model`, with `adapter` laid over it; in float32 where MLX computes on the CPU. Raises `ModelError`."""
    model = Path(model)
    identity.model_files(model)
    if adapter is not None:
        identity.check_adapter(model, Path(adapter))
    try:
        loaded: Any = load_with_mlx_lm(str(model), return_config=True)  # three values with return_config
        network, tokenizer, config = loaded
    except Exception as e:
        raise ModelError(f"the model {model} cannot be loaded: {e}") from e
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer of {model} has no chat template: add chat_template.jinja to the directory")
    if adapter is not None:
        try:
            network = load_adapters(network, str(adapter))
        except Exception as e:
            raise ModelError(f"the adapter {adapter} does not fit the model {model}: {e}") from e
    network.eval()
    if hardware.on_cpu():
        mx.disable_compile()  # on a CPU MLX runs a C++ compiler for each kernel, seconds at every start
        weights.compute_in_float32(network)
    mx.eval(network.parameters())
    text_config = {**config, **config.get("text_config", {})}
    context = text_config.get("max_position_embeddings") or DEFAULT_CONTEXT
    return Loaded(network, tokenizer, config, context, text_config.get("vocab_size") or len(tokenizer.get_vocab()))


# ---- mlx_lm's side, on its thread ----


class _Provider:
    """What `ResponseGenerator` wants of a model provider, for exactly one model. Loads in the engine's thread, since
    MLX arrays belong to the thread that made them."""

    def __init__(self, model: Path, adapter: Path | None, limits: Limits) -> None:
        self._source = (model, adapter)
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.loaded: Loaded | None = None
        self.model_key = (str(model), str(adapter), None)
        self.model: Any = None
        self.tokenizer: Any = None
        self.processor = None  # of images
        self.draft_model = None
        self.is_batchable = False
        self.cli_args = SimpleNamespace(
            decode_concurrency=limits.decode_batch,
            prompt_concurrency=limits.prefill_batch,
            prefill_step_size=limits.prefill_step,
            prompt_cache_bytes=None,
            kv_bits=None,
            kv_group_size=64,
            quantized_kv_start=0,
            chat_template_args={},
        )

    def load_default(self) -> None:
        try:
            loaded = load(*self._source)
            self.model, self.tokenizer, self.loaded = loaded.network, loaded.tokenizer, loaded
            self.is_batchable = all(hasattr(c, "merge") for c in server.make_prompt_cache(self.model))
        except Exception as e:  # the waiting main thread raises it
            self.error = e
        finally:
            self.ready.set()

    def load(self, model: Any, adapter: Any = None, draft: Any = None) -> tuple[Any, Any]:
        return self.model, self.tokenizer  # whatever the name: no request can load anything

    def reset(self) -> None:
        self.model = self.tokenizer = self.loaded = None


class _PromptCache(server.LRUPromptCache):
    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if not rest:  # leave the last token to be run
            cache, rest = super().fetch_nearest_cache(model, tokens[:-1])
            rest = [*rest, tokens[-1]]
        return cache, rest


@dataclass
class _Request(server.CompletionRequest):
    tokens: list[int] = field(default_factory=list)


class _Generator(server.ResponseGenerator):
    def _run_generate(self) -> None:
        try:
            super()._run_generate()
        finally:
            mx.clear_streams()  # MLX's own threads end with this one; else they may abort the process at its exit

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> tuple[list[int], list, list[str], str, None]:
        # One segment: all prefixes of a cached sequence can be reused where caches can be trimmed.
        return list(request.tokens), [list(request.tokens)], ["assistant"], "normal", None


_MODEL = server.ModelDescription("default_model", "default_model", "")  # names that `_Provider` does not look at


def _arguments(sampling: Sampling, max_tokens: int) -> server.GenerationArguments:
    return server.GenerationArguments(
        model=_MODEL,
        sampling=server.SamplingArguments(
            sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, xtc_probability=0.0, xtc_threshold=0.0
        ),
        logits=server.LogitsProcessorArguments(None, 0.0, 20, 0.0, 20, 0.0, 20),
        stop_words=[],  # found in the text by `stops.py`: as tokens they would miss other spellings
        max_tokens=max_tokens,
        num_draft_tokens=0,
        logprobs=False,
        top_logprobs=-1,
        seed=sampling.seed,
        chat_template_kwargs=None,
    )


# ---- our side, on the event loop ----


class Generation:
    """One request at the engine: iterate it for its pieces. Use it as a context manager, so that it always ends."""

    def __init__(self, engine: Engine, prompt: Sequence[int]) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._context: Any = None
        self._cancelled = False
        self.prompt_tokens = len(prompt)
        self.completion_tokens = 0

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prompt cache spared."""
        return max(self._context.prompt_cache_count, 0) if self._context is not None else 0

    def put(self, item: Any) -> None:
        """Called by the engine's thread; it must not raise, or that thread dies."""
        if isinstance(item, server.GenerationContext):
            self._context = item
            if self._cancelled:
                item.stop()
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody waits for it any more
            self._cancelled = True
            if self._context is not None:
                self._context.stop()

    def cancel(self) -> None:
        """Give the slot back; a request that still waits is dropped when its turn comes."""
        self._cancelled = True
        if self._context is not None:
            self._context.stop()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()
        self._engine._running.discard(self)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces up to the one with `finish`. Raises `ServerError` where the engine fails or stops before."""
        while True:
            item = await self._next()
            if isinstance(item, server.Response):
                self.completion_tokens += 1
                yield Piece(item.text, item.finish_reason)
                if item.finish_reason is not None:
                    return
            elif isinstance(item, Exception):
                raise ServerError(f"the engine could not serve this request: {item}") from item
            elif item is None:
                raise ServerError("the answer was cut off: the server is stopping")

    async def _next(self) -> Any:
        while True:
            try:
                return await asyncio.wait_for(self._queue.get(), POLL)
            except TimeoutError:
                if not self._engine.alive:
                    raise ServerError("the engine's thread died: restart the server (its log says why)") from None


class Engine:
    """A loaded model and its thread. `Engine.start` blocks until the model is in memory."""

    def __init__(self, model: Path, adapter: Path | None, limits: Limits) -> None:
        self.limits = limits
        self._provider = _Provider(Path(model), adapter, limits)
        self._running: set[Generation] = set()
        provider: Any = self._provider  # not a ModelProvider, but all that is read of one (pinned)
        self._generator = _Generator(provider, _PromptCache(limits.cached_prompts))

    @classmethod
    def start(cls, model: Path, adapter: Path | None = None, limits: Limits = Limits()) -> Engine:
        """Load and start. Raises `ModelError`; the thread is gone then."""
        engine = cls(model, adapter, limits)
        try:
            engine._provider.ready.wait()
            if engine._provider.error is not None:
                raise engine._provider.error
        except BaseException:  # a signal too: the thread would keep the process alive
            engine.stop()
            raise
        return engine

    @property
    def loaded(self) -> Loaded:
        if self._provider.loaded is None:
            raise ServerError("the engine is stopped")
        return self._provider.loaded

    @property
    def alive(self) -> bool:
        """Whether the thread lives and can take requests."""
        return self._generator.generation_available() and not self._generator._stop

    @property
    def running(self) -> int:
        """Requests that run or wait."""
        return len(self._running)

    def generate(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> Generation:
        """Queue a request and return at once. Raises `EngineBusyError`, or `ServerError` where the thread is dead.

        What would kill the thread is refused here, whoever calls: each is an error of the caller.
        """
        vocabulary = self.loaded.vocabulary
        if not prompt or max_tokens < 1 or min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"a prompt needs tokens below {vocabulary}, and max_tokens at least 1")
        if not 0 <= sampling.top_k < vocabulary or not 0 <= sampling.min_p <= 1 or sampling.temperature < 0:
            raise ValueError(f"out of range: {sampling}")
        if not self.alive:
            raise ServerError("the engine's thread died: restart the server (its log says why)")
        if len(self._running) >= self.limits.requests:
            raise EngineBusyError(f"{len(self._running)} requests are running or waiting: try again later")
        generation = Generation(self, prompt)
        self._running.add(generation)
        request = _Request("chat", "", messages=[], tools=None, role_mapping=None, tokens=list(prompt))
        self._generator.requests.put((generation, request, _arguments(sampling, max_tokens)))
        return generation

    def cut_off(self) -> None:
        """End all that runs and waits: each gets an error."""
        for generation in list(self._running):
            generation.cancel()
            generation.put(None)

    def stop(self) -> None:
        """Cut off what runs, and end the thread."""
        self.cut_off()
        self._generator.stop_and_join()
