"""Suites are read strictly, every error names its line, and the published schema says the same as the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from punie_mlx.corpus.suite import Case, examine, read_suite
from punie_mlx.corpus.suites.schema import json_schema
from punie_mlx.errors import DataError

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "x": {"type": "integer"}, "s": {"type": "string"}, "n": {"type": ["number", "null"]},
                "l": {"type": "array"}, "a": {}, "odd": {"type": "tuple"},
            },
        },
    },
}  # fmt: skip
CASE = {"id": "1", "category": "c", "query": "q", "tools": [TOOL], "files": {}, "expect": {"calls": [{"name": "f"}]}}
USER = {"role": "user", "content": "Do it"}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "done"}
TALK = [{"role": "system", "content": "Be brief."}, USER, CALLS, RESULT, {"role": "assistant", "content": "Yes."}]


def write(path: Path, *cases: Any) -> Path:
    path.write_text("\n".join(c if isinstance(c, str) else json.dumps(c) for c in cases) + "\n")
    return path


def goes_on(*messages: Any, **more: Any) -> dict[str, Any]:
    return {**{k: v for k, v in CASE.items() if k != "query"}, "messages": list(messages), **more}


def expects(**expect: Any) -> dict[str, Any]:
    return {**CASE, "expect": {"calls": [], **expect}}


def matching(**match: Any) -> dict[str, Any]:
    return {**CASE, "expect": {"calls": [{"name": "f", "match": match}]}}


FULL = {
    **goes_on(*TALK, USER),
    "id": "full",
    "files": {"a.txt": "1"},
    "follow_ups": ["And now?"],
    "source": "here",
    "licence": "MIT",
    "expect": {
        "any_of": [[{"name": ["f"], "arguments": {"x": 1}, "match": {"s": {"regex": "a+", "optional": True}}}], []],
        "order": "given",
        "parallel": False,
        "answer": {"contains": ["x"], "matches": "^y", "lacks": ["z"]},
        "files": {"a.txt": "2", "b.txt": None, "c.txt": {"lacks": ["q"]}},
        "execution": "any",
        "turns": "first",
    },
}
MATCHERS = (
    {"exact": None}, {"one_of": [1, "2"]}, {"set": []}, {"regex": "a|b"}, {"number": 1}, {"min": 1}, {"max": 1.5},
    {"number": 2.5, "tolerance": 1}, {"min": 1, "max": 1, "optional": True}, {"predicate": "non_empty"},
)  # fmt: skip
GOOD = (
    CASE,
    FULL,
    *({**matching(a=m), "id": f"m{i}"} for i, m in enumerate(MATCHERS)),
    {**goes_on({"role": "user", "content": [{"type": "text", "text": "Do it"}]}), "id": "parts"},
    {**matching(n={"min": 0}, l={"set": [1]}, odd={"set": [1]}), "id": "types"},
    {"id": "2", "category": "d", "query": "q", "system": "s", "tools": [], "expect": {"calls": []}},
)


# ---- what is read ----


def test_reads_all_forms(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", CASE, "", *GOOD[1:])
    suite = read_suite(path)
    assert [c.id for c in suite.cases] == [c["id"] for c in GOOD]
    assert suite.name == "s" and suite.where(1) == f"{path}:3"
    first = suite.cases[0]
    assert first.expect.calls[0].names == ["f"] and first.expect.execution == "succeeds"


def test_a_case_says_what_it_expects() -> None:
    full, plain = Case.model_validate(FULL), Case.model_validate(CASE)
    direct = Case.model_validate(expects())
    assert [case.expects_call for case in (plain, direct, full)] == [True, False, False]
    assert plain.alternatives == [plain.expect.calls] and direct.alternatives == [[]]
    assert [len(calls) for calls in full.alternatives] == [1, 0] and full.expect.calls == []
    either = {**CASE, "expect": {"any_of": [[{"name": "f"}], [{"name": "f"}, {"name": "f"}]]}}
    assert Case.model_validate(either).expects_call


def test_a_case_goes_on_with_a_conversation() -> None:
    full = Case.model_validate(FULL)
    assert full.query == "Do it" and full.conversation == [*TALK, USER]
    asked = Case.model_validate({**CASE, "system": "Hm."})
    assert asked.conversation == [{"role": "system", "content": "Hm."}, {"role": "user", "content": "q"}]
    assert Case.model_validate({**CASE, "system": ""}).conversation == [{"role": "user", "content": "q"}]
    parts = goes_on({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    assert Case.model_validate(parts).query == "ab"


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["id"])
def test_a_case_that_is_written_is_read_again(case: dict[str, Any]) -> None:
    read = Case.model_validate(case)
    written = read.model_dump(mode="json")
    assert Case.model_validate(json.loads(json.dumps(written))) == read
    assert ("query" in written) == ("query" in case) and ("messages" in written) == ("messages" in case)


# ---- the hash ----


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    first = read_suite(write(tmp_path / "a.jsonl", CASE))
    same = read_suite(write(tmp_path / "b.jsonl", "", json.dumps(CASE, indent=None, separators=(",", ":"))))
    other = read_suite(write(tmp_path / "c.jsonl", {**CASE, "query": "other"}))
    assert first.hash == same.hash != other.hash
    changed = [
        goes_on({"role": "user", "content": "q"}), {**CASE, "follow_ups": ["r"]}, {**CASE, "source": "s"},
        {**CASE, "expect": {"calls": [{"name": "f", "match": {}}]}},
        {**CASE, "expect": {"any_of": [[{"name": "f"}]]}}, {**CASE, "expect": {**CASE["expect"], "parallel": False}},
    ]  # fmt: skip
    hashes = {read_suite(write(tmp_path / "d.jsonl", case)).hash for case in changed}
    assert len(hashes | {first.hash}) == len(changed) + 1


def test_suites_of_before_have_the_hash_of_before(root: Path, tmp_path: Path) -> None:
    """What came to the format since then does not touch them: results on them can still be compared."""
    suite = read_suite(root / "data" / "suites" / "discrimination.jsonl")
    assert suite.hash == "f46a2f863794d8e9965e25bd5307c7cb3a719e27927be8acf8a1c7a20c157ce9"
    spelled_out = {**CASE, "follow_ups": [], "source": None, "expect": {**CASE["expect"], "order": "any"}}
    hashes = {read_suite(write(tmp_path / "s.jsonl", case)).hash for case in (CASE, spelled_out)}
    assert len(hashes) == 1


# ---- what is refused ----

BAD = (
    ("{", "not JSON"),
    ("[]", "a case is a JSON object, not list"),
    ('{"id": "1", "id": "2"}', "the key 'id' stands twice"),
    ('{"id": NaN}', "NaN is no JSON value"),
    (json.dumps({**CASE, "query": "\ud800"}), "half of a surrogate pair"),
    ({**CASE, "colour": 1}, "colour: Extra inputs"),
    ({k: v for k, v in CASE.items() if k != "query"}, "neither `query` nor `messages`: give exactly one"),
    ({**CASE, "messages": [USER]}, "both `query` and `messages`: give exactly one"),
    ({**CASE, "query": ""}, "query: String should have at least 1 character"),
    ({**CASE, "id": 7}, "id: Input should be a valid string"),
    ({**CASE, "follow_ups": [""]}, "follow_ups.0: String should have at least 1 character"),
    ({**CASE, "tools": [TOOL, TOOL]}, "two tools have the same name"),
    ({**CASE, "tools": [{"name": "f"}]}, "a tool is"),
    ({**CASE, "files": {"../x": ""}}, "no relative path"),
    ({**CASE, "files": {"/etc/x": ""}}, "no relative path"),
    (CASE, "id '1' stands on line 1 already"),
    # Conversations.
    (goes_on(), "messages: there is no message"),
    ({**goes_on(), "messages": "hi"}, "messages: Input should be a valid list"),
    (goes_on(USER, {"role": "assistant", "content": "b"}), "the last message is from assistant: it must be a user's"),
    (goes_on({"role": "user", "content": " "}), "the last message says nothing"),
    (goes_on({"role": "usr", "content": "a"}), "message 1 has the role 'usr', not one of system"),
    (goes_on({"role": "user"}), "message 1 has no `content`"),
    (goes_on({"role": "user", "content": 1}), "message 1 has `content` that is no text"),
    (
        goes_on({"role": "user", "content": [{"type": "image_url"}]}),
        "message 1 has a part of `content` that is no text",
    ),
    (goes_on({**CALLS, "role": "user"}), "message 1 has `tool_calls`, but is from user"),
    (goes_on(USER, {"role": "assistant", "tool_calls": []}, USER), "message 2 has no `content`"),
    (goes_on(USER, {"role": "assistant", "content": "", "tool_calls": []}, USER), "no list of at least one call"),
    (goes_on(USER, {**CALLS, "tool_calls": [{"id": "1"}]}, USER), "message 2 has a tool call without a function name"),
    (goes_on(USER, {**CALLS, "tool_calls": [{"function": {"name": "g"}}]}, USER), "a call of g without an id"),
    (
        goes_on(USER, {**CALLS, "tool_calls": [{"id": "1", "function": {"name": "g", "arguments": "["}}]}, USER),
        "a call of g whose arguments are not the JSON text of an object",
    ),
    (goes_on(USER, CALLS, USER), "message 3 comes before the result of call '1'"),
    (goes_on(USER, CALLS, RESULT, RESULT, USER), "message 4 is the result of call '1', which waits for none"),
    (goes_on(USER, {"role": "system", "content": "a"}, USER), "message 2 is a system message: only the first may be"),
    (goes_on(*TALK, USER, system="s"), "both `system` and a system message"),
    # Expectations.
    ({**CASE, "expect": {}}, "expect: neither `calls` nor `any_of`"),
    (expects(any_of=[[]]), "expect: both `calls` and `any_of`"),
    ({**CASE, "expect": {"any_of": []}}, "expect.any_of: List should have at least 1 item"),
    (expects(execution="maybe"), "expect.execution"),
    (expects(order="sorted"), "expect.order"),
    (expects(parallel="yes"), "expect.parallel"),
    ({**CASE, "expect": {"calls": [{"name": "f", "arg": {}}]}}, "expect.calls.0.arg: Extra inputs"),
    ({**CASE, "expect": {"calls": [{"name": []}]}}, "expect.calls: an empty list of names"),
    ({**CASE, "expect": {"calls": [{"name": "g"}]}}, "expect.calls names g, which `tools` does not offer"),
    ({**CASE, "expect": {"any_of": [[], [{"name": "g"}]]}}, "expect.any_of names g, which `tools` does not offer"),
    ({**CASE, "expect": {"calls": [{"name": "f", "arguments": {"y": 1}}]}}, "an argument y that its schema has not"),
    (
        {**CASE, "expect": {"calls": [{"name": "f"}, {"name": "f"}], "turns": "first", "parallel": False}},
        "of one turn several calls are expected, and parallel is false",
    ),
    (expects(answer={}), "expect.answer: give at least one of contains, matches and lacks"),
    (expects(answer={"contains": []}), "expect.answer.contains: List should have at least 1 item"),
    (expects(answer={"lacks": [""]}), "expect.answer.lacks.0: String should have at least 1 character"),
    (expects(answer={"matches": "("}), "expect.answer.matches: '(' is no regular expression"),
    (expects(answer={"contains": ["abc"], "lacks": ["b"]}), "a text with 'abc' cannot lack 'b'"),
    (expects(files={"../a": None}), "no relative path"),
    (expects(files={"a": {}}), "give at least one of contains"),
    # Matchers.
    (matching(y={"exact": 1}), "an argument y that its schema has not"),
    (matching(x={}), "a matcher has exactly one of the keys exact"),
    (matching(x={"tolerance": 1}), "a matcher has exactly one of the keys exact"),
    (matching(x={"optional": True}), "a matcher has exactly one of the keys exact"),
    (matching(x={"exact": 1, "min": 1}), "a matcher has exactly one of the keys exact"),
    (matching(x=3), "a matcher has exactly one of the keys exact"),
    (matching(x={"number": 1, "tolerance": -1}), "tolerance: Input should be greater than or equal to 0"),
    (matching(x={"number": "1"}), "expect.calls.0.match.x.number"),
    (matching(x={"min": None}), "min and max are both null"),
    (matching(x={"min": 2, "max": 1}), "no number is at least 2 and at most 1"),
    (matching(x={"one_of": []}), "one_of: List should have at least 1 item"),
    (matching(s={"regex": "*"}), "'*' is no regular expression"),
    (matching(s={"predicate": "pretty"}), "there is no predicate 'pretty': they are"),
    (matching(s={"number": 1}), "expect.calls matches s of f, string in its schema, which number never matches"),
    (matching(n={"regex": "1"}), "expect.calls matches n of f, integer or null in its schema, which regex never"),
    (
        {**CASE, "expect": {"calls": [{"name": "f", "arguments": {"x": 1}, "match": {"x": {"min": 1}}}]}},
        "has x of f both in arguments and in match",
    ),
)


@pytest.mark.parametrize(("case", "message"), BAD)
def test_errors_name_the_line(tmp_path: Path, case: Any, message: str) -> None:
    with pytest.raises(DataError) as e:
        read_suite(write(tmp_path / "s.jsonl", CASE, case))
    assert f"{tmp_path / 's.jsonl'}:2: " in str(e.value) and message in str(e.value)


def test_all_errors_of_a_file_are_found(tmp_path: Path) -> None:
    twice = {**CASE, "id": 3, "category": 4}
    suite, problems = examine(write(tmp_path / "s.jsonl", "{", CASE, twice, "", CASE, {**CASE, "id": "9"}))
    assert [c.id for c in suite.cases] == ["1", "9"] and suite.lines == (2, 6)
    assert [p.line for p in problems] == [1, 3, 3, 5]
    assert problems[1].text.startswith("id: ") and problems[2].text.startswith("category: ")
    with pytest.raises(DataError, match=r"s\.jsonl:3: id: .* \(and 1 more\)"):
        read_suite(write(tmp_path / "s.jsonl", "", CASE, twice))


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_files_that_are_no_suite(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.jsonl"):
        read_suite(path)


# ---- the published schema ----


@pytest.fixture(scope="module")
def published(root: Path) -> dict[str, Any]:
    return json.loads((root / "data" / "suites" / "schema.json").read_text(encoding="utf-8"))


def test_the_published_schema_is_of_this_reader(published: dict[str, Any]) -> None:
    assert published == json_schema(), "write it again: punie-mlx suite schema > data/suites/schema.json"


def test_the_schema_accepts_what_is_shipped(published: dict[str, Any], root: Path) -> None:
    Draft202012Validator.check_schema(published)
    validator = Draft202012Validator(published)
    suites = sorted((root / "data" / "suites").glob("*.jsonl"))
    assert len(suites) >= 2
    for path in suites:
        read_suite(path)
        for line in path.read_text(encoding="utf-8").splitlines():
            validator.validate(json.loads(line))


def test_the_schema_agrees_with_the_reader(published: dict[str, Any]) -> None:
    """It accepts what the reader accepts, and refuses what is wrong with a field by itself."""
    validator = Draft202012Validator(published)
    assert [case["id"] for case in GOOD if not validator.is_valid(case)] == []
    shapes = ("Extra inputs", "Input should be", "neither", "both `", "a matcher has", "should have at least 1")
    shapes = (*shapes, "there is no predicate", "give at least one of")
    told = [
        (case, message)
        for case, message in BAD
        if isinstance(case, dict) and any(s in message for s in shapes) and "system" not in message
    ]
    assert len(told) > 20
    assert [message for case, message in told if validator.is_valid(case)] == []


def test_every_field_of_a_case_is_described(published: dict[str, Any]) -> None:
    models = {"Case": published, "Expect": published["$defs"]["Expect"], "Text": published["$defs"]["ExpectedText"]}
    bare = [(m, f) for m, s in models.items() for f, v in s["properties"].items() if "description" not in v]
    assert bare == [("Case", "expect")]  # it has its own description where it is defined


def test_the_five_queries(root: Path) -> None:
    suite = read_suite(root / "data" / "suites" / "discrimination.jsonl")
    assert [c.category for c in suite.cases] == ["tool", "tool", "direct", "tool", "direct"]
    assert all(list(c.schemas) == ["run_command", "read_file"] for c in suite.cases)
