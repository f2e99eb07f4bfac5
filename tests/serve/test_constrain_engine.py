"""Constrained decoding on the real engine, with random weights: in batches, seeded, with cached prompts; its proof."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from punie_mlx.serve.constrain import Constrainer, Plan
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Sampling
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar import Constraint
from punie_mlx.toolcalls.stream import read

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prove_constrained.py"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = Tool("forecast", parameters=SCHEMA)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prove_constrained", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove_constrained"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    model = script().random_model(tmp_path_factory.mktemp("models") / "random")
    engine = Engine.start(model)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def plan(engine: Engine) -> Plan:
    loaded = engine.loaded
    made = Constrainer(loaded.tokenizer, width=loaded.vocabulary, eos=loaded.eos, wire=formats.get("qwen3_coder"))
    return made.plan([TOOL], Constraint("required", parallel=False))


async def answer(engine: Engine, prompt: str, plan: Plan | None, seed: int | None, limit: int = 120) -> tuple[str, int]:
    """The text of an answer, and how many tokens of the prompt were cached."""
    tokens = engine.loaded.tokenizer.encode(prompt)
    mask = plan.mask() if plan else None
    text = ""
    with engine.generate(tokens, Sampling(temperature=1.0, seed=seed), limit, processor=mask) as generation:
        async for pieces in generation:
            text += "".join(piece.text for piece in pieces if piece.finish != "stop" or piece.token is not None)
        assert mask is None or mask.failed is None
        return text, generation.cached_tokens


def is_a_call(text: str) -> bool:
    reading = read(text, "qwen3_coder", [TOOL])
    fits = [jsonschema.Draft202012Validator(SCHEMA).is_valid(c.arguments) for c in reading.calls]
    return fits == [True] and not reading.problems


def test_constrained_and_free_requests_share_a_batch(engine, plan):
    async def all_at_once() -> list[tuple[str, int]]:
        each = [answer(engine, f"question {i}", plan if i % 2 else None, i if i % 3 else None) for i in range(10)]
        return await asyncio.gather(*each)

    texts = [text for text, _ in asyncio.run(all_at_once())]
    assert [is_a_call(text) for text in texts] == [bool(i % 2) for i in range(10)]


def test_seeds_and_cached_prompts(engine, plan):
    prompt = "a longer question that is asked again and again"
    (first, _), (second, cached) = (asyncio.run(answer(engine, prompt, plan, 7)) for _ in range(2))
    other, _ = asyncio.run(answer(engine, prompt, plan, 8))
    assert first == second != other
    assert cached > 0
    assert all(map(is_a_call, (first, second, other)))


def test_the_proof_in_small(tmp_path):
    out = tmp_path / "proof.json"
    command = [sys.executable, str(SCRIPT), "--calls", "14", "--answers", "6", "--generated", "14", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(out.read_text())
    assert figures["calls"]["valid"] == 14 and figures["answers"]["valid"] == 6 and figures["health"]["restarts"] == 0


def test_the_proof_finds_what_is_wrong():
    proof = script()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    case = proof.Case({"seed": 1}, {"f": schema}, named="f")

    def choice(name: str, arguments: str, reason: str = "tool_calls", content: str | None = None) -> dict:
        calls = [{"function": {"name": name, "arguments": arguments}}] if name else []
        return {"finish_reason": reason, "message": {"content": content, "tool_calls": calls}}

    assert case.wrong(choice("f", '{"a": 1}')) == ""
    for bad in (
        choice("f", '{"a": "x"}'), choice("f", "{}"), choice("f", "{a"), choice("g", '{"a": 1}'),
        choice("", "", "stop"), choice("f", '{"a": 1}', "length"), choice("f", '{"a": 1}', content="Sure."),
    ):  # fmt: skip
        assert case.wrong(bad)
    answering = proof.Case({"seed": 1}, {}, schema)
    assert answering.wrong(choice("", "", "stop", '{"a": 1}')) == ""
    assert answering.wrong(choice("", "", "length", '{"a": 1}'))
    assert answering.wrong(choice("", "", "stop", '{"b": 1}'))
