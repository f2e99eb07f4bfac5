"""Plans and masks: random logits can only come out as what was asked for, in every format; what cannot is said."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from grammar_machine import EOS, MARKERS, NAMES, ids_of, tokenizer
from llguidance import LLParserLimits

from punie_mlx.errors import ConfigError
from punie_mlx.serve import constrain
from punie_mlx.serve.constrain import KEPT, Constrainer, Mask, Plan
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar import Constraint
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 2, "maxLength": 12},
        "code": {"type": "string", "pattern": "^[a-z]{2,4}/[0-9]$"},
        "day": {"type": ["string", "null"], "format": "date"},
        "count": {"type": "integer", "minimum": 3, "maximum": 40},
        "mode": {"enum": ["new", "a < b", 7, None]},
        "inner": {
            "allOf": [{"$ref": "#/$defs/named"}, {"properties": {"size": {"type": "boolean"}}, "required": ["size"]}]
        },
        "list": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
    },
    "required": ["text", "code", "day", "inner"],
    "additionalProperties": False,
    "$defs": {
        "named": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}}, "required": ["name"]}
    },
}
TOOLS = [Tool("set_up", parameters=PARAMETERS), Tool("stop", parameters={"type": "object", "properties": {}})]
ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PROMPT = [3, 4, 5]
SPARE = 40  # logits beyond the vocabulary


def constrainer(name: str = "qwen3_coder") -> Constrainer:
    words = tokenizer(MARKERS[name])[0]
    return Constrainer(words, width=len(words) + SPARE, eos={words.eos_token_id}, wire=formats.get(name))


def logits(name: str, chance: np.random.Generator) -> mx.array:
    return mx.array(chance.gumbel(size=(1, len(tokenizer(MARKERS[name])[0]) + SPARE)).astype(np.float32))


def generate(mask: Mask, name: str, seed: int, longest: int = 2000) -> tuple[list[int], bool]:
    """Tokens drawn from random logits through `mask`; whether the end token came."""
    words, chance, ids = tokenizer(MARKERS[name])[0], np.random.default_rng(seed), list(PROMPT)
    while len(ids) < longest:
        token = int(mx.argmax(mask(mx.array(ids), logits(name, chance))).item())
        assert mask.failed is None
        if token == words.eos_token_id:
            return ids[len(PROMPT) :], True
        assert token < len(words)
        ids.append(token)
    return ids[len(PROMPT) :], False


def read(ids: list[int], name: str, tools: list[Tool] = TOOLS) -> Reading:
    words = tokenizer(MARKERS[name])[0]
    control = {token: marker for marker, token in ids_of(MARKERS[name]).items()}
    parser, events, plain = StreamParser(name, tools, control=control), [], []
    for token in [*ids, -1]:
        if token >= 0 and token not in control:
            plain.append(token)
            continue
        events += parser.feed(words.decode(plain))
        plain = []
        events += parser.feed(control[token], [token]) if token >= 0 else []
    return gather([*events, *parser.finish("stop")])


def valid(value: Any, schema: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).is_valid(value)


# ---- random logits ----


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_random_logits_are_valid(name):
    made = constrainer(name)
    required = made.plan(TOOLS, Constraint("required"))
    named = made.plan(TOOLS, Constraint("required", allowed=frozenset({"set_up"}), parallel=False))
    assert required.state == named.state == "enforced"
    assert required.relaxed == named.relaxed == ()
    for seed in range(4):
        plan = named if seed % 2 else required
        ids, ended = generate(plan.mask(), name, seed)
        reading = read(ids, name)
        assert ended and reading.calls and not reading.problems, reading
        assert not seed % 2 or [c.name for c in reading.calls] == ["set_up"]
        for call in reading.calls:
            assert call.name == "stop" or valid(call.arguments, PARAMETERS), call


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_random_logits_fit_their_schema(name):
    made = constrainer(name)
    alone, either = (made.plan(tools, Constraint(json_schema=ANSWER)) for tools in ([], TOOLS))
    assert alone.state == either.state == "enforced"
    ids, ended = generate(alone.mask(), name, 1)
    assert ended and valid(json.loads(read(ids, name, []).content), ANSWER)
    for seed in range(3):
        ids, ended = generate(either.mask(), name, seed)
        reading = read(ids, name)
        assert ended and not reading.problems
        assert reading.calls or valid(json.loads(reading.content), ANSWER)


def test_a_long_limit_is_counted_to_its_end():
    name = "qwen3_coder"
    schema = {"type": "object", "properties": {"x": {"type": "string", "minLength": 190, "maxLength": 200}}}
    tool = Tool("f", parameters={**schema, "required": ["x"]})
    plan = constrainer(name).plan([tool], Constraint("required", parallel=False))
    assert plan.relaxed == ()
    ids, ended = generate(plan.mask(), name, 0)
    call = read(ids, name, [tool]).calls[0]
    assert ended and 190 <= len(call.arguments["x"]) <= 200


def test_what_nearly_ends_a_limited_text_does_not_end_its_mask():
    """To find what may follow, llguidance looks through every count of characters."""
    name = "qwen3_coder"
    words = tokenizer(MARKERS[name])[0]
    schema = {"type": "object", "properties": {"x": {"type": "string", "maxLength": 200}}, "required": ["x"]}
    before = "<tool_call>\n<function=f>\n<parameter=x>\n"
    for nearly in ("</parameter>", "</parameter>  <", "\n</parameter>", "\n</parameter>\n</func", "</par"):
        ids = [*PROMPT]
        mask = constrainer(name).plan([Tool("f", parameters=schema)], Constraint("required")).mask()
        for token in [*words.encode(f"{before}some words{nearly}", add_special_tokens=False), None]:
            allowed = mask(mx.array(ids), mx.zeros((1, len(words) + SPARE)))
            assert mask.failed is None
            if token is not None:
                assert allowed[0, token].item() == 0, words.decode(ids[len(PROMPT) :])
                ids.append(token)


def test_a_mask_that_failed_spoils_no_other(monkeypatch):
    """Matchers of one grammar share what they have computed, and its failure."""
    name = "qwen3_coder"
    plan = constrainer(name).plan(TOOLS, Constraint("required"))
    words = tokenizer(MARKERS[name])[0]
    stranger = words.encode("x", add_special_tokens=False)
    mask = plan.mask()
    mask(mx.array(PROMPT), logits(name, np.random.default_rng(0)))
    mask(mx.array([*PROMPT, *stranger]), logits(name, np.random.default_rng(0)))
    assert mask.failed
    with monkeypatch.context() as patch:
        patch.setattr(constrain, "_LIMITS", LLParserLimits(step_lexer_fuel=1))
        poor = plan.mask()
    with pytest.raises(AssertionError):
        generate(poor, name, 0)
    assert poor.failed
    assert generate(plan.mask(), name, 0)[1]


# ---- what a plan is ----


def test_states():
    made = constrainer()
    assert made.plan([], Constraint()) == Plan()
    assert made.plan([], Constraint()).mask() is None
    assert made.plan(TOOLS, Constraint()).state == "lazy"
    assert made.plan(TOOLS, Constraint(allowed=frozenset({"stop"}))).state == "lazy"
    assert made.plan(TOOLS, Constraint("none")).state == "enforced"
    assert made.plan([], Constraint(json_schema={})).state == "enforced"


def test_lazy_leaves_text_free_and_holds_calls():
    name = "qwen3_coder"
    words, width = tokenizer(MARKERS[name])[0], len(tokenizer(MARKERS[name])[0]) + SPARE
    opener = ids_of(MARKERS[name])["<tool_call>"]
    made = constrainer(name)

    def allowed(mask: Mask, ids: list[int]) -> set[int]:
        found = mask(mx.array(ids), mx.zeros((1, width)))
        return set(np.flatnonzero(np.array(found)[0] == 0).tolist())

    text, call = words.encode("Sure."), [opener, *words.encode("\n<function=")]
    lazy, none = (made.plan(TOOLS, Constraint(c)) for c in ("auto", "none"))
    mask = lazy.mask()
    first = allowed(mask, PROMPT)
    assert {opener, words.eos_token_id, *range(20, 60)} <= first
    ids = list(PROMPT)
    for token in [*text, *call]:
        ids.append(token)
        found = allowed(mask, ids)
    assert found == {words.encode("s")[0]}  # of set_up and stop
    refused = none.mask()
    assert opener not in allowed(refused, PROMPT) and words.eos_token_id in allowed(refused, PROMPT)


def test_a_schema_that_no_grammar_holds_costs_its_parameter_and_no_other():
    properties = {
        "gone": {"$ref": "#/$defs/nowhere"},
        "set": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2},
        "odd": {"type": "object", "properties": {"a": {"type": "banana"}}},
        "count": {"type": "integer", "minimum": 1, "maximum": 3},
        "longer": {"type": "string", "maxLength": 100_000, "pattern": "(?=a)b"},
    }
    tool = Tool("f", parameters={"type": "object", "properties": properties, "required": ["gone", "odd", "count"]})
    plan = constrainer("hermes").plan([tool], Constraint("required", parallel=False))
    assert plan.state == "enforced"
    reasons = {r.parameter: r.reason for r in plan.relaxed}
    assert set(reasons) == {"gone", "set", "odd", "longer"}
    assert "nowhere" in reasons["gone"] and "uniqueItems" in reasons["set"] and "banana" in reasons["odd"]
    assert "maxLength" in reasons["longer"] and "pattern" in reasons["longer"]
    assert {r.tool for r in plan.relaxed} == {"f"}
    calls = []
    for seed in range(8):
        ids, ended = generate(plan.mask(), "hermes", seed, 600)
        calls += read(ids, "hermes", [tool]).calls if ended else []
    assert calls
    assert all(call.arguments["count"] in (1, 2, 3) and isinstance(call.arguments["odd"], dict) for call in calls)


def test_keywords_that_the_answer_is_not_held_to_are_named():
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "contains": {"const": 1}}
    plan = constrainer().plan([], Constraint(json_schema={"type": "object", "properties": {"a": schema}}))
    assert [(r.tool, r.parameter) for r in plan.relaxed] == [("response_format", "")]
    assert "uniqueItems" in plan.relaxed[0].reason and "contains" in plan.relaxed[0].reason


def test_without_a_grammar_nothing_can_be_demanded():
    words = tokenizer(MARKERS["hermes"])[0]
    mute = replace(formats.get("hermes"), grammar=None)
    for wrapped, wire in ((words, mute), (object(), formats.get("hermes"))):
        made = Constrainer(wrapped, width=400, eos={words.eos_token_id}, wire=wire)
        plan = made.plan(TOOLS, Constraint())
        assert plan.state == "off" and plan.reason and plan.mask() is None
        for demand in (Constraint("required"), Constraint(json_schema={})):
            with pytest.raises(ConfigError, match="demanded of this model"):
                made.plan(TOOLS, demand)


def test_plans_are_kept_and_shared_by_threads():
    made = constrainer()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(lambda i: made.plan(TOOLS, Constraint(("auto", "required")[i % 2])), range(32)))
    assert {p.state for p in plans} == {"lazy", "enforced"}
    kept = made.plan(TOOLS, Constraint("required"))
    assert made.plan(TOOLS, Constraint("required")) is kept
    assert made.plan(TOOLS[:1], Constraint("required")) is not kept
    for i in range(KEPT):
        made.plan([Tool(f"t{i}")], Constraint("required"))
    assert made.plan(TOOLS, Constraint("required")) is not kept
    assert kept.mask() is not kept.mask()


# ---- a mask ----


def test_only_end_tokens_where_all_is_said():
    name = "qwen3_coder"
    words, width = tokenizer(MARKERS[name])[0], len(tokenizer(MARKERS[name])[0]) + SPARE
    ends = {words.eos_token_id, words.get_vocab()["}}"]}  # two of them, as many models have
    made = Constrainer(words, width=width, eos=ends, wire=formats.get(name))
    mask = made.plan([Tool("stop")], Constraint("required", parallel=False)).mask()
    ids = list(PROMPT)
    mask(mx.array(ids), mx.zeros((1, width)))
    for token in words.encode("<tool_call>\n<function=stop>\n</function>\n</tool_call>"):
        ids.append(token)
        found = mask(mx.array(ids), mx.zeros((1, width)))
    assert set(np.flatnonzero(np.array(found)[0] == 0).tolist()) == ends
    after = mx.zeros((1, width))
    assert mask(mx.array([*ids, words.eos_token_id]), after) is after  # a step that nobody will look at
    assert mask.failed is None


def test_a_mask_never_raises():
    width = len(tokenizer(MARKERS["qwen3_coder"])[0]) + SPARE
    plan = constrainer().plan(TOOLS, Constraint("required"))
    same = mx.zeros((1, width))
    breaks: list[Callable[[Mask], mx.array]] = [
        lambda mask: mask(mx.array([*PROMPT, 60]), same),  # what the grammar does not allow
        lambda mask: mask(mx.array([*PROMPT, width - 1]), same),  # no token
        lambda mask: mask(mx.array([*PROMPT, -1]), same),
        lambda mask: mask(None, same),  # type: ignore[arg-type]
        lambda mask: mask(mx.array(PROMPT[:1]), same),
    ]
    for broken in breaks:
        mask = plan.mask()
        mask(mx.array(PROMPT), same)
        assert broken(mask) is same
        assert mask.failed
        assert mask(mx.array([1]), same) is same


def test_masks_keep_the_type_of_the_logits_and_take_several_tokens_at_once():
    name = "qwen3_coder"
    words = tokenizer(MARKERS[name])[0]
    mask = constrainer(name).plan([Tool("stop")], Constraint("required")).mask()
    width = len(words) + SPARE
    for kind in (mx.float16, mx.bfloat16, mx.float32):
        assert mask(mx.array(PROMPT), mx.zeros((1, width), kind)).dtype == kind
    ids = [*PROMPT, *words.encode("<tool_call>\n<function=st")]
    found = np.array(mask(mx.array(ids), mx.zeros((1, width))))
    assert np.flatnonzero(found[0] == 0).tolist() == words.encode("o")
    assert words.eos_token == EOS
