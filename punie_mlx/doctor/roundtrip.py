"""A call written by the template and read by the format that it shows: is it the same call?

A case counts only if the format itself can carry it: what the format's own writing does not bring back, such as the
end of a value spelled inside the value, is no fault of a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.chat.render import StockParser
from punie_mlx.doctor import cases, stock, template_calls, template_text
from punie_mlx.doctor.excerpts import CUT, piece, shared, short
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.stream import Reading, read
from punie_mlx.toolcalls.wire import Format

NAME, PLACE = "survey_lagoon", "Zeeland-71"
TOOL = cases.tool(
    NAME,
    "Survey the lagoon Hjelmar.",
    cases.schema(
        ("place",),
        place={"type": "string"},
        count={"type": "integer"},
        ratio={"type": "number"},
        open={"type": "boolean"},
        marks={"type": "array"},
        extra={"type": "object"},
    ),
)
OTHER_NAME = "chart_reef"
OTHER = cases.tool(OTHER_NAME, "Draw the reef Lindqvist.", cases.schema(skerry={"type": "string"}))
TOOLS = (TOOL, OTHER)  # whoever shows only the last of them has its own fault
SCHEMAS = tuple(map(Tool.from_openai, TOOLS))
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain arguments": {"place": PLACE, "count": 3},
    "values of all types": {
        "place": PLACE, "count": 9007199254740993, "ratio": -0.5, "open": False, "marks": ["a", 2, None, True],
        "extra": {"deep": {"k": [1.5, {}]}},
    },
    "no arguments": {},
    "a string that reads like a number": {"place": "007"},
    "a string that reads like a boolean": {"place": "true"},
    "an empty string": {"place": ""},
    "several lines": {"place": "def Zeeland():\n    return 71\n\n\tpass"},
    "white space around a value": {"place": "  Zeeland-71\n"},
    "quotes and backslashes": {"place": "say \"Zeeland\" and 'C:\\new' \\n {\"a\": 1}"},
    "other scripts": {"place": "Zürich 東京 🎈"},
    "markup": {"place": "<b>Zeeland</b> &amp; 1 < 2 {{ x }} {% y %}"},
}  # fmt: skip
_TWO = "another call beside it"
_IN_NO_FORM = "the arguments of calls stand in a wrong form: arguments-form says so"
_TAG = re.compile(r"<(?!/)[\w:|]*(?:tool|function)_?calls?[\w:|]*>")


@dataclass(frozen=True)
class Written:
    """What the template makes of a turn with calls: `turn` is what a model would write, after the prompt."""

    turn: str
    prompt: str
    in_reasoning: bool = False


def write(specimen: Specimen, *calls: ToolCall) -> Written:
    """The turn that makes `calls`, as the template writes it into the history. Raises `Skip` where it raises."""
    talk = cases.Talk.of(specimen)
    ids = _ids(specimen, calls)
    told = [cases.Call(c.name, c.arguments, i, "") for c, i in zip(calls, ids, strict=True)]
    messages = [cases.user(), talk.calls(*told)]
    prompt = cases.seen(specimen, messages[:1], TOOLS)
    whole = cases.seen(specimen, messages, TOOLS, add_generation_prompt=False)
    if whole.startswith(prompt):
        think = specimen.wire.think[0].strip() if specimen.wire and any(specimen.wire.think) else ""
        return Written(whole[len(prompt) :], prompt, bool(think) and prompt.rstrip().endswith(think))
    return Written(whole[_beginning(whole, prompt) :], prompt)


def _beginning(whole: str, prompt: str) -> int:
    """Where a turn begins in `whole` that has another beginning than the prompt: not in the middle of a tag."""
    same = shared(whole, prompt)
    opened = [same.rfind(o) for o, c in ("<>", "[]") if same.rfind(o) > same.rfind(c)]
    return max(opened, default=len(same))


def _ids(specimen: Specimen, calls: Sequence[ToolCall]) -> list[str]:
    """Ids as the models themselves write them: Kimi's hold the name, Mistral's have nine characters."""
    if specimen.wire and specimen.wire.name == "kimi":
        return [f"functions.{c.name}:{i}" for i, c in enumerate(calls)]
    return [f"kQ7zX2Lm{i}" for i in range(len(calls))]


def reading(specimen: Specimen, written: Written) -> Reading:
    """What our reader finds in a turn."""
    return read(written.turn, _wire(specimen), SCHEMAS, starts_in_reasoning=written.in_reasoning)


def _wire(specimen: Specimen) -> Format:
    if specimen.wire is None:
        raise Skip("no wire format is known: no-format says so")
    return specimen.wire


def told(calls: Sequence[ToolCall]) -> str:
    """Names and arguments, so that 1, 1.0 and "1" differ and the order of arguments does not matter."""
    return json.dumps([[c.name, c.arguments] for c in calls], ensure_ascii=False, sort_keys=True)


def _carries(wire: Format, calls: Sequence[ToolCall]) -> bool:
    """Whether the format brings `calls` back where the format itself has written them."""
    return told(read(wire.render(calls), wire, SCHEMAS).calls) == told(calls)


# ---- checks ----


def no_format(specimen: Specimen) -> Iterator[Finding]:
    found = specimen.detection
    if found.format:
        return
    if found.formats:
        summary = f"the template fits {len(found.formats)} wire formats: {', '.join(found.formats)}"
    else:
        summary = "the template shows no wire format that is known"
    shown = [
        Shown(name, CUT.join(dict.fromkeys(s.words for s in why.words)))
        for name, why in list(found.evidence.items())[:2]
    ]
    yield Finding(
        "no-format",
        "high",
        summary,
        tuple(shown) or (_seen(specimen),),
        "A server cannot tell which reader to take: calls come out as text, or it refuses to start.",
        "Name the format (`punie-mlx serve --tool-call-format NAME`), or give the model a template that shows how "
        "calls are written (`punie-mlx template make`).",
    )


def _seen(specimen: Specimen) -> Shown:
    """The turn of a call as it is rendered, which is in no known format; why none is known where it cannot be."""
    try:
        return specimen.show("the turn of a call", short(write(specimen, ToolCall(NAME, {"place": PLACE})).turn))
    except Skip:
        return Shown("seen", specimen.detection.explain())


def parser_mismatch(specimen: Specimen) -> Iterator[Finding]:
    wire = _wire(specimen)
    written = write(specimen, ToolCall(NAME, ARGUMENTS["plain arguments"]))
    if NAME not in written.turn:
        raise Skip("the template does not write the call: tool-calls-dropped says so")
    found = reading(specimen, written)
    if not found.calls and _misspelled(specimen):
        raise Skip(_IN_NO_FORM)
    if not found.calls:
        why = found.malformed[0].reason if found.malformed else "it is text to the reader"
        yield Finding(
            "parser-mismatch",
            "high",
            f"the call that the template writes into the history is none of its own format, {wire.name}: {why}",
            (specimen.show("written", short(written.turn)), Shown("a call in that format", short(_sample(wire)))),
            "It sees calls in its history that no reader takes for calls, and copies them: its first call works, "
            "the second is text.",
            f"Write calls in the history as the format has them, between {wire.open or 'its markers'} and "
            f"{wire.close or 'the end of the turn'}.",
        )
    elif strange := _taught_otherwise(written):
        taught, used = strange
        yield Finding(
            "parser-mismatch",
            "high",
            f"the prompt tells the model to open a call with {taught}, the history opens it with {used}",
            (
                Shown("told in the prompt", _around(written.prompt, taught)),
                Shown("written", _around(written.turn, used)),
            ),
            f"The model writes {taught} first and {used} later; a reader that waits for one misses the other.",
            f"Write {used} in both places.",
        )  # fmt: skip


def _taught_otherwise(written: Written) -> tuple[str, str] | None:
    """A tag that opens calls in the prompt and not in the turn, and the one that does in the turn."""
    taught = dict.fromkeys(_TAG.findall(written.prompt))
    used = dict.fromkeys(_TAG.findall(written.turn))
    if not taught or not used or taught.keys() & used.keys():
        return None
    return next(iter(taught)), next(iter(used))


_OWNERS: dict[str, Callable[[Specimen], Iterator[Finding]]] = {
    "values of all types": template_calls.value_types,
    "several lines": template_text.trimmed,
    "white space around a value": template_text.trimmed,
    "quotes and backslashes": template_text.unicode_escaped,
    "other scripts": template_text.unicode_escaped,
    "markup": template_text.unicode_escaped,
}
"""Checks that look at what a case has beside the rest: what they find is not told twice."""


def _misspelled(specimen: Specimen) -> bool:
    """Whether arguments that are an object are written in a wrong form, which has a check of its own."""
    return any(f.severity == "high" for f in _found(template_calls.arguments_form, specimen))


def _found(check: Callable[[Specimen], Iterator[Finding]], specimen: Specimen) -> list[Finding]:
    try:
        return list(check(specimen))
    except Skip:
        return []


def _turns(specimen: Specimen) -> dict[str, list[ToolCall]]:
    """The turns to try, by name."""
    turns = {
        name: [ToolCall(NAME, arguments)]
        for name, arguments in ARGUMENTS.items()
        if name not in _OWNERS or not _found(_OWNERS[name], specimen)
    }
    if not _found(template_calls.several_calls, specimen):
        turns[_TWO] = [ToolCall(NAME, ARGUMENTS["plain arguments"]), ToolCall(OTHER_NAME, {"skerry": PLACE})]
    return turns


def call_roundtrip(specimen: Specimen) -> Iterator[Finding]:
    wire = _wire(specimen)
    if _misspelled(specimen):
        raise Skip(_IN_NO_FORM)
    failed = []
    for name, calls in _turns(specimen).items():
        if not _carries(wire, calls):
            continue
        written = write(specimen, *calls)
        if NAME not in written.turn:
            raise Skip("the template does not write the call: tool-calls-dropped says so")
        found = reading(specimen, written)
        if told(found.calls) != told(calls) or _repairs(wire, calls, found):
            failed.append((name, calls, written, found))
    if not failed:
        return
    changed = any(told(found.calls) != told(calls) for _, calls, _, found in failed)
    how = "changed" if changed else "only after a repair"
    usual = ("plain arguments", "values of all types", "no arguments", _TWO)
    shown = [s for case in failed[:2] for s in _compared(specimen, *case)]
    yield Finding(
        "call-roundtrip",
        "high" if any(name in usual for name, *_ in failed) else "medium",
        f"a call comes back {how} when it has {', '.join(name for name, *_ in failed)}",
        tuple(shown),
        "The model sees in its history another call than the one that was made, and learns to write it so: arguments "
        "arrive changed or the call is not read.",
        f"Write the arguments as the format {wire.name} has them: strings as they stand where values are text, JSON "
        "(`| tojson`) where they are JSON.",
    )


def _repairs(wire: Format, calls: Sequence[ToolCall], found: Reading) -> list[str]:
    """What was wrong with the calls as the template writes them, and is not where the format itself writes them."""
    own = {p.kind for p in read(wire.render(calls), wire, SCHEMAS).problems}
    return [f"{p.kind.replace('_', ' ')}: {p.detail}" for p in found.problems if p.kind not in own]


def _compared(
    specimen: Specimen, name: str, calls: Sequence[ToolCall], written: Written, found: Reading
) -> Iterator[Shown]:
    yield Shown(f"{name}: the call", short(told(calls)))
    yield specimen.show("written", short(written.turn))
    why = f"nothing: {found.malformed[0].reason}" if found.malformed else "nothing"
    repairs = "; ".join(_repairs(_wire(specimen), calls, found)[:2])
    mended = f" ({repairs})" if repairs else ""
    yield Shown("read", short(told(found.calls)) + mended if found.calls else why)


def mlx_parser(specimen: Specimen) -> Iterator[Finding]:
    """Only where mlx_lm has a reader for the format: that it has none for some is told among the facts."""
    _wire(specimen)
    if _misspelled(specimen):
        raise Skip(_IN_NO_FORM)
    call = ToolCall(NAME, ARGUMENTS["plain arguments"])
    written = write(specimen, call)
    if told(reading(specimen, written).calls) != told([call]):
        raise Skip("our own reader does not read the call: parser-mismatch or call-roundtrip says so")
    turn = ended(specimen, written.turn)
    taken, fitting = stock.chosen(specimen), stock.able(specimen, turn, TOOLS, call)
    if taken is None:
        if fitting is not None:
            yield _unseen(specimen, turn, fitting)
        return
    found = stock.read(taken, turn, TOOLS)
    if isinstance(found, str) or told(found) != told([call]):
        yield _wrong(turn, taken, fitting, found if isinstance(found, str) else told(found))


def ended(specimen: Specimen, turn: str) -> str:
    """`turn` up to the token that ends it, which a server cuts off."""
    own = getattr(specimen.tokenizer, "eos_token", None) or "</s>"
    places = [turn.find(end) for end in (*_wire(specimen).ends, own) if end in turn]
    return turn[: min(places)] if places else turn


def _unseen(specimen: Specimen, turn: str, fitting: StockParser) -> Finding:
    return Finding(
        "mlx-parser",
        "low",
        f"mlx_lm takes no reader of calls for this template, though its {fitting.name} reads what the template writes",
        (Shown("written", short(turn)), Shown("mlx_lm takes", "no reader")),
        "Under mlx_lm.server, calls come out as text and the request's tools are left unread. `punie-mlx serve` is not "
        "concerned.",
        f'Put "tool_parser_type": "{fitting.name}" into the tokenizer_config.json of the model'
        + (", or write the call with a variable named tool_call (`tool_call.name`), by which mlx_lm tells the format"
           if fitting.name == "json_tools" and "tool_call.name" not in specimen.template else "")
        + ".",
    )  # fmt: skip


def _wrong(turn: str, taken: StockParser, fitting: StockParser | None, found: str) -> Finding:
    remedy = "Serve the model with `punie-mlx serve`; mlx_lm has no reader that fits."
    if fitting is not None and fitting.name != taken.name:
        remedy = f'Put "tool_parser_type": "{fitting.name}" into the tokenizer_config.json of the model.'
    return Finding(
        "mlx-parser",
        "medium",
        f"mlx_lm takes its reader {taken.name} for this template, which does not read what the template writes",
        (Shown("written", short(turn)), Shown(f"{taken.name} reads", short(found))),
        "Under mlx_lm.server a call is lost or changed, with no error. `punie-mlx serve` is not concerned.",
        remedy,
    )


def _sample(wire: Format) -> str:
    return wire.render([ToolCall(NAME, ARGUMENTS["plain arguments"])])


def _around(text: str, word: str) -> str:
    at = text.find(word)
    return piece(text, at - 30, at + len(word) + 30)


_WRITING = ("no-format", "parser-mismatch", "tools-ignored", "tool-calls-dropped")
CHECKS = (
    Check(
        "no-format", "round-trip", "Which wire format the template shows", no_format,
        ("tools-ignored", "tool-calls-dropped"),
    ),
    Check(
        "parser-mismatch", "round-trip", "The template's words and the reader's markers agree", parser_mismatch,
        ("no-format", "tool-calls-dropped", "render-error"),
    ),
    Check("call-roundtrip", "round-trip", "A call that is written is read back as it was", call_roundtrip, _WRITING),
    Check(
        "mlx-parser", "round-trip", "The reader of calls that mlx_lm takes for the template", mlx_parser,
        (*_WRITING, "call-roundtrip"),
    ),
)  # fmt: skip
