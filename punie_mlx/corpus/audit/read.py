"""Reading a corpus for the audit: any line becomes an `AuditRow`, and nothing stops the others.

Three shapes of rows are known: `messages` (and `tools`), `prompt` with `completion`, and ready-made `text`, of which
ChatML is taken apart into its turns. Calls are found in `tool_calls`, in the tags of any wire format, and in fences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.corpus.audit.model import TRAIN, AuditRow, Broken, Call, Corpus, Turn
from punie_mlx.corpus.convert import source_files
from punie_mlx.corpus.rows import lenient_lines
from punie_mlx.corpus.suite import Suite
from punie_mlx.errors import DataError
from punie_mlx.toolcalls.calls import CallFinished, Malformed, Reasoning, Text, Tool
from punie_mlx.toolcalls.command import Options, choose
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.schema import loads
from punie_mlx.toolcalls.stream import read

HELD_OUT = ("valid", "validation", "val", "dev", "test")  # the order in which splits are shown, after train
RESULT = re.compile(r"\s*Tool result:[ \t]?", re.IGNORECASE)
RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_TURN = re.compile(r"<\|im_start\|>([^\n]*)\n(.*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|\Z)", re.DOTALL)
_TOOLS = re.compile(r"<tools>\n(.*?)\n</tools>", re.DOTALL)
# What only a wire format writes; a bare list or object in an answer is no call here.
_TAGS = re.compile(
    r"<tool_call>|<function=|<think>|<\|channel\|>|<seed:|<minimax:tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>"
    r"|<\|tool_call|<start_function_call>|<｜"
)


def read_corpus(
    path: Path, *, tokenizer: Any = None, suites: Sequence[Suite] = (), max_seq_length: int = 2048
) -> Corpus:
    """The rows of a directory of .jsonl files, or of one file. Raises `DataError` where there is nothing to read."""
    path = Path(path)
    files = [path] if path.is_file() else source_files(path)
    splits = {p.stem: list(read_file(p)) for p in sorted(files, key=_order)}
    if not any(splits.values()):
        raise DataError(f"{path} holds no rows: give a directory with train.jsonl and valid.jsonl")
    return Corpus(splits, path, tokenizer, suites, max_seq_length)


def _order(path: Path) -> tuple[int, str]:
    names = (TRAIN, *HELD_OUT)
    return (names.index(path.stem) if path.stem in names else len(names), path.stem)


def read_file(path: Path) -> Iterator[AuditRow]:
    """The rows of one file; blank lines are skipped. Raises `DataError` where the file cannot be read."""
    return (read_row(line, path.stem, path.name, number) for number, line in lenient_lines(path))


def read_row(line: str, split: str = TRAIN, file: str = "train.jsonl", number: int = 1) -> AuditRow:
    """One line, whatever it holds."""
    place = (split, file, number, line)
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as e:
        return AuditRow(*place, None, "bad", f"the line is not JSON: {e}")
    if not isinstance(raw, dict):
        return AuditRow(*place, None, "bad", "the line is JSON, but no object")
    shape, messages, problem = _messages(raw)
    if problem:
        return AuditRow(*place, raw, "bad", problem)
    tools, problem = _tools(raw.get("tools"), messages)
    if problem:
        return AuditRow(*place, raw, "bad", problem, messages)
    schemas = [Tool.from_openai(t) for t in tools]
    turns = tuple(_turn(i, m, schemas) for i, m in enumerate(messages or ()))
    return AuditRow(*place, raw, shape, "", messages, tools, turns)


# ---- shapes ----


def _messages(raw: dict[str, Any]) -> tuple[str, list[dict[str, Any]] | None, str]:
    """The shape of a row, its messages, and what is wrong with them."""
    if "messages" in raw:
        return ("messages", *_listed(raw["messages"], "messages"))
    if "prompt" in raw and "completion" in raw:
        messages: list[dict[str, Any]] = []
        for key, role in (("prompt", "user"), ("completion", "assistant")):
            value = raw[key]
            found, problem = _listed([{"role": role, "content": value}] if isinstance(value, str) else value, key)
            if problem:
                return "completion", None, problem
            messages += found or ()
        return "completion", messages, ""
    if isinstance(raw.get("text"), str):
        turns = [{"role": m[1].strip(), "content": m[2]} for m in _TURN.finditer(raw["text"])]
        return "text", turns or None, ""
    return "bad", None, "the row has no `messages`, no `prompt` with a `completion`, and no `text`"


def _listed(value: Any, key: str) -> tuple[list[dict[str, Any]] | None, str]:
    if not isinstance(value, list) or not value:
        return None, f"`{key}` is no list of at least one message"
    out = []
    for i, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return None, f"message {i} of `{key}` is no object with a role"
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
        if content is not None and not isinstance(content, str):
            return None, f"message {i} of `{key}` has a content that is no text"
        out.append({**message, "content": content or ""})
    return out, ""


def _tools(value: Any, messages: list[dict[str, Any]] | None) -> tuple[list[dict[str, Any]], str]:
    """The tools that are offered, and what is wrong with them."""
    if isinstance(value, str):  # some data sets store the list as JSON text
        try:
            value = loads(value)
        except ValueError as e:
            return [], f"`tools` is text that is not JSON: {e}"
    if value is None:
        block = _TOOLS.search(messages[0]["content"]) if messages else None
        return (_tools_of_block(block[1]) if block else []), ""
    if not isinstance(value, list) or not all(isinstance(t, dict) and Tool.from_openai(t).name for t in value):
        return [], "`tools` is no list of function schemas, each with a name"
    return value, ""


def _tools_of_block(block: str) -> list[dict[str, Any]]:
    """The schemas that a template wrote into a system turn, one JSON object a line; other spellings are left."""
    out = []
    for line in block.splitlines():
        try:
            tool = json.loads(line)
        except ValueError:
            continue
        if isinstance(tool, dict) and Tool.from_openai(tool).name:
            out.append(tool)
    return out


# ---- turns ----


def _turn(index: int, message: dict[str, Any], tools: Sequence[Tool]) -> Turn:
    role, content = message["role"], message["content"]
    if role == "assistant":
        return _assistant(index, message, tools)
    if role == "tool":
        return Turn(index, role, content, results=(content,))
    if role == "user":
        if prefix := RESULT.match(content):
            return Turn(index, role, content, results=(content[prefix.end() :],))
        if content.lstrip().startswith("<tool_response>") and (found := RESPONSE.findall(content)):
            return Turn(index, role, content, RESPONSE.sub("", content).strip(), results=tuple(found))
    return Turn(index, role, content, content)


class _Parts:
    """What is found in one assistant turn, in order."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[Call] = []
        self.broken: list[Broken] = []
        self.preamble: str | None = None  # the text before the first call, once there is one

    def call(self, found: Call | Broken) -> None:
        """The next call, or what was meant to be one."""
        if self.preamble is None:
            self.preamble = "".join(self.texts).strip()
        if isinstance(found, Call):
            self.calls.append(found)
        else:
            self.broken.append(found)

    def tags(self, content: str, tools: Sequence[Tool]) -> None:
        """Calls in the tags of the wire format that the text shows; what lies between is looked through for fences."""
        name, pending = choose(content, tools, Options()), ""
        for event in read(content, name, tools).events:
            match event:
                case Text(text):
                    pending += text
                    continue
                case Reasoning(text):
                    self.reasoning.append(text)
                case CallFinished(call=call):
                    repaired = "; ".join(p.detail for p in event.problems if p.kind == "repaired")
                    self.fences(pending)
                    self.call(Call(call.name, call.arguments, self.index, name, event.raw, repaired, id=call.id))
                    pending = ""
                case Malformed(raw, reason):
                    self.fences(pending)
                    self.call(Broken(self.index, name, reason, raw))
                    pending = ""
        self.fences(pending)

    def fences(self, content: str) -> None:
        """Calls in fences; a fence that is none is text."""
        if json_fence.MARK not in content:
            self.texts.append(content)
            return
        for segment in json_fence.split(content):
            if segment.reason:
                self.call(Broken(self.index, "fence", segment.reason, segment.raw))
            elif not segment.calls:
                self.texts.append(segment.raw)
            for c in segment.calls:
                self.call(Call(c.name, c.arguments, self.index, "fence", segment.raw, c.repaired))

    def given(self, value: Any) -> None:
        """The calls that the row holds as `tool_calls`; their arguments may be JSON text."""
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            raw = json.dumps(entry, ensure_ascii=False)
            function = entry.get("function", entry) if isinstance(entry, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if encoded := isinstance(arguments, str):
                try:
                    arguments = loads(arguments)
                except ValueError as e:
                    self.call(Broken(self.index, "tool_calls", f"the arguments are not JSON: {e}", raw))
                    continue
            if isinstance(name, str) and name and isinstance(arguments, dict | None):
                id = entry.get("id")
                call = Call(name, arguments or {}, self.index, "tool_calls", raw, "", encoded, str(id or ""))
                self.call(call)
            else:
                reason = "no call with a name and an object of arguments"
                self.call(Broken(self.index, "tool_calls", reason, raw))


def _assistant(index: int, message: dict[str, Any], tools: Sequence[Tool]) -> Turn:
    content, parts = message["content"], _Parts(index)
    if _TAGS.search(content):
        parts.tags(content, tools)
    else:
        parts.fences(content)
    parts.given(message.get("tool_calls"))
    text = "".join(parts.texts).strip()
    reasoning = "".join(parts.reasoning).strip() or str(message.get("reasoning_content") or "")
    calls, broken = tuple(parts.calls), tuple(parts.broken)
    return Turn(index, "assistant", content, text, calls, broken, reasoning, preamble=parts.preamble or "")
