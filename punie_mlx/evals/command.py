"""What the verb `eval` does with its options: one evaluation, a progress bar on stderr, the tables on stdout."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from punie_mlx.evals.journal import journal_path
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.evals.summary import table

FAILURES_SHOWN = 5


def run_eval(config: EvalConfig) -> None:
    """Evaluate and print. Raises what `evaluate` raises."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    done = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading the model" if config.url is None else "scoring", total=None)

        def step(finished: int, total: int, passed: int) -> None:
            nonlocal done
            done = finished
            bar.update(task, description=f"{passed} passed", completed=finished, total=total)

        try:
            result = evaluate(config, step)
        except KeyboardInterrupt:
            print(f"punie-mlx: stopped; {_how_to_go_on(config, done)}", file=sys.stderr)
            raise
    console = Console()
    console.print(table(result))
    for warning in result["warnings"]:
        console.print(f"! {warning}", markup=False, highlight=False, soft_wrap=True)
    failed = [c for c in result["cases"] if not c["passed"]]
    for case in failed[:FAILURES_SHOWN]:
        console.print(f"✗ {case['id']}: {case['reasons'][0]}", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > FAILURES_SHOWN:
        more = f", all in {config.out}" if config.out else ""
        console.print(f"… and {len(failed) - FAILURES_SHOWN} more that failed{more}")


def _how_to_go_on(config: EvalConfig, done: int) -> str:
    if config.out is None:
        return "nothing was kept: with --json OUT the same command could go on"
    return f"{done} cases are kept in {journal_path(config.out)}, and the same command goes on from there"
