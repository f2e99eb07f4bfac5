"""Curves as SVG, drawn without a library: text that a browser, a screen reader and a test can read.

A `Chart` is lines over one axis of steps. `svg` gives an `<svg>` element with a title and a description in words; the
colours come from the page's style sheet, by the classes `line-0`, `line-1`, … and `faint`. Values that are None break
a line: nothing is drawn where nothing was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from punie_mlx.pages.text import attribute

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 40  # room for the labels of the axes
MOST = 2000  # points of a line; more cannot be seen, and are averaged

Point = tuple[int, float | None]


def plainly(value: float) -> str:
    """A number with four significant digits, as short as that can be: 8e-5, 1.25, 12,500."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("e-0", "e-")


@dataclass(frozen=True)
class Line:
    """One line: its name, and (step, value) pairs in order of steps."""

    name: str
    points: tuple[Point, ...]
    faint: bool = False
    """Drawn thin, in the colour of the line before it, as the raw figures beside their average."""


@dataclass(frozen=True)
class Chart:
    """Lines over the same axes."""

    title: str
    lines: tuple[Line, ...]
    show: Callable[[float], str] = plainly
    """A value as text, with its unit."""
    zero: bool = True
    """Whether the axis of values begins at 0; otherwise at the lowest value."""


def smoothed(points: Sequence[Point], weight: float = 0.6) -> tuple[Point, ...]:
    """Exponential moving average that starts unbiased (Kingma & Ba 2015, section 3); None where `points` has None."""
    mean, count, out = 0.0, 0, []
    for step, value in points:
        if value is None:
            out.append((step, None))
            continue
        count += 1
        mean = weight * mean + (1 - weight) * value
        out.append((step, mean / (1 - weight**count)))
    return tuple(out)


def thinned(points: Sequence[Point], most: int = MOST) -> tuple[Point, ...]:
    """At most `most` points: means of neighbours, at the last of their steps, where there are more."""
    size = -(-len(points) // most)
    if size < 2:
        return tuple(points)
    out: list[Point] = []
    for at in range(0, len(points), size):
        run = points[at : at + size]
        values = [v for _, v in run if v is not None]
        out.append((run[-1][0], sum(values) / len(values) if values else None))
    return tuple(out)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, both included or just passed; at most about `most`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def colours(lines: Iterable[Line]) -> list[str]:
    """The classes of each line."""
    names, colour = [], -1
    for line in lines:
        colour += not line.faint
        names.append(f"line-{max(colour, 0)}" + (" faint" if line.faint else ""))
    return names


def svg(chart: Chart, name: str, span: tuple[int, int] | None = None) -> str:
    """The `<svg>` of `chart`, with an axis over the steps of `span` (its own by default).

    `name` is unique in the page. Raises `ValueError` for a chart without any value.
    """
    lines = [Line(line.name, thinned(line.points), line.faint) for line in chart.lines]
    values = [v for line in lines for _, v in line.points if v is not None]
    if not values:
        raise ValueError(f"nothing was measured for {chart.title}")
    rows = ticks(min([0.0, *values] if chart.zero else values), max(values))
    steps = [s for line in lines for s, _ in line.points]
    first, last = span or (min(steps), max(steps))
    last = max(last, first + 1)
    columns = [step for step in ticks(first, last, WIDTH // 80) if first <= step <= last and step == int(step)]
    right = WIDTH - RIGHT

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (right - LEFT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - rows[0]) / (rows[-1] - rows[0]) * (HEIGHT - TOP - BOTTOM)

    data = {
        "x": [first, last, LEFT, right],
        "lines": [[line.name, [[s, chart.show(v)] for s, v in line.points if v is not None]] for line in lines],
    }
    hover = f'<line class="rule" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>'
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc" '
            f'data-chart="{attribute(json.dumps(data, ensure_ascii=False))}">',
            f'<title id="{name}-title">{attribute(chart.title)}</title>',
            f'<desc id="{name}-desc">{attribute(" ".join(_told(line, chart.show) for line in lines))}</desc>',
            *(_row(y(value), chart.show(value), right) for value in rows),
            *(_column(x(step), f"{step:,.0f}") for step in columns),
            f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>',
            *(_drawn(line, colour, x, y) for line, colour in zip(lines, colours(lines), strict=True)),
            hover,
            "</svg>",
        ]
    )


def _told(line: Line, show: Callable[[float], str]) -> str:
    """The line in words."""
    known = [(s, v) for s, v in line.points if v is not None]
    if not known:
        return f"{line.name}: not measured."
    (start, first), (end, last) = known[0], known[-1]
    low, high = min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])
    return (
        f"{line.name}: {len(known)} points, from {show(first)} at step {start:,} to {show(last)} at step {end:,}; "
        f"lowest {show(low[1])} at step {low[0]:,}, highest {show(high[1])} at step {high[0]:,}."
    )


def _row(y: float, label: str, right: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{attribute(label)}</text>'
    )


def _column(x: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{attribute(label)}</text>'


def _drawn(line: Line, name: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    out = []
    for piece in _pieces(line.points):
        if len(piece) == 1:
            out.append(f'<circle class="{name}" cx="{x(piece[0][0]):.1f}" cy="{y(piece[0][1]):.1f}" r="3"/>')
        else:
            points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in piece)
            out.append(f'<polyline class="{name}" points="{points}"/>')
    return "".join(out)


def _pieces(points: Iterable[Point]) -> list[list[tuple[int, float]]]:
    """Runs of points without a gap."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((step, value))
    return [piece for piece in pieces if piece]
