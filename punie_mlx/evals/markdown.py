"""Tables in Markdown, for a README: the same grids that the terminal shows.

punie-mlx compare --markdown base.json fused.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from punie_mlx.evals import tables
from punie_mlx.evals.tables import Grid

FLIPS = 10


def render(grid: Grid) -> str:
    """The grid as a Markdown table, with its note below."""
    if not grid.rows:
        return ""
    rules = [":--" if i == 0 or grid.prose else "--:" for i in range(len(grid.headers))]
    lines = [_line(grid.headers), _line(rules, escape=False), *map(_line, grid.rows)]
    return "\n".join(lines) + (f"\n\n{_cell(grid.note)}" if grid.note else "") + "\n"


def _line(cells: Sequence[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(_cell(c) if escape else c for c in cells) + " |"


# What would end a cell, start a tag or become markup in it.
ESCAPES = str.maketrans({c: f"\\{c}" for c in "\\|`*_<>[]"} | {"\n": " ", "\r": " "})


def _cell(text: str) -> str:
    # Brackets are links only where an address follows: intervals stay readable in the source.
    return text.translate({k: v for k, v in ESCAPES.items() if k not in (ord("["), ord("]"))})


def runs(results: Sequence[Mapping[str, Any]]) -> str:
    """Runs beside each other, and by category."""
    return "\n".join(render(g) for g in (tables.runs_grid(results), tables.categories_grid(results)))


def comparison(found: Mapping[str, Any]) -> str:
    """A whole comparison: the paragraph, the table, what changed, the categories and the first cases that flipped."""
    parts = [found["words"].translate(ESCAPES_OF_PROSE) + "\n", render(tables.comparison_grid(found))]
    parts += [f"- {w}\n" for w in found["warnings"]]
    for grid in (tables.changed_grid(found), tables.by_category_grid(found)):
        parts.append(f"### {grid.title.capitalize()}\n\n{render(grid)}")
    for label, cases in found["flips"].items():
        if cases:
            grid = tables.flips_grid(found, label, FLIPS)
            parts.append(f"### {_cell(grid.title)}\n\n{render(grid)}")
    return "\n".join(parts)


ESCAPES_OF_PROSE = str.maketrans({c: f"\\{c}" for c in "*_`<>"})
