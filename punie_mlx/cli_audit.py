"""`punie-mlx audit`: options in, tables or JSON out, an exit code for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from punie_mlx.errors import ConfigError

if TYPE_CHECKING:
    from punie_mlx.corpus.audit.model import Audit

NEVER = "never"
_WIDTH = 140  # columns where the output is no terminal: a log should not wrap as one


def audit(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Directory of .jsonl files, or one file: messages, completions or text."),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model whose template and tokenizer measure the rows.")
    ] = None,
    suite: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Suite that no row may ask from; may be given repeatedly.")
    ] = None,
    max_seq_length: Annotated[int, typer.Option(min=1, help="Tokens of a row; longer ones are reported.")] = 2048,
    check: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Run only this check; repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave this check out; repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Findings of a check that the table shows.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print every finding as JSON instead of the table.")] = False,
    json_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write that JSON to a file.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one HTML page, which needs nothing else.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a cleaned copy to this directory, with a report.")
    ] = None,
    conflicts: Annotated[
        bool, typer.Option("--drop-conflicts", help="With --fix: leave out queries that are called for and are not.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the directory of --fix if it exists.")
    ] = False,
    fail_on: Annotated[
        str,
        typer.Option(metavar="error|warning|note|never", help="From which severity on findings end with exit code 1."),
    ] = "error",
) -> None:
    """Look for what is wrong with a corpus: copies, leaks, labels that disagree, calls that cannot be made.

    Exit code 0 without findings of `--fail-on` or worse, 1 with them, 2 where the data cannot be read.
    Example: `punie-mlx audit data/phase8_xml_format --tokenizer data/tiny-base --suite data/suites/agent.jsonl`
    """
    from punie_mlx.corpus.audit import run
    from punie_mlx.corpus.audit.model import SEVERITIES
    from punie_mlx.corpus.audit.read import read_corpus
    from punie_mlx.corpus.suite import read_suite
    from punie_mlx.files import refuse_existing

    if fail_on not in (*SEVERITIES, NEVER):
        raise ConfigError(f"--fail-on is {fail_on!r}: it must be error, warning, note or never")
    if conflicts and not fix:
        raise ConfigError("--drop-conflicts needs --fix OUT: the source stays as it is")
    if fix:
        refuse_existing(fix, overwrite)
    checks = run.chosen(check or (), skip or ())
    suites = [read_suite(path) for path in suite or ()]
    loaded = _tokenizer(tokenizer) if tokenizer else None
    corpus = read_corpus(data, tokenizer=loaded, suites=suites, max_seq_length=max_seq_length)
    found = run.audit(corpus, checks)
    _write(found, html=html, json_out=json_out)
    _show(found, limit, as_json=as_json)
    if fix:
        _fix(found, fix, overwrite=overwrite, conflicts=conflicts, quiet=as_json)
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != NEVER else ()
    if any(found.severities[severity] for severity in failing):
        raise typer.Exit(1)


def _tokenizer(model: str) -> object:
    from punie_mlx.chat.render import load_tokenizer
    from punie_mlx.export.hub import resolve

    return load_tokenizer(resolve(model))


def _write(found: Audit, *, html: Path | None, json_out: Path | None) -> None:
    """The reports that were asked for as files; one that is there is replaced."""
    from punie_mlx.corpus.audit.page import page
    from punie_mlx.corpus.audit.report import json_text
    from punie_mlx.files import write_text

    for path, make in ((html, page), (json_out, json_text)):
        if path is not None:
            write_text(path, make(found))


def _show(found: Audit, limit: int, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from punie_mlx.corpus.audit import report

    if as_json:
        typer.echo(report.json_text(found), nl=False)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(report.figures_table(found))
    if found.findings:
        console.print()
        console.print(report.findings_table(found, limit))
    console.print()
    for line in (*report.lines(found), report.summary(found)):
        console.print(Text(line), highlight=False)


def _fix(found: Audit, out: Path, *, overwrite: bool, conflicts: bool, quiet: bool) -> None:
    """Write the cleaned copy; what is said of it goes to stderr where stdout holds JSON."""
    from punie_mlx.corpus.audit.fix import fix

    fixed = fix(found.corpus, found.findings, out, overwrite=overwrite, conflicts=conflicts, checks=found.checks)
    typer.echo(fixed.summary(out), err=quiet)
