"""Hermes, Qwen2.5 and Qwen3: calls as JSON.

    <tool_call>
    {"name": NAME, "arguments": {…}}
    </tool_call>

The end of the JSON is found by its strings and brackets, never by searching the closing tag, which a string may hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Problem, ToolCall, dumps
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, literal, spaces

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OUTSIDE = re.compile(r"[\"'{}\[\]<]")
_IN_STRING = {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")}
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as the model family's own template writes them."""
    bodies = (dumps({"name": c.name, "arguments": c.arguments}) for c in calls)
    return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)


def opens(window: Window, at: int) -> int:
    """Whether a JSON object, or a list of them, begins at `at`."""
    if at == len(window.text):
        return MORE
    legal = {"{": "\"'}", "[": "{"}.get(window.text[at])
    if legal is None:
        return NO
    inside = spaces(window, at + 1)
    if inside == len(window.text):
        return MORE
    return inside if window.text[inside] in legal else NO


class Scanner:
    """Finds the end of one JSON value that arrives in pieces, by its strings and brackets."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self.short = False  # the closing tag came before the last bracket

    def scan(self, window: Window) -> tuple[int, bool]:
        """How far the value reaches into the window, and whether it ends there."""
        text, at = window.text, window.pos
        if self._escaped and at < len(text):
            at, self._escaped = at + 1, False
        while found := (_IN_STRING[self._quote] if self._quote else _OUTSIDE).search(text, at):
            at, char = found.end(), found.group()
            if char == "<":
                tag = literal(window, at - 1, CLOSE)
                if tag > 0:
                    self.short = True
                    return at - 1, True
                if tag == MORE and not window.ended:
                    return at - 1, False
            elif char == "\\":
                if at == len(text):
                    self._escaped = True
                at += 1
            elif char in "\"'":
                self._quote = "" if self._quote else char
            elif char in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return at, True
        return len(text), False


@dataclass(frozen=True)
class Found:
    """A call in a JSON body; `repaired` says what had to be mended to read it."""

    name: str
    arguments: dict[str, Any]
    repaired: str = ""


def decode(body: str) -> tuple[list[Found], str, list[str]]:
    """The calls of a JSON body, why there are none, and the entries of a list that are no calls."""
    value, repaired = _read(body)
    if value is None:
        return [], "the body is not JSON", []
    entries = value if isinstance(value, list) else [value]
    found, junk, reason = [], [], "an empty list"
    for entry in entries:
        call, why = _call(entry, repaired)
        if call:
            found.append(call)
        else:
            reason = why
            junk.append(dumps(entry))
    return found, "" if found else reason, junk if found else []


def _read(body: str) -> tuple[Any, str]:
    """The value of `body`, mended where models are known to slip, and what was mended."""
    missing = _missing_brackets(body)
    attempts = [(body, schema.loads, ""), (body, schema.literal, "a Python literal instead of JSON")]
    attempts.append((_TRAILING_COMMA.sub(r"\1", body), schema.loads, "trailing comma"))
    if missing:
        attempts.append((body + missing, schema.loads, f"missing {missing}"))
    for text, reader, repaired in attempts:
        try:
            return reader(text), repaired
        except ValueError:
            continue
    return None, ""


def _missing_brackets(body: str) -> str:
    """The closing brackets that `body` lacks, if it lacks only these and few of them."""
    stack = []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', body, re.DOTALL):
        if token in ("{", "["):
            stack.append("}" if token == "{" else "]")
        elif token in ("}", "]") and (not stack or stack.pop() != token):
            return ""
    return "".join(reversed(stack)) if len(stack) <= 2 else ""


def _call(entry: Any, repaired: str) -> tuple[Found | None, str]:
    if not isinstance(entry, dict):
        return None, "no JSON object"
    function = entry["function"] if isinstance(entry.get("function"), dict) else entry
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return None, "the object has no name of a function"
    if "arguments" not in function and "parameters" not in function:
        return None, "the object has no arguments"
    arguments = function["arguments"] if "arguments" in function else function["parameters"]
    if isinstance(arguments, str):
        try:
            arguments, repaired = schema.loads(arguments), repaired or "arguments as a string"
        except ValueError:
            return None, "the arguments are a string that is not JSON"
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None, "the arguments are no object"
    return Found(name, arguments, repaired), ""


class Body:
    """Reads the JSON of one `<tool_call>` block; `done` when it is over."""

    def __init__(self, sink: Sink) -> None:
        self.done = False
        self._sink = sink
        self._scanner = Scanner()
        self._parts: list[str] = []
        self._step = self._scan
        self._broken = ""

    def step(self, window: Window) -> bool:
        """Read on; return whether anything was decided."""
        return self._step(window)

    def _scan(self, window: Window) -> bool:
        end, over = self._scanner.scan(window)
        self._parts.append(self._sink.take(window, end))
        if over:
            self._decode()
            self._step = self._close
            return True
        if window.ended:
            self._sink.malformed("the call is cut off")
            self.done = True
            return True
        return False

    def _decode(self) -> None:
        found, self._broken, junk = decode("".join(self._parts))
        for i, call in enumerate(found):
            problems = [Problem("repaired", call.repaired)] if call.repaired else []
            problems += [Problem("not_a_call", "an entry of the list", raw) for raw in junk if i == 0]
            problems += schema.mismatches(call.name, call.arguments, self._sink.tools)
            self._sink.start(call.name)
            self._sink.arguments(dumps(call.arguments))
            self._sink.finish(call.name, call.arguments, problems)

    def _close(self, window: Window) -> bool:
        """The closing tag: framing after a call, part of the raw text of a broken one."""
        end = literal(window, spaces(window, window.pos), CLOSE)
        if end == MORE and not window.ended:
            return False
        if self._broken:
            self._sink.take(window, end if end > 0 else window.pos)
            self._sink.malformed(self._broken)
        elif end > 0:
            self._sink.mark(window, end)
        self.done = True
        return True
