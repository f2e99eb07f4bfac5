"""The example corpus: deterministic, as large as promised, no question in two splits, results that are true."""

from __future__ import annotations

from pathlib import Path

from punie_mlx.corpus import generate as g
from punie_mlx.corpus.rows import read_rows
from punie_mlx.corpus.suite import read_suite
from punie_mlx.corpus.world import TOOLS

SPLITS = ("train", "valid", "test")


def questions(directory: Path, split: str) -> list[str]:
    turns = [m for row in read_rows(directory / f"{split}.jsonl") for m in row.messages]
    asked = [m["content"] for m in turns if m["role"] == "user"]
    return [q for q in asked if not q.startswith("Tool result: ")]


def test_the_shipped_corpus_is_what_the_generator_makes(root: Path, tmp_path: Path) -> None:
    g.generate(tmp_path / "made")
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / "made" / name).read_bytes() == (root / "data/phase8_json_format" / name).read_bytes()


def test_sizes_and_mixture(root: Path) -> None:
    rows = {s: list(read_rows(root / "data/phase8_json_format" / f"{s}.jsonl")) for s in SPLITS}
    assert {s: len(r) for s, r in rows.items()} == {"train": 546, "valid": 68, "test": 69}
    everything = [row for r in rows.values() for row in r]
    with_calls = sum(any("```json" in (m["content"] or "") for m in row.messages) for row in everything)
    assert 0.65 <= with_calls / len(everything) <= 0.75
    sets = {tuple(t["function"]["name"] for t in row.tools) for row in everything}
    assert len(sets) == g.TOOL_SETS
    assert {len(s) for s in sets} == set(range(2, 9))
    answers = [row.messages[-1]["content"] for row in everything]
    assert 60 <= answers.count(g.REFUSAL) <= 110
    assert any(m["content"].count("```json") > 1 for row in everything for m in row.messages)


def test_no_question_stands_in_two_splits(root: Path) -> None:
    asked = {s: {q.lower() for q in questions(root / "data/phase8_json_format", s)} for s in SPLITS}
    for name in ("agent", "discrimination"):
        asked[name] = {case.query.lower() for case in read_suite(root / f"data/suites/{name}.jsonl").cases}
    names = list(asked)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert not asked[a] & asked[b], (a, b)
    assert all(g.bucket(q) == "suite" for name in ("agent", "discrimination") for q in asked[name])


def test_bucket_ignores_case_and_white_space() -> None:
    assert g.bucket("Read  src/a.py ") == g.bucket("read src/A.PY")
    assert {g.bucket(f"Read src/{i}.py") for i in range(200)} == set(g.BUCKETS)


def test_every_argument_type_of_the_world_occurs(root: Path) -> None:
    types = {p.get("type") for t in TOOLS.values() for p in t["function"]["parameters"]["properties"].values()}
    assert types == {"string", "integer", "number", "boolean", "array", "object"}
