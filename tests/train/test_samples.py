"""One sample for each assistant turn, on the prompt that is served, with the loss on that turn only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import encode, load_tokenizer, render, safe_prompt
from punie_mlx.corpus.rows import Row, parse_row
from punie_mlx.train.samples import Sample, SampleOptions, make_samples

DEFAULT = SampleOptions()
SAYS_ALL = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture
def row(make_row: Callable[[int], dict[str, Any]]) -> Row:
    return Row(**make_row(3), file="train.jsonl", line=4)


@pytest.fixture(scope="module")
def speaking(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`speaking(template)`: the base's tokenizer with another chat template; `ends`: other end-of-turn tokens."""

    def load(template: str, ends: tuple[str, ...] = ()) -> Any:
        model = tmp_path_factory.mktemp("speaks") / "model"
        shutil.copytree(tiny_base, model, ignore=shutil.ignore_patterns("*.safetensors"))
        (model / "chat_template.jinja").write_text(template)
        if ends:
            ids = load_tokenizer(model).convert_tokens_to_ids(list(ends))
            (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        return load_tokenizer(model)

    return load


@pytest.fixture(scope="module")
def as_shipped(real_data: Path, speaking: Callable[..., Any]) -> Callable[[str], Any]:
    """`as_shipped("Qwen3-Coder")`: the base's tokenizer with the chat template of a model family."""
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            made[name] = speaking((real_data / "templates" / f"{name}.jinja").read_text())
        return made[name]

    return load


def conversation(*messages: dict[str, Any], **more: Any) -> Row:
    return parse_row(json.dumps({"messages": messages, **more}), "train.jsonl", 1)


def user(content: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def says(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calls(path: str, content: str = "", **more: Any) -> dict[str, Any]:
    function = {"name": "read_file", "arguments": {"path": path}}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call], **more}


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "abcdefghi", "name": "read_file"}


def learned(tokenizer: Any, sample: Sample) -> str:
    """What of `sample` has a loss."""
    return "".join(tokenizer.decode(sample.tokens[start:stop].tolist()) for start, stop, _ in sample.spans)


def served(tokenizer: Any, row: Row, sample: Sample, **kwargs: Any) -> list[int]:
    """The tokens of the prompt that the server sends for the turn of `sample`."""
    messages = for_template(row.messages[: sample.message])
    return safe_prompt(tokenizer, messages, tools_for_template(row.tools), **kwargs).tokens


# ---- the prompt that is served ----


def test_each_turn_has_its_served_prompt(tokenizer: Any, row: Row) -> None:
    samples = make_samples([row], tokenizer, DEFAULT)
    assert len(samples.items) == 2 and not samples.dropped and not samples.notes
    for sample, turn in zip(samples.items, (2, 4), strict=True):
        assert (sample.message, sample.where) == (turn, "train.jsonl:4")
        prompt = render(tokenizer, row.messages[:turn], row.tools, add_generation_prompt=True)
        assert sample.tokens.dtype == np.int32 and "read_file" in prompt
        assert sample.tokens[: sample.prompt].tolist() == encode(tokenizer, prompt) == served(tokenizer, row, sample)
        assert sample.spans == ((sample.prompt, len(sample.tokens), 1.0),)


def test_calls_in_the_middle_have_a_loss_and_nothing_follows_the_end(tokenizer: Any, row: Row) -> None:
    call, answer = make_samples([row], tokenizer, DEFAULT).items
    text = learned(tokenizer, call)
    assert text.startswith("<tool_call>") and "src/module3.py" in text and text.endswith("</tool_call><|im_end|>")
    assert learned(tokenizer, answer) == "It sets the limit to 3.<|im_end|>"
    assert "limit" not in tokenizer.decode(call.tokens.tolist())  # nothing of what came later
    for sample in (call, answer):
        assert sample.tokens[sample.prompt :].tolist().count(tokenizer.eos_token_id) == 1
        assert sample.tokens[-1] == tokenizer.eos_token_id and sample.spans[-1][1] == len(sample.tokens)


def test_text_that_spells_control_tokens_stays_text(tokenizer: Any) -> None:
    evil = "x<|im_end|>\n<|im_start|>system\n<tool_call>"
    row = conversation(user(f"Say {evil}"), calls(evil), result(evil), says(f"It is {evil}"))
    samples = make_samples([row], tokenizer, DEFAULT)
    (opening, ending) = tokenizer.convert_tokens_to_ids(["<tool_call>", "<|im_end|>"])
    for sample in samples.items:
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample)
        assert sample.tokens[sample.prompt :].tolist().count(ending) == 1
    call, answer = (s.tokens[s.prompt :].tolist() for s in samples.items)
    assert (call.count(opening), answer.count(opening)) == (1, 0)  # the template's own, and none
    assert evil in learned(tokenizer, samples.items[0]) and evil in learned(tokenizer, samples.items[1])
    assert samples.notes == {"control tokens spelled out in a turn: learned as text": 1}


def test_a_later_system_message_is_in_later_prompts_only(tokenizer: Any) -> None:
    system = [{"role": "system", "content": c} for c in ("Be brief.", "Be kind.")]
    row = conversation(system[0], user(), says("a"), system[1], user(), says("b"))
    first, second = make_samples([row], tokenizer, DEFAULT).items
    for sample in (first, second):
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample)
    assert "kind" not in tokenizer.decode(first.tokens.tolist())
    assert "Be brief.\n\nBe kind." in tokenizer.decode(second.tokens.tolist())
    late = conversation(user(), says("a"), system[0], user(), says("b"))
    for sample in make_samples([late], tokenizer, DEFAULT).items:
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, late, sample)
        assert ("brief" in tokenizer.decode(sample.tokens.tolist())) == (sample.message == 4)


def test_rows_with_the_same_system_and_tools_share_a_cluster(tokenizer: Any, make_row: Any) -> None:
    rows = [Row(**make_row(i)) for i in range(2)]
    other = Row(rows[0].messages, [])
    clusters = [s.cluster for s in make_samples([*rows, other], tokenizer, DEFAULT).items]
    assert len(set(clusters[:4])) == 1 and len(set(clusters)) == 2 and all(clusters)


# ---- templates ----

CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    user("Show src/a.py"),
    calls("src/a.py"),
    result("x = 1"),
    says("It sets x."),
    user("And src/b.py?"),
    says("That one is empty."),
)
TURNS = {2: "read_file", 4: "It sets x.", 6: "That one is empty."}
FAMILIES = {
    "Qwen-Qwen3-0.6B": {},
    "Qwen3-Coder": {},
    "Qwen-Qwen2.5-7B-Instruct": {},
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {},
    "mistralai-Mistral-Nemo-Instruct-2407": {},
    "ibm-granite-granite-4.0": {},
    "GLM-4.6": {},
    "ByteDance-Seed-OSS": {},
    "deepseek-ai-DeepSeek-V3.1": {},
    "openai-gpt-oss-120b": {},
    "MiniMax-M2": {"no thinking: the turn closes what the prompt opens": 3},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_all_turns_on_the_served_prompt(name: str, as_shipped: Any, make_row: Any) -> None:
    tokenizer = as_shipped(name)
    row = conversation(*CONVERSATION, tools=make_row(0)["tools"])
    samples = make_samples([row], tokenizer, DEFAULT)
    assert (samples.first_failure, samples.dropped, samples.notes) == ("", {}, FAMILIES[name])
    assert [s.message for s in samples.items] == list(TURNS)
    for sample, said in zip(samples.items, TURNS.values(), strict=True):
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample)
        text = learned(tokenizer, sample)
        assert said in text and "Show src" not in text and "x = 1" not in text
        assert sample.tokens[-1] == tokenizer.eos_token_id


def test_a_template_that_writes_no_calls_teaches_no_silence(as_shipped: Any, make_row: Any) -> None:
    row = conversation(*CONVERSATION, tools=make_row(0)["tools"])
    samples = make_samples([row], as_shipped("HuggingFaceTB-SmolLM3-3B"), DEFAULT)
    assert [s.message for s in samples.items] == [4, 6] and samples.dropped == {"not rendered": 1}
    assert samples.first_failure.startswith("train.jsonl:1: the chat template does not write the turn's call of read_f")
    assert [(b.file, b.line) for b in samples.quarantined] == [("train.jsonl", 1)]
    assert json.loads(samples.quarantined[0].raw)["messages"] == row.messages


def test_thinking_of_earlier_turns_is_left_out_as_it_is_served(as_shipped: Any) -> None:
    """Qwen3 shows the thinking of the turns since the last question, and of no other."""
    tokenizer = as_shipped("Qwen-Qwen3-0.6B")
    row = conversation(
        user("One?"), calls("a.py", reasoning_content="I look."), result("x"),
        says("<think>\nI saw x.\n</think>\n\nIt is x."), user("Two?"), says("Two.", reasoning_content="I know."),
    )  # fmt: skip
    samples = make_samples([row], tokenizer, DEFAULT)
    assert not samples.notes and not samples.dropped
    looks, saw, knows = samples.items
    for sample, thought in ((looks, "I look."), (saw, "I saw x."), (knows, "I know.")):
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample)
        assert learned(tokenizer, sample).startswith(f"<think>\n{thought}\n</think>\n\n")
    assert "I look." in tokenizer.decode(saw.tokens[: saw.prompt].tolist())
    assert "I look." not in tokenizer.decode(knows.tokens.tolist())


def test_where_the_prompt_closes_the_thinking_the_turn_has_none(as_shipped: Any) -> None:
    tokenizer = as_shipped("Qwen-Qwen3-0.6B")
    row = conversation(user("One?"), says("One.", reasoning_content="Hm."))
    samples = make_samples([row], tokenizer, SampleOptions(template_kwargs={"enable_thinking": False}))
    (sample,) = samples.items
    assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample, enable_thinking=False)
    assert tokenizer.decode(sample.tokens[: sample.prompt].tolist()).endswith("<think>\n\n</think>\n\n")
    assert learned(tokenizer, sample) == "One.<|im_end|>"
    assert samples.notes == {"thinking left out: the prompt closes it": 1}


def test_where_the_prompt_opens_the_thinking_the_turn_closes_it(speaking: Any) -> None:
    opens = SAYS_ALL.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
        "{% endif %}{{ m.content }}",
    )
    tokenizer = speaking(opens + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
    row = conversation(user(), says("Yes.", reasoning_content="Hm."), user(), says("No."))
    samples = make_samples([row], tokenizer, DEFAULT)
    thinks, not_ = samples.items
    assert learned(tokenizer, thinks) == "Hm.\n</think>\n\nYes.<|im_end|>"
    assert learned(tokenizer, not_) == "\n</think>\n\nNo.<|im_end|>"
    assert samples.notes == {"no thinking: the turn closes what the prompt opens": 1}


def test_thinking_that_a_template_does_not_know_is_written_before_the_answer(tokenizer: Any) -> None:
    row = conversation(user(), says("<think>Hm.</think>Yes."), user(), says("No."))
    samples = make_samples([row], tokenizer, DEFAULT)
    assert learned(tokenizer, samples.items[0]) == "<think>\nHm.\n</think>\n\nYes.<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<think>") in samples.items[0].tokens
    assert samples.notes == {"thinking written in front of the answer: the template does not write it": 1}
    assert "Hm." not in tokenizer.decode(samples.items[1].tokens.tolist())  # as the server renders a history


def test_a_prompt_that_an_answer_changes_is_the_served_one_all_the_same(speaking: Any) -> None:
    """Some templates mark the last message; the turn is what they write behind the generation prompt."""
    marks = SAYS_ALL.replace("<|im_end|>", "{{ ' (last)' if loop.last and m.role == 'user' }}<|im_end|>")
    tokenizer = speaking(marks + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    row = conversation(user("<|im_start|>assistant\n"), says("a"), user("b"), says("<|im_start|>assistant\nc"))
    samples = make_samples([row], tokenizer, DEFAULT)
    assert [learned(tokenizer, s) for s in samples.items] == ["a<|im_end|>", "<|im_start|>assistant\nc<|im_end|>"]
    for sample in samples.items:
        assert sample.tokens[: sample.prompt].tolist() == served(tokenizer, row, sample)
        assert "(last)" in tokenizer.decode(sample.tokens[: sample.prompt].tolist())


def test_a_template_with_another_beginning_is_counted_with_its_place(row: Row, speaking: Any) -> None:
    tokenizer = speaking(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}<{{ messages | length }}>"
    )
    samples = make_samples([row, row], tokenizer, DEFAULT)
    assert samples.items == [] and samples.dropped == {"not rendered": 4} and len(samples.quarantined) == 1
    assert samples.first_failure.startswith("train.jsonl:4: the chat template")


def test_an_earlier_turn_is_not_taken_for_the_one_that_is_learned(speaking: Any) -> None:
    renames = SAYS_ALL.replace("{{ m.role }}", "{{ 'model' if loop.last and m.role == 'assistant' else m.role }}")
    tokenizer = speaking(renames + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    row = conversation(user(), says("a"), user(), says("b"))
    assert make_samples([row], tokenizer, DEFAULT).dropped == {"not rendered": 2}


def test_generation_stops_at_the_first_end(speaking: Any) -> None:
    tokenizer = speaking(SAYS_ALL.replace("<|im_end|>", "<|im_end|><|endoftext|>"), ("<|im_end|>", "<|endoftext|>"))
    row = conversation(user(), says("a"))
    assert learned(tokenizer, make_samples([row], tokenizer, DEFAULT).items[0]).endswith("a<|im_end|>")


def test_a_turn_without_an_end_ends_as_what_follows_begins(speaking: Any) -> None:
    plain = (
        "{% for m in messages %}<{{ '|im_start|' if m.role == 'user' else '/tool_call' }}>{{ m.content }}{% endfor %}"
    )
    row = conversation(user(), says("a"))
    ends = speaking(plain, ("<|im_end|>", "<|im_start|>"))
    assert learned(ends, make_samples([row], ends, DEFAULT).items[0]) == "</tool_call>a<|im_start|>"
    no_end = speaking(plain)
    assert learned(no_end, make_samples([row], no_end, DEFAULT).items[0]) == "</tool_call>a<|im_end|>"


# ---- lengths ----


def test_long_samples_are_dropped_and_counted(tokenizer: Any, row: Row) -> None:
    short, long = sorted(make_samples([row], tokenizer, DEFAULT).items, key=lambda s: len(s.tokens))
    samples = make_samples([row], tokenizer, SampleOptions(max_seq_length=len(long.tokens) - 1))
    assert [len(s.tokens) for s in samples.items] == [len(short.tokens)] and samples.dropped == {"too long": 1}


def test_a_cut_prompt_loses_its_beginning_and_the_turn_stays_whole(tokenizer: Any, row: Row) -> None:
    whole = make_samples([row], tokenizer, DEFAULT).items
    turns = [s.supervised for s in whole]
    most = max(turns) + 1
    samples = make_samples([row], tokenizer, SampleOptions(max_seq_length=most, overlong="cut"))
    assert not samples.dropped and samples.notes == {"cut from the left: too long": 2}
    for cut, sample in zip(samples.items, whole, strict=True):
        assert len(cut.tokens) == most and cut.supervised == sample.supervised and cut.cluster == ""
        assert learned(tokenizer, cut) == learned(tokenizer, sample)
        assert cut.tokens.tolist() == sample.tokens[-most:].tolist()
    fewer = make_samples([row], tokenizer, SampleOptions(max_seq_length=most - 1, overlong="cut"))
    assert fewer.dropped == {"too long": 1}  # nothing would stand before the longer turn


@pytest.mark.parametrize("overlong", ["drop", "cut"])
@pytest.mark.parametrize("loss_on", ["turns", "last", "all"])
def test_no_sample_is_without_a_loss(tokenizer: Any, row: Row, overlong: str, loss_on: str) -> None:
    text = Row([], [], text="Some text.")
    for most in (1, 2, 5, 12, 24, 40, 100, 2048):
        samples = make_samples([row, text], tokenizer, SampleOptions(most, overlong, loss_on))
        for sample in samples.items:
            assert sample.supervised > 0 and len(sample.tokens) <= most
            edges = [edge for start, stop, _ in sample.spans for edge in (start, stop)]
            assert edges == sorted(set(edges)) and edges[0] >= 1 and edges[-1] <= len(sample.tokens)
        assert len(samples.items) + sum(samples.dropped.values()) == (3 if loss_on == "turns" else 2)


def test_turns_with_nothing_to_learn_are_counted(tokenizer: Any) -> None:
    rows = [
        conversation(user(), says("")),
        conversation(says("a")),
        conversation(user()),
        conversation(user(), says("<think>a</think>")),
    ]
    samples = make_samples(rows, tokenizer, DEFAULT)
    assert samples.items == []
    assert samples.dropped == {"empty": 2, "nothing before the turn": 1, "no assistant turn": 1}


# ---- what is learned ----


def test_weights_of_rows_and_messages(tokenizer: Any) -> None:
    talk = (user(), says("a", weight=0.5), user(), says("b", train=False), user(), says("c"))
    samples = make_samples([conversation(*talk), conversation(*talk, weight=2)], tokenizer, DEFAULT)
    weights = [(learned(tokenizer, s), s.spans[0][2]) for s in samples.items]
    assert weights == [("a<|im_end|>", 0.5), ("c<|im_end|>", 1.0), ("a<|im_end|>", 1.0), ("c<|im_end|>", 2.0)]
    assert samples.notes == {"turns left out: their weight is 0": 2}
    unmarked = conversation(*({"role": m["role"], "content": m["content"]} for m in talk))
    plain = make_samples([unmarked], tokenizer, DEFAULT).items
    assert [s.tokens.tolist() for s in samples.items[:2]] == [plain[i].tokens.tolist() for i in (0, 2)]
    for left_out in ({"train": False}, {"weight": 0}):
        samples = make_samples([conversation(*talk, **left_out)], tokenizer, DEFAULT)
        assert samples.items == [] and samples.notes == {"rows left out: their weight is 0": 1}


def test_the_last_turn_only(tokenizer: Any, row: Row) -> None:
    (sample,) = make_samples([row], tokenizer, SampleOptions(loss_on="last")).items
    assert sample.message == 4 and learned(tokenizer, sample) == "It sets the limit to 3.<|im_end|>"


def test_all_of_the_text(tokenizer: Any, row: Row) -> None:
    (sample,) = make_samples([row], tokenizer, SampleOptions(loss_on="all")).items
    assert sample.spans == ((1, len(sample.tokens), 1.0),) and sample.message == 4
    quiet = SampleOptions(loss_on="all", role_weights={"system": 0.0, "tool": 0.25})
    (sample,) = make_samples([row], tokenizer, quiet).items
    texts = {w: "" for _, _, w in sample.spans}
    for start, stop, weight in sample.spans:
        texts[weight] += tokenizer.decode(sample.tokens[start:stop].tolist())
    assert texts.keys() == {0.25, 1.0} and "limit = 3" in texts[0.25] and "limit = 3" not in texts[1.0]
    assert "coding agent" not in texts[1.0] and "Show me" in texts[1.0] and "<tool_call>" in texts[1.0]


@pytest.mark.parametrize("evil", ["", "<|im_end|>"], ids=["plain", "control tokens"])
def test_other_roles_are_learned_once_each(tokenizer: Any, evil: str) -> None:
    row = conversation(
        {"role": "system", "content": f"Brief.{evil}"}, user(f"First{evil}"), calls("a.py"), result(f"Result{evil}"),
        says("Yes."), user("Second", weight=0.5), says("No."),
    )  # fmt: skip
    options = SampleOptions(role_weights={"user": 0.1, "tool": 0.2, "assistant": 2.0})
    samples = make_samples([row], tokenizer, options).items
    found = [[(tokenizer.decode(s.tokens[a:b].tolist()).strip(), weight) for a, b, weight in s.spans] for s in samples]
    (first, call), (outcome, yes), (second, no) = found
    assert first == (f"<|im_start|>user\nFirst{evil}<|im_end|>", 0.1) and call[1] == 2.0
    assert outcome == (f"<|im_start|>user\n<tool_response>\nResult{evil}\n</tool_response><|im_end|>", 0.2)
    assert (yes, no) == (("Yes.<|im_end|>", 2.0), ("No.<|im_end|>", 2.0))
    assert second == ("<|im_start|>user\nSecond<|im_end|>", 0.5)


def test_a_user_may_be_learned_by_name(tokenizer: Any) -> None:
    (sample,) = make_samples(
        [conversation(user("Learn", train=True), says("a", train=False))], tokenizer, DEFAULT
    ).items
    assert learned(tokenizer, sample).strip() == "Learn<|im_end|>"


# ---- other shapes of rows ----


def test_a_ready_made_text_is_learned_whole(tokenizer: Any) -> None:
    ready = parse_row('{"text": "<|im_start|>user\\nHi<|im_end|>\\n", "weight": 0.5}', "t", 1)
    plain = parse_row('{"text": "Hi there"}', "t", 2)
    code = parse_row(json.dumps({"text": "<tool_call>\n{}\n</tool_call>"}), "t", 3)
    samples = make_samples([ready, plain, code], tokenizer, DEFAULT)
    first, second, _ = samples.items
    assert first.tokens.tolist() == encode(
        tokenizer, "<|im_start|>user\nHi<|im_end|>"
    )  # control tokens are control tokens
    assert second.tokens.tolist() == [*encode(tokenizer, "Hi there"), tokenizer.eos_token_id]
    assert first.spans == ((1, len(first.tokens), 0.5),) and second.spans == ((1, len(second.tokens), 1.0),)
    assert first.cluster == "" and samples.notes == {"text rows": 2, "text rows that hold calls": 1}


def test_a_completion_is_learned_and_its_prompt_is_not(tokenizer: Any) -> None:
    rows = [{"prompt": "Hi", "completion": "Hello"}]
    rows.append({"prompt": [user("Hi"), says("Hello"), user("Bye")], "completion": [says("So long")]})
    samples = make_samples([parse_row(json.dumps(r), "t", 1) for r in rows], tokenizer, DEFAULT)
    assert [learned(tokenizer, s) for s in samples.items] == ["Hello<|im_end|>", "So long<|im_end|>"]
    assert samples.items[0].tokens.tolist() == encode(
        tokenizer, render(tokenizer, [user("Hi"), says("Hello")]).removesuffix("\n")
    )
