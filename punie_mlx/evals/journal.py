"""What is finished of an evaluation that is not, so that it goes on after any stop, SIGKILL included.

    with journal(out, facts) as done:
        done.records                  what an earlier session finished
        done.add(record)              one line more; whole, or cut off at the end, where the next session drops it
        done.finish()                 OUT is written: the file goes

The file is OUT.partial.jsonl: a line with the facts that decide the results (model, suites, settings, versions), then
one record a line. Other facts are another evaluation, whose records are not thrown away unasked. The lines are handed
to the system one by one, so a killed process loses none; a machine that loses power may lose the last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from punie_mlx.errors import DiskError, OutputError
from punie_mlx.identity import hash_json

KIND = "evaluation-journal"
SHOWN = 3  # differences that are named


def journal_path(out: Path) -> Path:
    """Where the journal of an evaluation that writes `out` lies."""
    return out.with_name(f"{out.name}.partial.jsonl")


class Journal:
    """An open journal. Make one with `journal`."""

    def __init__(self, path: Path, descriptor: int, facts: Mapping[str, Any]) -> None:
        self._path, self._descriptor, self._facts = path, descriptor, facts
        self.records: list[dict[str, Any]] = []
        self._start = 0  # where this session's records begin

    def load(self, *, restart: bool) -> None:
        """Read what is there. Raises `OutputError` where it belongs to another evaluation, unless `restart`."""
        header, records, end = _read(self._descriptor)
        mine = header is not None and header.get("key") == hash_json(self._facts)
        if mine and not restart:
            self.records, self._start = records, end
            os.ftruncate(self._descriptor, end)
            return
        if records and not restart:
            raise OutputError(
                f"{self._path} holds {len(records)} cases of another evaluation ({_differences(header, self._facts)}): "
                "pass --restart to throw them away, or name another --json"
            )
        os.ftruncate(self._descriptor, 0)
        self._write({"kind": KIND, "format": 1, "key": hash_json(self._facts), "facts": self._facts})
        self._start = os.fstat(self._descriptor).st_size

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a finished record."""
        self._write(record)

    def take_back(self) -> None:
        """Drop what this session added: it turned out to be of another model."""
        os.ftruncate(self._descriptor, self._start)

    def finish(self) -> None:
        """All is written elsewhere."""
        self._path.unlink(missing_ok=True)

    def _write(self, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise DiskError(f"the disk ran full while writing {self._path}: free some space and go on") from e
            raise OutputError(f"{self._path} cannot be written: {e.strerror or e}") from e


@contextmanager
def journal(out: Path, facts: Mapping[str, Any], *, restart: bool = False) -> Generator[Journal]:
    """The journal of the evaluation of `facts` that will write `out`, held against other processes.

    Raises:
        OutputError: another process writes it, it holds another evaluation's records, or it cannot be written.
        DiskError: the disk is full.
    """
    path = journal_path(out)
    descriptor = _locked(path)
    try:
        opened = Journal(path, descriptor, facts)
        opened.load(restart=restart)
        yield opened
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor of `path` that no other process has."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(descriptor)
            raise OutputError(f"another evaluation writes {path}: wait for it, or name another --json") from e
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # who held it has finished and removed it


def _read(descriptor: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """The header, the records, and where the last whole line ends."""
    values: list[dict[str, Any]] = []
    end = 0
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(value, dict):
                break
            values.append(value)
            end += len(line)
    header = values[0] if values and values[0].get("kind") == KIND else None
    return header, values[1:], end


def _differences(header: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> str:
    """What is not the same, in few words."""
    before, now = (_flat(f) for f in ((header or {}).get("facts") or {}, facts))
    names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    shown = [f"{n} was {_short(before.get(n))}, is {_short(now.get(n))}" for n in names[:SHOWN]]
    return "; ".join([*shown, *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]) or "no header"


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:12]}…"
