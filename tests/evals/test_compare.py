"""Runs side by side: tests, intervals, what changed, what flipped, what the words say, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.evals import markdown
from punie_mlx.evals.compare import CompareConfig, compare, unique_labels
from punie_mlx.evals.stats import Pairs, holm, mcnemar, sign_flip, tango
from punie_mlx.evals.tables import Grid, changed_grid, comparison_grid, flips_grid

from .made import made_case, made_run, of_format_1, written

GOOD, POOR = [True] * 20, [True] * 10 + [False] * 10


def against(result, label):
    return next(r["against_baseline"] for r in result["runs"] if r["label"] == label)


def test_two_runs():
    result = compare([made_run(POOR, "base"), made_run(GOOD, "fused")])
    found = against(result, "fused")
    assert against(result, "base") is None and result["baseline"] == "base"
    assert (found["only_this"], found["only_baseline"], found["difference"]) == (10, 0, 0.5)
    assert found["p"] == found["p_holm"] == mcnemar(POOR, GOOD).p and found["test"] == "exact McNemar"
    assert found["interval"] == list(tango(Pairs(10, 0, 20))) and found["verdict"] == "better"
    json.dumps(result, allow_nan=False)


def test_several_runs_are_adjusted_together():
    """Six lost cases are significant alone (p = 0.031), and not among three comparisons."""
    base = [True] * 40
    runs = [made_run(base, "base"), *(made_run([False] * k + base[k:], f"r{k}") for k in (6, 1, 0))]
    result = compare(runs)
    ps = [mcnemar(base, [False] * k + base[k:]).p for k in (6, 1, 0)]
    assert [against(result, f"r{k}")["p_holm"] for k in (6, 1, 0)] == pytest.approx(holm(ps))
    assert ps[0] < 0.05 and against(result, "r6")["verdict"] == "no significant difference"
    assert against(compare(runs[:2]), "r6")["verdict"] == "worse"
    assert "adjusted for 3 comparisons (Holm)" in result["words"]


def test_no_difference_is_not_as_good():
    """Five cases prove nothing; three hundred that agree do."""
    few = compare([made_run([True] * 5, "base"), made_run([True] * 5, "fused")])
    many = compare([made_run([True] * 300, "base"), made_run([True] * 300, "fused")])
    assert not against(few, "fused")["not_worse"]["holds"] and against(many, "fused")["not_worse"]["holds"]
    assert "a loss of more than 5 points is not ruled out" in few["words"]
    assert "it is not worse by more than 5 points (97.5% one-sided)" in many["words"]
    assert "not worse by more than 5" in comparison_grid(many).rows[1][-1]


def test_the_baseline_may_be_named():
    runs = [made_run(POOR, "base"), made_run(GOOD, "fused")]
    result = compare(runs, CompareConfig(baseline="fused"))
    assert result["baseline"] == "fused" and against(result, "base")["verdict"] == "worse"
    with pytest.raises(ConfigError, match="--baseline lora is none of the runs: base, fused"):
        compare(runs, CompareConfig(baseline="lora"))


def test_repeats_are_compared_by_case():
    base = {str(i): [True, False, True] for i in range(9)}
    other = {str(i): [True, True, True] if i < 8 else [False] * 3 for i in range(9)}
    runs = [made_run(base, "base", temperature=0.7), made_run(other, "fused", temperature=0.7)]
    found = against(compare(runs), "fused")
    assert found["p"] == sign_flip([1] * 8 + [-2]) and "sign-flip" in found["test"]
    assert (found["only_this"], found["only_baseline"]) == (8, 1)
    assert found["difference"] == pytest.approx((8 / 3 - 2 / 3) / 9)


def test_different_numbers_of_repeats_are_compared_with_a_warning():
    base = {str(i): [True, False] for i in range(6)}
    other = {str(i): [True, True, False] for i in range(6)}
    result = compare([made_run(base, "base"), made_run(other, "fused")])
    assert any("repeat their cases differently often" in w for w in result["warnings"])
    assert against(result, "fused")["difference"] == pytest.approx(1 / 6)
    # Each case's difference is 2/3 - 1/2; on one scale, 4 - 3.
    assert against(result, "fused")["p"] == sign_flip([1] * 6)


# ---- what is refused ----


def test_other_suites_are_refused():
    runs = made_run(GOOD, "base"), made_run(GOOD, "fused", suite="6" * 64)
    with pytest.raises(DataError, match=f"base is of {'5' * 64}, fused of {'6' * 64}") as e:
        compare(runs)
    assert e.value.exit_code == 2


def test_other_limits_are_refused():
    with pytest.raises(DataError, match=r"different limits: base 5, fused none: score both with the same --limit"):
        compare([made_run(GOOD, "base", limit=5), made_run(GOOD, "fused")])


def test_other_cases_are_refused():
    with pytest.raises(DataError, match="2 cases are in one of them only, the first is s/20"):
        compare([made_run(GOOD, "base"), made_run([*GOOD, True, True], "fused")])


def test_one_run_is_refused():
    with pytest.raises(ConfigError, match="one run cannot be compared"):
        compare([made_run(GOOD)])
    with pytest.raises(ConfigError, match="--margin 5"):
        CompareConfig(margin=5)


# ---- what changed ----


def test_what_changed_is_named_key_by_key():
    other = made_run(GOOD, "fused", concurrency=4, through="openai")
    other["versions"]["mlx"] = "2"
    other["server"] = {"constrain": {"mode": "off"}}
    result = compare([made_run(GOOD, "base"), other])
    changed = {row["key"]: row["values"] for row in result["changed"]}
    assert changed["settings.concurrency"] == [1, 4] and changed["versions.mlx"] == ["1", "2"]
    assert changed["server.constrain.mode"] == [None, "off"]
    assert (
        "model.fingerprint" in changed and "settings.max_tokens" not in changed and "versions.punie-mlx" not in changed
    )
    told = " ".join(result["warnings"])
    assert "seconds a query cannot be compared" in told and "versions differ (mlx)" in told and "different ways" in told
    assert ("settings.concurrency", "1", "4") in changed_grid(result).rows


def test_a_run_beside_itself():
    run = made_run(GOOD)
    result = compare([run, run])
    assert [r["label"] for r in result["runs"]] == ["base bbbbbbbb #1", "base bbbbbbbb #2"]
    assert result["changed"] == [] and any("all runs are of one model" in w for w in result["warnings"])


def test_labels():
    runs = [made_run(GOOD, "m"), made_run(GOOD, "m", fingerprint="c" * 64), made_run(GOOD, "n")]
    assert unique_labels(runs) == ["m aaaaaaaa", "m cccccccc", "n"]


def test_sampled_once_is_a_warning():
    runs = [made_run(GOOD, "base", temperature=0.7), made_run(GOOD, "fused", temperature=0.7)]
    assert any("another run of it would give another figure" in w for w in compare(runs)["warnings"])


# ---- flips and categories ----


def test_flips_name_the_cases_both_ways():
    base = [made_case(True, "1"), made_case(False, "2", category="b"), made_case(True, "3")]
    other = [made_case(False, "1"), made_case(True, "2", category="b"), made_case(True, "3")]
    result = compare([made_run(base, "base"), made_run(other, "fused")])
    lost, gained = result["flips"]["fused"]
    assert (lost["id"], lost["before"], lost["after"], lost["reason"]) == ("1", 1.0, 0.0, "names: no")
    assert (gained["id"], gained["category"], gained["reason"]) == ("2", "b", "names: no")
    grid = flips_grid(result, "fused")
    assert [row[:3] for row in grid.rows] == [("s/1", "a", "yes → no"), ("s/2", "b", "no → yes")]
    assert result["by_category"][1]["runs"]["fused"]["passed"] == 1


def test_many_flips_are_cut_and_counted():
    result = compare([made_run([True] * 30, "base"), made_run([False] * 30, "fused")])
    grid = flips_grid(result, "fused", 3)
    assert len(grid.rows) == 3 and grid.note == "30 lost, 0 gained; 27 more in --json"


# ---- Markdown ----


def test_markdown_is_one_row_a_line_whatever_the_text():
    grid = Grid("t", ("a|b", "n"), (("x\ny", "<b> *1* `c`"), ("p\\q", "[1, 2]")), "a_b")
    assert markdown.render(grid).splitlines() == [
        r"| a\|b | n |",
        "| :-- | --: |",
        r"| x y | \<b\> \*1\* \`c\` |",
        r"| p\\q | [1, 2] |",
        "",
        r"a\_b",
    ]


def test_a_comparison_in_markdown():
    text = markdown.comparison(compare([made_run(POOR, "base"), made_run(GOOD, "fused")]))
    assert "| fused | 100.0% [83.9, 100.0] 20/20 |" in text and "### By category" in text
    assert "### fused against base" in text and "it is better" in text
    assert "| base |" in markdown.runs([made_run(GOOD)])


# ---- the command ----


def cli(*args):
    command = [sys.executable, "-m", "punie_mlx", "compare", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def files(tmp_path):
    runs = {"good": made_run(GOOD, "good"), "poor": made_run(POOR, "poor"), "old": of_format_1(made_run(GOOD, "old"))}
    return {name: written(tmp_path / f"{name}.json", run) for name, run in runs.items()}


def test_the_command(files):
    done = cli(files["good"], files["poor"], files["old"], "--fail-if-worse")
    assert done.returncode == 1, done.stderr
    assert "poor passes 50.0%" in " ".join(done.stdout.split()) and "what changed" in done.stdout
    done = cli(files["good"], files["poor"], "--baseline", "poor", "--fail-if-worse", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["baseline"] == "poor"


def test_the_command_refuses(files, tmp_path):
    other = written(tmp_path / "other.json", made_run(GOOD, suite="6" * 64))
    done = cli(files["good"], other)
    assert done.returncode == 2 and "5" * 64 in done.stderr and "6" * 64 in done.stderr
    assert "Traceback" not in done.stderr
