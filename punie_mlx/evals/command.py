"""What the verb `eval` does with its options: one evaluation, a progress bar on stderr, the tables on stdout."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from punie_mlx.errors import ConfigError
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.evals.summary import table

FAILURES_SHOWN = 5


def run_eval(
    *,
    model: Path | None,
    adapter: Path | None,
    suites: tuple[Path, ...],
    out: Path | None,
    url: str | None,
    fingerprint: str | None,
    limit: int | None,
    concurrency: int,
    max_tokens: int,
    request_limit: int,
) -> None:
    """Evaluate and print. Raises what `evaluate` raises."""
    if max_tokens < 1 or request_limit < 1:
        raise ConfigError("--max-tokens and --requests must be at least 1")
    config = EvalConfig(
        model=model,
        adapter=adapter,
        suites=suites,
        out=out,
        url=url,
        fingerprint=fingerprint,
        limit=limit,
        concurrency=concurrency,
        agent=AgentSettings(max_tokens=max_tokens, request_limit=request_limit),
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading the server" if url is None else "scoring", total=None)

        def step(done: int, total: int, passed: int) -> None:
            bar.update(task, description=f"{passed} passed", completed=done, total=total)

        result = evaluate(config, step)
    console = Console()
    console.print(table(result))
    failed = [c for c in result["cases"] if not c["passed"]]
    for case in failed[:FAILURES_SHOWN]:
        console.print(f"✗ {case['id']}: {case['reasons'][0]}", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > FAILURES_SHOWN:
        console.print(f"… and {len(failed) - FAILURES_SHOWN} more that failed" + (f", all in {out}" if out else ""))
