"""The script that proves that calls in middle turns are learned: its rows and cases, and what it takes for a proof."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from punie_mlx.corpus.rows import Row, read_split
from punie_mlx.evals.stats import mcnemar


@pytest.fixture(scope="module")
def script(root: Path):
    sys.path.insert(0, str(root))
    try:
        yield importlib.import_module("scripts.prove_middle_turns")
    finally:
        sys.path.remove(str(root))


def test_its_rows_hold_calls_in_middle_turns_only(script: ModuleType, tmp_path: Path) -> None:
    data = script.make_rows(tmp_path, {"train": 5, "test": 20}, 0)
    rows = read_split(data, "test")
    assert all(row.messages[-1].get("content") and not row.messages[-1].get("tool_calls") for row in rows)
    cases = script.cases_of(rows)
    assert [bool(case.expect.calls) for case in cases] == [bool(row.messages[1].get("tool_calls")) for row in rows]
    assert sum(bool(case.expect.calls) for case in cases) == 14 and all(c.expect.turns == "first" for c in cases)


def test_a_row_that_ends_on_a_call_stops_it(script: ModuleType, monkeypatch, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    monkeypatch.setattr(script, "read_split", lambda *_: [Row([{"role": "user", "content": "go"}, call], [], "t", 7)])
    with pytest.raises(SystemExit, match=r"t:7: this row ends on something else"):
        script.make_rows(tmp_path, {"train": 1}, 0)


def test_what_proves_it(script: ModuleType) -> None:
    def figures(accuracy: float, stock: list[bool], base: list[bool]) -> dict[str, object]:
        compared = script.asdict(mcnemar(stock, base))
        return {"sides": {"ours": {"accuracy": accuracy}}, "stock_over_base": compared, "goal": 0.95}

    none = [False] * 20
    assert script.proven(figures(0.95, none, none))
    assert script.proven(figures(0.95, [True, *none[1:]], none))  # one by chance
    assert not script.proven(figures(0.94, none, none))
    assert not script.proven(figures(0.99, [True] * 6 + none[6:], none))


def test_what_stock_says_of_its_tokens(script: ModuleType) -> None:
    said = (
        "\x1b[38;5;244m  10\x1b[0m    \x1b[1;32m0.640 ▼\x1b[0m    \x1b[1m1,057\x1b[0m    \x1b[38;5;244m 12.3k\x1b[0m\n"
    )
    assert script.trained_tokens("   5    0.7 ▲    57    0.3k\n" + said) == 12300
    assert script.trained_tokens("nothing") == 0
