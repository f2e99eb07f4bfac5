#!/usr/bin/env python3
"""Does a training that is killed and resumed give the very bytes of one that was left alone?

    python scripts/prove_resume.py --json resume.json           # ten kills, with data/tiny-base
    python scripts/prove_resume.py --kills 3 --iters 24 --seed 7

Runs `punie-mlx train` once undisturbed, then again with SIGKILL (kill -9) at random moments and `--resume` after each,
until it is done. What could be lost is in it: AdamW, a warmup and a cosine, dropout, accumulated batches, validation.
The moments, by `--seed`:

    step        at any time of the training
    checkpoint  as soon as a half-written checkpoint is seen, or up to 10 ms later
    start       while the process starts: before, while or after it reads the checkpoint

Exit code 1 unless the adapters are equal byte for byte, the losses and gradient norms of all steps are equal digit for
digit, no kill lost more than `--save-every` steps, and as many kills hit as were asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = ("step", "checkpoint", "step", "start", "step", "checkpoint")  # in turn
POLL = 0.0005  # seconds
MEASURED = {"train": ("loss", "grad_norm", "learning_rate", "supervised_tokens"), "valid": ("loss",)}


@dataclass
class Kill:
    """One kill: what was aimed at, how far the process was, and from where the next one goes on."""

    moment: str
    step: int  # steps done, as metrics.jsonl has them
    saved: int  # the newest checkpoint
    half_written: bool  # whether a checkpoint was left half-written
    seconds: float  # since the process began


@dataclass
class Proof:
    """What came out."""

    kills: list[Kill] = field(default_factory=list)
    equal_adapter: bool = False
    equal_figures: bool = False
    sha256: dict[str, str] = field(default_factory=dict)
    undisturbed_seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A training by the command line, and where it leaves its traces."""

    out: Path
    options: tuple[str, ...]

    @property
    def work(self) -> Path:
        return self.out.with_name(f"{self.out.name}.training")

    def begin(self) -> subprocess.Popen[str]:
        """Start it, or go on with it where there is a checkpoint."""
        more = ["--resume"] if self.saved() else []
        command = [sys.executable, "-m", "punie_mlx", "train", "--out", str(self.out), *self.options, *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def saved(self) -> int:
        """The step of the newest checkpoint; 0: none."""
        names = [p.name for p in (self.work / "checkpoints").glob("*") if p.name.isdigit()]
        return max(map(int, names), default=0)

    def half_written(self) -> list[Path]:
        return list((self.work / "checkpoints").glob(".*.partial"))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole."""
        place = self.out if self.out.exists() else self.work
        try:
            text = (place / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def touched(self) -> int | None:
        """When metrics.jsonl was last written, in ns: a resumed run writes it anew. None where it is not there."""
        try:
            return (self.work / "metrics.jsonl").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)


def settings(asked: argparse.Namespace) -> tuple[str, ...]:
    given = {
        "model": asked.model, "data": asked.data, "iters": asked.iters, "save-every": asked.save_every, "batch-size": 2,
        "accumulate": 2, "optimizer": "adamw", "weight-decay": 0.01, "schedule": "cosine", "warmup": 5, "dropout": 0.1,
        "final-rate": 0.1, "val-batches": 4, "steps-per-eval": 7, "steps-per-report": 1, "keep": 2, "seed": 3,
    }  # fmt: skip
    return tuple(text for name, value in given.items() for text in (f"--{name}", str(value)))


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for its end. Exits where it is no good one."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"prove_resume: the training ended with {process.returncode}: {errors}")


def strike(run: Run, process: subprocess.Popen[str], moment: str, wait: float, r: Random) -> Kill | None:
    """Kill `process` at a `moment`, `wait` seconds after it could come; None if the process was done before."""
    began, before = time.perf_counter(), run.touched()
    if moment != "start":
        until(process, lambda: run.touched() not in (None, before))  # the training itself begins
    time.sleep(wait)
    if moment == "checkpoint":
        until(process, run.half_written)
        time.sleep(r.choice((0, 0, r.uniform(0, 0.01))))
    if process.poll() is not None:
        finish(process)
        return None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return Kill(moment, run.step(), run.saved(), bool(run.half_written()), time.perf_counter() - began)


def until(process: subprocess.Popen[str], seen: Any) -> None:
    """Wait until something is seen, or the process is done."""
    while process.poll() is None and not seen():
        time.sleep(POLL)


def prove(asked: argparse.Namespace, place: Path) -> Proof:
    """The undisturbed run, then the other, then the comparison."""
    proof, r = Proof(), Random(asked.seed)
    whole, killed = Run(place / "whole", settings(asked)), Run(place / "killed", settings(asked))
    began = time.perf_counter()
    finish(whole.begin())
    proof.undisturbed_seconds = time.perf_counter() - began
    trained = next(line["seconds"] for line in reversed(whole.lines()) if "seconds" in line and line["kind"] == "train")
    print(f"undisturbed: {proof.undisturbed_seconds:.1f} s, of them {trained:.1f} s of training", flush=True)
    # So that the kills together take most of the way, and no more.
    longest = {"step": trained * min(1.2 / asked.kills, 0.6), "checkpoint": trained * 0.3 / asked.kills}
    longest["start"] = proof.undisturbed_seconds - trained
    while len(proof.kills) < asked.kills:
        moment = MOMENTS[len(proof.kills) % len(MOMENTS)]
        kill = strike(killed, killed.begin(), moment, r.uniform(0, longest[moment]), r)
        if kill is None:
            proof.broken.append(f"the run was done after {len(proof.kills)} of {asked.kills} kills: raise --iters")
            break
        proof.kills.append(kill)
        half = ", a checkpoint half-written" if kill.half_written else ""
        print(
            f"kill {len(proof.kills):2}: {kill.moment:10} after {kill.seconds:5.1f} s at step {kill.step}, the newest "
            f"checkpoint is {kill.saved}{half}",
            flush=True,
        )
    if not killed.out.exists():
        finish(killed.begin())
    judge(proof, whole, killed, asked.save_every)
    return proof


def judge(proof: Proof, whole: Run, killed: Run, save_every: int) -> None:
    """Compare what both runs have made."""
    adapters = {name: run.out / "adapters.safetensors" for name, run in (("whole", whole), ("killed", killed))}
    proof.sha256 = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in adapters.items()}
    proof.equal_adapter = proof.sha256["whole"] == proof.sha256["killed"]
    proof.equal_figures = figures(whole) == figures(killed)
    if not proof.equal_adapter:
        proof.broken.append("the adapters differ")
    if not proof.equal_figures:
        proof.broken.append("losses, norms or rates of some steps differ")
    for i, kill in enumerate(proof.kills, 1):
        # A checkpoint may be half-written at its own step: the one before it counts then.
        if kill.step - kill.saved > save_every:
            proof.broken.append(f"kill {i} lost {kill.step - kill.saved} steps")


def figures(run: Run) -> list[tuple[Any, ...]]:
    """What was measured, times apart."""
    return [(n["kind"], n["step"], *(n[f] for f in MEASURED[n["kind"]])) for n in run.lines() if n["kind"] in MEASURED]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write what came out to this file")
    parser.add_argument("--kills", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--iters", type=int, default=120, help="optimizer steps (default 120)")
    parser.add_argument("--save-every", type=int, default=3, help="steps between checkpoints (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the training's stays (default 0)")
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base", help="the base (default: tiny-base)")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "phase8_xml_format", help="directory of rows")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options().parse_args(arguments)
    asked.model, asked.data = asked.model.resolve(), asked.data.resolve()
    with tempfile.TemporaryDirectory() as place:
        proof = prove(asked, Path(place))
    for problem in proof.broken:
        print(f"prove_resume: {problem}", file=sys.stderr)
    if not proof.broken:
        lost = [kill.step - kill.saved for kill in proof.kills]
        print(f"{len(proof.kills)} kills, at most {max(lost)} steps lost at one: adapters equal byte for byte")
        print(f"SHA-256 {proof.sha256['killed']}")
    if asked.json:
        versions = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "punie-mlx")}
        about = {"command": sys.argv, "machine": platform.platform(), "versions": versions, "settings": settings(asked)}
        asked.json.write_text(json.dumps(asdict(proof) | about, indent=1) + "\n")
    return 1 if proof.broken else 0


if __name__ == "__main__":
    sys.exit(main())
