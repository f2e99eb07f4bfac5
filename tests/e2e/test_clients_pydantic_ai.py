"""PydanticAI with our provider against a running server: every kind of output, streams, retries, thinking."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, ModelRetry, ModelSettings, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.provider import PunieProvider


class Verdict(BaseModel):
    """Bounded in every field: the grammar alone makes any model end."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["good", "bad"]
    score: Annotated[int, Field(ge=0, le=9)]


@pytest.fixture(scope="module")
def model(scripted_server: Any) -> OpenAIChatModel:
    return OpenAIChatModel(scripted_server.ready["model"], provider=PunieProvider(base_url=scripted_server.url))


def agent(model: OpenAIChatModel, output: Any = str, **more: Any) -> Agent[None, Any]:
    settings = ModelSettings(temperature=0, max_tokens=300)
    return Agent(model, output_type=output, retries=more.pop("retries", 0), model_settings=settings, **more)


def with_weather(made: Agent[None, Any]) -> list[str]:
    """Give the agent a tool whose result makes the scripted model answer."""
    cities: list[str] = []

    @made.tool_plain
    def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
        cities.append(city)
        return "#hello"

    return cities


OUTPUTS = [Verdict, ToolOutput(Verdict, name="judge"), NativeOutput(Verdict), [Verdict, ToolOutput(int, name="number")]]


@pytest.mark.parametrize("output", OUTPUTS, ids=["tool", "named tool", "native", "two tools"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_output_has_its_type_whatever_the_model_writes(model: OpenAIChatModel, output: Any, streamed: bool) -> None:
    made = agent(model, output)

    async def stream() -> Any:
        async with made.run_stream("#hello") as run:
            return await run.get_output()

    found = asyncio.run(stream()) if streamed else made.run_sync("#hello").output
    assert isinstance(found, Verdict | int)


def token(model_directory: Path, text: str) -> str:
    return str(load_tokenizer(model_directory).convert_tokens_to_ids(text))


def test_native_output_beside_tools(model: OpenAIChatModel, scripted_model: Path) -> None:
    """The grammar is "calls or JSON": first the call that is written, then an answer of the schema."""
    made = agent(model, NativeOutput(Verdict))
    cities = with_weather(made)
    # Less than the model puts on what it would write: where the grammar forbids that, it begins an object.
    settings = ModelSettings(logit_bias={token(scripted_model, "{"): 18})
    assert isinstance(made.run_sync("#call", model_settings=settings).output, Verdict)
    assert cities == ["Paris"]


class Notes(BaseModel):
    text: str = "none"


@pytest.mark.parametrize("streamed", [False, True])
def test_prompted_output(model: OpenAIChatModel, scripted_model: Path, streamed: bool) -> None:
    """The grammar is any JSON object: the model, which has its mind on braces only, cannot but write one."""
    made = agent(model, PromptedOutput(Notes))
    settings = ModelSettings(logit_bias={token(scripted_model, "}"): 100})

    async def stream() -> Any:
        async with made.run_stream("#hello", model_settings=settings) as run:
            return await run.get_output()

    found = asyncio.run(stream()) if streamed else made.run_sync("#hello", model_settings=settings).output
    assert found == Notes()


def test_text_or_a_tool(model: OpenAIChatModel) -> None:
    assert agent(model, [ToolOutput(Verdict), str]).run_sync("#hello").output == "Hello, world 🌍!"


def test_run_stream_takes_no_text_before_a_call_for_the_answer(model: OpenAIChatModel) -> None:
    made = agent(model)
    cities = with_weather(made)

    async def stream() -> list[str]:
        async with made.run_stream("#call") as run:
            return [text async for text in run.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(stream())
    assert "".join(pieces) == "Hello, world 🌍!" and len(pieces) > 1
    assert cities == ["Paris"]


def test_calls_in_parallel_and_one_at_a_time(model: OpenAIChatModel) -> None:
    done: list[Any] = []
    made = agent(model)

    @made.tool_plain
    def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
        done.append(city)
        return "#hello"

    @made.tool_plain
    def add(a: int, b: int) -> str:
        done.append(a + b)
        return "#hello"

    messages = made.run_sync("#two-calls").all_messages()
    assert sorted(map(str, done)) == ["3", "Bern"]
    calls = [p for m in messages for p in m.parts if isinstance(p, ToolCallPart)]
    assert len({c.tool_call_id for c in calls}) == 2
    done.clear()
    assert made.run_sync("#two-calls", model_settings={"parallel_tool_calls": False}).output == "Hello, world 🌍!"
    assert done == ["Bern"]


def test_a_refused_output_is_tried_again(model: OpenAIChatModel) -> None:
    made, seen = agent(model, Verdict, retries=2), []

    @made.output_validator
    def not_at_once(verdict: Verdict) -> Verdict:
        seen.append(verdict)
        if len(seen) == 1:
            raise ModelRetry("once more")
        return verdict

    assert made.run_sync("#hello").output == seen[1]
    assert len(seen) == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_that_thinks(model: OpenAIChatModel, streamed: bool) -> None:
    made = agent(model)

    async def run() -> list[Any]:
        if not streamed:
            return (await made.run("#think")).new_messages()
        async with made.run_stream("#think") as result:
            await result.get_output()
            return result.new_messages()

    first = asyncio.run(run())
    (response,) = [m for m in first if isinstance(m, ModelResponse)]
    assert [type(p) for p in response.parts] == [ThinkingPart, TextPart]
    assert [p.content for p in response.parts if isinstance(p, ThinkingPart | TextPart)] == [
        "The user greets me.",
        "Good day.",
    ]
    assert made.run_sync("#hello", message_history=first).output == "Hello, world 🌍!"


def test_usage_reaches_the_agent(model: OpenAIChatModel) -> None:
    made = agent(model)
    made.run_sync("#hello")
    usage = made.run_sync("#hello").usage
    usage = usage() if callable(usage) else usage
    assert usage.output_tokens and usage.input_tokens > usage.cache_read_tokens > 0
