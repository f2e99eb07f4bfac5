"""The engine: one model on mlx_lm's batching `ResponseGenerator`, driven from asyncio and kept alive.

Prompts go in as tokens, text comes out in pieces. The engine knows nothing of messages, tools, calls or HTTP; and no
other module touches `mlx_lm.server`. What we hold of it that is private, or has changed between releases (each line
is pinned by `tests/contracts/test_mlx_lm_engine.py`; `loading.py` and `prompt_cache.py` have tables of their own):

| touch point                                          | why                                                      |
|------------------------------------------------------|----------------------------------------------------------|
| `ResponseGenerator(provider, prompt_cache)`          | starts the thread that loads, batches and generates      |
| `.requests.put((queue, request, args))`              | the way in; the engine only ever calls `queue.put(x)`    |
| puts `GenerationContext`, `Response`, progress, exceptions, `None` | the way out                                |
| `._run_generate`                                     | overridden: supervises `_generate`, and ends MLX's       |
|                                                      | streams with the thread, or their own threads may abort  |
|                                                      | the process at its exit                                  |
| `._generate`                                         | all its state is local, so it can be called again; it    |
|                                                      | calls `load_default` first and `reset` last              |
| `._next_request`                                     | overridden: requests wait here, not in the batch         |
| `._tokenize`, which returns 5 values                 | overridden: prompts are rendered and encoded outside     |
| `._is_batchable`                                     | overridden: stock serves seeded requests alone           |
| `._serve_single`                                     | overridden: a prefill can be cancelled                   |
| `._time_budget`                                      | replaced: stock looks for news only twice a second       |
| `._log_cache_stats`                                  | overridden: a line for each request is no news           |
| `._stop`, `.prompt_cache`, `.generation_available()`, `.stop_and_join()` | life and end of the thread           |
| `GenerationContext.stop()`, `.prompt_cache_count`    | cancels a request; tokens that the prompt cache spared   |
| `Response.text`, `.token`, `.logprob`, `.finish_reason`, `.top_tokens` | raw text: all control tokens are in it   |
|                                                      | but the end token                                        |
| what it reads of `model_provider` and `cli_args`     | `Provider` stands in for mlx_lm's, which loads any name  |
| the fields of `GenerationArguments` and its parts, of `CompletionRequest` | made here                           |
| `_make_sampler(args, tokenizer)`, `_make_logits_processors(args)` | replaced for our arguments: `sampling.py`   |
| `generate.speculative_generate_step(prompt, model, draft_model, stream, **settings)` | ours where the draft       |
|                                                      | "model" is a `PromptLookup`; `stream_generate` calls it  |
| `BatchGenerator.next`, `.insert_segments`, `.remove` | overridden: `_Batch` drops what was cancelled, and spares |
|                                                      | log-probabilities that nobody asked for                  |

The stock server also hands its own stop words, tool parser and `<think>` machine to each request; they live in its
HTTP handler, not in the engine, so the text that arrives here is whole.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.generate import PromptProcessingBatch

from punie_mlx.errors import ServerError
from punie_mlx.serve import lookup
from punie_mlx.serve.generation import EngineBusyError, EngineStats, Generation, Limits, Piece, Sampling, Waker
from punie_mlx.serve.loading import DEFAULT_LIMITS, Loaded, Provider, load
from punie_mlx.serve.prompt_cache import PromptCache
from punie_mlx.serve.sampling import Processor, Samplers, check, processors

__all__ = ["Engine", "EngineBusyError", "EngineStats", "Generation", "Limits", "Loaded", "Piece", "Sampling", "load"]

log = logging.getLogger(__name__)

DEATHS = 5  # so many in a row, without one finished answer, and the engine gives up
DRAFT_TOKENS = 3


# ---- mlx_lm's side, on its thread ----


@dataclass(eq=False)
class _Job:
    """A request of ours inside mlx_lm."""

    generation: Generation
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    vocabulary: int
    processor: Processor | None
    top_logprobs: int
    generator: _Generator
    taken: bool = False  # out of the queue
    prefilling: bool = True
    skeletons: Sequence[int] = ()  # what may follow and stands in no prompt, for `lookup.py`
    retried: bool = False  # the engine died once while this was about to start
    context: Any = None

    def put(self, item: Any) -> None:
        """What mlx_lm has to say of it. This must not raise, or the engine's thread dies."""
        generation = self.generation
        if isinstance(item, server.Response):
            if generation.first is None:  # a request that is served alone knows it only now
                generation.cached_tokens = max(self.context.prompt_cache_count, 0)
            generation.add(_piece(item))
            if item.finish_reason is not None:
                self.generator.deaths = 0
        elif isinstance(item, server.GenerationContext):
            self.context = item
            self.generator.inside.add(self)
            generation.start(max(item.prompt_cache_count, 0))
        elif isinstance(item, tuple):
            generation.progress = generation.progress if generation.cancelled else item
        else:
            self.leave()
            if item is not None:
                generation.fail(item)
        if generation.cancelled and self.context is not None:
            self.context.stop()

    def leave(self) -> None:
        self.generator.inside.discard(self)


def _piece(response: server.Response) -> Piece:
    token = None if response.finish_reason == "stop" else response.token
    if len(response.top_tokens) == 0:
        return Piece(response.text, token, response.finish_reason, response.logprob)
    top = sorted(((t["id"], t["logprob"]) for t in response.top_tokens), key=lambda t: -t[1])
    return Piece(response.text, token, response.finish_reason, response.logprob, tuple(top))


class _Prefill:
    """The queue of a request that is served alone: a cancelled one ends in its prefill, where stock does not look."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def put(self, item: Any) -> None:
        self._job.put(item)
        if isinstance(item, tuple) and self._job.generation.cancelled:
            raise _CancelledError


class _CancelledError(Exception):
    pass


@dataclass
class _Arguments(server.GenerationArguments):
    job: _Job


class _Segments(list):
    def __init__(self, job: _Job) -> None:
        super().__init__([list(job.tokens)])  # one is enough where caches can be trimmed: any prefix is found
        self.job = job


class _Turn:
    """Steps of the batch, until there is something to do between two of them."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._stepped = False

    def __iter__(self) -> Iterator[None]:
        self._stepped = False
        return self

    def __next__(self) -> None:
        if self._stepped and self._generator.has_news():
            raise StopIteration
        self._stepped = True


class _Generator(server.ResponseGenerator):
    def __init__(self, provider: Any, limits: Limits, open_: dict[Generation, _Job]) -> None:
        self._limits = limits
        self.open = open_
        self.inside: set[_Job] = set()  # prefilling or generating
        self.samplers = Samplers()
        self.restarts = 0
        self.deaths = 0  # since the last finished answer
        cache: Any = PromptCache(limits.cached_prompts, provider.cli_args)  # has what is called of stock's
        super().__init__(provider, cache)
        self._time_budget: Any = _Turn(self)

    # -- life --

    def _run_generate(self) -> None:
        try:
            while not self._stop and self.deaths < DEATHS:
                try:
                    self._generate()
                except Exception as e:
                    self._died(e)
        finally:
            self._generation_failed = True
            for generation in list(self.open):
                generation.fail(ServerError("the engine's thread died: restart the server (its log says why)"))
            self.model_provider.reset()
            self.prompt_cache = self.samplers = None
            gc.collect()
            mx.clear_streams()  # MLX's own threads end with this one; else they may abort the process at its exit

    def _died(self, error: Exception) -> None:
        """Fail what had begun; what had not is put again, once, to be served alone: it may be the culprit."""
        log.exception("the engine failed; it starts again")
        traceback.clear_frames(error.__traceback__)  # they hold the batch
        self.deaths += 1
        self.restarts += 1
        self.inside.clear()
        self.prompt_cache = self._fresh_cache()
        for generation, job in list(self.open.items()):
            if not job.taken:
                continue
            if generation.progress is None and generation.first is None and not job.retried:
                job.retried, job.taken, job.context = True, False, None
                self.put(job)
            else:
                generation.fail(error)
        gc.collect()
        mx.clear_cache()

    def _fresh_cache(self) -> PromptCache:
        return PromptCache(self._limits.cached_prompts, self.cli_args)

    # -- the way in --

    def put(self, job: _Job) -> None:
        request = server.CompletionRequest("chat", "", messages=[], tools=None, role_mapping=None)
        self.requests.put((job, request, _arguments(job)))

    def has_news(self) -> bool:
        """Whether something waits to come in, or to go."""
        if self._stop or any(job.generation.cancelled for job in self.inside):
            return True
        return not self.requests.empty() and self._has_room()

    def _has_room(self) -> bool:
        prefilling = sum(job.prefilling for job in self.inside)
        return len(self.inside) < self._limits.decode_batch and prefilling < self._limits.prefill_batch

    def _next_request(self, timeout: float | None = None) -> Any:
        while self._has_room():
            request = super()._next_request(timeout)
            if request is None:
                break
            request[0].taken = True
            if not request[0].generation.cancelled:
                return request
        return None

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> tuple[list[int], list, list[str], str, None]:
        if args.job.generation.cancelled:
            raise _CancelledError
        return list(args.job.tokens), _Segments(args.job), ["assistant"], "normal", None

    def _is_batchable(self, args: Any) -> bool:
        return self.model_provider.is_batchable and self.cli_args.kv_bits is None and not args.job.retried

    def _serve_single(self, request: Any, stream: Any) -> None:
        job, *rest = request
        queue = _Prefill(job)
        if isinstance(drafter := self.model_provider.draft_model, lookup.PromptLookup):
            drafter.context = job.generation.guesses = lookup.Context(job.tokens, job.skeletons)
            drafter.progress = lambda done, total: queue.put((done, total))
        super()._serve_single((queue, *rest), stream)

    def _log_cache_stats(self) -> None:
        pass


class _Batch(server.BatchGenerator):
    """A batch that gives up what was cancelled wherever it is, and spares log-probabilities that nobody asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[int, _Job] = {}

    def insert_segments(self, segments: Any, *args: Any, **kwargs: Any) -> list[int]:
        uids = super().insert_segments(segments, *args, **kwargs)
        self._jobs.update(zip(uids, (s.job for s in segments), strict=True))
        return uids

    def next(self) -> tuple[list[Any], list[Any]]:
        gone = [uid for uid, job in self._jobs.items() if job.generation.cancelled]
        if gone:  # no step: a word from them, so that the loop looks at them, and removes them
            return [PromptProcessingBatch.Response(uid, (0, 0), False, False) for uid in gone], []
        began = time.monotonic()
        prompts, generated = super().next()
        took = time.monotonic() - began
        for response in prompts:
            self._jobs[response.uid].prefilling &= not response.end_of_prompt
        for response in generated:
            job = self._jobs[response.uid] if response.finish_reason is None else self._jobs.pop(response.uid)
            if job.generation.first is not None:
                job.generation.step_seconds += took
            if job.top_logprobs < 0:
                response.logprobs = _UNWANTED
        return prompts, generated

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> Any:
        for uid in uids:
            if (job := self._jobs.pop(uid, None)) is not None:
                job.leave()
        return super().remove(uids, return_prompt_caches)


class _Unwanted:
    """Log-probabilities that cost nothing."""

    def __getitem__(self, token: int) -> _Unwanted:
        return self

    def item(self) -> float:
        return 0.0


_UNWANTED = _Unwanted()
_MODEL = server.ModelDescription("default_model", "default_model", "")  # names that `Provider` does not look at


def _arguments(job: _Job) -> _Arguments:
    return _Arguments(
        job=job,
        model=_MODEL,
        # How tokens are drawn is in the job; these are there because stock has them.
        sampling=server.SamplingArguments(0.0, 1.0, 0, 0.0, xtc_probability=0.0, xtc_threshold=0.0),
        logits=server.LogitsProcessorArguments(None, 0.0, 20, 0.0, 20, 0.0, 20),
        stop_words=[],  # found in the text by `stops.py`: as tokens they would miss other spellings
        max_tokens=job.max_tokens,
        num_draft_tokens=DRAFT_TOKENS,
        logprobs=job.top_logprobs >= 0,
        top_logprobs=job.top_logprobs,
        seed=None,
        chat_template_kwargs=None,
    )


def _make_sampler(args: Any, tokenizer: Any) -> Any:
    return args.job.generator.samplers.get(args.job.sampling)


def _make_logits_processors(args: Any) -> list[Processor]:
    job: _Job = args.job
    return processors(job.sampling, job.tokens, job.vocabulary, job.processor, job.generation.fail)


# `_generate` finds these by name in its module.
for _ours in (_make_sampler, _make_logits_processors):
    setattr(server, _ours.__name__, _ours)
setattr(server, "BatchGenerator", _Batch)  # noqa: B010


_generate = import_module("mlx_lm.generate")  # by its name in the package it is a function
_stock_steps = _generate.speculative_generate_step


def _speculative_steps(prompt: mx.array, model: Any, draft_model: Any, *args: Any, **settings: Any) -> Any:
    ours = isinstance(draft_model, lookup.PromptLookup)
    return (lookup.steps if ours else _stock_steps)(prompt, model, draft_model, *args, **settings)


setattr(_generate, "speculative_generate_step", _speculative_steps)  # noqa: B010


# ---- our side, on the event loop ----


class Engine:
    """A loaded model and its thread. `Engine.start` blocks until the model is in memory."""

    def __init__(self, provider: Provider, limits: Limits) -> None:
        self.limits = limits
        self._provider = provider
        self._open: dict[Generation, _Job] = {}
        self._wakers: dict[asyncio.AbstractEventLoop, Waker] = {}
        self._generator = _Generator(provider, limits, self._open)

    @classmethod
    def start(
        cls,
        model: Path,
        adapter: Path | None = None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        draft: Path | None = None,
        chat_template: str | None = None,
    ) -> Engine:
        """Load and start. Raises `ModelError` or `ConfigError`; the thread is gone then."""
        engine = cls(Provider(Path(model), adapter, limits, draft, chat_template), limits)
        try:
            engine._provider.ready.wait()
            if engine._provider.error is not None:
                raise engine._provider.error
        except BaseException:  # a signal too: the thread would keep the process alive
            engine.stop()
            raise
        if not engine._provider.is_batchable or limits.kv_bits is not None:
            log.warning(
                "requests are served one at a time: guessing ahead, a quantized or an unmergeable KV cache asks it"
            )
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
    def constrainable(self) -> bool:
        """Whether a processor may be given: no mask can follow a draft model, whose tokens are taken back."""
        return self._provider.draft is None

    @property
    def guesses(self) -> bool:
        """Whether `skeletons` are of use."""
        return self.limits.lookup

    @property
    def running(self) -> int:
        """Requests that run or wait."""
        return len(self._open)

    def stats(self) -> EngineStats:
        """What it does now, and what has happened to it."""
        generations = list(self._open)
        running = sum(g.started is not None for g in generations)
        cache = self._generator.prompt_cache
        return EngineStats(
            running=running,
            waiting=len(generations) - running,
            restarts=self._generator.restarts,
            reloads=self._provider.reloads,
            cached_prompts=0 if cache is None else len(cache),
            cached_bytes=0 if cache is None else cache.nbytes,
        )

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        *,
        processor: Processor | None = None,
        top_logprobs: int = -1,
        skeletons: Sequence[int] = (),
    ) -> Generation:
        """Queue a request and return at once. Raises `EngineBusyError`, or `ServerError` where the thread is dead.

        `processor` changes the logits of each step; from `top_logprobs` 0 on, pieces have log-probabilities;
        `skeletons` (see `lookup.py`) help to guess. What would kill the thread is refused here, whoever calls: each is
        an error of the caller.
        """
        vocabulary = self.loaded.vocabulary
        if not prompt or max_tokens < 1 or min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"a prompt needs tokens below {vocabulary}, and max_tokens at least 1")
        if top_logprobs >= vocabulary:
            raise ValueError(f"out of range for a vocabulary of {vocabulary}: top_logprobs {top_logprobs}")
        if processor is not None and not self.constrainable:
            raise ValueError("no processor can be used with a draft model")
        check(sampling, vocabulary)
        if len(self._open) >= self.limits.requests:
            raise EngineBusyError(f"{len(self._open)} requests are running or waiting: try again later")
        generation = Generation(len(prompt), self._waker(), self._open)
        job = _Job(generation, list(prompt), sampling, max_tokens, vocabulary, processor, top_logprobs, self._generator)
        job.skeletons = skeletons
        self._open[generation] = job
        self._generator.put(job)
        if not self.alive:  # looked at last: a thread that dies after this fails all that is open
            self._open.pop(generation)
            raise ServerError("the engine's thread died: restart the server (its log says why)")
        return generation

    def _waker(self) -> Waker:
        loop = asyncio.get_running_loop()
        if loop not in self._wakers:
            self._wakers = {known: waker for known, waker in self._wakers.items() if not known.is_closed()}
            self._wakers[loop] = Waker(loop)
        return self._wakers[loop]

    def cut_off(self) -> None:
        """End all that runs and waits: each gets an error."""
        for generation in list(self._open):
            generation.fail(ServerError("the answer was cut off: the server is stopping"))

    def stop(self) -> None:
        """Cut off what runs, and end the thread."""
        self.cut_off()
        self._generator.stop_and_join()
