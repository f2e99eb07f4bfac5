"""Time: seconds a query as distributions, what a phase took by the spans of the traces, and profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from punie_mlx.evals.report.figures import percent, seconds
from punie_mlx.evals.report.inputs import Json, Run
from punie_mlx.evals.report.overview import name, sign
from punie_mlx.evals.summary import percentile, timed
from punie_mlx.pages.plots import bins, histogram, stack
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, join, tag

# The largest phases have colours of their own, the others are grey.
COLOURS, OTHERS = ("r0", "r1", "r2", "r3", "r4", "r5"), "r6"


def queries(runs: Sequence[Run]) -> Html:
    """The seconds of each query, on one scale for all runs; the warm-up is left out, as in the summary."""
    walls = {run: _walls(run) for run in runs}
    scale = bins([w for values in walls.values() for w in values])
    rows = []
    for run in runs:
        found = run.summary["seconds_per_query"]
        shown = histogram(walls[run], scale, [found["median"], percentile(walls[run], 95)], run.colour)
        rows.append([name(run), tag("span", shown, class_="histcell"), *_told(run, walls[run])])
    across = f"{seconds(scale.low)} to {seconds(scale.high)}, logarithmic"
    columns = [
        Column("run", False), Column(across, False), Column("p50"), Column("p95"), Column("mean"),
        Column("model", title="mean time in requests to the model"),
        Column("tools", title="mean time in tools"), Column("warm-up"), Column("queries"),
    ]  # fmt: skip
    made = table(columns, rows, caption="Seconds a query", class_="times")
    note = "Bars: how many queries took so long; dashed lines: p50 and p95. The first is the warm-up and left out."
    return join([made, tag("p", note, class_="soft small")])


def _walls(run: Run) -> list[float]:
    return [c["seconds"]["wall"] for c in timed(run.cases)]


def _told(run: Run, walls: Sequence[float]) -> list[str]:
    found = run.summary["seconds_per_query"]
    counted = timed(run.cases)
    means = (sum(c["seconds"][part] for c in counted) / len(counted) for part in ("model", "tools"))
    figures = (found["median"], percentile(walls, 95), found["mean"], *means, found["warm_up"])
    return [*map(seconds, figures), f"{found['n']:,}"]


# ---- phases, by the server's spans ----


def phases(runs: Sequence[Run]) -> Html:
    """What each phase of a request took, where runs have traces: p50 and p95 of each run."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for span in _spans(run):
            found[span["name"]][run.index].append(span["end"] - span["start"])
    traced = [r for r in runs if any(r.index in by_run for by_run in found.values())]
    if not traced:
        return Html("")
    columns = [Column("phase", number=False)]
    columns += [Column(join([sign(r), f" {end}"])) for r in traced for end in ("p50", "p95")]
    rows = [[key, *(cell for r in traced for cell in _ends(by_run.get(r.index)))] for key, by_run in found.items()]
    made = table(columns, rows, caption="Phases of a request, by run")
    return tag("section", tag("h3", "Phases of a request, by the server's spans"), made)


def _ends(values: Sequence[float] | None) -> tuple[str, str]:
    return (seconds(percentile(values, 50)), seconds(percentile(values, 95))) if values else ("–", "–")


def _spans(run: Run) -> Iterator[Json]:
    for case in run.cases:
        for exchange in case["trajectory"]:
            yield from (exchange.get("trace") or {}).get("spans") or ()


# ---- profiles ----


def profiles(found: Sequence[Json]) -> Html:
    """Each profile; where it was made beside others, those, among which it is itself."""
    every: list[Json] = []
    for profile in found:
        others = profile.get("comparison") or []
        alone = profile.get("server") not in [o.get("server") for o in others]
        every += [profile, *others] if alone else others
    return join(map(_profile, every))


def _profile(profile: Json) -> Html:
    model = profile.get("model") or {}
    title = f"{model.get('label') or model.get('name') or 'a model'} on {profile.get('server', 'its server')}"
    phases = profile["phases"]
    order = [n for n in profile.get("phases_order", phases) if n in phases]
    shares = {n: _number(phases[n].get("share")) for n in order}
    largest = sorted(order, key=lambda n: -shares[n])
    colours = {n: COLOURS[i] if i < len(COLOURS) else OTHERS for i, n in enumerate(largest)}
    rows = [
        [
            join([tag("i", "", class_=f"swatch {colours[n]}"), " ", n]),
            *_times(phases[n]),
            percent(phases[n].get("share")),
        ]
        for n in order
    ]
    if "unaccounted_share" in profile:
        rows.append(["not accounted for", "", "", "", "", percent(profile["unaccounted_share"])])
    columns = [Column("phase", False), *map(Column, ("p50", "p95", "mean", "total", "share"))]
    wall = profile.get("wall") or {}
    counted = f"{profile.get('cases', '?')} cases, {profile.get('requests', '?')} requests"
    ends = ", ".join(f"{k} {seconds(v)}" for k, v in wall.items() if k in ("p50", "p95") and isinstance(v, int | float))
    said = f"{counted}{'; wall time ' + ends if ends else ''}"
    drawn = stack([(n, shares[n], colours[n]) for n in order])
    made = table(columns, rows, caption=f"Phases of {title}")
    note = tag("p", said, class_="soft small")
    return tag("section", tag("h3", title), note, tag("div", drawn, class_="stackcell"), made)


def _times(phase: Json) -> list[str]:
    return [seconds(v) if isinstance(v := phase.get(k), int | float) else "–" for k in ("p50", "p95", "mean", "total")]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
