"""The cases of other readers' test suites, and our own, by the rules of the scorer that is kept with them.

`divergences.toml` lists every case that is answered otherwise, with the reason why. A wrong case that is not listed
fails, and so does a listed case that has become right.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.toolcalls import contract
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.command import parse
from punie_mlx.toolcalls.stream import read

CHUNKS = (0, 1, 3, 7, 64)
LISTED = Path(__file__).parent / "divergences.toml"
Case = dict[str, Any]


@pytest.fixture(scope="module")
def files(real_data: Path) -> list[Path]:
    return sorted((real_data / "conformance").glob("*.jsonl"))


@pytest.fixture(scope="module")
def cases(files: list[Path]) -> list[Case]:
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def scorer(real_data: Path) -> Path:
    return real_data.parent / "tools" / "score_conformance.py"


@pytest.fixture(scope="module")
def wrong(scorer: Path) -> Callable[[Case, dict[str, Any]], list[str]]:
    """The scorer's own rule: the fields in which a result differs from what its case expects."""
    module = ast.parse(scorer.read_text(encoding="utf-8"))
    module.body = [node for node in module.body if not isinstance(node, ast.Expr)]  # it runs on import
    names: dict[str, Any] = {}
    exec(compile(module, str(scorer), "exec"), names)
    return names["wrong"]


@pytest.fixture(scope="module")
def answered_otherwise(cases: list[Case], wrong) -> dict[str, dict[int, list[str]]]:
    """Id → chunk size → the fields that differ."""
    found: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for case in cases:
        for chunk in CHUNKS:
            if fields := wrong(case, answer(case, chunk)):
                found[case["id"]][chunk] = fields
    return dict(found)


def answer(case: Case, chunk: int = 0) -> dict[str, Any]:
    return parse(
        case["model_output"],
        case["format"],
        case.get("tools") or (),
        reasoning=bool(case.get("reasoning")),
        finish=case.get("finish") or "stop",
        chunk=chunk,
    )


def listed() -> dict[str, str]:
    """Id → reason."""
    entries = tomllib.loads(LISTED.read_text(encoding="utf-8"))["divergence"]
    return {id: entry["reason"] for entry in entries for id in entry["ids"]}


def can_be_right(case: Case) -> bool:
    """Whether any answer can satisfy the scorer: arguments that are no JSON equal nothing."""
    texts = [call["arguments_text"] for call in case["expect"].get("tool_calls") or () if "arguments_text" in call]
    try:
        return all(isinstance(json.loads(text), dict) for text in texts)
    except ValueError:
        return False


def test_each_case_is_right_or_listed(cases, answered_otherwise):
    reasons = listed()
    assert {id: fields for id, fields in answered_otherwise.items() if id not in reasons} == {}
    stale = sorted(reasons.keys() - answered_otherwise.keys())
    assert stale == [], "listed as answered otherwise, but they are right or unknown"
    possible = [case["id"] for case in cases if can_be_right(case)]
    assert sum(id in answered_otherwise for id in possible) <= 0.02 * len(possible)


def test_no_case_depends_on_the_chunks(answered_otherwise):
    for id, fields in answered_otherwise.items():
        assert len(fields) == len(CHUNKS) and len({tuple(f) for f in fields.values()}) == 1, (id, fields)


def test_each_listed_case_has_a_reason_and_stands_once():
    entries = tomllib.loads(LISTED.read_text(encoding="utf-8"))["divergence"]
    ids = [id for entry in entries for id in entry["ids"]]
    assert len(ids) == len(set(ids))
    assert all(len(entry["reason"]) > 20 and entry.keys() == {"reason", "ids"} for entry in entries)


def test_the_verb_agrees(scorer, files, answered_otherwise):
    """The scorer as it is meant to be run, on the installed command."""
    command = f"{sys.executable} -m punie_mlx parse"
    done = subprocess.run(
        [sys.executable, scorer, *files, "--cmd", command, "--chunks", "0,7", "--show", "1000"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    shown = {line.split(" {")[0] for line in done.stdout.splitlines() if " {" in line}
    assert shown == {id for id, fields in answered_otherwise.items() if 0 in fields or 7 in fields}
    assert re.search(rf"^\d+ of {sum(f.read_text().count(chr(10)) for f in files)} cases", done.stdout, re.MULTILINE)


def test_problems_are_reported_as_expected(cases):
    """What the scorer does not look at."""
    asked = [c for c in cases if "diagnostics" in c["expect"]]
    assert asked
    for case in asked:
        problems = answer(case)["problems"]
        said = {p["kind"] for p in problems} | {f"{p['kind']}:{p['detail']}" for p in problems}
        assert set(case["expect"]["diagnostics"]) <= said, case["id"]


def test_nothing_is_lost(cases):
    assert any(c["expect"].get("no_loss") for c in cases)
    for case in cases:
        tools = [Tool.from_openai(t) for t in case.get("tools") or ()]
        for chunk in CHUNKS:
            for rescue in (False, True):
                found = read(
                    case["model_output"],
                    case["format"],
                    tools,
                    starts_in_reasoning=bool(case.get("reasoning")),
                    finish=case.get("finish") or "stop",
                    rescue=rescue,
                    chunk=chunk,
                )
                assert contract.faults(case["model_output"], found.events) == [], (case["id"], chunk, rescue)
