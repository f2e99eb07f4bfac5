#!/usr/bin/env python3
"""What reading a long string argument costs, beside other readers, in one run.

    python scripts/bench_parse.py --json bench.json
    python scripts/bench_parse.py --formats hermes,glm --sizes 1000,100000 --repeat 3 --no-limits

A call with one string argument of 1 KB to 1 MB arrives at 4 characters a chunk. Each reader reads it --repeat times;
the repetitions of all readers take turns, so that a slow moment of the machine meets them all, and the median counts.
The argument is text of short lines; in JSON its line breaks are escapes. Columns:

    ns/char   cost of a character of the call, at the smallest and at the largest size
    ratio     largest cost over smallest, over all sizes: 1.0 is linear
    µs/chunk  cost of a chunk at the largest size
    streams   whether the argument is given out while it arrives

The others: mlx_lm as its server uses it (TextStateMachine, then the parser when the call is over), vLLM's streaming
engine and SGLang's detectors where they can be imported; else the row says so. A reader whose cost grows is stopped
before it takes minutes: sizes that it would need more than --patience seconds for are left out.

Limits, for our formats that a server trusts: ratio ≤ 1.3, ≤ 3 µs a chunk. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import CallFinished, Tool, ToolCall
from punie_mlx.toolcalls.stream import StreamParser

SIZES = (1_000, 10_000, 100_000, 1_000_000)
CHUNK = 4
RATIO, MICROSECONDS = 1.3, 3.0
LINE = "The quick brown fox jumps over the lazy dog; 0123456789 (a, b) = c.\n"
TOOL = Tool("write", parameters={"type": "object", "properties": {"text": {"type": "string"}}})
# One reading of chunks: the argument that came out, and whether any of it did before the last chunk.
Read = Callable[[Sequence[str]], tuple[str, bool]]


class NotInstalled(Exception):
    """A reader that is not here; says what was missing."""


@dataclass
class Row:
    """One reader: its costs by size of the argument, in seconds for each character."""

    reader: str
    format: str
    costs: dict[int, float] = field(default_factory=dict)
    chunk_cost: float = 0.0
    streams: bool = False
    missing: str = ""
    left_out: list[int] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return max(self.costs.values()) / min(self.costs.values()) if self.costs else 0.0


def argument(size: int) -> str:
    return (LINE * (size // len(LINE) + 1))[:size]


def chunks(format: str, size: int) -> list[str]:
    text = formats.render(format, [ToolCall("write", {"text": argument(size)})])
    return [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]


# ---- readers ----


def ours(format: str) -> Read:
    """Our own, with every event looked at."""

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        parser, seen, call = StreamParser(format, [TOOL]), 0, None
        for piece in pieces:
            for event in parser.feed(piece):
                seen += 1
                if type(event) is CallFinished:
                    call = event.call
        for event in parser.finish("stop"):
            if type(event) is CallFinished:
                call = event.call
        return (call.arguments["text"] if call else ""), seen > 10

    return read


def mlx_lm(module: str) -> Read:
    """mlx_lm as its server does it: the machine cuts out the text of the call, the parser reads it at its end."""
    machine, parser = need("mlx_lm.generate").TextStateMachine, need(f"mlx_lm.tool_parsers.{module}")
    transitions = {"normal": [(parser.tool_call_start, "tool")], "tool": [(parser.tool_call_end, "normal")]}
    tools = [TOOL.to_openai()]

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        state, text = machine(transitions).make_state("normal"), ""
        for piece in pieces:
            state, segments = machine.split(state, piece)
            for name, part in segments:
                if name == "tool":
                    text += part
        return parser.parse_tool_call(text, tools)["arguments"]["text"], False

    return read


class VllmTokenizer:
    """As much of a tokenizer as vLLM's parsers ask for."""

    eos_token_id = None
    vocabulary: ClassVar = {m: i for i, m in enumerate(("<think>", "</think>", "<tool_call>", "</tool_call>"))}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def vllm_engine() -> Read:
    """vLLM's streaming engine for Qwen3-Coder as its server runs it: text in, deltas of JSON arguments out."""
    parser = need("vllm.parser.qwen3").Qwen3Parser
    protocol = need("vllm.entrypoints.openai.chat_completion.protocol")
    asked = protocol.ChatCompletionRequest(model="m", messages=[], tools=[TOOL.to_openai()])

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        reader, out = parser(VllmTokenizer(), asked.tools, chat_template_kwargs={"enable_thinking": False}), []
        for i, piece in enumerate(pieces, 1):
            delta = reader.parse_delta(piece, [], asked, finished=i == len(pieces))
            out += [c.function.arguments or "" for c in (delta.tool_calls if delta else ()) if c.function]
        return json.loads("".join(out))["text"], len(out) > 10

    return read


def vllm_lexer() -> Read:
    """The part of that engine that cuts the text into raw pieces: no JSON, no types."""
    engine = need("vllm.parser.engine.streaming_parser_engine").StreamingParserEngine
    config = need("vllm.parser.qwen3").qwen3_config

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        reader, out = engine(config(thinking=False), VllmTokenizer()), []
        for piece in pieces:
            out += [str(event.value) for event in reader.feed(piece, [])]
        return "".join(out), len(out) > 10

    return read


def vllm_tool_parser(path: str, name: str) -> Read:
    """One of vLLM's older parsers, which look at the whole text again with every chunk."""
    parser = getattr(need(path), name)
    request = need("vllm.entrypoints.openai.chat_completion.protocol").ChatCompletionRequest

    asked = request(model="m", messages=[], tools=[TOOL.to_openai()])

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        reader, before, out = parser(VllmTokenizer()), "", []
        for piece in pieces:
            now = before + piece
            delta = reader.extract_tool_calls_streaming(before, now, piece, [], [], [], asked)
            out += [c.function.arguments or "" for c in (delta.tool_calls if delta else ()) if c.function]
            before = now
        return "".join(out), len(out) > 10

    return read


def sglang(module: str, name: str) -> Read:
    """One of SGLang's detectors."""
    detector = getattr(need(f"sglang.srt.function_call.{module}"), name)
    tool = need("sglang.srt.entrypoints.openai.protocol").Tool(**TOOL.to_openai())

    def read(pieces: Sequence[str]) -> tuple[str, bool]:
        reader, out = detector(), []
        for piece in pieces:
            out += [call.parameters for call in reader.parse_streaming_increment(piece, [tool]).calls]
        return "".join(out), len(out) > 10

    return read


def need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise NotInstalled(f"{module} cannot be imported: {e}") from e


OTHERS: tuple[tuple[str, str, Callable[[], Read]], ...] = (
    ("mlx_lm", "qwen3_coder", lambda: mlx_lm("qwen3_coder")),
    ("mlx_lm", "hermes", lambda: mlx_lm("json_tools")),
    ("vllm engine", "qwen3_coder", vllm_engine),
    ("vllm lexer alone", "qwen3_coder", vllm_lexer),
    (
        "vllm tool parser",
        "hermes",
        lambda: vllm_tool_parser("vllm.tool_parsers.hermes_tool_parser", "Hermes2ProToolParser"),
    ),
    ("sglang", "qwen3_coder", lambda: sglang("qwen3_coder_detector", "Qwen3CoderDetector")),
    ("sglang", "hermes", lambda: sglang("qwen25_detector", "Qwen25Detector")),
)


# ---- measuring ----


def measure(names: Sequence[str], sizes: Sequence[int], repeat: int, patience: float) -> list[Row]:
    """A row for each of our formats and for each other reader, their repetitions interleaved."""
    rows, readers = [], []
    makers = [("punie-mlx", name, lambda name=name: ours(name)) for name in names]
    for reader, format, make in (*makers, *OTHERS):
        row = Row(reader, format)
        rows.append(row)
        try:
            readers.append((row, make()))
        except (NotInstalled, AttributeError) as e:
            row.missing = f"not installed ({e})"
    for size in sizes:
        texts = {format: chunks(format, size) for format in {row.format for row, _ in readers}}
        times: dict[str, list[float]] = {}
        for turn in range(repeat):
            print(f"{size} characters, turn {turn + 1} of {repeat}", file=sys.stderr)
            for row, read in readers:
                if expected(row, size) > patience:
                    row.left_out += [size] if size not in row.left_out else []
                else:
                    times.setdefault(f"{row.reader} {row.format}", []).append(once(row, read, texts[row.format], size))
        for row, _ in readers:
            if taken := times.get(f"{row.reader} {row.format}"):
                row.costs[size] = statistics.median(taken) / sum(map(len, texts[row.format]))
                row.chunk_cost = statistics.median(taken) / len(texts[row.format])
    return rows


def once(row: Row, read: Read, pieces: Sequence[str], size: int) -> float:
    """Seconds for one reading; short texts are read several times over, and the mean counts."""
    rounds = max(1, 20_000 // size)
    gc.collect()
    began = time.perf_counter()
    for _ in range(rounds):
        value, row.streams = read(pieces)
    taken = (time.perf_counter() - began) / rounds
    if row.reader in ("punie-mlx", "mlx_lm", "vllm engine") and value != argument(size):
        raise SystemExit(f"{row.reader} {row.format}: the argument that was read is another one")
    return taken


def expected(row: Row, size: int) -> float:
    """Seconds that a text of `size` will take, if the cost of a character goes on as it did."""
    known = sorted(row.costs)
    if not known:
        return 0.0
    growth = row.costs[known[-1]] / row.costs[known[-2]] if len(known) > 1 else 1.0
    return row.costs[known[-1]] * max(1.0, growth) * size


def broken(rows: Sequence[Row]) -> list[str]:
    """The limits that do not hold."""
    found = []
    for row in rows:
        if row.reader == "punie-mlx" and formats.get(row.format).native:
            if row.ratio > RATIO:
                found.append(
                    f"{row.format}: the cost of a character differs {row.ratio:.2f}-fold between sizes (limit {RATIO})"
                )
            if row.chunk_cost * 1e6 > MICROSECONDS:
                found.append(f"{row.format}: {row.chunk_cost * 1e6:.2f} µs a chunk (limit {MICROSECONDS})")
            if not row.streams:
                found.append(f"{row.format}: the argument does not stream")
    return found


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'reader':18}{'format':14}{'ns/char':>16}{'ratio':>8}{'µs/chunk':>10}  streams"]
    for row in rows:
        start = f"{row.reader:18}{row.format:14}"
        if row.missing:
            lines.append(start + "  " + row.missing)
            continue
        costs = [row.costs[size] * 1e9 for size in sorted(row.costs)]
        between = f"{costs[0]:.0f} – {costs[-1]:.0f}"
        left_out = f"  left out: {', '.join(map(str, row.left_out))}" if row.left_out else ""
        streams = "yes" if row.streams else "no"
        lines.append(f"{start}{between:>16}{row.ratio:8.2f}{row.chunk_cost * 1e6:10.2f}  {streams}{left_out}")
    return "\n".join(lines)


def record(rows: Sequence[Row], asked: argparse.Namespace, limits: list[str]) -> dict[str, Any]:
    return {
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "sizes": asked.sizes,
        "chunk": CHUNK,
        "repeat": asked.repeat,
        "limits": {"ratio": RATIO, "microseconds_a_chunk": MICROSECONDS, "broken": limits},
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    native = ",".join(name for name, format in formats.FORMATS.items() if format.native)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every figure to this file")
    parser.add_argument(
        "--formats", default=native, metavar="NAMES", help="ours, with commas (default: all native ones)"
    )
    parser.add_argument("--sizes", type=numbers, default=list(SIZES), metavar="N,N", help="characters of the argument")
    parser.add_argument(
        "--repeat", type=int, default=7, help="readings of each, of which the median counts (default 7)"
    )
    parser.add_argument("--patience", type=float, default=20, help="seconds for one reading of another's (default 20)")
    parser.add_argument("--no-limits", action="store_true", help="measure only: exit 0 whatever the figures")
    return parser


def main() -> int:
    asked = options().parse_args()
    rows = measure(asked.formats.split(","), asked.sizes, asked.repeat, asked.patience)
    limits = broken(rows)
    print(table(rows))
    for line in limits:
        print(f"limit: {line}")
    if asked.json:
        asked.json.write_text(json.dumps(record(rows, asked, limits), indent=1, ensure_ascii=False) + "\n")
    return 1 if limits and not asked.no_limits else 0


if __name__ == "__main__":
    sys.exit(main())
