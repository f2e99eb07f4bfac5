"""What a chat template writes for an assistant's turn, behind the prompt that the server would have sent.

The turn is what follows the prompt in the rendering of the answered conversation. Templates that render the prompt
otherwise once it is answered are met with, in this order:

1. the prompt has closed the thinking (`enable_thinking: false`): the turn without its thinking;
2. the prompt has opened the thinking: a turn that has none closes it at once, as the template itself closes thinking;
3. something else of the prompt changed (a newline, a system message): the turn begins where, in the rendering, the
   generation prompt ends, behind all that does not depend on the turn.

The prompt itself is the server's in each case. What has no such way is a `DataError`, as is a turn that the template
does not write: a call or an answer that got lost on the way must not be learned as silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from punie_mlx.chat.messages import THINK
from punie_mlx.chat.render import Conversation, Prompt
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import detect

ANCHOR = 8  # characters by which the end of a prompt is found again, where the template adds no generation prompt
CLOSED = "thinking left out: the prompt closes it"
OPENED = "no thinking: the turn closes what the prompt opens"
AS_TEXT = "thinking written in front of the answer: the template does not write it"
UNWRITTEN = "thinking left out: the template does not write it"
NO_PREAMBLE = "text beside calls left out: the template does not write it"


@dataclass(frozen=True)
class Turn:
    """A turn as the model must write it, up to and with the token that ends it. `notes`: what was left out or added."""

    text: str
    tokens: list[int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Written:
    """The text behind the prompt, places of sentinels in it, and the messages that it was rendered from."""

    text: str
    cuts: list[int]
    sealed: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


def turn(conversation: Conversation, index: int, prompt: Prompt, ends: dict[bool, list[int]] | None = None) -> Turn:
    """The turn of message `index`, an assistant's, behind `prompt`, which holds the messages before it.

    Control tokens that the template writes are control tokens, those spelled out in the message are text. `ends` keeps
    what ends a turn, with or without calls, for templates that do not write it. Raises `DataError`.
    """
    sealed = conversation.sealed(index)
    found = next(_ways(conversation, sealed, index, prompt), None)
    if found is None:
        raise DataError("the chat template renders the prompt otherwise once it is answered: mend the template")
    found = _complete(conversation, index, prompt, found)
    tokens = conversation.tokens(found.text, found.cuts)
    stops = set(conversation.tokenizer.eos_token_ids)
    last = next((i for i, token in enumerate(tokens) if token in stops), None)
    if last is not None:  # generation stops here: what templates write after it is never generated
        return Turn(found.text, tokens[: last + 1], found.notes)
    ends = {} if ends is None else ends
    calls = "tool_calls" in conversation.messages[index]
    if calls not in ends:
        ends[calls] = _end(conversation, index, found)
    return Turn(found.text, tokens + ends[calls], found.notes)


def _ways(conversation: Conversation, sealed: list[dict[str, Any]], index: int, prompt: Prompt) -> Iterator[_Written]:
    message = conversation.sealed_turn(index)
    variants = [(message, ())]
    if "reasoning_content" in message:
        variants.append(({k: v for k, v in message.items() if k != "reasoning_content"}, (CLOSED,)))
    else:
        # The sentinel is text to the template and nothing afterwards: thinking that is empty.
        variants.append(({**message, "reasoning_content": conversation.sentinel.character}, (OPENED,)))
    for variant, notes in variants:
        whole = [*sealed, variant]
        text, cuts = conversation.text(whole)
        if text.startswith(prompt.text):
            yield _Written(text[len(prompt.text) :], _after(cuts, len(prompt.text)), whole, notes)
    whole = [*sealed, message]
    text, cuts = conversation.text(whole)
    start = _anchored(conversation, whole, text, cuts, prompt)
    if start is not None:
        yield _Written(text[start:], _after(cuts, start), whole)


def _after(cuts: list[int], start: int) -> list[int]:
    return [cut - start for cut in cuts if cut > start]


def _anchored(
    conversation: Conversation, whole: list[dict[str, Any]], text: str, cuts: list[int], prompt: Prompt
) -> int | None:
    """Where the turn begins in `text`, the rendering of `whole`, of which the prompt is no beginning."""
    *before, message = whole
    unanswered, _ = conversation.text(before)
    added = prompt.text[len(unanswered) :] if prompt.text.startswith(unanswered) else ""
    anchor = added or prompt.text[-ANCHOR:]
    # What does not depend on the turn: the beginning that another turn has, too.
    other, _ = conversation.text([*before, {"role": message["role"], "content": conversation.sentinel.character}])
    fixed = shared(text, other)
    at = text.rfind(anchor, 0, fixed)
    # Behind all of the conversation, and not at the end of an earlier prompt.
    said = before[-1]["content"]
    end = len(said.rstrip())
    marked = {**before[-1], "content": said[:end] + conversation.sentinel.character + said[end:]}
    again, places = conversation.text([*before[:-1], marked, message])
    behind = next((p for p, cut in zip_longest(places, cuts) if p != cut), None)
    if again != text or behind is None or at < 0:
        return None
    start = at + len(anchor)
    return start if (at if added else start) >= behind else None


def shared(a: str, b: str) -> int:
    """How many characters `a` and `b` begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _complete(conversation: Conversation, index: int, prompt: Prompt, found: _Written) -> _Written:
    """`found`, if it holds all that the message says; thinking that got lost is put back where that is possible."""
    message = conversation.messages[index]
    calls = message.get("tool_calls", ())
    lost = [name for call in calls if (name := call["function"]["name"]) not in found.text]
    if lost:
        raise DataError(f"the chat template does not write the turn's call of {lost[0]}: give the model another one")
    notes = found.notes
    if message["content"].strip() not in found.text:
        if not calls:
            raise DataError("the chat template does not write what the turn says: give the model another one")
        notes += (NO_PREAMBLE,)
    thinking = message.get("reasoning_content", "").strip()
    if thinking and CLOSED not in notes and thinking not in found.text:
        return _think_aloud(conversation, index, prompt, found, notes)
    return _Written(found.text, found.cuts, found.sealed, notes)


def _think_aloud(
    conversation: Conversation, index: int, prompt: Prompt, found: _Written, notes: tuple[str, ...]
) -> _Written:
    """The turn with its thinking in front of the answer, between the tags that the server looks for."""
    opening, closing = (tag.strip() for tag in thinking_tags(conversation.tokenizer))
    message = conversation.sealed_turn(index)
    thought = message.pop("reasoning_content").strip()
    message["content"] = f"{opening}\n{thought}\n{closing}\n\n{message['content']}"
    whole = [*found.sealed[:-1], message]
    text, cuts = conversation.text(whole)
    said = conversation.messages[index]["reasoning_content"].strip()
    if text.startswith(prompt.text) and said in (rest := text[len(prompt.text) :]):
        return _Written(rest, _after(cuts, len(prompt.text)), whole, (*notes, AS_TEXT))
    return _Written(found.text, found.cuts, found.sealed, (*notes, UNWRITTEN))


def thinking_tags(tokenizer: Any) -> tuple[str, str]:
    """The tags around thinking in the format that the template of `tokenizer` speaks."""
    return _tags(tokenizer, getattr(tokenizer, "chat_template", None))


@lru_cache(maxsize=4)
def _tags(tokenizer: Any, template: str | None) -> tuple[str, str]:
    try:
        found = detect.examine(template, tokenizer.get_vocab()).wire().think
    except ConfigError:
        return THINK
    return found if all(found) else THINK


def _end(conversation: Conversation, index: int, found: _Written) -> list[int]:
    """What ends the turn, where the template does not write it there: what comes next, if that stops generation."""
    stops = set(conversation.tokenizer.eos_token_ids)
    calls = conversation.messages[index].get("tool_calls")
    following = {"role": "user", "content": "x"}
    if calls:
        following = {"role": "tool", "content": "x", "tool_call_id": calls[0]["id"], "name": ""}
    try:
        text, _ = conversation.text([*found.sealed, following])
        before, _ = conversation.text(found.sealed)
    except DataError:
        text = before = ""
    if text.startswith(before) and len(text) > len(before):
        (first, *_) = conversation.tokens(text[len(before) :].lstrip(), [])
        if first in stops:
            return [first]
    own = conversation.tokenizer.eos_token_id
    return [own] if own is not None else sorted(stops)[:1]
