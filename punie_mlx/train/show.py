"""What is learned, to look at: `punie-mlx train --show N` prints samples as the model sees them, and trains nothing.

Tokens with a loss are coloured, or stand in ⟦ ⟧ where there are no colours. Control tokens are shown; text that only
spells one is named below the sample. The prompt is compared with what the server sends for the same messages.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import load_tokenizer, safe_prompt
from punie_mlx.chat.safe import vocabulary
from punie_mlx.corpus.rows import BadRow, Row, read_split
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.samples import Sample, SampleOptions, describe, make_samples

LEARNED, CONTROL, QUIET, RESET = "\x1b[32m", "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
# A terminal obeys control characters: rows that hold some are shown with Unicode's pictures of them.
PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {127: 0x2421}


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one kind: their text, the weight of their loss, and whether they are control tokens."""

    text: str
    weight: float
    control: bool


@dataclass(frozen=True)
class Shown:
    """A sample, and what the server would send in its place: tokens, or None for a text, which has no prompt."""

    sample: Sample
    served: list[int] | None
    pieces: list[Piece]
    spelled: Counter[str]
    """Control tokens that are spelled out, and are ordinary text in this sample."""

    @property
    def as_served(self) -> bool:
        """Whether the sample's prompt is the server's, token by token, or the end of it, where it was cut."""
        prompt = self.sample.tokens[: self.sample.prompt].tolist()
        served = self.served or []
        return prompt == served[len(served) - len(prompt) :] and (len(prompt) == len(served) or self.cut)

    @property
    def cut(self) -> bool:
        """Whether the prompt lost its beginning."""
        return self.served is not None and self.sample.prompt < len(self.served)

    def to_json(self) -> dict[str, Any]:
        """The sample as one line of JSON."""
        sample = self.sample
        text = "".join(p.text for p in self.pieces)
        return {
            "where": sample.where,
            "message": sample.message,
            "text": text,
            "tokens": sample.tokens.tolist(),
            "spans": [list(span) for span in sample.spans],
            "prompt_tokens": sample.prompt,
            "supervised": sample.supervised,
            "cut": self.cut,
            "as_served": None if self.served is None else self.as_served,
            "spelled_out": dict(self.spelled),
        }


def show(
    config: TrainConfig,
    n: int,
    base: Path | None = None,
    file: TextIO | None = None,
    color: bool | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Print `n` samples of `config.data`, spread over its training rows, to `file` (stdout).

    `base` is the directory of `config.model` where that is a name on the hub. `color`: None where the file is a
    terminal, and NO_COLOR is not set. `as_json`: one object a line, with the tokens.

    Raises:
        ConfigError: no model or no data was given.
        ModelError: no model, or one without a chat template.
        DataError: no rows, a bad row (file:line), or no row that can be trained on.
    """
    for name in ("model", "data"):
        if not getattr(config, name):
            raise ConfigError(f"no {name} was given: pass --{name} or name it in the recipe")
    out = sys.stdout if file is None else file
    bad: list[BadRow] | None = [] if config.skip_bad else None
    rows = read_split(Path(config.data), "train", bad=bad)
    shown, dropped = choose(rows, load_tokenizer(base or Path(config.model)), config, n)
    if not shown:
        raise DataError(f"{config.data} holds nothing to train on: {describe(dropped) or 'no assistant turns'}")
    color = out.isatty() and "NO_COLOR" not in os.environ if color is None else color
    for i, one in enumerate(shown, 1):
        if as_json:
            print(json.dumps(one.to_json(), ensure_ascii=False), file=out)
        else:
            print("\n".join(told(one, f"sample {i} of {len(shown)}", color=color)), end="\n\n", file=out)
    if not as_json:
        if bad:
            dropped["bad row" if len(bad) == 1 else "bad rows"] = len(bad)
        left_out = f"; left out: {describe(dropped)}" if dropped else ""
        print(f"{config.data}: {len(rows)} rows in train.jsonl{left_out}", file=out)


def choose(rows: Sequence[Row], tokenizer: Any, config: TrainConfig, n: int) -> tuple[list[Shown], Counter[str]]:
    """`n` samples from rows spread over all, of several turns in turn; and what was dropped on the way."""
    shown: list[Shown] = []
    dropped: Counter[str] = Counter()
    for index in spread(len(rows), n):
        if len(shown) == n:
            break
        made = make_samples([rows[index]], tokenizer, SampleOptions.of(config))
        dropped.update(made.dropped)
        if made.items:
            sample = made.items[len(shown) % len(made.items)]
            shown.append(_shown(rows[index], sample, tokenizer, config))
    return shown, dropped


def spread(count: int, n: int) -> Iterator[int]:
    """All indices below `count`: first `n` of them that are equally far from each other."""
    first = dict.fromkeys(i * count // n for i in range(n)) if count and n > 0 else {}
    yield from first
    yield from (i for i in range(count) if i not in first)


def _shown(row: Row, sample: Sample, tokenizer: Any, config: TrainConfig) -> Shown:
    served = None
    if sample.message is not None:
        messages, tools = for_template(row.messages[: sample.message]), tools_for_template(row.tools)
        served = safe_prompt(tokenizer, messages, tools, **config.template_kwargs).tokens
    markers = vocabulary(tokenizer)
    pieces = list(_pieces(sample, tokenizer, markers.control))
    text = "".join(p.text for p in pieces)
    spelled = Counter(text[a:b] for a, b in markers.markers.find(text))
    spelled.subtract(p.text for p in _pieces(sample, tokenizer, markers.control, alone=True) if p.control)
    return Shown(sample, served, pieces, +spelled)


def _pieces(sample: Sample, tokenizer: Any, control: frozenset[str], *, alone: bool = False) -> Iterator[Piece]:
    """The tokens of `sample` in runs of one kind; each control token `alone`, if wanted."""
    tokens = sample.tokens.tolist()
    added = {i: str(t) in control for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    weights = [0.0] * len(tokens)
    for start, stop, weight in sample.spans:
        weights[start:stop] = [weight] * (stop - start)
    kinds = [(weights[i], added.get(token, False)) for i, token in enumerate(tokens)]
    start, before = 0, ""
    for i in range(1, len(tokens) + 1):
        if i == len(tokens) or kinds[i] != kinds[start] or (alone and kinds[i][1]):
            # Decoded with all that stands before: some tokenizers write the first token of a text otherwise.
            until = tokenizer.decode(tokens[:i], skip_special_tokens=False)
            yield Piece(until[len(before) :], *kinds[start])
            start, before = i, until


def told(one: Shown, title: str, *, color: bool) -> Iterator[str]:
    """The lines about one sample."""
    sample = one.sample
    turn = "text" if sample.message is None else f"message {sample.message + 1}"
    counts = f"{sample.prompt} prompt + {len(sample.tokens) - sample.prompt} tokens, {sample.supervised} with a loss"
    head = f"── {title} ── {sample.where}, {turn} ── {counts}"
    yield f"{QUIET}{head}{RESET}" if color else head
    yield (_painted if color else _marked)(one.pieces).rstrip("\n")
    others = sorted({weight for _, _, weight in sample.spans} - {1.0})
    if others:
        yield f"weights: {', '.join(f'{w:g}' for w in others)}"
    if one.spelled:
        listed = ", ".join(f"{text} ×{count}" for text, count in sorted(one.spelled.items()))
        yield f"spelled out, and ordinary text here: {listed}"
    yield _served(one)


def _painted(pieces: Sequence[Piece]) -> str:
    shown = []
    for piece in pieces:
        codes = (LEARNED if piece.weight else "") + (CONTROL if piece.control else "")
        text = piece.text.translate(PICTURES)
        shown.append(f"{codes}{text}{RESET}" if codes else text)
    return "".join(shown)


def _marked(pieces: Sequence[Piece]) -> str:
    runs = groupby(pieces, key=lambda piece: piece.weight > 0)
    texts = ((learned, "".join(p.text for p in run).translate(PICTURES)) for learned, run in runs)
    return "".join(f"{OPEN}{text}{CLOSE}" if learned else text for learned, text in texts)


def _served(one: Shown) -> str:
    if one.served is None:
        return "a ready-made text: the server sends no such prompt"
    if not one.as_served:
        return f"NOT what the server sends: its prompt has {len(one.served)} tokens"
    if one.cut:
        return f"the prompt is the end of what the server sends: {len(one.served)} tokens"
    return f"the prompt is what the server sends: the same {len(one.served)} tokens"
