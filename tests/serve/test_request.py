"""What a chat request may hold, and how it is refused."""

import json
from typing import Any

import pytest

from punie_mlx.serve.errors import BadRequest
from punie_mlx.serve.request import ChatRequest, parse

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}


def request(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": USER, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages.1.tool_calls.0.function.name",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"stop": [1]}, "stop.0"),
        ({"stop": 1}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logit_bias": {"100000000": 1}}, "logit_bias"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.status == 400
    assert caught.value.body["error"]["param"] == param
    assert param in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages":' + b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body)


def test_null_is_absent() -> None:
    nulls = dict.fromkeys(
        ["model", "tools", "tool_choice", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens",
         "max_completion_tokens", "stream", "stream_options", "n", "logprobs", "response_format", "logit_bias"]
    )  # fmt: skip
    assert request(**nulls) == request()
    assert not request(stream_options={"include_usage": None}).stream_options.include_usage


def test_unknown_fields_are_ignored() -> None:
    assert request(parallel_tool_calls=True, user="me", store=False, metadata={"a": "b"}) == request()


def test_messages_for_the_template() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]  # fmt: skip
    developer, assistant, tool = (m.for_template() for m in request(messages=messages).messages)
    assert developer == {"role": "system", "content": "Be brief."}
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert tool == {"role": "tool", "tool_call_id": "1", "content": "done"}


def test_tools_for_the_template_are_those_of_training_rows() -> None:
    assert request(tools=[TOOL]).offered() == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]


def test_tool_choice_decides_what_is_offered() -> None:
    tools = [{"type": "function", "function": {"name": n}} for n in "fgh"]

    def names(choice: Any) -> str:
        return "".join(t["function"]["name"] for t in request(tools=tools, tool_choice=choice).offered())

    assert names("auto") == names("required") == names(None) == "fgh"
    assert names("none") == ""
    assert names(tools[1]) == "g"
    assert names({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tools[0], tools[2]]}}) == "fh"
    for bad in ("always", 1, {"type": "function"}, {"type": "function", "function": {"name": "other"}}):
        with pytest.raises(BadRequest, match="tool_choice"):
            names(bad)


def test_sampling_cannot_hurt_the_engine() -> None:
    assert request(top_k=1_000_000).sampling(100).top_k == 0
    assert request(top_k=99).sampling(100).top_k == 99
    assert request(temperature=1e-300).sampling(100).temperature == 0
    assert request(temperature=1, top_p=0).sampling(100).temperature == 0  # only the likeliest is left
    assert request(min_p=1e-320).sampling(100).min_p == 0
    assert 0 <= (request(seed=-(10**30)).sampling(100).seed or -1) < 2**63


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert request(max_tokens=5).limit == 5
    assert request(max_tokens=5, max_completion_tokens=7).limit == 7
    assert request().limit is None
