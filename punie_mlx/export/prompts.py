"""Rows → what a model is given and says: each assistant turn behind the prompt that the server would send for it.

What `divergence` measures on and `dwq` tunes on. The rendering is `chat/`'s, as in training and in the server.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import Conversation
from punie_mlx.chat.safe import Sentinel
from punie_mlx.chat.turns import turn
from punie_mlx.corpus.rows import Row, read_split
from punie_mlx.errors import DataError

MAX_TOKENS = 2048


@dataclass(frozen=True)
class Said:
    """Tokens of a prompt and of the assistant's turn behind it, which begins at `start`."""

    tokens: tuple[int, ...]
    start: int

    @property
    def turn(self) -> int:
        """How many tokens the turn has."""
        return len(self.tokens) - self.start


def assistant_turns(rows: Iterable[Row], tokenizer: Any, max_tokens: int = MAX_TOKENS) -> list[Said]:
    """Every assistant turn of `rows`; left out are ready-made texts, turns of weight 0, those that `tokenizer`'s
    template cannot render, and those with more than `max_tokens` tokens."""
    kept: dict[str, Sentinel] = {}
    ends: dict[bool, list[int]] = {}
    found = []
    for row in rows:
        for said in _turns_of(row, tokenizer, kept, ends):
            if len(said.tokens) <= max_tokens:
                found.append(said)
    return found


def _turns_of(row: Row, tokenizer: Any, kept: dict[str, Sentinel], ends: dict[bool, list[int]]) -> Iterator[Said]:
    if row.text is not None or row.weight == 0:
        return
    tools = tools_for_template(row.tools)
    for i, message in enumerate(row.messages):
        if message["role"] != "assistant" or message.get("train") is False or message.get("weight", 1) == 0:
            continue
        shown = for_template(row.messages[: i + 1])
        last = shown[-1]
        if len(shown) < 2 or not (last["content"] or last.get("tool_calls")):
            continue
        try:
            conversation = Conversation(tokenizer, shown, tools, None, kept)
            prompt = conversation.prompt(len(shown) - 1)
            said = turn(conversation, len(shown) - 1, prompt, ends)
        except DataError:
            continue
        yield Said((*prompt.tokens, *said.tokens), len(prompt.tokens))


def shuffled(turns: Iterable[Said], seed: int) -> list[Said]:
    """`turns` in an order that `seed` decides, each one once."""
    unique = sorted(dict.fromkeys(turns), key=lambda said: (len(said.tokens), said.tokens))
    random.Random(seed).shuffle(unique)
    return unique


def held_out(data: Path) -> tuple[str, list[Row]]:
    """The split of a directory of rows that nothing is tuned on, and its rows: test, or valid where there is no test.

    Raises `DataError`.
    """
    if rows := read_split(data, "test", required=False):
        return "test", rows
    return "valid", read_split(data, "valid")
