"""What a client says: messages and tools of a request, checked, and as chat templates know them.

`null` is the same as absent. Fields that nobody here knows are ignored, and named in the debug log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from punie_mlx.chat import messages as chat
from punie_mlx.serve.errors import BadRequest

log = logging.getLogger(__name__)

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

    def plain(self) -> dict[str, Any]:
        """The message as a training row spells it."""
        calls = [c.for_template() for c in self.tool_calls]
        said = {"role": self.role, "content": self.text, "tool_calls": calls}
        names = ("tool_call_id", "name", "reasoning_content", "reasoning")
        return said | {name: getattr(self, name) for name in names}


def for_template(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """`messages` as chat templates know them: what is said to the system is one message, the first."""
    return chat.for_template(message.plain() for message in messages)


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
        (tool,) = chat.tools_for_template([{"function": self.function.model_dump()}])
        return tool


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
