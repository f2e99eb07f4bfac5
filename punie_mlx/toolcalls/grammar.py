"""What a model may write: a wire format, tools and a choice → one grammar, so that only calls that fit can be sampled.

    lark = grammar("qwen3_coder", tools, Constraint("required"), tokens={"<tool_call>": 151657, …})

The grammar is a string in the Lark syntax of llguidance (tested with 1.9.1), which this package does not import. It
is made of the same description that a format is read and rendered by: it accepts what `render` writes, and what it
accepts is read as calls of the offered tools with every required parameter and values of the declared types.

What it says:
- Thinking, where it may come, ends before the answer begins.
- An answer is any text that the reader takes for no call; calls may follow it, and text or other calls these, in
  thinking, too. In formats that do not say where calls end, and where a call is demanded, they end the turn.
- Parameters come in any order, each once; more than 60 of them, in the order of their schema.
- A string between tags is any text in which the reader finds no end of the value.
- Objects that declare properties have no others, unless `additionalProperties` says so.
- JSON is written on one line, with or without a blank after `,` and `:`.

What it does not say: that undeclared keys differ from each other; `uniqueItems`, `not`, `if`, `contains`,
`patternProperties`, `oneOf` as more than `anyOf`; patterns with look-around, unknown formats, very long limits; how
many calls, other than one or several. `Rules.unheld` has what of this a schema holds, and `grammar_relax` tells it.

What it refuses though it could be read: text that holds the beginning of a block, where its marker is no token; a
string of Gemma that spells its own quote; escapes in a string with a `pattern` or `format`, but for JSON's with the
former alone; two neighbouring keys in one `**{…}` of a Python call; a float above 1e308 or with more than 99 digits, a
number with limits beyond 2^53. A token that is not named in `tokens` is refused everywhere. A schema that needs itself
without end gives a grammar that never ends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.grammar_schemas import unheld_anywhere
from punie_mlx.toolcalls.grammar_values import Values
from punie_mlx.toolcalls.wire import Format

ANSWER = "response_format"  # what stands for a tool's name where it is about the answer
_SPACE = r"/[ \r\n]{1,4}/"
_SHAPES = {"type", "anyOf", "oneOf", "allOf", "$ref", "enum", "const"}
_LAID_OUT = {"lenient": True, "whitespace_pattern": r"[ ]?|\n[ \t]{0,32}"}  # no end of white space would be legal


@dataclass(frozen=True)
class Constraint:
    """What a turn may be.

    choice: "auto" (an answer, calls, or both), "required" (calls at once), "none" (an answer), or a tool's name (one
    call of it). allowed: the names that may be called, where not all. parallel: whether several calls may come.
    reasoning: "none", "may" (thinking may come first), "open" (the prompt has opened it, so it must be closed).
    json_schema: what the answer must be, as JSON; `{}` is any object.
    """

    choice: str = "auto"
    allowed: frozenset[str] | None = None
    parallel: bool = True
    reasoning: str = "none"
    json_schema: Mapping[str, Any] | None = None


def grammar(
    format: str | Format, tools: Sequence[Tool], constraint: Constraint, *, tokens: Collection[str] = ()
) -> str:
    """The grammar of a turn, in llguidance's Lark syntax.

    `tokens`: the markers that are single tokens of the vocabulary, best as a mapping to their ids. Raises
    `ConfigError` for an unknown format or tool, and for a schema that no grammar can follow, with its place.
    """
    return write(format, tools, constraint, tokens=tokens)[0]


def write(
    format: str | Format, tools: Sequence[Tool], constraint: Constraint, *, tokens: Collection[str] = ()
) -> tuple[str, Rules]:
    """As `grammar`, with the rules, which say what they do not hold."""
    wire = formats.get(format) if isinstance(format, str) else format
    if wire.grammar is None:
        raise ConfigError(f"the format {wire.name!r} has no grammar: it can be read, not asked for")
    if constraint.reasoning not in ("none", "may", "open"):
        raise ConfigError(f"reasoning is one of none, may and open, not {constraint.reasoning!r}")
    rules = Rules(tokens, [t.name for t in tools])
    may = offered(tools, constraint)
    try:
        turn = _Turn(rules, wire, wire.grammar(rules, wire, may), constraint)
        return rules.source(turn.start(bool(may) and constraint.choice != "none")), rules
    except RecursionError:
        raise ConfigError("the schema of a tool is nested too deeply for a grammar") from None


def offered(tools: Sequence[Tool], constraint: Constraint) -> list[Tool]:
    """The tools that may be called. Raises `ConfigError` where one is named that is not there."""
    known = {t.name: t for t in tools}
    wanted = constraint.allowed
    if constraint.choice not in ("auto", "required", "none"):
        wanted = frozenset([constraint.choice])
    for name in sorted(wanted or ()):
        if name not in known:
            raise ConfigError(f"there is no tool {name!r}: choose from {', '.join(known) or 'none offered'}")
    found = [t for t in known.values() if wanted is None or t.name in wanted]
    if not found and constraint.choice not in ("auto", "none"):
        raise ConfigError(f"tool choice {constraint.choice!r} needs at least one tool")
    return found


class _Turn:
    """Writes the rules around the calls."""

    def __init__(self, rules: Rules, wire: Format, frame: Frame, constraint: Constraint) -> None:
        self._rules = rules
        self._frame = frame
        self._constraint = constraint
        think = wire.think if frame.think is None else frame.think
        self._think = think if any(think) else ()
        self._never = (*frame.never, pattern(frame.before)) if frame.before else frame.never

    def start(self, calls: bool) -> str:
        """The body of the rule `start`."""
        constraint, opening = self._constraint, self._thinking(calls)
        if constraint.choice not in ("auto", "none"):
            return f"{opening} {self._calls()}"
        return f"{opening} {self._rules.any_of('rest', self._answers(calls))}"

    def _thinking(self, calls: bool) -> str:
        if not self._think or self._constraint.reasoning == "none":
            return ""
        opening, closing = self._think
        thought = self._rules.text_until(closing, self._never, self._not_first())
        if calls and self._free() and self._constraint.parallel:
            thought = f"({self._after_text((*self._never, pattern(closing)))})* {thought}"
        if self._constraint.choice not in ("auto", "none") or self._constraint.json_schema is not None:
            thought += f" {_SPACE}?"  # not without thinking: history would not have it, and miss the prompt cache
        if self._constraint.reasoning == "open":
            return thought
        return f"({self._rules.spell(opening)} {thought})?"

    def _answers(self, calls: bool) -> list[str]:
        rules, frame = self._rules, self._frame
        opening, closing = (rules.spell(t) for t in frame.answer)
        if self._constraint.json_schema is not None:
            answer = f"{opening} {self._json(self._constraint.json_schema)} {closing}"
            return [answer, *([self._calls(frame=frame.alike or frame)] if calls else [])]
        if calls and self._free():
            several = f"({self._after_text(self._never)}){'*' if self._constraint.parallel else '?'}"
            return [f"{several} {rules.text(self._never, self._not_first())}"]
        out = [f"{opening} {rules.text(self._never, self._not_first())} {closing}"]
        if calls:
            after_text = frame.anywhere and not opening
            text = rules.text_until(frame.before, self._never, self._not_first()) if after_text else ""
            out.append(self._calls(text))
        return out

    def _free(self) -> bool:
        """Whether text and calls may come in any order."""
        constraint = self._constraint
        return self._frame.again and constraint.choice == "auto" and constraint.json_schema is None

    def _after_text(self, never: Sequence[str]) -> str:
        """Text, and calls behind it."""
        return self._calls(self._rules.text_until(self._frame.before, never, self._not_first()))

    def _not_first(self) -> str:
        """A tag of thinking at the beginning would open it."""
        found = [rf"\s*{pattern(t)}" for t in self._think]
        return "|".join([*found, *([self._frame.never_first] if self._frame.never_first else [])])

    def _json(self, schema: Mapping[str, Any]) -> str:
        if not _SHAPES & schema.keys():
            schema = {"type": "object", **schema}
        if self._frame.alike:
            return Values(self._rules, Tool(ANSWER, parameters=schema)).of("", schema)
        for keyword in unheld_anywhere(schema):
            self._rules.unheld.setdefault((ANSWER, ""), {})[keyword] = None
        return self._rules.rule("json", f"%json {json.dumps({**schema, 'x-guidance': _LAID_OUT})}")

    def _calls(self, before: str = "", frame: Frame | None = None) -> str:
        """One call or several, and what frames them; `before`: what to begin with in place of the framing."""
        frame = frame or self._frame
        ways = [self._listed(replace(frame, before="")), *map(self._listed, frame.others)]
        return f"{before or self._rules.spell(frame.before)} {self._rules.any_of('calls', ways)}"

    def _listed(self, frame: Frame) -> str:
        spell, more = self._rules.spell, ""
        if self._constraint.parallel and self._constraint.choice in ("auto", "required"):
            more = f"({spell(frame.between)} {frame.call})*"
        return f"{spell(frame.before)} {frame.call} {more} {spell(frame.after)}"
