"""Tables with headers: columns of numbers to the right, wide ones scroll inside their frame, also by keyboard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from punie_mlx.pages.text import Html, html, join, tag


@dataclass(frozen=True)
class Column:
    """One column: its name, whether it holds numbers, and what the name means."""

    name: str
    number: bool = True
    title: str | None = None


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    marked: Sequence[bool] = (),
    class_: str | None = None,
) -> Html:
    """A table whose first column heads its rows; `caption` names it for those who cannot see. Empty without rows."""
    rows = list(rows)
    if not rows:
        return Html("")
    head = join(tag("th", c.name, scope="col", class_="n" if c.number else None, title=c.title) for c in columns)
    body = []
    for i, row in enumerate(rows):
        first, *others = row
        cells = [tag("th", first, scope="row")]
        cells += [
            tag("td", cell, class_="n" if c.number else None) for c, cell in zip(columns[1:], others, strict=True)
        ]
        body.append(tag("tr", *cells, class_="picked" if i < len(marked) and marked[i] else None))
    made = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", *body), class_=class_)
    return scrolling(made, caption)


def scrolling(content: object, name: str) -> Html:
    """`content` in a frame that scrolls sideways where it is wider than the page."""
    return tag("div", html(content), class_="scroll", role="region", aria_label=name, tabindex="0")
