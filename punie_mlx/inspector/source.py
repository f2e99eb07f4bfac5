"""The conversation to look at: a JSON list of messages, an object with messages and tools, or a line of a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from punie_mlx.corpus.rows import Row, parse_row, read_lines
from punie_mlx.errors import ConfigError, DataError


def read_row(file: Path, tools: Path | None = None, line: int | None = None) -> Row:
    """The conversation in `file`, or in its `line`, counted from 1; `tools` go over those that it has itself.

    Raises `DataError`, `ConfigError`.
    """
    by_line = line is not None or Path(file).suffix == ".jsonl"
    row = _in_lines(file, line) if by_line else parse_row(_as_row(_text(file)), str(file), 1)
    return row if tools is None else replace(row, tools=_tools(tools))


def _text(file: Path) -> str:
    """The text of a file that is one JSON value."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        json.loads(text)
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file} cannot be read ({e}): give a file of JSON in UTF-8") from e
    except (ValueError, RecursionError) as e:
        raise DataError(
            f"{file} is no JSON ({e}): give a list of messages, an object with `messages`, or a .jsonl file"
        ) from e
    return text


def _as_row(text: str) -> str:
    """JSON of a row, or of the messages of one, as that of a row."""
    try:
        is_list = isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        is_list = False  # `parse_row` says what is wrong
    return f'{{"messages": {text}}}' if is_list else text


def _in_lines(file: Path, line: int | None) -> Row:
    """The row on `line`, or the first that there is."""
    if not Path(file).exists():
        raise DataError(f"{file} does not exist: give a file of messages, or a .jsonl file of rows")
    count = 0
    for number, text in read_lines(file):
        if line in (None, number):
            return parse_row(_as_row(text), str(file), number)
        count += 1
    raise ConfigError(f"{file} has no row on line {line or 1}: it has {count} rows")


def _tools(file: Path) -> list[dict[str, Any]]:
    value = json.loads(_text(file))
    if isinstance(value, Mapping):
        value = value.get("tools")
    if not isinstance(value, list):
        raise DataError(f"{file} is no list of tools: give a JSON list of OpenAI function schemas")
    probe = {"messages": [{"role": "user", "content": ""}], "tools": value}
    return parse_row(json.dumps(probe), str(file), 1).tools
