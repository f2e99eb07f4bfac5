"""Suites that are made by a program: checked as any other one before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.corpus.rows import write_rows
from punie_mlx.corpus.suite import examine
from punie_mlx.errors import DataError
from punie_mlx.files import atomic_file, refuse_existing


def write_cases(out: Path, cases: Sequence[Mapping[str, Any]], *, overwrite: bool = False) -> None:
    """Write `cases` to `out`, whole or not at all.

    Raises:
        OutputError: `out` exists and `overwrite` is false.
        DataError: there is no case, or one is none that a model can be scored on.
    """
    refuse_existing(out, overwrite)
    if not cases:
        raise DataError(f"{out} would hold no case, so nothing was written: give a file with more in it")
    with atomic_file(out) as tmp:
        write_rows(tmp, cases)
        if problems := examine(tmp)[1]:
            told = "\n".join(f"case {cases[p.line - 1]['id']}: {p.text}" for p in problems[:10])
            raise DataError(f"{told}\n{len(problems)} problems, nothing was written to {out}: mend these in the source")
