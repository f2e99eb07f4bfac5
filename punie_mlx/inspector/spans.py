"""Which message each token of a prompt belongs to.

A message begins where the rendering of those before it ends. Templates that render earlier turns otherwise once later
ones exist have no such place; there, it begins behind the last end of a turn in front of what the message says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from punie_mlx.chat.render import Conversation, Prompt
from punie_mlx.errors import DataError
from punie_mlx.train.samples import tokens_before

NEEDLE = 24  # characters of a message by which it is found


def turns(conversation: Conversation, prompt: Prompt, texts: Sequence[str], count: int) -> list[int | None]:
    """For each token of `prompt`, which has `count` messages: the index of its message, None in front of the first.

    What the template adds for the answer belongs to message `count`; a message that is nowhere to be found has none.
    `texts`: the tokens, spelled.
    """
    owner: list[int | None] = [None] * len(texts)
    least = 0
    for index in range(count + 1):
        found = _start(conversation, prompt, texts, index, count, least)
        if found is not None:
            least = max(found, least)
            owner[least:] = [index] * (len(texts) - least)
    return owner


def _start(
    conversation: Conversation, prompt: Prompt, texts: Sequence[str], index: int, count: int, least: int
) -> int | None:
    """Where message `index` of `count` begins, at token `least` or later."""
    exact = _exactly(conversation, prompt, index)
    if exact is not None and index and exact >= least:
        return exact
    if index == count:
        said: int | None = len(texts)
    elif index == 0 and exact is not None:  # what it says; its header stands in front
        said = exact
    else:
        said = _said(conversation.messages[index], texts, least)
    if said is None:
        return None
    header = _header(prompt, texts, conversation.tokenizer.eos_token_ids, least, said)
    if header is None:  # nothing ends in front of the first message: all of it is its header
        return said if index else 0
    return header


def _exactly(conversation: Conversation, prompt: Prompt, index: int) -> int | None:
    """How many tokens stand before message `index`, where the template renders those before it alike without it."""
    try:
        if index and not prompt.text.startswith(conversation.text(conversation.sealed(index))[0]):
            return None
        return tokens_before(conversation, index, prompt)
    except DataError:
        return None


def _header(prompt: Prompt, texts: Sequence[str], stops: Collection[int], least: int, said: int) -> int | None:
    """Where the turn begins of which token `said` is the first that its message says: behind the turn before it."""
    start = next((i + 1 for i in reversed(range(least, said)) if prompt.tokens[i] in stops), None)
    if start is None:
        return None
    while start < said and texts[start].isspace():
        start += 1
    return start


def _said(message: Mapping[str, Any], texts: Sequence[str], least: int) -> int | None:
    """The token from `least` on with which begins what `message` says, as far as the template writes it."""
    text, ends = "".join(texts), list(accumulate(map(len, texts)))
    begin = ends[least - 1] if least else 0
    places = [at for needle in _needles(message) if (at := text.find(needle, begin)) >= 0]
    return bisect_right(ends, min(places)) if places else None


def _needles(message: Mapping[str, Any]) -> Iterable[str]:
    """What to look for: the beginning of what a message says, and the names of its calls."""
    said = message.get("reasoning_content", ""), message["content"]
    names = (call["function"]["name"] for call in message.get("tool_calls", ()))
    return [found for text in (*said, *names) if (found := text.strip()[:NEEDLE])]
