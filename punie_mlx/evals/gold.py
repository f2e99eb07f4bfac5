"""A run that does all that a case expects, made up from the case itself: the scorer is tried on it.

Expectations are turned round: a matcher gives a value that it matches, a regex a text. What cannot be turned round (a
backward look at what stands before, say) gives None, and the case is not tried.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from punie_mlx.corpus.suite import Case, ExpectedCall, ExpectedText
from punie_mlx.corpus.suites import matchers
from punie_mlx.corpus.suites.predicates import PREDICATES
from punie_mlx.evals.agent import Call, Run, Turn
from punie_mlx.toolcalls.looks import call_text

ANSWERS = ("Done.", "It is so.", "Yes", "ok", "7")
"""Something to say where the case does not care what."""
EXAMPLES: tuple[Any, ...] = (
    "a/b.txt", "/a/b.txt", "a@example.com", "2024-05-06", "2024-05-06T07:08:09", '{"a": 1}', "http://example.com/a",
    "12345678-1234-5678-1234-567812345678", "x = 1", "ls -l", 1, 2.5, [1], True,
)  # fmt: skip
"""Values of which each predicate takes at least one."""


# Private, and in Python since 3.11: a test holds it.
_parser, op = (importlib.import_module(f"re.{name}") for name in ("_parser", "_constants"))


class _UnknownError(Exception):
    """No value is known that would do."""


def perfect(case: Case) -> Run | None:
    """A run that `case` must pass; None where none could be made up."""
    for expected in case.alternatives:
        try:
            apart = case.expect.parallel is False
            calls = [_call(e, case, i + 1 if apart else 1) for i, e in enumerate(expected)]
            files = {k: t for k, v in (case.expect.files or {}).items() if (t := _file(v)) is not None}
            answer = _text(case.expect.answer, lambda text: call_text(text, case.schemas) is None)
        except _UnknownError:
            continue
        turn = Turn(0.0, 200, {"role": "assistant", "content": answer}, "stop")
        return Run(turns=[turn], calls=calls, answer=answer, files=files)
    return None


def _call(expected: ExpectedCall, case: Case, turn: int) -> Call:
    name = expected.names[0]
    properties = case.schemas[name].get("properties") or {}
    arguments = dict(expected.arguments or {})
    for key, matcher in (expected.match or {}).items():
        if not matcher.optional:
            arguments[key] = _value(matcher, properties.get(key) or {})
    return Call(turn, f"call-{turn}", name, arguments, result="ok", ok=True)


def _value(matcher: Any, schema: Mapping[str, Any]) -> Any:
    """A value that `matcher` matches. Raises `_UnknownError`."""
    return _first(_candidates(matcher), lambda v: matcher.matches(v, schema))


def _candidates(matcher: Any) -> Iterable[Any]:
    match matcher:
        case matchers.Exact():
            return [matcher.exact]
        case matchers.OneOf():
            return matcher.one_of
        case matchers.SetOf():
            return [list(matcher.set)]
        case matchers.Regex():
            return [_written(matcher.regex)]
        case matchers.Number():
            return [matcher.number, round(matcher.number)]
        case matchers.Range():
            ends = [e for e in (matcher.min, matcher.max) if e is not None]
            return [*ends, *map(math.ceil, ends), *map(math.floor, ends)]
        case matchers.Predicate():
            return [e for e in EXAMPLES if PREDICATES[matcher.predicate](e)]
    raise _UnknownError


def _first(candidates: Iterable[Any], good: Callable[[Any], bool]) -> Any:
    for candidate in candidates:
        if good(candidate):
            return candidate
    raise _UnknownError


def _file(wanted: str | ExpectedText | None) -> str | None:
    return _text(wanted) if isinstance(wanted, ExpectedText) else wanted


def _text(wanted: ExpectedText | None, good: Callable[[str], bool] = lambda text: True) -> str:
    """A text that is as `wanted`, and `good`. Raises `_UnknownError`."""
    if wanted is None:
        return _first(ANSWERS, good)
    held = list(wanted.contains or ())
    matched = [_written(wanted.matches)] if wanted.matches is not None else []
    orders = (held + matched, matched + held, matched, held)
    joined = [glue.join(parts) for parts in orders if parts for glue in (" ", "\n", "")]

    def fits(text: str) -> bool:
        return (
            bool(text.strip())
            and all(part in text for part in held)
            and not any(part in text for part in wanted.lacks or ())
            and (wanted.matches is None or re.search(wanted.matches, text) is not None)
            and good(text)
        )

    return _first([*joined, *ANSWERS], fits)


# ---- a text for a regex ----


def _written(pattern: str) -> str:
    """A text that `pattern` matches, as a whole where one is found. Raises `_UnknownError`."""
    texts = []
    for any_character in ("a", " "):
        with contextlib.suppress(KeyError, NotImplementedError):
            texts.append(_Writer(any_character).text(_parser.parse(pattern)))
    wholes = [t for t in texts if re.fullmatch(pattern, t)]
    return _first([*wholes, *texts], lambda t: re.search(pattern, t) is not None)


class _Writer:
    """Writes a text for a parsed regex. Raises `NotImplementedError`, and `KeyError` for a group that is not there."""

    def __init__(self, any_character: str) -> None:
        self._any = any_character
        self._groups: dict[int, str] = {}

    def text(self, tree: Any) -> str:
        return "".join(self._node(kind, value) for kind, value in tree)

    def _node(self, kind: Any, value: Any) -> str:
        if kind is op.LITERAL:
            return chr(value)
        if kind is op.NOT_LITERAL:
            return next(c for c in string.ascii_letters if ord(c) != value)
        if kind is op.ANY:
            return self._any
        if kind in (op.AT, op.ASSERT_NOT):
            return ""
        if kind is op.IN:
            return _from_class(value)
        if kind is op.BRANCH:
            return self.text(value[1][0])
        if kind is op.ASSERT:  # what is looked for is written where it is looked for
            return self.text(value[1])
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            # What is repeated any number of times is written once: an empty text is no good example.
            least, most, inner = value
            return "".join(self.text(inner) for _ in range(max(least, min(1, most))))
        if kind is op.SUBPATTERN:
            number, _, _, inner = value
            text = self.text(inner)
            if number is not None:
                self._groups[number] = text
            return text
        if kind is op.GROUPREF:
            return self._groups[value]
        raise NotImplementedError(str(kind))


# In this order: a letter is a better example than a space.
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \t\n"


def _from_class(items: Any) -> str:
    """The first character that a class of characters holds."""
    negated = any(kind is op.NEGATE for kind, _ in items)
    for character in [*CHARACTERS, *(chr(v) for k, v in items if k is op.LITERAL)]:
        if any(_in_class(character, *item) for item in items) is not negated:
            return character
    raise NotImplementedError("a class without a plain character")


CATEGORIES = {
    "CATEGORY_DIGIT": str.isdigit, "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
}  # fmt: skip


def _in_class(character: str, kind: Any, value: Any) -> bool:
    if kind is op.LITERAL:
        return ord(character) == value
    if kind is op.RANGE:
        return value[0] <= ord(character) <= value[1]
    if kind is op.CATEGORY:
        name = str(value)
        told = CATEGORIES[name.replace("NOT_", "")](character)
        return not told if "NOT_" in name else told
    return False
