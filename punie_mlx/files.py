"""Outputs that are whole or absent: written to a temporary sibling, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from punie_mlx.errors import DiskError, OutputError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if `path` exists and may not be replaced. Call it before any long work."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already: pass --overwrite to replace it, or name another output")


def refuse_same(out: Path, *inputs: Path) -> None:
    """Raise `OutputError` where the output would replace one of its own inputs."""
    for path in inputs:
        if Path(out).resolve() == Path(path).resolve():
            raise OutputError(f"{out} is an input itself: name another output")


@contextmanager
def atomic_dir(path: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Yield an empty temporary directory beside `path`; rename it to `path` if the block ends without an error.

    A failed block leaves nothing behind and keeps an existing `path` as it was.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or its parent cannot be written.
        DiskError: the disk ran full inside the block.
    """
    path = Path(path).absolute()
    refuse_existing(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        tmp.chmod(0o755)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e
    try:
        yield tmp
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(old)
        tmp.rename(path)
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.unlink()
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskError(f"the disk ran full while writing {path}: nothing was left there") from e
        raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield the name of a temporary sibling of `path`; rename it to `path` if the block ends without an error."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(fd)
    tmp = Path(name)
    tmp.chmod(0o644)
    try:
        yield tmp
        tmp.replace(path)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskError(f"the disk ran full while writing {path}: nothing was left there") from e
        raise
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole or not at all; a file that is there is replaced.

    Raises:
        OutputError: `path` is a directory, or cannot be written.
        DiskError: the disk is full.
    """
    if Path(path).is_dir():
        raise OutputError(f"{path} is a directory: name the file to write")
    try:
        with atomic_file(path) as tmp:
            tmp.write_text(text, encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}; name another file") from e


def sweep_partials(parent: Path, name: str | None = None) -> list[Path]:
    """Remove what a killed run left half-written in `parent` (`.*.partial`, `.*.old`); return what was removed.

    `name`: only what was to become this file or directory, where others may be writing beside it.
    """
    stem = "*" if name is None else f"{glob.escape(name)}.*"
    found = [p for ending in ("partial", "old") for p in parent.glob(f".{stem}.{ending}")]
    for p in found:
        shutil.rmtree(p, ignore_errors=True) if p.is_dir() else p.unlink(missing_ok=True)
    return found


@contextmanager
def locked(file: Path, what: str) -> Generator[None]:
    """Hold `file` against other processes; the kernel lets go of it with the process, however that ends.

    `what` works there, in messages: "pipeline", "training run". The directory is made where there is none.

    Raises:
        OutputError: another process holds it (its id is in the file), or it cannot be written.
        DiskError: the disk is full.
    """
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            opened = file.open("a+", encoding="ascii")
        except OSError as e:
            raise OutputError(f"{file.parent} cannot be written: {e.strerror or e}") from e
        with opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                opened.seek(0)
                raise OutputError(
                    f"another {what} (process {opened.read().strip() or '?'}) works in {file.parent}: "
                    "wait for it, or name another --out"
                ) from e
            if not _is_open(file, opened.fileno()):
                continue  # who held it has removed the directory: this lock would keep nobody out
            opened.truncate(0)
            try:
                os.write(opened.fileno(), str(os.getpid()).encode())  # unbuffered: nothing is left to fail at the end
            except OSError as e:
                raise DiskError(f"{file.parent} cannot be written: {e.strerror}; free some space") from e
            yield
            return


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file of `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def link_tree(source: Path, target: Path, *, without: frozenset[str] = frozenset()) -> None:
    """The files of `source` in `target` too, as hard links where the disk can, so that they take no room twice.

    Neither may be changed in place afterwards, only replaced. Names in `without` are left out.
    """
    for path in sorted(p for p in source.rglob("*") if p.is_file() and p.name not in without):
        link(path, target / path.relative_to(source))


def link(source: Path, target: Path) -> None:
    """`source` under the name `target` too: a hard link, or a copy where there are none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
