#!/usr/bin/env python3
"""How fast we train, beside stock mlx_lm as shipped and stock with its sort mended, in one run.

    python scripts/bench_train.py --json train.json                    # 10 to 15 minutes on two quiet cores
    python scripts/bench_train.py --samples 0 --rounds 1               # every row
    python scripts/bench_train.py --quick

On each data set the contestants (train_peers.py says what they do) train the same samples for the same number of
updates, each in a process of its own; they take turns in an order that changes, so that a slow moment of the machine
meets them all; medians of the rounds count.

    speed_over_stock          supervised tokens a second of wall time, ours over mlx_lm's loop as shipped
    speed_over_mended         the same over mlx_lm's loop whose sort by length works
    peak_memory_over_stock    MLX's peak while training, ours over mlx_lm's: below 1 is less
    cpu_over_stock, cpu_over_mended   supervised tokens a second of processor time, ours over theirs: other processes
                              disturb it less, but BLAS threads that spin while they wait are counted
    seconds_to_stock_loss     training time until the validation loss that stock has at the end, ours over stock's own

At the top level of the JSON stands the worst of the data sets. Before anything is timed, loss and gradients of a batch
must be equal on both sides (1e-4), and the initial weights identical; supervised tokens must be as many: else the exit
code is 1.

mlx_lm compiles its step. Where MLX runs on a CPU that means a C++ compiler, and may cost more than it gives; so both
ways are tried first, on a few samples, and each of mlx_lm's loops gets the faster one. Ours gets what `compile: auto`
is. Beside the rows with all their turns (of which one begins the next, so that little has to be computed twice) the
last turns alone are measured once ("last_turns").

Data are directories of rows; ready-made ChatML text is converted first. What is not there is skipped, with a note.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx import hardware
from punie_mlx.corpus.convert import ConvertConfig, convert

ROOT = Path(__file__).resolve().parent.parent
DATA = (ROOT / "data" / "phase8_xml_format", ROOT.parent / "shared" / "real" / "punie" / "phase22")
SIDES = ("ours", "mended", "stock")
EQUAL = 1e-4
TRIED = 32  # samples on which compiling is tried, twice; the better of both counts
PACKAGES = ("mlx", "mlx-lm", "punie-mlx", "numpy")
WORST = {
    "speed_over_stock": min, "speed_over_mended": min, "peak_memory_over_stock": max, "cpu_over_stock": min,
    "cpu_over_mended": min, "seconds_to_stock_loss": max,
}  # fmt: skip
Figures = dict[str, Any]


def say(text: str) -> None:
    print(f"bench_train: {text}", file=sys.stderr, flush=True)


def peer(**job: Any) -> Figures:
    """What a contestant measures, in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts" / "train_peers.py")]
    done = subprocess.run(command, input=json.dumps(job) + "\n", stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if "seconds" in found and "tokens" in found:
        found["tokens_per_s"] = found["tokens"] / found["seconds"]
        found["tokens_per_cpu_s"] = found["tokens"] / found["cpu_seconds"]
        name = f"{job['side']}{' compiled' if job.get('compiled') else ''}"
        speed, peak = found["tokens_per_s"], found["peak_memory"] / 1e6
        say(f"  {name:16} {speed:8.1f} tokens/s  {peak:8.1f} MB  ({time.perf_counter() - began:.0f} s)")
    return found


# ---- what is measured ----


def fastest(job: Figures, asked: argparse.Namespace) -> tuple[dict[str, bool], Figures]:
    """Whether each side's step is compiled, and what was tried to tell."""
    chosen = dict.fromkeys(SIDES, not hardware.on_cpu())
    if asked.compile != "auto":
        return chosen | dict.fromkeys(("stock", "mended"), asked.compile == "on"), {}
    say("compiled or not?")
    tried: Figures = {side: {"plain": 0.0, "compiled": 0.0} for side in SIDES}
    for side in SIDES * 2:
        for name, best in tried[side].items():
            found = peer(**job | {"side": side, "compiled": name == "compiled", "samples": TRIED})
            tried[side][name] = max(best, found["tokens_per_s"])
    faster = {side: speeds["compiled"] > speeds["plain"] for side, speeds in tried.items()}
    return chosen | {side: faster[side] for side in ("stock", "mended")}, tried


def rounds(job: Figures, count: int, compiled: dict[str, bool]) -> dict[str, list[Figures]]:
    """The figures of each side in each round."""
    found: dict[str, list[Figures]] = {side: [] for side in SIDES}
    for i in range(count):
        for side in (*SIDES[i % 3 :], *SIDES[: i % 3]):
            found[side].append(peer(**job | {"side": side, "compiled": compiled[side]}))
    totals = {(run["tokens"], run["updates"]) for runs in found.values() for run in runs}
    if len(totals) > 1:
        raise SystemExit(f"bench_train: supervised tokens and updates differ: {sorted(totals)}")
    return found


def ratios(found: dict[str, list[Figures]]) -> Figures:
    """What the rounds say, by medians."""

    def median(side: str, name: str) -> float:
        return statistics.median(run[name] for run in found[side])

    out: Figures = {}
    for other in ("stock", "mended"):
        out[f"speed_over_{other}"] = median("ours", "tokens_per_s") / median(other, "tokens_per_s")
        out[f"cpu_over_{other}"] = median("ours", "tokens_per_cpu_s") / median(other, "tokens_per_cpu_s")
        out[f"peak_memory_over_{other}"] = median("ours", "peak_memory") / median(other, "peak_memory")
    names = ("tokens_per_s", "tokens_per_cpu_s", "seconds", "peak_memory", "peak_rss", "valid_loss", "train_loss")
    out["medians"] = {side: {name: median(side, name) for name in names} for side in SIDES}
    return out


def measure(name: str, data: Path, asked: argparse.Namespace, compiled: dict[str, bool]) -> Figures:
    """All figures of one data set."""
    say(f"{name}: {asked.rounds} rounds")
    job: Figures = {"data": str(data), "model": str(asked.model), "samples": asked.samples, "batch": asked.batch}
    found = rounds(job, asked.rounds, compiled)
    out = ratios(found)
    first = found["ours"][0]
    out |= {key: first[key] for key in ("samples", "longest", "tokens", "updates", "notes")}
    out["rounds"] = {side: [without_job(run) for run in runs] for side, runs in found.items()}
    if not asked.quick:
        goal = out["medians"]["stock"]["valid_loss"]
        reached = peer(**job | {"side": "ours", "task": "curve", "goal": goal, "compiled": compiled["ours"]})
        if reached["reached"]:
            out["seconds_to_stock_loss"] = reached["seconds"] / out["medians"]["stock"]["seconds"]
        out["curve"] = without_job(reached)
        say("  last turns")
        last = rounds(job | {"loss_on": "last", "samples": asked.samples // 2}, 1, compiled)
        out["last_turns"] = ratios(last)
    return out


def without_job(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if key not in ("job", "notes")}


def corpora(asked: argparse.Namespace, made: Path) -> Iterator[tuple[str, Path]]:
    """Each data set that is there, converted where its rows are ready-made text."""
    for path in asked.data:
        if not (path / "train.jsonl").is_file():
            say(f"skipped: there is no {path}")
            continue
        with (path / "train.jsonl").open(encoding="utf-8") as f:
            ready = "messages" in json.loads(f.readline())
        if not ready:
            convert(ConvertConfig(path, made / path.name, asked.model))
        yield path.name, path if ready else made / path.name


# ---- the report ----


def table(sets: dict[str, Figures]) -> str:
    """The figures as text."""
    lines = []
    for name, found in sets.items():
        lines.append(
            f"{name}: {found['samples']} samples, {found['tokens']} supervised tokens, {found['updates']} updates; "
            f"first batch equal to {found['check']['worst']:.1e}"
        )
        lines.append(f"  {'':8}{'tokens/s':>10}{'a cpu s':>10}{'seconds':>10}{'peak MB':>10}{'valid loss':>12}")
        for side, m in found["medians"].items():
            lines.append(
                f"  {side:8}{m['tokens_per_s']:10.1f}{m['tokens_per_cpu_s']:10.1f}{m['seconds']:10.2f}"
                f"{m['peak_memory'] / 1e6:10.1f}{m['valid_loss']:12.4f}"
            )
        lines.append("  " + ratio_line(found))
        if curve := found.get("curve"):
            what = f"in {curve['seconds']:.1f} s, {curve['updates']} updates" if curve["reached"] else "not reached"
            stock = found["medians"]["stock"]["seconds"]
            lines.append(f"  stock's validation loss ({curve['goal']:.4f}; it took {stock:.1f} s): ours {what}")
        if "last_turns" in found:
            lines.append("  last turns only: " + ratio_line(found["last_turns"]))
    return "\n".join(lines)


def ratio_line(found: Figures) -> str:
    return (
        f"ours {found['speed_over_stock']:.2f} × stock, {found['speed_over_mended']:.2f} × mended "
        f"(by processor time {found['cpu_over_stock']:.2f} and {found['cpu_over_mended']:.2f}), "
        f"peak {found['peak_memory_over_stock']:.3f} × stock"
    )


def record(sets: dict[str, Figures], asked: argparse.Namespace, compiled: dict[str, bool], tried: Figures) -> Figures:
    """All there is to know; the worst of the data sets at the top."""
    worst = {
        name: choose(found[name] for found in sets.values() if name in found)
        for name, choose in WORST.items()
        if any(name in found for found in sets.values())
    }
    return {
        **worst,
        "command": sys.argv,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "load": os.getloadavg(),
        "device": "cpu" if hardware.on_cpu() else "gpu",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {k: v if isinstance(v, int) else str(v) for k, v in vars(asked).items()},
        "compiled": compiled,
        "tried": tried,
        "data": sets,
    }


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every figure to this file")
    parser.add_argument("--data", type=Path, nargs="+", default=list(DATA), help="directories of rows")
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base", help="the base (default: tiny-base)")
    parser.add_argument("--samples", type=int, default=96, help="about how many of each; 0: all (default 96)")
    parser.add_argument("--batch", type=int, default=8, help="samples an update (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each that count (default 3)")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="stock's step; auto: try both")
    parser.add_argument("--quick", action="store_true", help="one round of 16 samples, the ratios only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options().parse_args(arguments)
    if asked.quick:
        asked.samples, asked.rounds = 16, 1
        asked.compile = "off" if asked.compile == "auto" and hardware.on_cpu() else asked.compile
    sets: dict[str, Figures] = {}
    chosen: tuple[dict[str, bool], Figures] | None = None
    with tempfile.TemporaryDirectory() as made:
        for name, path in corpora(asked, Path(made)):
            job = {"data": str(path), "model": str(asked.model), "batch": asked.batch}
            check = without_job(peer(**job, task="check", samples=asked.samples))
            say(f"{name}: the first batch is equal to {check['worst']:.1e}")
            if not (check["same_start"] and check["worst"] <= EQUAL):
                say(f"what is compared is not the same: {check}")
                return 1
            chosen = chosen or fastest(job, asked)
            sets[name] = measure(name, path, asked, chosen[0]) | {"check": check}
    if not sets or chosen is None:
        say("no data set is there: pass --data")
        return 1
    print(table(sets))
    if asked.json:
        asked.json.write_text(json.dumps(record(sets, asked, *chosen), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
