"""PydanticAI's agent over HTTP: one client and one agent serve all cases.

A case brings its tools as a toolset of its own, executed in its scratch directory, and its history as messages of
PydanticAI. With `retries=0` a call that cannot be executed ends the run; with more the agent asks again, and the run
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import openai
from pydantic_ai import Agent, RunContext, capture_run_messages
from pydantic_ai.exceptions import AgentRunError, UsageLimitExceeded, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets.abstract import AbstractToolset, ToolsetTool
from pydantic_ai.usage import UsageLimits
from pydantic_core import SchemaValidator, core_schema

from punie_mlx.chat.messages import SYSTEM, text_of
from punie_mlx.corpus.suite import Case
from punie_mlx.evals.agent import AgentSettings, Run
from punie_mlx.evals.recorded import failed, recording
from punie_mlx.evals.scratch import Scratch

ANY_OBJECT = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))
THINKING = "reasoning_content"
# The schemas go to the server as the suite has them: a model is scored on the prompt that it was trained on.
PROFILE = OpenAIModelProfile(
    json_schema_transformer=None,
    openai_supports_strict_tool_definition=False,
    openai_chat_supports_multiple_system_messages=False,
    openai_chat_thinking_field=THINKING,
    ignore_streamed_leading_whitespace=True,
)
RETRIED = ("retry-prompt", "retry-feedback")


class _CaseTools(AbstractToolset[Any]):
    """The tools of one case, executed in its scratch directory, in the order of the calls."""

    def __init__(self, case: Case, scratch: Scratch, run: Run, retries: int) -> None:
        self._case, self._scratch, self._run, self._retries = case, scratch, run, retries

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
        return ToolsetTool(toolset=self, tool_def=definition, max_retries=self._retries, args_validator=ANY_OBJECT)

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> str:
        return self._run.execute(self._case, self._scratch, ctx.tool_call_id or "", name, tool_args)


class PydanticAIDriver:
    """The agent that all cases share, over `client`."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, settings: AgentSettings) -> None:
        self._settings = settings
        self._agent: Agent[None, str] = Agent(
            OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client), profile=PROFILE),
            retries=settings.retries,
        )

    async def run(self, case: Case, scratch: Scratch, *, seed: int | None = None) -> Run:
        """Run one case to its end. What goes wrong is part of the record; nothing is raised but cancellation."""
        run = Run()
        with recording(run):
            *history, last = case.conversation
            system, history = _system(case, history)
            messages = list(to_messages(history))
            for query in (text_of(last), *case.follow_ups):
                found = await self._query(case, scratch, run, query, system, messages, seed)
                if found is None:
                    break
                messages = found
        return run

    async def _query(
        self,
        case: Case,
        scratch: Scratch,
        run: Run,
        query: str,
        system: str | None,
        history: Sequence[ModelMessage],
        seed: int | None,
    ) -> list[ModelMessage] | None:
        """The conversation after one more query; None where it ends there."""
        with capture_run_messages() as seen:
            try:
                result = await self._agent.run(
                    query,
                    message_history=history or None,
                    instructions=system,
                    model_settings=self._model_settings(seed),
                    toolsets=[_CaseTools(case, scratch, run, self._settings.retries)],
                    usage_limits=UsageLimits(request_limit=self._settings.request_limit),
                )
            except UsageLimitExceeded as e:
                run.limited, run.error = True, f"UsageLimitExceeded: {e}"
            except (AgentRunError, UserError) as e:
                failed(run, e)
            finally:
                _note_retries(run, seen)
        if run.error:
            return None
        run.answer = result.output
        return result.all_messages()

    def _model_settings(self, seed: int | None) -> OpenAIChatModelSettings:
        # Temperature, length and, where it draws, the seed: a server that we are told to score may know no more.
        told = self._settings
        more = {} if seed is None else {"seed": seed}
        return OpenAIChatModelSettings(
            temperature=told.temperature, max_tokens=told.max_tokens, timeout=told.timeout, **more
        )


def _note_retries(run: Run, seen: Iterable[ModelMessage]) -> None:
    """Put the retries of the whole conversation on record, of which those of earlier queries are there already.

    Where the last query begins in `seen` is not known: PydanticAI joins messages of the history.
    """
    parts = (p for m in seen if isinstance(m, ModelRequest) for p in m.parts)
    retries = [p for p in parts if p.part_kind in RETRIED or getattr(p, "outcome", "") == "retried"]
    for part in retries[run.retried :]:
        run.retried += 1
        run.refuse(getattr(part, "tool_call_id", ""))


# ---- a conversation of the API as PydanticAI has it ----


def _system(case: Case, history: Sequence[Mapping[str, Any]]) -> tuple[str | None, Sequence[Mapping[str, Any]]]:
    """The case's own system prompt, which is the agent's instructions, and the history without it."""
    if case.system and history and history[0]["role"] in SYSTEM and text_of(history[0]) == case.system:
        return case.system, history[1:]
    return None, history


def to_messages(history: Sequence[Mapping[str, Any]]) -> Iterable[ModelMessage]:
    """PydanticAI's messages for those of the API."""
    names = {c["id"]: c["function"]["name"] for m in history for c in m.get("tool_calls") or []}
    for message in history:
        if message["role"] == "assistant":
            yield ModelResponse(parts=list(_said(message)))
        else:
            yield ModelRequest(parts=[_asked(message, names)])


def _asked(message: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    text = text_of(message)
    if message["role"] in SYSTEM:
        return SystemPromptPart(content=text)
    if message["role"] == "tool":
        id = message["tool_call_id"]
        return ToolReturnPart(tool_name=names.get(id) or message.get("name") or "", content=text, tool_call_id=id)
    return UserPromptPart(content=text)


def _said(message: Mapping[str, Any]) -> Iterable[Any]:
    if thinking := message.get(THINKING):
        yield ThinkingPart(content=thinking, id=THINKING, provider_name="openai")
    if text := text_of(message):
        yield TextPart(content=text)
    for call in message.get("tool_calls") or []:
        function = call["function"]
        yield ToolCallPart(tool_name=function["name"], args=function.get("arguments"), tool_call_id=call["id"])
