"""The scorer on runs that were made by hand: what passes, which check fails, and what the reasons say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from punie_mlx.corpus.suite import Case
from punie_mlx.evals.score import CHECKS, score, scored_calls

from .scoring import DID_FIND, DID_READ, FENCE, FIND, LATER, READ, TABLE, Row, calls, faults_of, made, run


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_the_scorer_says(row: Row):
    assert faults_of(row, Case.model_validate(row.case), score) == []


def test_the_table_is_one():
    assert len({row.name for row in TABLE}) == len(TABLE) > 120
    failing = [check for row in TABLE for check in row.fails]
    assert all(failing.count(check) >= 3 for check in CHECKS)


def case(expect) -> Case:
    return Case.model_validate(Row("", expect, run()).case)


def test_every_check_is_on_record():
    verdict = score(case(calls(READ)), run(DID_READ))
    assert verdict.passed and list(verdict.checks) == list(CHECKS)
    assert verdict.checks == {
        "names": True, "arguments": True, "order": None, "parallel": None, "execution": True, "files": None,
        "answer": True,
    }  # fmt: skip


def test_an_unread_call_is_told_apart():
    for expect in (calls(), calls(READ)):
        assert score(case(expect), run(answer=FENCE)).unread_call
        assert not score(case(expect), run(answer="A plain answer.")).unread_call
    assert score(case(calls()), run(answer=FENCE), lenient=True).unread_call


def test_the_calls_that_count():
    both = run(DID_READ, LATER)
    assert scored_calls(case(calls(READ)), both) == both.calls
    assert scored_calls(case(calls(READ, turns="first")), both) == [DID_READ]
    late = run(LATER)
    assert scored_calls(case(calls(READ, turns="first")), late) == [LATER]
    assert scored_calls(case(calls(READ, turns="first")), run()) == []


def test_the_order_of_calls_and_expectations_is_nothing():
    """Where the order is free, no order of the same calls changes the verdict."""
    chance = random.Random(4)
    expected = [READ, FIND, {"name": ["read", "find"]}, {"name": "read", "match": {"path": {"regex": "[xyz]"}}}]
    right = [DID_READ, DID_FIND, made("find", {"path": "q"}), made("read", {"path": "y"})]
    wrong = [*right[:3], made("read", {"path": "yy"})]
    for _ in range(30):
        chance.shuffle(expected)
        for calls_made, passed in ((right, True), (wrong, False)):
            shuffled = chance.sample(calls_made, 4)
            assert score(case(calls(*expected)), run(*shuffled)).passed is passed


def test_a_long_list_of_calls_is_paired_fast():
    """Each of 60 calls fits all expectations but the last, which only the first call fits."""
    expected = [{"name": ["read", "find"]}] * 59 + [READ]
    many = [DID_READ, *[made("find", {"path": str(i)}) for i in range(59)]]
    assert score(case(calls(*expected)), run(*many)).passed
    assert not score(case(calls(*expected)), run(*many[1:], many[1])).passed


def test_long_texts_are_cut_in_reasons():
    found = score(case(calls(READ, answer={"contains": ["needle"]})), run(DID_READ, answer="hay " * 5000))
    assert found.checks["answer"] is False and all(len(reason) < 300 for reason in found.reasons)


def test_a_run_is_not_changed():
    before = run(DID_READ, DID_FIND)
    copy = replace(before, calls=[replace(c) for c in before.calls])
    score(case(calls(READ, FIND, order="given")), before)
    assert before == replace(copy, began=before.began)
