"""Rows → samples: one for each assistant turn, as it will be served.

A sample is the prompt that the server would render for that turn (tools included) and the turn that the row holds; the
loss falls on the turn's tokens and the token that ends it. Rendering a whole conversation once and masking it would
train on prompts that no server sends: a template may render an earlier turn otherwise once a later one exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.chat.render import encode, render
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import DataError

# (tokens, index of the first token with a loss): what mlx_lm's trainer takes for one example
Sample = tuple[list[int], int]


@dataclass
class Samples:
    """The samples of one split, and how many turns were dropped for which reason."""

    items: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    first_failure: str = ""


def make_samples(rows: Iterable[Row], tokenizer: Any, max_seq_length: int) -> Samples:
    """A sample for each assistant turn of `rows`; turns that cannot be trained on are counted in `dropped`."""
    made = Samples()
    for row in rows:
        for i, message in enumerate(row.messages):
            if message["role"] != "assistant":
                continue
            if not (message.get("content") or message.get("tool_calls")):
                made.dropped["empty"] += 1
                continue
            try:
                tokens, offset = make_sample(tokenizer, row.messages[: i + 1], row.tools)
            except DataError as e:
                made.dropped["not rendered"] += 1
                made.first_failure = made.first_failure or f"{row.where}: {e}"
                continue
            if len(tokens) > max_seq_length:
                made.dropped["too long"] += 1
                continue
            made.items.append((tokens, offset))
    return made


def make_sample(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Sample:
    """The tokens of a conversation that ends on an assistant turn, and where that turn begins. Raises `DataError`."""
    prompt = render(tokenizer, messages[:-1], tools, add_generation_prompt=True)
    whole = render(tokenizer, messages, tools)
    if not whole.startswith(prompt):
        raise DataError("the chat template renders the prompt otherwise once it is answered: mend the template")
    head = encode(tokenizer, prompt)
    turn = _until_end(encode(tokenizer, whole[len(prompt) :]), tokenizer)
    return head + turn, len(head)


def _until_end(turn: list[int], tokenizer: Any) -> list[int]:
    """`turn` up to and with its last end-of-turn token: what templates write after it is never generated."""
    ends = set(tokenizer.eos_token_ids)
    last = max((i for i, token in enumerate(turn) if token in ends), default=None)
    return [*turn, tokenizer.eos_token_id] if last is None else turn[: last + 1]
