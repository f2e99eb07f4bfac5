"""From the engine to the client: the choices of one request, as one object or as server-sent events.

However a request ends (answered, failed, too slow, its client gone), the engine's slots are given back before the last
word is sent, and a stream ends with `[DONE]` wherever somebody may still hear it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from punie_mlx.errors import PunieError
from punie_mlx.serve import errors
from punie_mlx.serve.constrain import Mask
from punie_mlx.serve.errors import ApiError
from punie_mlx.serve.generation import Generation, Piece
from punie_mlx.serve.metrics import Metrics
from punie_mlx.serve.settings import ChatSettings
from punie_mlx.serve.stops import StopStrings
from punie_mlx.toolcalls.calls import dumps

if TYPE_CHECKING:
    from punie_mlx.serve.trace import Trace

log = logging.getLogger(__name__)

Delta = dict[str, Any]
T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
LAST_WORD_SECONDS = 5.0  # for a client that does not read to take the end of its stream
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Reader(Protocol):
    """Makes deltas of generated text."""

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Delta]: ...

    def finish(self, reason: str) -> list[Delta]: ...

    def finish_reason(self, reason: str) -> str: ...


class Choice:
    """One of a request's answers, on its way.

    `control`: ids of tokens whose text may be that of others, too. `mask`: what holds it, where anything does.
    """

    def __init__(
        self,
        index: int,
        generation: Generation,
        reader: Reader,
        stops: Sequence[str],
        control: Collection[int] = (),
        mask: Mask | None = None,
    ) -> None:
        self.index = index
        self.generation = generation
        self.reader = reader
        self.mask = mask
        self.finish_reason: str | None = None
        self._stops = StopStrings(stops) if stops else None
        self._control = frozenset(control)
        self._plain = True  # no control token may still wait for its text

    async def steps(self) -> AsyncIterator[tuple[list[Delta], Sequence[Piece]]]:
        """What the answer grows by, and the pieces that it comes from. Raises `ServerError`."""
        reason = None
        async for pieces in self.generation:
            deltas, pieces = self._take(pieces)
            stopped = self._stops is not None and self._stops.found
            if stopped:
                self.generation.cancel()
            reason = "stop" if stopped else pieces[-1].finish
            if reason is not None:
                deltas += self._end(reason)
            yield merged(deltas), pieces
            if reason is not None:
                break

    def _take(self, pieces: list[Piece]) -> tuple[list[Delta], Sequence[Piece]]:
        plain = self._control.isdisjoint([p.token for p in pieces])
        together = plain and self._plain and self._stops is None
        self._plain = plain
        if together:  # one text: the reader is asked once, however many tokens came
            return self.reader.feed("".join([p.text for p in pieces])), pieces
        deltas: list[Delta] = []
        for i, piece in enumerate(pieces):
            text = piece.text if self._stops is None else self._stops.feed(piece.text)
            deltas += self.reader.feed(text, () if piece.token is None else (piece.token,))
            if self._stops is not None and self._stops.found:
                return deltas, pieces[: i + 1]
        return deltas, pieces

    def _end(self, reason: str) -> list[Delta]:
        rest = self._stops.finish() if self._stops is not None else ""
        stopped = self._stops is not None and self._stops.found
        deltas = [*self.reader.feed(rest), *self.reader.finish("cut" if stopped else reason)]
        self.finish_reason = self.reader.finish_reason(reason)
        return deltas


def merged(deltas: list[Delta]) -> list[Delta]:
    """The same in fewer: neighbours that continue the same text or the same arguments become one."""
    out: list[Delta] = []
    for delta in deltas:
        if not (out and _continued(out[-1], delta)):
            out.append(delta)
    return out


def _continued(last: Delta, more: Delta) -> bool:
    """Whether `last` could take `more` in."""
    if len(last) != 1 or last.keys() != more.keys():
        return False
    (key,) = last
    if key != "tool_calls":
        last[key] += more[key]
        return True
    (a,), (b,) = last[key], more[key]
    if a["index"] != b["index"] or "id" in b:
        return False
    a["function"]["arguments"] = a["function"].get("arguments", "") + b["function"]["arguments"]
    return True


class Shape(Protocol):
    """How the objects of an endpoint look."""

    def head(self, streamed: bool) -> dict[str, Any]:
        """What every object of the answer begins with."""
        ...

    def whole(self, choice: Choice, deltas: list[Delta], pieces: list[Piece]) -> dict[str, Any]:
        """A finished choice."""
        ...

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The choice in its first chunk, where that says anything."""
        ...

    def part(self, choice: Choice, delta: Delta, pieces: Sequence[Piece]) -> str:
        """The choice in a chunk with `delta`, as JSON."""
        ...

    def closing(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice in its last chunk."""
        ...

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]: ...


class Delivery:
    """One request under way. Use it as a context manager: what it holds of the engine ends with it."""

    def __init__(
        self, choices: Sequence[Choice], shape: Shape, settings: ChatSettings, metrics: Metrics, trace: Trace
    ) -> None:
        self.choices = choices
        self.settings = settings
        self._trace = trace
        self._shape = shape
        self._metrics = metrics
        self._open = True
        self.outcome = "cancelled"  # of choices that come to no end of their own

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine's slots back."""
        if self._open:
            self._open = False
            self._trace.generated(self.choices)
            for choice in self.choices:
                with choice.generation:
                    pass
                self._metrics.finished(choice.generation, choice.finish_reason or self.outcome)

    async def whole(self) -> Response:
        """The answer as one object. Raises `ApiError`."""
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                found = await together([self._collected(c) for c in self.choices])
        except TimeoutError:
            self.outcome = "timeout"
            raise ApiError(503, self._too_slow(), code="request_timeout") from None
        except PunieError as e:
            self.outcome = "error"
            raise ApiError(500, str(e), code="engine_failed") from e
        self._responds()
        whole = {**self._shape.head(False), "choices": found, "usage": self._shape.usage(self.choices)}
        return Response(self._trace.sealed(dumps(whole)).encode(), media_type="application/json")

    def _responds(self) -> None:
        self._trace.generated(self.choices)
        self._trace.enter("respond")

    async def _collected(self, choice: Choice) -> dict[str, Any]:
        deltas: list[Delta] = []
        pieces: list[Piece] = []
        async for some, from_pieces in choice.steps():
            deltas += some
            pieces += from_pieces
        return self._shape.whole(choice, deltas, pieces)

    async def chunks(self, send: Callable[[bytes], Awaitable[None]], with_usage: bool) -> None:
        """Send the answer as events, all but the end of the stream. Raises as the engine does."""
        usage = ',"usage":null' if with_usage else ""
        before = f'data: {dumps(self._shape.head(True))[:-1]},"choices":['
        after = f"]{usage}}}\n\n"
        await together([self._streamed(c, send, before, after) for c in self.choices])
        self._responds()
        if with_usage:
            await send(f'{before}],"usage":{dumps(self._shape.usage(self.choices))}}}\n\n'.encode())
        if self._trace.shown:
            await send(self._trace.sealed(f"{before}{after.rstrip()}").encode() + b"\n\n")

    async def _streamed(
        self, choice: Choice, send: Callable[[bytes], Awaitable[None]], before: str, after: str
    ) -> None:
        shape, waiting = self._shape, list[Piece]()  # of text that is held back
        opening = shape.opening(choice)
        if opening is not None:
            await send(f"{before}{dumps(opening)}{after}".encode())
        async for deltas, pieces in choice.steps():
            waiting += pieces
            events = []
            for delta in deltas:
                events.append(f"{before}{shape.part(choice, delta, waiting)}{after}")
                waiting = []
            if choice.finish_reason is not None:
                events.append(f"{before}{dumps(shape.closing(choice, waiting))}{after}")
            if events:
                await send("".join(events).encode())

    def failed(self, error: Exception) -> bytes:
        """The event that ends a stream which came to no good end."""
        if isinstance(error, TimeoutError):
            self.outcome, status, message, code = "timeout", 503, self._too_slow(), "request_timeout"
        elif isinstance(error, PunieError):
            self.outcome, status, message, code = "error", 500, str(error), "engine_failed"
        else:
            log.error("a stream broke", exc_info=error)
            self.outcome, status, message, code = "error", 500, "internal error: the server's log has more", None
        return f"data: {dumps(errors.body(status, message, code=code))}\n\n".encode()

    def _too_slow(self) -> str:
        return f"the answer took more than {self.settings.request_seconds:g} seconds"

    def comment(self) -> bytes:
        """Something to send while there is nothing to say: a comment, which clients skip, on how far it is."""
        generation = self.choices[0].generation
        if generation.first is not None:
            state = "generating"
        elif generation.started is None:
            state = "queued"
        elif generation.progress is not None:
            state = "prompt {}/{}".format(*generation.progress)
        else:
            state = "prompt"
        return f": {state}\n\n".encode()


class EventStream(StreamingResponse):
    """A delivery as server-sent events."""

    def __init__(self, delivery: Delivery, *, with_usage: bool) -> None:
        super().__init__(iter(()), media_type="text/event-stream", headers=_HEADERS)
        self._delivery = delivery
        self._with_usage = with_usage
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._delivery:
            await unless_gone(receive, self.stream_response(send))

    async def stream_response(self, send: Send) -> None:
        async def write(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._sent_at = time.monotonic()

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent_at = time.monotonic()
        alive = asyncio.ensure_future(self._keep_alive(write))
        last = b""
        try:
            async with asyncio.timeout(self._delivery.settings.request_seconds):
                await self._delivery.chunks(write, self._with_usage)
        except Exception as e:
            last = self._delivery.failed(e)
        finally:
            alive.cancel()
        self._delivery.close()
        with suppress(TimeoutError):  # who does not read holds nothing of ours
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": last + DONE, "more_body": False})

    async def _keep_alive(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        seconds = self._delivery.settings.keepalive_seconds
        while True:
            left = self._sent_at + seconds - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await write(self._delivery.comment())


def json_response(value: dict[str, Any]) -> Response:
    return Response(dumps(value).encode(), media_type="application/json")


async def deliver(http: Request, delivery: Delivery, *, stream: bool, with_usage: bool = False) -> Response:
    """The response to `http`. Raises `ApiError`."""
    if stream:
        return EventStream(delivery, with_usage=with_usage)
    with delivery:
        return await unless_gone(http.receive, delivery.whole()) or Response(status_code=499)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None where the client goes away first, which cancels it."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        going.cancel()


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first to fail ends the others."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
