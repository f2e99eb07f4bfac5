#!/usr/bin/env python3
"""A server under many clients for a long time: is every answer whole and its own client's, and is nothing left behind?

    python scripts/soak_serve.py --json soak.json                        # 64 clients, 10 minutes, data/tiny-base
    python scripts/soak_serve.py --clients 8 --seconds 20

Each request asks for a nonce of its own, in one of these ways, streamed or not:

    copy, copy-free   "Read core/hazel/falcon.json" with a tool, which data/tiny-base (or a model like it) copies into
                      its answer, through attention: another row's cache would give another path. With the grammar
                      waiting for a call, and without a grammar. What is not copied is asked again alone, at the end:
                      a mistake that the model makes there, too, is a slip of its own, and only counted.
    tool              tool_choice "required", the nonce as the only value that the schema leaves
    schema            response_format json_schema, the same

A third of the clients goes away from each of its requests after a random time, in the queue or in the middle of the
answer, as a killed process does. Exit code 1 if an answer is wrong, broken or refused, if the memory of the last
quarter of the time is more than 1.05 times that of the second (medians; the first fills the prompt cache), if the
engine had to start again, or if a minute later anything still runs or waits in /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from punie_mlx.corpus import lexicon
from punie_mlx.corpus.world import TOOLS
from scripts import load_client
from scripts.load_client import Reply, Server

MODEL = Path(__file__).resolve().parent.parent / "data" / "tiny-base"
GROWTH = 1.05
PATIENCE = 60.0  # seconds that the server has to give everything back when the clients are gone
EXAMPLES = 20  # of what went wrong, kept in full
ZERO = ("punie_running", "punie_waiting", "punie_engine_restarts_total", "punie_model_reloads_total")


@dataclass(frozen=True)
class Question:
    """A request, and what is wrong with an answer to it ("" if nothing)."""

    kind: str
    body: dict[str, Any]
    complaint: Callable[[dict[str, Any]], str]


@dataclass
class Tally:
    """What happened."""

    answers: Counter[str] = field(default_factory=Counter)  # right ones, by kind
    left: int = 0  # requests that their client went away from
    doubtful: list[tuple[Question, str, str]] = field(default_factory=list)  # what the model copied, and the story
    slips: int = 0  # of the model: it makes the same mistake alone
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # no whole answer, or an error
    tokens: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes


# ---- what is asked ----


def copied(r: Random, constrain: str, kind: str) -> Question:
    first, second = r.sample(lexicon.WORDS, 2)
    path = f"{r.choice(lexicon.DIRS)}/{first}/{second}.{r.choice(lexicon.EXTENSIONS)}"
    name, text = r.choice((("read_file", f"Read {path}"), ("count_lines", f"Count the lines of {path}")))
    expected = f'```json\n{{"name": "{name}", "arguments": {{"path": "{path}"}}}}\n```'

    def complaint(message: dict[str, Any]) -> str:
        return "" if message["content"] == expected else f"not {expected!r}"

    body = {"messages": [{"role": "user", "content": text}], "tools": [TOOLS[name]], "max_tokens": 48, "rescue": False}
    return Question(kind, body | {"constrain": constrain}, complaint)


def called(r: Random) -> Question:
    nonce = uuid.UUID(int=r.getrandbits(128)).hex
    schema = {"type": "object", "properties": {"nonce": {"type": "string", "enum": [nonce]}}, "required": ["nonce"]}
    tool = {"type": "function", "function": {"name": "say", "parameters": schema | {"additionalProperties": False}}}

    def complaint(message: dict[str, Any]) -> str:
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]
        right = calls and all(name == "say" and json.loads(text) == {"nonce": nonce} for name, text in calls)
        return "" if right else f"no calls of say with {nonce}"

    body = {"messages": [{"role": "user", "content": "Say it."}], "tools": [tool], "tool_choice": "required"}
    return Question("tool", body | {"parallel_tool_calls": False, "temperature": r.choice((0, 1))}, complaint)


def formatted(r: Random) -> Question:
    nonce, number = uuid.UUID(int=r.getrandbits(128)).hex, r.randrange(10**6)
    value = {"nonce": nonce, "number": number}
    properties = {key: {"const": held} for key, held in value.items()}
    schema = {"type": "object", "properties": properties, "required": list(value), "additionalProperties": False}

    def complaint(message: dict[str, Any]) -> str:
        try:
            return "" if json.loads(message["content"]) == value else f"not {value}"
        except (ValueError, TypeError):
            return f"no JSON: {value} was asked for"

    kind = {"type": "json_schema", "json_schema": {"name": "value", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "Write it."}], "response_format": kind, "max_tokens": 400}
    return Question("schema", body, complaint)


def question(r: Random) -> Question:
    maker = r.choice((copied, copied, called, formatted))
    if maker is copied:
        return copied(r, *r.choice((("auto", "copy"), ("off", "copy-free"))))
    return maker(r)


# ---- clients ----


def message(reply: Reply) -> tuple[dict[str, Any], str, int]:
    """The message of an answer, its finish_reason, and how many tokens it took. Raises ValueError."""
    if reply.body.startswith((b"data:", b":")):
        if not reply.body.rstrip().endswith(b"data: [DONE]"):
            raise ValueError("the stream ends without [DONE]")
        found: dict[str, Any] = {"content": ""}
        calls: dict[int, dict[str, Any]] = {}
        reason, tokens = "", 0
        for event in reply.events:
            if "error" in event:
                raise ValueError(f"an error in the stream: {event['error']}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                reason = choice["finish_reason"] or reason
                found["content"] += choice["delta"].get("content") or ""
                for part in choice["delta"].get("tool_calls", ()):
                    call = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
                    for key, text in part["function"].items():
                        call["function"][key] += text
        return found | {"tool_calls": list(calls.values())}, reason, tokens
    answer = json.loads(reply.body)
    return (
        answer["choices"][0]["message"],
        answer["choices"][0]["finish_reason"],
        answer["usage"]["completion_tokens"],
    )


async def client(server: Server, number: int, seed: int, until: float, leaves: bool, tally: Tally) -> None:
    """Ask one question after the other, and look at each answer."""
    r = Random(f"{seed} {number}")
    while time.monotonic() < until:
        asked = question(r)
        body = {"temperature": 0, **asked.body}
        if r.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        give_up = r.expovariate(r.choice((2.0, 0.2))) if leaves else None  # half of a second, or five
        try:
            reply = await load_client.post(server, body, give_up)
            if not reply.whole and give_up is not None:
                tally.left += 1
                continue
            if reply.status != 200 or not reply.whole:
                raise ValueError(f"status {reply.status}, {'' if reply.whole else 'broken off, '}{reply.body[-500:]!r}")
            answer, reason, tokens = message(reply)
        except (OSError, ValueError, KeyError, TimeoutError) as e:
            tally.failed.append(f"{asked.kind}: {type(e).__name__}: {e}")
            await asyncio.sleep(0.1)  # a server that refuses is not to be stormed
            continue
        tally.tokens += tokens
        if bad := asked.complaint(answer):
            streamed = "streamed" if "stream" in body else "whole"
            story = f"{asked.kind}, {streamed}: {bad}: {reason} {json.dumps(answer, ensure_ascii=False)}"
            if asked.kind.startswith("copy"):
                tally.doubtful.append((asked, answer["content"], story))
            else:
                tally.wrong.append(story)
        else:
            tally.answers[asked.kind] += 1


async def watch(server: Server, began: float, until: float, tally: Tally) -> None:
    """Sample the memory, and say how it goes."""
    told = began
    while (now := time.monotonic()) < until:
        tally.memory.append((now - began, await asyncio.to_thread(server.rss)))
        if now - told >= 10:
            told = now
            right, bad = tally.answers.total(), len(tally.wrong) + len(tally.failed) + len(tally.doubtful)
            megabytes = tally.memory[-1][1] / 1e6
            print(
                f"{now - began:5.0f} s: {right} right, {bad} not, {tally.left} left, {megabytes:.0f} MB",
                file=sys.stderr,
                flush=True,
            )
        await asyncio.sleep(1)


async def soak(server: Server, clients: int, seconds: float, seed: int) -> Tally:
    tally = Tally()
    began = time.monotonic()
    until = began + seconds
    each = (client(server, i, seed, until, i % 3 == 0, tally) for i in range(clients))
    await asyncio.gather(watch(server, began, until, tally), *each)
    for asked, content, story in tally.doubtful:
        reply = await load_client.post(server, {"temperature": 0, **asked.body})
        if message(reply)[0]["content"] == content:
            tally.slips += 1
        else:
            tally.wrong.append(story)
    return tally


# ---- the verdict ----


def metrics(server: Server) -> dict[str, float]:
    """The unlabelled samples of /metrics."""
    lines = re.findall(r"^(\w+) (\S+)$", server.get("/metrics").decode(), re.M)
    return {name: float(value) for name, value in lines}


def at_rest(server: Server) -> dict[str, float]:
    """`ZERO` of /metrics, as soon as all are zero, or when the patience is over."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = metrics(server)
        values = {name: found[name] for name in ZERO}
        if not any(values.values()) or time.monotonic() > deadline:
            return values
        time.sleep(0.5)


def quarters(memory: list[tuple[float, int]], seconds: float) -> list[float]:
    """The median memory of each quarter of the time."""
    found: list[list[int]] = [[], [], [], []]
    for at, size in memory:
        found[min(3, int(4 * at / seconds))].append(size)
    return [statistics.median(sizes) if sizes else 0.0 for sizes in found]


def verdict(tally: Tally, memory: list[float], rest: dict[str, float]) -> list[str]:
    """What does not hold."""
    found = [f"{len(tally.wrong)} answers were wrong"] if tally.wrong else []
    found += [f"{len(tally.failed)} requests got no whole answer"] if tally.failed else []
    found += [f"there was no answer of the kind {k}" for k in KINDS if not tally.answers[k]]
    if memory[3] > GROWTH * memory[1]:
        found.append(f"memory grew {memory[3] / memory[1]:.3f}-fold from the second quarter to the last")
    return found + [f"{name} is {value:g} at the end" for name, value in rest.items() if value]


KINDS = ("copy", "copy-free", "tool", "schema")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every figure to this file")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model that copies as data/tiny-base does")
    parser.add_argument("--clients", type=int, default=64, help="default 64")
    parser.add_argument("--seconds", type=float, default=600, help="default 600")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default 0)")
    return parser


def main() -> int:
    asked = options().parse_args()
    with load_client.ours(asked.model) as server:
        tally = asyncio.run(soak(server, asked.clients, asked.seconds, asked.seed))
        rest = at_rest(server)
        command = server.command
    memory = quarters(tally.memory, asked.seconds)
    broken = verdict(tally, memory, rest)
    found = {
        "passed": not broken,
        "broken": broken,
        "answers": dict(tally.answers),
        "left": tally.left,
        "tokens": tally.tokens,
        "slips": tally.slips,
        "wrong": len(tally.wrong),
        "failed": len(tally.failed),
        "examples": [*tally.wrong[:EXAMPLES], *tally.failed[:EXAMPLES]],
        "memory_quarters": memory,
        "memory_last_over_second": memory[3] / memory[1] if memory[1] else None,
        "memory": tally.memory,
        "at_rest": rest,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()},
        "command": command,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "llguidance")},
    }
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for example in found["examples"]:
        print(example)
    kinds = dict(tally.answers)
    print(f"{tally.answers.total()} right answers ({kinds}), {tally.slips} slips of the model, {tally.left} left")
    print(f"memory by quarter: {', '.join(f'{m / 1e6:.1f} MB' for m in memory)}; at rest: {rest}")
    for line in broken:
        print(f"broken: {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
