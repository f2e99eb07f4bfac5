"""Figures from records: rates and intervals with and without repeats, tools confused, tokens, seconds; run files."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from punie_mlx.errors import DataError
from punie_mlx.evals.runs import read_result, read_run
from punie_mlx.evals.stats import clustered, pass_hat_k, wilson
from punie_mlx.evals.summary import confusion, paired, percentile, summarize, table
from punie_mlx.evals.tables import categories_grid, runs_grid, terminal

from .made import made_case, made_run, of_format_1, written

# ---- rates ----


def test_single_runs_have_the_keys_of_always():
    cases = [made_case(i < 7, str(i), category="ab"[i % 2], suite="st"[i % 2]) for i in range(10)]
    found = summarize(cases, 1)
    assert (found["n"], found["passed"], found["accuracy"]) == (10, 7, 0.7)
    assert found["interval"] == list(wilson(7, 10)) and "cases" not in found
    assert found["by_category"]["a"] == {"accuracy": 0.8, "interval": list(wilson(4, 5)), "n": 5, "passed": 4}
    assert found["by_suite"]["t"]["passed"] == 3 and found["by_check"]["names"]["passed"] == 7
    assert found["pass_hat_k"] == [] and found["with_retry"] is None
    assert found["lenient"]["passed"] == 7


def test_repeats_are_no_cases():
    """Ten cases that were run four times each and always agree: the interval is that of ten cases."""
    outcomes = {str(i): [i < 7] * 4 for i in range(10)}
    found = made_run(outcomes)["summary"]
    assert (found["n"], found["passed"], found["cases"], found["accuracy"]) == (40, 28, 10, pytest.approx(0.7))
    assert found["interval"] == pytest.approx(wilson(7, 10))
    assert [row["value"] for row in found["pass_hat_k"]] == pytest.approx([0.7] * 4)


def test_accuracy_is_the_mean_over_cases():
    """Also where an interrupted run left more repeats of one case than of another."""
    found = made_run({"1": [True, True, True, True], "2": [False]})["summary"]
    assert found["accuracy"] == 0.5 and (found["n"], found["passed"]) == (5, 4)
    assert found["interval"] == list(clustered([1.0, 0.0], 5))


def test_pass_hat_k_of_a_run():
    outcomes = {"1": [True, True, False], "2": [True, True, True], "3": [False, False, True]}
    found = made_run(outcomes)["summary"]["pass_hat_k"]
    assert [row["k"] for row in found] == [1, 2, 3]
    for row in found:
        value, interval = pass_hat_k(list(outcomes.values()), row["k"])
        assert (row["value"], tuple(row["interval"]), row["cases"]) == (value, interval, 3)


def test_retries_and_leniency_are_apart():
    cases = [
        made_case(True, "1", passed_with_retry=True),
        made_case(False, "2", passed_with_retry=True, lenient=True),
        made_case(False, "3", passed_with_retry=False),
    ]
    found = summarize(cases, 1)
    assert (found["passed"], found["with_retry"]["passed"], found["lenient"]["passed"]) == (1, 2, 2)


# ---- call or not ----


def test_balanced_accuracy_does_not_reward_silence():
    """A model that calls nothing passes every case that wants no call; half is not good."""
    wants = [made_case(False, str(i), called=[]) for i in range(10)]
    wants_none = [made_case(True, f"n{i}", expected=[], called=[]) for i in range(90)]
    both = summarize(wants + wants_none, 1)["call_or_not"]
    assert both["balanced_accuracy"] == 0.5
    lo, hi = both["interval"]
    assert lo < 0.5 < hi < 0.66


def test_one_side_only():
    both = summarize([made_case(True, "1"), made_case(False, "2", called=[])], 1)["call_or_not"]
    assert (both["balanced_accuracy"], both["no_call"]["n"]) == (0.5, 0)
    assert both["interval"] == list(wilson(1, 2))


def test_cases_that_take_either_count_on_no_side():
    either = made_case(True, "1", expect={"any_of": [[], [{"name": "read_file"}]]})
    both = summarize([either, made_case(True, "2")], 1)["call_or_not"]
    assert (both["call"]["n"], both["no_call"]["n"]) == (1, 0)


def test_parse_failures():
    cases = [made_case(True, "1"), made_case(False, "2", parse_failures=3), made_case(True, "3", parse_failures=1)]
    found = summarize(cases, 1)["parse_failures"]
    assert (found["failed"], found["calls"], found["n"]) == (2, 4, 3)
    assert found["interval"] == list(wilson(2, 3)) and found["rate"] == pytest.approx(2 / 3)


# ---- which tool for which ----


@pytest.mark.parametrize(
    ("expected", "called", "pairs"),
    [
        (["a"], ["a"], {"a": {"a": 1}}),
        (["a"], ["b"], {"a": {"b": 1}}),
        (["a"], [], {"a": {"none": 1}}),
        ([], [], {"none": {"none": 1}}),
        ([], ["b"], {"none": {"b": 1}}),
        (["a", "b"], ["b", "a"], {"a": {"a": 1}, "b": {"b": 1}}),
        (["a", "b"], ["b"], {"a": {"none": 1}, "b": {"b": 1}}),
        (["a"], ["a", "a", "c"], {"a": {"a": 1}, "none": {"a": 1, "c": 1}}),
        (["a", "b"], ["c", "b"], {"a": {"c": 1}, "b": {"b": 1}}),
        ([["a", "b"]], ["b"], {"b": {"b": 1}}),
        ([["a", "b"]], ["c"], {"a": {"c": 1}}),
    ],
)
def test_confusion(expected, called, pairs):
    assert confusion([made_case(True, "1", expected=expected, called=called)]) == pairs


def test_confusion_takes_the_nearest_alternative_and_the_first_turn():
    any_of = {"any_of": [[{"name": "a"}, {"name": "b"}], [{"name": "c"}]]}
    assert confusion([made_case(True, "1", called=["c"], expect=any_of)]) == {"c": {"c": 1}}
    case = made_case(True, "1", called=["read_file", "b"], expect={"turns": "first"})
    case["calls"][1]["turn"] = 2
    assert confusion([case]) == {"read_file": {"read_file": 1}}


# ---- tokens and seconds ----


def test_tokens_and_percentiles():
    cases = [made_case(True, str(i), seconds={"wall": float(i), "model": 0, "tools": 0}) for i in range(101)]
    cases[3]["turns"].append({"seconds": 0.1, "status": 500, "finish_reason": None, "usage": None})
    found = summarize(cases, 1)
    tokens, seconds = found["tokens"], found["seconds_per_query"]
    assert (tokens["prompt"], tokens["completion"], tokens["responses"], tokens["of"]) == (1010, 505, 101, 102)
    # The first case, the warm-up, is left out: 1 to 100 seconds.
    assert (seconds["median"], seconds["p50"], seconds["max"], seconds["warm_up"]) == (50.5, 50.5, 100, 0)
    assert seconds["p95"] == pytest.approx(95.05) and percentile([7.0], 99) == 7.0


def test_every_session_has_a_warm_up():
    cases = [
        made_case(True, str(i), warm_up=i in (0, 7), seconds={"wall": float(i), "model": 0, "tools": 0})
        for i in range(8)
    ]
    seconds = summarize(cases, 1)["seconds_per_query"]
    assert (seconds["n"], seconds["max"], seconds["warm_up"]) == (6, 6, 0)
    assert summarize(cases[:1], 1)["seconds_per_query"]["n"] == 1


def test_names_are_text_in_the_table():
    run = made_run([made_case(True, "1", category="[/b]")], label="[/model]")
    console = Console(width=120, file=io.StringIO())
    console.print(table(run))
    assert "[/b]" in console.file.getvalue() and "[/model]" in console.file.getvalue()


def test_paired_is_for_single_runs():
    repeated = made_run({"1": [True, False], "2": [True, True]})
    with pytest.raises(DataError, match="run once"):
        paired(repeated, repeated)
    assert paired(made_run([True, True]), made_run([True, False])).only_first == 1


# ---- tables ----


def shown(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_table_of_a_run_says_what_there_is_to_say():
    cases = [made_case(i != 1, str(i), passed_with_retry=True, lenient=True) for i in range(4)]
    text = shown(table(made_run(cases)))
    assert "75.0%" in text and "passed, retries allowed" in text and "judged leniently" in text
    assert "could not be read" not in text and "pass^" not in text
    text = shown(table(made_run({"1": [True, False], "2": [True, True]})))
    assert "pass^2: all of 2 runs pass" in text


def test_runs_beside_each_other():
    runs = [made_run([True] * 8, "base"), made_run([True] * 4 + [False] * 4, "fused")]
    grid = runs_grid(runs)
    assert [row[0] for row in grid.rows] == ["base", "fused"]
    assert grid.headers == ("run", "fingerprint", "accuracy", "call or not", "unread calls", "s a query")
    assert grid.rows[1][2].startswith("50.0% [") and grid.rows[1][2].endswith("4/8")
    assert "50.0%" in shown(terminal(grid)) and categories_grid(runs).rows[0][0] == "a"


# ---- reading run files ----


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = made_run([True, False, True])
    assert read_run(written(tmp_path / "r.json", run)) == run
    (tmp_path / "dir").mkdir()
    written(tmp_path / "dir" / "result.json", run)
    assert read_run(tmp_path / "dir") == run


def test_a_run_of_the_first_format_is_brought_up(tmp_path):
    run = made_run([True, False, True])
    old = of_format_1(run)
    old["cases"][1] |= {"unread_call": True, "calls": [{"turn": 1, "id": "c", "name": "x", "arguments": "{"}]}
    got = read_run(written(tmp_path / "r.json", old))
    assert (got["format"], got["upgraded_from"], got["settings"]["through"]) == (2, 1, "pydantic-ai")
    assert [c["parse_failures"] for c in got["cases"]] == [0, 2, 0]
    assert {c["lenient"] for c in got["cases"]} == {None} and got["summary"]["lenient"] is None
    assert got["model"]["label"] == "base" and got["summary"]["by_category"]["a"]["passed"] == 2
    assert got["summary"]["seconds"] == 1.0


def test_the_label_of_an_old_file_is_its_adapter(tmp_path):
    old = of_format_1(made_run([True]))
    old["model"]["adapter"] = "runs/lora-7"
    assert read_run(written(tmp_path / "r.json", old))["model"]["label"] == "lora-7"


def broken(key, value):
    def change(run):
        *parents, last = key
        place = run
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken(("kind",), "other"), "says kind 'other', not one of evaluation"),
        (broken(("kind",), None), "says no kind"),
        (broken(("format",), 3), "is of format 3, and this punie-mlx reads up to 2: update"),
        (broken(("model", "fingerprint"), None), "model.fingerprint is missing"),
        (broken(("cases", 1, "passed"), "yes"), r"cases\[1\].passed is \"yes\", which it cannot be"),
        (broken(("cases", 1, "passed"), None), r"cases\[1\].passed is missing"),
        (broken(("cases", 0, "repeat"), None), r"cases\[0\].repeat is missing"),
        (broken(("cases", 0, "repeat"), True), r"cases\[0\].repeat is true"),
        (broken(("cases", 0, "seconds", "wall"), "1"), r"cases\[0\].seconds.wall"),
        (broken(("cases", 0), 7), r"cases\[0\] is no object"),
        (broken(("cases",), []), "holds no case"),
        (broken(("cases", 1, "id"), "0"), "case s/0, repeat 0, stands there twice"),
        (broken(("cases", 1, "passed"), True), r"the summary says passed = 1, its cases say 2"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, change, message):
    run = made_run([True, False])
    change(run)
    with pytest.raises(DataError, match=message) as e:
        read_run(written(tmp_path / "r.json", run))
    assert str(tmp_path / "r.json") in str(e.value)


def test_files_that_are_no_results(tmp_path):
    path = tmp_path / "r.json"
    for content, message in ((b"{", "is not JSON"), (b"[]", "says no kind"), (b"\xff\xfe", "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_result(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_result(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"is a directory and holds none of result\.json"):
        read_result(tmp_path)
    written(tmp_path / "sweep.json", {"kind": "sweep", "rows": []})
    assert read_result(tmp_path)["kind"] == "sweep"
    with pytest.raises(DataError, match="is a sweep, not a run"):
        read_run(tmp_path / "sweep.json")


def test_what_a_run_writes_is_json(tmp_path):
    run = made_run({"1": [True, False], "2": [True, True]})
    assert json.loads(json.dumps(run, allow_nan=False)) == run
