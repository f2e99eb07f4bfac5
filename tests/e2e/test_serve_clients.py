"""The clients that agents use, over a real socket: the `openai` package and PydanticAI."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.messages import ModelMessage, ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel

from punie_mlx.provider import PunieProvider

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": NUMBERS}}


@pytest.fixture(scope="module")
def client(scripted_server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted_server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(key: str) -> Any:
    return {"model": "scripted", "messages": [{"role": "user", "content": key}]}


def test_openai_plain(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("#hello"))
    assert answer.choices[0].message.content == "Hello, world 🌍!"
    assert answer.usage and answer.usage.prompt_tokens_details
    assert [m.id for m in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"


def test_openai_call(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**ask("#call"), tools=[TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Paris"}


def test_openai_stream_helper_adds_a_call_up(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ask("#two-calls"), tools=[TOOL, ADD]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    found = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]
    assert found == [("get_weather", {"city": "Bern"}), ("add", {"a": 1, "b": 2})]


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask("hi"), temperature=-1)
    assert caught.value.param == "temperature"


def agent_for(server: Any, **settings: Any) -> Agent[None, str]:
    model = OpenAIChatModel(server.ready["model"], provider=PunieProvider(base_url=server.url))
    return Agent(model, retries=0, model_settings=ModelSettings(temperature=0, **settings))


def with_weather(agent: Agent[None, str]) -> list[str]:
    """Give `agent` the tool; its result makes the scripted model answer."""
    cities: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        cities.append(city)
        return "#hello"

    return cities


FREE = {"constrain": "off"}  # the model may write what no grammar would let it


@pytest.mark.parametrize(("key", "more"), [("#call", {}), ("#call", FREE), ("#hermes", FREE), ("#spaced-call", {})])
@pytest.mark.parametrize("streamed", [False, True])
def test_pydantic_ai_runs_a_tool_and_answers(scripted_server: Any, key: str, more: Any, streamed: bool) -> None:
    agent = agent_for(scripted_server, extra_body=more)
    cities = with_weather(agent)
    assert run(agent, key, streamed)[0] == "Hello, world 🌍!"
    assert cities == [{"#call": "Paris", "#hermes": "Rome", "#spaced-call": "Oslo"}[key]]


@pytest.mark.parametrize("streamed", [False, True])
def test_pydantic_ai_takes_a_broken_call_for_text(scripted_server: Any, streamed: bool) -> None:
    agent = agent_for(scripted_server, extra_body=FREE)
    cities = with_weather(agent)
    assert run(agent, "#broken", streamed)[0] == "Well. <tool_call>\n{no call at all\n</tool_call> So be it."
    assert cities == []


@pytest.mark.parametrize("key", ["#hermes", "#broken", "#cut"])
def test_what_would_break_is_a_call_under_the_grammar(scripted_server: Any, key: str) -> None:
    agent = agent_for(scripted_server, parallel_tool_calls=False, max_tokens=200)
    called: list[str] = []

    @agent.tool_plain
    def get_weather(city: Literal["Lima", "Lisbon"]) -> str:
        called.append(city)
        return "#hello"

    run(agent, key, False)
    assert called and set(called) <= {"Lima", "Lisbon"}


def run(agent: Agent[None, str], prompt: str, streamed: bool) -> tuple[str, list[ModelMessage]]:
    """The final output and all messages. Streamed by `iter`: `run_stream` would end at the text before a call."""
    if not streamed:
        result = agent.run_sync(prompt)
        return result.output, result.all_messages()

    async def stream() -> tuple[str, list[ModelMessage]]:
        async with agent.iter(prompt) as steps:
            async for node in steps:
                if Agent.is_model_request_node(node):
                    async with node.stream(steps.ctx) as events:
                        async for _ in events:
                            pass
        assert steps.result is not None
        return steps.result.output, steps.result.all_messages()

    return asyncio.run(stream())


@pytest.fixture(scope="module")
def shipped(serving: Callable[..., Any], tiny_base: Path) -> Iterator[Any]:
    with serving(tiny_base) as server:
        yield server


@pytest.mark.parametrize("streamed", [False, True])
def test_pydantic_ai_with_the_shipped_model(shipped: Any, streamed: bool) -> None:
    """Whatever the weights know: every character is there, and what is called is called with an object."""
    agent = agent_for(shipped, max_tokens=200)
    with_weather(agent)
    output, messages = run(agent, "What is the weather in Paris?", streamed)
    assert output
    calls = [p for m in messages for p in m.parts if isinstance(p, ToolCallPart)]
    returns = [p for m in messages for p in m.parts if isinstance(p, ToolReturnPart)]
    assert len(calls) == len(returns)
    assert all(isinstance(c.args_as_dict(), dict) for c in calls)
