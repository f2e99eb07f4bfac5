"""From the measurements of a sweep to its result: the rows, which variant is picked and why, the table, the picture.

The reference is the fused float16 model. Quantized models are tested against it as one family (exact McNemar, Holm's
adjustment over all of them); base and adapter are controls, a family of their own. A variant is *worse* where the
reference alone solved more cases than the variant alone and the adjusted p-value is below `ALPHA`. That no difference
was shown does not make two models equal: `margin` is the largest loss that the cases leave possible (Tango's interval,
97.5% one-sided), and the result says it of what it picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.evals.compare import CompareConfig, compare
from punie_mlx.evals.runs import read_run
from punie_mlx.pages.plots import Dot, Scale, scatter
from punie_mlx.pages.text import Html, tag

FORMAT = 1
ALPHA = 0.05
Json = dict[str, Any]


def conclude(settings: Mapping[str, Any], controls: Sequence[Json], variants: Sequence[Json], speed: Json) -> Json:
    """The content of sweep.json; the first of `controls` is the reference, and `run` of each row is its run's file."""
    reference = controls[0]["label"]
    margin = settings["margin"]
    runs = {row["label"]: read_run(row["run"]) for row in (*controls, *variants)}
    against: Json = {}
    for family in (controls[1:], variants):
        if family:
            told = [runs[reference], *(runs[row["label"]] for row in family)]
            found = compare(told, CompareConfig(baseline=reference, alpha=ALPHA, margin=margin))
            against |= {r["label"]: r["against_baseline"] for r in found["runs"]}
    rates = speed["models"]
    exact = rates[reference]["tokens_per_second"]
    rows = []
    for row in (*controls, *variants):
        rate = rates.get(row["label"], {}).get("tokens_per_second")
        rows.append(_row(row, runs[row["label"]], against.get(row["label"]), rate, exact))
    picked, why = pick(rows, reference)
    suite = runs[reference]["suite"]
    return {
        "kind": "sweep", "format": FORMAT, "suite": suite, "reference": reference, "rows": rows, "picked": picked,
        "why": why, "picked_within_margin": surest(rows), "settings": {**settings, "alpha": ALPHA}, "speed": speed,
    }  # fmt: skip


def _row(facts: Json, run: Json, found: Json | None, rate: float | None, exact: float) -> Json:
    summary = run["summary"]
    return {
        **{k: facts[k] for k in ("label", "what", "bits", "group_size", "recipe", "bytes", "bits_per_weight", "kl")},
        "accuracy": {k: summary[k] for k in ("accuracy", "interval", "n", "passed")},
        "balanced_accuracy": summary["call_or_not"]["balanced_accuracy"],
        "mcnemar": found and {"only_first": found["only_baseline"], "only_second": found["only_this"], "p": found["p"]},
        "p_holm": found and found["p_holm"],
        "difference": found and found["difference"],
        "difference_interval": found and found["interval"],
        "not_worse": found and found["not_worse"],
        "margin": found and max(0.0, -found["not_worse"]["lower"]),
        "worse": bool(found and found["only_baseline"] > found["only_this"] and found["p_holm"] < ALPHA),
        "tokens_per_second": rate,
        "speed_ratio": rate and rate / exact,
        "run": "/".join(Path(facts["run"]).parts[-3:]),
        "fingerprint": facts["fingerprint"],
        **({"dwq": facts["dwq"]} if facts.get("dwq") else {}),
    }


def pick(rows: Sequence[Json], reference: str) -> tuple[str | None, str]:
    """The smallest quantized model that is not worse, and why; of two of one size the one nearer to float16."""
    exact = next(r for r in rows if r["label"] == reference)
    variants = [r for r in rows if r["what"] == "quantized"]
    good = [r for r in variants if not r["worse"]]
    if not good:
        return None, f"all {len(variants)} quantized models are significantly worse than {reference}: take more bits"
    best = min(good, key=lambda r: (r["bytes"], r["kl"]["mean"]))
    test = best["mcnemar"]
    smaller = sorted((r for r in variants if r["bytes"] < best["bytes"]), key=lambda r: r["bytes"])
    why = (
        f"{best['label']} is the smallest of {len(variants)} quantized models that is not significantly worse than "
        f"{reference}: {_percent(best)} against {_percent(exact)}, {test['only_first']} cases lost and "
        f"{test['only_second']} gained (p = {best['p_holm']:.3f} after Holm), at {best['bytes'] / exact['bytes']:.0%} "
        f"of the size. A loss of up to {100 * best['margin']:.1f} points is not ruled out by {exact['accuracy']['n']} "
        f"cases{_too_few(best, rows)}."
    )
    if smaller:
        why += f" Smaller and worse: {', '.join(r['label'] for r in smaller)}."
    return best["label"], why


def surest(rows: Sequence[Json]) -> str | None:
    """The smallest quantized model of which the cases show that it is not worse by more than the margin asked for."""
    good = [r for r in rows if r["what"] == "quantized" and not r["worse"] and r["not_worse"]["holds"]]
    return min(good, key=lambda r: (r["bytes"], r["kl"]["mean"]))["label"] if good else None


def _too_few(row: Json, rows: Sequence[Json]) -> str:
    claim = row["not_worse"]
    if claim["holds"]:
        return ""
    sure = surest(rows)
    which = f"that is shown of {sure}, not of this one" if sure else "that is shown of none: score more cases"
    return f"; not to be worse by more than {100 * claim['margin']:g} points, {which}"


def _percent(row: Json) -> str:
    return f"{row['accuracy']['accuracy']:.1%}"


# ---- to look at ----


def table(result: Mapping[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from rich.table import Table

    suite = result["suite"]
    cases = next(r for r in result["rows"] if r["label"] == result["reference"])["accuracy"]["n"]
    names = ", ".join(f["name"] for f in suite["files"])
    shown = Table(
        title=f"{names}: {cases} cases",
        caption=f"intervals of 95%; tests against {result['reference']}: exact McNemar, p after Holm; KL in nats",
    )
    shown.add_column("model")
    for name in ("MB", "bits/weight", "KL mean", "KL p99", "accuracy", "balanced", "lost/gained", "p", "at most",
                 "tokens/s"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in result["rows"]:
        style = "bold" if row["label"] == result["picked"] else None
        shown.add_row(*_cells(row, result), style=style)
    return shown


def _cells(row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    rate, test, kl = row["accuracy"], row["mcnemar"], row["kl"]
    lo, hi = rate["interval"]
    marks = {result["picked"]: " ← picked", result["reference"]: " (reference)"}
    return [
        row["label"] + marks.get(row["label"], " (worse)" if row["worse"] else ""),
        f"{row['bytes'] / 1e6:,.2f}",
        f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "",
        f"{kl['mean']:.2e}" if kl else "",
        f"{kl['p99']:.2e}" if kl else "",
        f"{rate['accuracy']:.1%} [{100 * lo:.1f}, {100 * hi:.1f}]",
        "" if row["balanced_accuracy"] is None else f"{row['balanced_accuracy']:.1%}",
        f"{test['only_first']}/{test['only_second']}" if test else "",
        ("< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}") if test else "",
        f"-{100 * row['margin']:.1f}" if test else "",
        f"{row['tokens_per_second']:,.0f} (×{row['speed_ratio']:.2f})" if row["tokens_per_second"] else "",
    ]


COLOURS = {"fused": "r2", "uniform": "r0", "mixed": "r1", "dwq": "r4"}
STYLE = """svg{background:#fff;color-scheme:light dark;--ink:#1b1f24;--soft:#59616d;--edge:#dfe3e8;--r0:#0072b2;
--r1:#d55e00;--r2:#00815e;--r3:#b0578e;--r4:#946800;--r6:#4d5560}
@media (prefers-color-scheme:dark){svg{background:#14171c;--ink:#e6e9ee;--soft:#a3acb9;--edge:#2f363f;--r0:#56b4e9;
--r1:#ff9a5c;--r2:#3fcb9f;--r3:#e9a4cb;--r4:#f0c24b;--r6:#b6bfcb}}
text{font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft)}text.label{fill:var(--ink)}
text.picked{font-weight:650}.grid{stroke:var(--edge)}.ring{fill:none;stroke:var(--ink);stroke-width:1.6}
.r0{color:var(--r0)}.r1{color:var(--r1)}.r2{color:var(--r2)}.r3{color:var(--r3)}.r4{color:var(--r4)}
.r6{color:var(--r6)}.fill{fill:currentColor}.whisker{fill:none;stroke:currentColor;stroke-width:1.6}"""


def draw(result: Mapping[str, Any]) -> str:
    """Accuracy against size as a picture that stands alone: the quantized models and the reference.

    Without the controls: the base is so much worse that the others would lie on one line.
    """
    dots = [
        Dot(
            row["label"],
            row["bytes"] / 1e6,
            row["accuracy"]["accuracy"],
            tuple(row["accuracy"]["interval"]),
            COLOURS[row["recipe"] or row["what"]],
            row["label"] == result["picked"],
        )
        for row in result["rows"]
        if row["what"] in ("fused", "quantized")
    ]
    x, y = Scale("size of the weights, MB", lambda v: f"{v:,.6g}", zero=True), Scale("accuracy", lambda v: f"{v:.0%}")
    drawn = scatter("Accuracy against size", dots, x, y, "accuracy-size")
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    head, _, rest = drawn.partition(">")
    return f"{start}{head.removeprefix('<svg ')}>{tag('style', Html(STYLE))}{rest}\n"
