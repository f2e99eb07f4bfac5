"""Loss over steps, accuracy against size and KL against bits, and the table of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from punie_mlx.evals.report.figures import interval, percent, probability, size
from punie_mlx.evals.report.inputs import Json, Training
from punie_mlx.pages.curves import Chart, Line, colours, smoothed, svg
from punie_mlx.pages.plots import Dot, Scale, scatter
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, join, tag

ENOUGH = 8  # measurements from which an average says more than they do

# The colour of a model in a sweep, by what it is.
KINDS = {"base": "r6", "adapter": "r3", "fused": "r2", "quantized": "r0"}
NOT_DRAWN = ("base", "adapter")  # what is worse than all, or has no size of its own, would only flatten the picture
RECIPES = {"mixed": "r1", "dwq": "r4"}


# ---- training ----


def losses(trainings: Sequence[Training]) -> Html:
    return tag("div", *(_loss(t, i) for i, t in enumerate(trainings)), class_="figures")


def _loss(training: Training, index: int) -> Html:
    raw = _line(training.lines, "train", "training")
    valid = _line(training.lines, "valid", "validation")
    many = sum(v is not None for _, v in raw.points) >= ENOUGH
    average = Line("training, smoothed", smoothed(raw.points))
    lines = (average, Line(raw.name, raw.points, faint=True), valid) if many else (raw, valid)
    kept = tuple(line for line in lines if any(v is not None for _, v in line.points))
    title = f"Loss of {training.label}"
    if not kept:
        return tag("p", f"{title}: nothing was measured.")
    keys = [
        tag("span", tag("i", class_=c), line.name, class_="key") for line, c in zip(kept, colours(kept), strict=True)
    ]
    drawn = Html(svg(Chart(title, kept), f"loss-{index}"))
    return tag("figure", tag("figcaption", tag("b", title), *keys), drawn, tag("span", class_="readout"))


def _line(lines: Sequence[Json], kind: str, name: str) -> Line:
    points = ((line["step"], line["loss"]) for line in lines if line["kind"] == kind and "loss" in line)
    return Line(name, tuple((s, float(v) if type(v) in (int, float) else None) for s, v in points))


# ---- a sweep over bits ----


def sweeps(found: Sequence[Json]) -> Html:
    return join(_sweep(s, i) for i, s in enumerate(found))


def _sweep(sweep: Json, index: int) -> Html:
    rows, picked = sweep["rows"], sweep.get("picked")
    why = f"{sweep.get('why') or ''}"
    said = f"Picked: {picked}. {why}" if picked else f"None was picked. {why}"
    drawn = [
        _accuracy(rows, picked, f"sweep-{index}-size"),
        _divergence(rows, picked, sweep.get("reference"), f"sweep-{index}-kl"),
    ]
    return tag(
        "section", tag("p", said), tag("div", *filter(None, drawn), class_="figures"), _key(rows),
        _sweep_table(rows, picked, sweep.get("reference")),
    )  # fmt: skip


def _colour(row: Json) -> str:
    return RECIPES.get(row.get("recipe") or "", KINDS.get(row["what"], "r5"))


def _kind(row: Json) -> str:
    return row["recipe"] if row.get("recipe") in RECIPES else row["what"]


def _key(rows: Sequence[Json]) -> Html:
    kinds = {_kind(r): _colour(r) for r in rows}
    return tag("p", *(tag("span", tag("i", class_=c), k, class_="key") for k, c in kinds.items()), class_="legend")


def _accuracy(rows: Sequence[Json], picked: Any, name: str) -> Html | None:
    dots = [
        Dot(
            r["label"], float(r["bytes"]), r["accuracy"]["accuracy"], tuple(r["accuracy"]["interval"]), _colour(r),
            r["label"] == picked,
        )
        for r in rows if r.get("bytes") and _scored(r) and r["what"] not in NOT_DRAWN
    ]  # fmt: skip
    title = "Accuracy against size"
    x, y = Scale("size on disk", _whole_size, zero=True), Scale("accuracy", lambda v: f"{100 * v:.3g}%")
    left = [
        f"{r['label']} ({percent(r['accuracy']['accuracy'])})" for r in rows if _scored(r) and r["what"] in NOT_DRAWN
    ]
    note = f"Not drawn: {', '.join(left)}." if left else ""
    return _figure(title, scatter(title, dots, x, y, name), note) if dots else None


def _scored(row: Json) -> bool:
    return (row.get("accuracy") or {}).get("accuracy") is not None


def _whole_size(value: float) -> str:
    unit, name = (1e9, "GB") if value >= 1e9 else (1e6, "MB")
    return f"{value / unit:.3g} {name}" if value else "0"


def _divergence(rows: Sequence[Json], picked: Any, reference: Any, name: str) -> Html | None:
    """Without the reference: it is 0 from itself."""
    known = (r for r in rows if (r.get("kl") or {}).get("mean") is not None and r.get("bits_per_weight"))
    measured = [r for r in known if r["label"] != reference]
    dots = [
        Dot(r["label"], r["bits_per_weight"], r["kl"]["mean"], None, _colour(r), r["label"] == picked)
        for r in measured
    ]  # fmt: skip
    title = "KL divergence from the reference against bits a weight"
    spread = [d.y for d in dots if d.y > 0]
    log = bool(spread) and len(spread) == len(dots) and max(spread) > 30 * min(spread)
    x, y = Scale("bits a weight"), Scale("mean KL, nats" + (" (log)" if log else ""), log=log, zero=not log)
    return _figure(title, scatter(title, dots, x, y, name)) if dots else None


def _figure(title: str, drawn: Html, note: str = "") -> Html:
    return tag(
        "figure", tag("figcaption", tag("b", title), tag("span", note, class_="soft small") if note else ""), drawn
    )


def _sweep_table(rows: Sequence[Json], picked: Any, reference: Any) -> Html:
    """What decides stands first; columns that no row can fill are left out."""

    def cells(name: str, show: Callable[[Any], Any], *path: str) -> list[object]:
        return [_if(_at(r, *(path or (name,))), show) for r in rows]

    found = {
        Column("model", number=False): [r["label"] for r in rows],
        Column("", number=False): [_notes(r, picked, reference) for r in rows],
        Column("accuracy"): [tag("b", percent(_at(r, "accuracy", "accuracy"))) for r in rows],
        Column("95% interval"): cells("", interval, "accuracy", "interval"),
        Column("difference", title="from the reference, in points, with its 95% interval"): list(
            map(_difference, rows)
        ),
        Column("p, Holm", title="adjusted for the number of comparisons"): cells("p_holm", probability),
        Column("size"): cells("bytes", size),
        Column("bits a weight"): cells("bits_per_weight", "{:.3f}".format),
        Column("KL mean"): cells("", "{:.4g}".format, "kl", "mean"),
        Column("KL p99"): cells("", "{:.4g}".format, "kl", "p99"),
        Column("top-1", title="the same likeliest token"): cells("", percent, "kl", "top1_agreement"),
        Column("tokens/s"): cells("tokens_per_second", "{:,.0f}".format),
        Column("balanced", title="calls when it should, and keeps from calls when it should"): cells(
            "balanced_accuracy", percent
        ),
        Column("lost"): cells("", "{:,}".format, "mcnemar", "only_first"),
        Column("gained"): cells("", "{:,}".format, "mcnemar", "only_second"),
        Column("p"): cells("", probability, "mcnemar", "p"),
        Column("bits"): cells("bits", str),
        Column("group"): cells("group_size", str),
        Column("recipe", number=False): cells("recipe", str),
    }
    kept = {c: values for c, values in found.items() if any(values)}
    marked = [r["label"] == picked for r in rows]
    made = zip(*kept.values(), strict=True)
    return table(list(kept), made, caption="The models of the sweep", class_="dense", marked=marked)


def _at(row: Json, *path: str) -> Any:
    """What lies at `path`; None where something on the way is missing."""
    value: Any = row
    for key in path:
        value = (value or {}).get(key)
    return value


def _notes(row: Json, picked: Any, reference: Any) -> str:
    told = {"picked": row["label"] == picked, "reference": row["label"] == reference, "worse": row.get("worse")}
    return ", ".join(word for word, true in told.items() if true)


def _difference(row: Json) -> str:
    if row.get("difference") is None:
        return ""
    ends = row.get("difference_interval")
    said = f"{100 * row['difference']:+.1f}"
    return f"{said} [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" if ends else said


def _if(value: Any, show: Callable[[Any], str]) -> str:
    return "" if value is None else show(value)


# ---- a pipeline ----


def pipelines(found: Sequence[Json]) -> Html:
    return join(_pipeline(p) for p in found)


def _pipeline(pipeline: Json) -> Html:
    models: Mapping[str, Json] = pipeline["models"]
    suites = list(dict.fromkeys(s for m in models.values() for s in m["suites"]))
    rows = [
        [
            name, _if(m.get("bytes"), size), *(_suite(m["suites"].get(s)) for s in suites),
            _if(m.get("seconds_per_query"), "{:.3f}".format), tag("code", m["fingerprint"][:12]),
        ]
        for name, m in models.items()
    ]  # fmt: skip
    columns = [Column("model", False), Column("size"), *map(Column, suites), Column("s a query"),
               Column("fingerprint", False)]  # fmt: skip
    made = table(columns, rows, caption="The models of the pipeline, by suite")
    stages = [[name, f"{seconds:,.1f} s"] for name, seconds in (pipeline.get("seconds") or {}).items()]
    spent = table([Column("stage", False), Column("time")], stages, caption="Time of each stage")
    return join([made, tag("details", tag("summary", "Time of each stage"), spent) if stages else ""])


def _suite(rate: Json | None) -> Html | str:
    if not rate:
        return ""
    return join([tag("b", percent(rate["accuracy"])), " ", tag("span", interval(rate["interval"]), class_="soft")])
