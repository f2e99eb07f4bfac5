"""`punie-mlx doctor`: options in, findings out, an exit code for CI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from punie_mlx.errors import ConfigError

_OTHERWISE = (
    "Where you know the format that the model was trained on, name its family: --fix --family NAME "
    "(`punie-mlx template list`); where it was trained on none, train it: `punie-mlx convert`, `punie-mlx train`."
)

if TYPE_CHECKING:
    from punie_mlx.doctor.findings import Examined
    from punie_mlx.doctor.mend import Mended
    from punie_mlx.doctor.specimen import Specimen


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model directory, or its name on the Hub.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Jinja file to examine: alone, or with MODEL's tokenizer.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Also (or only) ask a running server: any that speaks OpenAI's API.")
    ] = None,
    served: Annotated[str | None, typer.Option("--served-name", help="Its model. Default: the one it lists.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PUNIE_MLX_API_KEY", show_envvar=True, help="Key for that server.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer of it may take.")] = 120.0,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load MODEL and see what it writes before any parser.")
    ] = False,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="Adapter that goes with MODEL.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Training rows to hold against the prompt that is served.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each file that are looked at.")] = 200,
    check: Annotated[list[str] | None, typer.Option(metavar="ID", help="Run only this check; repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="ID", help="Leave this check out; repeatable.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a mended chat template, proved by the same checks.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where --fix writes. Default: beside the template, as `.mended`."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Family whose template --fix takes; see `punie-mlx template list`."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file if it exists.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page, which needs nothing else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name all checks, by what they look at.")] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="Explain a check: what is wrong, how it is seen, how to mend it.")
    ] = None,
) -> None:
    """Say why a model does not call tools, with the evidence, in order of harm; and mend its chat template.

    Exit code 0 without findings (with --fix: none is left), 1 with some, 2 where something cannot be read.
    Examples: `punie-mlx doctor data/tiny-base --probe`, `punie-mlx doctor --template chat_template.jinja --fix`,
    `punie-mlx doctor --url http://127.0.0.1:8080/v1`, `punie-mlx doctor --explain tool-calls-dropped`
    """
    from punie_mlx.doctor import examination, terminal
    from punie_mlx.doctor.mend import beside
    from punie_mlx.doctor.page import page
    from punie_mlx.files import refuse_existing, refuse_same, write_text

    if listed or explain:
        typer.echo(_explanations(explain), nl=False)
        return
    specimen = _specimen(model, template)
    if fix and specimen is None:
        raise ConfigError("--fix mends a template: give a model directory or --template FILE")
    for option, given in (("--out", out), ("--family", family), ("--overwrite", overwrite)):
        if given and not fix:
            raise ConfigError(f"{option} is about the template that --fix writes: give --fix, too")
    if fix and specimen:
        refuse_existing(out or beside(specimen), overwrite)
    if html:
        written = [out or beside(specimen)] if fix and specimen else []
        directory = specimen.directory if specimen else None
        refuse_same(html, *_files(directory, template, adapter, data), *written)
    asked = examination.Asked(
        specimen, adapter, data, probe, url, served, api_key, timeout, rows, tuple(check or ()), tuple(skip or ())
    )
    said = terminal.console(err=True)
    found = examination.visit(asked, lambda doing: said.print(f"{doing} …", style="dim", markup=False))
    mended = _mend(specimen, found, out, family, overwrite=overwrite) if fix and specimen else None
    if html:
        write_text(html, page(found, specimen.name if specimen else found.facts["server"]["url"]))
    if as_json:
        typer.echo(json.dumps(examination.as_json(found, mended), indent=2, ensure_ascii=False))
    else:
        terminal.show(found, terminal.console())
        if fix:
            _tell(mended, found)
    left = examination.left(found, mended.cleared if mended else ())
    if left or (mended and mended.after):
        raise typer.Exit(1)


def _specimen(model: str | None, template: Path | None) -> Specimen | None:
    from punie_mlx.doctor.specimen import Specimen
    from punie_mlx.export.hub import resolve

    directory = resolve(model) if model else None
    if template:
        return Specimen.of_file(template, directory)
    return Specimen.of_model(directory) if directory else None


def _files(*given: Path | None) -> Iterator[Path]:
    """What is looked at, of a directory each file; pages of earlier visits may lie there and be written anew."""
    for path in filter(None, given):
        yield from (p for p in path.iterdir() if p.suffix != ".html") if path.is_dir() else (path,)


def _explanations(check: str | None) -> str:
    """The page of one check, or a line for each."""
    from punie_mlx.doctor import table

    if check:
        return table.explanation(check)
    lines: list[str] = []
    for c in table.checks():
        heading = f"{c.area}:"
        if heading not in lines:
            lines.append(heading)
        lines.append(f"  {c.id:28} {c.title}")
    return "\n".join(lines) + "\n"


def _mend(
    specimen: Specimen, found: Examined, out: Path | None, family: str | None, *, overwrite: bool
) -> Mended | None:
    from punie_mlx.doctor import mend

    mended = mend.mend(specimen, found, family=family)
    if mended is None:
        return None
    return mend.write(mended, out or mend.beside(specimen), overwrite=overwrite)


def _tell(mended: Mended | None, found: Examined) -> None:
    """What was mended and how to use it, and what is left."""
    if mended is None:
        typer.echo("nothing was written: " + (f"no mending helps\n{_OTHERWISE}" if found.findings else "all is well"))
        return
    how = "; ".join(mended.rewrites) or f"it is our template of {mended.family}"
    cleared = f"; found no more: {', '.join(mended.cleared)}" if mended.cleared else ""
    typer.echo(f"\n{mended.diff}\n{mended.file}: {how}{cleared}\n\n{mended.usage}")
    if mended.after:
        typer.echo(f"\nleft: {', '.join(f.check for f in mended.after)}\n{_OTHERWISE}")
