"""Training rows on disk: JSONL files, one example a line, in any mix of three shapes.

    directory/
      train.jsonl  valid.jsonl  test.jsonl

| shape                                    | what it becomes                                                         |
|------------------------------------------|-------------------------------------------------------------------------|
| `{"messages": […], "tools": […]}`        | a conversation; each assistant turn is learned                          |
| `{"prompt": …, "completion": …}`         | a conversation, of which the completion is learned; texts or messages   |
| `{"text": "…"}`                          | a ready-made text, learned as it stands                                 |

A row may have a `"weight"` (1 by default), or `"train": false`, which is a weight of 0; so may each message.

Reading is strict: what is not a row is a `DataError` that names file and line, so training never starts on half a
file. The converter, which must survive bad rows, reads lines itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from punie_mlx.errors import DataError
from punie_mlx.files import atomic_file

SPLITS = ("train", "valid", "test")
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
SHOWN = 10  # bad rows of a file that are told at once
SHAPES = "`messages`, `prompt` with `completion`, or `text`"
PARTS = {"text": "text", "refusal": "refusal"}  # type of a content part → the key of its text


@dataclass(frozen=True)
class Row:
    """One training example and where it stands: a conversation, or a ready-made `text`, which has no messages."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    file: str = ""
    line: int = 0
    text: str | None = None
    weight: float = 1.0

    @property
    def where(self) -> str:
        """`file:line`, for messages to the user."""
        return f"{self.file}:{self.line}"

    def to_json(self) -> dict[str, Any]:
        """The row as it is written."""
        row = {"messages": self.messages, "tools": self.tools} if self.text is None else {"text": self.text}
        return row if self.weight == 1 else {**row, "weight": self.weight}


@dataclass(frozen=True)
class BadRow:
    """A line that is no row, why, and what it says. Its fields are the keys of a line of quarantine.jsonl."""

    file: str
    line: int
    reason: str
    raw: str


class _Bad(Exception):
    """What is wrong with a row."""


def parse_row(line: str, file: str, number: int) -> Row:
    """The row in one line of JSON. Raises `DataError` that names `file:number`."""
    try:
        return _row(_object(line), file, number)
    except _Bad as e:
        raise DataError(f"{file}:{number}: {e}: mend or remove the line") from e


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise _Bad(f"this line is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise _Bad(f"a row is a JSON object, this is {_kind(value)}")
    if "\\ud" in line.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise _Bad("half of a surrogate pair stands alone (\\ud800 to \\udfff), which is no text") from e
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _row(value: dict[str, Any], file: str, number: int) -> Row:
    shapes = {"messages", "prompt", "text"} & value.keys()
    if not shapes:
        raise _Bad(f"a row without {SHAPES}")
    if len(shapes) > 1:
        raise _Bad(f"a row with {' and '.join(f'`{s}`' for s in sorted(shapes))}: it must have one of {SHAPES}")
    weight, text, messages = _weight(value, "the row"), None, []
    if "text" in value:
        text = value["text"]
        if not isinstance(text, str) or not text.strip():
            raise _Bad("`text` must be text, and not be empty")
    else:
        messages = value["messages"] if "messages" in value else _prompted(value)
        _check_messages(messages)
    tools = value.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
        raise _Bad("`tools` must be a list of OpenAI function schemas, each with a name")
    return Row(messages, tools or [], file, number, text, weight)


def _prompted(value: Mapping[str, Any]) -> list[Any]:
    """The messages of a prompt and its completion; what the assistant said in the prompt is not learned."""
    prompt, completion = value["prompt"], value.get("completion")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise _Bad("`prompt` and `completion` must each be text or a list of messages")
    if not prompt or not completion:
        raise _Bad("`prompt` and `completion` must not be empty")
    shown = [{**m, "train": False} if isinstance(m, dict) and m.get("role") == "assistant" else m for m in prompt]
    return [*shown, *completion]


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _Bad("`messages` must be a list of at least one message")
    for i, message in enumerate(messages, 1):
        if (problem := _message_problem(message)) is not None:
            raise _Bad(f"message {i} {problem}")
        _weight(message, f"message {i}")


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
        if (problem := _call_problem(call, message.get("train") is not False)) is not None:
            return problem
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        return f"has `content` that is {_kind(content)}, not text"
    for part in content if isinstance(content, list) else ():
        key = PARTS.get(str(part.get("type"))) if isinstance(part, dict) else None
        if key is None or not isinstance(part.get(key), str):
            return "has `content` with a part that is no text"
    for key in ("reasoning_content", "reasoning", "refusal", "name", "tool_call_id"):
        if not isinstance(message.get(key), str | None):
            return f"has `{key}` that is {_kind(message[key])}, not text"
    return None


def _call_problem(call: Any, learned: bool) -> str | None:
    """What is wrong with `call`; arguments that are no JSON may stand in a history, but are not to be learned."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return "has a tool call without a function name"
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments and learned:
        try:
            arguments = json.loads(arguments, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return f"has a call of {function['name']} whose arguments are text that is not JSON"
        if arguments is None:
            return f"has a call of {function['name']} whose arguments are no object"
    if not isinstance(arguments, dict | str | None):
        return f"has a call of {function['name']} whose arguments are no object"
    return None


def _is_tool(tool: Any) -> bool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    return isinstance(function.get("parameters"), dict | None) and isinstance(function.get("description"), str | None)


def _weight(value: Mapping[str, Any], what: str) -> float:
    """What `value` counts: its `weight`, or 0 with `"train": false`. Raises `_Bad`."""
    train, weight = value.get("train", True), value.get("weight", 1.0)
    if not isinstance(train, bool):
        raise _Bad(f"`train` of {what} is {train!r}: it must be true or false")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise _Bad(f"`weight` of {what} is {weight!r}: it must be 0 or a positive number")
    return float(weight) if train else 0.0


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def read_rows(path: Path, bad: list[BadRow] | None = None) -> Iterator[Row]:
    """The rows of one JSONL file; blank lines are skipped. Where `bad` is given, bad rows go there.

    Raises:
        DataError: the file cannot be read, or, without `bad`, holds bad rows: raised at its end, or at the tenth of
            them, with `file:line` and reason of each.
    """
    path = Path(path)
    found: list[BadRow] = []
    for number, line in read_lines(path):
        try:
            yield _row(_object(line), str(path), number)
        except _Bad as e:
            (found if bad is None else bad).append(BadRow(str(path), number, str(e), line))
            if len(found) == SHOWN:
                raise _all_of(found, " (there may be more)") from e
    if found:
        raise _all_of(found)


def _all_of(bad: list[BadRow], more: str = "") -> DataError:
    told = [f"{b.file}:{b.line}: {b.reason}" for b in bad]
    remedy = "mend or remove the line" if len(bad) == 1 else "mend or remove these lines"
    return DataError("\n".join([*told[:-1], f"{told[-1]}{more}: {remedy}"]))


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


def lenient_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Like `read_lines`, for readers that survive anything: bytes that are no UTF-8 stay visible as escapes.

    Raises `DataError` where the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from e
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if raw.strip():
            yield number, raw.decode("utf-8", errors="backslashreplace").rstrip("\r")


def read_split(directory: Path, name: str, *, required: bool = True, bad: list[BadRow] | None = None) -> list[Row]:
    """All rows of `directory/name.jsonl` (`name` is train, valid or test). Where `bad` is given, bad rows go there.

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
    rows = list(read_rows(path, bad))
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
