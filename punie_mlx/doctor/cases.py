"""The conversations that templates are tried on, in words that stand in no template by chance.

A template may need calls in one spelling (arguments as a string, no empty content): `Talk.of` finds the one in which
it shows a call at all, so that one fault does not hide behind another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from punie_mlx.doctor.findings import Skip
from punie_mlx.doctor.specimen import Specimen

Message = dict[str, Any]

SYSTEM, SECOND_SYSTEM = "Answer as harbour pilot Quillon.", "Keep to the channel Wexmoor."
FIRST, SECOND, THIRD = "Where is buoy Fennrick?", "And the lock Tarrowby?", "Or the sluice Imbert?"
ANSWER, SECOND_ANSWER = "Off the mole Haldric.", "Behind the weir Osmund."
ASIDE, THOUGHT = "Looking that up for Brisco.", "The almanac Yarrow will tell."
THINKING = "reasoning_content"  # transformers gives templates its other names, too
MISSING = object()


@dataclass(frozen=True)
class Call:
    """A call of a conversation and what came back; ids have nine characters, which is all that Mistral takes."""

    name: str
    arguments: Mapping[str, Any]
    id: str
    result: str

    @property
    def words(self) -> list[str]:
        """What a rendering must show of the arguments."""
        return [w for key, value in self.arguments.items() for w in (key, str(value))]


ORBIT = Call("look_up_orbit", {"body": "Zeeland-71", "epoch": 48213}, "kQ7zX2Lm9", "perigee Kestrel-19")
BERTH = Call("reserve_berth", {"pier": "Ostrava-12", "crates": 30967}, "bT4wR8Nc1", "slip Marmot-26")
_VALUES = {"lit": True, "crew": None, "marks": ["Sorrel-3", False], "hull": {"beam": "Tansy-8", "dry": True}}
TYPED = replace(ORBIT, arguments={**ORBIT.arguments, **_VALUES})


def tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool as OpenAI's API has it; None leaves a key out."""
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def schema(required: Sequence[str] = (), **properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object; all of its properties are required if none are named."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def text_property(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


OFFERED = (
    tool(
        "chart_reef",
        "Draw the reef Lindqvist.",
        schema(skerry=text_property("Which skerry, as Pembry counts."), fathoms={"type": "integer"}),
    ),
    tool("hail_tender", "Hail the tender Ravenna.", schema(berthage=text_property("A place, as Torvald names it."))),
)
"""Tools with other names than those that conversations call: a name in a prompt is then the call's own."""


@dataclass(frozen=True)
class Talk:
    """Writes messages in the spelling that a template takes.

    content: of a message with calls and no words. as_text: arguments are JSON text.
    """

    content: Any = ""
    as_text: bool = False

    @staticmethod
    @lru_cache(maxsize=4)
    def of(specimen: Specimen) -> Talk:
        """The first spelling in which `specimen` shows a call and its result; the plain one where none does."""
        best: list[Talk] = []
        for as_text in (False, True):
            for content in ("", None, ASIDE):
                talk = Talk(content, as_text)
                made = specimen.render(talk.loop(), OFFERED)
                shown = [w in made.text for w in (ORBIT.name, *ORBIT.words)]
                if all(shown):
                    return talk
                best += [] if made.failed else [talk]
        return best[0] if best else Talk()

    def calls(self, *calls: Call, content: Any = MISSING, thought: str = "") -> Message:
        """The assistant's turn that makes `calls`."""
        message = {"role": "assistant", "content": self.content if content is MISSING else content}
        told = [{"id": c.id, "type": "function", "function": self._function(c)} for c in calls]
        return message | ({THINKING: thought} if thought else {}) | {"tool_calls": told}

    def _function(self, call: Call) -> dict[str, Any]:
        arguments = dict(call.arguments)
        return {
            "name": call.name,
            "arguments": json.dumps(arguments, ensure_ascii=False) if self.as_text else arguments,
        }

    def turn(self, *calls: Call, **more: Any) -> list[Message]:
        """`calls` and their results."""
        return [self.calls(*calls, **more), *map(result, calls)]

    def loop(self, *, thought: str = "") -> list[Message]:
        """The smallest conversation with a tool's result."""
        return [user(), *self.turn(ORBIT, thought=thought)]


def system(text: str = SYSTEM) -> Message:
    return {"role": "system", "content": text}


def user(text: Any = FIRST) -> Message:
    return {"role": "user", "content": text}


def answer(text: str = ANSWER) -> Message:
    return {"role": "assistant", "content": text}


def result(call: Call, text: Any = MISSING, **more: Any) -> Message:
    content = call.result if text is MISSING else text
    return {"role": "tool", "tool_call_id": call.id, "content": content, **more}


def seen(
    specimen: Specimen, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, **kwargs: Any
) -> str:
    """The rendering of `messages`, with tools where the template cannot do without.

    Raises `Skip` where the template raises: another check says so.
    """
    made = specimen.render(messages, tools, **kwargs)
    if made.failed and tools is None:
        made = specimen.render(messages, OFFERED, **kwargs)
    if made.failed:
        raise Skip(f"the template raises on what this check renders: {made.error}")
    return made.text
