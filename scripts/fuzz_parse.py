#!/usr/bin/env python3
"""Look for texts that break the tool-call readers, guided by coverage.

    pip install atheris                                  # wheels for CPython on Linux; no dependency of ours
    python scripts/fuzz_parse.py --seconds 600           # all formats
    python scripts/fuzz_parse.py --formats glm,kimi      # these
    python scripts/fuzz_parse.py --replay fuzz/crash-*   # what an input does; needs no atheris

Each input is a text made of what means something in a format, read whole and in pieces. It is a crash when reading
raises, loses or makes up text, breaks the order of events, reads differently in pieces, or takes more than linear
time. Crashing inputs are kept in --keep. The last line of stdout is the summary, as JSON:

    {"seconds", "executions", "crashes", "kinds": {what: how often}, "corpus", "seed", "formats", "kept": [files]}

Exit code 0 without crashes, 1 with some, 2 if it cannot run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import atheris  # ty: ignore[import-not-found]
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["punie_mlx.toolcalls"]) if atheris else contextlib.nullcontext():
    from punie_mlx.toolcalls import contract, formats
    from punie_mlx.toolcalls.calls import Event, Tool
    from punie_mlx.toolcalls.stream import StreamParser

TOOLS = (
    Tool("run", parameters={"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}),
    Tool("f", parameters={"type": "object", "properties": {"x": {"type": "object"}, "y": {"type": ["array", "null"]}}}),
)
COMMON = (
    "\n", "\r\n", " ", "x", "run", "f", "<", ">", "</", "{", "}", "[", "]", "(", ")", '"', "'", "\\", "\\u12", ",", ":",
    "=", ";", '"a"', '"name": "run"', '"arguments": {', "1", "-1.5e3", "true", "None", "<think>", "</think>", "```",
    "```json\n", "run(a='x', b=1)", "<tool_call>", "<|im_end|>", "9" * 4400, "[" * 300, '{"a":' * 300, "ü🎉",
    "\\ud800", "\u2028", "\ud800",
)  # fmt: skip
CHUNKS = (1, 2, 3, 4, 7, 16, 64)
LONGEST = 3_000  # characters of one text
HANG = 30  # seconds of CPU time for one input
UNIT = 2000  # characters of the smallest text whose time is taken
GROWTH = 4  # from one length to the next
BOUND = 2.2  # how much the time of a character may grow with it; quadratic is 4
TURNS = 3  # how often a growth must show again
EVERY = 100  # inputs for each whose time is taken


@dataclass(frozen=True)
class Case:
    """One way to read one text. `parts`: pieces of it, each with whether it is fed as a control token."""

    format: str
    parts: tuple[tuple[str, bool], ...]
    chunk: int
    tools: bool
    finish: str
    reasoning: bool
    rescue: bool

    @property
    def text(self) -> str:
        return "".join(part for part, _ in self.parts)


@cache
def alphabet(name: str) -> tuple[str, ...]:
    """The pieces of which texts in a format are made; a byte of the input chooses one."""
    return (*COMMON, *contract.pieces(formats.get(name)))


def decode(data: bytes, names: tuple[str, ...]) -> Case:
    """The case that `data` stands for: three bytes of settings, then the text itself or choices from the alphabet."""
    which, flags, chunk = data[:3].ljust(3, b"\0")
    name = names[which % len(names)]
    as_tokens = bool(flags & 32)
    if flags & 16:
        parts: tuple[tuple[str, bool], ...] = ((data[3:].decode(errors="surrogateescape"), False),)
    else:
        solid = contract.markers(formats.get(name)) if as_tokens else ()
        parts = tuple((piece, piece in solid) for piece in chosen(data[3:], alphabet(name)))
    return Case(
        name,
        parts,
        CHUNKS[chunk % len(CHUNKS)],
        tools=not flags & 1,
        finish="length" if flags & 2 else "stop",
        reasoning=bool(flags & 4),
        rescue=bool(flags & 8),
    )


def chosen(data: bytes, letters: tuple[str, ...]) -> Iterator[str]:
    """The pieces that `data` chooses: one byte each, 255 cuts the one after it, 254 repeats it."""
    source, size = iter(data), 0
    for byte in source:
        piece = letters[next(source, 0) % len(letters)] if byte > 253 else letters[byte % len(letters)]
        if byte == 255:
            piece = piece[: next(source, 0) % (len(piece) + 1)]
        elif byte == 254:
            piece = (piece * (next(source, 0) % 40))[:LONGEST]
        size += len(piece)
        if size > LONGEST:
            return
        yield piece


def events(case: Case, chunk: int) -> list[Event]:
    """What reading the case gives, `chunk` characters at a time (0: each part at once)."""
    spelled = contract.markers(formats.get(case.format)) if any(token for _, token in case.parts) else ()
    ids = {marker: i for i, marker in enumerate(spelled)}
    parser = StreamParser(
        case.format,
        TOOLS if case.tools else (),
        starts_in_reasoning=case.reasoning,
        rescue=case.rescue,
        control={i: marker for marker, i in ids.items()},
    )
    out: list[Event] = []
    for part, token in case.parts:
        size = chunk if chunk and not token else len(part) or 1
        for at in range(0, len(part), size):
            out += parser.feed(part[at : at + size], (ids[part],) if token else ())
    return out + parser.finish(case.finish)


def complaint(case: Case) -> str:
    """What is wrong with the reading of `case`; empty where nothing is."""
    try:
        whole, pieces = events(case, 0), events(case, case.chunk)
    except Hang:
        return f"takes more than {HANG} s"
    except Exception as e:
        return f"raises {type(e).__name__}: {e}"
    for found in (whole, pieces):
        if faults := contract.faults(case.text, found):
            return faults[0]
    return "" if contract.merged(whole) == contract.merged(pieces) else "reads differently in pieces"


def grows(case: Case) -> str:
    """Whether time grows faster than a text in which the second half of the case's is repeated."""
    text = case.text[:400]
    head, unit = text[: len(text) // 2], text[len(text) // 2 :]
    if not unit:
        return ""
    for chunk in (0, 4):
        costs = [cost(case, head + unit * (UNIT * GROWTH**i // len(unit) + 1), chunk) for i in range(2)]
        if costs[1] > BOUND * costs[0] and (costs := confirmed(case, head, unit, chunk)):
            shown = ", ".join(f"{c * 1e6:.2f}" for c in costs)
            return f"superlinear: {shown} µs a character, each text {GROWTH} times as long, {chunk or 'all'} at a time"
    return ""


def confirmed(case: Case, head: str, unit: str, chunk: int) -> list[float]:
    """The costs of three lengths, if each is above the bound time after time; else it was a busy machine."""
    longer = [head + unit * (UNIT * GROWTH**i // len(unit) + 1) for i in range(3)]
    costs: list[float] = []
    for _ in range(TURNS):
        costs = [min(cost(case, text, chunk) for _ in range(3)) for text in longer]
        if not all(b > BOUND * a > 0 for a, b in pairwise(costs)):
            return []
    return costs


def cost(case: Case, text: str, chunk: int) -> float:
    """Seconds of CPU time for each character of `text`, read as `case` is."""
    began = time.process_time()
    events(Case(case.format, ((text, False),), chunk, case.tools, case.finish, case.reasoning, case.rescue), chunk)
    return (time.process_time() - began) / len(text)


class Hang(BaseException):
    """An input has had its time; no reader may catch it."""


def stop_hanging(*_: Any) -> None:
    raise Hang


@dataclass
class Hunt:
    """One run: what it looks at, what it has found."""

    names: tuple[str, ...]
    keep: Path
    corpus: Path
    seed: int
    seconds: float
    began: float = field(default_factory=time.monotonic)
    executions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)
    shown: float = 0.0

    def __call__(self, data: bytes) -> None:
        """Try one input; at the end of the time, end the process, since libFuzzer never returns."""
        case = decode(data, self.names)
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
        try:
            wrong = complaint(case) or (grows(case) if self.executions % EVERY == 0 else "")
        except Hang:
            wrong = f"superlinear: a repetition takes more than {HANG} s"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self.executions += 1
        if wrong:
            self.found(data, case, wrong)
        elapsed = time.monotonic() - self.began
        if elapsed > self.shown + 10:
            self.shown = elapsed
            print(f"{elapsed:.0f} s, {self.executions} inputs, {sum(self.kinds.values())} crashes", file=sys.stderr)
        if elapsed > self.seconds:
            print(json.dumps(self.summary()), flush=True)
            os._exit(1 if self.kinds else 0)

    def found(self, data: bytes, case: Case, wrong: str) -> None:
        kind = f"{case.format}: {' '.join(wrong.split(':')[0].split()[:4])}"
        self.kinds[kind] += 1
        if self.kinds[kind] <= 3:
            self.keep.mkdir(parents=True, exist_ok=True)
            file = self.keep / f"crash-{case.format}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            self.kept.append(str(file))
            print(f"{file}: {describe(case, wrong)}", file=sys.stderr)

    def summary(self) -> dict[str, Any]:
        return {
            "seconds": round(time.monotonic() - self.began, 1),
            "executions": self.executions,
            "crashes": sum(self.kinds.values()),
            "kinds": dict(self.kinds.most_common()),
            "corpus": sum(1 for _ in self.corpus.iterdir()),
            "seed": self.seed,
            "formats": list(self.names),
            "kept": self.kept,
        }


def describe(case: Case, wrong: str) -> str:
    options = f"chunk={case.chunk} finish={case.finish} reasoning={case.reasoning} rescue={case.rescue}"
    tokens = [part for part, token in case.parts if token]
    return f"{wrong}\n    {case.format} {options} tools={case.tools} tokens={tokens}\n    {case.text[:600]!r}"


def seeds(names: tuple[str, ...]) -> Iterator[bytes]:
    """Inputs to begin with: a rendered call in each format, with and without text and thinking around it."""
    for i, name in enumerate(names):
        format = formats.get(name)
        call = format.render([contract.SAMPLE])
        think = "hm".join(format.think)
        for text in contract.OTHER_SPELLINGS.get(name, ()):
            yield bytes((i, 16, 0)) + text.encode()
        for flags, text in ((16, call), (16, f"{think}Sure.\n{call}\n{call}"), (18, call[: len(call) // 2]), (24, "x")):
            yield bytes((i, flags, 0)) + text.encode()
        yield bytes((i, 0, 3, *range(len(COMMON))))


def replay(files: list[Path], names: tuple[str, ...]) -> int:
    wrong = 0
    for file in files:
        case = decode(file.read_bytes(), names)
        found = complaint(case) or grows(case)
        wrong += bool(found)
        print(f"{file}: {describe(case, found or 'nothing wrong')}")
    return 1 if wrong else 0


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long to look (default 600)")
    parser.add_argument("--formats", default=",".join(formats.FORMATS), help="names, with commas (default all)")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer; the same seed tries the same first inputs")
    parser.add_argument(
        "--corpus", type=Path, default=Path("fuzz/corpus"), help="inputs that reach new code, kept here"
    )
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="where crashing inputs go")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="only say what these inputs do")
    return parser


def main() -> int:
    asked = options().parse_args()
    names = tuple(asked.formats.split(","))
    if unknown := set(names) - set(formats.FORMATS):
        print(f"no such format: {', '.join(sorted(unknown))}; there are {', '.join(formats.FORMATS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGVTALRM, stop_hanging)
    if asked.replay:
        return replay(asked.replay, names)
    if atheris is None:
        print("atheris is not installed: pip install atheris (Linux, CPython 3.11 to 3.13)", file=sys.stderr)
        return 2
    asked.corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds(names):
        (asked.corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    hunt = Hunt(names, asked.keep, asked.corpus, asked.seed, asked.seconds)
    limits = ["-max_len=160", f"-seed={asked.seed}", "-timeout=120", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, str(asked.corpus)], hunt)
    atheris.Fuzz()
    return 0  # not reached


if __name__ == "__main__":
    sys.exit(main())
