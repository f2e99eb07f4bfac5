"""`punie-mlx compare`: runs of the same cases, side by side, with an exit code for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

_WIDTH = 140  # columns where the output is no terminal: a log should not wrap as one


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Result files of `eval --json`, two or more, of one suite.")
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Run that the others are compared with. Default: the first.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Loss of accuracy that still goes as not worse, as a share: 0.05 is 5 points.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(help="A difference counts where its adjusted p-value is below.")] = 0.05,
    cases: Annotated[int, typer.Option(min=0, help="Cases lost and gained that are shown for each run.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON instead of the tables.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a README.")] = False,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit code 1 if a run is significantly worse than the baseline.")
    ] = False,
) -> None:
    """Compare runs case by case: exact McNemar tests, Holm's adjustment, intervals, what changed and what flipped.

    Runs of different suites or limits are refused with exit code 2.
    Example: `punie-mlx compare base.json fused.json quantized.json --baseline fused`
    """
    from punie_mlx.errors import ConfigError
    from punie_mlx.evals.compare import CompareConfig
    from punie_mlx.evals.compare import compare as room
    from punie_mlx.evals.runs import read_run

    if as_json and markdown:
        raise ConfigError("--json and --markdown: ask for one of them")
    config = CompareConfig(baseline=baseline, alpha=alpha, margin=margin)
    found = room([read_run(path) for path in runs], config)
    _show(found, cases, as_json=as_json, markdown=markdown)
    if fail_if_worse and any((r["against_baseline"] or {}).get("verdict") == "worse" for r in found["runs"]):
        raise typer.Exit(1)


def _show(found: Mapping[str, Any], cases: int, *, as_json: bool, markdown: bool) -> None:
    import json

    from rich.console import Console
    from rich.text import Text

    from punie_mlx.evals import markdown as in_markdown
    from punie_mlx.evals import tables

    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if markdown:
        typer.echo(in_markdown.comparison(found), nl=False)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    grids = [tables.comparison_grid(found), tables.changed_grid(found), tables.by_category_grid(found)]
    grids += [tables.flips_grid(found, label, cases) for label, flipped in found["flips"].items() if flipped and cases]
    for grid in grids:
        if grid.rows:
            console.print(tables.terminal(grid))
    for warning in found["warnings"]:
        console.print(Text(f"note: {warning}"), highlight=False)
    console.print(Text(found["words"]), highlight=False)
