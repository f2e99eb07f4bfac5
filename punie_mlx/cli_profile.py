"""`punie-mlx profile`: where the time of an agent's cases goes, by the server's clock and the client's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from punie_mlx.evals.profiling import ProfileConfig

_WIDTH = 140  # columns where the output is no terminal: a log should not wrap as one


def profile(
    model: Annotated[
        str | None, typer.Option(help="Model to profile: a directory or a Hub name. Its server is started for it.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter directory to lay over the model.")] = None,
    suite: Annotated[
        list[Path] | None, typer.Option(help="Suite whose cases are run: a .jsonl file. May be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N cases of each suite; the very first is the warm-up.")
    ] = None,
    through: Annotated[
        str, typer.Option(metavar="pydantic-ai|openai", help="Who asks: a PydanticAI agent or the plain client.")
    ] = "pydantic-ai",
    repeats: Annotated[int, typer.Option(help="Run each case so often.")] = 1,
    url: Annotated[
        str | None, typer.Option(help="Profile the server that runs here, say http://127.0.0.1:8080/v1; starts none.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="With --url: the model that it must serve, where --model does not say.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run nothing: profile this result of `eval --concurrency 1 --json`.")
    ] = None,
    compare_stock: Annotated[
        bool, typer.Option("--compare-stock", help="Also send the requests to mlx_lm.server on the same model.")
    ] = False,
    stock_model: Annotated[
        Path | None, typer.Option(help="What mlx_lm.server gets instead: the weights in another precision, say.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one response.")] = 1024,
    json_out: Annotated[Path | None, typer.Option("--json", help="File for the profile as JSON.")] = None,
) -> None:
    """Say where the time of an agent's cases goes, phase by phase: server, network, tools, agent framework.

    Cases run one after the other, the first as a warm-up. The phases must add up to the wall time within 2%: exit code
    1 where they do not. With --compare-stock the same requests go to mlx_lm.server, too, in turns.
    Example: `punie-mlx profile --model runs/fused --suite data/suites/agent.jsonl --limit 40 --json profile.json`
    """
    from punie_mlx.errors import ConfigError
    from punie_mlx.evals.agent import AgentSettings
    from punie_mlx.evals.profile import profile_of
    from punie_mlx.evals.profiling import ProfileConfig
    from punie_mlx.evals.runs import read_run
    from punie_mlx.export.hub import resolve

    if run is not None:
        if model or url or suite or compare_stock:
            raise ConfigError("--run has been run already: leave --model, --url, --suite and --compare-stock out")
        _show(profile_of(read_run(run)), json_out)
        return
    config = ProfileConfig(
        model=resolve(model) if model else None,
        adapter=adapter,
        suites=tuple(suite or ()),
        url=url,
        fingerprint=fingerprint,
        through=through,
        limit=limit,
        repeats=repeats,
        compare_stock=compare_stock,
        stock_model=stock_model,
        agent=AgentSettings(max_tokens=max_tokens),
    )
    _show(_profiled(config), json_out)


def _profiled(config: ProfileConfig) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from punie_mlx.evals.profiling import profile as room

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("running", total=None)
        return room(config, lambda done, total, _: bar.update(task, completed=done, total=total))


def _show(found: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console

    from punie_mlx import identity
    from punie_mlx.evals.profile import adds_up
    from punie_mlx.evals.profile_tables import grids, warnings
    from punie_mlx.evals.tables import terminal

    if out is not None:
        identity.write_json(out, found)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for grid in grids(found):
        console.print(terminal(grid))
    for warning in warnings(found):
        console.print(f"! {warning}", markup=False, highlight=False, soft_wrap=True, style="bold red")
    if not adds_up(found):
        raise typer.Exit(1)
