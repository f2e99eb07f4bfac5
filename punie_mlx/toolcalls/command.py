"""What `punie-mlx parse` does: reads raw model output, gives what it holds as one JSON object.

The keys of that object, and of a case of `--jsonl`, are an interface that others build on: see the README.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import CallFinished, Event, Malformed, Marker, Tool
from punie_mlx.toolcalls.stream import Reading, read

AUTO = "auto"
FINISHES = ("stop", "length")

# What begins something in which formats. Where several fit, the first that finds something is taken.
_OPENERS = {
    re.compile(words): names
    for words, names in {
        r"<\|channel\|>| to=functions\.": ("harmony",),
        "</?seed:": ("seed_oss",),
        "<minimax:tool_call>": ("minimax",),
        r"\[TOOL_CALLS\]|\[/?THINK\]": ("mistral",),
        r"<\|python_tag\|>": ("llama3_json",),
        r"<\|tool_call_start\|>|<\|python_start\|>|\[[A-Za-z_][\w.]*\(": ("pythonic",),
        r"<\|tool_calls?_\w*begin\|>": ("kimi",),
        "<｜": ("deepseek",),
        r"<start_function_call>|<\|tool_call>": ("gemma",),
        "<tool_call>": ("qwen3_coder", "glm"),
        "<function=": ("qwen3_coder",),
        "<code>": ("smollm3",),
        r"""\A\s*+[{[]|\{\s*+["']name["']""": ("llama3_json",),
    }.items()
}
_OTHERWISE = "qwen3_coder"  # it reads both bodies of <tool_call>


@dataclass(frozen=True)
class Options:
    """How a text is read: the options of the command, and the defaults of what a case does not say."""

    format: str = AUTO
    tools: Sequence[Mapping[str, Any]] = ()
    reasoning: bool = False
    rescue: bool = False
    finish: str = "stop"
    chunk: int = 0

    def __post_init__(self) -> None:
        """Raises `ConfigError` for an unknown format or finish."""
        if self.format != AUTO:
            formats.get(self.format)
        if self.finish not in FINISHES:
            raise ConfigError(f"finish is {self.finish!r}: it must be one of {', '.join(FINISHES)}")


def parse(
    text: str,
    format: str = AUTO,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    reasoning: bool = False,
    rescue: bool = False,
    finish: str = "stop",
    chunk: int = 0,
) -> dict[str, Any]:
    """The calls, text and problems of `text`. Raises `ConfigError` for an unknown format or finish."""
    return parse_text(text, Options(format, tools, reasoning, rescue, finish, chunk))


def parse_text(text: str, options: Options) -> dict[str, Any]:
    """The calls, text and problems of `text`, as the command prints them."""
    offered = [Tool.from_openai(t) for t in options.tools]
    name = choose(text, offered, options) if options.format == AUTO else options.format
    found = _read(text, name, offered, options)
    result = {
        "content": found.visible() or None,
        "reasoning": found.visible(reasoning=True) or None,
        "tool_calls": [entry for e in found.events if (entry := _call(e))],
        "problems": [asdict(p) for p in found.problems],
        "finish_reason": "tool_calls" if found.calls and options.finish == "stop" else options.finish,
    }
    return result | {"format": name} if options.format == AUTO else result


def choose(text: str, tools: Sequence[Tool], options: Options) -> str:
    """The format whose opener stands first in `text` and begins a call or a message there, or else a broken call."""
    places = [(found.start(), opener) for opener in _OPENERS if (found := opener.search(text))]
    plain = replace(options, rescue=False, chunk=0)
    broken = []
    for _, opener in sorted(places, key=itemgetter(0)):
        for name in _OPENERS[opener]:
            events = _read(text, name, tools, plain).events
            if any(_begins(event, opener) for event in events):
                return name
            if any(isinstance(event, Malformed) for event in events):
                broken.append(name)
    return next(iter(broken), _OTHERWISE)


def _begins(event: Event, opener: re.Pattern[str]) -> bool:
    match event:
        case CallFinished() | Malformed(truncated=True):
            return True
        case Marker(text):
            return bool(opener.search(text))
    return False


def _read(text: str, name: str, tools: Sequence[Tool], options: Options) -> Reading:
    return read(
        text,
        name,
        tools,
        starts_in_reasoning=options.reasoning,
        rescue=options.rescue or not formats.get(name).native,
        finish=options.finish,
        chunk=options.chunk,
    )


def _call(event: Event) -> dict[str, Any] | None:
    match event:
        case CallFinished(call=call, rescued=rescued):
            return {"name": call.name, "arguments": call.arguments} | ({"rescued": True} if rescued else {})
        case Malformed(truncated=True):
            return {"name": event.name, "arguments": event.arguments, "truncated": True}
    return None


# ---- files ----


def parse_cases(path: Path, options: Options | None = None) -> Iterator[dict[str, Any]]:
    """One result for each case of a JSONL file (- is stdin), with the case's `id`, as soon as its line is read.

    `options` are the defaults of what a case does not say. An unknown format or finish is a result with `error`.
    Raises `DataError` for a line that is no case.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        case = _case(line, f"{path}:{number}")
        try:
            result = parse_text(case["model_output"], _options(case, options or Options()))
        except ConfigError as e:
            result = {"error": str(e)}
        yield {"id": case.get("id"), **result}


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(str(path)) as file:
            yield from file
    except OSError as e:
        raise _unreadable(path, e) from e


def _case(line: bytes, where: str) -> dict[str, Any]:
    wanted = "a case is one JSON object a line, with the text in `model_output` and OpenAI schemas in `tools`"
    try:
        case = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: no JSON ({e}): {wanted}") from e
    if not isinstance(case, dict) or not isinstance(case.get("model_output"), str):
        raise DataError(f"{where}: no `model_output`: {wanted}")
    if not _are_tools(case.get("tools") or []):
        raise DataError(f"{where}: `tools` is no list of objects: {wanted}")
    return case


def _options(case: Mapping[str, Any], default: Options) -> Options:
    said = {key: case.get(key) for key in ("format", "tools", "reasoning", "rescue", "finish")}
    return Options(**{**vars(default), **{key: value for key, value in said.items() if value is not None}})


def read_text(file: str) -> str:
    """The text of `file` (- is stdin) as it stands, line ends included. Raises `DataError`."""
    try:
        with _open(file) as source:
            return source.read().decode("utf-8")
    except OSError as e:
        raise _unreadable(file, e) from e
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 (byte {e.start}): convert it first") from e


def read_tools(file: Path | None) -> list[dict[str, Any]]:
    """The tools of a JSON file; none without one. Raises `DataError`."""
    if file is None:
        return []
    try:
        tools = json.loads(read_text(str(file)))
    except (ValueError, RecursionError) as e:
        line = getattr(e, "lineno", 1)
        raise DataError(f"{file}:{line}: no JSON ({e}): it must be a list of OpenAI function schemas") from e
    if not _are_tools(tools):
        raise DataError(f"{file}: it must be a JSON list of OpenAI function schemas")
    return tools


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(tool, dict) for tool in value)


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb")


def _unreadable(file: object, error: OSError) -> DataError:
    return DataError(f"{file} cannot be read ({error.strerror or error}): give the path of a file, or - for stdin")


def print_lines(results: Iterable[Mapping[str, Any]]) -> None:
    """Each result as a line of JSON; quiet where nobody reads on."""
    try:
        for result in results:
            sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing fails at exit either
