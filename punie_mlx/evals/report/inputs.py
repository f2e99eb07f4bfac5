"""Which result each path holds: runs, sweeps, profiles, pipelines and trainings, in the order given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from punie_mlx.errors import DataError
from punie_mlx.evals.runs import read_result

METRICS = "metrics.jsonl"
COLOURS = 8
RESULTS = ("result.json", "sweep.json", "profile.json")

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One evaluation: a letter and a colour of its own, and its file's content."""

    index: int
    path: Path
    record: Json

    @property
    def letter(self) -> str:
        """A, B, … Z, AA: the sign of this run wherever a colour alone would not do."""
        high, low = divmod(self.index, 26)
        return (chr(64 + high) if high else "") + chr(65 + low)

    @property
    def colour(self) -> str:
        return f"r{self.index % COLOURS}"

    @property
    def label(self) -> str:
        return str(self.record["model"]["label"])

    @property
    def cases(self) -> list[Json]:
        return self.record["cases"]

    @property
    def summary(self) -> Json:
        return self.record["summary"]


@dataclass(frozen=True)
class Training:
    """The figures of one training."""

    path: Path
    lines: list[Json]

    @property
    def label(self) -> str:
        return self.path.name or str(self.path)


@dataclass(frozen=True)
class Inputs:
    runs: list[Run] = field(default_factory=list)
    sweeps: list[Json] = field(default_factory=list)
    profiles: list[Json] = field(default_factory=list)
    pipelines: list[Json] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """What lies at `paths`; a directory of a pipeline stands for its report, scores and training.

    Raises:
        DataError: a path that holds nothing that a report can show.
    """
    found = Inputs()
    seen: set[Path] = set()
    for path in (p for given in paths for p in _files(given)):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if path.suffix == ".jsonl":
            found.trainings.append(Training(path.parent, _metrics(path)))
        else:
            _sort(found, path, read_result(path))
    return found


def _sort(found: Inputs, path: Path, result: Json) -> None:
    if result["kind"] == "evaluation":
        found.runs.append(Run(len(found.runs), path, result))
        return
    kept = {"sweep": found.sweeps, "profile": found.profiles, "pipeline": found.pipelines}
    if result["kind"] not in kept:
        raise DataError(
            f"{path} is a {result['kind']}: give the run files themselves, and the report compares them anew"
        )
    kept[result["kind"]].append(result)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} does not exist: give a file that `punie-mlx eval --json FILE` wrote")
        yield path
        return
    if (path / METRICS).is_file():
        yield path / METRICS
        return
    if (path / "report.json").is_file():
        scores = path / "scores"
        order = [n for n in ("base", "adapter", "fused", "quantized") if (scores / n / "result.json").is_file()]
        yield from (scores / n / "result.json" for n in order)
        yield path / "report.json"
        if (path / "adapter" / METRICS).is_file():
            yield path / "adapter" / METRICS
        return
    found = [path / n for n in RESULTS if (path / n).is_file()]
    if not found:
        wanted = ", ".join((*RESULTS, "report.json", METRICS))
        raise DataError(f"{path} holds none of {wanted}: name the result file, or the directory of a training")
    yield from found


def _metrics(path: Path) -> list[Json]:
    """The lines of a metrics.jsonl by step; of what was measured twice, as around a resume, the last."""
    found: dict[tuple[str, int], Json] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # left half-written by a run that was killed
        if isinstance(line, dict) and isinstance(line.get("kind"), str) and type(line.get("step")) is int:
            found[line["kind"], line["step"]] = line
    if not found:
        raise DataError(f"{path} holds no measurement: give the metrics.jsonl of a training")
    return sorted(found.values(), key=lambda line: line["step"])
