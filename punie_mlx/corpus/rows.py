"""Training rows on disk: JSONL files of `{"messages": […], "tools": […]}`, one example a line.

    directory/
      train.jsonl  valid.jsonl  test.jsonl

Reading is strict: what is not a row is a `DataError` that names file and line, so training never starts on half a
file. The converter, which must survive bad rows, reads lines itself and uses `parse_row` only for good ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.errors import DataError
from punie_mlx.files import atomic_file

SPLITS = ("train", "valid", "test")
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True)
class Row:
    """One training example and where it stands."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """`file:line`, for messages to the user."""
        return f"{self.file}:{self.line}"

    def to_json(self) -> dict[str, Any]:
        """The row as it is written."""
        return {"messages": self.messages, "tools": self.tools}


def parse_row(line: str, file: str, number: int) -> Row:
    """The row in one line of JSON. Raises `DataError` that names `file:number`."""
    where = f"{file}:{number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: this line is not JSON ({e}): mend or remove the line") from e
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is a JSON object, this is {_kind(value)}: mend or remove the line")
    if "messages" not in value:
        what = "a ready-made `text` row" if "text" in value else "a row without `messages`"
        raise DataError(f"{where}: {what}: punie-mlx convert makes rows with `messages` and `tools` of it")
    messages, tools = value["messages"], value.get("tools")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: `messages` must be a list of at least one message: mend or remove the line")
    for i, message in enumerate(messages):
        if (problem := _message_problem(message)) is not None:
            raise DataError(f"{where}: message {i + 1} {problem}: mend or remove the line")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise DataError(f"{where}: `tools` must be a list of OpenAI function schemas: mend or remove the line")
    return Row(messages=messages, tools=tools or [], file=file, line=number)


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is {_kind(message)}, not an object"
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        return f"has the role {role!r}, not one of {', '.join(sorted(ROLES))}"
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        return "has `tool_calls` that are no list"
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "has a tool call without a function name"
        if not isinstance(function.get("arguments", {}), dict | str):
            return "has a tool call whose arguments are no object"
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        return f"has `content` that is {_kind(content)}, not text"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one JSONL file; blank lines are skipped. Raises `DataError`, with `file:line` for a bad row."""
    path = Path(path)
    for number, line in read_lines(path):
        yield parse_row(line, str(path), number)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of `path` that is not blank. Raises `DataError` where the file cannot be read."""
    try:
        # newline="\n": JSON may hold U+2028 and lone \r, which are no line ends here
        with Path(path).open(encoding="utf-8-sig", newline="\n", errors="strict") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except FileNotFoundError as e:
        raise DataError(f"{path} does not exist: give a directory with train.jsonl and valid.jsonl") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start}): save it as UTF-8") from e
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from e


def read_split(directory: Path, name: str, *, required: bool = True) -> list[Row]:
    """All rows of `directory/name.jsonl` (`name` is train, valid or test).

    Raises:
        DataError: the directory or file is missing, holds no row, or holds a bad one. With `required=False` a missing
            or empty file is an empty list.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"data directory {directory} does not exist: give a directory with train.jsonl and valid.jsonl")
    path = directory / f"{name}.jsonl"
    if not required and not path.is_file():
        return []
    rows = list(read_rows(path))
    if required and not rows:
        raise DataError(f"{path} holds no rows: put at least one row into it, or give another data directory")
    return rows


def write_rows(path: Path, rows: Iterable[Row | Mapping[str, Any]]) -> int:
    """Write `rows` to `path`, whole or not at all; return how many."""
    count = 0
    with atomic_file(Path(path)) as tmp, tmp.open("w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            value = row.to_json() if isinstance(row, Row) else row
            f.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count
