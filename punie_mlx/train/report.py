"""The report of a training run: one HTML file with curves and tables, which opens without a network.

    write_report(OUT/report.html, OUT/metrics.jsonl, manifest)

Nothing is fetched, and its own policy forbids it: style and script stand in the file (`punie_mlx.pages` makes it so).
Colours follow the reader's light or dark setting; without scripts only the readout under the pointer is missing. All
text of the run is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from punie_mlx.files import atomic_file
from punie_mlx.pages.curves import MOST, Chart, Line, Point, colours, plainly, smoothed, svg, thinned
from punie_mlx.pages.frame import asset, document
from punie_mlx.pages.text import html as escape
from punie_mlx.train.metrics import read_metrics

ASSETS = Path(__file__).parent / "assets"
RECIPE = "recipe.yaml"  # beside metrics.jsonl; it names model and data
MEASURED = ("train", "valid", "select")
ENOUGH = 8  # measurements from which an average says more than they do

Lines = Sequence[Mapping[str, Any]]


def write_report(path: Path, metrics: Path, manifest: Mapping[str, Any]) -> None:
    """Write the report of the run that `metrics` (a metrics.jsonl) and `manifest` describe, whole or not at all.

    What neither of them holds is left out. `recipe.yaml` beside `metrics` names model and data, if it is there.

    Raises:
        DiskError: the disk is full.
        OSError: `metrics` cannot be read, or `path` not be written.
    """
    lines = latest(read_metrics(metrics))
    page = _page(lines, manifest, _recipe(Path(metrics).with_name(RECIPE)))
    with atomic_file(path) as tmp:
        tmp.write_text(page, encoding="utf-8")


def latest(lines: Lines) -> list[Mapping[str, Any]]:
    """`lines` by step; where a step was measured twice, as before and after a resume, only the last of each kind."""
    found = {(line["kind"], line["step"]): line for line in lines}
    return sorted(found.values(), key=lambda line: line["step"])


def _recipe(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _page(lines: Lines, manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    settings = manifest.get("settings") or {}
    method = {"lora": "LoRA", "dora": "DoRA", "full": "Full training"}.get(settings.get("method", "lora"), "Training")
    title = f"{method} of {_last(recipe.get('model'))} on {_last(recipe.get('data'))}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _cards(lines, manifest),
        _section("Curves", _curves(lines)),
        _section("Validations", _validations(lines, manifest.get("picked"))),
        _section("Skipped steps", _skipped(lines)),
        _section("Dropped samples", _dropped(manifest.get("dropped") or {})),
        _section("Notes", _notes(lines, manifest)),
        _section("What was trained", _provenance(manifest, recipe)),
        _section("Settings", table(("setting", "value"), [(k, _text(v)) for k, v in settings.items()])),
        _section("Measurements", _measurements(lines)),
    ]
    body = f"<main>\n{chr(10).join(filter(None, parts))}\n</main>"
    return document(title, body, style=asset("report.css", ASSETS), script=asset("curves.js"))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


# ---- what it came to ----


def gigabytes(value: float) -> str:
    return f"{value / 1e9:,.4g} GB" if value >= 1e9 else f"{value / 1e6:,.4g} MB"


def percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if seconds >= 60 else f"{seconds:.1f} s"


def _cards(lines: Lines, manifest: Mapping[str, Any]) -> str:
    def whole(value: float) -> str:
        return f"{value:,.0f}"

    def change(kind: str, shown: str) -> tuple[str, str]:
        values = [v for _, v in _points(lines, kind, "loss") if v is not None]
        return shown, f"{values[0]:.3f} → {values[-1]:.3f}" if values else ""

    def of(key: str, shown: str, show: Callable[[float], str] = whole) -> tuple[str, str]:
        value = manifest.get(key)
        return shown, show(value) if isinstance(value, int | float) else ""

    cards = [
        of("steps", "steps"), of("picked", "checkpoint picked, step"), change("train", "training loss"),
        change("valid", "validation loss"), of("samples", "samples"), of("trained_tokens", "supervised tokens"),
        of("tokens_per_second", "supervised tokens a second"), of("peak_memory", "peak memory", gigabytes),
        of("seconds", "time", duration), of("skipped", "steps skipped"),
    ]  # fmt: skip
    shown = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in cards if v)
    return f'<dl class="cards">{"".join(shown)}</dl>'


def _provenance(manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    rows = [(key, str(recipe[key])) for key in ("model", "data", "select") if recipe.get(key)]
    rows += [(f"hash of the {k}", str(v)) for k, v in (manifest.get("inputs") or {}).items()]
    rows += [("fingerprint of the result", manifest["fingerprint"])] if manifest.get("fingerprint") else []
    rows += [("run", str(manifest["run"]))] if manifest.get("run") else []
    rows += [(f"version of {k}", str(v)) for k, v in (manifest.get("versions") or {}).items()]
    return table(("what", "which"), rows)


# ---- curves ----


def _points(lines: Lines, kind: str, name: str) -> tuple[Point, ...]:
    """(step, value) of one figure; None where it was no finite number."""
    return tuple((line["step"], _number(line[name])) for line in lines if line["kind"] == kind and name in line)


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def charts(lines: Lines) -> list[Chart]:
    """The charts of a run, without lines that have no value and charts that have no line."""

    def line(kind: str, field: str, name: str) -> Line:
        return Line(name, _points(lines, kind, field))

    raw = line("train", "loss", "training")
    many = sum(v is not None for _, v in raw.points) >= ENOUGH
    average = Line("training, smoothed", smoothed(raw.points))
    trained = (average, Line(raw.name, raw.points, faint=True)) if many else (raw,)
    behaviour = [
        Line(name, _shares(lines, right, of))
        for name, right, of in (
            ("calls right", "calls_right", "calls"),
            ("direct answers right", "direct_right", "direct"),
        )
    ]
    found = [
        Chart("Loss", (*trained, line("valid", "loss", "validation"))),
        Chart("Behaviour", tuple(behaviour), percent),
        Chart("Learning rate", (line("train", "learning_rate", "learning rate"),)),
        Chart("Gradient norm, before clipping", (line("train", "grad_norm", "gradient norm"),)),
        Chart("Supervised tokens a second", (line("train", "tokens_per_second", "tokens a second"),)),
        Chart("Memory", (line("train", "peak_memory", "peak"), line("train", "active_memory", "active")), gigabytes),
    ]
    kept = [Chart(c.title, tuple(x for x in c.lines if _measured(x)), c.show) for c in found]
    return [c for c in kept if c.lines]


def _measured(line: Line) -> bool:
    return any(v is not None for _, v in line.points)


def _shares(lines: Lines, right: str, of: str) -> tuple[Point, ...]:
    points = []
    for line in lines:
        if line["kind"] == "select":
            share = _share(line, right, of)
            points.append((line["step"], share))
    return tuple(points)


def _share(line: Mapping[str, Any], right: str, of: str) -> float | None:
    got, tried = _number(line.get(right)), _number(line.get(of))
    return got / tried if got is not None and tried else None


def _curves(lines: Lines) -> str:
    figures = []
    steps = [line["step"] for line in lines if line["kind"] in MEASURED]
    for i, chart in enumerate(charts(lines)):
        keys = "".join(
            f'<span class="key"><i class="{colour}"></i>{escape(line.name)}</span>'
            for line, colour in zip(chart.lines, colours(chart.lines), strict=True)
        )
        thin = any(len(line.points) > MOST for line in chart.lines)
        note = f'<span class="soft">means of neighbours, at most {MOST:,} points</span>' if thin else ""
        caption = f"<figcaption><b>{escape(chart.title)}</b>{keys}{note}</figcaption>"
        drawn = svg(chart, f"chart-{i}", (min(steps), max(steps)))
        figures.append(f'<figure>\n{caption}\n{drawn}\n<span class="readout"></span>\n</figure>')
    return f'<div class="curves">\n{chr(10).join(figures)}\n</div>' if figures else "<p>Nothing was measured.</p>"


# ---- tables ----


def table(head: Sequence[str], rows: Iterable[Sequence[str]], mark: Callable[[int], bool] = lambda i: False) -> str:
    """An HTML table of text; columns of numbers stand right. `mark` says which rows stand out. Empty without rows."""
    rows = list(rows)
    if not rows:
        return ""
    numeric = [all(_is_figure(row[i]) for row in rows) for i in range(len(head))]
    kinds = [' class="number"' if n else "" for n in numeric]
    top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        body.append(f"<tr{' class=' + chr(34) + 'picked' + chr(34) if mark(i) else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n'
        f"{chr(10).join(body)}\n</tbody>\n</table></div>"
    )


def _is_figure(text: str) -> bool:
    return not text or text[0].isdigit() or text[0] == "-"


def _validations(lines: Lines, picked: Any) -> str:
    """Loss and behaviour by step, with the checkpoint that was picked."""
    rows: dict[int, dict[str, str]] = {}
    for line in lines:
        step = rows.setdefault(line["step"], {}) if line["kind"] in ("valid", "select") else {}
        if line["kind"] == "valid":
            step["validation loss"] = _text(line.get("loss"))
        if line["kind"] == "select":
            step["calls right"] = f"{line.get('calls_right')} of {line.get('calls')}"
            step["direct answers right"] = f"{line.get('direct_right')} of {line.get('direct')}"
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    steps = list(rows)
    cells = [
        (f"{step:,}", *(row.get(n, "") for n in names), "picked" if step == picked else "")
        for step, row in rows.items()
    ]
    return table(("step", *names, "checkpoint"), cells, lambda i: steps[i] == picked)


def _skipped(lines: Lines) -> str:
    rows = [(f"{s['step']:,}", _text(s.get("reason")), _text(s.get("rows"))) for s in lines if s["kind"] == "skip"]
    return table(("step", "reason", "rows"), rows)


def _dropped(dropped: Mapping[str, Any]) -> str:
    return table(("reason", "samples"), [(reason, _text(count)) for reason, count in dropped.items()])


def _notes(lines: Lines, manifest: Mapping[str, Any]) -> str:
    notes = [str(note) for note in manifest.get("notes") or ()]
    notes += [str(manifest["ended"])] if manifest.get("ended") else []
    notes += [f"went on from step {line['step']:,}, where it had been stopped" for line in lines if _resumed(line)]
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _resumed(line: Mapping[str, Any]) -> bool:
    return line["kind"] == "resume"


def _measurements(lines: Lines) -> str:
    """All figures of training, for those who cannot see the curves."""
    trained = [line for line in lines if line["kind"] == "train"]
    names = [n for n in dict.fromkeys(name for line in trained for name in line) if n not in ("kind", "step")]
    shown = {step for step, _ in thinned([(line["step"], 0.0) for line in trained])}
    rows = [(f"{line['step']:,}", *(_text(line.get(n)) for n in names)) for line in trained if line["step"] in shown]
    made = table(("step", *(n.replace("_", " ") for n in names)), rows)
    return f"<details><summary>{len(rows):,} lines of figures</summary>\n{made}\n</details>" if made else ""


def _text(value: Any) -> str:
    """A value of a setting or figure as a reader wants it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "none"
    if value is None:
        return "not a number"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plainly(value) if isinstance(value, int | float) else str(value)


def _last(path: Any) -> str:
    """The last part of a path or Hub name."""
    return Path(str(path)).name if path else "a model"
