"""What should not leave a user's machine, replaced by names that say nothing: the same one by the same name.

    ann@firm.example       → user1@example.com
    /home/ann/notes        → /home/user1/notes          (also /Users/ann and C:\\Users\\ann)
    sk-live-8fK2…          → redacted_token_1           (long hex, long runs of mixed letters and digits)

This finds forms, not meanings: names, street addresses and short passwords stay.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
HOME = re.compile(r"(?P<root>/home/|/Users/|[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/))(?P<name>[^/\\\s\"'<>|:*?,;)]+)")
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
HEX = re.compile(rf"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{{24,}}|{UUID})(?![0-9A-Za-z])")
TOKEN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{20,}={0,2}(?![A-Za-z0-9+/_=-])")
KEY = re.compile(r"(?:sk|pk|rk|ghp|gho|ghs|hf|xox[abp]|glpat|AKIA|AIza|eyJ)[-_]?\w*")  # how keys of services begin
SHARED = frozenset({"Shared", "Public", "shared", "runner"})  # homes of nobody
_TURNS = 5  # changes between lower case, upper case and digits from which a long word is a token


class Redactor:
    """Replaces in texts and JSON values, and counts what it replaced."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self.count: Counter[str] = Counter()

    def value(self, value: Any) -> Any:
        """`value` with all its texts, also the keys of objects, replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if isinstance(value, dict):
            return {self.text(k) if isinstance(k, str) else k: self.value(v) for k, v in value.items()}
        return value

    def text(self, text: str) -> str:
        text = EMAIL.sub(lambda m: self._name("e-mail addresses", m[0].lower(), "user{}@example.com"), text)
        text = HOME.sub(self._home, text)
        text = HEX.sub(lambda m: self._token(m[0]) if any(c.isdigit() for c in m[0]) else m[0], text)
        return TOKEN.sub(lambda m: self._token(m[0]) if _looks_random(m[0]) else m[0], text)

    def _home(self, match: re.Match[str]) -> str:
        if match["name"] in SHARED:
            return match[0]
        return match["root"] + self._name("home directories", match["name"], "user{}")

    def _token(self, text: str) -> str:
        return self._name("tokens", text, "redacted_token_{}")

    def _name(self, kind: str, text: str, form: str) -> str:
        self.count[kind] += 1
        number = 1 + sum(k == kind for k, _ in self._names)
        return self._names.setdefault((kind, text), form.format(number))


def _looks_random(text: str) -> bool:
    """Whether a long word is a key rather than a path or a name: no word, and letters and digits in a mix."""
    if text.startswith("redacted_token_"):
        return False
    if KEY.match(text) and any(c.isdigit() for c in text):
        return True
    longest = max(re.split(r"[/_-]", text), key=len).rstrip("=")
    kinds = [0 if c.isdigit() else 1 if c.islower() else 2 for c in longest if c.isalnum()]
    turns = sum(a != b for a, b in pairwise(kinds))
    return len(longest) >= 16 and kinds.count(0) >= 2 and turns >= _TURNS
