"""An inspection as one HTML file that needs nothing else.

write_page(inspection, Path("inspect.html"))
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from punie_mlx.errors import OutputError
from punie_mlx.files import refuse_same, write_text
from punie_mlx.inspector.answer import Answer
from punie_mlx.inspector.inspection import Inspection, View
from punie_mlx.inspector.reading import Read
from punie_mlx.pages.frame import asset, document
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, compact, join, tag
from punie_mlx.pages.tokens import legend, percent, strip


def refuse_page(path: Path, *inputs: Path) -> None:
    """Raise `OutputError` where no page can be written. Call it before the model is loaded."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory: name the HTML file to write")
    refuse_same(path, *inputs)


def write_page(seen: Inspection, path: Path) -> None:
    """Write the page of `seen`; a file that is there is replaced. Raises `OutputError`, `DiskError`."""
    write_text(path, page(seen))


def page(seen: Inspection) -> Html:
    """The HTML."""
    title = f"Tokens of {seen.where}"
    every = [token for view in seen.views for token in view.tokens]
    every += seen.answer.tokens if seen.answer else ()
    first, *others = seen.views
    parts = [
        tag("header", tag("h1", title), _facts(seen), legend(every)),
        _section("given", _title(first), _strip(first, seen)),
        *([_section("answer", "What the model writes", *_answer(seen, seen.answer))] if seen.answer else ()),
        *([_section("apart", "Turns learned behind other prompts", *_apart(seen, others))] if others else ()),
        *([_section("training", "What training learns", *_training(seen))] if _trains(seen) else ()),
        *([_section("read", "What the reader makes of the turns", *map(_read, seen.read))] if seen.read else ()),
    ]
    return document(title, tag("main", *parts), style=asset("tokens.css"), script=asset("tokens.js"))


def _section(key: str, title: str, *content: Html) -> Html:
    return tag("section", tag("h2", title), *content, id=key)


def _facts(seen: Inspection) -> Html:
    rows = [("model", seen.model), ("adapter", seen.adapter), ("fingerprint", seen.fingerprint)]
    rows += [("tools", ", ".join(seen.tools) or "none"), ("wire format", seen.format or "not known")]
    shown = [(name, tag("code", said)) for name, said in rows if said]
    found = table((Column("what", number=False), Column("which", number=False)), shown, caption="What is looked at",
                  class_="dense")  # fmt: skip
    note = tag("details", tag("summary", "How the format was told"), tag("p", seen.format_note, class_="small"))
    return join([found, note])


def _title(view: View) -> str:
    return "The prompt, and the turn that the row has" if view.name == "conversation" else f"The {view.name}"


def _strip(view: View, seen: Inspection, known: int = 0) -> Html:
    given = 0 < view.prompt < len(view.tokens)
    said = f"{len(view.tokens):,} tokens" + (f"; the first {view.prompt:,} are given to the model" if given else "")
    return join([tag("p", said, class_="soft small"), strip(view.tokens[known:], view.name.capitalize(), seen.turns)])


def _apart(seen: Inspection, views: list[View]) -> Iterator[Html]:
    for view in views:
        yield tag("h3", view.name.capitalize())
        known = seen.known(view)
        yield tag("p", f"{view.note} Its first {known:,} tokens are those of the conversation above.")
        yield _strip(view, seen, known)


def _trains(seen: Inspection) -> bool:
    return bool(seen.training.samples or seen.training.notes)


def _training(seen: Inspection) -> Iterator[Html]:
    ids = [token.id for token in seen.views[0].tokens]
    names = ("turn", "tokens before it", "its own", "with a loss", "where")
    columns = [Column(name, number=name not in ("turn", "where")) for name in names]
    rows = [
        (
            "the text" if s.message is None else f"message {s.message + 1} of the row",
            f"{s.prompt:,}", f"{len(s.tokens) - s.prompt:,}", f"{s.supervised:,}",
            "in the tokens above" if seen.training.holds(ids, s) else "behind a prompt of its own",
        )
        for s in seen.training.samples
    ]  # fmt: skip
    yield table(columns, rows, caption="Turns that are learned")
    if seen.training.notes:
        yield tag("ul", *(tag("li", note) for note in seen.training.notes))


def _answer(seen: Inspection, answer: Answer) -> Iterator[Html]:
    ended = "the model ended it" if answer.finish == "stop" else "cut off at the number of tokens that was asked for"
    yield tag(
        "p", f"{len(answer.tokens):,} tokens; {ended}. Temperature 0, no grammar, no server.", class_="soft small"
    )
    yield strip(answer.tokens, "Answer", seen.turns)
    columns = [Column("marker", number=False), Column("token"), Column("at the start"), Column("at most"),
               Column("at token"), Column("written")]  # fmt: skip
    rows = [
        (
            tag("code", m.text), f"{m.token}" if m.single else f"{m.token} and more",
            percent(m.first), percent(m.most), f"{m.at + 1:,}", f"{m.written:,} ×",
        )
        for m in answer.markers
    ]  # fmt: skip
    yield tag("h3", "Probabilities of the marker tokens")
    yield table(columns, rows, caption="Probabilities of the marker tokens")
    if answer.read is not None:
        yield _read(answer.read)


def _read(read: Read) -> Html:
    shown = json.dumps(read.message, ensure_ascii=False, indent=1)
    parts = [tag("h3", f"{read.name[0].upper()}{read.name[1:]}, as the reader has it"),
             tag("pre", shown, tabindex="0")]  # fmt: skip
    if read.problems:
        parts.append(tag("ul", *(tag("li", compact(p), class_="bad") for p in read.problems)))
    return join([*parts, tag("p", f"finish_reason: {read.finish}", class_="soft small")])
