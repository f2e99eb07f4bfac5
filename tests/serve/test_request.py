"""What a request may hold, how it is refused, and what it means for the engine and the template."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from punie_mlx.serve.errors import BadRequest
from punie_mlx.serve.request import (
    REFUSED,
    RESERVED,
    ChatRequest,
    Choice,
    CompletionRequest,
    TokenizeRequest,
    parse,
)
from punie_mlx.serve.settings import Defaults
from punie_mlx.toolcalls.grammar import Constraint

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
TOOLS = [{"type": "function", "function": {"name": n}} for n in "fgh"]
LOADED: Any = SimpleNamespace(vocabulary=100)  # the one thing that requests look at of a model
TEXT = [{"type": "text", "text": "do"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def request(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"messages": USER, **fields}).encode())


def text(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "hi", **fields}).encode())


def refused(make: Any, **fields: Any) -> str:
    """The field that is named where `make` refuses `fields`."""
    with pytest.raises(BadRequest) as caught:
        make(**fields)
    error = caught.value.body["error"]
    assert caught.value.status == 400 and error["type"] == "invalid_request_error"
    assert error["param"] in error["message"]
    return error["param"]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "function", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages.1.tool_calls.0.function.name",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a>\n<b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "no", "tools": []}}},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": TOOLS,
             "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}},
            "tool_choice",
        ),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
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
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
         "response_format.json_schema.schema"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities.1"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"constrain": "perhaps"}, "constrain"),
        ({"rescue": 1}, "rescue"),
        ({"functions": [TOOL["function"]]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"adapters": "/etc"}, "adapters"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(request, **fields) == param


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_request_cannot_set_what_the_prompt_is_made_of(name: str) -> None:
    assert refused(request, chat_template_kwargs={name: "{{ 1 }}"}) == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("make", [request, text])
def test_what_is_not_supported_is_refused_by_name(make: Any, name: str) -> None:
    assert refused(make, **{name: 7}) == name
    assert make(**{name: None}) == make(**{name: False}) == make()


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, TokenizeRequest])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages":' + b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(model: Any, body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(model, body)


@pytest.mark.parametrize("token", ["100", "100000000", "-1", "x", "1.0", "٣", "1" * 5000, ""])
def test_a_bias_of_no_token_is_refused(token: str) -> None:
    with pytest.raises(BadRequest, match="logit_bias") as caught:
        request(logit_bias={token: 1}).sampling(LOADED, Defaults())
    assert caught.value.body["error"]["param"] == "logit_bias"
    assert len(str(caught.value)) < 200


# ---- what is taken ----


def test_null_is_absent() -> None:
    nulls = dict.fromkeys([*ChatRequest.model_fields.keys() - {"messages"}, "functions", "logit_bias"])
    assert request(**nulls) == request()
    assert not request(stream_options={"include_usage": None}).stream_options.include_usage
    message = {"role": "user", "content": "hi", "name": None, "tool_calls": None, "reasoning_content": None}
    assert request(messages=[message]) == request()


def test_unknown_fields_are_ignored_and_named_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"store": False, "prompt_cache_key": "secret", "verbosity": "low"}
    with caplog.at_level(logging.DEBUG, logger="punie_mlx.serve"):
        assert request(**fields) == request()
        request(messages=[{"role": "user", "content": "hi", "mood": "good"}])
    assert "prompt_cache_key, store, verbosity" in caplog.text and "mood" in caplog.text
    assert "secret" not in caplog.text and "good" not in caplog.text
    caplog.clear()
    request(metadata={"a": "b"}, user="me", parallel_tool_calls=False, response_format={"type": "text"})
    assert caplog.text == ""


def test_every_field_in_a_request_of_an_agent() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    asked = request(
        tools=TOOLS, tool_choice="auto", response_format=schema, n=3, logprobs=True, top_logprobs=5, stop="END",
        metadata={"run": "1"}, stream=True, stream_options={"include_usage": True}, constrain="off", rescue=True,
    )  # fmt: skip
    assert asked.json_schema == SCHEMA and asked.stop == ["END"] and asked.stream_options.include_usage
    assert (asked.n, asked.top_logprobs, asked.constrain, asked.rescue) == (3, 5, "off", True)
    assert asked.metadata == {"run": "1"}


# ---- messages and tools for the template ----


def test_messages_for_the_template() -> None:
    messages = [
        {"role": "user", "content": "do", "name": "Ada"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}]},
        {"role": "tool", "tool_call_id": "1", "content": [*TEXT, {"type": "text", "text": "ne"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]},
        {"role": "assistant", "refusal": "Nor this."},
        {"role": "assistant", "content": "x", "reasoning": "hm"},
    ]  # fmt: skip
    assert request(messages=messages).for_template() == [
        {"role": "user", "content": "do", "name": "Ada"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "assistant", "content": "I won't."},
        {"role": "assistant", "content": "Nor this."},
        {"role": "assistant", "content": "x", "reasoning_content": "hm"},
    ]  # fmt: skip


def test_what_is_said_to_the_system_is_one_message_and_the_first() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": ""},
    ]
    assert request(messages=messages).for_template() == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("content", "thinking", "rest"),
    [
        ("<think>\nhm\n</think>\n\nGood day.", "hm", "Good day."),
        ("\n<think>a</think>b</think>", "a", "b</think>"),
        ("<think>\n\n</think>\n\nGood day.", "", "Good day."),
        ("<think>never closed", "", "<think>never closed"),
        ("Say <think>x</think>", "", "Say <think>x</think>"),
    ],
)
def test_thinking_at_the_beginning_of_an_earlier_answer(content: str, thinking: str, rest: str) -> None:
    (message,) = request(messages=[{"role": "assistant", "content": content}]).for_template()
    assert (message.get("reasoning_content", ""), message["content"]) == (thinking, rest)


def test_thinking_is_split_off_only_where_the_assistant_wrote_it() -> None:
    content = "<think>x</think>y"
    messages = [{"role": role, "content": content} for role in ("system", "user", "tool")]
    assert all(m["content"] == content for m in request(messages=messages).for_template())
    given = {"role": "assistant", "content": content, "reasoning_content": "z"}
    assert request(messages=[given]).for_template() == [given]


def test_tools_for_the_template_are_those_of_training_rows() -> None:
    assert request(tools=[TOOL]).tools_spec() == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    (bare,) = request(tools=TOOLS[:1]).tools_spec()  # templates look into the parameters
    assert bare["function"]["parameters"] == {"type": "object", "properties": {}}


def test_what_the_template_is_given_beside() -> None:
    defaults = Defaults(template_kwargs={"enable_thinking": False, "date": "today"})
    assert request().template_kwargs(defaults) == {"enable_thinking": False, "date": "today"}
    effort = request(reasoning_effort="high").template_kwargs(defaults)
    assert effort == {"enable_thinking": True, "thinking": True, "reasoning_effort": "high", "date": "today"}
    none = request(reasoning_effort="none", chat_template_kwargs={"thinking": True}).template_kwargs(Defaults())
    assert none == {"enable_thinking": False, "thinking": True, "reasoning_effort": "none"}


# ---- which calls may come ----


def allowed(mode: str, names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [t for t in TOOLS if name(t) in names]}}


def name(tool: dict[str, Any]) -> str:
    return tool["function"]["name"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, Choice("auto")),
        ("auto", Choice("auto")),
        ("none", Choice("none")),
        ("required", Choice("required")),
        (TOOLS[1], Choice("required", frozenset("g"), single=True)),
        (allowed("auto", "fh"), Choice("auto", frozenset("fh"))),
        (allowed("required", "gh"), Choice("required", frozenset("gh"))),
        (allowed("auto", ""), Choice("none", frozenset())),
    ],
)
def test_tool_choice(choice: Any, expected: Choice) -> None:
    asked = request(tools=TOOLS, tool_choice=choice)
    assert asked.choice == expected
    constraint = asked.constraint("may")
    assert (constraint.choice, constraint.allowed) == (expected.mode, expected.allowed)
    assert (constraint.parallel, constraint.reasoning, constraint.json_schema) == (not expected.single, "may", None)


def test_one_call_at_a_time() -> None:
    asked = request(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert asked.choice == Choice("required", None, single=True)
    assert asked.constraint("none") == Constraint("required", parallel=False)


def test_a_named_tool_may_be_called_auto() -> None:
    tool = {"type": "function", "function": {"name": "auto"}}
    asked = request(tools=[tool, *TOOLS], tool_choice=tool)
    assert asked.constraint("none") == Constraint("required", frozenset({"auto"}), parallel=False)


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, {}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False}}, SCHEMA),
    ],
)
def test_the_form_of_the_answer_together_with_calls(response_format: Any, schema: Any) -> None:
    constraint = request(tools=TOOLS, response_format=response_format).constraint("none")
    assert (constraint.choice, constraint.json_schema) == ("auto", schema)


# ---- how it is sampled ----


def test_sampling_cannot_hurt_the_engine() -> None:
    def sampling(**fields: Any) -> Any:
        return request(**fields).sampling(LOADED, Defaults())

    assert sampling(top_k=1_000_000).top_k == sampling(top_k=-1).top_k == 0
    assert sampling(top_k=99).top_k == 99
    assert sampling(temperature=1e-300).temperature == 0
    assert sampling(temperature=1, top_p=0).temperature == 0  # only the likeliest is left
    assert sampling(temperature=1, top_p=0).top_p == 1
    assert sampling(min_p=1e-320).min_p == 0
    assert 0 <= (sampling(seed=-(10**30)).seed or -1) < 2**63
    assert sampling(logit_bias={"99": -100, "0": 1.5}).logit_bias == ((0, 1.5), (99, -100))


def test_what_a_request_leaves_out_comes_from_the_defaults() -> None:
    defaults = Defaults(temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.05)
    left_out = request().sampling(LOADED, defaults)
    assert (left_out.temperature, left_out.top_p, left_out.top_k) == (0.7, 0.8, 20)
    assert (left_out.min_p, left_out.repetition_penalty, left_out.seed) == (0.1, 1.05, None)
    given = request(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1).sampling(LOADED, defaults)
    assert given == request().sampling(LOADED, Defaults())


def test_each_choice_has_a_seed_of_its_own() -> None:
    asked = request(seed=7, n=3, presence_penalty=1, frequency_penalty=-1)
    each = [asked.sampling(LOADED, Defaults(), index=i) for i in range(3)]
    assert [s.seed for s in each] == [7, 8, 9]
    assert {(s.presence_penalty, s.frequency_penalty) for s in each} == {(1, -1)}
    assert request(seed=2**63 - 1).sampling(LOADED, Defaults(), index=1).seed == 0


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert request(max_tokens=5).limit == 5
    assert request(max_tokens=5, max_completion_tokens=7).limit == 7
    assert request().limit is None


# ---- plain text, tokens ----


def test_prompts_as_text_and_as_tokens() -> None:
    def prompts(prompt: Any) -> Any:
        return text(prompt=prompt).prompts(LOADED)

    assert prompts("ab") == ["ab"]
    assert prompts(["ab", "c"]) == ["ab", "c"]
    assert prompts([1, 99]) == [[1, 99]]
    assert prompts([[1], [2, 3]]) == [[1], [2, 3]]
    for bad in ("", [""], [[]], [100], [-1], [[1], [100]], ["a", ""]):
        with pytest.raises(BadRequest, match="prompt"):
            prompts(bad)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1.5]}, "prompt.0"),
        ({"prompt": [[1, "x"]]}, "prompt.0.1"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 4, "n": 2}, "best_of"),
    ],
)
def test_a_bad_field_of_plain_text_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(text, **fields) == param


def test_best_of_what_is_asked_for_anyway_is_taken() -> None:
    assert text(best_of=2, n=2) == text(n=2)
    assert text(best_of=1) == text()


def test_tokens_of_a_text_or_of_a_conversation() -> None:
    def tokenize(**fields: Any) -> TokenizeRequest:
        return parse(TokenizeRequest, json.dumps(fields).encode())

    assert tokenize(prompt="").prompt == ""
    assert tokenize(messages=USER, tools=[TOOL]).for_template() == USER
    assert refused(tokenize) == refused(tokenize, prompt="x", messages=USER) == "prompt"


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, TokenizeRequest])
def test_requests_are_described_by_a_schema(model: Any) -> None:
    schema = model.model_json_schema()
    assert schema["properties"] and "<" not in json.dumps(schema["properties"])
