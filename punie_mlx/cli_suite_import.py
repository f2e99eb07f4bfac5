"""`punie-mlx suite import-bfcl` and `suite import-logs`: suites made of a public benchmark, and of one's own logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SHOWN = 20  # lines of a kind that are printed

Out = Annotated[Path, typer.Option(help="Suite to write: a .jsonl file, one case a line.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


def import_bfcl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A single-turn file of BFCL v3 or v4.")],
    out: Out,
    gold: Annotated[
        Path | None,
        typer.Option(help="Its gold. Default: FILE with .gold.json, or possible_answer/FILE beside it."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a suite of a file of the Berkeley Function-Calling Leaderboard: each row becomes one case.

    Types become JSON's, dotted names such as math.hypot become math_hypot, and the gold's admissible values become
    matchers. Gold that its own schema forbids is kept and listed. Multi-turn files are refused.
    Example: `punie-mlx suite import-bfcl BFCL_v4_parallel.json --gold gold.json --out bfcl_parallel.jsonl`
    """
    from punie_mlx.corpus.suites.bfcl import import_bfcl as read
    from punie_mlx.corpus.suites.file import write_cases

    made = read(file, gold)
    write_cases(out, made.cases, overwrite=overwrite)
    if as_json:
        _json({"kind": "suite-import", "from": str(file), "out": str(out), **made.to_json()})
        return
    typer.echo(f"{out}: {len(made.cases)} cases of {made.rows} rows of {file}")
    _list("gold that its own schema forbids, kept as it is", made.contradictions)
    _list("changed on the way", made.notes)


def import_logs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Log: one JSON object a line, or an eval result.")],
    out: Out,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Replace e-mail addresses, long tokens and home directories, the same one by the same."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a suite of what your agent was asked before: each answer becomes a case that expects the same calls.

    A line is {"request": body, "response": body} of a chat completion (objects or text, also the text of a stream), or
    {"messages": [...], "tools": [...]}; a result of `punie-mlx eval --json` is understood as well. What was done is
    not always what should have been done: look through the expectations before you score on them.
    Example: `punie-mlx suite import-logs calls.jsonl --redact --out mine.jsonl`
    """
    from punie_mlx.corpus.suites.file import write_cases
    from punie_mlx.corpus.suites.logs import import_logs as read

    made = read(file, redact=redact)
    write_cases(out, made.cases, overwrite=overwrite)
    if as_json:
        _json({"kind": "suite-import", "from": str(file), "out": str(out), **made.to_json()})
        return
    typer.echo(f"{out}: {len(made.cases)} cases of {made.turns} turns of {file}; {made.folded} duplicates folded")
    for reason, places in made.skipped.items():
        _list(f"not used: {reason}", places)
    if redact:
        typer.echo(f"replaced: {', '.join(f'{n} {kind}' for kind, n in made.redacted.items()) or 'nothing'}")
    typer.echo("each case expects what was done then: review the expectations before you score a model on them")


def _list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    typer.echo(f"{title} ({len(lines)}):")
    for line in lines[:SHOWN]:
        typer.echo(f"  {line}")
    if len(lines) > SHOWN:
        typer.echo(f"  … and {len(lines) - SHOWN} more (--json has all)")


def _json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
