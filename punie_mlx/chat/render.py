"""The only caller of `apply_chat_template`: messages and tools in, prompt text or tokens out.

Training, the converter's check and the server all render here, so a model is trained on the prompt it is served.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import TemplateSyntaxError

from punie_mlx.chat.safe import SCHEMA_WORDS, Sentinel, vocabulary
from punie_mlx.errors import ConfigError, DataError, ModelError

Message = Mapping[str, Any]
# What the prompt is made of, or how: none of these is a switch of a template.
RESERVED = frozenset(
    ("self", "tokenizer", "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
     "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
     "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "add_special_tokens", "bos_token",
     "eos_token", "pad_token", "unk_token", "raise_exception", "strftime_now")
)  # fmt: skip


def load_tokenizer(model: Path, *, needs_template: bool = True) -> Any:
    """mlx_lm's tokenizer wrapper for the model directory `model`, with a chat template. Raises `ModelError`."""
    from mlx_lm.utils import load_tokenizer as load

    if not Path(model).is_dir():
        raise ModelError(f"model directory {model} does not exist: give a directory with a tokenizer and chat template")
    try:
        _refuse_broken(Path(model), "config.json", "generation_config.json", "tokenizer_config.json")
        tokenizer = load(Path(model), eos_token_ids=_ends_of_turn(Path(model)))
    except Exception as e:
        raise ModelError(
            f"the tokenizer of {model} cannot be loaded ({e}): give a directory that holds tokenizer.json, "
            "tokenizer_config.json and config.json as they were published"
        ) from e
    if needs_template and not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer of {model} has no chat template: add chat_template.jinja to the directory")
    return tokenizer


def _refuse_broken(model: Path, *names: str) -> None:
    """Raise `ValueError` for a file that is no JSON object: what reads it says no name, or passes over it."""
    for file in (model / name for name in names):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{file.name} is no JSON: {e}") from e
        if not isinstance(found, dict):
            raise ValueError(f"{file.name} holds no JSON object")


def _ends_of_turn(model: Path) -> Any:
    """The tokens at which generation stops, as the engine that serves `model` has them: some models have several."""
    from mlx_lm.utils import load_config

    try:
        return load_config(model).get("eos_token_id")
    except (OSError, ValueError):
        return None  # a tokenizer alone: its own end-of-sequence token is all there is to know


@dataclass(frozen=True)
class StockParser:
    """mlx_lm's own reader of calls: its name, the markers that it waits for, and how it reads what is between them."""

    name: str
    opening: str
    closing: str
    read: Callable[[str, Any], Any]


def stock_parser(chat_template: Any, vocabulary: Mapping[str, int], named: str | None = None) -> StockParser | None:
    """The reader that mlx_lm takes for a model with this template and these tokens; None where it takes none.

    `named`: the `tool_parser_type` of the model's tokenizer_config.json, which goes before the template. Raises
    `ModelError` for a name that mlx_lm has no reader of.
    """
    from mlx_lm.tokenizer_utils import _infer_tool_parser

    name = named or _infer_tool_parser(SimpleNamespace(chat_template=chat_template, get_vocab=lambda: vocabulary))
    if name is None:
        return None
    try:
        module = import_module(f"mlx_lm.tool_parsers.{name}")
    except ImportError as e:
        raise ModelError(
            f"mlx_lm has no reader of calls {name!r}: mend tool_parser_type in tokenizer_config.json"
        ) from e
    return StockParser(name, module.tool_call_start, module.tool_call_end, module.parse_tool_call)


def read_template(file: Path) -> str:
    """The chat template in a file. Raises `ConfigError`."""
    try:
        template = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"the chat template {file} cannot be read ({e}): give a Jinja file in UTF-8") from e
    if not template.strip():
        raise ConfigError(f"the chat template {file} is empty: give a Jinja file")
    return template


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
    return {"type": "function", "id": call.get("id") or "", "function": shown}


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


def render_as_given(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    **template_kwargs: Any,
) -> str:
    """What the template makes of messages that nothing has put in order before: null contents, arguments as text.

    Raises `DataError` with what the template said.
    """
    try:
        return tokenizer.apply_chat_template(
            copy.deepcopy([dict(m) for m in messages]),
            tools=copy.deepcopy([dict(t) for t in tools]) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as e:
        at = f" (line {e.lineno} of the template)" if isinstance(e, TemplateSyntaxError) else ""
        raise DataError(f"{type(e).__name__}: {e}{at}") from e


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
    conversation = Conversation(tokenizer, messages, tools, template_kwargs)
    return conversation.prompt(len(conversation.messages), add_generation_prompt=add_generation_prompt)


class Conversation:
    """Messages and tools of which several prompts are rendered: what a client wrote is broken up once for all.

    `kept`: sentinels of other conversations with the same tokenizer, which remember what they have broken up. Raises
    `DataError`, as its methods do, and `ConfigError` for `template_kwargs` that are no switches of a template.
    """

    def __init__(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        kept: dict[str, Sentinel] | None = None,
    ) -> None:
        if taken := RESERVED.intersection(template_kwargs or ()):
            raise ConfigError(f"{min(taken)!r} cannot be given to a chat template from outside: leave it out")
        self.tokenizer = tokenizer
        self.messages = normalize(messages)
        self._markers = vocabulary(tokenizer)
        template = getattr(tokenizer, "chat_template", None)
        given = json.dumps((self.messages, tools, template_kwargs, template), ensure_ascii=False, default=str)
        self.sentinel = Sentinel.of(self._markers, given, {} if kept is None else kept)
        self._tools = self.sentinel.value(list(tools or ()), SCHEMA_WORDS)
        kwargs = (template_kwargs or {}).items()
        self._kwargs = {key: self.sentinel.value(value, SCHEMA_WORDS) for key, value in kwargs}
        self._sealed: dict[tuple[int, bool], dict[str, Any]] = {}

    def prompt(self, count: int, *, add_generation_prompt: bool = True) -> Prompt:
        """What the model is given after the first `count` messages."""
        text, cuts = self.text(self.sealed(count), add_generation_prompt=add_generation_prompt)
        return Prompt(text, self._markers.encode(text, cuts), cuts[-1] if cuts else 0)

    def sealed(self, count: int) -> list[dict[str, Any]]:
        """The first `count` messages, broken up as they are where the prompt follows the last of them."""
        return [self._seal(i, last=i == count - 1) for i in range(count)]

    def _seal(self, index: int, *, last: bool) -> dict[str, Any]:
        if (index, last) not in self._sealed:
            self._sealed[index, last] = _sealed(self.messages[index], self.sentinel, last=last)
        return self._sealed[index, last]

    def sealed_turn(self, index: int) -> dict[str, Any]:
        """Message `index` as one that follows the prompt: what it says itself."""
        return dict(self._seal(index, last=False))

    def text(self, sealed: Sequence[Message], *, add_generation_prompt: bool = False) -> tuple[str, list[int]]:
        """What the template makes of `sealed` messages, and where sentinels stood in it."""
        rendered = render(
            self.tokenizer, sealed, self._tools, add_generation_prompt=add_generation_prompt, **self._kwargs
        )
        return self.sentinel.take_out(rendered)

    def tokens(self, text: str, cuts: Sequence[int], *, continued: bool = True) -> list[int]:
        """Token ids of `text`, a part of a rendering, with `cuts` in it; `continued`: it goes on behind another."""
        return self._markers.encode(text, cuts, continued=continued)


def _sealed(message: Message, sentinel: Sentinel, *, last: bool = False) -> dict[str, Any]:
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
