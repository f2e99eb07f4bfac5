#!/usr/bin/env python3
"""Prove what fine-tuning and quantizing do to accuracy, and that another seed says the same.

    python scripts/prove_accuracy.py --out runs/prove            # two seeds: some hours on two CPU cores
    python scripts/prove_accuracy.py --out runs/quick --quick    # a small one, which shows the road and proves little

For each seed: train on the shipped corpus, fuse, and sweep: base, adapter, fused float16, 8, 6, 5, 4 and 3 bits on the
whole `agent` suite, through the real server, with Wilson's intervals and exact McNemar tests (Holm). What is done is
not done again, so the command goes on where it was stopped. `--adapter` takes a ready adapter instead of training one.

`CLAIMS` were written down before any of it was run. The exit code is 0 where each of them comes out the same with all
seeds, and as predicted where a prediction stands beside it; 1 where one does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
from punie_mlx import identity
from punie_mlx.errors import PunieError
from punie_mlx.evals.compare import CompareConfig, compare, points
from punie_mlx.evals.runs import read_run
from punie_mlx.files import locked
from punie_mlx.pipeline import LOCK, PipelineConfig, make_fused
from punie_mlx.stages import Runner, clear_partials, to_stderr
from punie_mlx.sweep import SweepConfig, run_sweep
from punie_mlx.sweep_result import ALPHA, table
from punie_mlx.train.config import make_config

ROOT = Path(__file__).resolve().parent.parent
BITS = (8, 6, 5, 4, 3)
SAME = 0.03  # a difference whose whole interval lies within this is none that matters
Sweep = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """Something that a sweep says, yes or no or a number; `expected` where it was predicted."""

    text: str
    read: Callable[[Sweep], Any]
    expected: bool | None = None


def row_of(sweep: Sweep, label: str) -> Mapping[str, Any]:
    return next(row for row in sweep["rows"] if row["label"] == label)


def base_is_worse_than_adapter(sweep: Sweep) -> bool:
    """Tested directly: both runs, exact McNemar."""
    told = compare(
        [read_run(Path(sweep["out"]) / row_of(sweep, label)["run"]) for label in ("base", "adapter")],
        CompareConfig(alpha=ALPHA),
    )
    return told["runs"][1]["against_baseline"]["verdict"] == "better"


def is_the_same(sweep: Sweep, label: str) -> bool:
    low, high = row_of(sweep, label)["difference_interval"]
    return max(-low, high) < SAME


def not_worse(label: str) -> Callable[[Sweep], bool]:
    return lambda sweep: not row_of(sweep, label)["worse"]


def fewest_bits(sweep: Sweep) -> int:
    """The fewest bits that are not significantly worse, with all wider ones not worse either; 16 where none is."""
    fewest = 16
    for row in sorted((r for r in sweep["rows"] if r["what"] == "quantized"), key=lambda r: -r["bits"]):
        if row["worse"]:
            break
        fewest = row["bits"]
    return fewest


def kl_rises(sweep: Sweep) -> bool:
    means = [r["kl"]["mean"] for r in sorted((r for r in sweep["rows"] if r["kl"]), key=lambda r: -r["bits"])]
    return means == sorted(means)


CLAIMS = (
    Claim("the base is significantly worse than base + adapter", base_is_worse_than_adapter, True),
    Claim(f"fusing changes nothing: adapter - fused within ±{100 * SAME:g} points",
          lambda sweep: is_the_same(sweep, "adapter"), True),
    Claim(f"8 bits change nothing: 8-bit - fused within ±{100 * SAME:g} points",
          lambda sweep: is_the_same(sweep, "8-bit"), True),
    Claim("6 bits are not significantly worse than float16", not_worse("6-bit"), True),
    Claim("5 bits are not significantly worse than float16", not_worse("5-bit"), True),
    Claim("KL to float16 rises with every step to fewer bits", kl_rises, True),
    Claim("the fewest bits that are not significantly worse than float16", fewest_bits),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is run."""

    model: Path
    data: Path
    suite: Path
    out: Path
    bits: tuple[int, ...] = BITS
    iters: int | None = None
    limit: int | None = None
    turns: int = 256
    concurrency: int = 4


def run_seed(plan: Plan, seed: int, adapter: Path | None) -> dict[str, Any]:
    """The sweep of one seed, with the directory that it lies in."""
    out = plan.out / f"seed{seed}"
    road = PipelineConfig(
        model=plan.model, data=plan.data, out=out, suites=(plan.suite,),
        train=make_config(None, {"iters": plan.iters, "seed": seed}),
    )  # fmt: skip
    paths = {name: out / name for name in ("data", "adapter", "fused")}
    with locked(out / LOCK, "proof"):
        clear_partials((out,), to_stderr)
        if adapter is None:
            make_fused(road, Runner(False, to_stderr), paths)
        else:
            fuse_ready(plan, adapter, paths)
        told = SweepConfig(
            model=paths["fused"], out=out / "sweep", suites=(plan.suite,), prompts=paths["data"], base=plan.model,
            adapter=adapter or paths["adapter"], bits=plan.bits, limit=plan.limit, turns=plan.turns, seed=seed,
            concurrency=plan.concurrency,
        )  # fmt: skip
        return {**run_sweep(told), "out": str(told.out)}


def fuse_ready(plan: Plan, adapter: Path, paths: Mapping[str, Path]) -> None:
    """Convert the rows and fuse a ready adapter, each time anew: both take seconds."""
    from punie_mlx.corpus.convert import ConvertConfig, convert
    from punie_mlx.export.fuse import fuse

    convert(ConvertConfig(source=plan.data, out=paths["data"], model=plan.model, overwrite=True))
    fuse(plan.model, adapter, paths["fused"], overwrite=True)


def settle(sweeps: Mapping[int, Sweep], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """What each claim comes to with each seed, and whether it holds; without claims of models that were not made."""
    found = []
    for claim in claims:
        try:
            values = {seed: claim.read(sweep) for seed, sweep in sweeps.items()}
        except StopIteration:
            continue
        same = len(set(values.values())) == 1
        as_expected = claim.expected is None or all(value is claim.expected for value in values.values())
        found.append({"claim": claim.text, "values": values, "expected": claim.expected, "holds": same and as_expected})
    return found


def show(sweeps: Mapping[int, Sweep], settled: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 150
    for seed, sweep in sweeps.items():
        console.print(f"\nseed {seed}", style="bold")
        console.print(table(sweep))
        for label in ("base", "adapter"):
            row = row_of(sweep, label)
            low, high = row["difference_interval"]
            said = f"{label} - fused: {points(row['difference'])} points [{100 * low:+.1f}, {100 * high:+.1f}]"
            console.print(said, highlight=False)
        console.print(sweep["why"], highlight=False, soft_wrap=True)
    shown = Table(title="what was claimed before, and what came out")
    shown.add_column("claim")
    for seed in sweeps:
        shown.add_column(f"seed {seed}", justify="right")
    shown.add_column("predicted", justify="right")
    shown.add_column("holds", justify="right")
    words = {True: "yes", False: "no", None: ""}
    for one in settled:
        values = [words.get(v, str(v)) if isinstance(v, bool) else str(v) for v in one["values"].values()]
        shown.add_row(one["claim"], *values, words[one["expected"]], words[one["holds"]])
    console.print(shown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of all results; goes on where it was")
    parser.add_argument("--seeds", default="0,1", help="of training, and of the order of the held-out turns")
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "phase8_json_format")
    parser.add_argument("--suite", type=Path, default=ROOT / "data" / "suites" / "agent.jsonl")
    parser.add_argument("--adapter", type=Path, action="append", help="a ready adapter, one for each seed, in order")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all of it to this file")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps, 12 cases, 8 and 4 bits; exit code 0")
    options = parser.parse_args(argv)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {options.seeds}: give whole numbers with commas between them, say 0,1")
    if options.quick:
        seeds = seeds[:1]
    adapters = options.adapter or [None] * len(seeds)
    if len(adapters) != len(seeds):
        parser.error(f"{len(adapters)} adapters for {len(seeds)} seeds: give one --adapter for each seed")
    plan = Plan(options.model, options.data, options.suite, options.out, concurrency=options.concurrency)
    if options.quick:
        plan = Plan(plan.model, plan.data, plan.suite, plan.out, (8, 4), 40, 12, 8, options.concurrency)
    try:
        sweeps = {seed: run_seed(plan, seed, adapter) for seed, adapter in zip(seeds, adapters, strict=True)}
    except PunieError as e:
        print(f"prove_accuracy: {e}", file=sys.stderr)
        return e.exit_code
    settled = settle(sweeps)
    show(sweeps, settled)
    if options.json:
        identity.write_json(options.json, {"kind": "proof", "sweeps": sweeps, "claims": settled})
    if options.quick:
        print("a quick run: nothing is proved by it")
        return 0
    return 0 if all(one["holds"] for one in settled) else 1


if __name__ == "__main__":
    sys.exit(main())
