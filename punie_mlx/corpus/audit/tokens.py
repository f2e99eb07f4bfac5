"""Checks that need the model's tokenizer and template: what the template makes of a row, and what a loss would see.

A ready-made text is measured as it stands; other rows as the model's own template renders them. The turns of the
assistant are what is supervised, each from its prompt to the token that ends it. Stock `mlx_lm.lora --mask-prompt`
supervises the last message only: the assistant's turns before it are in the prompt, and their tokens are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from punie_mlx.chat.render import encode, render
from punie_mlx.corpus.audit.model import (
    ERROR,
    NOTE,
    WARNING,
    AuditRow,
    Check,
    Corpus,
    Figure,
    Finding,
    each,
)
from punie_mlx.errors import DataError

END = "<|im_end|>"  # of a turn of ChatML


@dataclass(frozen=True)
class Measured:
    """A row in tokens: the whole of it, and the assistant's turns by message index.

    ends: index of each of these turns → tokens up to its end; known where the row is longer than is allowed.
    last: tokens of the last message, where that is the assistant's. unstable: turns whose prompt the template renders
    otherwise once they are written. rewritten: turns that it renders otherwise in a history. problem: why the row
    cannot be measured.
    """

    tokens: int = 0
    turns: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    last: int = 0
    unstable: tuple[int, ...] = ()
    rewritten: tuple[int, ...] = ()
    problem: str = ""

    @property
    def supervised(self) -> int:
        """Tokens of the assistant's turns."""
        return sum(self.turns.values())


def measured(corpus: Corpus) -> dict[str, Measured]:
    """`file:line` → measurements, of each row that can be taken apart; done once for all checks."""
    if "measured" not in corpus.memo:
        corpus.memo["measured"] = {r.where: measure(r, corpus) for r in corpus.rows if r.turns}
    return corpus.memo["measured"]


def measure(row: AuditRow, corpus: Corpus) -> Measured:
    """`row` in tokens of the corpus' tokenizer."""
    text = (row.raw or {}).get("text")
    if row.format == "text" and isinstance(text, str):
        return _ready_made(row, text, corpus)
    try:
        return _rendered(row, corpus)
    except DataError as e:
        return Measured(problem=str(e))


def _ready_made(row: AuditRow, text: str, corpus: Corpus) -> Measured:
    def count(part: str) -> int:
        return len(encode(corpus.tokenizer, part))

    tokens = count(text)
    turns = {t.index: count(t.content + END) for t in row.assistant}
    ends = {}
    if tokens > corpus.max_seq_length:
        before = 0
        for turn in row.turns:
            before += count(f"<|im_start|>{turn.role}\n{turn.content}{END}\n")
            if turn.index in turns:
                ends[turn.index] = before - 1
    last = row.turns[-1]
    return Measured(tokens, turns, ends, turns.get(last.index, 0))


def _rendered(row: AuditRow, corpus: Corpus) -> Measured:
    """Raises `DataError` where the template cannot render the row."""
    tokenizer, messages = corpus.tokenizer, row.messages or []
    tools = row.tools if row.raw and row.raw.get("tools") is not None else []  # else they stand in the system turn
    whole = render(tokenizer, messages, tools)
    tokens = len(encode(tokenizer, whole))
    turns, ends, unstable, rewritten = {}, {}, [], []
    for i in (t.index for t in row.assistant):
        answered = whole if i + 1 == len(messages) else render(tokenizer, messages[: i + 1], tools)
        prompt = render(tokenizer, messages[:i], tools, add_generation_prompt=True) if i else ""
        if answered.startswith(prompt):
            turns[i] = len(encode(tokenizer, answered[len(prompt) :].rstrip()))
        else:
            unstable.append(i)
        if not whole.startswith(answered.rstrip()):
            rewritten.append(i)
        if tokens > corpus.max_seq_length:
            ends[i] = len(encode(tokenizer, answered.rstrip()))
    return Measured(tokens, turns, ends, turns.get(len(messages) - 1, 0), tuple(unstable), tuple(rewritten))


# ---- checks ----


def cannot_render(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
    if row.turns and (problem := measured(corpus)[row.where].problem):
        yield row.finding(problem)


def unstable_prompt(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
    if row.turns and (found := measured(corpus)[row.where].unstable):
        yield row.finding(f"the prompt of message {_numbers(found)} is rendered otherwise once it is answered")


def rewritten_history(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
    if row.turns and (found := measured(corpus)[row.where].rewritten):
        yield row.finding(f"message {_numbers(found)} is rendered otherwise once the conversation goes on")


def _numbers(indices: Iterable[int]) -> str:
    return ", ".join(str(i + 1) for i in indices)


def overlong(row: AuditRow, corpus: Corpus) -> Iterator[Finding]:
    """Rows of which at least one answer, with its prompt, is longer than is allowed."""
    if not row.turns:
        return
    found, limit = measured(corpus)[row.where], corpus.max_seq_length
    beyond = [i for i, end in found.ends.items() if end > limit]
    if beyond:
        lost = f"{len(beyond)} of {len(found.ends)} answers end beyond {limit}"
        yield row.finding(f"{found.tokens} tokens: {lost}, from message {beyond[0] + 1} on")


def masked_turns(corpus: Corpus) -> Iterator[Finding]:
    """Said once for each split, with the rows that are concerned."""
    for split, rows in corpus.splits.items():
        found = [(r, m) for r in rows if (m := measured(corpus).get(r.where))]
        lost = [(r.where, m.supervised - m.last) for r, m in found if m.supervised > m.last]
        if lost:
            tokens, all_tokens = sum(n for _, n in lost), sum(m.supervised for _, m in found)
            calls = sum(1 for r, _ in found for c in r.calls if c.turn + 1 < len(r.turns))
            detail = (
                f"{split}: {tokens} of {all_tokens} tokens of the assistant ({tokens / all_tokens:.0%}), and {calls} "
                f"calls, stand before the last message"
            )
            yield Finding("", detail, tuple(where for where, _ in lost), split=split)


# ---- figures ----


Count = Callable[[Measured], int]


def _total(value: Count) -> Callable[[Corpus], Mapping[str, int]]:
    """The sum of `value` over the rows of each split, and of all (under "")."""

    def run(corpus: Corpus) -> Mapping[str, int]:
        return {split: sum(value(m) for m in _of(rows, corpus)) for split, rows in _splits(corpus)}

    return run


def _share(part: Count, whole: Count) -> Callable[[Corpus], Mapping[str, str]]:
    """The sum of `part` in that of `whole`."""

    def run(corpus: Corpus) -> Mapping[str, str]:
        out = {}
        for split, rows in _splits(corpus):
            found = _of(rows, corpus)
            total = sum(map(whole, found))
            out[split] = f"{sum(map(part, found)) / total:.1%}" if total else "—"
        return out

    return run


def _splits(corpus: Corpus) -> Iterator[tuple[str, Sequence[AuditRow]]]:
    yield from corpus.splits.items()
    yield "", corpus.rows


def _of(rows: Sequence[AuditRow], corpus: Corpus) -> list[Measured]:
    return [found[r.where] for r in rows if r.where in found] if (found := measured(corpus)) else []


def _longest(corpus: Corpus) -> Mapping[str, int]:
    return {split: max((m.tokens for m in _of(rows, corpus)), default=0) for split, rows in _splits(corpus)}


_TOKENIZER = "tokenizer"

FIGURES = (
    Figure("tokens", "tokens", _total(lambda m: m.tokens), _TOKENIZER),
    Figure("longest_row", "tokens of the longest row", _longest, _TOKENIZER),
    Figure("supervised_tokens", "tokens of the assistant", _total(lambda m: m.supervised), _TOKENIZER),
    Figure("supervised_share", "share of all tokens", _share(lambda m: m.supervised, lambda m: m.tokens), _TOKENIZER),
    Figure(
        "lost_to_mask_prompt", "lost to stock --mask-prompt",
        _share(lambda m: m.supervised - m.last, lambda m: m.supervised), _TOKENIZER,
    ),
)  # fmt: skip

CHECKS = (
    Check(
        "cannot_render", ERROR, "Rows that the template cannot render",
        "They can neither be trained on nor served. Mend the row, or the template.",
        each(cannot_render), _TOKENIZER,
    ),
    Check(
        "unstable_prompt", ERROR, "Turns whose prompt changes once they are answered",
        "The template writes something else before an answer than the prompt for it: the model would be trained on a "
        "prompt that it is never served. Mend the template's generation prompt.",
        each(unstable_prompt), _TOKENIZER,
    ),
    Check(
        "overlong", WARNING, "Rows over the length",
        "Answers beyond it are dropped or cut in training. Raise --max-seq-length, or shorten results and tools.",
        each(overlong), _TOKENIZER,
    ),
    Check(
        "masked_turns", NOTE, "Answers that stock --mask-prompt does not train",
        "It trains the last message only, and refuses ready-made text. punie-mlx train gives each turn of the "
        "assistant its loss.",
        masked_turns, _TOKENIZER,
    ),
    Check(
        "rewritten_history", NOTE, "Turns that the template renders otherwise later on",
        "Thinking is dropped from a history, for one. Train on a sample for each turn, as punie-mlx train does: one "
        "masked rendering of the whole conversation is not what is served.",
        each(rewritten_history), _TOKENIZER,
    ),
)  # fmt: skip
