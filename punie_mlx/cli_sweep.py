"""`punie-mlx sweep`: a fused model in many widths, measured, and the smallest that is not worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    model: Annotated[str, typer.Option(help="The fused float16 model, as `fuse` writes it: a directory.")],
    suite: Annotated[list[Path], typer.Option(help="Suite to score on; may be repeated.")],
    prompts: Annotated[
        Path, typer.Option(metavar="DATA", help="Directory of rows; KL is measured on its test split (or valid).")
    ],
    out: Annotated[Path, typer.Option(help="Directory of all results; a stopped sweep is taken up again there.")],
    base: Annotated[str | None, typer.Option(help="The base of the fused model, scored as a control.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Its adapter, scored over --base.")] = None,
    bits: Annotated[str, typer.Option(metavar="LIST", help="Bits a weight: of 8, 6, 5, 4, 3, 2.")] = "8,6,5,4,3",
    group_size: Annotated[
        str, typer.Option(metavar="LIST", help="Weights that share a scale: of 32, 64, 128; each with all bits.")
    ] = "64",
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Also recipes that keep embedding, output and the weakest layers wider.")
    ] = False,
    dwq: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Also 5 and 4 bits with scales tuned on the train split of these rows."),
    ] = None,
    dwq_steps: Annotated[int, typer.Option(help="Assistant turns that the scales are tuned on.")] = 300,
    turns: Annotated[int, typer.Option(help="At most so many held-out assistant turns for the KL.")] = 256,
    concurrency: Annotated[int, typer.Option(help="Cases in flight at once.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Only the first N cases of each suite.")] = None,
    seed: Annotated[int, typer.Option(help="Order of the held-out turns and of those that are tuned on.")] = 0,
    margin: Annotated[float, typer.Option(help="Loss of accuracy that still goes as not worse, as a share.")] = 0.05,
    drop: Annotated[
        bool, typer.Option("--drop", help="In the end, delete the weights of all variants but the picked one.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Do all stages again, also those that are done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the table.")] = False,
) -> None:
    """Quantize a fused model in many ways and say what each costs: size, KL to float16, accuracy, tokens a second.

    Every variant is scored through the real server and tested against float16 (exact McNemar, Holm); the smallest that
    is not significantly worse is picked. Exit code 1 if all are worse.
    Example: `punie-mlx sweep --model runs/fused --suite data/suites/agent.jsonl --prompts data/phase8_xml_format
    --out runs/sweep`
    """
    from punie_mlx.export.hub import resolve
    from punie_mlx.sweep import SweepConfig, run_verb

    config = SweepConfig(
        model=resolve(model),
        out=out,
        suites=tuple(suite),
        prompts=prompts,
        base=resolve(base) if base else None,
        adapter=adapter,
        bits=_numbers(bits, "--bits"),
        group_sizes=_numbers(group_size, "--group-size"),
        mixed=mixed,
        dwq=dwq,
        dwq_steps=dwq_steps,
        turns=turns,
        concurrency=concurrency,
        limit=limit,
        seed=seed,
        margin=margin,
        drop=drop,
        restart=restart,
    )
    if run_verb(config, as_json=as_json)["picked"] is None:
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`8,5,4` → (8, 5, 4). Raises `ConfigError`."""
    from punie_mlx.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: give whole numbers with commas between them, say 8,5,4") from None
