#!/usr/bin/env python3
"""A long training over generated rows: does its memory stay flat, and does every row come?

    python scripts/soak_train.py --json soak.json                  # 20,000 rows once: some 40,000 samples
    python scripts/soak_train.py --rows 2000 --minutes 5
    python scripts/soak_train.py --rows 200 --iters 20

Rows of the example corpus (`corpus/generate.py`), with other questions than it holds, their calls structured, go
through `punie-mlx train` as a user starts it, with data/tiny-base. While it trains, the resident memory of the process
is read twice a second, and MLX's own figures from its metrics.jsonl. The time of the training is cut in quarters; the
first fills caches, and the median of the last must not be more than 1.05 times that of the second.

Exit code 1 if memory grew, if the training did not end well, or (without --iters and --minutes) if it did not see every
sample once. --minutes stops it as a system does (SIGTERM): it must save and leave.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx.corpus import generate
from punie_mlx.corpus.rows import write_rows
from punie_mlx.corpus.skills import Ask
from punie_mlx.corpus.world import TOOLS

ROOT = Path(__file__).resolve().parent.parent
GROWTH = 1.05
PERIOD = 0.5  # seconds between two looks at the memory
VALID = 200  # rows
PATIENCE = 120  # seconds that a stopped training has to save and leave
Point = tuple[float, float]  # seconds since the start, bytes


# ---- the rows ----


def structured(asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """The calls as `tool_calls`, and their results as tool messages."""
    calls = [{"type": "function", "function": {"name": a.tool, "arguments": a.arguments}} for a in asks]
    results = [{"role": "tool", "content": a.result} for a in asks]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def rows(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` rows of `split`, as `corpus.generate.rows` makes them but for the spelling; a question may come again."""
    r, sets = Random(f"soak {split} {seed}"), generate.tool_sets(seed)
    for n in range(count):
        offered, calls = sets[n % len(sets)], n % 10 >= 10 * generate.CALL_FREE
        messages: list[dict[str, Any]] = []
        for _ in range(2 if r.random() < 0.15 else 1):
            made = generate.exchange(r, offered, split, generate.CORPUS, calls=calls)
            messages += generate.messages_of(made, structured)
        yield {"messages": messages, "tools": [TOOLS[name] for name in offered]}


# ---- the training, watched ----


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return 0
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return int(found or 0) * 1024


def command(asked: argparse.Namespace, data: Path, out: Path) -> list[str]:
    length = ["--iters", str(asked.iters)] if asked.iters else ["--epochs", "1"]
    given = {
        "model": asked.model, "data": data, "out": out, "batch-size": asked.batch, "steps-per-report": 10,
        "steps-per-eval": 500, "save-every": 200,
    }  # fmt: skip
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "punie_mlx", "train", "--quiet", *options, *length]


def watch(process: subprocess.Popen[str], metrics: Path, limit: float) -> tuple[list[Point], bool]:
    """Its resident memory from the first step to the last; whether it was stopped after `limit` seconds."""
    points: list[Point] = []
    began, stopped = time.perf_counter(), False
    while process.poll() is None:
        now = time.perf_counter() - began
        if metrics.exists() and not stopped:
            points.append((now, resident(process.pid)))
        if now > limit and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
        if now > limit + PATIENCE:
            process.kill()
        time.sleep(PERIOD)
    return points, stopped


def quarters(points: Sequence[Point]) -> list[float | None]:
    """The median of each quarter of the time; None where nothing was measured in it."""
    if not points:
        return []
    first, last = points[0][0], points[-1][0]
    width = (last - first) / 4 or 1.0
    parts: list[list[float]] = [[], [], [], []]
    for at, value in points:
        parts[min(int((at - first) / width), 3)].append(value)
    return [statistics.median(part) if part else None for part in parts]


def lines(path: Path, kind: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return [line for line in found if line["kind"] == kind]


def soak(asked: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Generate, train, and say what happened."""
    data, out = place / "rows", place / "adapter"
    data.mkdir()
    turns = write_rows(data / "train.jsonl", rows("train", asked.rows, asked.seed))
    write_rows(data / "valid.jsonl", rows("valid", min(VALID, asked.rows), asked.seed))
    print(f"{turns} rows generated", flush=True)
    work = out.with_name(f"{out.name}.training")
    began = time.perf_counter()
    process = subprocess.Popen(command(asked, data, out), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    points, stopped = watch(process, work / "metrics.jsonl", asked.minutes * 60 if asked.minutes else math.inf)
    said, _ = process.communicate()
    trained = lines((out if out.exists() else work) / "metrics.jsonl", "train")
    found: dict[str, Any] = {
        "rows": asked.rows, "exit_code": process.returncode, "stopped": stopped, "said": said,
        "seconds": time.perf_counter() - began, "resident_quarters": quarters(points),
    }  # fmt: skip
    for name in ("active_memory", "peak_memory"):
        found[f"{name}_quarters"] = quarters([(line["seconds"], line[name]) for line in trained])
    manifest = json.loads((out / "manifest.json").read_text()) if out.exists() else {}
    last = trained[-1] if trained else {"step": 0, "epoch": 0.0, "supervised_tokens": 0, "loss": None}
    found |= {
        "samples": manifest.get("samples"), "dropped": manifest.get("dropped"), "steps": last["step"],
        "epoch": last["epoch"], "supervised_tokens": last["supervised_tokens"], "loss": last["loss"],
        "valid_losses": [line["loss"] for line in lines((out if out.exists() else work) / "metrics.jsonl", "valid")],
        "tokens_per_second": manifest.get("tokens_per_second"), "resident_points": points,
    }  # fmt: skip
    found["growth"] = growth(found["resident_quarters"])
    found["broken"] = verdict(found, whole=not (asked.iters or asked.minutes))
    return found


def growth(parts: Sequence[float | None]) -> float | None:
    """The last quarter over the second; None where there is too little to tell."""
    return parts[3] / parts[1] if len(parts) == 4 and parts[1] and parts[3] else None


def verdict(found: dict[str, Any], *, whole: bool) -> list[str]:
    """What is wrong; empty if nothing is."""
    broken = []
    wanted = 128 + signal.SIGTERM if found["stopped"] else 0
    if found["exit_code"] != wanted:
        broken.append(f"the exit code is {found['exit_code']} and not {wanted}")
    if whole and not math.isclose(found["epoch"], 1.0):
        broken.append(f"only {found['epoch']:.1%} of the samples were trained on")
    if found["dropped"]:
        broken.append(f"samples were dropped: {found['dropped']}")
    if found["growth"] is None:
        broken.append("there was too little time to measure memory")
    elif found["growth"] > GROWTH:
        broken.append(f"memory grew {found['growth']:.3f} times from the second quarter to the last")
    return broken


def report(found: dict[str, Any]) -> str:
    def megabytes(name: str) -> str:
        return "  ".join("       -" if v is None else f"{v / 1e6:8.1f}" for v in found[f"{name}_quarters"])

    growth = f"{found['growth']:.3f}" if found["growth"] is not None else "-"
    return "\n".join(
        [
            f"{found['rows']} rows, {found['samples']} samples: {found['steps']} steps in {found['seconds']:.0f} s, "
            f"{found['epoch']:.3f} epochs, {found['supervised_tokens']} supervised tokens, exit code "
            f"{found['exit_code']}",
            f"resident MB by quarter    {megabytes('resident')}   last over second: {growth}",
            f"MLX active MB by quarter  {megabytes('active_memory')}",
            f"MLX peak MB by quarter    {megabytes('peak_memory')}",
            f"validation losses: {', '.join(f'{loss:.4f}' for loss in found['valid_losses'])}",
        ]
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write what happened to this file")
    parser.add_argument("--rows", type=int, default=20_000, help="rows to generate (default 20000)")
    parser.add_argument("--iters", type=int, default=0, help="steps, in the place of one pass over the rows")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop the training after so long")
    parser.add_argument("--batch", type=int, default=8, help="samples a step (default 8)")
    parser.add_argument("--seed", type=int, default=1, help="of the rows (default 1)")
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base", help="the base (default: tiny-base)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options().parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        found = soak(asked, Path(place))
    print(report(found))
    for problem in found["broken"]:
        print(f"soak_train: {problem}", file=sys.stderr)
    if asked.json:
        versions = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "punie-mlx")}
        about = {"command": sys.argv, "machine": platform.platform(), "cores": os.cpu_count(), "versions": versions}
        asked.json.write_text(json.dumps(found | about, indent=1) + "\n")
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
