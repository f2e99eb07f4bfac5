#!/usr/bin/env python3
"""Prove that constrained decoding holds: a model with RANDOM weights at temperature 1, judged by jsonschema.

    python scripts/prove_constrained.py --bfcl ../shared/real/bfcl --json proof.json
    python scripts/prove_constrained.py --calls 20 --answers 6        # a small one, generated schemas only

The model has the tokenizer, template and shape of data/tiny-base and weights drawn from a normal distribution: it knows
nothing, so whatever is right is the grammar's doing. Each request offers one to three tools (the functions of BFCL, and
generated ones with unions, references, patterns, limits, nested objects), demands a call (`required`, or a named tool),
and every call is checked with Draft 2020-12 against the very schema that was sent. Then answers with a schema are asked
for in `response_format`. Random weights never end a string or a list by themselves, so that those without a limit get
one. The exit code is 0 where all were valid and the engine never failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
import numpy as np
from rich.progress import Progress
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "data" / "tiny-base"
TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # as BFCL spells them
NONE_BY_ITSELF = 24  # the most characters of a string that has no limit
KEYS = ("city", "count", "größe", "is-on", "tags", "x_1", "note", "when")
PATTERNS = ("^[a-z]{2,8}$", "^(GET|PUT) /[a-z/]{0,9}$", r"^\d{3}-\d{4}$")
STRINGS = ("date", "date-time", "uuid", "ipv4", "email")
Schema = dict[str, Any]


# ---- the model and its server ----


def random_model(out: Path, seed: int = 0) -> Path:
    """A copy of data/tiny-base with random weights."""
    out.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out / file.name)
    chance = np.random.default_rng(seed)
    drawn = {
        name: (np.ones(w.shape) if w.ndim == 1 else chance.normal(0, 0.05, w.shape)).astype(np.float16)
        for name, w in load_file(str(TINY / "model.safetensors")).items()
    }
    save_file(drawn, str(out / "model.safetensors"), metadata={"format": "mlx"})
    return out


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Generator[str]:
    """`punie-mlx serve` as users start it; its address."""
    command = [sys.executable, "-m", "punie_mlx", "serve", "--model", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server ended with exit code {process.wait()}: its log says why")
            yield json.loads(line)["url"].removesuffix("/v1")
        finally:
            process.terminate()
            process.wait(30)


# ---- schemas ----


def bfcl_tools(folder: Path) -> Iterator[Schema]:
    """The functions of BFCL, each name once, with the types of JSON schema and with limits."""
    seen = set()
    for file in sorted(folder.glob("BFCL_v4_*.json")):
        if ".gold." in file.name:
            continue
        for line in file.read_text().splitlines():
            for function in json.loads(line)["function"]:
                name = function["name"].replace(".", "_")[:64]
                if name not in seen:
                    seen.add(name)
                    yield tool(name, limited(function["parameters"]))


def tool(name: str, parameters: Schema) -> Schema:
    """A tool as a request has it."""
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def limited(schema: Schema) -> Schema:
    """A schema of BFCL with an end to each string and list."""
    out = {k: v for k, v in schema.items() if k not in ("default", "optional")}
    kind = out["type"] = TYPES.get(schema.get("type", "string"), schema.get("type", "string"))
    if kind == "any":
        kind = out["type"] = "string"
    if kind == "string" and "enum" not in out:
        out.setdefault("maxLength", NONE_BY_ITSELF)
    if kind == "array":
        out["items"] = limited(schema.get("items") or {"type": "string"})
        out.setdefault("maxItems", max(3, out.get("minItems", 0)))
    if kind == "object":
        properties = schema.get("properties") or {"value": {"type": "string"}}
        out["properties"] = {k: limited(v) for k, v in properties.items()}
        out["required"] = [k for k in schema.get("required", ()) if k in properties]
        out["additionalProperties"] = False
    return out


class Generated:
    """Draws schemas by chance."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def tool(self, name: str) -> Schema:
        """A tool of one to five parameters, any of which may be optional, or refer to a shared definition."""
        place = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 9}, "size": {"type": "integer"}},
            "required": ["name"],
            "additionalProperties": False,
        }
        return tool(name, {**self.object(2, shared=True), "$defs": {"place": place}})

    def object(self, depth: int, shared: bool = False) -> Schema:
        """An object with some required properties."""
        keys = self._chance.sample(KEYS, k=self._number(1, 5))
        properties = {k: self.value(depth - 1, shared) for k in keys}
        required = [k for k in keys if self._chance.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def value(self, depth: int, shared: bool = False) -> Schema:
        """Any schema, of scalars only at depth 0."""
        kinds: list[Callable[[int], Schema]] = [self._text, self._number_schema, self._constant, self._nullable]
        if depth > 0:
            kinds += [self._list, self._pair, self._either, self._merged, lambda d: self.object(d)]
        if shared and self._chance.random() < 0.15:
            return {"$ref": "#/$defs/place"}
        return self._chance.choice(kinds)(depth)

    def _number(self, low: int, high: int) -> int:
        return self._chance.randint(low, high)

    def _text(self, depth: int) -> Schema:
        low = self._number(0, 6)
        return self._chance.choice(
            [
                {"type": "string", "maxLength": self._number(1, 40)},
                {"type": "string", "minLength": low, "maxLength": low + self._number(0, 30)},
                {"type": "string", "pattern": self._chance.choice(PATTERNS)},
                {"type": "string", "pattern": "^[A-Z][a-z ]+$", "minLength": 3, "maxLength": 12},
                {"type": "string", "format": self._chance.choice(STRINGS), "maxLength": 40},
            ]
        )  # fmt: skip

    def _number_schema(self, depth: int) -> Schema:
        low = self._number(-50, 50)
        return self._chance.choice(
            [
                {"type": "integer", "minimum": low, "maximum": low + self._number(0, 500)},
                {"type": "number", "exclusiveMinimum": low},
                {"type": "number", "minimum": low, "exclusiveMaximum": low + 1},
                {"type": "integer", "multipleOf": self._number(2, 9), "minimum": 0},
                {"type": "integer"},
                {"type": "boolean"},
            ]
        )

    def _constant(self, depth: int) -> Schema:
        return self._chance.choice(
            [
                {"enum": ["red", "dark red", "a < b\nc", 7, None, True]},
                {"type": "string", "enum": ["new", "append", "</parameter>"]},
                {"const": "fixed"},
                {"const": {"a": [1, "x"]}},
            ]
        )

    def _nullable(self, depth: int) -> Schema:
        scalar = self._chance.choice([self._text, self._number_schema])(depth)
        union = {"anyOf": [scalar, {"type": "null"}]}
        return self._chance.choice([{**scalar, "type": [scalar["type"], "null"]}, union])

    def _list(self, depth: int) -> Schema:
        low = self._number(0, 2)
        return {"type": "array", "items": self.value(depth - 1), "minItems": low, "maxItems": low + self._number(0, 2)}

    def _pair(self, depth: int) -> Schema:
        first = [self.value(0), self.value(0)]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": 2}

    def _either(self, depth: int) -> Schema:
        closed = {"type": "object", "required": ["kind"], "additionalProperties": False}
        kinds = ("circle", "square")
        shapes = [{**closed, "properties": {"kind": {"const": k}, "size": self.value(0)}} for k in kinds]
        return {"oneOf": shapes} if self._chance.random() < 0.5 else {"anyOf": [self._list(depth), *shapes]}

    def _merged(self, depth: int) -> Schema:
        parts = [{"type": "object", "properties": {k: self.value(0)}, "required": [k]} for k in ("left", "right")]
        return {"allOf": parts}


# ---- requests and their judgement ----


@dataclass(frozen=True)
class Case:
    """A request, and the schemas of what may come of it: by tool, and of the answer."""

    body: Schema
    tools: dict[str, Schema]
    answer: Schema | None = None
    named: str = ""

    def wrong(self, choice: Schema) -> str:
        """What is wrong with a choice of an answer; nothing where it is right."""
        message = choice["message"]
        calls = message.get("tool_calls") or []
        if not calls:
            if self.answer is None or choice["finish_reason"] != "stop":
                return f"no call, finish_reason {choice['finish_reason']}: {str(message.get('content'))[:300]}"
            return why_not(message["content"], self.answer)
        if choice["finish_reason"] != "tool_calls":
            return f"finish_reason {choice['finish_reason']}"
        if message.get("content"):
            return f"text beside the calls: {message['content'][:300]}"
        names = [call["function"]["name"] for call in calls]
        if self.named and names != [self.named]:
            return f"calls of {names}, not of {self.named}"
        wrong = [why_not(c["function"]["arguments"], self.tools.get(c["function"]["name"], False)) for c in calls]
        return "; ".join(filter(None, wrong))


def why_not(text: str, schema: Schema | bool) -> str:
    """Why `text` is not JSON that fits `schema`."""
    try:
        value = json.loads(text)
    except ValueError as e:
        return f"no JSON ({e}): {text[:300]}"
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    first = next(iter(jsonschema.Draft202012Validator(schema, format_checker=checker).iter_errors(value)), None)
    if first is None:
        return ""
    return f"{first.json_path}: {first.message[:200]} in {text[:300]}"


def call_cases(tools: Sequence[Schema], count: int, seed: int) -> Iterator[Case]:
    """Requests for calls: each tool in turn, with none to two others beside it."""
    chance = random.Random(seed)
    for i in range(count):
        chosen = {t["function"]["name"]: t for t in [tools[i % len(tools)], *chance.sample(tools, k=i % 3)]}
        named = next(iter(chosen)) if i % 2 else ""
        choice = {"type": "function", "function": {"name": named}} if named else "required"
        body = {**_body(seed + i), "tools": list(chosen.values()), "tool_choice": choice}
        yield Case(body, {n: t["function"]["parameters"] for n, t in chosen.items()}, named=named)


def answer_cases(count: int, seed: int) -> Iterator[Case]:
    """Requests for answers with a schema; every fifth may be calls instead."""
    generated = Generated(seed)
    for i in range(count):
        schema = generated.object(3)
        body = _body(seed + i)
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        offered = {}
        if i % 5 == 4:
            body["tools"] = [generated.tool("look_up")]
            offered["look_up"] = body["tools"][0]["function"]["parameters"]
        yield Case(body, offered, schema)


def _body(seed: int) -> Schema:
    question = [{"role": "user", "content": "Do as you are told."}]
    return {"model": "model", "messages": question, "temperature": 1, "seed": seed, "stream": False}


@dataclass
class Result:
    """What came of the cases of one kind."""

    requests: int = 0
    valid: int = 0
    calls: int = 0
    relaxed: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # requests that got no answer

    def add(self, case: Case, answer: Schema) -> None:
        """Judge an answer."""
        choice = answer["choices"][0]
        self.calls += len(choice["message"].get("tool_calls") or ())
        self.tokens += answer["usage"]["completion_tokens"]
        self.relaxed += len(choice.get("punie", {}).get("grammar", {}).get("relaxed", ()))
        state = choice.get("punie", {}).get("grammar", {}).get("state")
        wrong = case.wrong(choice) or ("" if state == "enforced" else f"the grammar was {state}")
        if wrong:
            self.wrong.append(f"seed {case.body['seed']}: {wrong}")
        else:
            self.valid += 1


async def ask(url: str, cases: Sequence[Case], concurrency: int, title: str) -> Result:
    """Send all cases, some at a time."""
    result, waiting = Result(), iter(cases)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task(title, total=len(cases))

            async def work() -> None:
                for case in waiting:
                    result.requests += 1
                    response = await client.post("/v1/chat/completions", json=case.body | {"model": model})
                    if response.status_code == 200:
                        result.add(case, response.json())
                    else:
                        result.failed.append(f"seed {case.body['seed']}: {response.status_code} {response.text[:300]}")
                    progress.advance(bar)

            await asyncio.gather(*(work() for _ in range(concurrency)))
    return result


def prove(options: argparse.Namespace) -> Schema:
    """The whole proof; its figures."""
    generated = Generated(options.seed)
    tools = [generated.tool(f"tool_{i}") for i in range(options.generated)]
    if options.bfcl:
        tools = [*bfcl_tools(options.bfcl), *tools]
    tools = tools[:: max(1, len(tools) // max(options.calls, 1))]
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "random", options.seed)
        with serving(model, "--tool-call-format", options.format, *options.serve) as url:
            began = time.monotonic()
            calls = asyncio.run(
                ask(url, list(call_cases(tools, options.calls, options.seed)), options.concurrency, "calls")
            )
            answers = asyncio.run(
                ask(url, list(answer_cases(options.answers, options.seed)), options.concurrency, "answers")
            )
            seconds = time.monotonic() - began
            health = httpx.get(f"{url}/health").json()
    return {
        "format": options.format,
        "schemas": len(tools),
        "calls": vars(calls),
        "answers": vars(answers),
        "seconds": round(seconds, 1),
        "health": health,
        "command": sys.argv,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bfcl", type=Path, help="a directory with the BFCL files; without it, generated tools only")
    parser.add_argument("--calls", type=int, default=1000, help="requests that demand a call")
    parser.add_argument("--answers", type=int, default=300, help="requests with a schema for the answer")
    parser.add_argument("--generated", type=int, default=200, help="generated tools")
    parser.add_argument("--format", default="qwen3_coder", help="the wire format that the server speaks")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("serve", nargs="*", help="options for the server, after --")
    options = parser.parse_args()
    figures = prove(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    for kind in ("calls", "answers"):
        found = figures[kind]
        print(f"{kind}: {found['valid']} of {found['requests']} valid, {len(found['failed'])} failed")
        for line in [*found["wrong"], *found["failed"]][:20]:
            print(f"  {line}", file=sys.stderr)
    proven = all(figures[k]["valid"] == figures[k]["requests"] for k in ("calls", "answers"))
    return 0 if proven and figures["health"].get("restarts") == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
