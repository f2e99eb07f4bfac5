"""The same results without a page: grids for the terminal and for Markdown, and one JSON object for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from punie_mlx.evals import markdown, tables
from punie_mlx.evals.report.figures import compared, interval, percent, probability, size
from punie_mlx.evals.report.inputs import Inputs, Json
from punie_mlx.evals.tables import Grid
from punie_mlx.pages.text import visible


def grids(inputs: Inputs) -> Iterator[Grid]:
    """A grid for each thing that was given; runs of the same cases are compared. No cell can drive a terminal."""
    for grid in _grids(inputs):
        rows = tuple(tuple(map(visible, row)) for row in grid.rows)
        heads = tuple(map(visible, grid.headers))
        yield replace(grid, title=visible(grid.title), headers=heads, rows=rows, note=visible(grid.note))


def _grids(inputs: Inputs) -> Iterator[Grid]:
    if found := compared(inputs.runs):
        yield tables.comparison_grid(found)
    elif inputs.runs:
        yield tables.runs_grid([r.record for r in inputs.runs])
    if inputs.runs:
        yield tables.categories_grid([r.record for r in inputs.runs])
    yield from map(_sweep, inputs.sweeps)
    yield from map(_profile, inputs.profiles)
    yield from map(_pipeline, inputs.pipelines)


def in_markdown(inputs: Inputs) -> str:
    """The grids for a README."""
    parts = [markdown.render(grid) for grid in grids(inputs) if grid.rows]
    return "\n".join(parts)


def as_json(inputs: Inputs) -> Json:
    """All figures, without the cases."""
    runs = [{**{k: v for k, v in r.record.items() if k != "cases"}, "path": str(r.path)} for r in inputs.runs]
    return {
        "kind": "report", "format": 1, "runs": runs, "comparison": compared(inputs.runs), "sweeps": inputs.sweeps,
        "profiles": inputs.profiles, "pipelines": inputs.pipelines,
        "trainings": [{"path": str(t.path), "lines": t.lines} for t in inputs.trainings],
    }  # fmt: skip


def _accuracy(rate: Json | None) -> str:
    return f"{percent(rate['accuracy'])} [{interval(rate['interval']).replace('–', ', ')}]" if rate else ""


def _sweep(sweep: Json) -> Grid:
    rows = tuple(
        (
            r["label"], _or(r.get("bits_per_weight"), "{:.3f}"), size(r["bytes"]) if r.get("bytes") else "",
            _or((r.get("kl") or {}).get("mean"), "{:.4g}"), _accuracy(r.get("accuracy")),
            probability(r["p_holm"]) if r.get("p_holm") is not None else "", _or(r.get("tokens_per_second"), "{:,.0f}"),
            "picked" if r["label"] == sweep.get("picked") else "worse" if r.get("worse") else "",
        )
        for r in sweep["rows"]
    )  # fmt: skip
    heads = ("model", "bits a weight", "size", "KL", "accuracy", "p (Holm)", "tokens/s", "verdict")
    return Grid("size and accuracy", heads, rows, str(sweep.get("why") or ""))


def _profile(profile: Json) -> Grid:
    phases = profile["phases"]
    order = [n for n in profile.get("phases_order", phases) if n in phases]
    columns = ("p50", "p95", "mean", "share")
    rows = tuple((n, *(_or(phases[n].get(c), "{:.4f}") for c in columns)) for n in order)
    return Grid(f"time of a request on {profile.get('server', 'its server')}", ("phase", *columns), rows, "seconds")


def _pipeline(pipeline: Json) -> Grid:
    suites = tuple(dict.fromkeys(s for m in pipeline["models"].values() for s in m["suites"]))
    rows = tuple(
        (name, size(m["bytes"]) if m.get("bytes") else "", *(_accuracy(m["suites"].get(s)) for s in suites))
        for name, m in pipeline["models"].items()
    )
    return Grid("pipeline", ("model", "size", *suites), rows)


def _or(value: Any, pattern: str) -> str:
    return "" if value is None else pattern.format(value)
