"""The only caller of `apply_chat_template`: messages and tools in, prompt text or tokens out.

Training, the converter's check and the server all render here, so a model is trained on the prompt it is served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.errors import DataError, ModelError

Message = Mapping[str, Any]


def load_tokenizer(model: Path) -> Any:
    """mlx_lm's tokenizer wrapper for the model directory `model`. Raises `ModelError`."""
    from mlx_lm.utils import load_tokenizer as load

    if not Path(model).is_dir():
        raise ModelError(f"model directory {model} does not exist: give a directory with a tokenizer and chat template")
    try:
        tokenizer = load(Path(model))
    except Exception as e:
        raise ModelError(f"the tokenizer of {model} cannot be loaded: {e}") from e
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer of {model} has no chat template: add chat_template.jinja to the directory")
    return tokenizer


def normalize(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: `content` a string, the arguments of calls objects, not JSON strings."""
    out = []
    for message in messages:
        message = dict(message)
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
        message["content"] = content or ""
        if message.get("tool_calls"):
            message["tool_calls"] = [_call(c) for c in message["tool_calls"]]
        else:
            message.pop("tool_calls", None)
        out.append(message)
    return out


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"INVALID_JSON": arguments}
        if not isinstance(arguments, dict):
            arguments = {"INVALID_JSON": json.dumps(arguments, ensure_ascii=False)}
    shown = {"name": function["name"], "arguments": arguments}
    return {"type": "function", "id": call.get("id", ""), "function": shown}


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
    **template_kwargs: Any,
) -> str:
    """The text that the model's own chat template makes of `messages` and `tools`. Raises `DataError`."""
    try:
        return tokenizer.apply_chat_template(
            normalize(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as e:
        raise DataError(f"the chat template cannot render these messages: {e}") from e


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered `text`, without adding special tokens of the tokenizer's own."""
    return tokenizer.encode(text, add_special_tokens=False)
