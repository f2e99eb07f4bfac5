"""The scorer is tried before it is trusted: right runs made up from cases, wrong ones, and scorers that cannot tell."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.corpus.suites.predicates import PREDICATES
from punie_mlx.errors import DataError
from punie_mlx.evals import gold, selfcheck
from punie_mlx.evals.score import Verdict, score

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}, "c": {"type": "string"}}}


def case(expect, **more):
    tools = [{"type": "function", "function": {"name": n, "parameters": NUMBER}} for n in ("one", "two")]
    return Case.model_validate({"id": "x", "category": "c", "query": "q?", "tools": tools, "expect": expect, **more})


EXPECTATIONS = [
    {"calls": []},
    {"calls": [{"name": "one"}]},
    {"calls": [{"name": ["two", "one"], "arguments": {"a": 3, "c": "x"}}]},
    {"calls": [{"name": "one", "match": {"a": {"number": 4, "tolerance": 1}, "b": {"set": [2, 1]}}}]},
    {"calls": [{"name": "one", "match": {"a": {"min": 1.5}, "c": {"regex": r"[a-z]+\.(py|txt)"}}}]},
    {"calls": [{"name": "one", "match": {"a": {"max": 1.5}, "c": {"one_of": ["p", "q"], "optional": True}}}]},
    {"calls": [{"name": "one"}, {"name": "two"}], "order": "given", "parallel": False},
    {"calls": [{"name": "one"}, {"name": "one", "arguments": {"a": 1}}], "parallel": True},
    {"calls": [{"name": "one"}], "turns": "first", "execution": "any"},
    {"any_of": [[{"name": "one"}], [{"name": "two"}, {"name": "two"}]]},
    {"any_of": [[], [{"name": "two"}]]},
    {"calls": [], "answer": {"contains": ["amber", "42"], "lacks": ["blue"]}},
    {"calls": [{"name": "one"}], "answer": {"matches": r"^\d{3} files? \(of \d+\)$"}},
    {"calls": [{"name": "one"}], "answer": {"lacks": ["Done"]}},
    {
        "calls": [{"name": "one"}],
        "files": {"a.txt": "whole", "gone.txt": None, "b.txt": {"contains": ["x"], "matches": "y+"}},
    },
]


@pytest.mark.parametrize("expect", EXPECTATIONS, ids=str)
def test_a_right_run_is_made_of_each_expectation(expect):
    made = case(expect)
    run = gold.perfect(made)
    assert run is not None and score(made, run).passed
    assert selfcheck.check([made]) == []


@pytest.mark.parametrize("name", sorted(PREDICATES))
def test_every_predicate_has_an_example(name):
    made = case({"calls": [{"name": "one", "match": {"c": {"predicate": name}}}]})
    run = gold.perfect(made)
    assert run is not None and PREDICATES[name](run.calls[0].arguments["c"])


@pytest.mark.parametrize(
    "pattern",
    [
        r"a+b*c?", r"[A-F0-9]{4}-\d\d", r"(foo|bar)-\1", r"(?i:hello)\s.*", r"[^\n]+", r"\bword\b", r"[^a-z\W_]+",
        r"é[éà]", r"(?P<n>x)(?P=n)", r"a{2,}?", r"[^a]b", r"\S\D\W", r"(?!b).c",
        r"(?is)(?=.*\b(5|five)\b)(?=.*\bpass).*",
    ],
)  # fmt: skip
def test_a_text_is_written_for_a_regex(pattern):
    assert re.fullmatch(pattern, gold._written(pattern))


def test_what_cannot_be_turned_round_is_said():
    """Two conditions on the same letters: no right run, but the wrong ones are tried all the same."""
    made = case({"calls": [{"name": "one", "match": {"c": {"regex": r"(?=[a-c]x)b.z"}}}]})
    assert gold.perfect(made) is None
    [warning] = selfcheck.check([made] * 7)
    assert warning.startswith("7 cases were not tried on a right run") and warning.endswith("x, x, x, x, x …")


def test_the_shipped_suites_can_tell(root):
    for path in sorted((root / "data" / "suites").glob("*.jsonl")):
        assert selfcheck.check(read_suite(path).cases) == []


# ---- scorers that cannot tell ----


def verdict(*reasons):
    return Verdict({}, reasons, False)


def passes_all(case, run, *, lenient=False):
    return verdict()


def passes_silence(case, run, *, lenient=False):
    return score(case, run, lenient=lenient) if run.calls or run.answer else verdict()


def passes_words(case, run, *, lenient=False):
    return verdict() if run.answer else score(case, run, lenient=lenient)


def counts_calls_only(case, run, *, lenient=False):
    return verdict() if len(run.calls) == len(case.alternatives[0]) else verdict("names")


def passes_leniently(case, run, *, lenient=False):
    return verdict() if lenient else score(case, run)


def fails_all(case, run, *, lenient=False):
    return verdict("no")


def ignores_execution_backwards(case, run, *, lenient=False):
    return score(case, replace(run, calls=[replace(c, ok=False) for c in run.calls]), lenient=lenient)


WANTS = {"calls": [{"name": "one"}]}


@pytest.mark.parametrize(
    ("broken", "expect", "message"),
    [
        (passes_all, WANTS, "case 'x' is passed by a model that says and does nothing, although it expects a call"),
        (passes_silence, WANTS, "is passed by a model that says and does nothing"),
        (passes_words, WANTS, "is passed by a model that makes no call, although it expects one"),
        (passes_words, {"calls": []}, "is passed by a call of no_such_tool, although it wants none"),
        (counts_calls_only, WANTS, "is passed by a call of a tool that is not offered"),
        (passes_leniently, WANTS, "is passed by a model that says and does nothing"),
        (fails_all, WANTS, r"is not passed by a run that does all it expects \(no\)"),
        (ignores_execution_backwards, WANTS, "is not passed by a run that does all it expects .execution: one: ok"),
    ],
)
def test_a_scorer_that_cannot_tell_is_found(monkeypatch, broken, expect, message):
    monkeypatch.setattr(selfcheck, "score", broken)
    with pytest.raises(DataError, match=message):
        selfcheck.check([case(expect)])
