"""What the model writes behind a prompt: each token with its probability, and those of the marker tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from punie_mlx.chat.render import encode
from punie_mlx.inspector.reading import Read, Wire
from punie_mlx.inspector.spelling import Spelling
from punie_mlx.pages.tokens import Token, percent
from punie_mlx.raw import Step

OTHERS = 3  # tokens that are named beside the one that was taken


@dataclass(frozen=True)
class Marker:
    """A marker of the format, or what ends the answer: the token that was watched, and how likely it was.

    single: whether it is one token; else `token` is the first of several. first: its probability as the first token
    of the answer. most, at: the highest, and at which token of the answer (from 0). written: how often it was taken.
    """

    text: str
    token: int
    single: bool
    first: float = 0.0
    most: float = 0.0
    at: int = 0
    written: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What was written: tokens, marker tokens, and what the reader makes of it, if there is one."""

    tokens: tuple[Token, ...]
    markers: tuple[Marker, ...]
    finish: str
    read: Read | None


def markers(wire: Wire | None, tokenizer: Any) -> tuple[Marker, ...]:
    """The markers to watch: those of calls and thinking, and the tokens that end an answer."""
    format = wire.format if wire else None
    texts = [format.open, format.close, *(tag.strip() for tag in format.think)] if format else []
    found = []
    for text in dict.fromkeys(filter(None, texts)):
        ids = encode(tokenizer, text)
        if ids:
            found.append(Marker(text, ids[0], len(ids) == 1))
    found += [Marker(tokenizer.decode([i]), i, True) for i in sorted(tokenizer.eos_token_ids)]
    return tuple({m.token: m for m in reversed(found)}.values())[::-1]


def answer(
    steps: Sequence[Step],
    watched: Sequence[Marker],
    *,
    spelling: Spelling,
    wire: Wire | None,
    prompt: Sequence[int],
    in_reasoning: bool,
    turn: int,
) -> Answer:
    """What `steps`, of `raw.watch` behind `prompt`, add up to."""
    ids = [step.token for step in steps]
    texts = spelling.texts(ids, prompt)
    finish = "stop" if steps and steps[-1].end else "length"
    read, states = None, [""] * len(steps)
    if wire is not None:
        ends = {step.token for step in steps if step.end}
        pieces = ((step.token, step.text) for step in steps)
        read, states = wire.read("the answer", pieces, ends=ends, in_reasoning=in_reasoning, finish=finish)
    tokens = tuple(
        Token(
            id=step.token,
            text=text,
            kind=spelling.kind(step.token, text),
            turn=turn,
            state=state,
            probability=step.probability,
            title=_more(step),
        )
        for step, text, state in zip(steps, texts, states, strict=True)
    )
    return Answer(tokens, tuple(_seen(m, steps) for m in watched), finish, read)


def _more(step: Step) -> str:
    """What else could have come, and the markers, in lines."""
    others = [f"{spelled!r} {percent(p)}" for token, spelled, p in step.top if token != step.token][:OTHERS]
    lines = [f"instead: {', '.join(others)}"] if others else []
    if step.watched:
        lines.append(f"markers: {', '.join(f'{label} {percent(p)}' for label, p in step.watched.items())}")
    if step.end:
        lines.append("ends the answer")
    return "\n".join(lines)


def _seen(marker: Marker, steps: Sequence[Step]) -> Marker:
    probabilities = [step.watched.get(marker.text, 0.0) for step in steps]
    if not probabilities:
        return marker
    most = max(probabilities)
    written = sum(step.token == marker.token for step in steps)
    return Marker(marker.text, marker.token, marker.single, probabilities[0], most, probabilities.index(most), written)


def watched_ids(found: Sequence[Marker]) -> Mapping[str, int]:
    """For `raw.watch`."""
    return {m.text: m.token for m in found}
