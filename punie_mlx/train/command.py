"""What the verb `train` does with its options: one run, and its figures on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from punie_mlx import hardware
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.distributed import World
from punie_mlx.train.loop import compiling
from punie_mlx.train.prepare import prepare, read_inputs
from punie_mlx.train.run import Report, train


def run_train(
    config: TrainConfig,
    *,
    base: Path | None,
    overwrite: bool,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> Report | None:
    """Train and print; with `dry_run` only say what would be done. Raises what `train` raises."""
    if dry_run:
        plan = plan_of(config, base)
        print(_json(plan) if as_json else plan_text(plan))
        return None
    report = train(config, base=base, overwrite=overwrite, resume="yes" if resume else "no", quiet=quiet)
    if report.fingerprint:  # of several processes the first one reports
        print(_json({"out": str(report.out), **report.figures()}) if as_json else summary(report))
    return report


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def summary(report: Report) -> str:
    """The run in a few lines."""
    picked = "" if report.picked == report.steps else f", the adapter is that of step {report.picked}"
    lines = [f"{report.out}: {report.steps} steps in {report.seconds:.1f} s on {report.samples} samples{picked}"]
    if report.ended:
        lines.append(f"ended early: {report.ended}")
    if report.skipped:
        lines.append(f"{report.skipped} steps were skipped: metrics.jsonl names their rows")
    if report.dropped:
        lines.append("dropped: " + ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()))
    lines.append(
        f"{report.trained_tokens:,} supervised tokens at {report.tokens_per_second:,.0f} a second; "
        f"{_computed(report.computed_tokens, report.given_tokens)}; peak memory {report.peak_memory / 1e9:.2f} GB"
    )
    for name, first, last in (
        ("training", report.first_loss, report.last_loss),
        ("validation", report.first_val_loss, report.last_val_loss),
    ):
        if first is not None and last is not None:
            lines.append(f"{name} loss {first:.3f} → {last:.3f}")
    return "\n".join(lines)


def _computed(computed: int, given: int) -> str:
    share = f" ({computed / given:.0%})" if given else ""
    return f"{computed:,} tokens computed for {given:,}{share}"


def plan_of(config: TrainConfig, base: Path | None) -> dict[str, Any]:
    """What a run would do, without a step of it."""
    world = World()
    with compiling(config.compile) as compiled:
        prepared = prepare(read_inputs(config, base), world, compiled=compiled)
    return {
        "samples": len(prepared.samples.items),
        "dropped": dict(prepared.samples.dropped),
        "validation_samples": len(prepared.valid.items),
        "supervised_tokens": sum(sample.supervised for sample in prepared.samples.items),
        "steps": prepared.steps,
        "steps_per_epoch": prepared.planner.steps_per_epoch,
        "computed_tokens": prepared.saving[0],
        "given_tokens": prepared.saving[1],
        "memory": dict(prepared.memory.parts),
        "memory_available": hardware.device_memory(),
        "notes": list(prepared.notes),
    }


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan in a few lines."""
    epochs, needed = plan["steps"] / plan["steps_per_epoch"], sum(plan["memory"].values()) / 1e9
    lines = [
        f"{plan['steps']} steps, {epochs:.2f} epochs of {plan['steps_per_epoch']} steps, on {plan['samples']} samples "
        f"({plan['supervised_tokens']:,} supervised tokens); {plan['validation_samples']} samples to validate",
        _computed(plan["computed_tokens"], plan["given_tokens"]) + " of an epoch's samples",
        f"about {needed:.2f} GB of memory; there are {plan['memory_available'] / 1e9:.1f} GB",
        *plan["notes"],
    ]
    return "\n".join(lines)
