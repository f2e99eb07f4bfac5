"""`punie-mlx suite`: look at the cases that models are scored on before any model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from punie_mlx.cli_suite_import import import_bfcl, import_logs
from punie_mlx.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from punie_mlx.corpus.suites.check import Checked
    from punie_mlx.corpus.suites.distance import Distance

FAIL_ON = ("exact", "near", "warning", "never")
_SOURCES = 5  # sources and licences that are shown
_WIDTH = 140  # columns where the output is no terminal

app = typer.Typer(
    name="suite",
    help="Check suites, measure their distance from a corpus, make them of other benchmarks and of logs.",
    no_args_is_help=True,
)


@app.command()
def check(
    file: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Suites: .jsonl files, one case a line.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Corpus that no case may stem from: a directory of rows, or one file."),
    ] = None,
    ngram: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Words of the runs that are compared. Default: 3, 5, 8."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Warnings of a kind, leaks and nearest rows that are shown.")] = 5,
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="|".join(FAIL_ON), help="From what on the exit code is 1; near includes exact, and so on."
        ),
    ] = "near",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of the tables.")] = False,
) -> None:
    """Say what is wrong with suites: lines that are no case, doubtful cases, questions that stand in a corpus.

    Exit code 0 where nothing is, 1 with bad lines, leaks (see --fail-on), 2 where a file cannot be read.
    Example: `punie-mlx suite check data/suites/agent.jsonl --corpus data/phase8_xml_format`
    """
    from dataclasses import replace

    from punie_mlx.corpus.audit.read import read_corpus
    from punie_mlx.corpus.suites.check import check as look
    from punie_mlx.corpus.suites.distance import NGRAMS, distance

    if fail_on not in FAIL_ON:
        raise ConfigError(f"--fail-on is {fail_on!r}: it must be one of {', '.join(FAIL_ON)}")
    checked = [look(path) for path in file]
    for path in corpus or ():
        rows = read_corpus(path)
        sizes = tuple(sorted(set(ngram or NGRAMS)))
        checked = [replace(c, distances=(*c.distances, distance(c.suite, rows, sizes))) for c in checked]
    if as_json:
        content = {"kind": "suite-check", "suites": [c.to_json() for c in checked]}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        typer.echo(text.encode("utf-8", "backslashreplace").decode())  # a row may hold what is no text
    else:
        for one in checked:
            _show(one, limit)
    if any(_fails(one, fail_on) for one in checked):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a case, which data/suites/schema.json holds.

    Example: `punie-mlx suite schema > data/suites/schema.json`
    """
    from punie_mlx.corpus.suites.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


app.command("import-bfcl")(import_bfcl)
app.command("import-logs")(import_logs)


def _fails(checked: Checked, fail_on: str) -> bool:
    if fail_on == "never":
        return False
    kinds = {leak.kind for found in checked.distances for leak in found.leaks}
    leaks = bool(kinds & set(FAIL_ON[: FAIL_ON.index(fail_on) + 1]))
    return bool(checked.problems) or leaks or (fail_on == "warning" and bool(checked.warnings))


# ---- for people ----


def _show(checked: Checked, limit: int) -> None:
    from rich.console import Console
    from rich.text import Text

    from punie_mlx.corpus.audit.report import plain

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)

    def say(text: str, style: str = "") -> None:
        console.print(Text(plain(text), style), highlight=False)

    suite = checked.suite
    say(f"{suite.path}: {len(suite.cases)} cases, hash {suite.hash[:12]}", "bold")
    console.print(_categories(checked))
    for what, passed in checked.senseless.items():
        say(f"a model that {what} passes {passed} of {len(suite.cases)}")
    for problem in checked.problems:
        say(f"{suite.path}:{problem.line}: {problem.text}", "bold red")
    for kind in dict.fromkeys(w.check for w in checked.warnings):
        found = [w for w in checked.warnings if w.check == kind]
        for warned in found[:limit]:
            say(f"warning ({kind}): {warned.text}", "yellow")
        if len(found) > limit:
            say(f"warning ({kind}): and {len(found) - limit} more", "yellow")
    for found in checked.distances:
        console.print()
        say(f"distance from {found.corpus} ({found.rows} rows)", "bold")
        console.print(_overlaps(found))
        for line, style in _leaks(found, limit):
            say(line, style)
    console.print()


def _categories(checked: Checked) -> Table:
    from rich.table import Table

    from punie_mlx.corpus.suites.check import counts

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "name", "cases"):
        table.add_column(title, justify="right" if title == "cases" else "left")
    for field in ("category", "source", "licence"):
        found = {k: n for k, n in counts(checked.suite, field).items() if k or field == "category"}
        shown = len(found) if field == "category" else min(len(found), _SOURCES)  # an importer gives each case its own
        for name, n in list(found.items())[:shown]:
            table.add_row(field, name, str(n))
        if more := len(found) - shown:
            table.add_row(field, f"… and {more} others", str(sum(list(found.values())[shown:])))
    return table


def _overlaps(found: Distance) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("runs of words that users say in it")
    for n in found.overlap:
        table.add_column(f"{n} words", justify="right")
    for category in next(iter(found.overlap.values())):
        cells = (by[category] for by in found.overlap.values())
        table.add_row(category, *(f"{o.shared}/{o.runs} {o.share:.1%}" if o.runs else "-" for o in cells))
    return table


def _leaks(found: Distance, limit: int) -> list[tuple[str, str]]:
    lines = []
    for leak in found.leaks:
        again = f" and {leak.rows - 1} more" if leak.rows > 1 else ""
        said = f"{leak.row}{again}" + (f": {leak.said!r}" if leak.kind == "near" else "")
        verb = "stands" if leak.kind == "exact" else "nearly stands"
        lines.append((f"leak: {leak.where}: case {leak.case} {leak.query!r} {verb} at {said}", "bold red"))
    nearest = sorted(found.nearest, key=lambda n: (-n.shared / n.runs, -n.runs))
    leaking = {leak.case for leak in found.leaks}
    for n in [n for n in nearest if n.case not in leaking][:limit]:
        lines.append((f"nearest: case {n.case} shares {n.shared} of its {n.runs} runs with {n.row}: {n.said!r}", ""))
    if not found.leaks:
        lines.append(("no case leaks", "green"))
    return lines
