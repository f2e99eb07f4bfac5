"""One sample for each assistant turn, on the prompt that is served."""

from __future__ import annotations

import pytest

from punie_mlx.chat.render import encode, load_tokenizer, render
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import DataError
from punie_mlx.train.samples import make_sample, make_samples


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


@pytest.fixture
def row(make_row):
    return Row(**make_row(3), file="train.jsonl", line=4)


def test_each_turn_has_its_served_prompt(tokenizer, row):
    samples = make_samples([row], tokenizer, 2048)
    assert len(samples.items) == 2 and not samples.dropped
    for (tokens, offset), turn in zip(samples.items, (2, 4), strict=True):
        prompt = render(tokenizer, row.messages[:turn], row.tools, add_generation_prompt=True)
        assert tokens[:offset] == encode(tokenizer, prompt)
        assert "read_file" in prompt


def test_the_loss_falls_on_the_turn_and_its_end_only(tokenizer, row):
    call, answer = make_samples([row], tokenizer, 2048).items
    assert tokenizer.decode(answer[0][answer[1] :]) == "It sets the limit to 3.<|im_end|>"
    text = tokenizer.decode(call[0][call[1] :])
    assert text.startswith("<tool_call>") or text.startswith("\n<tool_call>")
    assert "src/module3.py" in text and text.endswith("<|im_end|>")


def test_a_turn_in_the_middle_is_rendered_as_it_was_served(tokenizer, row):
    """Its prompt holds nothing of what came later."""
    (tokens, _), _ = make_samples([row], tokenizer, 2048).items
    assert "limit" not in tokenizer.decode(tokens)


def test_long_samples_are_dropped_and_counted(tokenizer, row):
    lengths = sorted(len(tokens) for tokens, _ in make_samples([row], tokenizer, 2048).items)
    samples = make_samples([row], tokenizer, lengths[0])
    assert len(samples.items) == 1 and samples.dropped == {"too long": 1}
    assert len(samples.items[0][0]) == lengths[0]


def test_empty_turns_are_dropped_and_counted(tokenizer):
    row = Row([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}], [])
    assert make_samples([row], tokenizer, 2048).dropped == {"empty": 1}


def test_a_template_that_changes_the_prompt_is_counted_with_its_place(tokenizer, row, tmp_path, tiny_base):
    import shutil

    shutil.copytree(tiny_base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    samples = make_samples([row], load_tokenizer(tmp_path / "model"), 2048)
    assert samples.items == [] and samples.dropped == {"not rendered": 2}
    assert samples.first_failure.startswith("train.jsonl:4: the chat template renders the prompt otherwise")


def test_a_template_without_an_end_of_turn_gets_one(tokenizer, tiny_base, tmp_path):
    import shutil

    shutil.copytree(tiny_base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    plain = load_tokenizer(tmp_path / "model")
    tokens, offset = make_sample(plain, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [])
    assert tokens[-1] == plain.eos_token_id and plain.decode(tokens[offset:-1]) == "b\n"


def test_a_row_without_a_prompt_is_refused(tokenizer):
    with pytest.raises(DataError):
        make_sample(tokenizer, [{"role": "robot"}], [])
