#!/usr/bin/env python3
"""Prove that calls in the middle of a conversation are learned: ours, stock `mlx_lm.lora --mask-prompt`, the base.

    python scripts/prove_middle_turns.py --json proof.json
    python scripts/prove_middle_turns.py --quick            # a small one, which shows the road and proves little

Every row is a conversation of the example corpus that ends on a plain answer; its calls, if it has any, stand before
that: user, call, result, answer. Both sides are the commands that users type, in processes of their own, on the same
rows and the same base (in float32, which is the fast format on a CPU): the same steps, batch, Adam, rates and LoRA.
Ours has a loss on every assistant turn; `--mask-prompt` has one on the last message of a row, so that none of its steps
learns a call.

Then all three are asked the questions of held-out rows (no question of the suite, or of training, is among them),
greedily; the first turn is read as the server reads it, and is right where it holds exactly the calls of the row, with
their arguments. The base writes its calls as fences, which no server reads; how many of those would be right is told,
too: so much the base knows, and only the format is left to learn. The exit code is 0 where at least `--goal` of the
calls are right with ours, and with stock no more than with the base (McNemar's exact test, p < 0.05).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# isort: off
import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
import mlx.core as mx

# isort: on
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from rich.console import Console
from rich.table import Table

from punie_mlx import hardware, identity, weights
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.convert import ConvertConfig, convert
from punie_mlx.corpus.generate import generate
from punie_mlx.corpus.rows import Row, read_split
from punie_mlx.corpus.suite import Case, Suite
from punie_mlx.evals.stats import mcnemar, wilson
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import read
from punie_mlx.train.select import Turn, is_right, prepare

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("base", "stock", "ours")
KNOWN = "base, its fences read"
LORA = {"rank": 8, "scale": 20.0, "dropout": 0.0}  # the defaults of both
LENGTH = 2048


@dataclass(frozen=True)
class Budget:
    """What both sides are given."""

    iters: int
    batch: int
    rate: float
    layers: int
    seed: int


@dataclass
class Side:
    """How one of the three did on the held-out rows."""

    name: str
    calls_right: int = 0
    calls: int = 0
    direct_right: int = 0
    direct: int = 0
    interval: tuple[float, float] = (0.0, 1.0)  # Wilson, 95%, of the calls
    supervised_tokens: int = 0  # that were trained on
    train_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)  # some of the turns that should have been calls

    @property
    def accuracy(self) -> float:
        return self.calls_right / self.calls


# ---- rows, cases, base ----


def make_rows(work: Path, sizes: dict[str, int], seed: int) -> Path:
    """The example corpus, converted; checked to hold calls in middle turns only."""
    generate(work / "fences", seed=seed, sizes=sizes)
    convert(ConvertConfig(work / "fences", work / "rows", ROOT / "data" / "tiny-base"))
    for name in sizes:
        for row in read_split(work / "rows", name):
            last = row.messages[-1]
            if last["role"] != "assistant" or last.get("tool_calls"):
                raise SystemExit(f"{row.where}: this row ends on something else than a plain answer")
    return work / "rows"


def cases_of(rows: Sequence[Row]) -> list[Case]:
    """The first question of each row, and the calls that it wants: all of them in the first turn."""
    cases = []
    for number, row in enumerate(rows):
        question, answer = row.messages[0], row.messages[1]
        calls = [c["function"] for c in answer.get("tool_calls") or ()]
        expected = [{"name": c["name"], "arguments": c["arguments"]} for c in calls]
        content = {
            "id": f"row-{number}", "category": "calls" if calls else "direct", "query": question["content"],
            "tools": row.tools, "expect": {"calls": expected, "turns": "first"},
        }  # fmt: skip
        cases.append(Case.model_validate(content))
    return cases


def in_float32(model: Path, out: Path) -> Path:
    """A copy of `model` with its weights in float32."""
    shutil.copytree(model, out)
    network = weights.load_lazily(model)
    network.set_dtype(mx.float32)
    flat: Any = tree_flatten(network.parameters())
    mx.save_safetensors(str(out / "model.safetensors"), dict(flat), metadata={"format": "mlx"})
    return out


# ---- both sides ----


def train_ours(base: Path, data: Path, out: Path, budget: Budget) -> int:
    """`punie-mlx train`; the supervised tokens that it trained on."""
    settings = {
        "iters": budget.iters, "batch_size": budget.batch, "learning_rate": budget.rate, "schedule": "cosine",
        "layers": budget.layers, **LORA, "max_seq_length": LENGTH, "seed": budget.seed, "clip_norm": 0.0,
        "val_batches": 1, "steps_per_eval": budget.iters,
    }  # fmt: skip
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    places = ["--model", str(base), "--data", str(data), "--out", str(out)]
    run("-m", "punie_mlx", "train", "--recipe", str(recipe), *places)
    return (identity.read_manifest(out) or {}).get("trained_tokens", 0)


def train_stock(base: Path, data: Path, out: Path, budget: Budget) -> int:
    """`mlx_lm lora --mask-prompt`, unmodified; the supervised tokens that it trained on."""
    settings = {
        "iters": budget.iters, "batch_size": budget.batch, "learning_rate": budget.rate,
        "lr_schedule": {"name": "cosine_decay", "arguments": [budget.rate, budget.iters]},
        "num_layers": budget.layers, "lora_parameters": LORA, "max_seq_length": LENGTH, "seed": budget.seed,
        "val_batches": 1, "steps_per_eval": budget.iters, "steps_per_report": budget.iters, "save_every": budget.iters,
    }  # fmt: skip
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps(settings))
    places = ["--model", str(base), "--data", str(data), "--adapter-path", str(out)]
    said = run("-m", "mlx_lm", "lora", "--train", "--mask-prompt", "--config", str(recipe), *places, fast_blas=True)
    return trained_tokens(said)


def trained_tokens(said: str) -> int:
    """What stock's last line of progress tells, in thousands with one decimal."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    found = re.findall(r"[▼▲]\s+[\d,]+\s+([\d.]+)k", plain)
    return round(float(found[-1]) * 1000) if found else 0


def run(*command: str, fast_blas: bool = False) -> str:
    """A Python process; its output. Ends the script where it fails."""
    environment = dict(os.environ)
    if fast_blas and sys.platform == "linux":
        # What `import punie_mlx` does in our processes: without it stock's would take twenty times as long.
        environment["LD_PRELOAD"] = hardware.OPENBLAS
    if hardware.on_cpu():
        environment["MLX_DISABLE_COMPILE"] = "1"  # else MLX runs a C++ compiler for each shape
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def answers(base: Path, adapter: Path | None, cases: Sequence[Case], max_tokens: int) -> list[Turn]:
    """What the base, under `adapter`, says to each case."""
    network = weights.load_lazily(base)
    if adapter is not None:
        network = load_adapters(network, str(adapter))
    if hardware.on_cpu():
        mx.disable_compile()
        weights.compute_in_float32(network)
    suite = Suite(Path("held-out rows"), tuple(cases), "")
    return prepare(load_tokenizer(base), suite, cases=len(cases), max_tokens=max_tokens).turns(network)


def fences_read(turns: Sequence[Turn]) -> list[Turn]:
    """`turns` of the base, as a reader of its own format sees them."""

    def right(turn: Turn) -> bool:
        tools = [Tool.from_openai(t) for t in turn.case.tools]
        return is_right(turn.case, read(turn.text, "json_fence", tools, finish=turn.finish))

    return [replace(turn, right=right(turn)) for turn in turns]


def judged(name: str, turns: Sequence[Turn], tokens: int, seconds: float) -> Side:
    side = Side(name, supervised_tokens=tokens, train_seconds=round(seconds, 1))
    calls, direct = ([t for t in turns if bool(t.case.expect.calls) is wanted] for wanted in (True, False))
    side.calls_right, side.calls = sum(t.right for t in calls), len(calls)
    side.direct_right, side.direct = sum(t.right for t in direct), len(direct)
    side.interval = wilson(side.calls_right, side.calls)
    side.wrong = [f"{t.case.query} -> {t.text[:200]}" for t in calls if not t.right][:10]
    return side


def prove(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The whole proof; its figures."""
    budget = Budget(options.iters, options.batch, options.rate, options.layers, options.seed)
    data = make_rows(work, {"train": options.rows, "valid": 20, "test": options.cases}, options.seed)
    cases = cases_of(read_split(data, "test"))
    base = in_float32(options.model, work / "base")
    shutil.move(data / "test.jsonl", work / "held-out.jsonl")
    trainers = {"stock": train_stock, "ours": train_ours}
    turns: dict[str, list[Turn]] = {}
    sides: dict[str, Side] = {}
    for name in SIDES:
        began, tokens, adapter = time.perf_counter(), 0, None
        if name in trainers:
            adapter = work / name
            tokens = trainers[name](base, data, adapter, budget)
        seconds = time.perf_counter() - began if adapter else 0.0
        turns[name] = answers(base, adapter, cases, options.max_tokens)
        sides[name] = judged(name, turns[name], tokens, seconds)
        if name == "base":
            sides[KNOWN] = judged(KNOWN, fences_read(turns[name]), 0, 0.0)
        print(f"{name}: {sides[name].calls_right} of {sides[name].calls} calls", file=sys.stderr)

    def versus(one: str, two: str) -> dict[str, Any]:
        first, second = ([t.right for t in turns[n] if t.case.expect.calls] for n in (one, two))
        return asdict(mcnemar(first, second))

    return {
        "sides": {name: {**asdict(side), "accuracy": round(side.accuracy, 4)} for name, side in sides.items()},
        "ours_over_stock": versus("ours", "stock"),
        "stock_over_base": versus("stock", "base"),
        "rows": options.rows,
        "budget": asdict(budget),
        "goal": options.goal,
        "versions": identity.versions(),
        "command": sys.argv,
    }


def proven(figures: dict[str, Any]) -> bool:
    """Whether ours has learned the calls, and stock has not."""
    ours, stock = figures["sides"]["ours"], figures["stock_over_base"]
    stock_learned = stock["only_first"] > stock["only_second"] and stock["p"] < 0.05
    return ours["accuracy"] >= figures["goal"] and not stock_learned


def show(figures: dict[str, Any]) -> None:
    table = Table(title="first turns of held-out rows", caption="accuracy of calls with its 95% Wilson interval")
    for title in ("side", "calls", "accuracy", "direct answers", "trained tokens", "training"):
        table.add_column(title, justify="left" if title == "side" else "right")
    for name, side in figures["sides"].items():
        low, high = side["interval"]
        table.add_row(
            name, f"{side['calls_right']}/{side['calls']}", f"{side['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
            f"{side['direct_right']}/{side['direct']}", f"{side['supervised_tokens']:,}", f"{side['train_seconds']} s",
        )  # fmt: skip
    Console(width=110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base")
    parser.add_argument("--rows", type=int, default=1000, help="rows of training")
    parser.add_argument("--cases", type=int, default=700, help="held-out rows; 7 of 10 hold calls")
    parser.add_argument("--iters", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4, help="rows (stock) or assistant turns (ours) in a step")
    parser.add_argument("--rate", type=float, default=5e-5, help="the highest rate; it falls as a cosine")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=float, default=0.95, help="share of the calls that ours must get right")
    parser.add_argument("--quick", action="store_true", help="few rows, steps and cases, and a low goal")
    parser.add_argument("--work", type=Path, help="keep rows and adapters here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.cases, options.iters, options.rate, options.goal = 60, 30, 25, 1e-4, 0.5
    with tempfile.TemporaryDirectory() as folder:
        figures = prove(options, options.work or Path(folder))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    show(figures)
    return 0 if proven(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
