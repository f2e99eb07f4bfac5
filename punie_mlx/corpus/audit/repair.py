"""One row, mended: what has one right answer is done, by the converter's own reading; nothing is guessed.

A mended row has `messages`, whatever shape it came in: calls become `tool_calls`, results `tool` turns, turns of the
assistant that follow each other one turn, and what comes after its last turn is cut off. Other keys of the row stay.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from punie_mlx.corpus.audit.calls import lost_types
from punie_mlx.corpus.audit.model import AuditRow, Call, Turn
from punie_mlx.corpus.audit.read import RESPONSE, RESULT, read_row
from punie_mlx.corpus.audit.turns import CLOSE, OPEN, unwrap
from punie_mlx.corpus.structure import BadRow, structure

_KNOWN = ("tool_calls", "fence", "qwen3_coder")
_SHAPE_KEYS = frozenset({"messages", "text", "prompt", "completion", "tools"})


def repair(row: AuditRow) -> dict[str, Any]:
    """`row` as it should be. Raises `BadRow` where it has no right answer, or would not say the same."""
    if row.problem:
        raise BadRow("bad_row", row.problem)
    raw = row.raw or {}
    messages = [
        part for message, turn in zip(row.messages or (), row.turns, strict=True) for part in _plain(message, turn, row)
    ]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("no_answer", "no turn of the assistant")
    draft = structure(json.dumps({"messages": messages, "tools": raw.get("tools")}), Counter())
    for message in draft.messages:
        if message["role"] == "tool":
            message["content"] = unwrap(message["content"])
    mended = {"messages": draft.messages, **({"tools": draft.tools} if "tools" in raw else {})}
    mended |= {key: value for key, value in raw.items() if key not in _SHAPE_KEYS}
    read = read_row(json.dumps(mended), row.split, row.file, row.line)
    structured = [c for c in read.calls if c.spelling == "tool_calls"]
    if _said(row.calls) != _said(structured) or len(structured) != len(read.calls) or read.broken:
        raise BadRow("reads_differently", "its calls are read otherwise once they are structured")
    _restore_types(read, draft.messages)
    return mended


def _plain(message: dict[str, Any], turn: Turn, row: AuditRow) -> Iterable[dict[str, Any]]:
    """`message` as the converter's reading expects it: results wrapped once, calls in tags that it knows."""
    content = message["content"]
    if turn.role == "user" and (RESULT.match(content) or content.lstrip().startswith(OPEN)):
        for tag in (OPEN, CLOSE):
            content = re.sub(rf"{tag}(?:\s*{tag})+", tag, content)
        return [{**message, "content": content.lstrip()}]
    if turn.role == "tool" and row.format == "text" and not RESPONSE.sub("", content).strip():
        return [{**message, "content": r} for r in RESPONSE.findall(content)] or [message]
    if any(c.spelling not in _KNOWN for c in turn.calls):  # tags of another wire format: the audit has read them
        calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls]
        return [{**message, "content": turn.text, "reasoning_content": turn.reasoning, "tool_calls": calls}]
    return [message]


def _said(calls: Iterable[Call]) -> str:
    """Names and arguments, so that 1, 1.0 and "1" differ."""
    return json.dumps([[c.name, c.arguments] for c in calls])


def _restore_types(read: AuditRow, messages: list[dict[str, Any]]) -> None:
    """Arguments of `messages` that are text against their schema get the value that the text spells."""
    for turn in read.assistant:
        for call, entry in zip(turn.calls, messages[turn.index].get("tool_calls") or (), strict=True):
            entry["function"]["arguments"].update(lost_types(call, read))
