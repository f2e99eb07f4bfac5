"""`punie-mlx report`: results as one HTML page, as Markdown, as JSON, and as tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from punie_mlx.evals.report.inputs import Inputs

_WIDTH = 140  # columns where the output is no terminal: a log should not wrap as one
PAGE = Path("report.html")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Results in any mix: of `eval`, `sweep`, `profile`, `pipeline`; training directories.",
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="HTML page to write. Default, where nothing else is asked: report.html."),
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="OUT|-", help="Write the tables as Markdown, for a README; - prints them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    cases: Annotated[int, typer.Option(min=0, help="Failed cases that unfold in the page; more are listed.")] = 300,
    megabytes: Annotated[float, typer.Option(min=0.5, help="About the most that the page may take.")] = 8.0,
) -> None:
    """Show results: one HTML page that needs nothing else, with every failed case down to its tokens.

    The first run is the one that the others are compared with. A directory of `pipeline` stands for all that is in it.
    Example: `punie-mlx report base.json fused.json sweep.json runs/adapter --html report.html`
    """
    from punie_mlx.errors import ConfigError
    from punie_mlx.evals.report.cases import Limits
    from punie_mlx.evals.report.inputs import read_inputs
    from punie_mlx.evals.report.page import write_page

    if as_json and markdown == "-":
        raise ConfigError("--json and --markdown -: both print to stdout; give a file to --markdown")
    inputs = read_inputs(runs)
    if html is None and markdown is None and not as_json:
        html = PAGE
    _show(inputs, markdown, as_json=as_json)
    if html is not None:
        notes = write_page(inputs, html, Limits(cases, round(megabytes * 1e6)))
        for line in (*notes, f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser"):
            typer.echo(line, err=True)


def _show(inputs: Inputs, markdown: str | None, *, as_json: bool) -> None:
    """What goes to stdout: JSON, Markdown, or else the tables; and the Markdown file."""
    import json

    from rich.console import Console

    from punie_mlx.evals.report import text
    from punie_mlx.evals.tables import terminal
    from punie_mlx.files import write_text

    if markdown is not None and markdown != "-":
        write_text(Path(markdown), text.in_markdown(inputs))
    if as_json:
        typer.echo(json.dumps(text.as_json(inputs), indent=1))
    elif markdown == "-":
        typer.echo(text.in_markdown(inputs), nl=False)
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        for grid in text.grids(inputs):
            if grid.rows:
                console.print(terminal(grid))
