"""Tokens as chips in a strip: what each is, whose turn it stands in, whether it is learned, where the reader was.

    head = document(…, style=asset("tokens.css"), script=asset("tokens.js"))
    body = strip(tokens, "Prompt", turns={0: "system", 1: "user"})

The strip is one stop of the Tab key; arrows walk through its tokens, and what is known about the one reached stands
below. A mouse that rests on a token shows the same. Nothing depends on colour alone: labels stand where a turn or the
reader's state begins, and what is known about a token is told in words.

A page that adds tokens while they come puts `chip(token)` at the end of the element of class `strip`; the script needs
nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from punie_mlx.pages.text import Html, attribute, join, spaced, tag, visible

KINDS = ("control", "text", "part")
STATES = ("content", "reasoning", "call", "arguments", "between")
UNSURE, RARE = 0.5, 0.1  # probabilities below which a token is marked
HINT = "Arrow keys walk through the tokens, Page Up and Page Down from control token to control token; or click one."
LEGEND = (
    ("control", "control token"),
    ("trained", "trained on"),
    ("s-reasoning", "reader: reasoning"),
    ("s-call", "reader: call"),
    ("s-arguments", "reader: arguments"),
    ("s-between", "reader: between"),
    ("unsure", f"probability below {UNSURE:g}"),
    ("rare", f"below {RARE:g}"),
)


@dataclass(frozen=True)
class Token:
    """One token.

    text: what it adds to the text; "" where it only completes nothing yet. kind: of `KINDS`; "part" is a piece of a
    character. turn: index of its message; None outside of all. trained: whether training puts loss on it; None where
    nothing is known of training. state: of `STATES`, where the reader was after it; "" where nothing was read.
    probability: that the model gave it. title: more to say of it, in lines.
    """

    id: int
    text: str
    kind: str = "text"
    turn: int | None = None
    trained: bool | None = None
    state: str = ""
    probability: float | None = None
    title: str = ""

    def to_json(self) -> dict[str, Any]:
        """All of it that is known."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != ""} | {"text": self.text}


def strip(tokens: Sequence[Token], name: str, turns: Mapping[int, str] | None = None) -> Html:
    """`tokens` with labels where a turn or a state begins, and the place where the reached token is told."""
    box = tag(
        "div", Html("".join(_chips(tokens, turns or {}))), class_="strip", role="listbox", tabindex="0",
        aria_label=f"{name}, {len(tokens):,} {'token' if len(tokens) == 1 else 'tokens'}",
    )  # fmt: skip
    return join([box, tag("p", HINT, class_="about")])


def chip(token: Token, turns: Mapping[int, str] | None = None) -> Html:
    """One token. A page that streams sends this."""
    said = attribute("\n".join(about(token, turns or {})))
    # A piece of a character has no text yet: its number stands for it.
    shown = spaced(token.text) if token.text else tag("span", f"#{token.id}", class_="cp")
    inside = shown.removesuffix("\n")  # a line ends behind the token, so that its id stands in front of the end
    element = f'<i class="{classes(token)}" role="option" data-id="{token.id:d}" title="{said}">{inside}</i>'
    return Html(element + shown[len(inside) :])


def label(text: str, kind: str) -> Html:
    """What stands in front of the tokens of a turn (`kind` "turn") or of a state ("state")."""
    return Html(f'<b class="{kind}" aria-hidden="true">{attribute(text)}</b>')


def classes(token: Token) -> str:
    """The classes of a token's element."""
    found = [token.kind]
    if token.trained:
        found.append("trained")
    if token.state:
        found.append(f"s-{token.state}")
    if token.probability is not None and token.probability < UNSURE:
        found.append("rare" if token.probability < RARE else "unsure")
    return " ".join(found)


def about(token: Token, turns: Mapping[int, str]) -> Iterator[str]:
    """What is known about a token, line by line."""
    kind = {"control": "control token", "part": "piece of a character, token"}.get(token.kind, "token")
    yield f"{kind} {token.id}: {visible(json.dumps(token.text, ensure_ascii=False))}"
    if token.turn is not None:
        yield turn_name(token.turn, turns)
    if token.trained is not None:
        yield "trained on" if token.trained else "not trained on"
    if token.state:
        yield f"reader after it: {token.state}"
    if token.probability is not None:
        yield f"probability {percent(token.probability)}"
    if token.title:
        yield token.title


def turn_name(turn: int | None, turns: Mapping[int, str]) -> str:
    """A turn as it is called: its number, and whose it is; None is what the template writes by itself."""
    if turn is None:
        return "the template's own"
    return f"message {turn + 1}, {turns[turn]}" if turn in turns else f"message {turn + 1}"


def percent(probability: float) -> str:
    """A probability so that neither certainty nor impossibility is claimed."""
    if 0 < probability < 0.0001:
        return "below 0.01%"
    if 0.9999 < probability < 1:
        return "above 99.99%"
    return f"{100 * probability:.4g}%"


def legend(tokens: Sequence[Token]) -> Html:
    """What the marks mean that occur in `tokens`, and the box that shows the ids of all tokens of the page."""
    used = {name for token in tokens for name in classes(token).split()}
    keys = [tag("li", Html(f'<i class="{name}">{said}</i>')) for name, said in LEGEND if name in used]
    box = tag("label", Html('<input type="checkbox" class="show-ids">'), " ids", class_="small")
    return tag("ul", *keys, tag("li", box), class_="strip-key", aria_label="Marks")


def _chips(tokens: Sequence[Token], turns: Mapping[int, str]) -> Iterator[Html]:
    named = any(token.turn is not None for token in tokens)
    turn, state = -1, ""
    for token in tokens:
        if named and token.turn != turn:
            turn = token.turn
            yield label(turn_name(turn, turns), "turn")
        if token.state != state:
            state = token.state
            if state:
                yield label(state, "state")
        yield chip(token, turns)
