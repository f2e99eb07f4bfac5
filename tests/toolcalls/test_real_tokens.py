"""Token ids of a real tokenizer, as a server has them: the shipped model's, through mlx_lm's own detokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from punie_mlx.toolcalls import contract, formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.stream import StreamParser, gather

WRITE = Tool(
    "write_file",
    parameters={"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}},
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    from mlx_lm.tokenizer_utils import load

    return load(tiny_base)


def encode(tokenizer, text: str, *, spelled: bool = False) -> list[int]:
    """The ids of `text`; `spelled`: with its markers in ordinary tokens, as a model can write them."""
    if not spelled:
        return tokenizer.encode(text, add_special_tokens=False)
    return [token for character in text for token in tokenizer.encode(character, add_special_tokens=False)]


def read_tokens(tokenizer, name: str, ids: list[int]):
    """What a server's loop makes of `ids`: each token with the text that the detokenizer has for it by then."""
    control = {i: s for s, i in tokenizer.get_added_vocab().items()}
    parser = StreamParser(name, [WRITE], control=control)
    detokenizer, events, text = tokenizer.detokenizer, [], ""
    detokenizer.reset()
    for token in ids:
        detokenizer.add_token(token)
        piece = detokenizer.last_segment
        text += piece
        events += parser.feed(piece, [token])
    detokenizer.finalize()
    text += detokenizer.last_segment
    events += parser.feed(detokenizer.last_segment) + parser.finish("stop")
    assert contract.faults(text, events) == []
    return gather(events)


@pytest.mark.parametrize("name", ["qwen3_coder", "hermes"])
@pytest.mark.parametrize("content", ["plain", "ü 🎉 日本", "if a < b:\n    pass", "x\n</parameter> y", ""])
def test_a_call_is_read_from_tokens(tokenizer, name, content):
    call = ToolCall("write_file", {"path": "a b.txt", "content": content})
    found = read_tokens(tokenizer, name, encode(tokenizer, "Sure 🎉.\n\n" + formats.render(name, [call, call])))
    assert found.calls == [call, call] and found.content.strip() == "Sure 🎉." and not found.problems


@pytest.mark.parametrize("name", ["qwen3_coder", "hermes"])
@pytest.mark.parametrize("marker", ["</tool_call>", "<tool_call>", "<think>", "</think>", "<|im_end|>"])
def test_a_marker_in_ordinary_tokens_is_data(tokenizer, name, marker):
    wire = formats.render(name, [ToolCall("write_file", {"path": "p", "content": "HERE"})])
    before, after = wire.split("HERE")
    ids = encode(tokenizer, before) + encode(tokenizer, marker, spelled=True) + encode(tokenizer, after)
    assert tokenizer.decode(ids) == before + marker + after
    found = read_tokens(tokenizer, name, ids)
    assert found.calls == [ToolCall("write_file", {"path": "p", "content": marker})]


def test_a_call_spelled_in_ordinary_tokens_is_text(tokenizer):
    wire = formats.render("hermes", [ToolCall("write_file", {"path": "p", "content": "c"})])
    assert read_tokens(tokenizer, "hermes", encode(tokenizer, wire)).calls
    found = read_tokens(tokenizer, "hermes", encode(tokenizer, wire, spelled=True))
    assert found.calls == [] and found.content == wire
