"""Rows → samples: one for each assistant turn, as it will be served.

A sample is the prompt that the server would send for that turn, token by token (`chat/`: the same code), and the turn
that the row holds; the loss falls on the turn's tokens and the token that ends it. Rendering a whole conversation once
and masking it would train on prompts that no server sends: a template may render an earlier turn otherwise once a
later one exists.

Weights. A turn counts with the row's `weight`, times the message's own (`"train": false` is 0, `"weight": x`) or its
role's. Where another role has a weight, its messages are learned in the sample of the turn that follows them, each one
once. `loss_on="all"` makes one sample of a row, and all of its text is learned.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from punie_mlx.chat.messages import SYSTEM, for_template, tools_for_template
from punie_mlx.chat.render import Conversation, Prompt, encode
from punie_mlx.chat.safe import Sentinel, vocabulary
from punie_mlx.chat.turns import shared, turn
from punie_mlx.corpus.rows import BadRow, Row
from punie_mlx.errors import DataError
from punie_mlx.toolcalls.looks import call_text

Spans = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Sample:
    """One assistant turn with all that comes before it, or a ready-made text."""

    tokens: np.ndarray
    """int32 (n,): prompt and turn."""
    spans: Spans
    """Targets with a loss: [start, stop) of token positions, and their weight. Sorted, disjoint, start at least 1."""
    where: str = ""
    """`file:line` of the row, for messages."""
    cluster: str = ""
    """Hash of what shares a prompt prefix, system and tools; "" where that is not in the tokens."""
    prompt: int = 0
    """How many tokens stand before the turn; 0 in a text."""
    message: int | None = None
    """Index of the turn's message in its row; None in a text."""

    @property
    def supervised(self) -> int:
        """How many tokens have a loss."""
        return sum(stop - start for start, stop, _ in self.spans)


@dataclass
class Samples:
    """The samples of one split, and what became of the other turns."""

    items: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Turns that could not be trained on, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Turns left out by wish, and turns in which something was left out, added or cut."""
    first_failure: str = ""
    """`file:line` and reason of the first turn that could not be rendered."""
    quarantined: list[BadRow] = field(default_factory=list)
    """The rows of which a turn could not be rendered."""


class Options(Protocol):
    """Where `SampleOptions` come from: `TrainConfig`."""

    @property
    def max_seq_length(self) -> int: ...
    @property
    def overlong(self) -> str: ...
    @property
    def loss_on(self) -> str: ...
    @property
    def role_weights(self) -> Mapping[str, float]: ...
    @property
    def template_kwargs(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class SampleOptions:
    """What of a training run's settings decides on its samples."""

    max_seq_length: int = 2048
    """Most tokens of a sample."""
    overlong: str = "drop"
    """What becomes of a longer one. drop: it is left out. cut: its prompt loses its beginning."""
    loss_on: str = "turns"
    """turns: each assistant turn. last: the last one of a row. all: the whole text."""
    role_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each role's tokens. Without one: assistant 1, others 0; with `loss_on="all"` 1 for all."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """For the chat template, as the server will give them."""

    @classmethod
    def of(cls, config: Options) -> SampleOptions:
        return cls(config.max_seq_length, config.overlong, config.loss_on, config.role_weights, config.template_kwargs)

    def weight_of(self, message: Mapping[str, Any]) -> float:
        """What a token of `message` counts, before the weight of its row."""
        if message.get("train") is False:
            return 0.0
        learned = message["role"] == "assistant" or self.loss_on == "all" or message.get("train") is True
        return float(message.get("weight", self.role_weights.get(message["role"], 1.0 if learned else 0.0)))


def make_samples(rows: Iterable[Row], tokenizer: Any, options: SampleOptions) -> Samples:
    """A sample for each assistant turn of `rows`, and one for each text row.

    Turns that cannot be trained on are counted in `dropped`; no sample is without a supervised token.
    """
    maker = _Maker(tokenizer, options)
    for row in rows:
        maker.add(row)
    return maker.made


class _Maker:
    """Makes samples; what it has found out about the tokenizer serves for all rows."""

    def __init__(self, tokenizer: Any, options: SampleOptions) -> None:
        self.made = Samples()
        self._tokenizer = tokenizer
        self._options = options
        self._markers = vocabulary(tokenizer).markers
        self._kept: dict[str, Sentinel] = {}
        self._ends: dict[bool, list[int]] = {}

    def add(self, row: Row) -> None:
        if row.weight == 0:
            self.made.notes["rows left out: their weight is 0"] += 1
        elif row.text is not None:
            self._add_text(row, row.text)
        else:
            self._add_turns(row)

    def _add_text(self, row: Row, text: str) -> None:
        """A ready-made text: its control tokens are control tokens, all of it is learned, and where it ends."""
        tokens, trimmed = (encode(self._tokenizer, t) for t in (text, text.rstrip()))
        if trimmed and trimmed[-1] in self._tokenizer.eos_token_ids:
            tokens = trimmed  # it ends already: what templates write after the end is never generated
        elif self._tokenizer.eos_token_id is not None:
            tokens = [*tokens, self._tokenizer.eos_token_id]
        note = "text rows that hold calls" if call_text(text, ()) is not None else "text rows"
        self.made.notes[note] += 1
        self._keep(row, Sample(np.array(tokens, np.int32), (), row.where), np.ones(len(tokens)))

    def _add_turns(self, row: Row) -> None:
        turns = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        if self._options.loss_on != "turns":
            turns = turns[-1:]
        if not turns:
            self.made.dropped["no assistant turn"] += 1
        tools = tools_for_template(row.tools)
        conversation: Conversation | None = None
        before = -1
        for i in turns:
            learned = range(before + 1 if self._options.loss_on == "turns" else 0, i + 1)
            before = i
            beside = any(self._weight_beside(row.messages[j]) for j in learned[:-1])
            if not beside and not self._options.weight_of(row.messages[i]):
                self.made.notes["turns left out: their weight is 0"] += 1
                continue
            try:
                # A later system message is none yet: the server merges those that there are.
                upto = i + 1 if _is_system_later(row.messages) else len(row.messages)
                if conversation is None or upto == i + 1:
                    conversation = self._conversation(row.messages[:upto], tools)
                self._add_turn(row, conversation, i, learned, tools)
            except DataError as e:
                self._not_rendered(row, e)

    def _conversation(self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]]) -> Conversation:
        shown = for_template(messages)
        return Conversation(self._tokenizer, shown, tools, self._options.template_kwargs, self._kept)

    def _add_turn(
        self, row: Row, conversation: Conversation, i: int, learned: range, tools: list[dict[str, Any]]
    ) -> None:
        """The sample of message `i` of `row`; `learned` messages up to it have their weights."""
        at = _places(row.messages[: i + 1])
        message = conversation.messages[at[i]]
        if not (message["content"] or message.get("tool_calls")):
            self.made.dropped["empty"] += 1
            return
        if at[i] == 0:
            self.made.dropped["nothing before the turn"] += 1
            return
        prompt = conversation.prompt(at[i])
        said = turn(conversation, at[i], prompt, self._ends)
        self.made.notes.update(said.notes)
        if any(True for _ in self._markers.find(message["content"])):
            self.made.notes["control tokens spelled out in a turn: learned as text"] += 1
        weights = np.zeros(len(prompt.tokens) + len(said.tokens))
        weights[len(prompt.tokens) :] = self._options.weight_of(row.messages[i])
        others = {at[j]: self._weight_beside(row.messages[j]) for j in learned[:-1]}
        self._weigh(conversation, prompt, others, weights[: len(prompt.tokens)])
        tokens = np.array(prompt.tokens + said.tokens, np.int32)
        sample = Sample(tokens, (), row.where, _cluster(conversation, tools), len(prompt.tokens), i)
        self._keep(row, sample, weights)

    def _weight_beside(self, message: Mapping[str, Any]) -> float:
        """What a message in the prompt of a turn counts: earlier turns only where all is learned."""
        if message["role"] == "assistant" and self._options.loss_on == "last":
            return 0.0
        return self._options.weight_of(message)

    def _weigh(
        self, conversation: Conversation, prompt: Prompt, others: Mapping[int, float], weights: np.ndarray
    ) -> None:
        """Write what the tokens of a prompt count into `weights`; `others`: place of a message → its weight."""
        around = self._options.weight_of({"role": "assistant"}) if self._options.loss_on == "all" else 0.0
        weights[:] = around  # the headers of turns
        if any(weight != around for weight in others.values()):
            for place, weight in others.items():
                weights[slice(*_block(conversation, place, prompt))] = weight

    def _keep(self, row: Row, sample: Sample, weights: np.ndarray) -> None:
        """Keep `sample`, whose tokens count what `weights` say, if it has a loss and fits; its turn must stay whole."""
        most, length = self._options.max_seq_length, len(sample.tokens)
        if length > most:
            # In front of a turn something must stand that predicts it.
            if self._options.overlong == "drop" or (sample.prompt and length - sample.prompt >= most):
                self.made.dropped["too long"] += 1
                return
            self.made.notes["cut from the left: too long"] += 1
            start = max(sample.prompt - (length - most), 0)
            sample = replace(sample, tokens=sample.tokens[-most:].copy(), cluster="", prompt=start)
            weights = weights[-most:]
        spans = _spans(weights * row.weight)
        if not spans:
            self.made.dropped["empty"] += 1
            return
        self.made.items.append(replace(sample, spans=spans))

    def _not_rendered(self, row: Row, error: DataError) -> None:
        self.made.dropped["not rendered"] += 1
        self.made.first_failure = self.made.first_failure or f"{row.where}: {error}"
        if not self.made.quarantined or self.made.quarantined[-1].line != row.line:
            raw = json.dumps(row.to_json(), ensure_ascii=False)
            self.made.quarantined.append(BadRow(row.file, row.line, str(error), raw))


def _is_system_later(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a system message comes after another one: it is in the prompts of later turns only."""
    roles = [m["role"] in SYSTEM for m in messages]
    return any(roles[roles.index(False) :]) if not all(roles) else False


def _places(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where each message of a row stands among those for the template, of which the first is the system's."""
    system = [m["role"] in SYSTEM for m in messages]
    first = int(any(system))
    return [0 if is_system else first + i - sum(system[:i]) for i, is_system in enumerate(system)]


def _block(conversation: Conversation, index: int, prompt: Prompt) -> tuple[int, int]:
    """Where message `index` begins and ends among the tokens of `prompt`, with what the template writes around it."""
    return tokens_before(conversation, index, prompt), tokens_before(conversation, index + 1, prompt)


def tokens_before(conversation: Conversation, count: int, prompt: Prompt) -> int:
    """How many tokens of `prompt` the first `count` messages have; none of them, what stands before the first says."""
    before = conversation.sealed(count)
    if not before and conversation.messages[0]["role"] != "system":
        before = [{"role": conversation.messages[0]["role"], "content": conversation.sentinel.character}]
    if not before:
        return 0
    text, cuts = conversation.text(before)
    text = text[: shared(text, prompt.text)]
    tokens = conversation.tokens(text, [c for c in cuts if c < len(text)], continued=False)
    same = next((i for i, (a, b) in enumerate(zip(tokens, prompt.tokens, strict=False)) if a != b), None)
    return min(len(tokens), len(prompt.tokens)) if same is None else same


def _spans(weights: np.ndarray) -> Spans:
    """Runs of equal weights that are not 0; the first token is no target, since nothing predicts it."""
    edges = [1, *(np.flatnonzero(np.diff(weights[1:])) + 2).tolist(), len(weights)]
    return tuple((a, b, float(weights[a])) for a, b in pairwise(edges) if b > a and weights[a] > 0)


def _cluster(conversation: Conversation, tools: list[dict[str, Any]]) -> str:
    """The same for conversations with the same system message and tools."""
    first = conversation.messages[0]
    system = first["content"] if first["role"] == "system" else None
    return hashlib.blake2b(json.dumps([system, tools]).encode(), digest_size=6).hexdigest()


def describe(counts: Counter[str]) -> str:
    """Counts in one line, for messages."""
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())
