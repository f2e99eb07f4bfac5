"""A text that is cut off anywhere: every prefix of every conformance case, for both ways to end.

In CI the three cases of more than 600 characters are cut at some hundred places and around the characters of markers,
all others everywhere: 50,000 readings for each way to end. With PUNIE_FULL=1 every case is cut everywhere: 169,000.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.toolcalls import contract, formats
from punie_mlx.toolcalls.calls import ArgumentsDelta, CallFinished, Event, Malformed, Tool, ToolCall, dumps
from punie_mlx.toolcalls.stream import read

FULL = bool(os.environ.get("PUNIE_FULL"))
LONG = 600
# What the reader says of a call that it took for complete although its own closing tags had not all come.
LENIENT = {"unclosed_parameter", "unclosed_function", "unclosed_call", "repaired"}


@pytest.fixture(scope="module")
def cases(real_data: Path) -> list[dict[str, Any]]:
    files = sorted((real_data / "conformance").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def rendered(name: str) -> dict[str, Any]:
    """A case of our own, since not every format has cases: thinking, text, and two calls as the format writes them."""
    format = formats.get(name)
    think = "a plan".join(format.think) if not format.reader else ""
    calls = [contract.SAMPLE, ToolCall("look", {"path": "a\nb", "deep": {"k": [{}, [], "é"]}})]
    kinds = {"a": "string", "b": "integer", "c": "array", "path": "string", "deep": "object"}
    schema = {"properties": {key: {"type": kind} for key, kind in kinds.items()}}
    tools = [{"name": call.name, "parameters": schema} for call in calls]
    return {"id": "rendered", "format": name, "tools": tools, "model_output": f"{think}Sure.\n{format.render(calls)}"}


def cuts(text: str) -> Iterator[int]:
    """Where to cut `text`."""
    if FULL or len(text) <= LONG:
        yield from range(len(text))
        return
    near = {at + d for at, char in enumerate(text) if char in "<>[]{}()`|\n" for d in (-1, 0, 1)}
    yield from sorted(near & set(range(len(text))) if len(near) < LONG else {n for n in near if n % 7 == 0})
    yield from range(0, len(text), max(97, len(text) // 100))


@dataclass(frozen=True)
class Outcome:
    """What a reading says of its calls."""

    events: tuple[Event, ...]

    @property
    def finished(self) -> list[CallFinished]:
        return [e for e in self.events if isinstance(e, CallFinished)]

    @property
    def broken(self) -> list[Malformed]:
        return [e for e in self.events if isinstance(e, Malformed) and e.index is not None]

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of the finished calls, as texts: 1, 1.0 and true differ, and so does the order of keys."""
        return [(e.call.name, dumps(e.call.arguments)) for e in self.finished]

    def sent(self, index: int) -> str:
        return "".join(e.json for e in self.events if isinstance(e, ArgumentsDelta) and e.index == index)


def outcome(case: dict[str, Any], cut: int | None, finish: str) -> Outcome:
    tools = [Tool.from_openai(t) for t in case.get("tools") or ()]
    reasoning = bool(case.get("reasoning"))
    return Outcome(
        read(case["model_output"][:cut], case["format"], tools, starts_in_reasoning=reasoning, finish=finish).events
    )


def wrong_at(case: dict[str, Any], cut: int, finish: str, whole: Outcome) -> str:
    """What is wrong with the reading of `case` cut at `cut`."""
    found = outcome(case, cut, finish)
    if faults := contract.faults(case["model_output"][:cut], found.events):
        return faults[0]
    for call, event, wanted in zip_longest(found.calls, found.finished, whole.calls):
        lenient = finish == "stop" and event and (LENIENT & {p.kind for p in event.problems} or case.get("ambiguous"))
        if call not in (None, wanted) and not lenient:
            return f"{call} is reported as complete, and the whole text calls {wanted}"
    if finish == "stop" or whole.broken or len(found.calls) == len(whole.calls):
        return ""
    name, _ = whole.calls[len(found.calls)]
    for event in found.broken:
        if not event.truncated or event.name != name:
            return f"cut inside a call of {name}: {event}"
        if not whole.sent(len(found.calls)).startswith(event.arguments.removesuffix('"')):  # a tag may have closed it
            return f"{event.arguments!r} is no beginning of {whole.sent(len(found.calls))!r}"
    return ""


@pytest.mark.parametrize("finish", ["length", "stop"])
@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_a_text_cut_off_anywhere(cases, name, finish):
    wrong = {}
    for case in (rendered(name), *(c for c in cases if c["format"] == name)):
        whole, text = outcome(case, None, finish), case["model_output"]
        for cut in cuts(text):
            if why := wrong_at(case, cut, finish, whole):
                wrong[case["id"]] = (text[:cut][-100:], why)
                break
    assert wrong == {}
