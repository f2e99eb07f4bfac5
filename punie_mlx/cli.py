"""The verbs of `punie-mlx`. Each parses its options and calls one function of a room below."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from punie_mlx.errors import PunieError

app = typer.Typer(
    name="punie-mlx",
    help="Make a local MLX model call tools reliably, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# ---- corpus: generate, convert ----

# ---- train ----

# ---- export: fuse, quantize ----

# ---- serve ----

# ---- evals: eval ----

# ---- pipeline ----


def main() -> None:
    """Entry point: exit code 0, or that of the error (see `punie_mlx.errors`), or 130 on Ctrl-C."""
    try:
        app()
    except PunieError as e:
        print(f"punie-mlx: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print("punie-mlx: interrupted", file=sys.stderr)
        sys.exit(130)
