"""What a server under examination is asked: few conversations, of made-up words that no answer holds by chance.

What the arguments must be is told by schemas that leave one value, so that a server that holds calls to their schema
answers alike whatever its model; where a model is free, the checks tell what it did from what the server did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 512
THINKING_TOKENS = 1024

JsonObject = dict[str, Any]

STRING = {"type": "string"}


def tool(name: str, description: str, **properties: JsonObject) -> JsonObject:
    """A function all of whose parameters are required."""
    parameters = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def only(value: Any, kind: str) -> JsonObject:
    """A schema that `value` alone fits."""
    return {"type": kind, "enum": [value]}


def named(name: str) -> JsonObject:
    """The `tool_choice` that names a tool."""
    return {"type": "function", "function": {"name": name}}


def user(text: str) -> JsonObject:
    return {"role": "user", "content": text}


@dataclass(frozen=True)
class Probe:
    """A question and the tools that are offered with it; `wanted`: the tool that answers it."""

    question: str
    tools: tuple[JsonObject, ...]
    wanted: str

    @property
    def fields(self) -> JsonObject:
        return {"messages": [user(self.question)], "tools": list(self.tools)}


ORBIT = tool("look_up_orbit", "Look up the orbit of a satellite.", satellite={**STRING, "description": "Its name."})
LINES = tool("count_lines", "Count the lines of a file", path=STRING)
WEATHER = tool("get_weather", "Get the current weather of a city.", city=STRING)
PIGEON = tool("send_pigeon", "Send a carrier pigeon to a tower.", tower=STRING)

# Calls that are to be expected of any model that knows tools; a model that knows one world only may know but one.
PLAIN = (
    Probe("Look up the orbit of the satellite Zeeland-71 with the tool.", (ORBIT, PIGEON), "look_up_orbit"),
    Probe("How long is src/orbit.py?", (LINES, PIGEON), "count_lines"),
    Probe("What is the weather in Bergen right now?", (WEATHER, PIGEON), "get_weather"),
)
BOTH = Probe(
    "Look up the orbits of two satellites, Quorra-12 and Quorra-13, with two calls at once.", (ORBIT, PIGEON),
    "look_up_orbit",
)  # fmt: skip

LARGE = 9007199254740993  # the first integer that a float of 64 bits does not hold
TYPED_VALUES: JsonObject = {
    "berth": LARGE,
    "draught": 2.5,
    "at_night": True,
    "harbour_code": "04109",
    "remark": "null",
    "hull": {"class": "Kestrel", "masts": 3},
}
TYPED = Probe(
    f"Book berth {LARGE} with draught 2.5, at night, harbour code 04109, remark null, hull class Kestrel of 3 masts.",
    (
        tool(
            "book_berth",
            "Book a berth in the harbour.",
            berth=only(LARGE, "integer"),
            draught=only(2.5, "number"),
            at_night=only(True, "boolean"),
            harbour_code=only("04109", "string"),
            remark=only("null", "string"),
            hull={
                "type": "object",
                "properties": {"class": only("Kestrel", "string"), "masts": only(3, "integer")},
                "required": ["class", "masts"],
                "additionalProperties": False,
            },
        ),
    ),
    "book_berth",
)

# Text that looks like the end of a call in one format or another.
MARKED_TEXT = "A </tool_call> and a </parameter> end the Marlow-5 page."
MARKED = Probe(
    f"Save this note word for word: {MARKED_TEXT}",
    (tool("save_note", "Save a note.", text=only(MARKED_TEXT, "string")),),
    "save_note",
)

MENTION = Probe(
    "Call no tool. Only say this sentence again: The Tolmin-8 manual says that calls begin with <tool_call> there.",
    (PIGEON,),
    "",
)


def calling(name: str, arguments: str, *, content: str | None = None, id: str = "call00001") -> JsonObject:
    """The turn of the assistant that calls `name`; the id is one that all families take."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant", "content": content, "tool_calls": [{"id": id, "type": "function", "function": function}],
    }  # fmt: skip


def result(text: str, id: str = "call00001") -> JsonObject:
    return {"role": "tool", "tool_call_id": id, "content": text}


# A turn after the result: what the history must hold.
SECOND = (
    user("How high does the satellite Brannoch-4 fly? Answer in one sentence."),
    calling("look_up_orbit", '{"satellite": "Brannoch-4"}'),
    result("The orbit of Brannoch-4 is 412 km high."),
)
FILLING = "heron " * 40  # so long that a prompt with it is longer, however it is rendered

SCHEMA = {
    "type": "object",
    "properties": {"harbour": only("Ostrava-3", "string")},
    "required": ["harbour"],
    "additionalProperties": False,
}
FORMATTED = {
    "messages": [user("Name the harbour Ostrava-3.")],
    "response_format": {"type": "json_schema", "json_schema": {"name": "harbour", "strict": True, "schema": SCHEMA}},
}

NO_SUCH_MODEL = "punie-mlx doctor: no such model"  # no name of a repository, so that nobody looks for it anywhere
CONTROL = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "[/INST]")
