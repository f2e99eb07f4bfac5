"""A handful of rows, and a directory of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

READ = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


def row(i: int) -> dict[str, Any]:
    """A row of two assistant turns: a call, and an answer from its result."""
    call = {"type": "function", "function": {"name": "read_file", "arguments": {"path": f"src/module{i}.py"}}}
    messages = [
        {"role": "system", "content": "You are a coding agent."},
        {"role": "user", "content": f"Show me src/module{i}.py"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"limit = {i}"},
        {"role": "assistant", "content": f"It sets the limit to {i}."},
    ]
    return {"messages": messages, "tools": [READ]}


@pytest.fixture(scope="session")
def make_row() -> Callable[[int], dict[str, Any]]:
    return row


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of 12 training and 4 validation rows."""
    path = tmp_path_factory.mktemp("rows")
    for name, numbers in (("train", range(12)), ("valid", range(20, 24))):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    return path
