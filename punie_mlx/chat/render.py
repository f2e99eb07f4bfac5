"""The only caller of `apply_chat_template`: messages and tools in, prompt text or tokens out.

Training, the converter's check and the server all render here, so a model is trained on the prompt it is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.chat.safe import SCHEMA_WORDS, Sentinel, vocabulary
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


@dataclass(frozen=True)
class Prompt:
    """What a model is given: `text` as it sees it, and its tokens."""

    text: str
    tokens: list[int]
    written: int = 0  # from here on, the text is the template's own

    def opens(self, tag: str) -> bool:
        """Whether the prompt ends by opening `tag`, by the template's own doing and not in a client's text."""
        tag = tag.strip()
        end = self.text.rstrip()
        return bool(tag) and end.endswith(tag) and len(end) - len(tag) >= self.written


def safe_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    **template_kwargs: Any,
) -> Prompt:
    """The prompt of a client's messages and tools, of which no text becomes a control token. Raises `DataError`.

    The tokens are those of `encode(render(…))` wherever no control token is spelled out.
    """
    markers = vocabulary(tokenizer)
    messages = normalize(messages)
    given = (messages, tools or (), template_kwargs, getattr(tokenizer, "chat_template", None))
    sentinel = Sentinel(markers, _strings(given))
    last = len(messages) - 1
    rendered = render(
        tokenizer,
        [_sealed(message, sentinel, last=i == last) for i, message in enumerate(messages)],
        sentinel.value(list(tools or ()), SCHEMA_WORDS),
        add_generation_prompt=add_generation_prompt,
        **{key: sentinel.value(value, SCHEMA_WORDS) for key, value in template_kwargs.items()},
    )
    text, cuts = sentinel.take_out(rendered)
    return Prompt(text, markers.encode(text, cuts), cuts[-1] if cuts else 0)


def _sealed(message: Message, sentinel: Sentinel, *, last: bool) -> dict[str, Any]:
    """`message` with sentinels in all that a client wrote; the keys and the role are ours."""
    sealed = {k: v if k in ("role", "content", "tool_calls") else sentinel.value(v) for k, v in message.items()}
    sealed["content"] = sentinel.text(message["content"], last=last)
    if "tool_calls" in message:
        sealed["tool_calls"] = [_sealed_call(call, sentinel) for call in message["tool_calls"]]
    return sealed


def _sealed_call(call: Mapping[str, Any], sentinel: Sentinel) -> dict[str, Any]:
    function = call["function"]
    shown = {"name": sentinel.text(function["name"]), "arguments": sentinel.value(function["arguments"])}
    return {"type": "function", "id": sentinel.text(call["id"]), "function": shown}


def _strings(value: Any) -> Iterator[str]:
    """All strings in `value`, keys too."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, inner in value.items():
                yield from _strings(key)
                yield from _strings(inner)
        case list() | tuple():
            for inner in value:
                yield from _strings(inner)
