"""What the verb `train` does with its options: one run, and its figures on stdout."""

from __future__ import annotations

from pathlib import Path

from punie_mlx.train.config import TrainConfig
from punie_mlx.train.run import Report, train


def run_train(config: TrainConfig, *, base: Path | None, overwrite: bool) -> Report:
    """Train and print. Raises what `train` raises."""
    report = train(config, base=base, overwrite=overwrite)
    print(summary(report))
    return report


def summary(report: Report) -> str:
    """The run in two or three lines."""
    lines = [f"{report.out}: {report.iters} iterations in {report.seconds:.1f} s on {report.samples} assistant turns"]
    if report.dropped:
        lines.append("dropped: " + ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()))
    for name, first, last in (
        ("training", report.first_loss, report.last_loss),
        ("validation", report.first_val_loss, report.last_val_loss),
    ):
        if first is not None:
            lines.append(f"{name} loss {first:.3f} → {last:.3f}")
    return "\n".join(lines)
