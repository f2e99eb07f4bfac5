"""What a model writes, token by token with probabilities: the same tokens as everywhere, and text where it belongs."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from punie_mlx import direct, raw
from punie_mlx.chat.render import safe_prompt
from punie_mlx.corpus.world import TOOLS

OFFERED = [TOOLS["read_file"]]
ASKED = [{"role": "user", "content": "What is recursion?"}]
READS = [{"role": "user", "content": "Show me the file src/app.py"}]


@pytest.fixture(scope="module")
def model(tiny_base):
    yield direct.Model(tiny_base)
    mx.enable_compile()


@pytest.fixture(scope="module")
def prompt(model):
    return safe_prompt(model.tokenizer, READS, OFFERED).tokens


@pytest.fixture(scope="module")
def steps(model, prompt):
    return list(raw.watch(model, prompt, {"call": model.tokenizer.get_vocab()["<tool_call>"], "beyond": 10**9}))


def test_the_tokens_are_those_of_an_answer(model, steps):
    found = model.answer({"messages": READS, "tools": OFFERED, "max_tokens": 256})
    assert [s.token for s in steps if not s.end] == found["tokens"]
    assert "".join(s.text for s in steps if not s.end) == found["text"] and "read_file" in found["text"]
    assert [s.end for s in steps] == [False] * len(found["tokens"]) + [True]
    assert steps[-1].text == "" and steps[-1].spelling == "<|im_end|>"


def test_probabilities_are_the_models_own(model, prompt, steps):
    first = steps[0]
    assert [p for _, _, p in first.top] == sorted((p for _, _, p in first.top), reverse=True) and len(first.top) == 5
    assert all(s.token == s.top[0][0] and s.probability == s.top[0][2] for s in steps)
    assert all(0 < sum(p for _, _, p in s.top) < 1 + 1e-5 for s in steps)
    call = model.tokenizer.get_vocab()["<tool_call>"]
    (likely,) = raw.likelihood(model, prompt, [call])
    assert first.watched["call"] == pytest.approx(likely, rel=1e-3) and 0 < likely < 0.5
    assert first.watched["beyond"] == 0.0


def test_the_likelihood_of_what_is_written_is_what_it_was_written_with(model, prompt, steps):
    found = raw.likelihood(model, prompt, [s.token for s in steps])
    assert found == pytest.approx([s.probability for s in steps], rel=1e-2, abs=1e-4)
    assert raw.likelihood(model, prompt, []) == []


def test_a_temperature_changes_the_draw_and_not_the_probabilities(model, prompt, steps):
    (drawn,) = raw.watch(model, prompt, {}, most=1, temperature=3.0, seed=4)
    assert drawn.top[0][2] == pytest.approx(steps[0].top[0][2], rel=1e-4)
    (again,) = raw.watch(model, prompt, {}, most=1, temperature=3.0, seed=4)
    assert again == drawn
    others = {next(raw.watch(model, prompt, {}, most=1, temperature=3.0, seed=s)).token for s in range(6)}
    assert len(others) > 1


def test_an_answer_that_is_cut_keeps_the_text_that_was_held_back(model, prompt):
    asked = safe_prompt(model.tokenizer, ASKED, OFFERED).tokens
    whole = [s for s in raw.watch(model, asked, {}) if not s.end]
    held = [i for i, s in enumerate(whole) if s.spelling.strip() == "" and s.text == ""]
    assert held, "no token of this answer is held back: ask for another one"
    cut = list(raw.watch(model, asked, {}, most=held[0] + 1))
    assert cut[-1].text == whole[held[0]].spelling and not cut[-1].end
    assert len(cut) == held[0] + 1


def test_text_held_back_at_the_end_is_not_the_end_tokens(scripted_model):
    """This answer ends in white space, which the detokenizer keeps until it knows what follows."""
    model = direct.Model(scripted_model)
    asked = model.tokenizer.encode("#spaced-call", add_special_tokens=False)
    steps = list(raw.watch(model, asked, {}))
    mx.enable_compile()
    assert steps[-1].end and steps[-1].text == ""
    assert "".join(s.text for s in steps) == "".join(s.spelling for s in steps[:-1])
    assert steps[-2].text.endswith("\n ")


def test_the_clock_ends_an_answer_with_all_its_text(model, prompt):
    steps = list(raw.watch(model, prompt, {}, seconds=0.0))
    assert len(steps) == 1 and steps[0].text == steps[0].spelling


def test_who_looks_at_no_more_than_some_steps_leaves_nothing_behind(model, prompt, steps):
    watching = raw.watch(model, prompt, {})
    first = next(watching)
    watching.close()
    assert first.token == steps[0].token
    again = list(raw.watch(model, prompt, {}))
    assert [s.token for s in again] == [s.token for s in steps]
    assert math.isclose(again[0].probability, steps[0].probability, rel_tol=1e-4)
