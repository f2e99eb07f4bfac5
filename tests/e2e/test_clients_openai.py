"""The `openai` package against a running server: sync and async, its helpers for streams and for parsed answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field


class Verdict(BaseModel):
    """Bounded in every field: the grammar alone makes any model end."""

    kind: Literal["good", "bad"]
    score: Annotated[int, Field(ge=0, le=9)]


class GetWeather(BaseModel):
    """Weather of a city."""

    city: Literal["Paris", "Rome"]


NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": NUMBERS}}


@pytest.fixture(scope="module")
def client(scripted_server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted_server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(key: str, **more: Any) -> Any:
    return {"model": "scripted", "messages": [{"role": "user", "content": key}], **more}


def one_call(choice: Any) -> Any:
    return {"tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 200}


def test_parse_gives_an_object_of_the_schema(client: openai.OpenAI) -> None:
    message = client.chat.completions.parse(**ask("#hello"), response_format=Verdict).choices[0].message
    assert isinstance(message.parsed, Verdict) and message.tool_calls is None


def test_a_stream_helper_parses_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ask("#hello"), response_format=Verdict) as stream:
        kinds = {event.type for event in stream}
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Verdict)
    assert {"content.delta", "content.done"} <= kinds


def test_parse_gives_the_arguments_of_a_tool(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(GetWeather)
    choice = client.chat.completions.parse(**ask("#hello"), tools=[tool], **one_call("required")).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = [call.function.parsed_arguments for call in choice.message.tool_calls or []]
    assert calls and all(isinstance(c, GetWeather) for c in calls)


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(**ask("#hello", tools=[ADD, WEATHER], **one_call(choice)))
    calls = answer.choices[0].message.tool_calls or []
    assert [c.function.name for c in calls if c.type == "function"] == ["get_weather"]


def test_no_tool_is_called_where_none_may_be(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("#call", tools=[WEATHER], tool_choice="none", max_tokens=50))
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason != "tool_calls"


def test_the_arguments_of_a_streamed_call_come_bit_by_bit(client: openai.OpenAI) -> None:
    done: list[tuple[str, Any]] = []
    deltas: dict[int, str] = {}
    with client.chat.completions.stream(**ask("#two-calls"), tools=[WEATHER, ADD]) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas[event.index] = deltas.get(event.index, "") + event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done.append((event.name, json.loads(event.arguments)))
    assert done == [("get_weather", {"city": "Bern"}), ("add", {"a": 1, "b": 2})]
    assert [json.loads(d) for d in deltas.values()] == [a for _, a in done]


def test_a_stream_ends_with_usage_where_it_is_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**ask("#hello"), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world 🌍!"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_several_choices_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("#coin"), n=3, temperature=1, seed=5, max_tokens=8, logprobs=True)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1
    for choice in answer.choices:
        assert choice.logprobs and choice.logprobs.content and choice.message.content
        assert "".join(t.token for t in choice.logprobs.content).startswith(choice.message.content)
        assert all(t.logprob <= 0 for t in choice.logprobs.content)


def test_async_clients_side_by_side(scripted_server: Any) -> None:
    async def everyone() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=scripted_server.url, api_key="none", max_retries=0) as client:

            async def whole(key: str) -> str | None:
                return (await client.chat.completions.create(**ask(key))).choices[0].message.content

            async def streamed(key: str) -> str:
                stream = await client.chat.completions.create(**ask(key), stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*[f(key) for key in ("#hello", "#stop") for f in (whole, streamed)])

    hello, stop = "Hello, world 🌍!", "one two three four"
    assert asyncio.run(everyone()) == [hello, hello, stop, stop]


def test_a_stop_string_is_found_across_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("#stop"), stop=["three"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two ", "stop")


def test_thinking_has_a_field_of_its_own(client: openai.OpenAI) -> None:
    message: Any = client.chat.completions.create(**ask("#think")).choices[0].message
    assert (message.content, message.reasoning_content) == ("Good day.", "The user greets me.")
    chunks = list(client.chat.completions.create(**ask("#think"), stream=True))
    deltas: list[Any] = [c.choices[0].delta for c in chunks]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "The user greets me."
    assert "".join(d.content or "" for d in deltas) == "Good day."
