"""`punie-mlx suite check`: a suite that leaks into a corpus is found, and so are cases that prove little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from punie_mlx.cli_suite import app
from punie_mlx.corpus.audit.read import read_corpus
from punie_mlx.corpus.suite import read_suite
from punie_mlx.corpus.suites.check import check
from punie_mlx.corpus.suites.distance import Distance, Leak, Overlap, distance, runs
from punie_mlx.errors import ConfigError, DataError

LONG = "tell me which of the modules in the old parser reads every input file twice and why it was made so"


def tool(name: str = "look", **properties: str) -> dict[str, Any]:
    given = {key: {"type": kind} for key, kind in (properties or {"path": "string"}).items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": given}}}


def case(query: str, *, expect: Any = None, **more: Any) -> dict[str, Any]:
    wanted = {"calls": [{"name": "look", "arguments": {"path": query}}]} if expect is None else expect
    return {"id": query[:12], "category": "c", "query": query, "tools": [tool()], "expect": wanted, **more}


def row(*queries: str, answer: str = "Done.") -> dict[str, Any]:
    turns = [m for q in queries for m in ({"role": "user", "content": q}, {"role": "assistant", "content": answer})]
    return {"messages": turns, "tools": [tool()]}


def suite(tmp_path: Path, *cases: Any) -> Path:
    path = tmp_path / "s.jsonl"
    path.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in cases), encoding="utf-8")
    return path


def corpus(tmp_path: Path, **splits: list[Any]) -> Path:
    path = tmp_path / "corpus"
    path.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def measured(tmp_path: Path, cases: list[Any], **splits: list[Any]) -> Distance:
    return distance(read_suite(suite(tmp_path, *cases)), read_corpus(corpus(tmp_path, **splits)))


def kinds(found: Distance) -> list[tuple[str, str, str]]:
    """Kind, case and row of each leak, the row without its directory."""
    return [(leak.kind, leak.case, Path(leak.row).name) for leak in found.leaks]


# ---- leaks ----


@pytest.mark.parametrize(
    ("query", "said", "kind"),
    [
        ("Show the file a.py", "Show the file a.py", "exact"),
        ("Show the file a.py", "show  the FILE: a.py!", "exact"),
        ("Show the file a.py", "Could you show me the file a.py please?", "near"),
        ("Count the lines of a.py", "Count all the lines of the whole a.py", "near"),
        ("Count the lines of a.py", "Count all the lines of b.py", None),
        ("Start the server on port 90", "Start the server on port 90 with reload", None),
        (LONG, f"{LONG} back then", "near"),
        ("Show the file a.py", "Show the file b.py", None),
        ("Show the file a.py", "How are you today, and what is new?", None),
        ("Hi", "Hi", "exact"),
    ],
)
def test_leaks(tmp_path: Path, query: str, said: str, kind: str | None) -> None:
    rows = [row("Something else to be done"), row(said)]
    found = measured(tmp_path, [case("Nothing of the kind at all"), case(query)], train=rows)
    assert kinds(found) == ([(kind, query[:12], "train.jsonl:2")] if kind else [])


def test_a_leak_names_both_places(tmp_path: Path) -> None:
    found = measured(
        tmp_path, [case("Hm?"), case("Read it")], train=[row("x")], valid=[row("Read it"), row("read it.")]
    )
    where, place = f"{tmp_path / 's.jsonl'}:2", f"{tmp_path / 'corpus' / 'valid.jsonl'}:1"
    assert found.leaks == (Leak("exact", "Read it", where, "Read it", place, "Read it", 2),)


def test_all_that_a_user_says_is_compared(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "First of all read the notes"}, {"role": "assistant", "content": "Yes, boss."}]
    going_on = {k: v for k, v in case("").items() if k != "query"}
    going_on |= {"id": "talk", "messages": [*talk, {"role": "user", "content": "Now close the old window"}]}
    follow_up = case("Open it", follow_ups=["and then write all of it down", "Thanks"])
    rows = [row("q", "Now close the old window"), row("r", "First of all, read the notes."), row("Yes, boss.")]
    rows += [row("s", "t", "And then write all of it down"), row("thanks")]
    found = measured(tmp_path, [going_on, follow_up], train=rows)
    assert kinds(found) == [
        ("exact", "talk", "train.jsonl:1"),
        ("exact", "talk", "train.jsonl:2"),
        ("exact", "Open it", "train.jsonl:4"),
    ]


def test_results_and_answers_are_no_queries(tmp_path: Path) -> None:
    rows = [row("a", answer="Read it"), row("Tool result: Read it")]
    assert measured(tmp_path, [case("Read it")], train=rows).leaks == ()


# ---- runs of words ----


def test_runs() -> None:
    assert runs("One, two THREE four.", 3) == {"one two three", "two three four"}
    assert runs("One two", 3) == set() and runs("One two", 2) == {"one two"}


def test_the_share_of_runs(tmp_path: Path) -> None:
    cases = [case("one two three four five six"), case("seven eight nine"), case("ten", category="d")]
    found = measured(tmp_path, cases, train=[row("zero one two three"), row("x", "Two: three, four five six")])
    assert found.overlap[3] == {"all": Overlap(5, 4), "c": Overlap(5, 4), "d": Overlap(0, 0)}
    assert found.overlap[5]["all"] == Overlap(2, 1) and found.overlap[5]["all"].share == 0.5
    assert found.overlap[8]["all"] == Overlap(0, 0) and found.overlap[8]["all"].share == 0.0
    (nearest,) = found.nearest
    assert (nearest.case, nearest.shared, nearest.runs) == ("one two thre", 3, 4)
    assert nearest.row.endswith("train.jsonl:2") and nearest.said == "Two: three, four five six"


# ---- doubtful cases ----


def warned(tmp_path: Path, *cases: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for warning in check(suite(tmp_path, *cases)).warnings:
        found.setdefault(warning.check, []).append(warning.text)
    return found


WORDS = ("ask", "bend", "cut", "dig", "eat", "fold", "get", "hide", "jam", "keep", "let")
ENOUGH = [case(f"{word} it now") for word in WORDS]


def test_a_good_suite_is_not_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, *ENOUGH) == {}


def test_copies(tmp_path: Path) -> None:
    other_file = case("Read it now", files={"a": "1"})
    cases = [case("Read it now"), {**case("read it NOW!"), "id": "again"}, {**other_file, "id": "file"}]
    found = warned(tmp_path, *ENOUGH, *cases)
    assert found == {"duplicate": ["again asks what Read it now asks: read it NOW!"]}


def test_near_copies(tmp_path: Path) -> None:
    near = {**case("Would you read the old notes"), "id": "near"}
    other = {**near, "id": "other", "tools": [tool(), tool("write")]}
    found = warned(tmp_path, *ENOUGH, case("Read the old notes"), near, other)
    assert found == {"near_duplicate": ["near asks nearly what Read the old asks: Would you read the old notes"]}


def test_what_a_model_without_sense_passes(tmp_path: Path) -> None:
    direct = [case(f"{word} is what", expect={"calls": []}) for word in WORDS]
    found = check(suite(tmp_path, *ENOUGH[:10], *direct))
    assert found.senseless == {"never calls": 11, 'always calls look({"path": "ask it now"})': 1}
    assert [w.text for w in found.warnings] == ["a model that never calls passes 11 of 21 cases"]
    same = [case(f"{word} that", expect={"calls": [{"name": "look", "match": {"path": {"min": 0}}}]}) for word in "abc"]
    same = [{**c, "tools": [tool(path="number")]} for c in same]
    answered = [case(f"{w} is said", expect={"calls": [], "answer": {"contains": ["x"]}}) for w in "defg"]
    assert check(suite(tmp_path, *same, *answered)).senseless["never calls"] == 0


def test_any_call_does(tmp_path: Path) -> None:
    by_name = {"calls": [{"name": "look"}]}
    loose = [case("Look at it", expect=by_name), case("Look away", expect=by_name, tools=[tool(), tool("write")])]
    assert warned(tmp_path, *ENOUGH, *loose) == {
        "any_call": ["1 cases are passed by any call of the one tool that is offered: Look at it"]
    }


def test_sources_and_licences(tmp_path: Path) -> None:
    signed = [{**c, "source": "s", "licence": "MIT"} for c in ENOUGH[:9]]
    found = warned(tmp_path, *signed, *ENOUGH[9:])
    assert found == {
        "no_source": [
            f"2 cases have no {field}, others have: keep it now, let it now" for field in ("source", "licence")
        ]
    }


def test_expectations_that_the_tool_would_refuse(tmp_path: Path) -> None:
    def wants(value: Any, **more: Any) -> dict[str, Any]:
        expected = {"name": "look", "arguments": {"path": value}, **more}
        return {
            **case(f"Look at {value}"),
            "tools": [tool(path="string", n="integer")],
            "expect": {"calls": [expected]},
        }

    found = warned(tmp_path, *ENOUGH, wants("x"), wants(1), {**wants(2, match={"n": {"min": 1}}), "id": "beside"})
    assert [text.split(":")[0] for text in found["schema"]] == [
        "Look at 1 expects a call of look that its schema refuses",
        "beside expects a call of look that its schema refuses",
    ]
    assert list(found) == ["schema"]


def test_small_categories(tmp_path: Path) -> None:
    found = warned(tmp_path, *ENOUGH, case("Other things", category="rare"))
    assert found["few_cases"] == ["categories with fewer than 10 cases, whose intervals say little: rare 1"]


# ---- the verb ----


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture
def leaky(tmp_path: Path) -> tuple[Path, Path]:
    """A suite with a case that the corpus asks, and one that it nearly asks."""
    cases = [*ENOUGH, case("Show the file a.py"), case("Explain what a mutex is")]
    rows = [row("x y"), row("show the file a.py"), row("Can you explain what a mutex is to me? \ud800\x1b")]
    return suite(tmp_path, *cases), corpus(tmp_path, train=rows)


@pytest.mark.parametrize(("options", "code"), [((), 1), (("exact",), 1), (("near",), 1), (("never",), 0)])
def test_a_suite_that_leaks_ends_with_1(leaky: tuple[Path, Path], options: tuple[str, ...], code: int) -> None:
    path, rows = leaky
    more = ("--fail-on", *options) if options else ()
    result = run(path, "--corpus", rows, *more)
    assert result.exit_code == code
    told = " ".join(result.output.split())
    assert f"leak: {path}:12: case Show the fil 'Show the file a.py' stands at {rows / 'train.jsonl'}:2" in told
    assert f"case Explain what 'Explain what a mutex is' nearly stands at {rows / 'train.jsonl'}:3" in told
    assert "\x1b" not in result.output


def test_only_near_leaks_may_be_let_through(tmp_path: Path) -> None:
    path, rows = suite(tmp_path, case("Explain a mutex")), corpus(tmp_path, train=[row("Can you explain a mutex")])
    assert [run(path, "--corpus", rows, "--fail-on", on).exit_code for on in ("near", "exact")] == [1, 0]


def test_a_clean_suite_ends_with_0(tmp_path: Path) -> None:
    path, rows = suite(tmp_path, *ENOUGH, case("Other things", category="rare")), corpus(tmp_path, train=[row("x y z")])
    result = run(path, "--corpus", rows)
    assert result.exit_code == 0 and "no case leaks" in result.output and "warning (few_cases)" in result.output
    assert run(path, "--fail-on", "warning").exit_code == 1 and run(path).exit_code == 0


def test_the_report_as_json(leaky: tuple[Path, Path]) -> None:
    path, rows = leaky
    result = run(path, path, "--corpus", rows, "--corpus", rows / "train.jsonl", "--ngram", 2, "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["kind"] == "suite-check" and len(report["suites"]) == 2
    one = report["suites"][0]
    assert (one["cases"], one["hash"], one["categories"]) == (13, read_suite(path).hash, {"c": 13})
    assert (one["problems"], one["licences"], one["senseless"]["never calls"]) == ([], {"": 13}, 0)
    assert len(one["distances"]) == 2
    for found in one["distances"]:
        assert [(leak["kind"], leak["row"]) for leak in found["leaks"]] == [
            ("exact", f"{rows / 'train.jsonl'}:2"), ("near", f"{rows / 'train.jsonl'}:3"),
        ]  # fmt: skip
        assert list(found["overlap"]) == ["2"] and found["overlap"]["2"]["all"]["shared"] == 8


def test_bad_lines_are_all_told(tmp_path: Path) -> None:
    path = suite(tmp_path, "{", case("Good one"), case("", id=""), "[]")
    result = run(path)
    assert result.exit_code == 1
    for text in (f"{path}:1: not JSON", f"{path}:3: id: ", f"{path}:3: query: ", f"{path}:4: a case is a JSON object"):
        assert text in " ".join(result.output.split())
    assert run(suite(tmp_path, "")).exit_code == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    good = suite(tmp_path, case("Read it"))
    for arguments, error in (
        ((tmp_path / "none.jsonl",), DataError),
        ((good, "--corpus", tmp_path / "none"), DataError),
        ((good, "--fail-on", "always"), ConfigError),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, error) and result.exception.exit_code == 2


def test_what_is_shipped(root: Path) -> None:
    """The shipped suite is clean of the corpus that its models are trained on, and the schema is what is published."""
    shipped = root / "data" / "suites" / "agent.jsonl"
    result = run(shipped, "--corpus", root / "data" / "phase8_xml_format", "--json")
    assert result.exit_code == 0, result.output[-2000:]
    (report,) = json.loads(result.output)["suites"]
    assert report["distances"][0]["leaks"] == [] and report["problems"] == [] and report["cases"] >= 500
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.output == (root / "data" / "suites" / "schema.json").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "punie_mlx", "suite", "check", "none.jsonl"]
    missing = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert missing.returncode == 2 and missing.stderr.startswith("punie-mlx: suite none.jsonl cannot be read")
