"""The questions that a probed model is asked: a handful, with tools of a coding agent, as any model may have seen them.

Each wants one call, which is known, or words and no call. None needs knowledge that a small model may lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from punie_mlx.corpus.world import TOOLS
from punie_mlx.toolcalls.calls import Tool, ToolCall

PATH = "src/app.py"
TO_ESCAPE = 'say "hi" \\ <b> & co'
RESULT = "amber harbor"


@dataclass(frozen=True)
class Probe:
    """One question. wants: the call that answers it; None where words do.

    fresh: nothing in its history shows how a call is written. after: the call whose result came last.
    """

    id: str
    about: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    wants: ToolCall | None = None
    fresh: bool = True
    after: ToolCall | None = None

    @property
    def offered(self) -> list[Tool]:
        return [Tool.from_openai(t) for t in self.tools]

    @property
    def names(self) -> set[str]:
        return {t.name for t in self.offered}


def _says(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def _calls(call: ToolCall) -> dict[str, Any]:
    made = {**call.to_openai(), "id": "call00001"}  # 9 letters and digits: some templates take no other id
    return {"role": "assistant", "content": "", "tool_calls": [made]}


_OFFERED = tuple(TOOLS[name] for name in ("read_file", "write_file", "start_server"))
_READ = ToolCall("read_file", {"path": PATH})
_ASKED = _says(f"Show me the file {PATH}")
_ANSWERED = (
    _ASKED,
    _calls(_READ),
    {"role": "tool", "name": "read_file", "tool_call_id": "call00001", "content": RESULT},
)

PROBES = (
    Probe("one-call", "one call with one string", (_ASKED,), _OFFERED, _READ),
    Probe(
        "number", "a call with a number", (_says("Start the server on port 8123"),), _OFFERED,
        ToolCall("start_server", {"port": 8123}),
    ),
    Probe(
        "to-escape", "a call with a string that JSON escapes", (_says(f"Write '{TO_ESCAPE}' to {PATH}"),), _OFFERED,
        ToolCall("write_file", {"path": PATH, "content": TO_ESCAPE}),
    ),
    Probe("after-result", "the answer to a call's result", _ANSWERED, _OFFERED, fresh=False, after=_READ),
    Probe(
        "next-call", "a call after an earlier one",
        (*_ANSWERED, _says(f"It says: {RESULT}", "assistant"), _says("Start the server on port 8123")), _OFFERED,
        ToolCall("start_server", {"port": 8123}), fresh=False,
    ),
    Probe("no-tool", "a question that needs no tool", (_says("What is recursion?"),), _OFFERED),
    Probe("no-fitting-tool", "a wish that no offered tool can meet", (_says(f"Delete the file {PATH}"),),
          (TOOLS["start_server"],)),
)  # fmt: skip
