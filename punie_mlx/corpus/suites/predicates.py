"""What a suite can ask of an argument by name: pure functions of one JSON value, the same on every machine.

A value of another type than the predicate is about does not fulfil it; nothing is raised.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import uuid
import warnings
from collections.abc import Callable, Mapping
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

Test = Callable[[Any], bool]
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


def _reads(read: Callable[[str], object]) -> Test:
    """Of text: whether `read` takes it without an error and finds something in it."""

    def test(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        try:
            return bool(read(value))
        except (ValueError, SyntaxError, re.error, RecursionError, MemoryError):
            return False

    return test


def _non_empty(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, list | dict) and bool(value)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _relative_path(text: str) -> bool:
    path = PurePosixPath(text)
    return bool(text.strip()) and "\0" not in text and not path.is_absolute() and ".." not in path.parts


def _python(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes: it is not our code
        return bool(ast.parse(text).body)


def _json(text: str) -> bool:
    json.loads(text)
    return True


def _url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", text)


PREDICATES: Mapping[str, Test] = {
    "absolute_path": _reads(lambda text: text.startswith("/") and "\0" not in text),
    "email": _reads(_EMAIL.fullmatch),
    "iso_date": _reads(lambda text: re.fullmatch(r"\d{4}-\d\d-\d\d", text) and date.fromisoformat(text)),
    "iso_datetime": _reads(lambda text: "T" in text and datetime.fromisoformat(text)),
    "json": _reads(_json),
    "non_empty": _non_empty,
    "positive": _positive,
    "python": _reads(_python),
    "regex": _reads(lambda text: re.compile(text) and text != ""),
    "relative_path": _reads(_relative_path),
    "shell_command": _reads(shlex.split),
    "url": _reads(_url),
    "uuid": _reads(uuid.UUID),
}
