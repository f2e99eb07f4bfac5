"""Suites: the cases that a model is scored on. One JSON object a line, strict: an unknown key is an error.

    {"id": "read-1", "category": "read", "query": "Show me a.py",
     "tools": [OpenAI function schemas], "files": {"a.py": "content of the scratch directory"},
     "expect": {"calls": [{"name": "read_file", "arguments": {"path": "a.py"}}],
                "answer": {"contains": ["def"]}}}

A case asks a `query`, or goes on with `messages`: a whole conversation of which the last message is a user's.
`follow_ups` are asked in the same conversation, each after the answer to the one before. `system` is the system
prompt, none if absent. `source` and `licence` say where the case comes from. In `expect`:

- `calls`: every call of the whole run; `[]` means that no call may be made. `any_of` in its place: several such lists,
  each as good as the other. `name` may be a list of names; arguments are given by `arguments` and `match`
  (`punie_mlx/corpus/suites/matchers.py`), and where a call has neither they are not asserted.
- `order`: `any` (default) or `given`: whether the calls must come in the order of the list.
- `parallel`: `true` if all must stand in one response, `false` if no two may, absent where it does not matter.
- `answer`: what the final answer `contains` (letter case counts) and `lacks`, and a regex that `matches` somewhere.
- `files`: the scratch directory afterwards: path → its text, null if it must not be there, or `contains`, `matches`,
  `lacks` as for the answer. Files that are not named are not looked at.
- `execution`: `succeeds` (default) or `any`: whether a tool that returns an error fails the case.
- `turns`: `all` (default) or `first`: `first` scores the calls of the first turn only, for queries that ask
  "tool or no tool?" and whose later turns depend on a world that is not there.

The same as a JSON Schema, for editors and other programs: data/suites/schema.json (`punie-mlx suite schema`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from punie_mlx.chat.messages import text_of
from punie_mlx.corpus.suites.conversation import check_conversation
from punie_mlx.corpus.suites.matchers import ExpectedCall, Strict, compiled, impossible
from punie_mlx.errors import DataError
from punie_mlx.identity import hash_json
from punie_mlx.toolcalls.values import malformed

__all__ = ["Case", "Expect", "ExpectedCall", "ExpectedText", "Problem", "Suite", "examine", "read_suite"]

ANSWERABLE = "give at least one of contains, matches and lacks"


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r} is no relative path inside the scratch directory")
    return name


def _one_of(value: Any, first: str, second: str) -> None:
    """Raises `ValueError` unless the object has exactly one of two keys."""
    given = [k for k in (first, second) if k in value]
    if len(given) != 1:
        told = f"both `{first}` and `{second}`" if given else f"neither `{first}` nor `{second}`"
        raise ValueError(f"{told}: give exactly one of them")


class ExpectedText(Strict):
    """What a text must hold, and must not."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [k]} for k in ("contains", "matches", "lacks")]}
    )
    contains: list[str] | None = Field(default=None, min_length=1)
    """Each of these stands in it; letter case counts."""
    matches: str | None = None
    """A regular expression (of Python) that matches somewhere in it."""
    lacks: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """None of these stands in it."""
    later = frozenset({"matches", "lacks"})

    @field_validator("matches")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        return compiled(pattern) if pattern is not None else None

    @model_validator(mode="after")
    def _can_be_met(self) -> ExpectedText:
        if not self.contains and self.matches is None and not self.lacks:
            raise ValueError(ANSWERABLE)
        for wanted in self.contains or ():
            for unwanted in self.lacks or ():
                if unwanted in wanted:
                    raise ValueError(f"a text with {wanted!r} cannot lack {unwanted!r}")
        return self


ExpectedFile = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[ExpectedText, Tag("<parts>")] | Annotated[None, Tag("<nothing>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<nothing>" if value is None else "<parts>"),
]


class Expect(Strict):
    """What a run must have done to pass."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["calls"]}, {"required": ["any_of"]}]})
    calls: list[ExpectedCall] = Field(default_factory=list)
    """Every call of the run; none may be made where it is empty. (In Python it is empty beside `any_of`, too.)"""
    any_of: list[list[ExpectedCall]] | None = Field(default=None, min_length=1)
    """Several lists of calls, each as good as the other."""
    order: Literal["any", "given"] = "any"
    """Whether the calls must come in the order of the list."""
    parallel: bool | None = None
    """true: all calls stand in one response; false: no two do."""
    answer: ExpectedText | None = None
    """What the final answer must hold, and must not."""
    files: dict[str, ExpectedFile] | None = None
    """The scratch directory afterwards: path → its whole text, what it holds, or null where nothing may be there."""
    execution: Literal["succeeds", "any"] = "succeeds"
    """Whether a tool that returns an error fails the case."""
    turns: Literal["all", "first"] = "all"
    """Which calls are scored: all, or those of the first turn that has any."""
    later = frozenset({"any_of", "order", "parallel", "files"})

    @model_validator(mode="before")
    @classmethod
    def _calls_or_any_of(cls, value: Any) -> Any:
        if isinstance(value, dict):
            _one_of(value, "calls", "any_of")
        return value

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in files or ():
            _inside(name)
        return files

    @model_validator(mode="after")
    def _can_be_met(self) -> Expect:
        if self.turns == "first" and self.parallel is False and any(len(calls) > 1 for calls in self.alternatives):
            raise ValueError("of one turn several calls are expected, and parallel is false: no answer has both")
        return self

    @property
    def alternatives(self) -> list[list[ExpectedCall]]:
        """The lists of calls of which one must be made."""
        return [self.calls] if self.any_of is None else self.any_of

    def left_out(self) -> frozenset[str]:
        return frozenset({"calls"} if self.any_of is not None else ())


def _query_of(value: Any) -> Any:
    """A case with `messages` has the text of the last one as its query."""
    if not isinstance(value, dict):
        return value
    _one_of(value, "query", "messages")
    if "query" in value:
        return value
    try:
        text = text_of(value["messages"][-1])
    except (LookupError, TypeError, AttributeError):
        text = ""
    return {**value, "query": text if isinstance(text, str) and text else "?"}  # `messages` tells what is wrong


class Case(Strict):
    """One query with the tools that are offered, the files that are there, and what is expected."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["query"]}, {"required": ["messages"]}]})
    id: str = Field(min_length=1)
    """Tells the case from the others of its suite."""
    category: str = Field(min_length=1)
    """The group whose score it counts for."""
    query: str = Field(min_length=1)
    """What is asked. (In Python the text of the last message where `messages` are given.)"""
    tools: list[dict[str, Any]]
    """OpenAI function schemas of the tools that are offered."""
    expect: Expect
    system: str | None = None
    """The system prompt."""
    files: dict[str, str] = Field(default_factory=dict)
    """The scratch directory in which the tools work: path → text."""
    messages: list[dict[str, Any]] | None = None
    """In place of `query`: OpenAI messages, a whole conversation so far; the last one is a user's."""
    follow_ups: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Further queries, each asked after the answer to the one before."""
    source: str | None = Field(default=None, min_length=1)
    """Where the case comes from."""
    licence: str | None = Field(default=None, min_length=1)
    """The licence under which it may be used, as an SPDX identifier if there is one."""
    later = frozenset({"messages", "follow_ups", "source", "licence"})

    @model_validator(mode="before")
    @classmethod
    def _query_or_messages(cls, value: Any) -> Any:
        return _query_of(value)

    @field_validator("messages")
    @classmethod
    def _conversation(cls, messages: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if messages is not None:
            check_conversation(messages)
        return messages

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            _inside(name)
        return files

    @field_validator("tools")
    @classmethod
    def _openai_schemas(cls, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = []
        for tool in tools:
            function = tool.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ValueError('a tool is {"type": "function", "function": {"name", "description", "parameters"}}')
            if not isinstance(function.get("parameters", {}), dict):
                raise ValueError(f"the parameters of tool {function['name']} are no JSON schema object")
            if found := malformed(function.get("parameters", {})):
                raise ValueError(f"the parameters of tool {function['name']} are no JSON schema: {found}")
            names.append(function["name"])
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools

    @model_validator(mode="after")
    def _can_be_passed(self) -> Case:
        """A call that is expected must be possible: its tool offered, its arguments known to the schema."""
        key = "calls" if self.expect.any_of is None else "any_of"
        for call in (call for calls in self.alternatives for call in calls):
            if not call.names:
                raise ValueError(f"expect.{key}: an empty list of names")
            for name in call.names:
                if name not in self.schemas:
                    raise ValueError(f"expect.{key} names {name}, which `tools` does not offer")
                if reason := impossible(call, name, self.schemas[name]):
                    raise ValueError(f"expect.{key} {reason}")
        if self.system is not None and any(m["role"] in ("system", "developer") for m in self.messages or ()):
            raise ValueError("both `system` and a system message: give one of them")
        return self

    def left_out(self) -> frozenset[str]:
        return frozenset({"query"} if self.messages is not None else ())

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """Tool name → JSON schema of its parameters."""
        return {t["function"]["name"]: t["function"].get("parameters", {}) for t in self.tools}

    @property
    def alternatives(self) -> list[list[ExpectedCall]]:
        """The lists of calls of which one must be made; `[[]]` where none may be made."""
        return self.expect.alternatives

    @property
    def expects_call(self) -> bool:
        """Whether a run without a call fails."""
        return all(self.alternatives)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """All that the model is shown first: the system prompt, if there is one, and the messages or the query."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *(self.messages or [{"role": "user", "content": self.query}])]


@dataclass(frozen=True)
class Suite:
    """The cases of one file, in its order, the hash of their content, and the line of each."""

    path: Path
    cases: tuple[Case, ...]
    hash: str
    lines: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

    def where(self, index: int) -> str:
        """`file:line` of a case."""
        return f"{self.path}:{self.lines[index]}" if self.lines else str(self.path)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line of a suite."""

    line: int
    text: str


def read_suite(path: Path) -> Suite:
    """Read and check a suite file. Raises `DataError` with file and line."""
    suite, problems = examine(path)
    if problems:
        first = problems[0]
        more = sum(p.line == first.line for p in problems) - 1
        raise DataError(f"{path}:{first.line}: {first.text}{f' (and {more} more)' if more else ''}")
    if not suite.cases:
        raise DataError(f"suite {path} holds no case: write one JSON object a line")
    return suite


def examine(path: Path) -> tuple[Suite, list[Problem]]:
    """The cases of a file that are good, and all that is wrong with the others. Raises `DataError` if unreadable."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as e:
        raise DataError(
            f"suite {path} cannot be read: {e.strerror or e}; give a .jsonl file with one case a line"
        ) from e
    except UnicodeDecodeError as e:
        raise DataError(f"suite {path} is not UTF-8 text: {e.reason} at byte {e.start}; save it as UTF-8") from e
    cases: dict[int, Case] = {}
    seen: dict[str, int] = {}
    problems: list[Problem] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case, wrong = _case(line)
        if case and case.id in seen:
            wrong = [f"id {case.id!r} stands on line {seen[case.id]} already: ids are unique"]
        elif case:
            seen[case.id] = number
            cases[number] = case
        problems += [Problem(number, text) for text in wrong]
    content = [c.model_dump(mode="json") for c in cases.values()]
    return Suite(path, tuple(cases.values()), hash_json(content), tuple(cases)), problems


def _case(line: str) -> tuple[Case | None, list[str]]:
    """The case of a line, or what is wrong with it."""
    try:
        value = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, ["half of a surrogate pair stands alone (\\ud800 to \\udfff), which is no text"]
    except (ValueError, RecursionError) as e:
        return None, [f"not JSON: {e}; one case a line"]
    if not isinstance(value, dict):
        return None, [f"a case is a JSON object, not {type(value).__name__}"]
    try:
        return Case.model_validate(value), []
    except ValidationError as e:
        return None, [_told(error) for error in e.errors()]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _told(error: Any) -> str:
    """One error of pydantic as a person reads it: where in the case, and what."""
    place = ".".join(str(p) for p in error["loc"] if p != "str" and not str(p).startswith(("list[", "function-", "<")))
    return f"{place + ': ' if place else ''}{error['msg'].removeprefix('Value error, ')}"
