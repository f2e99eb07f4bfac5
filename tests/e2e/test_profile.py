"""`punie-mlx profile` on the shipped model, beside mlx_lm.server: the phases add up by both clocks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from punie_mlx.evals.profile import SERVER, TOLERANCE


def test_the_phases_of_the_tiny_model_add_up(root: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    suite = root / "data" / "suites" / "discrimination.jsonl"
    options = ["--model", tiny_base, "--suite", suite, "--limit", 3, "--max-tokens", 24, "--json", out]
    command = [sys.executable, "-m", "punie_mlx", "profile", *map(str, options), "--compare-stock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    # Each clock by itself, and both together: the framework's share is measured, so any of these could fail.
    assert found["accounting"]["server"] <= TOLERANCE and found["accounting"]["client"] <= TOLERANCE
    assert found["unaccounted_share"] <= TOLERANCE
    phases = found["phases"]
    assert found["phases_order"] == [*SERVER, "network", "tool", "client", "record"]
    assert all(phases[n]["total"] > 0 for n in found["phases_order"] if n != "tool")
    assert sum(phases[n]["share"] for n in found["phases_order"]) == pytest.approx(1, abs=TOLERANCE)
    assert (found["cases"], found["server"]) == (2, "punie-mlx") and found["requests"] >= 2
    assert found["per_request"]["tokens_per_second"]["p50"] > 1
    started = found["warm_up"]["start"]
    assert found["warm_up"]["load"] > started["wall"] > 0
    assert {"load", "warm_up"} <= {s["name"] for s in started["spans"]}
    ours, stock = found["comparison"]
    assert (ours["server"], stock["server"]) == ("punie-mlx", "mlx_lm.server")
    assert ours["requests"] == stock["requests"] > 0 == stock["failed"]
    assert stock["phases"]["prefill"]["total"] is None and stock["phases"]["first_byte"]["total"] > 0
    assert found["ratios"]["exchange"]["median"] > 0
    assert "mlx_lm.server" in done.stdout and "unaccounted" in done.stdout
