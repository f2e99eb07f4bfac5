"""One raw line of training data → structured messages: calls out of fences and tags, results out of user turns.

What a template renders is one content and a list of calls for each assistant turn. So the text before, between and
after the calls of a turn is joined, in order, to its content, and the calls follow in theirs; nothing is dropped, and
turns in which text stood behind a call are counted (`text_moved`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.corpus.rows import ROLES
from punie_mlx.toolcalls.calls import CallFinished, Malformed, Reasoning, Text, Tool, ToolCall
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.schema import loads
from punie_mlx.toolcalls.stream import read

_TURN = re.compile(r"\s*<\|im_start\|>([^\n]*)\n(.*?)<\|im_end\|>", re.DOTALL)
_RESULT = re.compile(r"Tool result:[ \t]?", re.IGNORECASE)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_OWN = frozenset({"role", "content", "reasoning_content", "tool_calls"})  # keys of a turn that are written anew


class BadRow(Exception):
    """This row cannot be converted: a reason from a fixed list, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass
class Draft:
    """A row on its way: structured messages, the tools that it came with, and what was noticed."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> Iterator[dict[str, Any]]:
        """`{"name", "arguments"}` of each call, in order."""
        return (c["function"] for m in self.messages for c in m.get("tool_calls", ()))


def structure(line: str, notes: Counter[str]) -> Draft:
    """The draft of one line. What is noticed is counted in `notes`, also where the row is bad. Raises `BadRow`."""
    row = _object(line)
    tools = _tools(row.get("tools"))
    turns = _messages(row["messages"]) if "messages" in row else _chatml(row)
    out: list[dict[str, Any]] = []
    broken: list[str] = []  # collected, not raised at the first one: the report counts every call of the row
    orphan: BadRow | None = None
    for turn in turns:
        if turn["role"] == "assistant":
            message = _assistant(turn, tools, notes, broken)
            if out and out[-1]["role"] == "assistant":
                message = _join(out.pop(), message, notes) if not out[-1].get("tool_calls") else message
                notes["consecutive_assistant"] += 1
            out.append(message)
        elif turn["role"] == "user":
            results = _user(turn, notes)
            if results[0]["role"] == "tool" and not broken and not any(m.get("tool_calls") for m in out):
                orphan = BadRow(
                    "result_without_call", f"a tool result, and no call before it: {turn['content'][:80]!r}"
                )
            out.extend(results)
        else:
            out.append(turn)
    if broken:
        raise BadRow("broken_call", "; ".join(broken))
    if orphan:
        raise orphan
    _check_ends(out)
    notes["no_system"] += out[0]["role"] not in ("system", "developer")
    return Draft(out, tools, notes)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise BadRow("not_json", str(e)) from e
    if not isinstance(row, dict):
        raise BadRow("not_a_row", "a row is a JSON object")
    if "messages" not in row and not isinstance(row.get("text"), str):
        raise BadRow("not_a_row", "the row has neither `messages` nor a `text`")
    return row


def _tools(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if isinstance(value, str):  # some data sets store the list as JSON text
        try:
            value = loads(value)
        except ValueError as e:
            raise BadRow("bad_tools", f"`tools` is a string that is not JSON: {e}") from e
    if not isinstance(value, list) or not all(isinstance(t, dict) and Tool.from_openai(t).name for t in value):
        raise BadRow("bad_tools", "`tools` must be a list of function schemas, each with a name")
    return value


def _chatml(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a ready-made text. Every character of it is in a turn, or the row is bad."""
    text, at, turns = row["text"], 0, []
    while found := _TURN.match(text, at):
        role = found.group(1).strip()
        if role not in ROLES:
            raise BadRow("bad_role", f"a turn of {role!r}")
        turns.append({"role": role, "content": found.group(2)})
        at = found.end()
    rest = text[at:].removesuffix("<|endoftext|>").strip()
    if rest.startswith("<|im_start|>"):
        raise BadRow("cut_off", f"the last turn has no <|im_end|>: {rest[:80]!r}")
    if rest or not turns:
        raise BadRow("text_outside_turns", f"text that is in no turn: {rest[:80]!r}")
    return turns


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRow("not_a_row", "`messages` must be a list of at least one message")
    out = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else message
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow("bad_role", f"a message of the role {role!r}")
        message = dict(message)
        message["content"] = _content(message.get("content"))
        if not isinstance(message.get("reasoning_content"), str | None):
            raise BadRow("bad_content", "a reasoning_content that is no text")
        out.append(message)
    return out


def _content(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        return "".join(p["text"] for p in value)
    raise BadRow("bad_content", "a content that is no text")


def _check_ends(messages: list[dict[str, Any]]) -> None:
    last = messages[-1]["role"]
    if last != "assistant":
        raise BadRow(f"ends_on_{last}_turn", "the last turn is not the assistant's: there is nothing to learn from it")


# ---- turns ----


def _join(first: dict[str, Any], second: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """One turn of two that follow each other: no agent sends such a history, so none should be trained on."""
    notes["consecutive_assistant_joined"] += 1
    out = {**first, **second}
    for key in ("content", "reasoning_content"):
        parts = [m[key] for m in (first, second) if m.get(key)]
        if parts:
            out[key] = "\n\n".join(parts)
    return out


def _user(turn: dict[str, Any], notes: Counter[str]) -> list[dict[str, Any]]:
    """A user turn as it is, or the tool results that it carries."""
    content = turn["content"]
    if prefix := _RESULT.match(content):
        results, rest = [content[prefix.end() :]], ""
    elif content.lstrip().startswith("<tool_response>") and (found := list(_RESPONSE.finditer(content))):
        results, rest = [m.group(1) for m in found], _RESPONSE.sub("", content).strip()
    else:
        return [turn]
    notes["tool_results"] += len(results)
    out = [{"role": "tool", "content": r} for r in results]
    return [*out, {"role": "user", "content": rest}] if rest else out


@dataclass
class _Parts:
    """What one assistant turn holds, in order."""

    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    moved: bool = False

    def text(self, piece: str) -> None:
        if piece.strip():
            self.moved |= bool(self.calls)
            self.texts.append(piece.strip())


def _assistant(
    turn: dict[str, Any], tools: list[dict[str, Any]], notes: Counter[str], broken: list[str]
) -> dict[str, Any]:
    parts = _Parts()
    _read_tags(turn["content"], tools, parts, notes, broken)
    parts.calls += _given_calls(turn.get("tool_calls"), notes, broken)
    notes["text_moved"] += parts.moved
    other = {k: v for k, v in turn.items() if k not in _OWN and v is not None}  # such as `train`, `name`
    out: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(parts.texts), **other}
    reasoning = "".join(parts.reasoning).strip() or turn.get("reasoning_content")
    if reasoning:
        out["reasoning_content"] = reasoning
    if parts.calls:
        # a result that names its call must find it again
        out["tool_calls"] = [{"id": c.id, **c.to_openai()} if c.id else c.to_openai() for c in parts.calls]
    elif not parts.texts and not broken:
        raise BadRow("empty_turn", "an assistant turn with neither text nor calls")
    return out


def _read_tags(text: str, tools: list[dict[str, Any]], parts: _Parts, notes: Counter[str], broken: list[str]) -> None:
    """Calls in tags; what lies between them is looked through for fences."""
    pending = ""
    for event in read(text, "qwen3_coder", [Tool.from_openai(t) for t in tools]).events:
        if isinstance(event, Text):
            pending += event.text
            continue
        _read_fences(pending, parts, notes, broken)
        pending = ""
        if isinstance(event, Reasoning):
            parts.reasoning.append(event.text)
        elif isinstance(event, CallFinished):
            notes["calls_in_tags"] += 1
            parts.calls.append(event.call)
        elif isinstance(event, Malformed):
            notes["calls_broken"] += 1
            broken.append(f"{event.reason}: {event.raw[:80]!r}")
    _read_fences(pending, parts, notes, broken)


def _read_fences(text: str, parts: _Parts, notes: Counter[str], broken: list[str]) -> None:
    plain = ""
    for segment in json_fence.split(text):
        if not segment.calls and not segment.reason:
            notes["fences_kept_as_text"] += segment.raw.count("```") // 2
            plain += segment.raw
            continue
        parts.text(plain)
        plain = ""
        if segment.reason:
            notes["calls_broken"] += 1
            broken.append(f"{segment.reason}: {segment.raw[:80]!r}")
        for call in segment.calls:
            notes["calls_in_fences"] += 1
            notes["calls_recovered"] += bool(call.repaired)
            parts.calls.append(ToolCall(call.name, call.arguments))
    parts.text(plain)


def _given_calls(value: Any, notes: Counter[str], broken: list[str]) -> list[ToolCall]:
    """Calls that the row holds as `tool_calls` already; their arguments may be JSON text."""
    out = []
    for entry in value or () if isinstance(value, list | None) else (value,):
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                arguments = loads(arguments)
            except ValueError as e:
                arguments = f"the arguments are not JSON ({e})"
        if isinstance(name, str) and name and isinstance(arguments, dict | None):
            notes["calls_given"] += 1
            id = entry.get("id")
            out.append(ToolCall(name, arguments or {}, id if isinstance(id, str) else ""))
        else:
            notes["calls_broken"] += 1
            broken.append(f"no call with a name and arguments: {json.dumps(entry)[:80]}")
    return out
