#!/usr/bin/env python3
"""What our server costs, beside mlx_lm's and beside the bare engine, in one run.

    python scripts/bench_serve.py --json serve.json
    python scripts/bench_serve.py --sizes tiny --concurrency 1,8 --tokens 32 --rounds 3
    python scripts/bench_serve.py --model ~/models/Qwen3-Coder-4bit --json serve.json

A round is a batch of streamed requests sent at once, as many as the concurrency says, each with a prompt of its own
and an answer of --tokens tokens; its clock stops when the last answer is whole. Greedy. The contestants take turns
round by round, in an order that changes, so that a slow moment of the machine meets them all; medians count. Before
the rounds that count each has one that does not.

    tokens_per_s_over_stock   generated tokens a second, ours over mlx_lm.server's
    ttft_over_stock           time to the first visible text, ours over mlx_lm.server's: below 1 is faster
    over_engine               tokens a second, ours over a bare BatchGenerator loop in a process of its own
    constrained_over_free     tokens a second of ours, tool_choice "required" over the same request with no grammar
    lazy_over_free            the same for tool_choice "auto" with the grammar waiting for a call that never comes
    free_beside_constrained   decoding speed of requests without a grammar where half of the batch has one, over that
                              where none has

Without --model both servers get the models of bench_models.py. Where MLX runs on a CPU ours computes in float32
whatever the file says, since half precision and quantized weights are slow there; so that like is compared with like,
mlx_lm.server gets the same weights written in float32. What it does with the very files that ours gets is measured
too, at concurrency 1 with few tokens ("stock_same_files").
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx import hardware
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus import lexicon
from scripts import bench_engine, bench_models, load_client
from scripts.load_client import Reply, Server

PARAMETERS = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOL = {"type": "function", "function": {"name": "write", "description": "Write a text", "parameters": PARAMETERS}}
# What our server is asked for beside plain text; the prompts are the same for all three.
GRAMMARS: dict[str, dict[str, Any]] = {
    "free": {"tools": [TOOL], "constrain": "off"},
    "lazy": {"tools": [TOOL], "constrain": "auto"},
    "constrained": {"tools": [TOOL], "constrain": "auto", "tool_choice": "required"},
}
PACKAGES = ("mlx", "mlx-lm", "llguidance", "starlette", "uvicorn", "transformers", "numpy")


@dataclass(frozen=True)
class Round:
    """What one batch took: seconds for all of it; of each request the tokens, and the seconds to its first text and
    from there to its end."""

    seconds: float
    tokens: list[int]
    first: list[float]
    rest: list[float]

    @property
    def rate(self) -> float:
        return sum(self.tokens) / self.seconds


@dataclass(frozen=True)
class Contestant:
    """Runs one batch of prompts; `name` is where its rounds are kept."""

    name: str
    run: Callable[[list[str], int], Round]


# ---- contestants ----


def body(prompt: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **streamed, **fields}


def batch(server: Server, bodies: list[dict[str, Any]]) -> Round:
    """Send all at once and wait for all. Raises SystemExit where an answer is not what was asked for."""

    async def together() -> list[Reply]:
        return await asyncio.gather(*(load_client.post(server, b) for b in bodies))

    began = time.perf_counter()
    replies = asyncio.run(together())
    seconds = max(r.ended for r in replies) - began
    first, rest, tokens = [], [], []
    for reply in replies:
        if reply.status != 200 or not reply.whole or reply.first is None or b"[DONE]" not in reply.body:
            raise SystemExit(f"{server.command}: no answer, but {reply.status} {reply.body[-2000:]!r}")
        first.append(reply.first - reply.sent)
        rest.append(reply.ended - reply.first)
        tokens.append(reply.usage["completion_tokens"])
    return Round(seconds, tokens, first, rest)


def plain(name: str, server: Server) -> Contestant:
    return Contestant(name, lambda prompts, n: batch(server, [body(p, n) for p in prompts]))


def grammar(name: str, server: Server) -> Contestant:
    return Contestant(name, lambda prompts, n: batch(server, [body(p, n, **GRAMMARS[name]) for p in prompts]))


def mixed(server: Server) -> Contestant:
    """Half of the batch with a grammar; what counts is the other half, which the round holds alone."""

    def run(prompts: list[str], n: int) -> Round:
        kinds = [GRAMMARS["free" if i % 2 == 0 else "constrained"] for i in range(len(prompts))]
        taken = batch(server, [body(p, n, **kind) for p, kind in zip(prompts, kinds, strict=True)])
        return Round(taken.seconds, taken.tokens[::2], taken.first[::2], taken.rest[::2])

    return Contestant("mixed", run)


@contextmanager
def bare(model: Path) -> Generator[Contestant]:
    """The engine's loop in a process of its own, given the tokens that the servers make of the prompts."""
    tokenizer = load_tokenizer(model)
    command = [sys.executable, bench_engine.__file__, "--model", str(model)]

    def ask(process: subprocess.Popen[bytes], question: Any) -> Any:
        assert process.stdin is not None and process.stdout is not None
        if question is not None:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        return json.loads(process.stdout.readline() or b'{"seconds": null}')

    with load_client.running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as (process, stderr):

        def run(prompts: list[str], n: int) -> Round:
            chats = [[{"role": "user", "content": p}] for p in prompts]
            tokens = [list(tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=True)) for c in chats]
            found = ask(process, {"prompts": tokens, "max_tokens": n})
            if found["seconds"] is None:
                raise load_client.died(process, stderr)
            return Round(
                found["seconds"], [n] * len(prompts), found["first"], [found["seconds"] - f for f in found["first"]]
            )

        ask(process, None)  # that it is ready
        yield Contestant("engine", run)


# ---- measuring ----


def prompts(count: int, words: int, salt: str) -> list[str]:
    """Prompts of equal length that differ from their first word on."""
    r = Random(salt)
    return [" ".join(r.choices(lexicon.WORDS, k=words)) for _ in range(count)]


def measure(contestants: list[Contestant], asked: argparse.Namespace, concurrency: int, label: str) -> dict[str, Any]:
    """All rounds of all contestants at one concurrency: {name: [round, …]}."""
    rounds: dict[str, list[Round]] = {c.name: [] for c in contestants if concurrency > 1 or c.name != "mixed"}
    turns = [c for c in contestants if c.name in rounds]
    for turn in range(asked.rounds + 1):
        for contestant in turns[turn % len(turns) :] + turns[: turn % len(turns)]:
            # Ours would have the prompts of the plain round in its cache when one with a grammar came with the same.
            salt = contestant.name if contestant.name not in ("ours", "stock", "engine") else "plain"
            taken = contestant.run(prompts(concurrency, asked.words, f"{salt} {concurrency} {turn}"), asked.tokens)
            if turn:
                rounds[contestant.name].append(taken)
        print(f"{label}: {concurrency} at once, round {turn} of {asked.rounds}", file=sys.stderr, flush=True)
    return {name: [asdict(r) for r in taken] for name, taken in rounds.items()}


def one_size(files: Path, twin: Path, asked: argparse.Namespace, label: str) -> dict[str, Any]:
    """Everything about one model: `files` is what ours and the bare loop get, `twin` what mlx_lm.server gets."""
    with ExitStack() as stack:
        our = stack.enter_context(load_client.ours(files))
        other = stack.enter_context(load_client.stock(twin))
        engine = stack.enter_context(bare(files))
        contestants = [plain("ours", our), plain("stock", other), engine]
        if not asked.no_grammar:
            contestants += [*(grammar(name, our) for name in GRAMMARS), mixed(our)]
        raw = {str(c): measure(contestants, asked, c, label) for c in asked.concurrency}
        commands = {"ours": our.command, "stock": other.command}
    found = {"model": str(files), "stock_model": str(twin), "commands": commands, **ratios(raw), "rounds": raw}
    if twin != files and asked.same_files:
        found["stock_same_files"] = same_files(files, asked)
        print(f"{label}: mlx_lm.server with the files of ours is measured", file=sys.stderr, flush=True)
    return found


def same_files(files: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """mlx_lm.server with the files that ours gets: one request at a time, few tokens."""
    with load_client.stock(files) as other:
        contestant = plain("stock", other)
        few = max(2, asked.tokens // 8)
        taken = [contestant.run(prompts(1, asked.words, f"same {i}"), few) for i in range(3)][1:]
    return {"command": other.command, "tokens": few, "tokens_per_s": rate(taken), "ttft": ttft(taken)}


def rate(rounds: list[Round]) -> float:
    return statistics.median(r.rate for r in rounds)


def ttft(rounds: list[Round]) -> float:
    return statistics.median(first for r in rounds for first in r.first)


def decoding(rounds: list[Round]) -> float:
    """Tokens a second of one request, from its first text on."""
    speeds = [(n - 1) / t for r in rounds for n, t in zip(r.tokens, r.rest, strict=True) if t > 0]
    return statistics.median(speeds)


def ratios(raw: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The figures and ratios, each by concurrency."""
    found: dict[str, dict[str, Any]] = {"tokens_per_s": {}, "ttft": {}}

    def keep(name: str, concurrency: str, over: float, under: float) -> None:
        found.setdefault(name, {})[concurrency] = over / under

    for concurrency, kept in raw.items():
        rounds = {name: [Round(**r) for r in taken] for name, taken in kept.items()}
        found["tokens_per_s"][concurrency] = {name: rate(taken) for name, taken in rounds.items() if name != "mixed"}
        found["ttft"][concurrency] = {name: ttft(taken) for name, taken in rounds.items()}
        speed = found["tokens_per_s"][concurrency]
        keep("tokens_per_s_over_stock", concurrency, speed["ours"], speed["stock"])
        keep("ttft_over_stock", concurrency, ttft(rounds["ours"]), ttft(rounds["stock"]))
        keep("over_engine", concurrency, speed["ours"], speed["engine"])
        keep("stock_over_engine", concurrency, speed["stock"], speed["engine"])
        if "free" in rounds:
            keep("constrained_over_free", concurrency, speed["constrained"], speed["free"])
            keep("lazy_over_free", concurrency, speed["lazy"], speed["free"])
        if "mixed" in rounds:
            keep("free_beside_constrained", concurrency, decoding(rounds["mixed"]), decoding(rounds["free"]))
    return found


def pairs(asked: argparse.Namespace, made: Path) -> Iterator[tuple[str, Path, Path]]:
    """Each model to measure: its label, the files for ours, the files for mlx_lm.server."""
    if asked.model:
        yield asked.model.name, asked.model, asked.stock_model or asked.model
        return
    files = {"tiny": "tiny-float16", "larger": "larger-4bit"}
    for size in asked.sizes.split(","):
        names = [files[size], f"{size}-float32"] if hardware.on_cpu() else [files[size]]
        dtype = "float32" if hardware.on_cpu() else "bfloat16"
        paths = bench_models.make(made, names, hidden=asked.hidden, layers=asked.layers, dtype=dtype)
        yield size, paths[names[0]], paths[names[-1]]


# ---- the report ----

ORDER = (
    "tokens_per_s_over_stock", "ttft_over_stock", "over_engine", "stock_over_engine", "constrained_over_free",
    "lazy_over_free", "free_beside_constrained",
)  # fmt: skip


def table(sizes: dict[str, Any]) -> str:
    lines = []
    for label, found in sizes.items():
        counts = list(found["rounds"])
        lines.append(f"{label:28}" + "".join(f"{'at ' + c:>10}" for c in counts))
        for name in ORDER:
            values = found.get(name, {})
            lines.append(f"  {name:26}" + "".join(f"{values[c]:10.3f}" if c in values else " " * 10 for c in counts))
        for name in ("ours", "stock", "engine"):
            speeds = (found["tokens_per_s"][c][name] for c in counts)
            lines.append(f"  tokens/s, {name:16}" + "".join(f"{speed:10.1f}" for speed in speeds))
        if same := found.get("stock_same_files"):
            lines.append(f"  tokens/s, stock with the same files, at 1: {same['tokens_per_s']:.1f}")
    return "\n".join(lines)


def record(sizes: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """All there is to know; the ratios of the last (largest) model are at the top."""
    last = list(sizes.values())[-1]
    return {
        **{name: last[name] for name in ORDER if name in last},
        "command": sys.argv,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "device": "cpu" if hardware.on_cpu() else "gpu",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()},
        "models": sizes,
    }


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every figure to this file")
    parser.add_argument("--sizes", default="tiny,larger", help="which made models (default: tiny,larger)")
    parser.add_argument("--model", type=Path, help="measure with this model directory instead")
    parser.add_argument("--stock-model", type=Path, help="with --model: what mlx_lm.server gets (default: the same)")
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32], metavar="N,N", help="default 1,8,32")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--words", type=int, default=48, help="words of each prompt (default 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each that count (default 5)")
    parser.add_argument("--hidden", type=int, default=768, help="width of the larger model (default 768)")
    parser.add_argument("--layers", type=int, default=12, help="its layers (default 12)")
    parser.add_argument("--no-grammar", action="store_true", help="leave out the rounds with tools")
    parser.add_argument("--same-files", action=argparse.BooleanOptionalAction, default=True, help="stock_same_files")
    return parser


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> int:
    asked = options().parse_args()
    with tempfile.TemporaryDirectory() as made:
        sizes = {}
        for label, files, twin in pairs(asked, Path(made)):
            sizes[label] = one_size(files, twin, asked, label)
    print(table(sizes))
    if asked.json:
        asked.json.write_text(json.dumps(record(sizes, asked), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
