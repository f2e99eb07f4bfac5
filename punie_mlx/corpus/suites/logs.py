"""A user's own logs as a suite: each answer becomes a case that expects what was done then.

    punie-mlx suite import-logs calls.jsonl --redact --out mine.jsonl

| what a line holds                           | cases                                                              |
|---------------------------------------------|--------------------------------------------------------------------|
| `{"request": body, "response": body}`       | one: the request's messages and tools, the response's calls        |
| `{"messages": [...], "tools": [...]}`       | one for each answer to a user's message                            |
| the file is a result of `punie-mlx eval`    | one for each exchange of each trajectory                           |

Only the first turn with calls counts, and its calls must be the same with the same arguments: nothing stands behind
the tools of a log. A turn that answers a tool's result is no case, for a case ends with a user's message. The same
conversation with the same calls is one case; with other calls, each of them is as good (`any_of`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from punie_mlx.corpus.rows import lenient_lines
from punie_mlx.corpus.suite import Case
from punie_mlx.corpus.suites.log_bodies import Answer, Unusable, answer_of, body_of, said, text_of
from punie_mlx.corpus.suites.redact import Redactor
from punie_mlx.errors import DataError
from punie_mlx.identity import hash_json
from punie_mlx.toolcalls.values import problem

_SHAPES = '{"request": …, "response": …} or {"messages": […], "tools": […]}'
_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")  # of a message


@dataclass
class Imported:
    """The cases of one log, and what was not used."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    """Assistant turns that were looked at."""
    folded: int = 0
    """Turns that a case of the same conversation and calls stands for already."""
    answered_differently: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason → where."""
    redacted: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "turns": self.turns,
            "cases": len(self.cases),
            "folded": self.folded,
            "answered_differently": self.answered_differently,
            "skipped": dict(self.skipped),
            "redacted": self.redacted,
            "review": "each case expects what was done then, which may have been wrong",
        }


@dataclass(frozen=True)
class _Turn:
    """One answer: the conversation before it, and what was offered."""

    where: str
    messages: Sequence[Mapping[str, Any]]
    tools: Any
    answer: Answer


def import_logs(file: Path, *, redact: bool = False) -> Imported:
    """Read `file`. Turns that are no use are listed with the reason, never an error.

    Raises:
        DataError: the file cannot be read, or holds nothing that looks like a log, or nothing that can be a case.
    """
    file = Path(file)
    made, redactor = Imported(), Redactor()
    by_question: dict[str, dict[str, Any]] = {}
    for where, entry in _entries(file, made):
        for find in _turns(entry, where):
            made.turns += 1
            try:
                case = _case(find(), redactor if redact else None)
            except Unusable as e:
                made.skipped[str(e)].append(where)
                continue
            _add(case, by_question, made)
    if not made.turns:
        raise DataError(f"{file} holds nothing that looks like a log: give lines of {_SHAPES}, or an eval result")
    if not made.cases:
        reasons = "; ".join(f"{reason}: {len(places)}" for reason, places in made.skipped.items())
        raise DataError(f"no answer in {file} can be a case ({reasons}): log requests with tools, and their responses")
    for number, case in enumerate(made.cases, 1):
        case["id"] = f"log-{number:04d}"
    made.redacted = dict(redactor.count)
    return made


# ---- what a file holds ----


def _entries(file: Path, made: Imported) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where, and what, of each line of a log or exchange of an eval result."""
    lines = list(lenient_lines(file))
    if result := _eval_result(lines):
        for case in result["cases"]:
            exchanges = case.get("trajectory")
            if not exchanges:
                made.turns += 1
                made.skipped["the eval result keeps no trajectory of the case"].append(f"case {case.get('id')}")
            for n, exchange in enumerate(exchanges or (), 1):
                yield f"{file.name}: case {case.get('id')}, exchange {n}", exchange
        return
    for number, line in lines:
        where = f"{file.name}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, Mapping) and ("request" in entry or "messages" in entry):
            yield where, entry
        else:
            reason = "not JSON" if entry is None else f"neither {_SHAPES}"
            made.skipped[reason].append(where)


def _eval_result(lines: Sequence[tuple[int, str]]) -> Mapping[str, Any] | None:
    if not lines or lines[0][1].lstrip()[:1] != "{":
        return None
    try:
        value = json.loads("\n".join(line for _, line in lines))
    except (ValueError, RecursionError):
        return None
    found = isinstance(value, dict) and value.get("kind") == "evaluation" and isinstance(value.get("cases"), list)
    return value if found else None


def _turns(entry: Mapping[str, Any], where: str) -> Iterator[Any]:
    """A function for each answer that finds out what was asked and done, or raises `Unusable`."""
    if "request" in entry:
        yield lambda: _exchanged(entry, where)
        return
    messages = entry["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        yield lambda: _unusable("`messages` is no list of messages")
        return
    answers = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
    if not answers:
        yield lambda: _unusable("the conversation holds no answer")
    for i in answers:
        yield lambda i=i: _Turn(where, messages[:i], entry.get("tools"), said(messages[i]))


def _unusable(reason: str) -> _Turn:
    raise Unusable(reason)


def _exchanged(entry: Mapping[str, Any], where: str) -> _Turn:
    status = entry.get("status")
    if isinstance(status, int) and status >= 400:
        raise Unusable("the response is an error")
    request = body_of(entry["request"], "request")
    answer = answer_of(body_of(entry.get("response"), "response"))
    choice = request.get("tool_choice")
    if choice not in (None, "auto"):
        raise Unusable(f"tool_choice was {choice if isinstance(choice, str) else 'one tool'}, which no case can say")
    messages = request.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise Unusable("the request has no list of messages")
    return _Turn(where, messages, request.get("tools"), answer)


# ---- cases ----


def _case(turn: _Turn, redactor: Redactor | None) -> dict[str, Any]:
    """The case of a turn, without its id. Raises `Unusable`."""
    if not turn.tools:
        raise Unusable("no tools were offered")
    if not turn.messages or turn.messages[-1].get("role") != "user":
        raise Unusable("it answers a tool's result or no user's message, and a case ends with a user's message")
    if not turn.answer.calls and not turn.answer.content.strip():
        raise Unusable("the answer is empty")
    case: dict[str, Any] = {
        "id": "log",
        "category": ("no call", "one call", "several calls")[min(2, len(turn.answer.calls))],
        "source": f"log {turn.where}",
        **_asked(turn.messages),
        "tools": turn.tools,
        "expect": {"calls": [_call(*c) for c in turn.answer.calls], "execution": "any", "turns": "first"},
    }
    if redactor:
        case = redactor.value(case)
    _check(case)
    return case


def _asked(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [{k: m[k] for k in _KEPT if k in m} for m in messages]
    texts = [text_of(m.get("content")) for m in kept]
    roles = [m.get("role") for m in kept]
    if not texts[-1].strip():
        raise Unusable("the user's message is empty")
    if roles == ["user"]:
        return {"query": texts[0]}
    if roles == ["system", "user"]:
        return {**({"system": texts[0]} if texts[0] else {}), "query": texts[1]}
    return {"messages": kept}


def _call(name: str, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as e:
            raise Unusable("a call has arguments that are no JSON") from e
    if not isinstance(arguments, dict | None):
        raise Unusable("a call has arguments that are no object")
    return {"name": name, "arguments": arguments or {}}


def _check(case: Mapping[str, Any]) -> None:
    """Raises `Unusable` where a case of ours cannot say what the log does, or its calls are none of its tools'."""
    try:
        made = Case.model_validate({**case, "expect": {**case["expect"], "calls": []}})
    except ValidationError as e:
        raise Unusable(f"it is no case: {e.errors()[0]['msg'].removeprefix('Value error, ')}") from e
    for call in case["expect"]["calls"]:
        if call["name"] not in made.schemas:
            raise Unusable("a tool was called that was not offered")
        schema = made.schemas[call["name"]]
        closed = {"additionalProperties": False, **schema} if schema.get("properties") else schema
        if problem(call["arguments"], closed):
            raise Unusable("a call breaks the schema of its own tool")
    try:
        Case.model_validate(case)
    except ValidationError as e:
        raise Unusable(f"it is no case: {e.errors()[0]['msg'].removeprefix('Value error, ')}") from e


def _add(case: dict[str, Any], by_question: dict[str, dict[str, Any]], made: Imported) -> None:
    """Take a new question as a case; fold one that was there, its calls beside the known ones."""
    question = hash_json({k: case.get(k) for k in ("query", "system", "messages", "tools")})
    known = by_question.setdefault(question, case)
    if known is case:
        made.cases.append(case)
        return
    expect = known["expect"]
    alternatives = expect.get("any_of") or [expect["calls"]]
    made.folded += 1
    if _sorted(case["expect"]["calls"]) not in map(_sorted, alternatives):
        known["expect"] = {
            "any_of": [*alternatives, case["expect"]["calls"]],
            **{k: v for k, v in expect.items() if k not in ("calls", "any_of")},
        }
        made.answered_differently.append(f"{known['source']} and {case['source']}")


def _sorted(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(json.dumps(c, sort_keys=True) for c in calls)
