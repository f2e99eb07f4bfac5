"""An inspection in the terminal: tokens with their ids, control tokens and learned ones marked, labels for turns.

What is marked by colour is marked by signs as well: ids stand behind each token as small digits, learned tokens
between ⟦ and ⟧, states in ‹ ›.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from punie_mlx.inspector.answer import Answer
from punie_mlx.inspector.inspection import Inspection, View
from punie_mlx.inspector.reading import Read
from punie_mlx.pages.text import visible
from punie_mlx.pages.tokens import UNSURE, Token, percent, turn_name

DIGITS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
OPEN, CLOSE = "⟦", "⟧"
STYLES = {
    "control": "bold magenta",
    "trained": "green",
    "control trained": "bold green",
    "id": "dim",
    "label": "bold cyan",
    "state": "yellow",
    "unsure": "bold red",
}


def show(seen: Inspection, console: Console) -> None:
    """Print `seen`."""
    for line in facts(seen):
        console.print(Text(visible(line)))
    for view in seen.views:
        _heading(console, f"{view.name}: {_counted(view)}")
        known = seen.known(view) if view is not seen.views[0] else 0
        if view.note:
            console.print(Text(f"{view.note} Its first {known:,} tokens are those of the conversation."))
        console.print(strip(view.tokens[known:], seen.turns))
    for note in seen.training.notes:
        console.print(Text(f"· {visible(note)}"))
    for read in seen.read:
        _read(console, read)
    if seen.answer is not None:
        _answer(console, seen, seen.answer)


def facts(seen: Inspection) -> Iterator[str]:
    """What is looked at, in lines."""
    yield f"model: {seen.model}"
    if seen.adapter:
        yield f"adapter: {seen.adapter}"
    yield f"messages: {seen.where}, {len(seen.roles)} of them"
    yield f"tools: {', '.join(seen.tools) or 'none'}"
    yield f"wire format: {seen.format or 'not known, so nothing is read'}"
    if seen.format is None:
        yield seen.format_note


def strip(tokens: Sequence[Token], turns: dict[int, str]) -> Text:
    """The tokens as one text."""
    shown = Text()
    named = any(token.turn is not None for token in tokens)
    turn, state, learned = -1, "", False
    for token in tokens:
        if learned and not token.trained:
            shown.append(CLOSE, STYLES["trained"])
        if named and token.turn != turn:
            turn = token.turn
            name = turn_name(turn, turns)
            shown.append(
                ("\n" if shown and not shown.plain.endswith("\n") else "") + f"── {name} ──\n", STYLES["label"]
            )
        if token.trained and not learned:
            shown.append(OPEN, STYLES["trained"])
        learned = bool(token.trained)
        if token.state != state:
            state = token.state
            shown.append(f"‹{state}›" if state else "", STYLES["state"])
        _append(shown, token)
    if learned:
        shown.append(CLOSE, STYLES["trained"])
    return shown


def _append(shown: Text, token: Token) -> None:
    kinds = [kind for kind, has in (("control", token.kind == "control"), ("trained", token.trained)) if has]
    text = visible(token.text).replace("\t", "→").replace("\n", "↵")
    shown.append(text, STYLES.get(" ".join(kinds), ""))
    shown.append(str(token.id).translate(DIGITS), STYLES["id"])
    if token.probability is not None and token.probability < UNSURE:
        shown.append(f"({percent(token.probability)})", STYLES["unsure"])
    if token.text.endswith("\n"):
        shown.append("\n")


def _counted(view: View) -> str:
    learned = [token.trained for token in view.tokens]
    counts = f"{len(view.tokens):,} tokens"
    if 0 < view.prompt < len(view.tokens):
        counts += f", {view.prompt:,} of them given"
    return counts if None in learned else f"{counts}, {sum(map(bool, learned)):,} trained on"


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold underline"))


def _read(console: Console, read: Read) -> None:
    _heading(console, f"{read.name}, as the reader has it ({read.finish})")
    console.print(Text(visible(json.dumps(read.message, ensure_ascii=False, indent=1))))
    for problem in read.problems:
        console.print(Text(visible(f"! {problem['kind']}: {problem['detail']} {problem['raw']}"), STYLES["unsure"]))


def _answer(console: Console, seen: Inspection, answer: Answer) -> None:
    ended = "the model ended it" if answer.finish == "stop" else "cut off by --generate"
    _heading(console, f"answer: {len(answer.tokens):,} tokens, {ended}")
    console.print(strip(answer.tokens, seen.turns))
    table = Table("marker", "token", "at the start", "at most", "written")
    for marker in answer.markers:
        table.add_row(
            Text(visible(marker.text)),
            f"{marker.token}" if marker.single else f"{marker.token}, the first of several",
            percent(marker.first),
            f"{percent(marker.most)} at token {marker.at + 1}",
            f"{marker.written} ×",
        )
    console.print(table)
    if answer.read is not None:
        _read(console, answer.read)
