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
    through: Annotated[
        str,
        typer.Option(
            metavar="pydantic-ai|openai|model",
            help="Who asks: a PydanticAI agent or the plain openai client, through the server; or nobody's server, the "
            "model by itself. What fails through the server only is the server's doing.",
        ),
    ] = "pydantic-ai",
    limit: Annotated[int | None, typer.Option(help="Only the first N cases of each suite.")] = None,
    repeats: Annotated[int, typer.Option(help="Run each case so often: says how reliable a model is.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides what is drawn; each case and repeat has another seed of it.")] = 0,
    retries: Annotated[
        int, typer.Option(help="How often the agent may ask again. A case that needs it fails, and is counted apart.")
    ] = 0,
    concurrency: Annotated[
        int, typer.Option(help="Cases in flight at once. Use 1 where the seconds a query matter; a model alone has 1.")
    ] = 4,
    url: Annotated[
        str | None, typer.Option(help="Score the server that runs here, say http://127.0.0.1:8080/v1; starts none.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="With --url: the model that it must serve. Exit code 3 if it serves another.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name of the model in tables; else that of its directory.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one response; too few cut a call in two.")] = 1024,
    requests: Annotated[
        int, typer.Option(help="Requests that one query may take: call, result and answer are two.")
    ] = 4,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what a stopped evaluation left beside --json.")
    ] = False,
    allow_missing_tools: Annotated[
        bool, typer.Option("--allow-missing-tools", help="Score also where the prompt shows the model no tools.")
    ] = False,
) -> None:
    """Score a model as an agent would use it: real server, real PydanticAI agent, tools that execute.

    With --json a stopped evaluation goes on by the same command.
    Example: `punie-mlx eval --model runs/fused --suite data/suites/agent.jsonl --json fused.json`
    """
    from punie_mlx.evals.agent import AgentSettings
    from punie_mlx.evals.command import run_eval
    from punie_mlx.evals.runner import EvalConfig
    from punie_mlx.export.hub import resolve

    run_eval(
        EvalConfig(
            model=resolve(model) if model else None,
            adapter=adapter,
            suites=tuple(suite),
            out=json_out,
            url=url,
            fingerprint=fingerprint,
            through=through,
            limit=limit,
            repeats=repeats,
            seed=seed,
            concurrency=concurrency,
            label=label,
            restart=restart,
            allow_missing_tools=allow_missing_tools,
            agent=AgentSettings(
                max_tokens=max_tokens, request_limit=requests, temperature=temperature, retries=retries
            ),
        )
    )
