"""The template that we ship: what the server renders is what training saw, and history is spelled as calls are."""

from __future__ import annotations

from pathlib import Path

import pytest

from punie_mlx.chat.render import load_tokenizer, normalize, render
from punie_mlx.corpus.world import TOOLS
from punie_mlx.errors import DataError, ModelError
from punie_mlx.toolcalls.stream import read

ASK = {"role": "user", "content": "Read src/a.py"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "src/a.py"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "amber"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return load_tokenizer(tiny_base)


def test_the_shipped_template_is_the_one_of_the_package(tiny_base: Path, root: Path) -> None:
    ours = root / "punie_mlx/chat/templates/tiny_base.jinja"
    assert (tiny_base / "chat_template.jinja").read_text() == ours.read_text()


def test_markers_are_single_tokens(tokenizer) -> None:
    for marker in ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        assert len(tokenizer.encode(marker, add_special_tokens=False)) == 1, marker


def test_tools_block_names_types_and_options(tokenizer) -> None:
    text = render(tokenizer, [ASK], [TOOLS["find_symbol"], TOOLS["set_options"]], add_generation_prompt=True)
    assert "<name>find_symbol</name>" in text
    assert "<parameter>name: string</parameter>" in text
    assert "<parameter>kind: class|function|variable optional</parameter>" in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_call_in_history_is_spelled_as_the_format_reads_it(tokenizer) -> None:
    text = render(tokenizer, [ASK, CALL, RESULT], [TOOLS["read_file"]], add_generation_prompt=True)
    turn = text.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
    (call,) = read(turn, "qwen3_coder", []).calls
    assert (call.name, call.arguments) == ("read_file", {"path": "src/a.py"})
    assert "<|im_start|>user\n<tool_response>\namber\n</tool_response><|im_end|>" in text
    assert "None" not in text


def test_results_of_one_turn_share_a_user_turn(tokenizer) -> None:
    text = render(tokenizer, [ASK, CALL, RESULT, RESULT])
    assert text.count("<|im_start|>user") == 2
    assert text.count("<tool_response>") == 2


def test_a_conversation_extends_its_prefix(tokenizer) -> None:
    tools, turns = [TOOLS["read_file"]], [ASK, CALL, RESULT, {"role": "assistant", "content": "amber"}, ASK]
    whole = render(tokenizer, turns, tools)
    assert all(whole.startswith(render(tokenizer, turns[:n], tools)) for n in range(1, len(turns)))


def test_invalid_arguments_of_history_still_render() -> None:
    call = {"function": {"name": "f", "arguments": "{broken"}}
    (message,) = normalize([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == {"INVALID_JSON": "{broken"}
    assert message["content"] == ""


def test_bad_input_is_ours_to_report(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="cannot render"):
        render(tokenizer, [ASK], [{"type": "function", "function": {"name": "f", "parameters": {"properties": 3}}}])
