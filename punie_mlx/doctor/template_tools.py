"""What the template tells the model of its tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from punie_mlx.doctor import cases
from punie_mlx.doctor.cases import Talk, schema, seen, text_property, tool
from punie_mlx.doctor.excerpts import around
from punie_mlx.doctor.findings import Check, Finding, Skip
from punie_mlx.doctor.specimen import Specimen

_WORDS = {
    "chart_reef": "the tool's name",
    "hail_tender": "the second tool's name",
    "the reef Lindqvist": "what the tool is for",
    "the tender Ravenna": "what the second tool is for",
    "skerry": "the name of a parameter",
    "fathoms": "the name of a second parameter",
    "berthage": "the name of the second tool's parameter",
}
_NO_TOOLS = "The model does not know which tools there are, so it answers in prose or makes up calls."


def _conversations(specimen: Specimen) -> dict[str, list[cases.Message]]:
    loop = Talk.of(specimen).loop()
    return {
        "a question": [cases.user()],
        "a question after a system message": [cases.system(), cases.user()],
        "a question later on": [cases.user(), cases.answer(), cases.user(cases.SECOND)],
        "the result of a call": loop,
        "the result of a call with a system message before it": [cases.system(), *loop],
    }


def tools_ignored(specimen: Specimen) -> Iterator[Finding]:
    """Names, descriptions and parameters of all tools stand in every prompt."""
    lost: dict[str, list[str]] = {}
    texts = {}
    for place, messages in _conversations(specimen).items():
        made = specimen.render(messages, cases.OFFERED)
        if not made.failed:
            texts[place] = made.text
            lost |= {place: gone} if (gone := [w for w in _WORDS if w not in made.text]) else {}
    if not texts:
        raise Skip("no conversation with tools renders: render-error says so")
    if not lost:
        return
    place = next(iter(lost))
    names = all("chart_reef" in gone and "hail_tender" in gone for gone in lost.values())
    where = "in every prompt" if len(lost) == len(texts) else f"in the prompt after {' and after '.join(lost)}"
    gone = lost[place]
    if names:
        what = "The tools are left out"
    else:
        what = f"Part of what the model should know of its tools is left out ({', '.join(_WORDS[w] for w in gone)})"
    prompt = texts[place]
    same = specimen.render(_conversations(specimen)[place]).text == prompt
    yield Finding(
        "tools-ignored",
        "high" if any("chart_reef" in g or "hail_tender" in g for g in lost.values()) else "medium",
        f"{what} {where}.",
        (
            specimen.show(f"words of the tools that the prompt after {place} does not hold", ", ".join(gone)),
            specimen.show(f"the prompt{', just as it is without tools' if same else ''}", around(prompt, cases.FIRST)),
        ),
        _NO_TOOLS if names else "The model must guess what the tools are for, or what to give them.",
        "Write every tool of `tools` into the prompt as JSON (`{{ tool | tojson }}`), whatever the messages are; a "
        "model that was never taught tools also needs training on such prompts.",
    )


DEEP = tool(
    "plot_course",
    "Plot the course Ulveston.",
    schema(
        ("heading",),
        heading=text_property("The heading, as Marlowe gives it."),
        tack={"type": "string", "enum": ["larboard-Q7", "starboard-Q8"]},
        legs={
            "type": "array",
            "items": schema(("bearing_z",), bearing_z={"type": "number"}, note_z={"type": "string"}),
        },
        swell={"type": "integer", "default": 31607},
    ),
)
_DEEP_WORDS = {
    "as Marlowe gives it": "what a parameter means",
    "larboard-Q7": "the values that an enum allows",
    "starboard-Q8": "the values that an enum allows",
    "bearing_z": "what stands in a list of objects",
    "note_z": "what stands in a list of objects",
}


_TYPES = ("string", "integer", "number", "boolean", "array", "object")


def _alike(specimen: Specimen) -> Iterator[str]:
    """What the prompt does not tell of the types of parameters."""
    if same := _same(specimen, {kind: {"type": kind} for kind in _TYPES}):
        yield f"the types of parameters ({same} look the same)"
    or_null = {kind: {"anyOf": [{"type": kind}, {"type": "null"}]} for kind in ("string", "integer", "boolean")}
    if _same(specimen, or_null):
        yield "the types of parameters that may be null (anyOf)"


def _same(specimen: Specimen, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """Those of `schemas` with which a parameter looks the same, by name."""
    shown: dict[str, list[str]] = {}
    for name, of_swell in schemas.items():
        offered = tool("set_swell", "Set the swell Norgaard.", schema(swell=of_swell))
        made = specimen.render([cases.user()], [offered])
        if not made.failed:
            shown.setdefault(made.text, []).append(name)
    return "; ".join(" and ".join(names) for names in shown.values() if len(names) > 1)


def _all_required() -> dict[str, Any]:
    """`DEEP`, with all of its parameters required."""
    parameters = DEEP["function"]["parameters"]
    return {**DEEP, "function": {**DEEP["function"], "parameters": parameters | schema(**parameters["properties"])}}


def schema_lost(specimen: Specimen) -> Iterator[Finding]:
    """The schema reaches the model: what parameters mean, enums, nested objects, types, what is required."""
    text = seen(specimen, [cases.user()], [DEEP])
    if "heading" not in text or "swell" not in text:
        raise Skip("parameters are not shown at all: tools-ignored says so")
    lost = list(dict.fromkeys(what for word, what in _DEEP_WORDS.items() if word not in text))
    lost += list(_alike(specimen))
    lost += ["which parameters are required"] if seen(specimen, [cases.user()], [_all_required()]) == text else []
    if lost:
        yield Finding(
            "schema-lost",
            "medium",
            f"The prompt leaves out part of the tools' schemas: {', '.join(lost)}.",
            (specimen.show("a tool as the prompt shows it", around(text, "plot_course", "heading", "swell")),),
            "The model writes values that the tool does not take: words outside of an enum, text for a number, "
            "objects without their keys.",
            "Show the whole schema: `{{ tool | tojson }}`, or `parameters | tojson` after the name.",
        )


# ---- words about whether to call ----

_REPLY, _A_CALL = r"(?:reply|respond|answer)", r"(?:with|by|in)\s+(?:[\w-]+\s+){0,4}(?:tool|function)[ -]calls?\b"
_ORDERS = re.compile(
    r"\b(?:must|always|have to|shall|need to|required to|obliged to)\s+(?:\w+\s+){0,2}"
    r"(?:call|use|invoke|make|write|emit)\s+(?:\w+\s+){0,3}(?:tool|function)s?\b"
    r"|\b(?:tool|function)[ -]calls?\s+(?:is|are)\s+(?:always\s+)?(?:required|mandatory|obligatory)\b"
    rf"|\b(?:only|always)\s+(?:\w+\s+)?{_REPLY}\s+{_A_CALL}"
    rf"|\b{_REPLY}\s+(?:only|always|exclusively)\s+{_A_CALL}"
    rf"|\b{_REPLY} with (?:a |an )?json(?: object)? for (?:a|the|one) (?:tool|function) call\b"
    rf"|\bnever\s+{_REPLY}\s+without\s+(?:calling|using)\b"
    r"|\b(?:every|each)\s+(?:answer|reply|response|turn|message)\s+(?:must|has to|shall)\s+(?:\w+\s+){0,3}"
    r"(?:tool|function)?[ -]?calls?\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if|when|whenever|unless|in case|for each|to call|in order to)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")


def tool_choice(specimen: Specimen) -> Iterator[Finding]:
    """No words that order a call in every answer; a `tool_choice` that the template reads changes something."""
    text = seen(specimen, [cases.user()], cases.OFFERED)
    bare = specimen.render([cases.user()]).text
    for sentence in _SENTENCE.findall(text):
        ordered = _ORDERS.search(sentence)
        if ordered and sentence not in bare and not _CONDITION.search(sentence[: ordered.start()]):
            yield Finding(
                "tool-choice",
                "medium",
                "With tools, the prompt orders a call in every answer.",
                (specimen.show("the template's words", around(sentence.strip(), ordered[0], reach=30)),),
                "The model calls a tool for a greeting, and again after the result that would have let it answer: the "
                "agent loops until its limit.",
                "Say when to call: “If you choose to call a tool, …”. What `tool_choice` demands is the "
                "server's business, which can hold the model to it.",
            )
            return
    yield from _without_effect(specimen)


def _without_effect(specimen: Specimen) -> Iterator[Finding]:
    if not specimen.mentions("tool_choice"):
        return
    choices: Mapping[str, Any] = {c: specimen.render([cases.user()], cases.OFFERED, tool_choice=c) for c in _CHOICES}
    if len({(made.text, made.error) for made in choices.values()}) == 1:
        place = specimen.template.find("tool_choice")
        yield Finding(
            "tool-choice",
            "low",
            "The template reads `tool_choice`, and no value of it changes the prompt.",
            (
                specimen.show("the template", around(specimen.template[max(0, place - 40) :], "tool_choice")),
                specimen.show("the prompt for each of none, auto, required", around(choices["none"].text, cases.FIRST)),
            ),
            "A client that forbids or demands a call is not heard by the model.",
            "Write what it means into the prompt, or take the variable out and let the server hold the model to it.",
        )


_CHOICES = ("none", "auto", "required")

CHECKS = (
    Check("tools-ignored", "template", "Tools do not reach the prompt", tools_ignored),
    Check("schema-lost", "template", "Part of a tool's schema is left out", schema_lost, follows=("tools-ignored",)),
    Check("tool-choice", "template", "Words order a call in every answer", tool_choice),
)
