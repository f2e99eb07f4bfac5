"""Suites are read strictly, and every error names its line."""

import json

import pytest

from punie_mlx.corpus.suite import read_suite
from punie_mlx.errors import DataError

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
CASE = {"id": "1", "category": "c", "query": "q", "tools": [TOOL], "files": {}, "expect": {"calls": [{"name": "f"}]}}


def write(path, *cases):
    path.write_text("\n".join(c if isinstance(c, str) else json.dumps(c) for c in cases) + "\n")
    return path


def test_reads_all_forms(tmp_path):
    second = {
        "id": "2",
        "category": "d",
        "query": "q",
        "system": "s",
        "tools": [],
        "expect": {"calls": [], "answer": {"contains": ["x"]}, "execution": "any", "turns": "first"},
    }
    suite = read_suite(write(tmp_path / "s.jsonl", CASE, "", second))
    assert [c.id for c in suite.cases] == ["1", "2"]
    assert suite.cases[0].expect.calls[0].names == ["f"] and suite.cases[0].expect.execution == "succeeds"
    assert suite.name == "s"


def test_the_hash_is_of_the_content(tmp_path):
    first = read_suite(write(tmp_path / "a.jsonl", CASE))
    same = read_suite(write(tmp_path / "b.jsonl", "", json.dumps(CASE, indent=None, separators=(",", ":"))))
    other = read_suite(write(tmp_path / "c.jsonl", {**CASE, "query": "other"}))
    assert first.hash == same.hash != other.hash


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("{", "not JSON"),
        ("[]", "a case is a JSON object, not list"),
        ({**CASE, "colour": 1}, "colour: Extra inputs"),
        ({k: v for k, v in CASE.items() if k != "query"}, "query: Field required"),
        ({**CASE, "id": 7}, "id: Input should be a valid string"),
        ({**CASE, "expect": {"calls": [{"name": "f", "arg": {}}]}}, "expect.calls.0.arg: Extra inputs"),
        ({**CASE, "expect": {"calls": [{"name": "g"}]}}, "names g, which `tools` does not offer"),
        (
            {**CASE, "expect": {"calls": [{"name": "f", "arguments": {"y": 1}}]}},
            "an argument y that its schema has not",
        ),
        ({**CASE, "expect": {"calls": [], "execution": "maybe"}}, "expect.execution"),
        ({**CASE, "tools": [TOOL, TOOL]}, "two tools have the same name"),
        ({**CASE, "tools": [{"name": "f"}]}, "a tool is"),
        ({**CASE, "files": {"../x": ""}}, "no relative path"),
        ({**CASE, "files": {"/etc/x": ""}}, "no relative path"),
        (CASE, "id '1' stands on line 1 already"),
    ],
)
def test_errors_name_the_line(tmp_path, case, message):
    with pytest.raises(DataError) as e:
        read_suite(write(tmp_path / "s.jsonl", CASE, case))
    assert f"{tmp_path / 's.jsonl'}:2: " in str(e.value) and message in str(e.value)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_files_that_are_no_suite(tmp_path, content):
    path = tmp_path / "s.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.jsonl"):
        read_suite(path)


def test_the_five_queries(root):
    suite = read_suite(root / "data" / "suites" / "discrimination.jsonl")
    assert [c.category for c in suite.cases] == ["tool", "tool", "direct", "tool", "direct"]
    assert all(list(c.schemas) == ["run_command", "read_file"] for c in suite.cases)
