"""Has a model passed its check? What a run file says of it, before something is done that cannot be undone.

punie-mlx quantize --model runs/fused --out runs/5bit --drop-intermediate --if-passed 5bit.json --min-accuracy 0.9
punie-mlx quantize … --drop-intermediate --if-passed 5bit.json --not-worse-than fused.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.evals.runs import read_run
from punie_mlx.evals.summary import paired, percent

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Check:
    """A run file, and one thing that it must show."""

    run: Path
    min_accuracy: float | None = None
    not_worse_than: Path | None = None
    """The run of the float16 model on the same cases: exact McNemar must not find this one worse."""

    def __post_init__(self) -> None:
        if (self.min_accuracy is None) == (self.not_worse_than is None):
            raise ConfigError(
                "--if-passed needs one thing to check: pass --min-accuracy X, or --not-worse-than FLOAT16_RUN.json"
            )
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise ConfigError(f"--min-accuracy {self.min_accuracy}: give a part of 1, say 0.9")


def passed(check: Check, fingerprint: str, reference: str) -> tuple[bool, str]:
    """Whether the model `fingerprint` passes, and in words why; `reference` is the float16 model's fingerprint.

    Raises `DataError` for a run of another model, or two runs that cannot be compared.
    """
    run = _run_of(check.run, fingerprint, "the quantized model")
    said = f"{check.run.name}: {run['summary']['passed']}/{run['summary']['n']}, {percent(run['summary'])}"
    if check.min_accuracy is not None:
        accuracy = run["summary"]["accuracy"]
        return accuracy >= check.min_accuracy, f"{said}; at least {check.min_accuracy:.1%} was asked for"
    assert check.not_worse_than is not None  # __post_init__ checked it
    other = _run_of(check.not_worse_than, reference, "the float16 model")
    test = paired(other, run)
    worse = test.p < SIGNIFICANT and test.only_first > test.only_second
    return not worse, (
        f"{said}; {test.only_first} cases only float16 passes, {test.only_second} only the quantized model "
        f"(exact McNemar p = {test.p:.3g}, worse below {SIGNIFICANT})"
    )


def _run_of(path: Path, fingerprint: str, what: str) -> dict[str, Any]:
    run = read_run(path)
    if run["model"]["fingerprint"] != fingerprint:
        raise DataError(
            f"{path} scored another model ({run['model']['fingerprint'][:12]}) than {what} ({fingerprint[:12]}): "
            "score that one with `punie-mlx eval --json`"
        )
    return run
