"""The arguments of a call that is written in Python, `(a=1, b="x")`, read while they arrive and passed on as JSON.

Values are literals: strings of every kind but bytes and formatted ones, numbers, True, False and None (and JSON's true,
false and null), lists, tuples, dictionaries. Anything that would have to be computed is no argument of a tool call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from punie_mlx.toolcalls.jsonwriter import DEPTH, SPECIAL, Transcriber
from punie_mlx.toolcalls.window import MORE, Window, spaces

KEY = re.compile(r"[^\W\d][\w.-]*")
CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_WORD = re.compile(r"[^\W\d]\w*")
_NUMBER = re.compile(r"[+-]?(?:[\w.]|(?<=[eE])[+-])*")
_INTEGER = re.compile(r"[+-]?(?:0+(?:_?0)*|[1-9]\d*(?:_\d+)*)\Z", re.ASCII)
_BASED = re.compile(r"[+-]?0(?:[xX](?:_?[0-9a-fA-F])+|[oO](?:_?[0-7])+|[bB](?:_?[01])+)\Z")
_DIGITS = r"\d+(?:_\d+)*"
_FLOAT = re.compile(
    rf"[+-]?(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS}|{_DIGITS}(?=[eE]))(?:[eE][+-]?{_DIGITS})?\Z", re.ASCII
)
_PADDED = re.compile(r"0\d*[1-9]\d*\Z", re.ASCII)
_LONGEST = 4000  # digits; Python converts no more
_STOPS = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_RUN: Callable[..., Any] = re.compile(f"[^'{SPECIAL}]*").match
_ESCAPE = re.compile(
    r"\\(?:(?P<line>\r?\n)|(?P<octal>[0-7]{1,3})|x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})"
    r"|U(?P<U>[0-9a-fA-F]{8})|(?P<one>.))",
    re.DOTALL,
)
_UNFINISHED = re.compile(r"\\(?:\r?|[0-7]{1,2}|x[0-9a-fA-F]?|u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7}|N)\Z")
_SIMPLE = {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_CLOSER = {"call": ")", "**": "}", "{": "}", "[": "]", "(": ")"}


class PyArguments(Transcriber):
    """The arguments of one call, from behind its `(` on.

    positional: names for arguments that are given without one, in their order.
    """

    def __init__(self, emit: Callable[[str], None], positional: Sequence[str] = ()) -> None:
        super().__init__(emit, _RUN)
        self._open = ["call"]
        self._positional = list(positional)
        self._named = False  # an argument with a name has come
        self._state = self._element
        self._quote = ""
        self._raw = False
        self._key: list[str] | None = None  # pieces of the key that is being read

    def _in_string(self) -> bool:
        return self._key is None and self._state == self._string

    # ---- between values ----

    def _element(self, window: Window, at: int) -> int:
        """The next argument, entry or element, or the closing bracket."""
        at = spaces(window, at)
        if at == len(window.text):
            return MORE
        kind = self._open[-1]
        if window.text[at] == _CLOSER[kind]:
            return self._close(at)
        if kind == "call":
            return self._argument(window, at)
        self._key = [] if kind in ("{", "**") else None
        return self._value(window, at)

    def _argument(self, window: Window, at: int) -> int:
        text = window.text
        if text[at] == "*":
            return self._unpacked(window, at)
        if (found := KEY.match(text, at)) is not None:
            equals = spaces(window, found.end())
            if equals + 1 >= len(text):
                return MORE
            if text[equals] == "=" and text[equals + 1] != "=":
                name = found.group()
                if not name.isidentifier():
                    self._repaired(f"{name} is no name of a Python argument")
                self._named = True
                self._writer.key(name)
                self._state = self._value
                return equals + 1
        if not self._positional or self._named:
            return self._break("an argument without a name", at)
        name = self._positional.pop(0)
        self._repaired(f"{name} is given without its name")
        self._writer.key(name)
        self._state = self._value
        return at

    def _unpacked(self, window: Window, at: int) -> int:
        """`**{"key": value}`: how names are given that Python cannot write."""
        brace = spaces(window, at + 2)
        if brace >= len(window.text) and "**".startswith(window.text[at : at + 2]):
            return MORE
        if not window.text.startswith("**", at) or window.text[brace] != "{":
            return self._break("an unpacked value", at)
        self._named = True
        self._open.append("**")
        self._writer.open("**")
        self._state = self._element
        return brace + 1

    def _after(self, window: Window, at: int) -> int:
        """After a value: a comma or the closing bracket."""
        at = spaces(window, at)
        if at == len(window.text):
            return MORE
        if window.text[at] == ",":
            self._writer.comma()
            self._state = self._element
            return at + 1
        if window.text[at] == _CLOSER[self._open[-1]]:
            return self._close(at)
        return self._break("what follows a value is neither a comma nor the closing bracket", at)

    def _close(self, at: int) -> int:
        self.done = self._open.pop() == "call"
        self._writer.close()
        self._state = self._after
        return at + 1

    # ---- values ----

    def _value(self, window: Window, at: int) -> int:
        at = spaces(window, at)
        if at == len(window.text):
            return MORE
        char = window.text[at]
        if char in "\"'":
            return self._begin_string(window, at, raw=False)
        if char.isalpha() or char == "_":
            return self._word(window, at)
        if self._key is not None:
            return self._break("a key that is no string", at)
        if char in "[({":
            return self._bracket(char, at)
        if char.isdigit() or char in "+-.":
            return self._number(window, at)
        return self._break("a value that is no literal", at)

    def _bracket(self, char: str, at: int) -> int:
        if self._writer.depth >= DEPTH:
            return self._break("nested too deeply", at)
        self._open.append(char)
        self._writer.open(char)
        self._state = self._element
        return at + 1

    def _word(self, window: Window, at: int) -> int:
        """A constant, or the prefix of a string."""
        found = _WORD.match(window.text, at)
        end = found.end() if found else at + 1
        if end == len(window.text):
            return MORE
        word = window.text[at:end]
        if window.text[end] in "\"'" and word in ("r", "R", "u", "U"):
            return self._begin_string(window, end, raw=word in "rR")
        if word not in CONSTANTS or self._key is not None:
            return self._break(f"{word[:40]} is no literal", at)
        self._writer.scalar(CONSTANTS[word])
        self._state = self._after
        return end

    def _number(self, window: Window, at: int) -> int:
        found = _NUMBER.match(window.text, at)
        end = found.end() if found else at
        if end - at > _LONGEST:
            return self._break("a number that is too long", at)
        if end == len(window.text):
            return MORE
        text = window.text[at:end]
        if _PADDED.match(text):
            self._repaired("a number with leading zeros, kept as text")
            self._writer.scalar(f'"{text}"')
        elif (json := number(text)) is not None:
            self._writer.scalar(json)
        else:
            return self._break("what begins like a number is none", at)
        self._state = self._after
        return end

    # ---- strings ----

    def _begin_string(self, window: Window, at: int, raw: bool, joined: bool = False) -> int:
        """The opening quote at `at`, one or three; `joined`: it goes on with the string before."""
        text, quote = window.text, window.text[at]
        if text.startswith(quote * 3, at):
            self._quote = quote * 3
        elif len(text) - at < 3 and text[at:] == quote * (len(text) - at):
            return MORE
        else:
            self._quote = quote
        self._stop = _STOPS[quote]
        self._raw = raw
        if self._key is None and not joined:
            self._writer.string()
        self._state = self._string
        return at + len(self._quote)

    def _string(self, window: Window, at: int) -> int:
        text = window.text
        found = self._stop.search(text, at)
        end = found.start() if found else len(text)
        if end > at:
            self._piece(text[at:end])
            return end
        if found is None:
            return MORE
        if text[at] == "\\":
            return self._escape(window, at)
        if text.startswith(self._quote, at):
            self._state = self._after_string
            return at + len(self._quote)
        if self._quote.startswith(text[at:]):
            return MORE
        self._piece(text[at])
        return at + 1

    def _piece(self, text: str) -> None:
        if "\n" in text and len(self._quote) == 1:
            self._repaired("a line break inside a string")
        self._text(text)

    def _text(self, text: str) -> None:
        if self._key is None:
            self._writer.piece(text)
        else:
            self._key.append(text)

    def _escape(self, window: Window, at: int) -> int:
        text = window.text
        if self._raw:
            if at + 1 == len(text):
                return MORE
            self._piece(text[at : at + 2])
            return at + 2
        if len(text) - at < 10 and _UNFINISHED.match(text, at):
            return MORE
        found = _ESCAPE.match(text, at)
        if found is None:
            return MORE
        if text.startswith(r"\N{", at):
            return self._break("a character by its name", at)
        self._text(self._escaped(found))
        return found.end()

    def _escaped(self, found: re.Match[str]) -> str:
        """The text of an escape; one that Python does not know stays as it is."""
        if found["line"]:
            return ""
        if found["octal"]:
            return chr(int(found["octal"], 8))
        code = int(found["x"] or found["u"] or found["U"] or "110000", 16)
        if code < 0x110000:
            return chr(code)
        known = _SIMPLE.get(found["one"] or "U")
        if known is None and found.group()[1] in "xuUN":
            self._repaired(f"{found.group()} is no escape, kept as it is")
        return found.group() if known is None else known

    def _after_string(self, window: Window, at: int) -> int:
        """Strings side by side are one string."""
        text, at = window.text, spaces(window, at)
        if at == len(text):
            return MORE
        if text[at] in "\"'":
            return self._begin_string(window, at, raw=False, joined=True)
        if text[at] in "rRuU":
            if at + 1 == len(text):
                return MORE
            if text[at + 1] in "\"'":
                return self._begin_string(window, at + 1, raw=text[at] in "rR", joined=True)
        if self._key is None:
            self._writer.end_string()
            self._state = self._after
            return at
        if text[at] != ":":
            return self._break("a key without a value", at)
        self._writer.key("".join(self._key))
        self._key = None
        self._state = self._value
        return at + 1


def number(text: str) -> str | None:
    """The JSON text of a Python number; None where it is none, or one that JSON cannot spell."""
    if _INTEGER.match(text) or _BASED.match(text):
        try:
            return str(int(text, 0))
        except ValueError:  # more digits than Python writes
            return None
    if not _FLOAT.match(text):
        return None
    value = float(text)
    return repr(value) if math.isfinite(value) else None
