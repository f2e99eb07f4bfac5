"""Scoring behaviour by real answers: what is right, what is asked, and that a training does not feel it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from punie_mlx import weights
from punie_mlx.chat.render import load_tokenizer, safe_prompt
from punie_mlx.corpus.suite import Case, Expect, Suite, read_suite
from punie_mlx.corpus.suites.agent import EASY, NEW
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.serve.request import ChatRequest
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import read
from punie_mlx.train import select
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loss import checkpointed
from punie_mlx.train.run import train
from punie_mlx.train.select import Behaviour, is_right, prepare, spread


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """On a CPU MLX runs a C++ compiler for each kernel."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return load_tokenizer(tiny_base)


@pytest.fixture
def base(tiny_base: Path) -> nn.Module:
    return load(tiny_base)


def load(path: Path, adapter: Path | None = None) -> nn.Module:
    model = weights.load_lazily(path)
    if adapter:
        model = load_adapters(model, str(adapter))
    weights.compute_in_float32(model)
    model.freeze()
    return model


@pytest.fixture(scope="module")
def suite(root: Path) -> Suite:
    """The easier cases of the shipped suite with two tools: their prompts are short, and some steps teach them."""
    whole = read_suite(root / "data" / "suites" / "agent.jsonl")
    easy = [c for c in whole.cases if c.category.removesuffix(NEW) in EASY]
    return replace(whole, cases=tuple(c for c in easy if len(c.tools) == 2))


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base, trained for some steps on XML calls."""
    data = tmp_path_factory.mktemp("select")
    lines = (root / "data" / "phase8_xml_format" / "train.jsonl").read_text().splitlines(keepends=True)
    short = [line for line in lines if len((row := json.loads(line))["tools"]) == 2 and len(row["messages"]) <= 4]
    (data / "train.jsonl").write_text("".join(short[:60]))
    config = TrainConfig(
        model=str(tiny_base), data=str(data), out=str(data / "adapter"), iters=20, batch_size=4, learning_rate=2e-4
    )
    train(config, quiet=True)
    return data / "adapter"


# ---- real models ----


def test_the_base_writes_fences_and_answers_questions(base, tokenizer, suite):
    found = prepare(tokenizer, suite, cases=12).score(base)
    assert found.calls_right == 0 and found.calls >= 6
    assert found.direct_right >= found.direct - 1 >= 3
    assert found.accuracy == found.direct_right / 12 and found.seconds > 0


def test_what_was_trained_on_calls_makes_them(tiny_base, adapter, tokenizer, suite):
    found = prepare(tokenizer, suite, cases=12).score(load(tiny_base, adapter))
    assert found.calls_right >= 0.7 * found.calls


def said(query: str, *calls: tuple[str, dict[str, Any]], category: str = "scripted") -> Case:
    """A case of the scripted model, which answers to `query` with a script."""
    tools = [tool("get_weather", city="string"), tool("add", a="integer", b="integer")]
    expected = {"calls": [{"name": n, "arguments": a} for n, a in calls]}
    return Case.model_validate({"id": query, "category": category, "query": query, "tools": tools, "expect": expected})


def tool(name: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


SCRIPTED = (
    (said("#call", ("get_weather", {"city": "Paris"})), True),
    (said("#call", ("get_weather", {"city": "Rome"})), False),
    (said("#two-calls", ("add", {"a": 1, "b": 2}), ("get_weather", {"city": "Bern"})), True),
    (said("#spaced-call", ("get_weather", {"city": "Oslo"})), True),
    (said("#call"), False),
    (said("#hello"), True),
    (said("#hello", ("get_weather", {"city": "Paris"})), False),
    (said("#think"), True),
    (said("#fence"), False),
    (said("#fence", ("get_weather", {"city": "Kyiv"})), False),
    (said("#broken"), False),
    (said("#cut", ("get_weather", {"city": "Lis"})), False),
    (said("#silent"), False),
    (said("#forever"), True),
)


@pytest.mark.parametrize("merged", [True, False], ids=["at once", "one by one"])
def test_a_model_that_says_what_it_is_told(scripted_model, merged, monkeypatch):
    """Whole answers, through the model's own tokens; also where caches cannot be merged."""
    if not merged:
        monkeypatch.setattr(select, "_batched", None)
        monkeypatch.delattr("mlx_lm.models.cache.KVCache.merge")
    cases = tuple(case for case, _ in SCRIPTED)
    probe = prepare(load_tokenizer(scripted_model), Suite(Path("s.jsonl"), cases, ""), cases=99, max_tokens=24)
    turns = probe.turns(load(scripted_model))
    assert [(t.case.query, t.right) for t in turns] == [(case.query, right) for case, right in SCRIPTED]
    assert turns[5].text == "Hello, world 🌍!"
    assert [t.finish for t in turns if t.case.query in ("#hello", "#forever")] == ["stop", "stop", "length"]


# ---- a training does not feel it ----


def test_a_training_goes_on_as_if_nothing_had_been_asked(base, tokenizer, suite):
    linear_to_lora_layers(base, 1, {"rank": 2, "scale": 20.0, "dropout": 0.5})
    base.train()
    probe = prepare(tokenizer, suite, cases=4, max_tokens=8)
    tokens = mx.array([probe.prompts[0].tokens])

    def gradients() -> dict[str, mx.array]:
        mx.random.seed(3)
        _, found = nn.value_and_grad(base, lambda x: base(x).square().mean())(tokens)
        return dict(tree_flatten(found))

    before = gradients()
    mx.eval(before)
    states = np.random.get_state()[1].tolist(), mx.random.state[0].tolist()
    mx.clear_cache()
    held = mx.get_active_memory()
    first, second = probe.turns(base), probe.turns(base)
    assert mx.get_cache_memory() == 0 and mx.get_active_memory() <= held + 4096
    assert (np.random.get_state()[1].tolist(), mx.random.state[0].tolist()) == states
    with checkpointed(base):
        third = probe.turns(base)
    texts = [[t.text for t in turns] for turns in (first, second, third)]
    assert texts[0] == texts[1] == texts[2]  # with dropout they would differ
    assert base.training and all(layer.training for layer in base.layers)
    after = gradients()
    assert before.keys() == after.keys() and all(mx.array_equal(before[k], after[k]).item() for k in before)


def test_a_model_that_fails_is_in_training_again(base, tokenizer, suite):
    probe = prepare(tokenizer, suite, cases=1)
    base.train()
    base.model.norm = nn.RMSNorm(7)
    with pytest.raises(ValueError, match="rms_norm"):
        probe.score(base)
    assert base.training


# ---- what is asked ----


def test_the_prompt_is_the_servers(scripted_model, suite):
    tokenizer = load_tokenizer(scripted_model)  # its template shows all that it is given of a tool
    strict = [{**t, "function": {**t["function"], "strict": True}} for t in suite.cases[0].tools]
    told = suite.cases[0].model_copy(update={"system": "Say <tool_call> softly.", "tools": strict})
    cases = (told, *suite.cases[1:3])
    probe = prepare(tokenizer, replace(suite, cases=cases), cases=3)
    for case, prompt in zip(cases, probe.prompts, strict=True):
        system = [{"role": "system", "content": case.system}] if case.system else []
        messages = [*system, {"role": "user", "content": case.query}]
        request = ChatRequest.model_validate({"messages": messages, "tools": case.tools})
        assert prompt == safe_prompt(tokenizer, request.for_template(), request.tools_spec())


def test_a_marker_that_is_spelled_in_other_tokens_is_text(hermes_model, monkeypatch):
    tokenizer = load_tokenizer(hermes_model)
    marker, text = "<tool_call>", '\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    spelled = [t for part in marker for t in tokenizer.encode(part, add_special_tokens=False)]
    rest = tokenizer.encode(text, add_special_tokens=False)
    probe = prepare(tokenizer, Suite(Path("s.jsonl"), (said("#call", PARIS),), ""), cases=1)
    for first, right in ((tokenizer.encode(marker, add_special_tokens=False), True), (spelled, False)):
        monkeypatch.setattr(select, "_generate", lambda *_, first=first: [([*first, *rest], "stop")])
        (turn,) = probe.turns(nn.Identity())
        assert (turn.text, turn.right) == (marker + text, right)


def test_cases_are_spread_over_the_categories():
    cases = [said(f"{c}{i}", category=c) for c, n in (("a", 5), ("b", 1), ("c", 3)) for i in range(n)]
    assert [c.id for c in spread(cases, 3)] == ["a0", "b0", "c0"]
    assert [c.id for c in spread(cases, 6)] == ["a0", "a1", "a2", "b0", "c0", "c1"]
    assert [c.id for c in spread(cases, 99)] == [c.id for c in cases]


def test_what_cannot_be_asked_is_said_before_the_training(tokenizer, suite, tiny_base):
    with pytest.raises(ConfigError, match="select_cases is 0"):
        prepare(tokenizer, suite, cases=0)
    with pytest.raises(ConfigError, match="there is no wire format 'morse'"):
        prepare(tokenizer, suite, cases=1, format="morse")
    other = load_tokenizer(tiny_base)
    other.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ConfigError, match=r"no wire format found.*Choose the checkpoint by its loss"):
        prepare(other, suite, cases=1)
    assert prepare(other, suite, cases=1, format="qwen3_coder").wire.name == "qwen3_coder"
    other.chat_template = "{{ raise_exception('no tools here') }}"
    with pytest.raises(DataError, match=rf"agent.jsonl: case {suite.cases[0].id}: .*no tools here"):
        prepare(other, suite, cases=1, format="qwen3_coder")


def test_template_kwargs_reach_the_template(tiny_base, suite):
    other = load_tokenizer(tiny_base)
    other.chat_template = "{{ mood }}"
    probe = prepare(other, suite, cases=1, format="qwen3_coder", template_kwargs={"mood": "calm"})
    assert probe.prompts[0].text == "calm"


# ---- what is right ----

ADD = ("add", {"a": 1, "b": 2})
PARIS = ("get_weather", {"city": "Paris"})


def xml(*calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as the model writes them."""
    bodies = (
        f"<function={name}>" + "".join(f"\n<parameter={k}>\n{v}\n</parameter>" for k, v in arguments.items())
        for name, arguments in calls
    )
    return "\n".join(f"<tool_call>\n{body}\n</function>\n</tool_call>" for body in bodies)


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        (xml(ADD), [ADD], True),
        ("I will add.\n" + xml(ADD), [ADD], True),
        (xml(ADD, PARIS), [PARIS, ADD], True),
        (xml(ADD), [PARIS, ADD], True),  # the other may come in a later turn
        (xml(ADD, ADD), [PARIS, ADD], False),
        (xml(ADD, PARIS), [ADD], False),
        (xml(("add", {"b": 2, "a": 1})), [ADD], True),
        (xml(("add", {"a": 1, "b": 3})), [ADD], False),
        (xml(("add", {"a": 1})), [ADD], False),
        (xml(("add", {"a": 1, "b": "two"})), [ADD], False),
        (xml(PARIS), [ADD], False),
        (xml(("fly", {})), [ADD], False),
        (xml(ADD), [("add", None)], True),
        (xml(ADD), [(["fly", "add"], None)], True),
        (xml(ADD) + "\n<tool_call>\n<function=add>\n<parameter=a", [ADD], False),
        (xml(ADD), [], False),
        ("It is 3.", [ADD], False),
        ("It is 3.", [], True),
        ("  \n", [], False),
        ("<think>Hm.</think>", [], False),
        ('```json\n{"name": "add", "arguments": {"a": 1}}\n```', [], False),
        ('```json\n{"name": "fly", "arguments": {', [], False),
        ('```python\nprint("add")\n```', [], True),
    ],
)
def test_what_is_right(text, expected, right):
    case = case_of(expected)
    assert is_right(case, read(text, "qwen3_coder", [Tool.from_openai(t) for t in case.tools])) is right


def test_where_only_the_first_turn_counts_all_calls_must_be_there():
    tools = [Tool.from_openai(t) for t in case_of([ADD]).tools]
    for text, right in ((xml(ADD), False), (xml(PARIS, ADD), True)):
        assert is_right(case_of([ADD, PARIS], turns="first"), read(text, "qwen3_coder", tools)) is right


def first_turn(text: str, case: Case) -> bool:
    return is_right(case, read(text, "qwen3_coder", [Tool.from_openai(t) for t in case.tools]))


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"any_of": [[], [{"name": "add"}]]}, ["It is 3.", xml(ADD)], [xml(PARIS), " ", xml(ADD, ADD)]),
        ({"any_of": [[{"name": "fly"}], [{"name": "add"}]]}, [xml(ADD)], ["It is 3.", xml(ADD, ("fly", {}))]),
        (
            {"calls": [{"name": "add", "arguments": {"a": 1}, "match": {"b": {"number": 3, "tolerance": 1}}}]},
            [xml(ADD)],
            [xml(("add", {"a": 1, "b": 1})), xml(("add", {"a": 2, "b": 2}))],
        ),
        (
            {"calls": [{"name": "add"}, {"name": "get_weather"}], "order": "given"},
            [xml(ADD), xml(ADD, PARIS)],
            [xml(PARIS), xml(PARIS, ADD), xml(ADD, PARIS, ADD)],
        ),
        ({"calls": [{"name": "add"}, {"name": "get_weather"}], "parallel": True}, [xml(PARIS, ADD)], [xml(ADD)]),
        ({"calls": [{"name": "add"}, {"name": "get_weather"}], "parallel": False}, [xml(PARIS)], [xml(ADD, PARIS)]),
    ],
)
def test_what_is_right_of_richer_cases(expect, right, wrong):
    case = case_of([ADD]).model_copy(update={"expect": Expect.model_validate(expect)})
    assert [first_turn(text, case) for text in (*right, *wrong)] == [True] * len(right) + [False] * len(wrong)


def test_a_conversation_is_asked_as_the_server_is(scripted_model):
    tokenizer = load_tokenizer(scripted_model)
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add 1 and 2"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
        {"role": "user", "content": [{"type": "text", "text": "And the weather in Paris?"}]},
    ]
    case = case_of([PARIS])
    going_on = {k: v for k, v in case.model_dump(mode="json").items() if k not in ("query", "messages")}
    case = Case.model_validate({**going_on, "messages": messages})
    (prompt,) = prepare(tokenizer, Suite(Path("s.jsonl"), (case,), ""), cases=1).prompts
    request = ChatRequest.model_validate({"messages": messages, "tools": case.tools})
    assert prompt == safe_prompt(tokenizer, request.for_template(), request.tools_spec())
    assert "It is 3." in prompt.text


def case_of(expected: list[Any], **more: str) -> Case:
    calls = [{"name": n} | ({"arguments": a} if a is not None else {}) for n, a in expected]
    tools = [tool("get_weather", city="string"), tool("add", a="integer", b="integer"), tool("fly")]
    expect = {"calls": calls, **more}
    return Case.model_validate({"id": "1", "category": "c", "query": "q", "tools": tools, "expect": expect})


def test_the_figures():
    found = Behaviour(calls_right=3, calls=4, direct_right=5, direct=6, seconds=1.5)
    assert found.accuracy == 0.8 and str(found) == "calls 3 of 4, direct answers 5 of 6"
