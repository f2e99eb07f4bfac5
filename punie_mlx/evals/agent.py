"""The agent under test: a real PydanticAI agent over HTTP, and the record of everything it did.

One client and one agent serve all cases; a case brings its tools as a toolset of its own, executed in its scratch
directory. What is scored is what went over the wire: each exchange is recorded where the HTTP client sees it, so a
response that the agent rejects is on record as well. `retries=0`: a first try that fails is a failure.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import openai
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import AgentRunError, UsageLimitExceeded, UserError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets.abstract import AbstractToolset, ToolsetTool
from pydantic_ai.usage import UsageLimits
from pydantic_core import SchemaValidator, core_schema

from punie_mlx.corpus.suite import Case
from punie_mlx.evals.scratch import Scratch

ANY_OBJECT = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))
# The schemas go to the server as the suite has them: a model is scored on the prompt that it was trained on.
PROFILE = OpenAIModelProfile(
    json_schema_transformer=None,
    openai_supports_strict_tool_definition=False,
    openai_chat_supports_multiple_system_messages=False,
    openai_chat_thinking_field="reasoning_content",
    ignore_streamed_leading_whitespace=True,
)


@dataclass(frozen=True)
class AgentSettings:
    """How each case is run."""

    max_tokens: int = 1024
    """Tokens of one response. Too few cut a call in two."""
    request_limit: int = 4
    """Requests of one case: a call, its result and the answer need two."""
    timeout: float = 600.0
    """Seconds that one response may take."""
    temperature: float = 0.0


@dataclass
class Call:
    """A call that the model made, and what became of it."""

    turn: int
    id: str
    name: str
    arguments: Any
    """The arguments, read from their JSON; the text itself where it is no JSON."""
    result: str | None = None
    ok: bool | None = None
    """Whether the tool did what it was asked; None where it was never executed."""
    seconds: float = 0.0


@dataclass
class Turn:
    """One exchange with the server."""

    seconds: float
    status: int
    message: dict[str, Any]
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


@dataclass
class Run:
    """The whole trajectory of one case."""

    turns: list[Turn] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    answer: str | None = None
    error: str | None = None
    limited: bool = False
    """The run was ended by the limit on requests."""
    lost: bool = False
    """The server did not answer at all."""
    seconds: float = 0.0

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, as the server saw it, and its last response."""
        return [*self.sent, *(t.message for t in self.turns[-1:])]


_current: ContextVar[Run | None] = ContextVar("current run", default=None)


class _CaseTools(AbstractToolset[Any]):
    """The tools of one case, executed in its scratch directory, in the order of the calls."""

    def __init__(self, case: Case, scratch: Scratch, run: Run) -> None:
        self._case, self._scratch, self._run = case, scratch, run

    @property
    def id(self) -> str | None:
        return None

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        return {f["name"]: self._tool(f) for f in (t["function"] for t in self._case.tools)}

    def _tool(self, function: dict[str, Any]) -> ToolsetTool[Any]:
        definition = ToolDefinition(
            name=function["name"],
            description=function.get("description"),
            parameters_json_schema=function.get("parameters", {"type": "object", "properties": {}}),
            sequential=True,
        )
        return ToolsetTool(toolset=self, tool_def=definition, max_retries=0, args_validator=ANY_OBJECT)

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> str:
        start = time.perf_counter()
        outcome = self._scratch.call(name, tool_args, self._case.schemas[name])
        for call in reversed(self._run.calls):
            if call.id == ctx.tool_call_id and call.result is None:
                call.result, call.ok, call.seconds = outcome.text, outcome.ok, time.perf_counter() - start
                break
        return outcome.text


class Harness:
    """The agent that all cases share, over a client made by `connect`."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, settings: AgentSettings) -> None:
        self.client = client
        self._settings = settings
        # Temperature and length only: a server that we are told to score may know no other setting.
        self._agent: Agent[None, str] = Agent(
            OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client), profile=PROFILE),
            retries=0,
            model_settings=OpenAIChatModelSettings(
                temperature=settings.temperature, max_tokens=settings.max_tokens, timeout=settings.timeout
            ),
        )

    async def run(self, case: Case, scratch: Scratch) -> Run:
        """Run one case to its end. What goes wrong is part of the record; nothing is raised but cancellation."""
        run = Run()
        token = _current.set(run)
        start = time.perf_counter()
        try:
            result = await self._agent.run(
                case.query,
                instructions=case.system,
                toolsets=[_CaseTools(case, scratch, run)],
                usage_limits=UsageLimits(request_limit=self._settings.request_limit),
            )
            run.answer = result.output
        except UsageLimitExceeded as e:
            run.limited, run.error = True, f"UsageLimitExceeded: {e}"
        except (AgentRunError, UserError, openai.OpenAIError, ValueError) as e:
            run.error = f"{type(e).__name__}: {e}"
            run.lost = isinstance(_root(e), openai.APIConnectionError)
        finally:
            run.seconds = time.perf_counter() - start
            _current.reset(token)
        return run


def _root(e: BaseException) -> BaseException:
    while not isinstance(e, openai.APIConnectionError) and e.__cause__ is not None:
        e = e.__cause__
    return e


async def _started(request: Any) -> None:
    request.extensions["punie_started"] = time.perf_counter()


async def _finished(response: Any) -> None:
    """Put one exchange on the record of the run that made it."""
    run = _current.get()
    if run is None or not response.request.url.path.endswith("/chat/completions"):
        return
    await response.aread()
    seconds = time.perf_counter() - response.request.extensions["punie_started"]
    run.sent = json.loads(response.request.content)["messages"]
    try:
        body = response.json()
        choice = body["choices"][0]
        turn = Turn(seconds, response.status_code, choice["message"], choice.get("finish_reason"), body.get("usage"))
    except (ValueError, LookupError, TypeError):
        turn = Turn(seconds, response.status_code, {"role": "error", "content": response.text})
    run.turns.append(turn)
    for call in turn.message.get("tool_calls") or []:
        function = call.get("function", {})
        arguments = _read(function.get("arguments"))
        run.calls.append(Call(len(run.turns), call.get("id", ""), function.get("name", ""), arguments))


def _read(arguments: Any) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, TypeError):
        return arguments


def connect(url: str, timeout: float) -> openai.AsyncOpenAI:
    """A client for `url` that records its exchanges, never retries and uses no proxy of the environment."""
    http = openai.DefaultAsyncHttpxClient(
        trust_env=False, timeout=timeout, event_hooks={"request": [_started], "response": [_finished]}
    )
    return openai.AsyncOpenAI(base_url=url, api_key="not-needed", max_retries=0, http_client=http)
