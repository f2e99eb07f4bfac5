"""`punie-mlx eval`: a model, scored through its server by an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def eval_(
    suite: Annotated[
        list[Path], typer.Option(help="Suite to score on: a .jsonl file, one case a line. May be repeated.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Model to score: a directory or a Hub name. A server of its own is started for it."),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter directory to lay over the model.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Result file: the summary, and every case with all that was said.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N cases of each suite.")] = None,
    concurrency: Annotated[
        int, typer.Option(help="Cases in flight at once. Use 1 where the seconds a query matter.")
    ] = 4,
    url: Annotated[
        str | None, typer.Option(help="Score the server that runs here, say http://127.0.0.1:8080/v1; starts none.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="With --url: the model that it must serve. Exit code 3 if it serves another.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one response; too few cut a call in two.")] = 1024,
    requests: Annotated[
        int, typer.Option(help="Requests that one case may take: call, result and answer are two.")
    ] = 4,
) -> None:
    """Score a model as an agent would use it: real server, real PydanticAI agent, tools that execute.

    Example: `punie-mlx eval --model runs/fused --suite data/suites/agent.jsonl --json fused.json`
    """
    from punie_mlx.evals.command import run_eval
    from punie_mlx.export.hub import resolve

    run_eval(
        model=resolve(model) if model else None,
        adapter=adapter,
        suites=tuple(suite),
        out=json_out,
        url=url,
        fingerprint=fingerprint,
        limit=limit,
        concurrency=concurrency,
        max_tokens=max_tokens,
        request_limit=requests,
    )
