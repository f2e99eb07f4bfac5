"""What is asked of the engine, and the asyncio side of one answer: the engine's thread adds, a coroutine iterates."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from punie_mlx.errors import ServerError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Temperature 0 takes the likeliest; `top_k` 0, `top_p` 1 and `min_p` 0 restrict nothing. The presence and frequency
    penalties count generated tokens, as OpenAI's do; the repetition penalty looks at the prompt too, as elsewhere.
    logit_bias: (token, what is added to its logit).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Limits:
    """How much runs at once, how much may wait, and what the caches may hold.

    prompt_cache_bytes: KV caches of past and running requests together; None: a quarter of the memory that the model
    leaves. context: tokens of prompt and answer together, where less than the model's own. kv_bits: quantizes the KV
    cache; lookup: guesses tokens from the prompt; with either, requests are served one at a time.
    """

    requests: int = 128  # running and waiting; one more is refused
    decode_batch: int = 32
    prefill_batch: int = 8
    prefill_step: int = 2048
    cached_prompts: int = 64
    prompt_cache_bytes: int | None = None
    context: int | None = None
    kv_bits: int | None = None
    lookup: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A generated token and the text that it completes, which may be none yet.

    `token` is None for the end token, whose text is what was left. `finish` is "stop" or "length" on the last piece.
    `top`: the likeliest (token, log-probability), best first; it and `logprob` are there where they were asked for.
    """

    text: str
    token: int | None
    finish: str | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """What the engine does, and how often it had to be started again."""

    running: int
    waiting: int
    restarts: int
    reloads: int
    cached_prompts: int
    cached_bytes: int


class EngineBusyError(ServerError):
    """As many requests run and wait as may."""


class Waker:
    """Wakes the generations of one event loop, with one call into it for all that came since the last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Generation] = deque()
        self._scheduled = False

    def wake(self, generation: Generation) -> None:
        """Called by the engine's thread."""
        self._ready.append(generation)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits for it any more
                self._scheduled = False
                generation.cancel()

    def _deliver(self) -> None:
        self._scheduled = False  # before the first look, so that nothing that comes later is missed
        while self._ready:
            self._ready.popleft()._wake()


class Guesses(Protocol):
    """How many tokens were guessed ahead, and how many of them the model took."""

    guessed: int
    accepted: int


class Generation:
    """One request at the engine: iterate it for its pieces. Use it as a context manager, so that it always ends."""

    def __init__(self, prompt_tokens: int, waker: Waker, open_: MutableMapping[Generation, Any]) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0  # of the pieces that were taken
        self.cached_tokens = 0  # prompt tokens that the prompt cache spared
        self.guesses: Guesses | None = None  # where tokens are guessed ahead
        self.progress: tuple[int, int] | None = None  # prefilled tokens, of how many
        self.created = time.monotonic()
        self.started: float | None = None  # when it left the queue
        self.first: float | None = None  # when its first token came
        self.step_seconds = 0.0  # of the batch's steps since then
        self.cancelled = False
        self._waker = waker
        self._open = open_  # all that the engine has taken and that are not closed
        self._items: deque[Piece | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """Give the slot back; a request that still waits is dropped."""
        self.cancelled = True

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()
        self._open.pop(self, None)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """All pieces since the last look, up to the one with `finish`. Raises `ServerError` where the engine fails."""
        finished = False
        while not finished:
            await self._any()
            pieces, error = [], None
            while self._items and error is None:
                item = self._items.popleft()
                if isinstance(item, Piece):
                    pieces.append(item)
                    finished = item.finish is not None
                else:
                    error = item
            if pieces:
                self.completion_tokens += len(pieces)
                yield pieces
            if error is not None and not finished:
                raise (
                    error
                    if isinstance(error, ServerError)
                    else ServerError(f"the engine could not serve this request: {error}")
                ) from error

    async def _any(self) -> None:
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- called by the engine's thread; none of these may raise ----

    def start(self, cached_tokens: int) -> None:
        self.started = self.started or time.monotonic()
        self.cached_tokens = cached_tokens

    def add(self, piece: Piece) -> None:
        if self.first is None:
            self.first = time.monotonic()
        self._put(piece)

    def fail(self, error: Exception) -> None:
        """End it with `error`."""
        self._put(error)
        self.cancel()

    def _put(self, item: Piece | Exception) -> None:
        self._items.append(item)
        if len(self._items) == 1:  # else it is awake already, or about to be
            self._waker.wake(self)
