"""What a reader is given and what it reports: tools, calls, and the events of a stream.

Every character that a model writes ends in exactly one event: `Text`, `Reasoning`, a call, a `Marker` of the format,
or a `Malformed` that carries its raw text. Nothing is dropped without a trace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from json.encoder import encode_basestring
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True)
class Tool:
    """A function that is offered to the model; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Tool:
        """A tool from `{"type": "function", "function": {…}}`, or from the inner object alone."""
        function = value.get("function")
        if not isinstance(function, Mapping):
            function = value
        parameters = function.get("parameters")
        return cls(
            name=str(function.get("name") or ""),
            description=str(function.get("description") or ""),
            parameters=parameters if isinstance(parameters, Mapping) else {},
        )

    def to_openai(self) -> dict[str, Any]:
        """The tool as chat requests spell it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """Schemas of the parameters, by name."""
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Names of the parameters that must be given."""
        found = self.parameters.get("required")
        return tuple(n for n in found if isinstance(n, str)) if isinstance(found, list) else ()


@dataclass(frozen=True)
class ToolCall:
    """A complete call with typed arguments, in the order in which the model wrote them.

    `id` is what the model itself called it, where its format has such a thing; two calls that differ in it are equal.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default="", compare=False)

    def to_openai(self) -> dict[str, Any]:
        """The call as a message of history holds it."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a call that was kept all the same."""

    kind: str
    detail: str
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Part of the thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Marker:
    """Characters that only frame something: tags of the format, the white space beside a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The name of call `index` is known; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments of call `index`, as JSON text; all deltas of a finished call join to one JSON object."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class CallFinished:
    """Call `index` is complete; `raw` is what the model wrote (several calls in one body share that of the first).

    `rescued`: the model wrote it outside its wire format, and the reader was asked to look for such calls.
    """

    index: int
    call: ToolCall
    problems: tuple[Problem, ...] = ()
    raw: str = ""
    rescued: bool = False


@dataclass(frozen=True, slots=True)
class Malformed:
    """What began like a call and is none. Show `raw` as text. With an `index`, that call was started already.

    `truncated`: the text ended inside call `index` of `name`, and `arguments` is the JSON text of what had arrived.
    """

    raw: str
    reason: str
    index: int | None = None
    in_reasoning: bool = False
    truncated: bool = False
    name: str = ""
    arguments: str = ""


Event = Text | Reasoning | Marker | CallStarted | ArgumentsDelta | CallFinished | Malformed
KINDS: dict[type, str] = {
    Text: "text", Reasoning: "reasoning", Marker: "marker", CallStarted: "call_started", ArgumentsDelta: "arguments",
    CallFinished: "call", Malformed: "malformed",
}  # fmt: skip


def told(events: Iterable[Event]) -> list[dict[str, Any]]:
    """`events` as JSON values, each with its `kind`; neighbours that continue the same text or arguments are one."""
    out: list[dict[str, Any]] = []
    for event in events:
        fields: dict[str, Any] = asdict(event)
        call = fields.pop("call", {})
        new = {"kind": KINDS[type(event)], **fields, **call}
        (grows,) = {"text", "json"} & new.keys() or {""}
        if grows and out and all(out[-1].get(key) == value for key, value in new.items() if key != grows):
            out[-1][grows] += new[grows]
        else:
            out.append(new)
    return out


def dumps(value: Any) -> str:
    """`value` as JSON text that can be sent as UTF-8."""
    text = _ENCODER.encode(value)
    return text if text.isascii() else _SURROGATE.sub(_spelled_out, text)


def escape(text: str) -> str:
    """`text` as the inside of a JSON string: what `dumps` does, in less time, since streams need it for every piece."""
    text = encode_basestring(text)[1:-1]
    return text if text.isascii() else _SURROGATE.sub(_spelled_out, text)


def _spelled_out(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
