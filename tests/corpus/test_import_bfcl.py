"""BFCL's rows become cases: as many as there are, whose gold passes, and whose mutated gold does not.

What the leaderboard itself would say of a call is told by `bfcl_rules`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from punie_mlx.cli import app
from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.corpus.suites.bfcl import KINDS, Imported, category, import_bfcl, original_names
from punie_mlx.corpus.suites.bfcl_schema import TYPES, api_names, json_schema
from punie_mlx.errors import DataError
from punie_mlx.evals.agent import Call, Run
from punie_mlx.evals.score import score

from .bfcl_rules import Made, bfcl_passes, every_gold, first_gold, mutated

SETS = ("simple_python", "multiple", "parallel", "irrelevance")


# ---- our side ----


def run_of(case: Case, made: Made) -> Run:
    """A run that makes calls by BFCL's names, all in one response."""
    ours = {original: name for name, original in original_names(case.source or "").items()}
    calls = [Call(1, str(i), ours.get(name, name), arguments) for i, (name, arguments) in enumerate(made)]
    return Run(calls=calls, answer="It is done.")


def passes(case: Case, made: Made) -> tuple[bool, bool]:
    run = run_of(case, made)
    return score(case, run).passed, score(case, run, lenient=True).passed


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def imported(file: Path, gold: Path | None = None) -> tuple[Imported, list[Case]]:
    made = import_bfcl(file, gold)
    return made, [Case.model_validate(c) for c in made.cases]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


# ---- the real files ----


@pytest.mark.parametrize("name", SETS)
def test_each_row_of_a_real_file_is_a_case(real_data: Path, name: str) -> None:
    file = real_data / "bfcl" / f"BFCL_v4_{name}.json"
    made, cases = imported(file)
    rows = lines(file)
    assert [c.id for c in cases] == [r["id"] for r in rows] and made.rows == len(rows)
    for case, row in zip(cases, rows, strict=True):
        assert case.query == row["question"][0][0]["content"]
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in case.schemas)
        back = original_names(case.source or "")
        assert [back.get(name, name) for name in case.schemas] == [f["name"] for f in row["function"]]
        assert not re.search(r'"type": "(dict|float|tuple|any)"', json.dumps(case.tools))


@pytest.mark.parametrize("name", SETS[:3])
def test_gold_passes_and_mutated_gold_does_not(real_data: Path, name: str) -> None:
    file = real_data / "bfcl" / f"BFCL_v4_{name}.json"
    _, cases = imported(file)
    tried: Counter[str] = Counter()
    for case, row, answer in zip(cases, lines(file), lines(file.with_suffix(".gold.json")), strict=True):
        functions, gold = row["function"], answer["ground_truth"]
        required = {n for f in functions for n in f["parameters"].get("required", ())}
        for made in every_gold(gold, required):
            tried["gold"] += 1
            assert bfcl_passes(functions, gold, made), (case.id, made)
            assert passes(case, made) == (True, True), (case.id, made)
        for what, made in mutated([first_gold(c) for c in gold], [f["name"] for f in functions]):
            if not bfcl_passes(functions, gold, made):
                tried[what] += 1
                assert passes(case, made) == (False, False), (case.id, what, made)
    assert min(tried.values()) >= 190 and len(tried) == 8


def test_any_call_fails_where_none_fits(real_data: Path) -> None:
    _, cases = imported(real_data / "bfcl" / "BFCL_v4_irrelevance.json")
    for case in cases:
        assert passes(case, []) == (True, True)
        assert passes(case, [(next(iter(case.schemas)), {})]) == (False, False)


def test_the_command_says_what_it_kept(real_data: Path, tmp_path: Path) -> None:
    file, out = real_data / "bfcl" / "BFCL_v4_simple_python.json", tmp_path / "bfcl.jsonl"
    found = CliRunner().invoke(app, ["suite", "import-bfcl", str(file), "--out", str(out)])
    assert found.exit_code == 0 and f"400 cases of 400 rows of {file}" in found.stdout
    assert "simple_python_307: game_result.get_winner: venue must be string, not boolean" in found.stdout
    assert len(read_suite(out).cases) == 400
    told = CliRunner().invoke(app, ["suite", "import-bfcl", str(file), "--out", str(out), "--overwrite", "--json"])
    assert json.loads(told.stdout)["rows"] == 400 and len(json.loads(told.stdout)["contradictions"]) == 5


# ---- made-up rows ----

PARAMETERS = {
    "type": "dict",
    "required": ["city"],
    "properties": {
        "city": {"type": "string"},
        "degrees": {"type": "float"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "point": {"type": "tuple", "items": {"type": "float"}},
        "note": {"type": "any"},
        "where": {"type": "dict", "properties": {"zone": {"type": "string"}, "floor": {"type": "integer"}}},
        "parts": {"type": "array", "items": {"type": "dict", "properties": {"n": {"type": "integer"}}}},
        "type": {"type": "string", "enum": ["dict", "float"]},
    },
}
FUNCTION = {"name": "weather.get", "description": "Weather", "parameters": PARAMETERS}


def row(row_id: str, *functions: dict[str, Any], question: Any = None) -> dict[str, Any]:
    return {
        "id": row_id,
        "question": question or [[{"role": "user", "content": "How warm is it in Ulm?"}]],
        "function": list(functions or [FUNCTION]),
    }


def takes(spec: Any) -> dict[str, Any]:
    return {"name": "f", "parameters": {"type": "dict", "properties": {"x": spec}}}


def one(tmp_path: Path, made: dict[str, Any], *gold: dict[str, Any]) -> tuple[Imported, Case]:
    file = write(tmp_path / "file.json", made)
    answers = write(tmp_path / "gold.json", {"id": made["id"], "ground_truth": list(gold)}) if gold else None
    result, cases = imported(file, answers)
    return result, cases[0]


def weather(**values: list[Any]) -> dict[str, Any]:
    return {"weather.get": {"city": ["Ulm"], **values}}


def test_types_and_names_become_those_of_the_api(tmp_path: Path) -> None:
    _, case = one(tmp_path, row("live_simple_0-0-0"), weather())
    properties = case.schemas["weather_get"]["properties"]
    assert case.schemas["weather_get"]["type"] == "object"
    assert properties["degrees"] == {"type": "number"} and properties["note"] == {}
    assert properties["point"] == {"type": "array", "items": {"type": "number"}}
    assert properties["parts"]["items"]["type"] == "object"
    assert properties["type"] == {"type": "string", "enum": ["dict", "float"]}  # a parameter of that name
    assert original_names(case.source or "") == {"weather_get": "weather.get"}
    assert case.category == "live_simple" and case.licence == "Apache-2.0"
    assert case.expect.turns == "first" and case.expect.execution == "any" and case.expect.order == "any"


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"type": "HashMap"}, {"type": "object"}),
        ({"type": "ArrayList", "items": {"type": "String"}}, {"type": "array", "items": {"type": "string"}}),
        ({"type": "long"}, {"type": "integer"}),
        ({"type": "Bigint"}, {"type": "integer"}),
        ({"type": "double", "default": 1.5}, {"type": "number", "description": "Default: 1.5."}),
        ({"description": "How many.", "default": None}, {"description": "How many. Default: null."}),
        ({"type": "Boolean"}, {"type": "boolean"}),
        ({"type": "any", "description": "d"}, {"description": "d"}),
        ({"type": ["string", "null"]}, {"type": ["string", "null"]}),
        (
            {"type": "dict", "additionalProperties": {"type": "float"}},
            {"type": "object", "additionalProperties": {"type": "number"}},
        ),
        ({"anyOf": [{"type": "float"}, {"type": "dict"}]}, {"anyOf": [{"type": "number"}, {"type": "object"}]}),
    ],
)
def test_type_names_of_three_languages(spec: dict[str, Any], found: dict[str, Any]) -> None:
    assert json_schema(spec, "f") == found


def test_names_stay_apart() -> None:
    long = "a" * 70
    names = ["a.b", "a_b", "a b", "fine-1", long, long + "b", "", "ü"]
    made = api_names(names)
    assert len(set(made)) == len(names) and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", n) for n in made)
    assert made[:4] == ["a_b_2", "a_b", "a_b_3", "fine-1"]
    assert api_names(["same", "same"]) == ["same", "same_2"]


def test_values_that_may_be_left_out(tmp_path: Path) -> None:
    _, case = one(tmp_path, row("simple_0"), weather(degrees=[1.5, ""], note=["", "x"], days=["", [1, 2]]))
    for arguments in ({}, {"degrees": 1.5}, {"note": ""}, {"note": "x", "days": []}, {"days": [1, 2]}):
        assert passes(case, [("weather.get", {"city": "Ulm", **arguments})]) == (True, True), arguments
    for arguments in ({"degrees": ""}, {"degrees": 2}, {"note": "y"}, {"days": [2, 1]}, {"city": ""}, {"point": []}):
        assert passes(case, [("weather.get", {"city": "Ulm", **arguments})]) == (False, False), arguments


def test_objects_and_lists_of_objects(tmp_path: Path) -> None:
    where = {"zone": ["north", "n"], "floor": [2, ""]}
    _, case = one(tmp_path, row("simple_0"), weather(where=[where], parts=[[{"n": [1]}, {"n": [2, 3]}]]))
    for inner in ({"zone": "n"}, {"zone": "north", "floor": 2}):
        for parts in ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 3}]):
            made = [("weather.get", {"city": "Ulm", "where": inner, "parts": parts})]
            assert passes(case, made) == (True, True)
    for inner in ({"zone": "south"}, {"floor": 2}, {"zone": "n", "floor": 3}, {"zone": "n", "more": 1}):
        made = [("weather.get", {"city": "Ulm", "where": inner, "parts": [{"n": 1}, {"n": 2}]})]
        assert passes(case, made) == (False, False), inner
    made = [("weather.get", {"city": "Ulm", "where": {"zone": "n"}, "parts": [{"n": 2}, {"n": 1}]})]
    assert passes(case, made) == (False, False)


def test_lenient_is_looser_than_strict(tmp_path: Path) -> None:
    _, case = one(tmp_path, row("simple_0", FUNCTION), weather(city=["New York, NY"], note=["it's_a/b"], degrees=[2.0]))
    exact = {"city": "New York, NY", "note": "it's_a/b", "degrees": 2.0}
    assert passes(case, [("weather.get", exact)]) == (True, True)
    assert passes(case, [("weather.get", {**exact, "degrees": 2})]) == (True, True)  # JSON has one kind of number
    assert passes(case, [("weather.get", {**exact, "city": "new york NY"})]) == (False, True)
    assert passes(case, [("weather.get", {**exact, "city": "NewYork"})]) == (False, False)


def test_calls_in_parallel_may_come_in_any_order_but_in_one_response(tmp_path: Path) -> None:
    gold = [{"weather.get": {"city": [c]}} for c in ("Ulm", "Bonn")]
    _, case = one(tmp_path, row("live_parallel_multiple_3-1-0", FUNCTION, {**FUNCTION, "name": "tide"}), *gold)
    made = [("weather.get", {"city": c}) for c in ("Bonn", "Ulm")]
    assert passes(case, made) == (True, True)
    run = run_of(case, made)
    run.calls[1].turn = 2
    assert not score(case, run).passed and not score(case, run, lenient=True).passed


def test_relevance_wants_any_call(tmp_path: Path) -> None:
    _, case = one(tmp_path, row("live_relevance_0-0-0", FUNCTION, {**FUNCTION, "name": "tide"}))
    assert case.expects_call
    for made in ([("tide", {"x": 1})], [("weather.get", {}), ("tide", {})], [("tide", {})] * 8):
        assert passes(case, made) == (True, True)
    assert passes(case, []) == (False, False) and passes(case, [("moon", {})]) == (False, False)


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([("system", "Be brief."), ("user", "Hi")], {"system": "Be brief.", "query": "Hi"}),
        ([("user", "Hi"), ("assistant", "Yes?"), ("user", "Now")], {"query": "Now", "system": None}),
        ([("system", "s"), ("user", "a"), ("user", "b")], {"query": "b", "system": None}),
    ],
)
def test_conversations(tmp_path: Path, messages: list[tuple[str, str]], found: dict[str, Any]) -> None:
    asked = [[{"role": r, "content": c} for r, c in messages]]
    _, case = one(tmp_path, row("live_irrelevance_0-0-0", question=asked))
    assert {k: getattr(case, k) for k in found} == found
    assert [(m["role"], m["content"]) for m in case.conversation] == messages
    assert case.alternatives == [[]]


def test_what_is_changed_or_contradicts_is_listed(tmp_path: Path) -> None:
    only_system = [[{"role": "system", "content": "Tell me a joke"}]]
    made, case = one(tmp_path, row("irrelevance_0", {**FUNCTION, "response": {"type": "dict"}}, question=only_system))
    assert case.query == "Tell me a joke"
    assert len(made.notes) == 2 and "`response` of a function is left out" in made.notes[0]
    assert "the last message is of system: it is asked as a user's" in made.notes[1]

    gold = {"weather.get": {"city": ["Ulm", ""], "degrees": ["warm"], "days": ["", None], "sea": ["", 1]}}
    made, case = one(tmp_path, row("simple_7"), gold)
    told = "\n".join(made.contradictions)
    assert f"{tmp_path / 'file.json'}:1: simple_7: weather.get: city is required, but the gold lets" in told
    assert "degrees must be number, not string" in told and "days must be array, not null" in told
    assert "sea is not in the schema: left out" in told
    assert passes(case, [("weather.get", {"city": "Ulm", "degrees": "warm", "days": None})]) == (True, True)
    assert passes(case, [("weather.get", {"degrees": "warm"})]) == (False, False)


def test_gold_is_found_where_bfcl_keeps_it(tmp_path: Path) -> None:
    file = write(tmp_path / "BFCL_v3_simple.json", row("simple_0"))
    with pytest.raises(DataError, match=r"needs its gold, which is not at .*pass it with --gold"):
        import_bfcl(file)
    (tmp_path / "possible_answer").mkdir()
    write(tmp_path / "possible_answer" / file.name, {"id": "simple_0", "ground_truth": [weather()]})
    assert len(import_bfcl(file).cases) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], ":1: not JSON"),
        ([row("irrelevance_0"), "[1]"], ":2: a row is a JSON object, and stands on one line"),
        ([row("irrelevance_0"), row("irrelevance_0")], ":2: the id irrelevance_0 stands on line 1 already"),
        ([{"question": [[]], "function": []}], ":1: a row without an id"),
        ([{"id": "irrelevance_0", "function": []}], ":1: a row without `question`"),
        ([row("multi_turn_base_0")], ":1: the id multi_turn_base_0 is of no category that can be imported: simple"),
        ([{**row("irrelevance_0"), "initial_config": {}}], ":1: `initial_config` is no key of a single-turn row"),
        ([row("irrelevance_0", question=[[{"role": "user", "content": "a"}]] * 2)], "`question` has several turns"),
        ([row("irrelevance_0", question=[[{"role": "user"}]])], "a message of `question` has no text"),
        ([row("irrelevance_0", question=[[{"role": "narrator", "content": "a"}]])], "has no role of system, user"),
        ([row("irrelevance_0", question=[[]])], "`question` holds no message"),
        ([row("irrelevance_0", {"description": "no name"})], "each with a name"),
        ([row("irrelevance_0", takes({"type": "blob"}))], "f.x has the type 'blob', which is none of string, str"),
        ([row("irrelevance_0", takes("string"))], "f.x is no schema object"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    file = write(tmp_path / "file.json", *rows)
    with pytest.raises(DataError) as e:
        import_bfcl(file)
    assert f"{file}:" in str(e.value) and message in str(e.value) and "nothing was imported" in str(e.value)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ([], "file.json:1: simple_0 has no gold in"),
        ([{"id": "simple_0"}], "gold.json:1: gold is an object with id and ground_truth"),
        ([{"id": "simple_0", "ground_truth": []}], "gold.json:1: ground_truth is a list of at least one call"),
        ([{"id": "simple_0", "ground_truth": [{"f": {}, "g": {}}]}], "gold.json:1: a call of ground_truth is"),
        ([{"id": f"simple_{i}", "ground_truth": [weather()]} for i in (0, 1)], "gold.json:2: simple_1 is no row of"),
        ([{"id": "simple_0", "ground_truth": [{"moon": {}}]}], "the gold calls moon, which the row does not offer"),
    ],
)
def test_errors_of_gold_name_the_line(tmp_path: Path, gold: list[Any], message: str) -> None:
    file = write(tmp_path / "file.json", row("simple_0"))
    with pytest.raises(DataError, match=re.escape(message)):
        import_bfcl(file, write(tmp_path / "gold.json", *gold))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: give a file of BFCL"):
        import_bfcl(tmp_path / "no.json")
    with pytest.raises(DataError, match="holds no row"):
        import_bfcl(write(tmp_path / "empty.json"))
    file = write(tmp_path / "file.json", row("irrelevance_0"))
    with pytest.raises(DataError, match="leave --gold out"):
        import_bfcl(file, file)
    many = write(tmp_path / "many.json", *(["{"] * 14))
    with pytest.raises(DataError, match="and 4 more"):
        import_bfcl(many)


def test_java_and_javascript_rows(tmp_path: Path) -> None:
    properties = {
        "pool": {"type": "any"},
        "size": {"type": "long"},
        "on": {"type": "boolean"},
        "names": {"type": "ArrayList", "items": {"type": "String"}},
        "more": {"type": "HashMap"},
    }
    java = {"name": "Pool.set", "parameters": {"type": "dict", "required": ["pool"], "properties": properties}}
    gold = {"pool": ["mainPool"], "size": [5], "on": [True], "names": [["a", "b"]], "more": ["", {"k": ["v"]}]}
    for row_id in ("simple_java_0", "java_0", "simple_javascript_0"):
        made, case = one(tmp_path, row(row_id, java), {"Pool.set": gold})
        assert made.contradictions == [] and case.category == category(row_id)
        arguments = {"pool": "mainPool", "size": 5, "on": True, "names": ["a", "b"]}
        assert passes(case, [("Pool.set", arguments)]) == (True, True)
        assert passes(case, [("Pool.set", {**arguments, "more": {"k": "v"}})]) == (True, True)
        assert passes(case, [("Pool.set", {**arguments, "size": "5"})]) == (False, False)


def test_the_tables_are_whole() -> None:
    assert set(TYPES.values()) == {"string", "integer", "number", "boolean", "array", "object", "null", None}
    assert {k for k in KINDS if k.startswith("live_")} == {
        "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
    }  # fmt: skip
