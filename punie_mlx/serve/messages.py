"""What a client says: messages and tools of a request, checked, and as chat templates know them.

`null` is the same as absent. Fields that nobody here knows are ignored, and named in the debug log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from punie_mlx.serve.errors import BadRequest

log = logging.getLogger(__name__)

THINK = ("<think>", "</think>")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_SHOWN = 40  # characters of an unknown field's name in the log


class Model(BaseModel):
    """Part of a request. `refused`: fields that are not supported, and would make the answer a wrong one if ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    refused: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name in cls.refused & value.keys():
            if value[name]:
                raise BadRequest(f"{name} is not supported by this server: leave it out", name)
        if log.isEnabledFor(logging.DEBUG) and (unknown := value.keys() - cls._names() - cls.refused):
            log.debug("%s: ignored, since unknown: %s", cls.__name__, ", ".join(n[:_SHOWN] for n in sorted(unknown)))
        return {k: v for k, v in value.items() if v is not None}

    @classmethod
    def _names(cls) -> set[str]:
        return {field.alias or name for name, field in cls.model_fields.items()}


# ---- messages ----


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class TextPart(Model):
    """Text, the only content that is read: no image or audio, and no address in a request is ever fetched."""

    type: Literal["text"]
    text: str


class RefusalPart(Model):
    """What an assistant said instead of an answer: text of the conversation like any other."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _kind_of_part(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<refusal>" if kind == "refusal" else "<text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")], Discriminator(_kind_of_part)
]
Content = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class CalledFunction(Model):
    name: str
    arguments: Annotated[str, BeforeValidator(_as_json, json_schema_input_type=str | dict[str, Any])] = "{}"


class Call(Model):
    """A call that the assistant made in an earlier turn."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Message(Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = []
    tool_calls: list[Call] = []
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as some clients call it
    refusal: str | None = None

    @property
    def text(self) -> str:
        """All that the message says."""
        return "".join(part.text for part in self.content) or self.refusal or ""

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        thinking = self.reasoning_content or self.reasoning
        if self.role == "assistant":
            if not thinking:
                thinking, message["content"] = split_thinking(message["content"])
            if thinking:
                message["reasoning_content"] = thinking
            if self.tool_calls:
                message["tool_calls"] = [c.for_template() for c in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


def split_thinking(content: str) -> tuple[str, str]:
    """The thinking that `content` begins with, and the rest; `""` and all of it where it begins with none."""
    opening, closing = THINK
    begun = content.lstrip()
    if not begun.startswith(opening) or closing not in begun:
        return "", content
    thinking, _, rest = begun[len(opening) :].partition(closing)
    return thinking.strip("\n"), rest.lstrip("\n")


def for_template(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """`messages` as chat templates know them: what is said to the system is one message, the first."""
    system: list[str] = []
    rest: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            system.append(message.text)
        else:
            rest.append(message.for_template())
    first = [{"role": "system", "content": "\n\n".join(filter(None, system))}] if system else []
    return [*first, *rest]


# ---- tools ----


class Function(Model):
    """A function of the client's. `strict` is accepted: what a call must be is told by its schema in any case."""

    name: Annotated[str, Field(pattern=r"^[\w.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Model):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as training rows spell it: without what only the API means (`strict`)."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = NO_PARAMETERS if self.function.parameters is None else self.function.parameters
        return {"type": "function", "function": function}


def check_names(tools: Sequence[ToolSpec]) -> None:
    """Raises `BadRequest` where two tools have one name."""
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.function.name in names:
            param = f"tools.{i}.function.name"
            raise BadRequest(f"{param}: {tool.function.name!r} is there twice", param)
        names.add(tool.function.name)


# ---- tool_choice ----


class NamedFunction(Model):
    name: str


class NamedTool(Model):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Model):
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool]


class AllowedChoice(Model):
    """Some of the tools; the others may not be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str:
    if isinstance(value, str):
        return "<mode>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["auto", "required", "none"], Tag("<mode>")]
    | Annotated[NamedTool, Tag("<named>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(_kind_of_choice),
]
