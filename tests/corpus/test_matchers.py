"""Matchers of arguments by themselves, strict and lenient, and the pairing of calls with what is expected."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.corpus.suites.matchers import ExpectedCall, assign, faults, fits, loosened, same
from punie_mlx.corpus.suites.predicates import PREDICATES

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"}, "unit": {"type": "string", "default": "C"}, "count": {"type": "integer"},
        "size": {"type": "number"}, "tags": {"type": "array", "items": {"type": "number"}}, "free": {},
    },
}  # fmt: skip


@dataclass
class Made:
    name: str
    arguments: Any


def wrong(arguments: Any, given: dict[str, Any] | None = None, lenient: bool = False, **match: Any) -> list[str]:
    """The arguments that are not as `given` and `match` say."""
    value = {"name": "f"} | ({} if given is None else {"arguments": given}) | ({"match": match} if match else {})
    return faults(ExpectedCall.model_validate(value), arguments, SCHEMA, lenient)


# ---- which arguments are at fault ----


@pytest.mark.parametrize(
    ("arguments", "expected", "match", "names"),
    [
        ({"path": "a"}, {"path": "a"}, {}, []),
        ({"path": "a", "unit": "C"}, {"path": "a"}, {}, []),
        ({"path": "b", "count": 1}, {"path": "a"}, {}, ["path", "count"]),
        ({}, {"path": "a"}, {}, ["path"]),
        ("{", {"path": "a"}, {}, [""]),
        (None, None, {"path": {"predicate": "non_empty"}}, [""]),
        ({"path": "a", "count": 2}, {"path": "a"}, {"count": {"min": 3}}, ["count"]),
        ({"path": "b", "size": 0, "free": 1}, {"path": "a"}, {"count": {"min": 3}}, ["path", "count", "size", "free"]),
        ({"unit": "K"}, None, {"count": {"min": 3, "optional": True}}, ["unit"]),
        ({}, None, {"unit": {"exact": "K"}}, ["unit"]),
        ({}, None, {"unit": {"exact": "C"}}, []),
        ({}, None, {"unit": {"exact": "K", "optional": True}}, []),
        ({"unit": "C"}, None, {"unit": {"exact": "K", "optional": True}}, ["unit"]),
    ],
)
def test_the_arguments_at_fault(arguments: Any, expected: Any, match: Any, names: list[str]) -> None:
    assert sorted(wrong(arguments, expected, **match)) == sorted(names)


def test_no_arguments_are_looked_at_where_none_are_given() -> None:
    bare = ExpectedCall.model_validate({"name": "f"})
    assert not bare.looks_at_arguments and faults(bare, "{", SCHEMA) == []
    assert ExpectedCall.model_validate({"name": "f", "match": {}}).looks_at_arguments
    assert wrong({"free": 1}, {}) == ["free"]


def test_a_schema_of_branches_decides_as_a_whole() -> None:
    schema = {"anyOf": [{"properties": {"x": {"const": 1}}, "required": ["x"]}], "type": "object"}
    expected = ExpectedCall.model_validate({"name": "f", "arguments": {}})
    assert faults(expected, {}, schema) == [""]
    assert faults(ExpectedCall.model_validate({"name": "f", "arguments": {"x": 1}}), {"x": 1}, schema) == []


def test_the_level_of_names() -> None:
    call = ExpectedCall.model_validate({"name": ["f", "g"], "arguments": {"path": "a"}})
    schemas = {"f": SCHEMA, "g": SCHEMA}
    assert fits(call, Made("g", {}), schemas, "names") and not fits(call, Made("g", {}), schemas, "arguments")
    assert not fits(call, Made("h", {"path": "a"}), schemas, "names")  # a tool that nobody offers has no schema
    assert fits(call, Made("f", {"path": "a"}), schemas, "arguments")


def test_what_is_wanted_is_told_as_the_suite_spells_it() -> None:
    match = {"size": {"number": 1, "tolerance": 2}, "unit": {"one_of": ["C", "K"], "optional": True}}
    call = ExpectedCall.model_validate({"name": "f", "arguments": {"path": "a"}, "match": match})
    assert call.wanted() == {"path": "a", **match}


# ---- values ----


def test_a_set_compares_its_items_under_their_schema() -> None:
    assert wrong({"tags": [2.0, 1]}, tags={"set": [1, 2]}) == []
    assert wrong({"free": [2.0, 1]}, free={"set": [1, 2]}) == ["free"]
    assert wrong({"free": [1, 1, 2]}, free={"set": [2, 1, 1]}) == []
    assert wrong({"free": [1, 2, 2]}, free={"set": [2, 1, 1]}) == ["free"]
    assert wrong({"free": [[1], {"a": True}]}, free={"set": [{"a": True}, [1]]}) == []
    assert wrong({"free": []}, free={"set": []}) == []


@pytest.mark.parametrize("value", [True, "1", None, [1], {}])
def test_what_is_no_number_is_in_no_range(value: Any) -> None:
    for matcher in ({"number": 1}, {"min": 0}, {"max": 2}, {"number": 1, "tolerance": 5}):
        assert wrong({"free": value}, free=matcher) == ["free"]
        assert wrong({"free": value}, free=matcher, lenient=True) == ["free"]


def test_a_number_keeps_its_schema() -> None:
    assert wrong({"count": 2.0}, count={"number": 2}) == ["count"]
    assert wrong({"size": 2}, size={"number": 2.0}) == [] and wrong({"free": 2}, free={"number": 2.0}) == []


@pytest.mark.parametrize(
    ("loose", "other"), [("A b-C", "abc"), ("x_1.py", "X1PY"), ("it's", 'it"s'), ("a*b^c/d", "ab,cd")]
)
def test_texts_that_are_loosely_the_same(loose: str, other: str) -> None:
    assert same(loose, other, {}, True) and not same(loose, other, {})
    assert loosened(loose) == loosened(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a+b", "ab"), ("a(b)", "ab"), ("a:b", "ab"), ("ä", "a"), ("1", 1), (True, 1)]
)
def test_what_is_not_even_loosely_the_same(one: Any, other: Any) -> None:
    assert not same(one, other, {}, True) and not same(other, one, {}, True)


def test_lenient_reaches_every_depth() -> None:
    assert same({"a": [{"b": "X y"}, 1.0]}, {"a": [{"b": "xy"}, 1]}, {}, True)
    assert not same({"a": [{"b": "X y"}, 1.0]}, {"a": [{"b": "xy"}, 2]}, {}, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.0]) | st.sampled_from("aAb-. "),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(JSON, JSON)
def test_leniency_only_ever_adds(one: Any, other: Any) -> None:
    assert same(one, one, {}) and same(one, one, {}, True)
    assert same(one, other, {}, True) or not same(one, other, {})


# ---- predicates ----

FULFIL = {
    "absolute_path": (["/a", "/"], ["a", "./a", "", "/a\0"]),
    "email": (["a@b.de", "a.b+c@d.co.uk"], ["a", "a@b", "a b@c.de", "a@b..de", "@b.de"]),
    "iso_date": (["2024-02-29"], ["2023-02-29", "2024-2-9", "20240229", "2024-02-29T00:00:00"]),
    "iso_datetime": (["2024-02-29T10:00:00", "2024-02-29T10:00:00+02:00"], ["2024-02-29", "noon", "T"]),
    "json": (["{}", "0", "null", '"a"'], ["", "{", "a"]),
    "non_empty": (["a", [0], {"a": None}], ["", " \n", [], {}]),
    "positive": ([1, 0.5], [0, -1, True, float("nan")]),
    "python": (["x = 1", "print('\\d')"], ["", "x =", "# nothing", "a\0"]),
    "regex": (["a+", "\\d"], ["(", "*", ""]),
    "relative_path": (["a/b.py", "./a"], ["/a", "../a", "a/../../b", "", " ", "a\0b"]),
    "shell_command": (["ls -l", "echo 'a b'"], ["", "  ", "echo 'a"]),
    "url": (["http://a.de", "https://a.de:80/b?c"], ["a.de", "ftp://a.de", "http://", "http://a b.de", "http://[a"]),
    "uuid": (["12345678-1234-5678-1234-567812345678"], ["1234", ""]),
}  # fmt: skip


def test_every_predicate_is_tried() -> None:
    assert FULFIL.keys() == PREDICATES.keys()


@pytest.mark.parametrize("name", sorted(PREDICATES))
def test_predicates(name: str) -> None:
    test, (right, wrong_ones) = PREDICATES[name], FULFIL[name]
    assert [v for v in right if test(v) is not True] == [] and [v for v in wrong_ones if test(v) is not False] == []
    strange = [None, object(), b"a", "\ud800" * 3, "(" * 5000, *([] if name == "positive" else [1, 2.5, True])]
    for value in strange:
        assert test(value) in (True, False)
    assert test(None) is False


# ---- who made which call ----


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 3)), max_size=4), st.integers(0, 4))
def test_no_assignment_is_better(choices: list[set[int]], size: int) -> None:
    """Each is given a good one, none is given twice, and of all permutations none seats more."""
    found = assign(choices, range(size), lambda wanted, i: i in wanted)
    seated = [i for i in found if i is not None]
    assert len(found) == len(choices) and len(set(seated)) == len(seated)
    assert all(i in wanted for wanted, i in zip(choices, found, strict=True) if i is not None)
    seats = permutations([*range(size), *[-1] * len(choices)], len(choices))
    assert len(seated) == max(sum(i in wanted for wanted, i in zip(choices, seat, strict=True)) for seat in seats)


def test_an_earlier_one_is_pushed_on() -> None:
    fit = {(0, 0), (0, 1), (1, 0), (2, 1), (0, 2)}
    assert assign(range(3), range(3), lambda a, b: (a, b) in fit) == [2, 0, 1]
    assert assign([], [1], lambda a, b: True) == [] and assign([1], [], lambda a, b: True) == [None]
