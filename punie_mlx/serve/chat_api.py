"""/v1/chat/completions: a checked request → prompt → generated text → OpenAI's objects."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from punie_mlx.chat import render
from punie_mlx.errors import PunieError
from punie_mlx.serve import errors
from punie_mlx.serve.answer import Answer, Delta, collect
from punie_mlx.serve.engine import Engine, EngineBusyError, Generation, Sampling
from punie_mlx.serve.errors import ApiError, BadRequest
from punie_mlx.serve.request import ChatRequest, parse
from punie_mlx.serve.stops import StopStrings
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import StreamParser
from punie_mlx.toolcalls.wire import Format

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What one request is for the engine, and how its answer is to be read."""

    request: ChatRequest
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    tools: list[Tool]
    in_reasoning: bool  # the prompt has opened the thinking


@dataclass(frozen=True)
class Chat:
    """The chat endpoint of one model: `name` is the only one that it answers to."""

    engine: Engine
    name: str
    fingerprint: str
    wire: Format  # in which the model writes its calls
    # One thread: rendering leaves the event loop free, and tokenizers are not made for two at a time.
    _renderer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "render"))

    async def respond(self, http: Request, body: bytes) -> Response:
        """The response to `body`. Raises `ApiError`."""
        request = parse(body)
        self.check_model(request.model)
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._renderer, self.prepare, request)
        try:
            generation = self.engine.generate(prepared.prompt, prepared.sampling, prepared.max_tokens)
        except EngineBusyError as e:
            raise ApiError(429, str(e), code="queue_full", headers={"Retry-After": "1"}) from e
        except PunieError as e:
            raise ApiError(503, str(e), code="engine_dead") from e
        completion = Completion(self, prepared, generation)
        if request.stream:
            return EventStream(completion)
        with generation:
            return await unless_gone(http, completion.whole())

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"the model {name!r} is not served here: this server has {self.name!r} and loads no other"
            raise ApiError(404, message, "model", "model_not_found")

    def prepare(self, request: ChatRequest) -> Prepared:
        """Render and encode `request`, and see that it fits. Raises `BadRequest`."""
        offered = request.offered()
        if request.tool_choice not in ("auto", "none"):
            log.info("tool_choice narrows what the model is shown; that it calls is not enforced")
        loaded = self.engine.loaded
        messages = [m.for_template() for m in request.messages]
        try:
            text = render.render(loaded.tokenizer, messages, offered, add_generation_prompt=True)
            prompt = render.encode(loaded.tokenizer, text)
        except Exception as e:  # whatever a template or tokenizer makes of a client's text
            raise BadRequest(f"messages: {e}", "messages") from e
        left = loaded.context - len(prompt)
        if not prompt:
            raise BadRequest("messages: the chat template makes an empty prompt of them", "messages")
        if left < 1:
            message = f"messages: the prompt has {len(prompt)} tokens, and the model's context is {loaded.context}"
            raise BadRequest(message, "messages", "context_length_exceeded")
        return Prepared(
            request=request,
            prompt=prompt,
            sampling=request.sampling(loaded.vocabulary),
            max_tokens=min(request.limit or left, left),
            tools=[Tool.from_openai(t) for t in offered],
            in_reasoning=bool(self.wire.think[0]) and text.rstrip().endswith(self.wire.think[0].rstrip()),
        )


class Completion:
    """One request on its way to an answer."""

    def __init__(self, chat: Chat, prepared: Prepared, generation: Generation) -> None:
        self._chat = chat
        self._prepared = prepared
        self.generation = generation
        parser = StreamParser(chat.wire, prepared.tools, starts_in_reasoning=prepared.in_reasoning)
        self._answer = Answer(parser, offered=bool(prepared.tools))
        self._finish_reason: str | None = None
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def _deltas(self) -> AsyncIterator[Delta]:
        stops = StopStrings(self._prepared.request.stop)
        reason = "stop"
        async for piece in self.generation:
            for delta in self._answer.feed(stops.feed(piece.text)):
                yield delta
            if stops.found:
                self.generation.cancel()
                reason = "stop"
                break
            reason = piece.finish or reason
        for delta in [*self._answer.feed(stops.finish()), *self._answer.finish(reason)]:
            yield delta
        self._finish_reason = self._answer.finish_reason(reason)
        for bad in self._answer.malformed:
            log.warning("a call that does not parse was returned as text: %s", bad.reason)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._chat.name,
            "system_fingerprint": self._chat.fingerprint,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.generation.prompt_tokens, self.generation.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.generation.cached_tokens},
        }

    async def whole(self) -> Response:
        """The answer in one piece."""
        try:
            message = collect([delta async for delta in self._deltas()])
        except PunieError as e:
            raise ApiError(500, str(e)) from e
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason, "logprobs": None}
        return JSONResponse({**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; `[DONE]` ends it whatever happens, but a client that has gone."""
        with_usage = self._prepared.request.stream_options.include_usage
        head = self._head("chat.completion.chunk")

        def chunk(delta: Delta, finish_reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return _event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

        try:
            yield chunk({"role": "assistant"})
            async for delta in self._deltas():
                yield chunk(delta)
            yield chunk({}, self._finish_reason)
            if with_usage:
                yield _event({**head, "choices": [], "usage": self._usage()})
        except Exception as e:
            if not isinstance(e, PunieError):
                log.exception("a stream broke")
            yield _event(errors.body(500, str(e) if isinstance(e, PunieError) else "internal error"))
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A stream that gives the engine's slot back however it ends, even before its first event."""

    def __init__(self, completion: Completion) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(completion.events(), media_type="text/event-stream", headers=headers)
        self._generation = completion.generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._generation:
            await super().__call__(scope, receive, send)


async def unless_gone(http: Request, work: Any) -> Response:
    """The result of `work`, which is cancelled if the client goes away first."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)
    finally:
        working.cancel()
        going.cancel()
