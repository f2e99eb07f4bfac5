"""/v1/chat/completions: a checked request → prompt and grammar → the engine → OpenAI's objects."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from punie_mlx.chat.render import Prompt, safe_prompt
from punie_mlx.errors import ConfigError, PunieError
from punie_mlx.serve import inspect_api, lookup, objects, text_api
from punie_mlx.serve.answer import Answer, Delta, collect
from punie_mlx.serve.constrain import Constrainer, Mask, Plan
from punie_mlx.serve.delivery import Choice, Delivery, deliver, unless_gone
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.errors import ApiError, BadRequest
from punie_mlx.serve.generation import EngineBusyError, Generation, Piece, Sampling
from punie_mlx.serve.metrics import Metrics
from punie_mlx.serve.request import ChatRequest, Conversation, Generating, parse
from punie_mlx.serve.settings import ChatSettings
from punie_mlx.serve.trace import UNTRACED, Trace
from punie_mlx.toolcalls.calls import Tool, dumps, escape
from punie_mlx.toolcalls.stream import StreamParser
from punie_mlx.toolcalls.wire import Format

log = logging.getLogger(__name__)

T = TypeVar("T")
Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What one request is for the engine, and how its answers are to be read."""

    request: ChatRequest
    prompt: Prompt
    tools: list[Tool]  # those that may be called
    plan: Plan
    in_reasoning: bool  # the prompt has opened the thinking
    skeletons: Sequence[int] = ()  # of the calls that it may make, where tokens are guessed ahead


LARGE = 64 * 2**10  # bytes of a request; to encode megabytes takes seconds, for which the others do not wait


@dataclass(frozen=True)
class _Desk:
    """Where prompts are made, off the event loop: one at a time, since tokenizers are not made for two."""

    tokenizer: Any
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompts"))


@dataclass(frozen=True)
class Chat:
    """The endpoints of one model: `name` is the only one that it answers to."""

    engine: Engine
    name: str
    fingerprint: str
    wire: Format  # in which the model writes its calls
    settings: ChatSettings
    metrics: Metrics
    constrainer: Constrainer | None = None
    _desks: tuple[_Desk, _Desk] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokenizer = self.engine.loaded.tokenizer
        object.__setattr__(self, "_desks", (_Desk(tokenizer), _Desk(copy.deepcopy(tokenizer))))

    # ---- the endpoints; each raises `ApiError` ----

    async def respond(self, http: Request, body: bytes) -> Response:
        """/v1/chat/completions"""
        trace: Trace = http.state.trace
        request = parse(ChatRequest, body)
        prepared, choices = await self.begin(http, body, request, trace.answer, trace.choice)
        delivery = Delivery(choices, ChatShape(self, prepared), self.settings, self.metrics, trace)
        usage = request.stream_options.include_usage
        return await deliver(http, delivery, stream=request.stream, with_usage=usage)

    async def complete(self, http: Request, body: bytes) -> Response:
        """/v1/completions"""
        return await text_api.complete(self, http, body)

    async def tokenize(self, http: Request, body: bytes) -> Response:
        """/tokenize"""
        return await inspect_api.tokenize(self, http, body)

    async def render(self, http: Request, body: bytes) -> Response:
        """/v1/chat/completions/render"""
        return await inspect_api.render(self, http, body)

    # ---- what they share ----

    async def begin(
        self, http: Request, body: bytes, request: ChatRequest, answer: type[Answer], choice: type[Choice]
    ) -> tuple[Prepared, list[Choice]]:
        """Make the prompt, and have the engine begin with each answer: a `choice`, whose reader is an `answer`.

        Whoever gets the choices has to end them. Raises `ApiError`.
        """
        trace: Trace = http.state.trace
        self.check(request)
        trace.enter("render")
        prepared = await self.aside(http, body, self.prepare, request, trace)
        trace.about("chat", self.name, request, prepared.prompt.tokens, self.engine.loaded)
        limit = self.room(len(prepared.prompt.tokens), request, "messages")
        with ExitStack() as begun:
            choices = []
            for index in range(request.n):
                mask = prepared.plan.mask(trace.mask)
                generation = begun.enter_context(self._generation(prepared, index, limit, mask))
                reader = answer(
                    self._parser(prepared),
                    offered=bool(prepared.tools),
                    plan=prepared.plan,
                    streamed=request.stream,
                )
                choices.append(choice(index, generation, reader, request.stop, self.engine.loaded.control, mask))
            begun.pop_all()
        return prepared, choices

    async def aside(self, http: Request, body: bytes, work: Callable[..., T], *args: Any) -> T:
        """What `work` makes of a tokenizer and `args`; not begun for a client that has gone in the meantime."""
        desk = self._desks[len(body) > LARGE]

        async def waited() -> tuple[T]:
            loop = asyncio.get_running_loop()
            return (await loop.run_in_executor(desk.pool, work, desk.tokenizer, *args),)

        found = await unless_gone(http.receive, waited())
        if found is None:
            raise ClientDisconnect
        return found[0]

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"the model {name!r} is not served here: this server has {self.name!r} and loads no other"
            raise ApiError(404, message, "model", "model_not_found")

    def check(self, request: Generating) -> None:
        """What every request for text must be. Raises `ApiError`."""
        self.check_model(request.model)
        if request.n > self.settings.choices:
            raise BadRequest(f"n: {request.n} answers are more than the {self.settings.choices} allowed", "n")

    def room(self, prompt: int, request: Generating, param: str) -> int:
        """How many tokens may be generated after a prompt of `prompt` tokens. Raises `BadRequest` where none may."""
        context = self.engine.loaded.context
        if not prompt:
            raise BadRequest(f"{param}: the prompt is empty", param)
        left = context - prompt
        if left < 1:
            message = f"{param}: the prompt has {prompt} tokens, and the model's context is {context}"
            raise BadRequest(message, param, "context_length_exceeded")
        return min(request.limit or self.settings.defaults.max_tokens or left, left)

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limit: int,
        mask: Mask | None = None,
        top: int = -1,
        skeletons: Sequence[int] = (),
    ) -> Generation:
        """Have the engine begin. Raises `ApiError` where it cannot."""
        try:
            return self.engine.generate(prompt, sampling, limit, processor=mask, top_logprobs=top, skeletons=skeletons)
        except EngineBusyError as e:
            raise ApiError(429, str(e), code="queue_full", headers={"Retry-After": "1"}) from e
        except PunieError as e:
            raise ApiError(503, str(e), code="engine_dead", headers={"Retry-After": "5"}) from e

    def _generation(self, prepared: Prepared, index: int, limit: int, mask: Mask | None) -> Generation:
        request = prepared.request
        sampling = request.sampling(self.engine.loaded, self.settings.defaults, index=index)
        top = request.top_logprobs if request.logprobs else -1
        return self.generate(prepared.prompt.tokens, sampling, limit, mask, top, prepared.skeletons)

    def _parser(self, prepared: Prepared) -> StreamParser:
        request = prepared.request
        rescue = self.settings.rescue if request.rescue is None else request.rescue
        return StreamParser(
            self.wire,
            prepared.tools,
            starts_in_reasoning=prepared.in_reasoning,
            rescue=rescue and bool(prepared.tools),
            control=self.engine.loaded.control,
        )

    # ---- prompt and grammar ----

    def prepare(self, tokenizer: Any, request: ChatRequest, trace: Trace = UNTRACED) -> Prepared:
        """Render and encode `request`, and decide on its grammar. Raises `BadRequest`."""
        trace.waited()
        tools = request.tools_spec()
        allowed = self._allowed(request, tools)
        off = self._off(request)
        # With a grammar the model sees all tools, as it does in all other turns: so the prompt cache has them.
        prompt = self.prompt(tokenizer, request, tools if allowed and off is None else allowed)
        with trace.timed("grammar_seconds"):
            plan = off or self._plan(request, prompt)
        if off is None and plan.state == "off" and len(allowed) < len(tools):
            prompt = self.prompt(tokenizer, request, allowed)
        if self.settings.log_content:
            log.info("prompt: %s", prompt.text)
        may_be_called = [Tool.from_openai(t) for t in allowed]
        skeletons = lookup.skeletons(tokenizer, self.wire.name, allowed) if self.engine.guesses else ()
        return Prepared(request, prompt, may_be_called, plan, prompt.opens(self.wire.think[0]), skeletons)

    def prompt(
        self, tokenizer: Any, request: Conversation, tools: Sequence[Spec], *, add_generation_prompt: bool = True
    ) -> Prompt:
        """The prompt of `request` with `tools`. Raises `BadRequest`."""
        kwargs = request.template_kwargs(self.settings.defaults)
        messages = request.for_template()
        try:
            return safe_prompt(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, **kwargs)
        except Exception as e:  # whatever a template or tokenizer makes of a client's text
            raise BadRequest(f"messages: {e}", "messages") from e

    @staticmethod
    def _allowed(request: Conversation, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        choice = request.choice
        if choice.mode == "none":
            return []
        return [t for t in tools if choice.allowed is None or t["function"]["name"] in choice.allowed]

    def _off(self, request: ChatRequest) -> Plan | None:
        """The plan of a request that no grammar is made for; None where one is."""
        mode = request.constrain or self.settings.constrain
        demanded = request.choice.mode == "required" or request.json_schema is not None
        if not demanded and not request.tools:
            return Plan()
        if mode == "off":
            return Plan(reason="constrained decoding is switched off")
        if mode == "required-only" and not demanded:
            return Plan(reason="only what a request demands is constrained")
        if self.constrainer is None or not self.engine.constrainable:
            return Plan(reason="constrained decoding is not available with a draft model")
        return None

    def _plan(self, request: ChatRequest, prompt: Prompt) -> Plan:
        assert self.constrainer is not None
        tools = [Tool.from_openai(t) for t in request.tools_spec()]
        try:
            return self.constrainer.plan(tools, request.constraint(self._reasoning(request, prompt)))
        except ConfigError as e:  # the answer says so, and is a call or fits the schema as far as the model can
            log.warning("an answer is not constrained: %s", e)
            return Plan(reason=str(e))

    def _reasoning(self, request: ChatRequest, prompt: Prompt) -> str:
        """Whether thinking may come, as `Constraint` has it."""
        opening, closing = self.wire.think
        if prompt.opens(opening):
            return "open"
        if prompt.opens(closing):  # by the template, which closes what it leaves empty
            return "none"
        demanded = request.choice.mode == "required" or request.json_schema is not None
        template = self.engine.loaded.chat_template
        # Where an answer is demanded at once, only a model whose template speaks of thinking may think first.
        spoken = not opening or opening.strip() in template or closing.strip() in template
        return "may" if spoken or not demanded else "none"


class ChatShape:
    """How a chat's objects look."""

    def __init__(self, chat: Chat, prepared: Prepared) -> None:
        self._chat = chat
        self._request = prepared.request
        self._plan = prepared.plan
        self._chunk = objects.head(objects.CHUNK, chat.name, chat.fingerprint)

    def head(self, streamed: bool) -> dict[str, Any]:
        metadata = {} if streamed or not self._request.metadata else {"metadata": self._request.metadata}
        return {**self._chunk, **metadata, "object": objects.CHUNK if streamed else objects.CHAT}

    def whole(self, choice: Choice, deltas: list[Delta], pieces: list[Piece]) -> dict[str, Any]:
        message = collect(deltas)
        if self._chat.settings.log_content:
            log.info("answer: %s", dumps(message))
        logprobs = self._logprobs(pieces)
        return objects.choice(choice.index, message, choice.finish_reason or "stop", self._extension(choice), logprobs)

    def opening(self, choice: Choice) -> dict[str, Any]:
        return objects.part(choice.index, {"role": "assistant"})

    def part(self, choice: Choice, delta: Delta, pieces: Sequence[Piece]) -> str:
        body = f'{{"content":"{escape(delta["content"])}"}}' if delta.keys() == {"content"} else dumps(delta)
        logprobs = dumps(self._logprobs(pieces)) if self._request.logprobs else "null"
        return f'{{"index":{choice.index},"delta":{body},"logprobs":{logprobs},"finish_reason":null}}'

    def closing(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any]:
        logprobs = self._logprobs(pieces) if pieces else None
        return objects.part(choice.index, {}, choice.finish_reason, self._extension(choice), logprobs)

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return objects.usage([c.generation for c in choices])

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return objects.logprobs(pieces, self._chat.engine.loaded) if self._request.logprobs else None

    def _extension(self, choice: Choice) -> dict[str, Any]:
        """What the finished `choice` says beside OpenAI's fields; counted, too."""
        answer, metrics = choice.reader, self._chat.metrics
        assert isinstance(answer, Answer)
        if choice.mask is not None and choice.mask.failed:
            answer.problem("unconstrained", choice.mask.failed)
        metrics.constrained(self._plan.state)
        metrics.rescued(len(answer.rescued))
        malformed = [p for p in answer.problems if p["kind"] in ("malformed", "truncated")]
        metrics.malformed(len(malformed))
        if malformed:
            log.warning("calls that could not be read: %d", len(malformed))
        return answer.extension()
