"""Grammar rules of typed values: a JSON schema and a style of writing → the rule of the texts that fit.

A style says how a family of formats writes strings, keys and constants. What it leaves open is the same for all:
objects have their declared entries in any order, the required ones all, and others only where the schema says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import schema as schemas
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar_rules import Field, Rules, quote
from punie_mlx.toolcalls.grammar_schemas import LLGUIDANCE_FORMATS, alternatives, unheld
from punie_mlx.toolcalls.grammar_strings import FORMATS, LONGEST, LONGEST_SEARCHED, UNLIMITED, Limits, compiles, limits

# Bounds keep a model from writing digits for ever, and a float within what a float can hold.
INTEGER = r"/-?(?:0|[1-9][0-9]{0,99})/"
NUMBER = (
    r"/-?(?:(?:0|[1-9][0-9]{0,99})|(?:0|[1-9][0-9]{0,19})\.[0-9]{1,99}"
    r"|[0-9](?:\.[0-9]{1,99})?[eE](?:-[0-9]{1,3}|\+?(?:[0-9]{1,2}|[12][0-9]{2}|30[0-7])))/"
)
_HEX = "[0-9a-fA-F]"
_UNICODE = rf"u(?:[0-9a-ce-fA-CE-F]{_HEX}{{3}}|[dD][0-7]{_HEX}{{2}})"
_PAIR = rf"u[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}}"
_JSON_CHARACTER = rf'[^"\\\x00-\x1f]|\\(?:["\\\/bfnrt]|{_UNICODE}|{_PAIR})'
_ESCAPES = rf"\\(?:[\\'\"nrt]|x{_HEX}{{2}}|{_UNICODE}|U000[1-9a-fA-F]{_HEX}{{4}}|U0010{_HEX}{{4}})"
_PYTHON_CHARACTERS = (('"', rf'[^"\\\r\n]|{_ESCAPES}'), ("'", rf"[^'\\\r\n]|{_ESCAPES}"))
ANY_BOOLEAN, ANY_NULL = "/True|False|true|false/", "/None|null/"
_BEYOND = re.compile(r"\(\?|\\[1-9bBAZkpP]")  # of the expressions that llguidance takes in a schema
_EXACT = 2**53
_OF_STRINGS = frozenset(("minLength", "maxLength", "pattern", "format"))
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LIMITS = {*_OF_STRINGS, *_OF_NUMBERS, "minItems", "maxItems"}


def quoted(*characters: tuple[str, str]) -> Callable[[Limits], str]:
    """What writes the terminal of strings: for each kind of quote, the regular expression of a character within.

    Where the text must match an expression, it is written without escapes.
    """

    def string(limits: Limits) -> str:
        parts = ["|".join(f"{mark}(?:{character}){limits.repeat}{mark}" for mark, character in characters)]
        if limits.regex:
            parts.append("|".join(f"{mark}{limits.regex}{mark}" for mark, _ in characters))
            parts.append("|".join(rf"{mark}[^{mark}\\\x00-\x1f]*{mark}" for mark, _ in characters))
        return " & ".join(f"/{part}/" for part in parts)

    return string


_json_string = quoted(('"', _JSON_CHARACTER))


@dataclass(frozen=True)
class Style:
    """How values are written. `boolean` and `null` are expressions; `string` gives the one of strings within limits,
    `key` that of a declared key.

    any_key: the regular expression of a key that is not declared, or empty where none can be written.
    is_plain: whether a declared key is written as one that `any_key` matches.
    quoted: strings are those of JSON and nothing less. text: the text of a string, spelled in it.
    longest: the most characters that can be counted.
    """

    string: Callable[[Limits], str] = _json_string
    boolean: str = "/true|false/"
    null: str = '"null"'
    text: Callable[[str], str] = lambda value: quote(json.dumps(value, ensure_ascii=False))
    key: Callable[[str], str] = lambda name: quote(json.dumps(name, ensure_ascii=False))
    any_key: str = _json_string(UNLIMITED)
    is_plain: Callable[[str], bool] = lambda name: True
    quoted: bool = True
    comma: str = "/, ?/"
    colon: str = "/: ?/"
    longest: int = LONGEST


JSON = Style()


def python_text(text: str) -> str:
    """A string as Python writes it, between double quotes."""
    return '"' + _TO_ESCAPE.sub(lambda found: _ESCAPED[found.group()], text) + '"'


_TO_ESCAPE = re.compile(r'[\\"\n\r\t]')
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _python_either(text: str) -> str:
    return f"({quote(python_text(text))} | {quote(repr(text))})"


_PYTHON_STRING = quoted(*_PYTHON_CHARACTERS)
PYTHON = Style(
    string=quoted(*((mark, c.replace("[^", r"[^\x00", 1)) for mark, c in _PYTHON_CHARACTERS)),  # Python takes no NUL
    boolean="/True|False/",
    null='"None"',
    text=_python_either,
    key=_python_either,
    any_key=_PYTHON_STRING(UNLIMITED),
    quoted=False,
)
LENIENT_PYTHON = replace(PYTHON, string=_PYTHON_STRING, boolean=ANY_BOOLEAN, null=ANY_NULL)


class Values:
    """Writes the rules of values of one tool in one style."""

    def __init__(self, rules: Rules, tool: Tool, style: Style = JSON) -> None:
        self.rules = rules
        self.tool = tool
        self._root = tool.parameters
        self._style = style
        self._string = self._string_within(UNLIMITED)
        self._known: dict[str, str] = {}
        self._notes_of: dict[str, dict[str, None]] = {}  # of each known schema
        self._any = ""
        self._at("")

    def _at(self, parameter: str) -> None:
        """What is written next belongs to `parameter`."""
        tool = self.tool.name
        self._where = f"tool {tool!r}, parameter {parameter!r}" if parameter else f"tool {tool!r}"
        self._notes = self.rules.unheld.setdefault((tool, parameter), {})

    def note(self, keyword: str) -> None:
        """`keyword` of a schema is not held."""
        self._notes[keyword] = None

    def _string_within(self, limits: Limits) -> str:
        body = self._style.string(limits)
        return self.rules.rule("STRING", body) if body.startswith("/") else body

    def of(self, parameter: str, schema: Any) -> str:
        """The expression of the values of a parameter. Raises `ConfigError` naming tool and parameter."""
        self._at(parameter)
        return self._value(schema)

    def arguments(self) -> str:
        """The expression of an object with the tool's parameters."""
        self._at("")
        return self._members(self.tool.properties, self.tool.required, self.extra, self.of)

    def parameters(self) -> list[tuple[str, Any, bool]]:
        """The tool's parameters: name, schema, and whether it must be given."""
        tool = self.tool
        found = {name: tool.properties.get(name, True) for name in (*tool.properties, *tool.required)}
        return [(n, s, n in tool.required) for n, s in found.items() if s is not False or n in tool.required]

    @property
    def extra(self) -> Any:
        """The schema of parameters that are not declared; False where there may be none, as the reader sees it."""
        return self.tool.parameters.get("additionalProperties", False)

    def simple(self, parameter: str, schema: Any) -> list[Mapping[str, Any]]:
        """The simple schemas that a parameter's schema allows."""
        self._at(parameter)
        return [*self._alternatives(schema)]

    def limits(self, branch: Mapping[str, Any], longest: int) -> Limits:
        """The limits of a simple schema of strings."""
        found = limits(branch, longest, self.note)
        self._fits_between(found.low, found.high)
        return found

    def branch(self, branch: Mapping[str, Any], between_tags: bool = False) -> list[str]:
        """The expressions of a simple schema; between tags, strings are bare and Python's constants are legal too."""
        allowed = [branch["const"]] if "const" in branch else branch.get("enum")
        if isinstance(allowed, list):
            found = self._members_of(branch, allowed)
            return [self._bare(v) if between_tags else self.literal(v) for v in found]
        kind = schemas.proper_kind(branch)
        if between_tags and kind in ("boolean", "null"):
            return [ANY_BOOLEAN if kind == "boolean" else ANY_NULL]
        if kind == "object":
            return [self._object(branch)]
        if kind == "array":
            return [self._array(branch)]
        if kind in ("integer", "number"):
            return [self._limited(branch, kind, _OF_NUMBERS) or (INTEGER if kind == "integer" else NUMBER)]
        if kind == "string":
            return [self._text(branch)]
        if kind in ("boolean", "null"):
            return [getattr(self._style, kind)]
        if kind is None:
            for key in branch.keys() & _LIMITS:
                self.note(key)
            return [self.anything()]
        raise ConfigError(f"{self._where}: there is no type {kind!r} in JSON schema")

    def anything(self) -> str:
        """Any value at all."""
        if not self._any:
            style = self._style
            self._any = self.rules.reserve("any")
            item, key = self._any, self.rules.rule("KEY", style.any_key) if style.any_key else ""
            entry = f"{key} {style.colon} {item}"
            options = [self._string, NUMBER, style.boolean, style.null, _list(item, style)]
            options += [f'"{{" ({entry} ({style.comma} {entry})*)? "}}"'] if key else []
            self.rules.define(self._any, " | ".join(options))
        return self._any

    # ---- schemas ----

    def _value(self, schema: Any) -> str:
        key = json.dumps(schema, sort_keys=True, default=repr)
        if key not in self._known:
            name = self._known[key] = self.rules.reserve("value")
            outer, self._notes = self._notes, self._notes_of.setdefault(key, {})
            options = [o for b in self._alternatives(schema) for o in self.branch(b)]
            self.rules.define(name, " | ".join(dict.fromkeys(options)))
            self._notes = outer
        self._notes.update(self._notes_of[key])
        return self._known[key]

    def _alternatives(self, schema: Any) -> list[dict[str, Any]]:
        """The simple schemas that `schema` allows. Raises `ConfigError` where there is none."""
        self._check(schema)
        found = alternatives(schema, self._root)
        if not found:
            raise ConfigError(f"{self._where}: no value fits its schema")
        for keyword in unheld(schema, found, self._root):
            self.note(keyword)
        return found

    def _text(self, branch: Mapping[str, Any]) -> str:
        """The expression of strings within the limits of a simple schema."""
        style, given = self._style, _OF_STRINGS & branch.keys()
        both = bool(given & {"minLength", "maxLength"}) and bool(given & {"pattern", "format"})
        if style.quoted and not both and branch.get("format") not in FORMATS:
            return self._limited(branch, "string", sorted(_OF_STRINGS)) or self._string
        found = self.limits(branch, style.longest)
        return self._string_within(found) if found else self._string

    def _check(self, schema: Any) -> None:
        """Raises `ConfigError` for what cannot be followed, or that no value fits."""
        if schema is False:
            raise ConfigError(f"{self._where}: its schema is false, no value fits it")
        if not isinstance(schema, Mapping | bool):
            raise ConfigError(f"{self._where}: its schema is no JSON object: {schema!r}")
        if isinstance(schema, bool):
            return
        ref = schema.get("$ref")
        if isinstance(ref, str):
            self._follow(ref, [])
        for key in ("anyOf", "oneOf", "allOf"):
            for part in schema[key] if isinstance(schema.get(key), list) else ():
                if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
                    self._follow(part["$ref"], [])

    def _follow(self, ref: str, seen: list[str]) -> None:
        found = schemas.lookup(ref, self._root) if ref.startswith("#") else None
        if not isinstance(found, Mapping | bool):
            raise ConfigError(f"{self._where}: {ref} leads nowhere; give the schema with its $defs")
        if ref in seen:
            raise ConfigError(f"{self._where}: {ref} refers to itself and to nothing else")
        if isinstance(found, Mapping) and isinstance(found.get("$ref"), str):
            self._follow(found["$ref"], [*seen, ref])

    def _bare(self, value: Any) -> str:
        """Exactly this value between tags."""
        if isinstance(value, str):
            return quote(value)
        if value is None or isinstance(value, bool):
            return f"({quote(str(value))} | {self.literal(value)})"
        return self.literal(value)

    def _members_of(self, branch: Mapping[str, Any], allowed: Sequence[Any]) -> list[Any]:
        bare = {k: v for k, v in branch.items() if k in ("type", "items", "properties", "required")}
        out = [v for v in allowed if schemas.fits(v, bare, self._root)]
        for key in branch.keys() & _LIMITS:
            self.note(key)
        if not out:
            raise ConfigError(f"{self._where}: none of the allowed values is of the declared type")
        return out

    def literal(self, value: Any) -> str:
        """Exactly this value."""
        style = self._style
        if isinstance(value, str):
            return style.text(value)
        if isinstance(value, Mapping):
            entries = [f"{style.key(str(k))} {style.colon} {self.literal(v)}" for k, v in value.items()]
            return f'"{{" {f" {style.comma} ".join(entries)} "}}"'
        if isinstance(value, list | tuple):
            return f'"[" {f" {style.comma} ".join(self.literal(v) for v in value)} "]"'
        if value is None:
            return style.null
        if isinstance(value, bool):
            both = [w for w in style.boolean.strip("/").split("|") if w.lower() == str(value).lower()]
            return f"({' | '.join(quote(w) for w in both)})"
        return quote(json.dumps(value))

    def _limited(self, branch: Mapping[str, Any], kind: str, keys: Sequence[str]) -> str:
        """The rule of a scalar with limits, which llguidance knows how to keep; empty where there are none."""
        limits = {k: branch[k] for k in keys if k in branch and _usable(k, branch[k])}
        for key in keys:
            if key in branch and key not in limits:
                self.note(key)
        if not limits:
            return ""
        if kind == "integer":
            limits = _of_integers(limits)
        if kind in ("integer", "number"):  # or there would be no end of digits
            limits = {"minimum": -_EXACT, "maximum": _EXACT} | limits
        low = max((limits[k] for k in ("minimum", "exclusiveMinimum", "minLength") if k in limits), default=None)
        high = min((limits[k] for k in ("maximum", "exclusiveMaximum", "maxLength") if k in limits), default=None)
        self._fits_between(low, high)
        options = {"lenient": True, "whitespace_flexible": False}
        return self.rules.rule("limited", f"%json {json.dumps({'type': kind, **limits, 'x-guidance': options})}")

    def _fits_between(self, low: float | None, high: float | None) -> None:
        """Raises `ConfigError` where there is nothing between two limits."""
        if low is not None and high is not None and low > high:
            raise ConfigError(f"{self._where}: no value fits limits of {low} and {high}")

    def _object(self, branch: Mapping[str, Any]) -> str:
        properties = branch.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = branch.get("required")
        required = [r for r in required if isinstance(r, str)] if isinstance(required, list) else []
        # a schema that declares properties means these, though the standard would allow any others
        extra = branch.get("additionalProperties", not properties)
        return self._members(properties, required, extra, lambda _, schema: self._value(schema))

    def _members(
        self, properties: Mapping[str, Any], required: Sequence[str], extra: Any, of: Callable[[str, Any], str]
    ) -> str:
        style, rules = self._style, self.rules
        open_, close = '"{"', '"}"'
        fields = []
        for name in dict.fromkeys([*properties, *required]):
            schema = properties.get(name, extra if isinstance(extra, Mapping) else True)
            if schema is False and name not in required:
                continue
            fields.append(Field(f"{style.key(name)} {style.colon}", _before(of(name, schema)), name in required))
        other = None
        if extra is not False and style.any_key:
            key = self.other_key([*properties, *required])
            value = self._value(extra) if isinstance(extra, Mapping) else self.anything()
            other = Field(f"{key} {style.colon}", _before(value))
        if not fields and other is None:
            return rules.rule("object", f"{open_} {close}")
        inner = rules.fields(fields, style.comma, close, other)
        empty = "" if required else f" | {open_} {close}"
        return rules.rule("object", f"{open_} {inner}{empty}")

    def other_key(self, declared: Sequence[str]) -> str:
        """The terminal of the keys that are not declared."""
        style = self._style
        names = " | ".join(dict.fromkeys(style.key(n) for n in declared if style.is_plain(n)))
        if not names:
            return self.rules.rule("KEY", style.any_key)
        return self.rules.rule("KEY", f"{self.rules.rule('KEY', style.any_key)} & ~({names})")

    def _array(self, branch: Mapping[str, Any]) -> str:
        items, comma = branch.get("items"), self._style.comma
        first = branch.get("prefixItems")
        if isinstance(first, list) and first and items in (None, False):
            return self.rules.rule("array", f'"[" {f" {comma} ".join(self._value(s) for s in first)} "]"')
        if isinstance(first, list) and first:
            self.note("prefixItems")
        item = self._value(items) if isinstance(items, Mapping) else self.anything()
        least, most = (_count(branch.get(k)) for k in ("minItems", "maxItems"))
        self._fits_between(least, most)
        if most == 0:
            return '"[" "]"'
        low, high = max((least or 0) - 1, 0), "" if most is None else str(most - 1)
        more = f"({comma} {item})*" if not low and not high else f"({comma} {item}){{{low},{high}}}"
        more = "" if most == 1 else more
        empty = "" if least else ' | "[" "]"'
        return self.rules.rule("array", f'"[" {item} {more} "]"{empty}')


def _list(item: str, style: Style) -> str:
    return f'"[" ({item} ({style.comma} {item})*)? "]"'


def _before(value: str) -> Callable[[str], str]:
    return lambda term: f"{value} {term}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _usable(key: str, value: Any) -> bool:
    """Whether a limit is one that llguidance can keep; others are left out, so that more is allowed than fits."""
    if key == "format":
        return value in LLGUIDANCE_FORMATS
    if key == "pattern":
        return isinstance(value, str) and not _BEYOND.search(value) and compiles(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    if key in ("minLength", "maxLength"):
        return isinstance(value, int) and 0 <= value <= LONGEST
    if abs(value) > _EXACT:
        return False
    return key != "multipleOf" or value > 0


def _of_integers(limits: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a number as those of an integer, none of them exclusive."""
    out = {k: v for k, v in limits.items() if k == "multipleOf"}
    low = [math.ceil(limits["minimum"])] if "minimum" in limits else []
    low += [math.floor(limits["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in limits else []
    high = [math.floor(limits["maximum"])] if "maximum" in limits else []
    high += [math.ceil(limits["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in limits else []
    return out | ({"minimum": max(low)} if low else {}) | ({"maximum": min(high)} if high else {})


def without(rules: Rules, style: Style, never: Sequence[str]) -> Style:
    """The style with strings and keys in which no regular expression of `never` has a match."""
    if not (avoiding := rules.avoiding(never)):
        return style

    def string(limits: Limits) -> str:
        return " & ".join([style.string(limits), *avoiding])

    return replace(style, string=string, any_key=string(UNLIMITED), quoted=False, longest=LONGEST_SEARCHED)
