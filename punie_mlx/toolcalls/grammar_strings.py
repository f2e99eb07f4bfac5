"""Limits on strings, as regular expressions of the whole text: lengths, `pattern`, `format`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 10_000  # what llguidance can count to
LONGEST_SEARCHED = 200  # the same, of a text that must not hold something else: it looks through every count
_BEYOND = re.compile(r"\(\?(?!:)|\\[1-9bBAZkpPG]")  # of regular expressions: what llguidance does not take
_ANCHORED = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[()|/^$\n]", re.DOTALL)
_UNESCAPED = re.compile(r"\\.|[/\n]", re.DOTALL)  # what a literal of the grammar cannot hold as it stands
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_DAY = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"  # no month lacks these
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*"
FORMATS = {
    "date": rf"{_DAY}|[0-9]{{4}}-((0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)",
    "time": _CLOCK,
    "date-time": rf"{_DAY}T{_CLOCK}",
    "email": rf"[a-zA-Z0-9_+\-]+(\.[a-zA-Z0-9_+\-]+)*@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
Note = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What a text must be: `low` to `high` characters, and a match of `regex` from beginning to end."""

    low: int = 0
    high: int | None = None
    regex: str = ""

    def __bool__(self) -> bool:
        return bool(self.low or self.regex) or self.high is not None

    @property
    def repeat(self) -> str:
        """How often a regular expression of one character comes."""
        most = "" if self.high is None else self.high
        return f"{{{self.low},{most}}}" if self.low or most != "" else "*"

    @property
    def terminals(self) -> list[str]:
        """What the terminal of a bare text is to be joined with by `&`."""
        counted = [f"/(?s:.{self.repeat})/"] if self.low or self.high is not None else []
        return [*counted, *([f"/{self.regex}/"] if self.regex else [])]

    @property
    def may_be_empty(self) -> bool:
        return not self.low and not (self.regex and re.fullmatch(self.regex.replace(r"\/", "/"), "") is None)


UNLIMITED = Limits()


def limits(branch: Mapping[str, Any], longest: int, note: Note) -> Limits:
    """The limits of a schema of strings; `note` hears of those that cannot be kept."""
    low, high = (_count(branch, key, longest, note) for key in ("minLength", "maxLength"))
    regex = ""
    if "pattern" in branch:
        regex = whole(branch["pattern"])
        if not regex:
            note("pattern")
    if "format" in branch:
        found = FORMATS.get(branch["format"], "") if isinstance(branch["format"], str) else ""
        if regex or not found:
            note("format")
        regex = regex or (f"({found})" if found else "")
    return Limits(low or 0, high, regex)


def _count(branch: Mapping[str, Any], key: str, longest: int, note: Note) -> int | None:
    value = branch.get(key)
    if value is None:
        return None
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= longest
    if not is_count or value != int(value):
        note(key)
        return None
    return int(value)


def whole(pattern: Any) -> str:
    """The regular expression of all texts in which `pattern` has a match, or nothing where it has none such.

    Anchors are understood at the ends of the pattern and of the alternatives that it consists of.
    """
    if not isinstance(pattern, str) or _BEYOND.search(pattern) or not compiles(pattern):
        return ""
    alternatives, depth, at = [""], 0, 0
    for found in _ANCHORED.finditer(pattern):
        piece = found.group()
        alternatives[-1] += pattern[at : found.start()]
        at = found.end()
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece == "|" and not depth:
            alternatives.append("")
        elif piece in "^$" and depth:
            return ""
        else:
            alternatives[-1] += {"^": "\0^", "$": "\0$"}.get(piece) or _UNESCAPED.sub(_escaped, piece)
    alternatives[-1] += pattern[at:]
    anchored = [_unanchored(a) for a in alternatives]
    return f"({'|'.join(anchored)})" if all(anchored) else ""


def _escaped(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found.group(), found.group())


def _unanchored(part: str) -> str:
    """An alternative with what may stand around it; nothing where it has an anchor in its midst."""
    begins, ends = part.startswith("\0^"), part.endswith("\0$")
    inner = part.removeprefix("\0^").removesuffix("\0$")
    if "\0" in inner:
        return ""
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def compiles(pattern: str) -> bool:
    """Whether it is a regular expression at all."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
