"""A chat completion request: checked before anything else sees it.

`null` is the same as absent. Fields that nobody here knows are ignored; those that would change the answer and are
not supported are refused by name, since an answer that silently leaves them out would be a wrong one.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from punie_mlx.serve.engine import Sampling
from punie_mlx.serve.errors import BadRequest

GREEDY_BELOW = 1e-3  # a smaller temperature overflows when logits are divided by it
UNSUPPORTED = ("logit_bias", "functions", "function_call", "audio", "modalities", "prediction", "web_search_options")


class Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextPart(Model):
    type: Literal["text"]  # images and audio are not read, and no address in a request is ever fetched
    text: str


class CalledFunction(Model):
    name: str
    arguments: Annotated[str, BeforeValidator(_as_json)] = "{}"


class Call(Model):
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)] = []
    tool_calls: list[Call] = []
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        message = self.model_dump(exclude_none=True, exclude_defaults=True)
        message["role"] = "system" if self.role == "developer" else self.role
        message["content"] = "".join(part.text for part in self.content)
        return message


class Function(Model):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolSpec(Model):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as training rows spell it: without what only the API means (`strict`)."""
        return self.model_dump(exclude_none=True)


class StreamOptions(Model):
    include_usage: bool = False


class ResponseFormat(Model):
    type: Literal["text"]


class ChatRequest(Model):
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[ToolSpec] = []
    tool_choice: Any = "auto"
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    seed: int | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)] = []
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    logprobs: Literal[False] = False
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _spread_stop(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("stop"), str):
            return {**value, "stop": _as_list(value["stop"]) if value["stop"] else []}
        return value

    @property
    def limit(self) -> int | None:
        """The most tokens that the client wants to be generated."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, vocabulary: int) -> Sampling:
        """How to sample from logits of width `vocabulary`."""
        greedy = self.temperature < GREEDY_BELOW or self.top_p == 0
        return Sampling(
            temperature=0.0 if greedy else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=self.top_k if 0 < self.top_k < vocabulary else 0,  # the whole vocabulary is no restriction
            min_p=self.min_p if self.min_p > 1e-30 else 0.0,  # mlx_lm takes its logarithm
            seed=None if self.seed is None else self.seed % 2**63,
        )

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is shown, as `tool_choice` has it. Raises `BadRequest`."""
        tools = [t.for_template() for t in self.tools]
        chosen = _chosen(self.tool_choice)
        if chosen is None:
            return tools
        unknown = chosen - {t["function"]["name"] for t in tools}
        if unknown:
            raise BadRequest(f"tool_choice names a tool that is not in tools: {sorted(unknown)[0]!r}", "tool_choice")
        return [t for t in tools if t["function"]["name"] in chosen]


def _chosen(choice: Any) -> set[str] | None:
    """Names of the tools that `tool_choice` leaves, or None for all."""
    match choice:
        case "auto" | "required":
            return None
        case "none":
            return set()
        case {"type": "function", "function": {"name": str(name)}}:
            return {name}
        case {"type": "allowed_tools", "allowed_tools": {"tools": list(tools)}}:
            names = {t["function"]["name"] for t in tools if _is_named(t)}
            if len(names) == len(tools):
                return names
    raise BadRequest(
        'tool_choice must be "auto", "none", "required", {"type": "function", "function": {"name": …}} '
        'or {"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}',
        "tool_choice",
    )


def _is_named(tool: Any) -> bool:
    return (
        isinstance(tool, dict)
        and isinstance(tool.get("function"), dict)
        and isinstance(tool["function"].get("name"), str)
    )


def parse(body: bytes) -> ChatRequest:
    """The request in `body`. Raises `BadRequest`, which names the field."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise BadRequest(f"{param or 'the request body'}: {first['msg']}", param) from e
    names = [t.function.name for t in request.tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadRequest(f"tools.{i}.function.name: {name!r} is there twice", f"tools.{i}.function.name")
    for name in UNSUPPORTED:
        if json.loads(body).get(name):
            raise BadRequest(f"{name} is not supported by this server: leave it out", name)
    return request
