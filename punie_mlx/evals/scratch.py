"""The agent's tools, executed for real in a scratch directory: the counterpart of `punie_mlx.corpus.world`.

Nothing outside the directory is read or written, and no shell is started: `run_command` runs a few harmless programs
with arguments that stay inside. A failure is a result that begins with `error: `, as an agent would see it. A tool
that the world does not know is recorded and answers `ok`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.corpus.world import TOOLS
from punie_mlx.toolcalls.values import Schema, problem

MAX_RESULT = 20_000
MAX_FILE = 1_000_000
COMMAND_SECONDS = 5.0
PROGRAMS = frozenset({"cat", "echo", "find", "grep", "head", "ls", "pwd", "tail", "wc"})
# Options of `find` that write, delete or start programs.
FIND_ACTS = re.compile(r"-(exec|execdir|ok|okdir|delete|fprint|fprint0|fprintf|fls)$")

# Options that take names of files from a file: nobody sees where those lead. Long options of `wc` may be cut short.
NAMES_FROM_FILE = {"find": re.compile(r"-files0-from$"), "wc": re.compile(r"--f")}

# A word that names a path from the root or a home, or climbs; an option may carry one: -f/etc/hosts, --file=../x.
OUTSIDE = re.compile(r"^(-\w+|--[\w-]+=)?[/~]|(^|[/=]|^-\w+)\.\.(/|$)")


class ToolError(Exception):
    """A tool cannot do what it was asked; its text is the reason that the model reads."""


@dataclass(frozen=True)
class Outcome:
    """What a tool answered, and whether it did what it was asked."""

    text: str
    ok: bool


class Scratch:
    """One case's directory, and the tools that work in it."""

    def __init__(self, root: Path, files: Mapping[str, str] | None = None) -> None:
        self.root = root.resolve()
        for name, content in (files or {}).items():
            self._write(self.path(name), content)

    def call(self, name: str, arguments: Mapping[str, Any], schema: Schema | None = None) -> Outcome:
        """Run the tool `name`. `schema` is that of the offered tool; arguments that break it are an error."""
        if schema is None and name in TOOLS:
            schema = TOOLS[name]["function"]["parameters"]
        # Where a schema names its properties, an agent framework would refuse one that it does not name.
        closed = {"additionalProperties": False, **schema} if schema and schema.get("properties") else schema or {}
        if reason := problem(dict(arguments), closed):
            return Outcome(f"error: {reason}", False)
        try:
            text = getattr(self, name)(**arguments) if name in TOOLS else "ok"
        except ToolError as e:
            return Outcome(f"error: {e}", False)
        except (TypeError, AttributeError, LookupError) as e:  # the suite offers a world's tool under another schema
            return Outcome(f"error: {e}", False)
        except UnicodeError:
            return Outcome("error: the text cannot be written as UTF-8", False)
        except OSError as e:
            return Outcome(f"error: {e.strerror or 'the file cannot be used'}".lower(), False)
        if len(text) > MAX_RESULT:
            text = f"{text[:MAX_RESULT]}\n… cut, {len(text) - MAX_RESULT} characters more"
        return Outcome(text, True)

    def snapshot(self) -> dict[str, str]:
        """All files that are there, by their paths, and their text."""
        return {self._shown(p): self._snapped(p) for p in self._files(self.root)}

    def _snapped(self, path: Path) -> str:
        text = self._read(path)
        return text if len(text) <= MAX_FILE else f"{text[:MAX_FILE]}… cut, {len(text) - MAX_FILE} characters more"

    # -- paths

    def path(self, name: str) -> Path:
        """`name` inside the scratch directory. Raises `ToolError` where it leads out of it."""
        if "\0" in name or not name:
            raise ToolError("no such file")
        found = (self.root / name).resolve()
        if not found.is_relative_to(self.root):
            raise ToolError("the path is outside the project")
        return found

    def _file(self, name: str) -> Path:
        found = self.path(name)
        if found.is_dir():
            raise ToolError("it is a directory")
        if not found.is_file():
            raise ToolError("no such file")
        return found

    def _dir(self, name: str) -> Path:
        found = self.path(name)
        if found.is_file():
            raise ToolError("it is a file, not a directory")
        if not found.is_dir():
            raise ToolError("no such directory")
        return found

    def _write(self, path: Path, text: str) -> None:
        if path.is_dir():
            raise ToolError("it is a directory")
        content = text.encode()  # before anything is made: text of a model may hold lone surrogates
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _read(self, path: Path) -> str:
        with path.open(encoding="utf-8", errors="replace", newline="") as f:
            return f.read()

    def _files(self, below: Path) -> list[Path]:
        """All files below a directory (or the file itself), sorted by their path in the project."""
        found = [below] if below.is_file() else [p for p in below.rglob("*") if p.is_file()]
        return sorted(found, key=self._shown)

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _append(self, name: str, line: str) -> None:
        with self.path(name).open("a", encoding="utf-8") as f:
            f.write(line + "\n")

    def _append_json(self, name: str, value: Mapping[str, Any]) -> None:
        self._append(name, json.dumps(value, ensure_ascii=False, sort_keys=True))

    def _settings(self, update: Callable[[dict[str, Any]], None]) -> None:
        path = self.path("settings.json")
        try:
            settings = json.loads(self._read(path)) if path.is_file() else {}
        except ValueError as e:
            raise ToolError("settings.json is not JSON") from e
        if not isinstance(settings, dict):
            raise ToolError("settings.json is no object")
        update(settings)
        self._write(path, json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True))

    # -- the world's tools: their names are the methods' names

    def read_file(self, path: str) -> str:
        return self._read(self._file(path))

    def write_file(self, path: str, content: str) -> str:
        self._write(self.path(path), content)
        return "saved"

    def list_dir(self, path: str, recursive: bool = False) -> str:
        below = self._dir(path)
        if recursive:
            return " ".join(sorted(p.relative_to(below).as_posix() for p in self._files(below)))
        return " ".join(sorted(p.name for p in below.iterdir()))

    def delete_file(self, path: str) -> str:
        self._file(path).unlink()
        return "deleted"

    def move_file(self, source: str, destination: str) -> str:
        old, new = self._file(source), self.path(destination)
        if new.is_dir():
            new = new / old.name
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        return "moved"

    def make_dir(self, path: str) -> str:
        if (new := self.path(path)).is_file():
            raise ToolError("it is a file")
        new.mkdir(parents=True, exist_ok=True)
        return "created"

    def count_lines(self, path: str) -> str:
        return f"{len(self._read(self._file(path)).splitlines())} lines"

    def format_code(self, path: str, line_length: int = 0) -> str:
        file = self._file(path)
        self._write(file, "\n".join(line.rstrip() for line in self._read(file).split("\n")))
        return "formatted"

    def search(self, pattern: str, path: str) -> str:
        below = self.path(path)
        if not below.exists():
            raise ToolError("no such directory")
        found = [self._shown(p) for p in self._files(below) if pattern in self._read(p)]
        return " ".join(found) or "nothing found"

    def find_symbol(self, name: str, kind: str = "") -> str:
        spelled = re.escape(name)
        forms = {"class": rf"\bclass {spelled}\b", "function": rf"\bdef {spelled}\b", "variable": rf"\b{spelled} ="}
        if kind and kind not in forms:
            raise ToolError(f"kind must be one of {', '.join(forms)}")
        wanted = re.compile(forms[kind] if kind else "|".join(forms.values()))
        return next((self._shown(p) for p in self._files(self.root) if wanted.search(self._read(p))), "nothing found")

    def rename_symbol(self, old: str, new: str) -> str:
        word = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")
        texts = [(p, self._read(p)) for p in self._files(self.root)]
        touched = [(p, t) for p, t in texts if word.search(t)]
        if not touched:
            raise ToolError(f"no symbol {old}")
        for path, text in touched:
            self._write(path, word.sub(lambda _: new, text))
        return "renamed"

    def run_tests(self, paths: list[str], verbose: bool = False) -> str:
        for path in paths:
            if not self.path(path).exists():
                raise ToolError("no such file")
        return f"{len(paths)} passed"

    def git_commit(self, message: str, amend: bool = False) -> str:
        history = self.path(".history")
        if amend and history.is_file():
            self._write(history, "".join(self._read(history).splitlines(keepends=True)[:-1]))
        self._append(".history", message.replace("\n", " "))
        return "committed"

    def install_package(self, package: str, version: str = "", dev: bool = False) -> str:
        self._append("requirements.txt", package + (f"=={version}" if version else "") + ("  # dev" if dev else ""))
        return "installed"

    def set_options(self, options: dict[str, Any]) -> str:
        self._settings(lambda s: s.update(options))
        return "updated"

    def set_threshold(self, metric: str, value: float) -> str:
        self._settings(lambda s: s.setdefault("thresholds", {}).update({metric: value}))
        return "updated"

    def create_issue(self, title: str, labels: list[str], priority: str = "") -> str:
        self._append_json("issues.jsonl", {"title": title, "labels": labels, "priority": priority})
        return "created"

    def start_server(self, port: int, reload: bool = False) -> str:
        self._write(self.path("server.json"), json.dumps({"port": port, "reload": reload}))
        return "started"

    def schedule_task(self, task: str, minutes: int, repeat: bool) -> str:
        self._append_json("tasks.jsonl", {"task": task, "minutes": minutes, "repeat": repeat})
        return "scheduled"

    def run_command(self, command: str, timeout: int = 0) -> str:
        argv = command_line(command)
        locale = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
        limit = min(timeout, COMMAND_SECONDS) if timeout > 0 else COMMAND_SECONDS
        try:
            done = subprocess.run(
                argv,
                cwd=self.root,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": locale},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as e:
            raise ToolError(f"the command took longer than {limit:g} seconds") from e
        except FileNotFoundError as e:
            raise ToolError(f"{argv[0]}: command not found") from e
        text = done.stdout.decode(errors="replace").replace(str(self.root), ".").removesuffix("\n")
        # grep's 1 says that nothing was found, which is an answer.
        if done.returncode and not (argv[0] == "grep" and done.returncode == 1):
            reason = done.stderr.decode(errors="replace").strip().splitlines()
            raise ToolError(reason[-1] if reason else f"exit code {done.returncode}")
        return text or "no output"


def command_line(command: str) -> list[str]:
    """The words of a command that may be run. Raises `ToolError` for all others."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = ""
        argv = list(lexer)
    except ValueError as e:
        raise ToolError(f"the command cannot be read: {str(e).lower()}") from e
    if not argv or "\0" in command:
        raise ToolError("the command is empty")
    if argv[0] not in PROGRAMS:
        raise ToolError(f"{argv[0]} is not allowed here")
    for word in argv[1:]:
        if word and not word.strip("();<>|&"):
            raise ToolError("pipes, redirections and several commands are not allowed here")
        if argv[0] == "find" and FIND_ACTS.match(word):
            raise ToolError(f"find {word} is not allowed here")
        if (option := NAMES_FROM_FILE.get(argv[0])) and option.match(word):
            raise ToolError(f"{argv[0]} {word} is not allowed here")
        if argv[0] != "echo" and OUTSIDE.search(word):
            raise ToolError("the path is outside the project")
    return argv
