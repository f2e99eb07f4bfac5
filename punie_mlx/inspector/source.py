"""The conversation to look at: a JSON list of messages, an object with messages and tools, or a line of a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from punie_mlx.corpus.rows import Row, parse_row
from punie_mlx.errors import ConfigError, DataError


def read_row(file: Path, tools: Path | None = None, line: int | None = None) -> Row:
    """The conversation in `file`, or in its `line`, counted from 1; `tools` go over those that it has itself.

    Raises `DataError`, `ConfigError`.
    """
    text = _text(file)
    if line is None and (whole := _json(text)) is not None:
        row = parse_row(json.dumps(_as_row(whole)), str(file), 1)
    else:
        row = _in_lines(text, file, line)
    return row if tools is None else replace(row, tools=_tools(tools))


def _text(file: Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file} cannot be read ({e}): give a file of JSON in UTF-8") from e


def _json(text: str) -> Any:
    """The one JSON value that `text` is; None where it is none, as several lines of a corpus are."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_row(value: Any) -> Any:
    return {"messages": value} if isinstance(value, list) else value


def _in_lines(text: str, file: Path, line: int | None) -> Row:
    lines = text.split("\n")
    if line is None:
        line = next((i for i, found in enumerate(lines, 1) if found.strip()), 1)
        if Path(file).suffix != ".jsonl":
            raise DataError(
                f"{file} is no JSON: give a list of messages, an object with `messages`, or a .jsonl file with --line"
            )
    if not 1 <= line <= len(lines) or not lines[line - 1].strip():
        raise ConfigError(f"{file} has no row on line {line}: it has {sum(map(bool, map(str.strip, lines)))} rows")
    found = lines[line - 1]
    value = _json(found)
    return parse_row(json.dumps(_as_row(value)) if isinstance(value, list) else found, str(file), line)


def _tools(file: Path) -> list[dict[str, Any]]:
    value = _json(_text(file))
    if isinstance(value, Mapping):
        value = value.get("tools")
    if not isinstance(value, list):
        raise DataError(f"{file} is no list of tools: give a JSON list of OpenAI function schemas")
    probe = {"messages": [{"role": "user", "content": ""}], "tools": value}
    return parse_row(json.dumps(probe), str(file), 1).tools
