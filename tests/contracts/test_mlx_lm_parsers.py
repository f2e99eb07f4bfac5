"""What `punie_mlx/chat/render.py` holds of mlx_lm's choice of a reader of calls."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
from mlx_lm import tokenizer_utils

from punie_mlx.chat.render import load_tokenizer, stock_parser
from punie_mlx.errors import ModelError

# format → words of a template by which mlx_lm tells its reader
TOLD = {
    "json_tools": "<tool_call>{{ tool_call.name }}",
    "qwen3_coder": "'<tool_call>\\n<function='",
    "mistral": "[TOOL_CALLS]",
    "glm47": "<arg_key>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "minimax_m2": "<minimax:tool_call>",
    "gemma4": "<|tool_call><tool_call|>",
    "pythonic": "<|tool_call_start|>",
}


def test_the_choice_needs_a_template_and_a_vocabulary_only():
    asked = inspect.signature(tokenizer_utils._infer_tool_parser).parameters
    assert list(asked) == ["tokenizer"]
    for name, words in TOLD.items():
        alone = SimpleNamespace(chat_template=words, get_vocab=dict)
        assert tokenizer_utils._infer_tool_parser(alone) == name
        found = stock_parser(words, {})
        assert found is not None and found.name == name
    assert stock_parser("<|channel|>commentary to=", {}) is None
    lfm = stock_parser(None, {"<|tool_call_start|>": 1, "<|tool_call_end|>": 2})
    assert lfm is not None and lfm.name == "pythonic", "without words of the template, tokens decide"


def test_a_name_in_the_configuration_goes_before_the_template():
    found = stock_parser(TOLD["mistral"], {}, "json_tools")
    assert found is not None and (found.name, found.opening, found.closing) == (
        "json_tools", "<tool_call>", "</tool_call>"
    )  # fmt: skip
    with pytest.raises(ModelError, match="tool_parser_type"):
        stock_parser("", {}, "no_such_reader")


def test_a_reader_takes_text_and_tools_and_gives_one_call_or_several():
    call = {"name": "f", "arguments": {"x": 1}}
    for name, text in {"json_tools": json.dumps(call), "mistral": json.dumps([call, call])}.items():
        found = stock_parser("", {}, name)
        assert found is not None
        read = found.read(text, None)
        assert read == (call if name == "json_tools" else [call, call])


def test_the_choice_is_that_of_a_loaded_tokenizer(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    found = stock_parser(tokenizer.chat_template, tokenizer.get_vocab())
    assert found is not None and found.name == tokenizer.init_kwargs["tool_parser_type"] == "qwen3_coder"
    assert (tokenizer.tool_call_start, tokenizer.tool_call_end) == (found.opening, found.closing)
    assert (tokenizer.think_start, tokenizer.think_end) == ("<think>", "</think>")
