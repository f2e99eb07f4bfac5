"""/v1/completions: a prompt as it stands, continued; no template, no tools, and control tokens count as such."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from punie_mlx.serve import objects
from punie_mlx.serve.delivery import Choice, Delivery, Delta, deliver
from punie_mlx.serve.errors import BadRequest
from punie_mlx.serve.generation import Piece
from punie_mlx.serve.request import CompletionRequest, parse
from punie_mlx.toolcalls.calls import dumps

if TYPE_CHECKING:
    from punie_mlx.serve.chat_api import Chat


async def complete(chat: Chat, http: Request, body: bytes) -> Response:
    """The response to `body`. Raises `ApiError`."""
    trace = http.state.trace
    request = parse(CompletionRequest, body)
    chat.check(request)
    trace.enter("render")
    given = request.prompts(chat.engine.loaded)
    if len(given) * request.n > chat.engine.limits.requests:
        most = chat.engine.limits.requests
        raise BadRequest(f"prompt: {len(given)} prompts of {request.n} answers are more than {most} at once", "prompt")
    prompts = await chat.aside(http, body, encoded, given)
    trace.about("text_completion", chat.name, request, prompts[0] if prompts else [], chat.engine.loaded)
    top = -1 if request.logprobs is None else request.logprobs
    with ExitStack() as begun:
        choices = []
        for i, prompt in enumerate(p for p in prompts for _ in range(request.n)):
            limit = chat.room(len(prompt), request, "prompt")
            sampling = request.sampling(chat.engine.loaded, chat.settings.defaults, index=i % request.n)
            generation = begun.enter_context(chat.generate(prompt, sampling, limit, top=top))
            choices.append(trace.choice(i, generation, PlainText(), request.stop))
        begun.pop_all()  # from here on the delivery has them
    delivery = Delivery(choices, _TextShape(chat, request), chat.settings, chat.metrics, trace)
    return await deliver(http, delivery, stream=request.stream, with_usage=request.stream_options.include_usage)


def encoded(tokenizer: Any, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    """The tokens of each prompt; a text's as the tokenizer has them, with its own beginning of a text."""
    return [list(tokenizer.encode(p)) if isinstance(p, str) else p for p in prompts]


class PlainText:
    """Generated text as it is."""

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Delta]:
        return [{"text": text}] if text else []

    def finish(self, reason: str) -> list[Delta]:
        return []

    def finish_reason(self, reason: str) -> str:
        return reason


class _TextShape:
    """How the objects of plain text look."""

    def __init__(self, chat: Chat, request: CompletionRequest) -> None:
        self._loaded = chat.engine.loaded
        self._head = objects.head(objects.TEXT, chat.name, chat.fingerprint)
        self._request = request
        self._written: dict[int, int] = {}  # characters of each choice that were sent

    def head(self, streamed: bool) -> dict[str, Any]:
        return self._head

    def whole(self, choice: Choice, deltas: list[Delta], pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(d["text"] for d in deltas)
        return objects.text_choice(choice.index, text, choice.finish_reason, self._logprobs(choice, pieces))

    def opening(self, choice: Choice) -> None:
        return None

    def part(self, choice: Choice, delta: Delta, pieces: Sequence[Piece]) -> str:
        return dumps(objects.text_choice(choice.index, delta["text"], None, self._logprobs(choice, pieces)))

    def closing(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any]:
        return objects.text_choice(choice.index, "", choice.finish_reason, self._logprobs(choice, pieces))

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        n = self._request.n
        prompts = [choices[i : i + n] for i in range(0, len(choices), n)]
        return objects.usages(objects.usage([c.generation for c in some]) for some in prompts)

    def _logprobs(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        offset = self._written.get(choice.index, 0)
        self._written[choice.index] = offset + sum(len(p.text) for p in pieces)
        return objects.text_logprobs(pieces, self._loaded, offset)
