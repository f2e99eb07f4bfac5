"""Suites: the cases that a model is scored on. One JSON object a line, strict: an unknown key is an error.

    {"id": "read-1", "category": "read", "query": "Show me a.py",
     "tools": [OpenAI function schemas], "files": {"a.py": "content of the scratch directory"},
     "expect": {"calls": [{"name": "read_file", "arguments": {"path": "a.py"}}],
                "answer": {"contains": ["def"]}}}

`system` (a case) is the system prompt, none if absent. In `expect`:

- `calls`: every call of the whole run, in any order; `[]` means that no call may be made. `name` may be a list of
  names, each as good as the other; `arguments` that are absent are not asserted.
- `answer.contains`: strings that the final answer must hold (letter case counts).
- `execution`: `succeeds` (default) or `any`: whether a tool that returns an error fails the case.
- `turns`: `all` (default) or `first`: `first` scores the calls of the first turn only, for queries that ask
  "tool or no tool?" and whose later turns depend on a world that is not there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from punie_mlx.errors import DataError
from punie_mlx.identity import hash_json


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ExpectedCall(_Strict):
    """One call that must be made: any of `name`, with `arguments` where they are given."""

    name: str | list[str]
    arguments: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        return [self.name] if isinstance(self.name, str) else self.name


class ExpectedAnswer(_Strict):
    contains: list[str] = Field(min_length=1)


class Expect(_Strict):
    """What a run must have done to pass."""

    calls: list[ExpectedCall]
    answer: ExpectedAnswer | None = None
    execution: Literal["succeeds", "any"] = "succeeds"
    turns: Literal["all", "first"] = "all"


class Case(_Strict):
    """One query with the tools that are offered, the files that are there, and what is expected."""

    id: str = Field(min_length=1)
    category: str = Field(min_length=1)
    query: str = Field(min_length=1)
    tools: list[dict[str, Any]]
    expect: Expect
    system: str | None = None
    files: dict[str, str] = {}

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ValueError(f"{name!r} is no relative path inside the scratch directory")
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
            names.append(function["name"])
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools

    @model_validator(mode="after")
    def _can_be_passed(self) -> Case:
        """A call that is expected must be possible: its tool offered, its arguments known to the schema."""
        for call in self.expect.calls:
            if not call.names:
                raise ValueError("expect.calls: an empty list of names")
            for name in call.names:
                if name not in self.schemas:
                    raise ValueError(f"expect.calls names {name}, which `tools` does not offer")
                known = self.schemas[name].get("properties", {})
                for argument in call.arguments or {}:
                    if argument not in known and self.schemas[name].get("additionalProperties", False) is False:
                        raise ValueError(f"expect.calls gives {name} an argument {argument} that its schema has not")
        return self

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """Tool name → JSON schema of its parameters."""
        return {t["function"]["name"]: t["function"].get("parameters", {}) for t in self.tools}


@dataclass(frozen=True)
class Suite:
    """The cases of one file, in its order, and the hash of their content."""

    path: Path
    cases: tuple[Case, ...]
    hash: str

    @property
    def name(self) -> str:
        return self.path.stem


def read_suite(path: Path) -> Suite:
    """Read and check a suite file. Raises `DataError` with file and line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as e:
        raise DataError(
            f"suite {path} cannot be read: {e.strerror or e}; give a .jsonl file with one case a line"
        ) from e
    except UnicodeDecodeError as e:
        raise DataError(f"suite {path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    cases: list[Case] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case = _case(line, f"{path}:{number}")
        if case.id in seen:
            raise DataError(f"{path}:{number}: id {case.id!r} stands on line {seen[case.id]} already: ids are unique")
        seen[case.id] = number
        cases.append(case)
    if not cases:
        raise DataError(f"suite {path} holds no case: write one JSON object a line")
    return Suite(path, tuple(cases), hash_json([c.model_dump(mode="json") for c in cases]))


def _case(line: str, where: str) -> Case:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where}: not JSON: {e}; one case a line") from e
    if not isinstance(value, dict):
        raise DataError(f"{where}: a case is a JSON object, not {type(value).__name__}")
    try:
        return Case.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(p) for p in first["loc"] if p != "str" and not str(p).startswith("list["))
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        raise DataError(f"{where}: {place + ': ' if place else ''}{first['msg']}{more}") from e
