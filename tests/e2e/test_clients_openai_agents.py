"""The OpenAI Agents SDK against a running server, through its chat-completions model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from pydantic import BaseModel, ConfigDict, Field


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["good", "bad"]
    score: Annotated[int, Field(ge=0, le=9)]


cities: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    cities.append(city)
    return "#hello"


def with_model(server: Any, work: Callable[[OpenAIChatCompletionsModel], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return await work(OpenAIChatCompletionsModel(model=server.ready["model"], openai_client=client))

    cities.clear()
    return asyncio.run(run())


CONFIG = RunConfig(tracing_disabled=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_its_tool_and_answers(scripted_server: Any, streamed: bool) -> None:
    async def work(model: OpenAIChatCompletionsModel) -> Any:
        agent = Agent(name="w", instructions="Be short.", model=model, tools=[get_weather])
        if not streamed:
            return (await Runner.run(agent, "#call", run_config=CONFIG)).final_output
        result = Runner.run_streamed(agent, "#call", run_config=CONFIG)
        async for _ in result.stream_events():
            pass
        return result.final_output

    assert with_model(scripted_server, work) == "Hello, world 🌍!"
    assert cities == ["Paris"]


def test_an_output_type_holds(scripted_server: Any) -> None:
    async def work(model: OpenAIChatCompletionsModel) -> Any:
        agent = Agent(name="v", model=model, output_type=Verdict, model_settings=ModelSettings(max_tokens=200))
        return (await Runner.run(agent, "#hello", run_config=CONFIG)).final_output

    assert isinstance(with_model(scripted_server, work), Verdict)


def test_a_required_tool_is_called(scripted_server: Any) -> None:
    @function_tool
    def judge(verdict: Verdict) -> str:
        """Say what you think."""
        return "done"

    async def work(model: OpenAIChatCompletionsModel) -> Any:
        settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=300)
        agent = Agent(
            name="j", model=model, tools=[judge], model_settings=settings, tool_use_behavior="stop_on_first_tool"
        )
        return await Runner.run(agent, "#hello", run_config=CONFIG)

    result = with_model(scripted_server, work)
    (arguments, *_) = [i.raw_item.arguments for i in result.new_items if i.type == "tool_call_item"]
    assert result.final_output == "done"
    assert isinstance(Verdict.model_validate(json.loads(arguments)["verdict"]), Verdict)
