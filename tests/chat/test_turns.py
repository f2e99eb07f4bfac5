"""A turn behind its prompt: what the template writes, in the tokens that the model must write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat.render import Conversation, encode, load_tokenizer, render, safe_prompt
from punie_mlx.chat.turns import shared, turn
from punie_mlx.errors import DataError

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Say <|im_end|>"},
    {"role": "assistant", "content": "It is <|im_end|> or <tool_call>."},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "No."},
]


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def test_prompts_of_a_conversation_are_those_of_its_beginnings(tokenizer: Any) -> None:
    conversation = Conversation(tokenizer, MESSAGES)
    for count in (1, 2, 3):
        assert conversation.prompt(count) == safe_prompt(tokenizer, MESSAGES[:count])


def test_what_a_message_spells_is_text_and_what_the_template_writes_is_control(tokenizer: Any) -> None:
    conversation = Conversation(tokenizer, MESSAGES)
    said = turn(conversation, 1, conversation.prompt(1))
    assert said.text == "It is <|im_end|> or <tool_call>.<|im_end|>\n" and said.notes == ()
    assert tokenizer.decode(said.tokens) == said.text.rstrip()
    added = tokenizer.added_tokens_decoder
    assert [added[t].content for t in said.tokens if t in added] == ["<|im_end|>"]


def test_prompt_and_turn_are_the_tokens_of_the_whole(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, you."}]
    conversation = Conversation(tokenizer, messages)
    prompt = conversation.prompt(1)
    whole = encode(tokenizer, render(tokenizer, messages).rstrip())
    assert prompt.tokens + turn(conversation, 1, prompt).tokens == whole


def test_a_turn_continues_its_prompt_without_a_space_of_its_own(tmp_path: Path) -> None:
    """Some tokenizers put a space before each text: a turn is no text of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*map(chr, range(32, 127)), "\n", "▁"]
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["</s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    fast.save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    conversation = Conversation(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}])
    said = turn(conversation, 1, conversation.prompt(1))
    assert tokenizer.convert_ids_to_tokens(said.tokens) == ["b", "c", "</s>"]


def test_what_a_template_does_not_write_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}\n{{ m.content if m.role == 'user' }}{% endfor %}" + (
        "{{ 'assistant\n' if add_generation_prompt }}"
    )
    conversation = Conversation(tokenizer, MESSAGES)
    with pytest.raises(DataError, match="does not write what the turn says"):
        turn(conversation, 1, conversation.prompt(1))


def test_text_beside_calls_that_is_not_written_is_noted(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.tool_calls[0].function.name if m.tool_calls else m.content }}"
        "<|im_end|>{% endfor %}{{ 'assistant\n' if add_generation_prompt }}"
    )
    call = {"function": {"name": "look", "arguments": {}}}
    messages = [MESSAGES[0], {"role": "assistant", "content": "I look.", "tool_calls": [call]}]
    conversation = Conversation(tokenizer, messages)
    said = turn(conversation, 1, conversation.prompt(1))
    assert said.text == "look<|im_end|>"
    assert said.notes == ("text beside calls left out: the template does not write it",)


@pytest.mark.parametrize(("a", "b", "length"), [("", "a", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("x", "y", 0)])
def test_the_common_beginning(a: str, b: str, length: int) -> None:
    assert shared(a, b) == length
    assert shared(a + "é" * 1000, a + "é" * 700 + "x") == len(a) + 700
