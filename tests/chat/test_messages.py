"""Rows and requests become the same messages for a template."""

from __future__ import annotations

from typing import Any

import pytest

from punie_mlx.chat.messages import for_template, split_thinking, tools_for_template


def test_what_is_said_to_the_system_is_one_message_and_the_first() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "system", "content": None},
    ]
    assert for_template(messages) == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_keys_that_are_no_templates_business_stay_outside() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi", "weight": 0.5, "train": False, "name": "Ada", "tool_calls": [call]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm", "tool_call_id": None},
        {"role": "tool", "content": "x", "tool_call_id": "1", "reasoning_content": "no"},
        {"role": "assistant", "refusal": "I won't."},
    ]
    assert for_template(messages) == [
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Hm"},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": "I won't."},
    ]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("  <think>Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("<think>never closed", ("", "<think>never closed")),
        ("Say <think>x</think>", ("", "Say <think>x</think>")),
    ],
)
def test_thinking_is_split_off(content: str, parts: tuple[str, str]) -> None:
    assert split_thinking(content) == parts
    (message,) = for_template([{"role": "assistant", "content": content}])
    assert (message.get("reasoning_content", ""), message["content"]) == parts


def test_tools_are_spelled_as_in_training_rows() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    nothing = {"type": "object", "properties": {}}
    tools = [
        {"type": "function", "function": {"name": "f", "description": "F", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "g", "description": None, "parameters": None}},
        {"name": "h"},
    ]
    assert tools_for_template(tools) == [
        {"type": "function", "function": {"name": "f", "description": "F", "parameters": schema}},
        {"type": "function", "function": {"name": "g", "parameters": nothing}},
        {"type": "function", "function": {"name": "h", "parameters": nothing}},
    ]
