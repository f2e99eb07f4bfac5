"""The families of calls: values between tags, a JSON object, arguments of a Python call."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.toolcalls import schema as schemas
from punie_mlx.toolcalls.calls import Tool, dumps
from punie_mlx.toolcalls.grammar_rules import Field, Frame, Rules, pattern, quote
from punie_mlx.toolcalls.grammar_strings import LONGEST, LONGEST_SEARCHED, UNLIMITED
from punie_mlx.toolcalls.grammar_values import (
    JSON,
    LENIENT_PYTHON,
    PYTHON,
    Style,
    Values,
    without,
)
from punie_mlx.toolcalls.tagged import Dialect
from punie_mlx.toolcalls.wire import Format

NAME = "/[A-Za-z_][A-Za-z0-9_.-]{0,63}/"
_IDENTIFIER = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"


@dataclass(frozen=True)
class Tags:
    """How calls with values between tags are written: framing, as on the wire, between the markers of the format.

        before NAME after_name opening KEY after_key VALUE closing opening … closing end after

    end: of a call; empty where the closing marker of the block is its end.
    after_json_key: in place of `after_key`, where the tag says that a value is no string.
    style: how objects and arrays are written. loose: the newlines may be left out.
    separator: between two blocks. between: between two calls, where one block holds them all.
    """

    before: str
    after_name: str
    opening: str
    after_key: str
    closing: str
    end: str
    after: str
    separator: str = ""
    between: str = ""
    after_json_key: str = ""
    style: Style = JSON
    loose: bool = False


def tag_calls(rules: Rules, format: Format, tools: Sequence[Tool], dialect: Dialect, tags: Tags) -> Frame:
    """Calls with values between tags, read by `dialect` and written with `tags`."""
    gap = r"(\s|\\n)*" if dialect.spelled else r"\s*"
    rules.loose = tags.loose
    before, after = format.open + tags.before, tags.after + format.close if tags.end else ""
    never = [rf"{pattern(format.open)}\s*(`|[{{\[])"]
    if dialect.function:
        function = pattern(dialect.function.opening)
        attribute = r"[^<>\n]*name\s*=" if dialect.function.attributes else ""
        never += [rf"{function}{attribute}[ \"']*{rules.any_name}", f"{pattern(format.open)}{gap}{function}"]
    calls = [_TagCall(rules, tool, tags, dialect, format, gap).rule() for tool in tools]
    return Frame(
        rules.any_of("call", calls or ['""']),
        before=before,
        between=tags.between or after + tags.separator + before,
        after=after,
        never=tuple(never),
        again=True,
    )


class _TagCall:
    """Writes the rules of one tool."""

    def __init__(self, rules: Rules, tool: Tool, tags: Tags, dialect: Dialect, format: Format, gap: str) -> None:
        opening, ending = pattern(dialect.parameter.opening), pattern(dialect.parameter_end)
        function_end, open_, close = (pattern(t) for t in (dialect.function_end, format.open, format.close))
        # what the reader takes for the end of a value
        never = [f"{ending}{gap}{follows}" for follows in (opening, function_end, close) if follows]
        ends = f"{function_end}{gap}{close}" if function_end else close
        begins = pattern(dialect.function.opening) if dialect.function else r"[^\s<>]"
        self._never = [*never, f"{ends}{gap}{open_}{gap}{begins}"]
        self._never_first = ""
        if names := "|".join(pattern(name) for name in tool.properties):
            declared = rf"{opening}[^<>\n]*({names})"
            self._never.append(rf"\n{declared}")
            self._never_first = declared if dialect.trim else ""
        self._end = tags.end or format.close
        self._rules = rules
        self._tags = tags
        self._values = Values(rules, tool, without(rules, tags.style, self._never))
        self._longest = LONGEST_SEARCHED if rules.possible(self._never) else LONGEST
        self._tool = tool

    def rule(self) -> str:
        """The call from the name on."""
        rules, tags, values = self._rules, self._tags, self._values
        fields = [Field(quote(name), self._value(name, schema), must) for name, schema, must in values.parameters()]
        head = f"{quote(self._tool.name)} {rules.spell(tags.after_name)}"
        none = f"{head} {rules.spell(self._end)}"
        other = self._other() if values.extra is not False else None
        if not fields and other is None:
            return rules.rule("function", none)
        inner = rules.fields(fields, tags.closing + tags.opening, tags.closing + self._end, other)
        some = f"{head} {rules.spell(tags.opening)} {inner}"
        return rules.rule("function", some if self._tool.required else f"{some} | {none}")

    def _other(self) -> Field:
        """A parameter that is not declared."""
        names = " | ".join(quote(name) for name, _, _ in self._values.parameters())
        key = self._rules.rule("NAME", f"{NAME} & ~({names})" if names else NAME)
        extra = self._values.extra
        return Field(key, self._value("additionalProperties", extra if isinstance(extra, Mapping) else True))

    def _value(self, name: str, schema: Any) -> Callable[[str], str]:
        """What follows a key, up to a given framing."""
        rules, tags = self._rules, self._tags
        options, texts, anything = [], [], False
        for branch in self._values.simple(name, schema):
            listed = "const" in branch or isinstance(branch.get("enum"), list)
            kind = schemas.proper_kind(branch)
            if not listed and kind == "string":
                texts.append(self._values.limits(branch, self._longest))
                continue
            options += self._values.branch(branch, between_tags=True)
            anything = anything or not (listed or kind)
        if anything:
            options, texts = [self._values.anything()], [UNLIMITED]
        if not all(texts):  # any text will do
            texts = [UNLIMITED]
            options = options if tags.after_json_key else []
        choice = rules.any_of("choice", options) if options else ""

        def value(term: str) -> str:
            out = []
            for limits in dict.fromkeys(texts):
                text = rules.text_until(term, self._never, self._never_first, limits)
                out.append(f"{rules.spell(tags.after_key)} {text}")
            if choice:
                out.append(f"{rules.spell(tags.after_json_key or tags.after_key)} {choice} {rules.spell(term)}")
            return out[0] if len(out) == 1 else f"({' | '.join(out)})"

        return value


def json_calls(
    rules: Rules, tools: Sequence[Tool], after_name: str, after: str = "", *, quoted: bool = False, style: Style = JSON
) -> str:
    """A call of which the arguments are a JSON object, from its name on; the rest are expressions.

    `quoted`: the name stands in a JSON string. `style`: how the object is written, where not as JSON.
    """
    calls = []
    for tool in tools:
        name = quote(dumps(tool.name)[1:-1] if quoted else tool.name)
        calls.append(f"{name} {after_name} {Values(rules, tool, style).arguments()} {after}")
    return rules.any_of("call", calls or ['""'])


def named_json(rules: Rules, tools: Sequence[Tool], arguments: str = "arguments") -> str:
    """A call as a JSON object, from the name on up to the arguments' end: what the object begins with is framing."""
    return json_calls(rules, tools, quote(f'", "{arguments}": '), quoted=True)


def whole_json(rules: Rules, tools: Sequence[Tool], arguments: str = "arguments") -> str:
    """A call as a JSON object, whole, in the lexemes of JSON."""
    names = [(tool, quote(dumps(tool.name))) for tool in tools]
    head = f'"{{" "\\"name\\"" {JSON.colon}'
    calls = [
        f"{head} {n} {JSON.comma} {quote(dumps(arguments))} {JSON.colon} {Values(rules, t).arguments()}"
        for t, n in names
    ]
    return rules.any_of("call", [f'{call} "}}"' for call in calls] or ['""'])


def python_calls(rules: Rules, tools: Sequence[Tool]) -> str:
    """A call as Python writes it, with arguments by name."""
    return rules.any_of("call", [_python(rules, tool) for tool in tools] or ['""'])


def _python(rules: Rules, tool: Tool) -> str:
    values = Values(rules, tool, LENIENT_PYTHON)
    fields = [_argument(n, values.of(n, schema), must) for n, schema, must in values.parameters()]
    other, extra = None, values.extra
    if extra is not False:
        other = _undeclared(
            rules, values, values.of("additionalProperties", extra if isinstance(extra, Mapping) else True)
        )
    name = quote(f"{tool.name}(")
    if not fields and other is None:
        return f'{name} ")"'
    inner = rules.fields(fields, PYTHON.comma, '")"', other)
    return rules.rule("function", f"{name} {inner}" + ("" if tool.required else f' | {name} ")"'))


def _argument(name: str, value: str, required: bool) -> Field:
    """`NAME=value`, or `**{"NAME": value}`, each by itself, for a name that Python cannot write."""
    if name.isidentifier() and name.isascii() and not keyword.iskeyword(name):
        return Field(f"{quote(name + '=')} {value}", lambda term: term, required)
    return Field(f'"**{{" {PYTHON.key(name)} {PYTHON.colon} {value}', _closed, required)


def _undeclared(rules: Rules, values: Values, value: str) -> Field:
    declared = [name for name, _, _ in values.parameters()]
    names = " | ".join(quote(n) for n in [*declared, *keyword.kwlist])
    name, key = rules.rule("NAME", f"{_IDENTIFIER} & ~({names})"), values.other_key(declared)
    return Field("", lambda term: f'({name} "=" {value} {term} | "**{{" {key} {PYTHON.colon} {value} "}}" {term})')


def _closed(term: str) -> str:
    return f'"}}" {term}'
