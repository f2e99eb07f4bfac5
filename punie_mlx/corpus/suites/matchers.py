"""What a call must look like, and whether one does: matchers of arguments, strict and lenient, and who made which call.

    {"name": "set_threshold", "arguments": {"metric": "coverage"}, "match": {"value": {"number": 80, "tolerance": 2}}}

| matcher                          | the argument                                                                |
|----------------------------------|-----------------------------------------------------------------------------|
| `{"exact": v}`                   | is `v` under the tool's schema, as one in `arguments` is                      |
| `{"one_of": [v, ...]}`           | is one of these                                                             |
| `{"set": [v, ...]}`              | is a list of exactly these, in any order; what stands twice is there twice    |
| `{"regex": r}`                   | is text, and `r` matches all of it                                          |
| `{"number": x, "tolerance": t}`  | is a number that differs from `x` by at most `t` (0 if absent)                |
| `{"min": x, "max": y}`           | is a number, not below `x` and not above `y`; one of the two is enough        |
| `{"predicate": name}`            | fulfils one of `PREDICATES`                                                 |

Each may have `"optional": true`: the call may leave the argument out. One that is in neither `arguments` nor `match`
must not be given, except as the schema's default; where a call has neither key, its arguments are not looked at.

The lenient comparison is that of the Berkeley leaderboard: in strings that are compared as a whole, letter case,
spaces and `,./-_*^` and quotes do not count, and an integer is good where a float is expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from punie_mlx.corpus.suites.predicates import PREDICATES
from punie_mlx.toolcalls.values import Schema, defaults_of, equal, problem, types_of

LOOSE = re.compile(r"""[\s,./\-_*^"']""")  # what does not count in a lenient comparison
KINDS = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
SLACK = 1 + 1e-9  # 0.4 is within 0.1 of 0.3, whatever binary fractions make of it
A = TypeVar("A")
B = TypeVar("B")


class Strict(BaseModel):
    """Unknown keys are errors, and nothing is converted. Fields `later` than the first suites are written where set.

    So the hash of a suite that does not use them is what it was.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, absent = type(self).model_fields, self.left_out()
        written = {k: v for k, v in dump(self).items() if k not in absent}
        return {
            k: v
            for k, v in written.items()
            if k not in self.later or v != fields[k].get_default(call_default_factory=True)
        }

    def left_out(self) -> frozenset[str]:
        """Fields that are not written, because another one says the same."""
        return frozenset()


def compiled(pattern: str) -> str:
    """`pattern`, if it is a regular expression. Raises `ValueError`."""
    try:
        re.compile(pattern)
    except re.error as e:
        raise ValueError(f"{pattern!r} is no regular expression: {e}") from e
    return pattern


# ---- matchers ----


class _Matcher(Strict):
    optional: bool = False
    """Whether the call may leave the argument out."""
    later = frozenset({"optional"})
    kinds: ClassVar[frozenset[str]] = KINDS
    """The JSON types that it can match."""

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        """Whether `value`, an argument under `schema`, is what is expected."""
        raise NotImplementedError


class Exact(_Matcher):
    """The argument is this value."""

    exact: Any

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        return same(self.exact, value, schema, lenient)


class OneOf(_Matcher):
    """The argument is one of these values."""

    one_of: list[Any] = Field(min_length=1)

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        return any(same(v, value, schema, lenient) for v in self.one_of)


class SetOf(_Matcher):
    """The argument is a list of exactly these items, in any order."""

    set: list[Any]
    kinds = frozenset({"array"})

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        if not isinstance(value, list) or len(value) != len(self.set):
            return False
        below = schema.get("items")
        items: Schema = below if isinstance(below, Mapping) else {}
        return None not in assign(self.set, value, lambda wanted, item: same(wanted, item, items, lenient))


class Regex(_Matcher):
    """The argument is text, and the expression (of Python) matches all of it."""

    regex: str
    kinds = frozenset({"string"})
    _check_regex = field_validator("regex")(compiled)

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        return isinstance(value, str) and re.fullmatch(self.regex, value) is not None


class Number(_Matcher):
    """The argument is a number that differs from `number` by at most `tolerance`."""

    number: int | float
    tolerance: int | float = Field(default=0, ge=0, json_schema_extra={"minimum": 0})
    kinds = frozenset({"integer", "number"})

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        return _is_number(value, schema) and abs(value - self.number) <= self.tolerance * SLACK


class Range(_Matcher):
    """The argument is a number, not below `min` and not above `max`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["min"]}, {"required": ["max"]}]})
    min: int | float | None = None
    max: int | float | None = None
    kinds = frozenset({"integer", "number"})

    @model_validator(mode="after")
    def _holds_something(self) -> Range:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no number is at least {self.min} and at most {self.max}")
        if self.min is None and self.max is None:
            raise ValueError("min and max are both null: give a number to at least one")
        return self

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        return _is_number(value, schema) and low <= value <= high


def _names(schema: dict[str, Any]) -> None:
    schema["enum"] = sorted(PREDICATES)


class Predicate(_Matcher):
    """The argument fulfils a predicate that has a name."""

    predicate: Annotated[str, Field(json_schema_extra=_names)]

    @field_validator("predicate")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PREDICATES:
            raise ValueError(f"there is no predicate {name!r}: they are {', '.join(sorted(PREDICATES))}")
        return name

    def matches(self, value: Any, schema: Schema, lenient: bool = False) -> bool:
        return PREDICATES[self.predicate](value)


def _is_number(value: Any, schema: Schema) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and problem(value, schema) is None


# By the key that tells which matcher it is; `tolerance` and `optional` alone tell nothing.
_BY_KEY = {
    "exact": "<exact>", "one_of": "<one of>", "set": "<set>", "regex": "<regex>", "number": "<number>",
    "min": "<range>", "max": "<range>", "predicate": "<predicate>",
}  # fmt: skip
_NO_MATCHER = (
    "a matcher has exactly one of the keys exact, one_of, set, regex, number (with tolerance), min and max, predicate"
)


def _key(value: Any) -> str | None:
    given = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    found = {_BY_KEY[k] for k in given if k in _BY_KEY}
    return found.pop() if len(found) == 1 else None


Matcher = Annotated[
    Annotated[Exact, Tag("<exact>")]
    | Annotated[OneOf, Tag("<one of>")]
    | Annotated[SetOf, Tag("<set>")]
    | Annotated[Regex, Tag("<regex>")]
    | Annotated[Number, Tag("<number>")]
    | Annotated[Range, Tag("<range>")]
    | Annotated[Predicate, Tag("<predicate>")],
    Discriminator(_key, custom_error_type="matcher", custom_error_message=_NO_MATCHER),
]


# ---- expected calls ----


class ExpectedCall(Strict):
    """One call that must be made: any of `name`, with `arguments` and `match` where they are given."""

    name: str | list[str]
    """The tool, or several of which each is as good as the other."""
    arguments: dict[str, Any] | None = None
    """Argument → its exact value."""
    match: dict[str, Matcher] | None = None
    """Argument → what it must look like."""
    later = frozenset({"match"})

    @property
    def names(self) -> list[str]:
        """The names, each as good as the other."""
        return [self.name] if isinstance(self.name, str) else self.name

    @property
    def looks_at_arguments(self) -> bool:
        """Whether the arguments of a call decide anything."""
        return self.arguments is not None or self.match is not None

    def wanted(self) -> dict[str, Any]:
        """The arguments as they are expected, matchers as the suite spells them."""
        return {**(self.arguments or {}), **{k: m.model_dump(mode="json") for k, m in (self.match or {}).items()}}


class Made(Protocol):
    """A call that a model made."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> Any: ...


Level = Literal["names", "arguments"]


def fits(
    expected: ExpectedCall, made: Made, schemas: Mapping[str, Schema], level: Level, lenient: bool = False
) -> bool:
    """Whether `made` is the call that is expected; at the level "names" its arguments do not count."""
    if made.name not in expected.names:
        return False
    return level == "names" or not faults(expected, made.arguments, schemas[made.name], lenient)


def faults(expected: ExpectedCall, arguments: Any, schema: Schema, lenient: bool = False) -> list[str]:
    """The names of the arguments that are not as expected; `""` stands for all of them."""
    if not expected.looks_at_arguments:
        return []
    if not isinstance(arguments, dict):
        return [""]
    whole = expected.match is None
    if whole and equal(expected.arguments, arguments, schema):
        return []
    match = expected.match or {}
    defaults = defaults_of(schema)
    exact = {k: v for k, v in defaults.items() if k not in match} | (expected.arguments or {})
    given = {**defaults, **arguments}
    found = [k for k, v in exact.items() if k not in given or not same(v, given[k], _below(schema, k), lenient)]
    for name, matcher in match.items():
        if name not in arguments and matcher.optional:
            continue
        if name not in given or not matcher.matches(given[name], _below(schema, name), lenient):
            found.append(name)
    found += [k for k in given if k not in exact and k not in match]
    return found or ([""] if whole and not lenient else [])  # a schema of branches may tell apart what its keys do not


def _properties(schema: Schema) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _below(schema: Schema, name: str) -> Schema:
    found = _properties(schema).get(name, schema.get("additionalProperties"))
    return found if isinstance(found, Mapping) else {}


def impossible(expected: ExpectedCall, name: str, schema: Schema) -> str | None:
    """Why no call of `name` could be what is expected; None where one can."""
    for argument in {**(expected.arguments or {}), **(expected.match or {})}:
        if argument not in _properties(schema) and schema.get("additionalProperties", False) is False:
            return f"gives {name} an argument {argument} that its schema has not"
    for argument, matcher in (expected.match or {}).items():
        if argument in (expected.arguments or {}):
            return f"has {argument} of {name} both in arguments and in match: leave one out"
        kinds = {"integer" if k == "number" else k for k in types_of(_below(schema, argument))}
        if kinds and kinds <= KINDS and not kinds & matcher.kinds:
            told = f"{' or '.join(sorted(kinds))} in its schema, which {str(_key(matcher)).strip('<>')} never matches"
            return f"matches {argument} of {name}, {told}"
    return None


# ---- comparing values ----


def same(expected: Any, actual: Any, schema: Schema, lenient: bool = False) -> bool:
    """Whether `actual` is the argument `expected` under `schema`."""
    return equal(expected, actual, schema) or (lenient and _alike(expected, actual, schema))


def _alike(expected: Any, actual: Any, schema: Schema) -> bool:
    if isinstance(expected, str) and isinstance(actual, str):
        return loosened(expected) == loosened(actual)
    if isinstance(expected, float) and isinstance(actual, int) and not isinstance(actual, bool):
        return expected == actual
    if isinstance(expected, list) and isinstance(actual, list):
        items = schema.get("items")
        below: Schema = items if isinstance(items, Mapping) else {}
        return len(expected) == len(actual) and all(same(*p, below, True) for p in zip(expected, actual, strict=True))
    if isinstance(expected, dict) and isinstance(actual, dict):
        together = all(k in actual and same(v, actual[k], _below(schema, k), True) for k, v in expected.items())
        return together and expected.keys() == actual.keys()
    return False


def loosened(text: str) -> str:
    """`text` without what a lenient comparison does not look at."""
    return LOOSE.sub("", text).casefold()


# ---- who made which call ----


def assign(wanted: Sequence[A], there: Sequence[B], fit: Callable[[A, B], bool]) -> list[int | None]:
    """For each of `wanted`, the index of its own one of `there`, or None; as many as can be are given one.

    The first idea may be wrong: a call that fits two expectations must be left to the one that nothing else fits. So
    a later one may push an earlier one to its next choice (Kuhn's augmenting paths).
    """
    choices = [[i for i, b in enumerate(there) if fit(a, b)] for a in wanted]
    holder: dict[int, int] = {}  # index of `there` → of `wanted`

    def place(who: int, tried: set[int]) -> bool:
        for i in choices[who]:
            if i not in tried:
                tried.add(i)
                if i not in holder or place(holder[i], tried):
                    holder[i] = who
                    return True
        return False

    for who in range(len(wanted)):
        place(who, set())
    given = {who: i for i, who in holder.items()}
    return [given.get(who) for who in range(len(wanted))]
