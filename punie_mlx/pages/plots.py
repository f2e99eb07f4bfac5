"""Small plots as SVG: bars with intervals, histograms, spans of time, and points with intervals over a scale.

Colours come from the page's style sheet: the classes `r0`, `r1`, … are those of the runs. Plots beside which their
figures stand as text are hidden from screen readers; the others have a title and a description in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from punie_mlx.pages.curves import plainly, ticks
from punie_mlx.pages.text import Html, join, tag

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 18, 44  # room for the labels of the axes
LETTER = 7.6  # width of a character of a label where it is written large, for keeping labels apart
DECADE = 16  # bins of a histogram from 1 to 10

Colour = str
"""A class of the style sheet: r0 … r7."""


def bar(share: float, interval: tuple[float, float], colour: Colour) -> Html:
    """A bar from 0 to 1 with its interval. Its figures must stand beside it."""
    low, high = (round(100 * end, 2) for end in interval)
    marks = [
        tag("rect", class_="fill", width=f"{100 * share:.2f}", height="10"),
        tag("path", class_="whisker", d=f"M{low} 5H{high}M{low} 2V8M{high} 2V8"),
    ]
    return _flat(colour, *marks, height=10, kind="bar")


def stack(shares: Sequence[tuple[str, float, Colour]]) -> Html:
    """One bar of coloured parts, each with its name as title. Its figures must stand beside it."""
    at, parts = 0.0, []
    for name, share, colour in shares:
        width = 100 * share
        title = tag("title", f"{name} {share:.1%}")
        parts.append(tag("rect", title, class_=f"fill {colour}", x=f"{at:.3f}", width=f"{width:.3f}", height="10"))
        at += width
    return _flat(None, *parts, height=10, kind="stack")


def spans(rows: Sequence[tuple[str, float, float]], wall: float) -> list[Html]:
    """A bar for each (name, start, end) on the common scale from 0 to `wall`. Figures must stand beside them."""
    wall = wall or max((end for _, _, end in rows), default=0.0) or 1.0
    return [
        _flat(
            None,
            tag("rect", class_="fill", x=f"{100 * start / wall:.3f}", height="10",
                width=f"{max(100 * (end - start) / wall, 0.4):.3f}"),
            height=10, kind="span",
        )
        for _, start, end in rows
    ]  # fmt: skip


def _flat(colour: Colour | None, *content: Html, height: int, kind: str) -> Html:
    """A plot that is stretched to the width of its place."""
    return tag(
        "svg", *content, class_=f"{kind} {colour}" if colour else kind, viewBox=f"0 0 100 {height}",
        preserveAspectRatio="none", aria_hidden="true", focusable="false",
    )  # fmt: skip


# ---- histograms ----


@dataclass(frozen=True)
class Bins:
    """Bins of the same width on a logarithmic scale, from 10 ** (first / DECADE) on."""

    first: int
    count: int

    @property
    def low(self) -> float:
        return 10 ** (self.first / DECADE)

    @property
    def high(self) -> float:
        return 10 ** ((self.first + self.count) / DECADE)

    def place(self, value: float) -> float:
        """Where `value` lies, in bins from the first."""
        return min(max(math.log10(max(value, self.low)) * DECADE - self.first, 0.0), self.count)


def bins(values: Sequence[float]) -> Bins:
    """Bins that hold all `values`."""
    known = [math.log10(v) * DECADE for v in values if v > 0] or [0.0]
    first = math.floor(min(known))
    return Bins(first, max(math.floor(max(known)) + 1 - first, 4))


def histogram(values: Sequence[float], scale: Bins, marks: Sequence[float], colour: Colour) -> Html:
    """How many `values` lie in each bin, with lines at `marks`. Its figures must stand beside it."""
    counts = [0] * scale.count
    for value in values:
        counts[min(int(scale.place(value)), scale.count - 1)] += 1
    top, step = max(counts, default=0) or 1, 100 / scale.count
    rects = [
        tag("rect", class_="fill", x=f"{i * step + 0.1:.2f}", width=f"{step - 0.2:.2f}",
            y=f"{40 * (1 - n / top):.2f}", height=f"{40 * n / top:.2f}")
        for i, n in enumerate(counts) if n
    ]  # fmt: skip
    lines = [tag("path", class_="whisker", d=f"M{step * scale.place(m):.2f} 0V40") for m in marks]
    return _flat(colour, *rects, *lines, height=40, kind="hist")


# ---- points over a scale ----


@dataclass(frozen=True)
class Dot:
    """One point: where it lies, its interval, what is written beside it."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    colour: Colour = "r0"
    ring: bool = False
    """Drawn with a ring: the one that was picked."""


@dataclass(frozen=True)
class Scale:
    """An axis: its name, and how a value is written."""

    name: str
    show: Callable[[float], str] = plainly
    log: bool = False
    zero: bool = False
    """Whether it begins at 0."""


def scatter(title: str, dots: Sequence[Dot], x: Scale, y: Scale, name: str, joined: Sequence[int] = ()) -> Html:
    """Points with intervals; those at the indices `joined` are joined by a line. `name` is unique in the page."""
    if not dots:
        raise ValueError(f"nothing was measured for {title}")
    ends = [end for d in dots for end in (d.interval or (d.y, d.y))]
    across, columns = _axis(x, [d.x for d in dots], LEFT, WIDTH - RIGHT)
    up, rows = _axis(y, ends, HEIGHT - BOTTOM, TOP)
    places = [(across(d.x), up(d.y)) for d in dots]
    line = "".join(f"{'M' if i == 0 else 'L'}{places[j][0]:.1f} {places[j][1]:.1f}" for i, j in enumerate(joined))
    said = "; ".join(f"{d.label}: {x.show(d.x)}, {y.show(d.y)}{', picked' if d.ring else ''}" for d in dots)
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", f"{y.name} against {x.name}. {said}.", id=f"{name}-desc"),
        *(_row(up(v), y.show(v)) for v in rows),
        *(_column(across(v), x.show(v)) for v in columns),
        tag("text", x.name, x=f"{(LEFT + WIDTH - RIGHT) / 2}", y=f"{HEIGHT - 6}", text_anchor="middle"),
        tag("path", class_="joined", d=line) if line else "",
        *(_dot(d, px, py, up) for d, (px, py) in zip(dots, places, strict=True)),
        *_labels(dots, places),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_labelledby=f"{name}-title {name}-desc",
    )  # fmt: skip


def _axis(scale: Scale, values: Sequence[float], start: float, end: float) -> tuple[Callable[[float], float], list]:
    """Where a value lies between `start` and `end`, and the round values to mark."""
    if scale.log and min(values) > 0:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        return (
            lambda v: start + (math.log10(v) - low) / (high - low) * (end - start),
            [10.0**p for p in range(low, high + 1)],
        )
    marks = ticks(0.0 if scale.zero else min(values), max(values))
    return lambda v: start + (v - marks[0]) / (marks[-1] - marks[0]) * (end - start), marks


def _row(y: float, label: str) -> Html:
    return join(
        [
            tag("line", class_="grid", x1=f"{LEFT}", x2=f"{WIDTH - RIGHT}", y1=f"{y:.1f}", y2=f"{y:.1f}"),
            tag("text", label, x=f"{LEFT - 6}", y=f"{y + 4:.1f}", text_anchor="end"),
        ]
    )


def _column(x: float, label: str) -> Html:
    return tag("text", label, x=f"{x:.1f}", y=f"{HEIGHT - BOTTOM + 17}", text_anchor="middle")


def _dot(dot: Dot, x: float, y: float, up: Callable[[float], float]) -> Html:
    marks = []
    if dot.interval:
        low, high = (up(end) for end in dot.interval)
        marks.append(tag("path", class_="whisker", d=f"M{x:.1f} {low:.1f}V{high:.1f}"))
    if dot.ring:
        marks.append(tag("circle", class_="ring", cx=f"{x:.1f}", cy=f"{y:.1f}", r="9"))
    marks.append(tag("circle", class_="fill", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4.5"))
    return tag("g", *marks, class_=dot.colour)


def _labels(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> list[Html]:
    """Each label beside its point, at the first place where it covers no point and no other label."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    out = []
    for dot, (x, y) in zip(dots, places, strict=True):
        width = LETTER * len(dot.label)
        side = 13 if dot.ring else 9
        offsets = [
            (side, 4),
            (-side - width, 4),
            *((dx, dy) for dy in (-10, 18, -24, 32, -38, 46) for dx in (9, -9 - width)),
        ]
        boxes = [(x + dx, y + dy - 11, x + dx + width, y + dy + 3) for dx, dy in offsets]
        inside = [b for b in boxes if b[0] > LEFT and b[2] < WIDTH and b[1] > 0 and b[3] < HEIGHT - BOTTOM]
        box = next((b for b in inside if not any(_cover(b, t) for t in taken)), inside[0] if inside else boxes[0])
        taken.append(box)
        class_ = "label picked" if dot.ring else "label"
        out.append(tag("text", dot.label, class_=class_, x=f"{box[0]:.1f}", y=f"{box[3] - 3:.1f}"))
    return out


def _cover(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
