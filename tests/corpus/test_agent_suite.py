"""The shipped suite: made by the generator, right for a perfect agent, wrong for others, apart from the corpus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.corpus import generate
from punie_mlx.corpus.audit.near import Queries, normalize
from punie_mlx.corpus.rows import read_rows
from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.corpus.suites import agent as agent_suite
from punie_mlx.errors import ConfigError
from punie_mlx.evals.agent import Call, Run
from punie_mlx.evals.score import score
from punie_mlx.evals.scratch import Scratch

SPLITS = ("train", "valid", "test")
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def cases(root: Path) -> tuple[Case, ...]:
    return read_suite(root / "data/suites/agent.jsonl").cases


def spoken(case: Case) -> list[str]:
    said = [m["content"] for m in case.conversation if m["role"] == "user"]
    return [*said, *(case.follow_ups or ())]


def run_of(case: Case, directory: Path, change: Change = dict) -> Run:
    """The run of an agent that makes the expected calls, each in a turn of its own, and tells all results."""
    directory.mkdir(parents=True)
    scratch = Scratch(directory, case.files)
    run = Run()
    for expected in case.alternatives[0]:
        made = change(dict(expected.arguments or {}))
        call = Call(len(run.calls) + 1, f"call_{len(run.calls)}", expected.names[0], made)
        outcome = scratch.call(call.name, made, case.schemas[call.name])
        call.result, call.ok = outcome.text, outcome.ok
        run.calls.append(call)
    run.answer = "The results are: " + "\n".join(c.result or "" for c in run.calls)
    run.files = scratch.snapshot()
    return run


def changed(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list():
            return value[:-1]
        case dict():
            return {**value, "another": 1}
    return "something"


def each_change(arguments: dict[str, Any]) -> Iterator[Change]:
    for name in arguments:
        yield lambda made, name=name: {**made, name: changed(made[name])} if name in made else made


def test_the_shipped_suite_is_what_the_generator_makes(root: Path, tmp_path: Path) -> None:
    agent_suite.write_suite(tmp_path / "suite.jsonl")  # another process made the shipped one: no order of sets counts
    assert (tmp_path / "suite.jsonl").read_bytes() == (root / "data/suites/agent.jsonl").read_bytes()


def test_a_shorter_suite_is_the_beginning_of_a_longer_one_and_holds_every_category() -> None:
    short, long = agent_suite.suite(56, 3), agent_suite.suite(112, 3)
    assert short == long[:56] != agent_suite.suite(56, 4)
    assert {c["category"] for c in short} == {c["category"] for c in long}


def test_more_cases_than_there_are_questions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_suite, "SPARE", 1)  # as if no more could be drawn
    with pytest.raises(ConfigError, match="--cases 112: there are not so many different cases of"):
        agent_suite.suite(112, 0)


def test_enough_cases_of_each_category(cases: tuple[Case, ...]) -> None:
    count = Counter(c.category for c in cases)
    assert len(cases) >= 520 and min(count.values()) >= 25
    assert set(count) == {
        *agent_suite.EASY, *(name + agent_suite.NEW for name in agent_suite.EASY),
        "typed arguments", "long arguments", "two turns", "three turns", "error then recovery",
        "injection in a tool result", "answer from result",
    }  # fmt: skip
    easy = sum(n for name, n in count.items() if name.removesuffix(agent_suite.NEW) in agent_suite.EASY)
    assert easy >= 240
    assert all(c.source == "punie-mlx generate" and c.licence == "MIT" for c in cases)


def test_half_of_each_category_is_on_tool_sets_that_training_never_saw(cases: tuple[Case, ...]) -> None:
    known = {frozenset(t) for t in generate.tool_sets(0)}
    new: Counter[str] = Counter()
    for case in cases:
        offered = frozenset(case.schemas)
        assert 2 <= len(offered) <= 8
        name = case.category.removesuffix(agent_suite.NEW)
        if name in agent_suite.EASY:
            assert (offered in known) != case.category.endswith(agent_suite.NEW)
        new[name] += offered not in known
    count = Counter(c.category.removesuffix(agent_suite.NEW) for c in cases)
    assert {name: 2 * n for name, n in new.items()} == count


def test_no_question_is_near_to_the_corpus_or_to_another_case(root: Path, cases: tuple[Case, ...]) -> None:
    rows = (r for split in SPLITS for r in read_rows(root / f"data/phase8_json_format/{split}.jsonl"))
    corpus = [m["content"] for row in rows for m in row.messages if m["role"] == "user"]
    corpus += [c.query for c in read_suite(root / "data/suites/discrimination.jsonl").cases]
    asked = [q for case in cases for q in spoken(case)]
    known = Queries({normalize(q): q for q in corpus}, map(normalize, asked))
    assert not set(map(normalize, asked)) & set(map(normalize, corpus))
    assert [q for q in asked if known.near(normalize(q), q)] == []

    own = {normalize(c.query): c.query for c in cases}
    assert len(own) == len(cases)
    among = Queries(own, own)
    assert [q for q in own.values() if among.near(normalize(q), q)] == []
    assert all(generate.bucket(c.query) == "suite" for c in cases)


def test_a_perfect_agent_passes_every_case(cases: tuple[Case, ...], tmp_path: Path) -> None:
    for case in cases:
        run = run_of(case, tmp_path / case.id)
        for lenient in (False, True):
            verdict = score(case, run, lenient=lenient)
            assert verdict.passed, (case.id, verdict.reasons)


def test_an_agent_that_changes_one_argument_passes_none(cases: tuple[Case, ...], tmp_path: Path) -> None:
    tried = 0
    for case in cases:
        names = {name: None for e in case.alternatives[0] for name in e.arguments or {}}
        for n, change in enumerate(each_change(names)):
            tried += 1
            assert not score(case, run_of(case, tmp_path / f"{case.id}-{n}", change)).passed, (case.id, n)
    assert tried > 700


@pytest.mark.parametrize("answer", [None, "", "I cannot do that."])
def test_an_agent_that_does_nothing_passes_no_case_with_calls(
    cases: tuple[Case, ...], tmp_path: Path, answer: str | None
) -> None:
    passed = [c for c in cases if score(c, Run(answer=answer, files=dict(c.files))).passed]
    assert len(passed) == (120 if answer else 0)
    assert not any(c.expects_call for c in passed)


def test_a_call_too_many_or_too_few_fails(cases: tuple[Case, ...], tmp_path: Path) -> None:
    for case in cases[:112]:
        run = run_of(case, tmp_path / case.id)
        tool = case.tools[0]["function"]["name"]
        extra = Call(len(run.calls) + 1, "extra", tool, {}, result="ok", ok=True)
        assert not score(case, Run(calls=[*run.calls, extra], answer=run.answer, files=run.files)).passed, case.id
        if run.calls:
            assert not score(case, Run(calls=run.calls[1:], answer=run.answer, files=run.files)).passed, case.id


def test_the_first_call_of_a_recovery_fails_and_the_second_does_what_was_asked(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    runs = {c.id: run_of(c, tmp_path / c.id) for c in cases if c.category == "error then recovery"}
    ok = Counter(tuple(call.ok for call in run.calls) for run in runs.values())
    assert set(ok) == {(False, True), (True,)} and ok[False, True] >= 25 and ok[(True,)] >= 3


def test_an_agent_that_does_not_wait_for_the_error_fails(cases: tuple[Case, ...], tmp_path: Path) -> None:
    for case in (c for c in cases if c.category == "error then recovery"):
        run = run_of(case, tmp_path / case.id)
        for call in run.calls:
            call.turn = 1
        assert score(case, run).passed == (len(run.calls) == 1), case.id


def test_who_obeys_an_injected_order_fails(cases: tuple[Case, ...], tmp_path: Path) -> None:
    injected = [c for c in cases if c.category == "injection in a tool result"]
    for case in injected:
        run = run_of(case, tmp_path / case.id)
        assert case.expect.answer and case.expect.answer.lacks and case.expect.files
        run.answer = f"{run.answer} {case.expect.answer.lacks[0]}"
        assert not score(case, run).passed, case.id
        held = json.dumps([case.files, spoken(case), [m.get("content") for m in case.conversation]])
        assert case.expect.answer.lacks[0] not in held
    assert sum(len(c.conversation) > 1 for c in injected) >= 10


def test_the_value_of_an_answer_stands_only_in_the_result(cases: tuple[Case, ...], tmp_path: Path) -> None:
    for case in (c for c in cases if c.category == "answer from result"):
        run = run_of(case, tmp_path / case.id)
        guess = Run(calls=run.calls, answer=f"I did it: {' '.join(spoken(case))}", files=run.files)
        assert not score(case, guess).passed, case.id


def test_later_turns_lean_on_earlier_ones(cases: tuple[Case, ...]) -> None:
    for category, turns in (("two turns", 2), ("three turns", 3)):
        found = [c for c in cases if c.category == category]
        assert all(len(spoken(c)) == turns for c in found)
        histories = [c for c in found if len(c.conversation) > 1]
        assert 8 <= len(histories) <= len(found) - 8
        assert all(any("tool_calls" in m for m in c.conversation) for c in histories)
    texts = [q for c in cases if c.category in ("two turns", "three turns") for q in spoken(c)[1:]]
    assert sum(" it" in q or "that" in q or q.startswith("And ") for q in texts) > len(texts) / 3


def test_every_type_of_argument_is_asked_for(cases: tuple[Case, ...]) -> None:
    found: Counter[str] = Counter()
    for case in (c for c in cases if c.category == "typed arguments"):
        for expected in case.alternatives[0]:
            found.update(type(v).__name__ for v in (expected.arguments or {}).values())
    assert min(found[t] for t in ("str", "int", "float", "bool", "list", "dict")) >= 3
