"""What `punie-mlx parse` does: read raw model output, print what it holds as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import read


def parse(
    text: str,
    format: str = "auto",
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    reasoning: bool = False,
    finish: str = "stop",
    chunk: int = 0,
) -> dict[str, Any]:
    """The calls, text and problems of `text`. Raises `ConfigError` for an unknown format."""
    found = read(
        text,
        "qwen3_coder" if format == "auto" else format,  # both bodies of <tool_call> are read there
        [Tool.from_openai(t) for t in tools],
        starts_in_reasoning=reasoning,
        finish=finish,
        chunk=chunk,
    )
    return {
        "content": found.visible() or None,
        "reasoning": found.visible(reasoning=True) or None,
        "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in found.calls],
        "problems": [{"kind": p.kind, "detail": p.detail, "raw": p.raw} for p in found.problems],
        "finish_reason": "tool_calls" if found.calls and finish == "stop" else finish,
    }


def parse_cases(path: Path, chunk: int = 0) -> Iterator[dict[str, Any]]:
    """One result for each case of a JSONL file, with the case's `id`; an unknown format is a result with `error`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
            text = case["model_output"]
        except (ValueError, TypeError, KeyError) as e:
            raise DataError(f"{path}:{number}: no case: one JSON object with `model_output` a line ({e})") from e
        try:
            result = parse(
                text,
                case.get("format") or "auto",
                case.get("tools") or (),
                reasoning=bool(case.get("reasoning")),
                finish=case.get("finish") or "stop",
                chunk=chunk,
            )
        except ConfigError as e:
            result = {"error": str(e)}
        yield {"id": case.get("id"), **result}


def read_inputs(file: str, tools: Path | None) -> tuple[str, list[Any]]:
    """The text of `file` (- is stdin) and the offered tools. Raises `DataError`."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        offered = json.loads(tools.read_text(encoding="utf-8")) if tools else []
    except (OSError, ValueError) as e:
        raise DataError(f"{file if isinstance(e, OSError) else tools} cannot be read: {e}") from e
    if not isinstance(offered, list) or not all(isinstance(t, dict) for t in offered):
        raise DataError(f"{tools} must be a JSON list of OpenAI function schemas")
    return text, offered
