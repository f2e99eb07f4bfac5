"""What is seen of a conversation: every token once, whose it is, what of it is learned, and what the reader says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import load_tokenizer, safe_prompt
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.inspector.inspection import Asked, Inspection, View, inspect
from punie_mlx.inspector.source import read_row
from punie_mlx.inspector.spelling import Spelling
from punie_mlx.train.samples import SampleOptions, make_samples

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_orbit",
        "description": "Where an orbit is.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "deep": {"type": "boolean"}}},
    },
}
CALL = {"function": {"name": "look_up_orbit", "arguments": {"name": "Zeeland-71", "deep": True}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Where is Zeeland-71?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "412 km 🌍"},
    {"role": "assistant", "content": "At 412 km 🌍."},
]
# Thinking of turns before the last user's message is dropped, as many models have it.
FORGETS = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{%- set found = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set found.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > found.last %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def seen(model: Path, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **given: Any):
    return inspect(Asked(model, Row(messages, [TOOL] if tools is None else tools, "made.json", 1), **given))


def text_of(view: View, turn: int | None) -> str:
    return "".join(t.text for t in view.tokens if t.turn == turn)


def learned(view: View) -> str:
    return "".join(t.text for t in view.tokens if t.trained)


@pytest.fixture(scope="module")
def whole(tiny_base: Path) -> Inspection:
    return seen(tiny_base, MESSAGES)


def test_a_prompt_is_the_servers_and_every_character_is_there_once(tiny_base: Path) -> None:
    messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "naïve 🏴󠁧󠁢󠁳󠁣󠁴󠁿 \x07 <|im_end|>"}]
    (view,) = seen(tiny_base, messages).views
    tokenizer = load_tokenizer(tiny_base)
    prompt = safe_prompt(tokenizer, for_template(messages), tools_for_template([TOOL]))
    assert [t.id for t in view.tokens] == prompt.tokens and view.prompt == len(prompt.tokens)
    assert "".join(t.text for t in view.tokens) == prompt.text
    ends = [t for t in view.tokens if t.text == "<|im_end|>"]
    assert len(ends) == 2 and all(t.kind == "control" for t in ends), "what a user spells out is no control token"
    assert {t.kind for t in view.tokens if not t.text} == {"part"}, "bytes that make no character yet"


def test_each_token_knows_its_message(whole: Inspection) -> None:
    (view,) = whole.views
    assert "look_up_orbit" in text_of(view, None), "tools that no message holds are the template's own"
    assert [text_of(view, i).split("\n")[0] for i in range(4)] == [
        "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>user", "<|im_start|>assistant",
    ]  # fmt: skip
    assert "Where is Zeeland-71?" in text_of(view, 0) and "Zeeland-71" in text_of(view, 1)
    assert "412 km 🌍" in text_of(view, 2) and text_of(view, 3).endswith("At 412 km 🌍.<|im_end|>")
    assert [whole.turns[i] for i in range(4)] == ["user", "assistant", "tool", "assistant"]


def test_trained_positions_are_those_of_training(tiny_base: Path, whole: Inspection) -> None:
    (view,) = whole.views
    row = Row(MESSAGES, [TOOL], "made.json", 1)
    made = make_samples([row], load_tokenizer(tiny_base), SampleOptions()).items
    expected = {i for sample in made for start, stop, _ in sample.spans for i in range(start, stop)}
    assert {i for i, t in enumerate(view.tokens) if t.trained} == expected and len(expected) > 20
    assert learned(view).startswith("<tool_call>") and learned(view).endswith("At 412 km 🌍.<|im_end|>")


def test_what_a_row_leaves_out_is_not_marked(tiny_base: Path) -> None:
    messages = [*MESSAGES[:3], {**MESSAGES[3], "train": False}]
    found = seen(tiny_base, messages)
    assert learned(found.views[0]).endswith("</tool_call><|im_end|>")
    assert any("weight is 0" in note for note in found.training.notes)
    assert text_of(found.views[0], 3).endswith("At 412 km 🌍.<|im_end|>"), "it is shown all the same"
    assert {t.trained for t in seen(tiny_base, MESSAGES[:1]).views[0].tokens} == {None}, "a question is no row"


def test_states_and_calls_are_the_readers(whole: Inspection) -> None:
    (view,) = whole.views
    states = {t.state for t in view.tokens if t.turn == 1}
    assert states == {"", "call", "arguments", "between", "content"}
    inside = "".join(t.text for t in view.tokens if t.state == "arguments")
    assert "Zeeland-71" in inside and "look_up_orbit" not in inside
    call, said = whole.read
    (made,) = call.message["tool_calls"]
    assert made["function"]["name"] == "look_up_orbit" and call.finish == "tool_calls"
    assert json.loads(made["function"]["arguments"]) == {"name": "Zeeland-71", "deep": True}
    assert said.message == {"role": "assistant", "content": "At 412 km 🌍."} and said.finish == "stop"


def test_turns_that_are_rendered_otherwise_later_are_shown_apart(tiny_base: Path) -> None:
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "reasoning_content": "Hm, Borkum-9.", "content": "There."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "reasoning_content": "Once more.", "content": "Here."},
    ]
    found = seen(tiny_base, messages, chat_template=FORGETS)
    last, first = found.views
    assert (last.name, first.name) == ("conversation", "message 2")
    assert text_of(last, 1) == "<|im_start|>assistant\nThere.<|im_end|>\n", "found by what it says"
    assert learned(first).startswith("<think>\nHm, Borkum-9.\n</think>") and "later ones follow" in first.note
    assert learned(last).startswith("<think>\nOnce more.")
    known = found.known(first)
    assert first.tokens[known].turn == 1 and first.tokens[known - 1].turn == 0, "what is shown apart is its turn"
    assert [s["in_first_view"] for s in found.to_json()["training"]["samples"]] == [False, True]
    assert [r.message.get("reasoning_content") for r in found.read] == ["Hm, Borkum-9.", "Once more."]
    thinking = "".join(t.text for t in last.tokens if t.state == "reasoning")
    assert "Once more." in thinking and "Here" not in thinking


def test_a_template_without_a_format_reads_nothing_and_says_so(tiny_base: Path) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    found = seen(tiny_base, MESSAGES[:1] + MESSAGES[3:], [], chat_template=plain)
    assert found.format is None and "no wire format found" in found.format_note and found.read == ()
    named = seen(tiny_base, MESSAGES[:1] + MESSAGES[3:], [], chat_template=plain, tool_call_format="hermes")
    assert named.format == "hermes" and len(named.read) == 1


def test_a_ready_made_text_has_no_turns(tiny_base: Path) -> None:
    row = Row([], [], "made.jsonl", 1, text="<|im_start|>user\nHi<|im_end|>")
    (view,) = inspect(Asked(tiny_base, row)).views
    assert {t.turn for t in view.tokens} == {None} and [t.trained for t in view.tokens][:2] == [False, True]
    with pytest.raises(ConfigError, match="asks for no answer"):
        Asked(tiny_base, row, generate=3)


def test_it_is_all_json(whole: Inspection) -> None:
    found = json.loads(json.dumps(whole.to_json()))
    (view,) = found["views"]
    assert [s["turn"] for s in view["spans"]] == [None, 0, 1, 2, 3] and view["spans"][-1]["stop"] == len(view["tokens"])
    assert found["format"] == "qwen3_coder" and found["answer"] is None
    assert [s["message"] for s in found["training"]["samples"]] == [1, 3]


def test_tokens_are_spelled_one_by_one(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    spelling = Spelling(tokenizer)
    text = "a 🌍 naïve\n\n  b<|im_end|>\ufffd."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(spelling.texts(ids)) == text
    assert spelling.texts(ids[2:], ids[:2]) == spelling.texts(ids)[2:]
    broken = tokenizer.encode("🌍", add_special_tokens=False)[:-1]
    assert set(spelling.texts(broken)) == {""}
    ends = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert spelling.texts([*broken, *ends]) == [""] * (len(broken) - 1) + ["\ufffd", "<|im_end|>"]


def test_the_reader_has_the_last_character_of_a_turn_even_if_it_is_the_one_of_broken_text(tiny_base: Path) -> None:
    found = seen(
        tiny_base, [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "It is \ufffd"}], []
    )
    assert found.read[0].message["content"] == "It is \ufffd"


def test_what_goes_on_behind_the_conversation_is_not_known_from_it(whole: Inspection) -> None:
    (view,) = whole.views
    first = next(i for i, token in enumerate(view.tokens) if token.turn == 2)
    short = replace(whole, views=(View("prompt", view.tokens[:first]),))
    assert short.known(view) == first


# ---- where it comes from ----


def test_messages_come_in_three_shapes(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(MESSAGES, indent=1))
    (tmp_path / "row.json").write_text(json.dumps({"messages": MESSAGES, "tools": [TOOL]}, indent=1))
    other = {"messages": MESSAGES[:1], "tools": [TOOL]}
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps({"messages": MESSAGES}) + "\n" + json.dumps(other) + "\n")
    (tmp_path / "tools.json").write_text(json.dumps([TOOL["function"]]))
    assert (read_row(tmp_path / "list.json").messages, read_row(tmp_path / "list.json").tools) == (MESSAGES, [])
    assert read_row(tmp_path / "list.json", tmp_path / "tools.json").tools == [TOOL["function"]]
    assert read_row(tmp_path / "row.json").tools == [TOOL]
    assert read_row(tmp_path / "rows.jsonl").messages == MESSAGES
    (tmp_path / "bom.json").write_text("\ufeff" + json.dumps(MESSAGES), encoding="utf-8")
    assert read_row(tmp_path / "bom.json").messages == MESSAGES
    third = read_row(tmp_path / "rows.jsonl", line=3)
    assert third.messages == MESSAGES[:1] and third.where.endswith("rows.jsonl:3")


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("{no", None, "line 1 column 2.*give a list of messages"),
        ('[{"role": "user", "content": "a"}], "tools": []', 1, "is not JSON"),
        (f"[{'[' * 900}{']' * 900}]", None, "message 1 is a list"),
        ('{"messages": [{"role": "owl"}]}', None, "the role 'owl'"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', 2, "no row on line 2: it has 1 rows"),
        ("3", None, "a row is a JSON object"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, content: str, line: int | None, said: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises((DataError, ConfigError), match=said):
        read_row(tmp_path / "m.json", line=line)


def test_tools_must_be_tools(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MESSAGES))
    for bad in ("{}", '[{"type": "function"}]', "no"):
        (tmp_path / "t.json").write_text(bad)
        with pytest.raises(DataError, match=r"t\.json"):
            read_row(tmp_path / "m.json", tmp_path / "t.json")
    for none, said in (("none.json", "cannot be read"), ("none.jsonl", "does not exist: give a file of messages")):
        with pytest.raises(DataError, match=said):
            read_row(tmp_path / none)
