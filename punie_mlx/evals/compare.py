"""Runs of the same cases, side by side: what differs in the result, what differs in the making, what it allows to say.

    punie-mlx compare base.json fused.json quantized.json

The first run is the baseline, or the one that is named. Each other run is compared with it case by case: exact McNemar
(where cases were run several times, the exact sign-flip test that McNemar's is a case of), Holm's adjustment over all
of these comparisons, Tango's interval for the difference, and whether it may be called "not worse by more than the
margin". Categories are shown, not tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.evals.stats import Pairs, holm, not_worse, sign_flip, tango
from punie_mlx.evals.summary import by_case, percent, rate

FORMAT = 1
PARTS = ("model", "settings", "server", "serving", "versions")
"""The parts of a run that tell how it was made."""

Run = Mapping[str, Any]
Json = dict[str, Any]
Outcomes = dict[tuple[str, str], list[bool]]


@dataclass(frozen=True)
class CompareConfig:
    """How runs are compared."""

    baseline: str | None = None
    """Label of the run that the others are compared with; None takes the first."""
    alpha: float = 0.05
    """A difference counts where its adjusted p-value is below."""
    margin: float = 0.05
    """Largest loss of accuracy that still goes as "not worse"."""

    def __post_init__(self) -> None:
        for name, value in (("--alpha", self.alpha), ("--margin", self.margin)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} {value}: give a number above 0 and below 1")


def compare(runs: Sequence[Run], config: CompareConfig | None = None) -> Json:
    """The comparison of `runs` (as `runs.read_run` gives them), of kind "comparison".

    Raises:
        DataError: the runs are not of the same cases.
        ConfigError: fewer than two runs, or no run has the baseline's label.
    """
    config = config or CompareConfig()
    if len(runs) < 2:
        raise ConfigError("one run cannot be compared: give two result files or more")
    labels = unique_labels(runs)
    if config.baseline is not None and config.baseline not in labels:
        raise ConfigError(f"--baseline {config.baseline} is none of the runs: {', '.join(labels)}")
    first = labels.index(config.baseline) if config.baseline is not None else 0
    outcomes = [by_case(r["cases"], lambda c: c["passed"]) for r in runs]
    _same_cases(runs, labels, outcomes)

    found = [None if i == first else _against(outcomes[first], o, config.margin) for i, o in enumerate(outcomes)]
    tested = [f for f in found if f is not None]
    for one, adjusted in zip(tested, holm([f["p"] for f in tested]), strict=True):
        one["p_holm"] = adjusted
        one["verdict"] = _verdict(one, config.alpha)
    rows = [_row(r, label, f) for r, label, f in zip(runs, labels, found, strict=True)]
    result = {
        "kind": "comparison", "format": FORMAT,
        "suite": {**runs[0]["suite"], "limit": runs[0]["settings"]["limit"], "cases": len(outcomes[0])},
        "settings": {"alpha": config.alpha, "margin": config.margin},
        "baseline": labels[first], "runs": rows,
        "changed": changed(runs), "by_category": _categories(runs, labels),
        "flips": {label: flips(runs[first], r) for i, (r, label) in enumerate(zip(runs, labels, strict=True))
                  if i != first},
        "warnings": _warnings(runs),
    }  # fmt: skip
    return {**result, "words": words(result)}


def unique_labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its label, with its fingerprint or its place where several have the same."""
    labels = [r["model"].get("label") or r["model"]["name"] for r in runs]
    for more in (lambda i: f" {runs[i]['model']['fingerprint'][:8]}", lambda i: f" #{i + 1}"):
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [label + more(i) if label in twice else label for i, label in enumerate(labels)]
    return labels


def _same_cases(runs: Sequence[Run], labels: Sequence[str], outcomes: Sequence[Outcomes]) -> None:
    for run, label, found in zip(runs[1:], labels[1:], outcomes[1:], strict=True):
        hashes = runs[0]["suite"]["hash"], run["suite"]["hash"]
        if hashes[0] != hashes[1]:
            raise DataError(
                f"the runs are not of the same suite: {labels[0]} is of {hashes[0]}, {label} of {hashes[1]}: "
                "score both models on the same suite file"
            )
        limits = runs[0]["settings"]["limit"], run["settings"]["limit"]
        if limits[0] != limits[1]:
            raise DataError(
                f"the runs of suite {hashes[0]} have different limits: {labels[0]} {limits[0] or 'none'}, {label} "
                f"{limits[1] or 'none'}: score both with the same --limit, or without"
            )
        if odd := outcomes[0].keys() ^ found.keys():
            raise DataError(
                f"{labels[0]} and {label} are of suite {hashes[0]}, but {len(odd)} cases are in one of them only, "
                f"the first is {'/'.join(min(odd))}: score both to the end"
            )


# ---- one run against the baseline ----


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def _against(first: Outcomes, second: Outcomes, margin: float) -> Json:
    """Test, interval and claim for `second` minus `first`."""
    once = all(len(o) == 1 for runs in (first, second) for o in runs.values())
    differences = [_mean(second[k]) - _mean(first[k]) for k in first]
    pairs = Pairs.of(differences, sum(min(len(first[k]), len(second[k])) for k in first))
    claim = not_worse(pairs, margin)
    return {
        "difference": math.fsum(differences) / len(differences),
        "interval": list(tango(pairs)),
        "only_baseline": sum(d < 0 for d in differences),
        "only_this": sum(d > 0 for d in differences),
        "test": "exact McNemar" if once else "exact sign-flip test of the cases' means",
        "p": sign_flip(_whole(first, second)),
        "not_worse": {"margin": margin, "lower": claim.lower, "p": claim.p, "holds": claim.holds},
    }


def _whole(first: Outcomes, second: Outcomes) -> list[int]:
    """The differences of the cases' means as whole numbers, all on one scale."""
    scale = math.lcm(*(len(o) for runs in (first, second) for o in runs.values()))
    return [sum(second[k]) * (scale // len(second[k])) - sum(first[k]) * (scale // len(first[k])) for k in first]


def _verdict(found: Json, alpha: float) -> str:
    if found["p_holm"] >= alpha:
        return "no significant difference"
    return "better" if found["difference"] > 0 else "worse"


def _row(run: Run, label: str, found: Json | None) -> Json:
    summary, model = run["summary"], run["model"]
    accuracy = {k: summary[k] for k in ("accuracy", "interval", "n", "passed", "cases") if k in summary}
    return {
        "label": label, "name": model["name"], "fingerprint": model["fingerprint"], "adapter": model.get("adapter"),
        "accuracy": accuracy,
        **{k: summary[k] for k in ("with_retry", "lenient", "pass_hat_k", "parse_failures", "call_or_not")},
        "seconds_per_query": summary["seconds_per_query"], "against_baseline": found,
    }  # fmt: skip


def flips(first: Run, second: Run) -> list[Json]:
    """The cases that passed in one run and not, or less often, in the other: losses first, then by suite and place."""
    before, after = (
        {k: _mean(v) for k, v in by_case(r["cases"], lambda c: c["passed"]).items()} for r in (first, second)
    )
    told = {(c["suite"], c["id"]): c for c in second["cases"]}
    why = [{(c["suite"], c["id"]): c["reasons"][0] for c in r["cases"] if c["reasons"]} for r in (first, second)]
    found = [
        {
            "suite": key[0], "id": key[1], "category": told[key]["category"], "before": before[key],
            "after": after[key], "reason": why[after[key] < before[key]].get(key),
        }
        for key in before if before[key] != after[key]
    ]  # fmt: skip
    return sorted(found, key=lambda f: f["after"] > f["before"])


def _categories(runs: Sequence[Run], labels: Sequence[str]) -> list[Json]:
    names = sorted({c["category"] for c in runs[0]["cases"]})
    return [
        {
            "category": name,
            "runs": {
                label: rate((c for c in r["cases"] if c["category"] == name), lambda c: c["passed"])
                for r, label in zip(runs, labels, strict=True)
            },
        }
        for name in names
    ]


# ---- what is different in the making ----


def changed(runs: Sequence[Run]) -> list[Json]:
    """The keys of model, settings, server and versions that are not the same in all runs, with each run's value."""
    flat = [_flat(r) for r in runs]
    keys = dict.fromkeys(k for f in flat for k in f)
    rows = [{"key": k, "values": [f.get(k) for f in flat]} for k in keys]
    return [row for row in rows if any(v != row["values"][0] for v in row["values"])]


def _flat(run: Run) -> Json:
    found: Json = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{place}.{key}", inner)
        else:
            found[place] = value

    for part in PARTS:
        if part in run:
            walk(part, run[part])
    return found


CAUTIONS = {
    "settings.repeats": "the runs repeat their cases differently often: the means are compared, and rest on "
    "different numbers of tries",
    "settings.temperature": "the temperatures differ: the difference may be that of the sampling, not of the models",
    "settings.retries": "the numbers of retries differ; accuracy is that of the first tries all the same",
    "settings.max_tokens": "the token limits differ: calls may have been cut in one run and not in the other",
    "settings.request_limit": "the limits on requests differ: one run had more turns to get it right",
    "settings.through": "the runs went different ways to the model: part of the difference may lie there",
    "settings.concurrency": "concurrency differs: the seconds a query cannot be compared",
}


def _warnings(runs: Sequence[Run]) -> list[str]:
    keys = [row["key"] for row in changed(runs)]
    found = [text for key, text in CAUTIONS.items() if key in keys]
    if versions := [k.removeprefix("versions.") for k in keys if k.startswith("versions.")]:
        found.append(f"versions differ ({', '.join(versions)}): a part of the difference may be theirs")
    if "model.fingerprint" not in keys:
        found.append("all runs are of one model: what differs comes from the settings, the server or chance")
    if any(r["settings"]["temperature"] and r["settings"]["repeats"] == 1 for r in runs):
        found.append("a run sampled at a temperature above 0 once: another run of it would give another figure")
    if any(r.get("upgraded_from") for r in runs):
        found.append("a run is of an older format: its parse failures are only those that its answers show")
    return found


# ---- in words ----


def points(value: float) -> str:
    """A difference of rates as signed percentage points."""
    return f"{100 * value:+.1f}"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def words(comparison: Json) -> str:
    """What the figures allow to say, and no more, as a paragraph."""
    rows, alpha = comparison["runs"], comparison["settings"]["alpha"]
    base = next(r for r in rows if r["label"] == comparison["baseline"])
    said = [
        f"On the {comparison['suite']['cases']} cases the baseline {base['label']} passes {percent(base['accuracy'])}."
    ]
    said += [_sentences(r) for r in rows if r["against_baseline"]]
    several = len(rows) - 1
    how = f", adjusted for {several} comparisons (Holm)," if several > 1 else ""
    said.append(
        f"A difference counts where its p-value{how} is below {alpha:g}; intervals are of 95% and speak of cases "
        "like these, not of others."
    )
    return " ".join(said)


def _sentences(row: Json) -> str:
    found = row["against_baseline"]
    lo, hi = (100 * x for x in found["interval"])
    gained, lost = found["only_this"], found["only_baseline"]
    text = (
        f"{row['label']} passes {percent(row['accuracy'])}: {points(found['difference'])} points "
        f"[{lo:+.1f}, {hi:+.1f}], {gained} gained and {lost} lost ({p_text(found['p_holm'])})"
    )
    if found["verdict"] != "no significant difference":
        return f"{text}; it is {found['verdict']}."
    margin = f"{100 * found['not_worse']['margin']:g} points"
    if found["not_worse"]["holds"]:
        return f"{text}; no difference is shown, and it is not worse by more than {margin} (97.5% one-sided)."
    return (
        f"{text}; no difference is shown, but that does not make it as good: a loss of more than {margin} is not ruled "
        "out, which takes more cases."
    )
