"""The whole road: rows → converted rows → adapter → fused float16 → n bits → four scores, and the table of them.

    punie-mlx pipeline --model data/tiny-base --data data/phase8_json_format --out runs/first

    OUT/data/        converted rows                OUT/scores/base/     result.json of each of the four
    OUT/adapter/     the LoRA adapter              OUT/scores/adapter/
    OUT/fused/       the float16 model             OUT/scores/fused/
    OUT/quantized/   the n-bit model               OUT/scores/quantized/
    OUT/training/    the training while it is not finished: it goes on from its last checkpoint

Each stage is a directory that appears whole, under its final name, with a manifest that holds the key of its inputs
(hashes of files, settings) and the hash of what it made. A run skips every stage whose key is the same and whose files
are as they were written, so it goes on after any stop, SIGKILL included, where that stop was. Half-written things have
names that end in `.partial` and are swept at the start. A lock keeps a second run out of the same directory; the kernel
releases it with the process, however that ends.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from punie_mlx import __version__, identity
from punie_mlx.corpus.rows import SPLITS
from punie_mlx.errors import ConfigError, OutputError
from punie_mlx.files import locked
from punie_mlx.stages import Runner, Say, Stage, bar, clear_partials, hash_tree, to_stderr
from punie_mlx.train.config import TrainConfig

LOCK = ".pipeline.lock"
TRAINING = "training"
SCORED = ("base", "adapter", "fused", "quantized")


@dataclass(frozen=True)
class PipelineConfig:
    """What goes down the road, and where it is put."""

    model: Path
    """Directory of the base."""
    data: Path
    """Directory of rows in any form that the converter reads."""
    out: Path
    suites: tuple[Path, ...]
    train: TrainConfig = field(default_factory=TrainConfig)
    bits: int = 5
    group_size: int = 64
    limit: int | None = None
    """Only the first so many cases of each suite."""
    restart: bool = False
    """Do every stage again, whatever is there."""

    def __post_init__(self) -> None:
        if not self.suites:
            raise ConfigError("no suite was given: pass --suite FILE")


def run_pipeline(config: PipelineConfig, say: Say = to_stderr) -> dict[str, Any]:
    """Run what is not done yet and return the report (also in `OUT/report.json`).

    Raises:
        InputError: a model, rows, suite or output that cannot be used.
        ServerError: the server under test died.
    """
    check(config)
    with locked(config.out / LOCK, "pipeline"):
        clear_partials((config.out, config.out / "scores"), say)
        runner = Runner(config.restart, say)
        paths = {name: config.out / name for name in ("data", "adapter", "fused", "quantized")}
        made = make_fused(config, runner, paths)
        made["quantized"] = runner.run(_quantize(config, paths, made["fused"]))
        results = {}
        for name in SCORED:
            stage = _score(config, paths, name, made)
            runner.run(stage)
            results[name] = json.loads((stage.path / "result.json").read_text(encoding="utf-8"))
        report = _report(config, paths, results, runner)
        identity.write_json(config.out / "report.json", report)
    return report


def make_fused(config: PipelineConfig, runner: Runner, paths: Mapping[str, Path]) -> dict[str, str]:
    """Convert, train and fuse what is not done yet: the hashes of base, adapter and fused model."""
    base = identity.fingerprint(config.model)
    rows = runner.run(_convert(config, paths["data"]))
    adapter = runner.run(_train(config, paths, base, rows))
    shutil.rmtree(config.out / TRAINING, ignore_errors=True)
    return {"base": base, "adapter": adapter, "fused": runner.run(_fuse(config, paths, base, adapter))}


def check(config: PipelineConfig) -> None:
    """Find out before any work what would stop the road at its end."""
    from punie_mlx.corpus.convert import source_files
    from punie_mlx.corpus.suite import read_suite
    from punie_mlx.export.quantize import check_settings

    check_settings(config.bits, config.group_size)
    identity.model_files(config.model)
    for suite in (*config.suites, *([Path(config.train.select)] if config.train.select else [])):
        read_suite(suite)
    source_files(config.data)
    out = config.out
    inside = [p for p in (config.model, config.data) if out.resolve() in (p.resolve(), *p.resolve().parents)]
    if inside:
        raise OutputError(f"--out {out} would hold its own input {inside[0]}: name another --out")
    if out.is_dir() and not (out / LOCK).is_file() and any(out.iterdir()):
        raise OutputError(f"{out} holds something else than a pipeline's results: name another --out")


def hash_rows(directory: Path) -> str:
    """Hash of the rows in a directory of converted rows."""
    return identity.hash_files([p for p in directory.glob("*.jsonl") if p.stem in SPLITS], directory)


def hash_adapter(directory: Path) -> str:
    """Hash of an adapter's weights and config."""
    return identity.hash_files(identity.adapter_files(directory), directory)


# ---- the stages ----


def _convert(config: PipelineConfig, out: Path) -> Stage:
    from punie_mlx.corpus.convert import ConvertConfig, convert, source_files

    files = source_files(config.data)
    tokenizer = [p for p in identity.model_files(config.model) if p.suffix != ".safetensors"]
    inputs = {
        "data": identity.hash_files(files, config.data),
        "tokenizer": identity.hash_files(tokenizer, config.model),
    }

    def make(tmp: Path) -> object:
        return convert(ConvertConfig(source=config.data, out=tmp, model=config.model, overwrite=True))

    return Stage("convert", out, inputs, {}, make, hash_rows)


def _train(config: PipelineConfig, paths: Mapping[str, Path], base: str, rows: str) -> Stage:
    resume = "no" if config.restart else "auto"

    def make(tmp: Path) -> object:
        from punie_mlx.train.run import train

        told = replace(config.train, model=str(config.model), data=str(paths["data"]), out=str(tmp))
        return train(told, overwrite=True, resume=resume, work=config.out / TRAINING)

    inputs = {"model": base, "data": rows}
    if config.train.select:
        inputs["suite"] = identity.hash_file(Path(config.train.select))
    return Stage("train", paths["adapter"], inputs, config.train.settings(), make, hash_adapter)


def _fuse(config: PipelineConfig, paths: Mapping[str, Path], base: str, adapter: str) -> Stage:
    def make(tmp: Path) -> object:
        from punie_mlx.export.fuse import fuse

        return fuse(config.model, paths["adapter"], tmp, overwrite=True)

    return Stage("fuse", paths["fused"], {"model": base, "adapter": adapter}, {}, make, identity.fingerprint)


def _quantize(config: PipelineConfig, paths: Mapping[str, Path], fused: str) -> Stage:
    def make(tmp: Path) -> object:
        from punie_mlx.export.quantize import quantize

        return quantize(paths["fused"], tmp, bits=config.bits, group_size=config.group_size, overwrite=True)

    settings = {"bits": config.bits, "group_size": config.group_size}
    return Stage("quantize", paths["quantized"], {"model": fused}, settings, make, identity.fingerprint)


def _score(config: PipelineConfig, paths: Mapping[str, Path], name: str, made: Mapping[str, str]) -> Stage:
    def make(tmp: Path) -> object:
        from punie_mlx.evals.runner import EvalConfig, evaluate

        model = paths[name] if name in ("fused", "quantized") else config.model
        adapter = paths["adapter"] if name == "adapter" else None
        told = EvalConfig(
            model=model,
            adapter=adapter,
            suites=config.suites,
            out=tmp / "result.json",
            limit=config.limit,
            concurrency=1,  # the table shows seconds a query
        )
        with bar() as step:
            return evaluate(told, step)

    inputs = {k: made[k] for k in (("base", "adapter") if name == "adapter" else (name,))}
    inputs |= {f"suite {path.name}": identity.hash_file(path) for path in config.suites}
    settings = {"limit": config.limit, "punie-mlx": __version__}
    return Stage(f"score {name}", config.out / "scores" / name, inputs, settings, make, hash_tree)


# ---- the report ----


def _report(
    config: PipelineConfig, paths: Mapping[str, Path], results: Mapping[str, Any], runner: Runner
) -> dict[str, Any]:
    directories = {"base": config.model, **{k: paths[k] for k in ("adapter", "fused", "quantized")}}
    rows = {
        name: {
            "fingerprint": result["model"]["fingerprint"],
            "suites": result["summary"]["by_suite"],
            "bytes": _model_bytes(directories[name]),
            "seconds_per_query": result["summary"]["seconds_per_query"]["median"],
        }
        for name, result in results.items()
    }
    training = identity.read_manifest(paths["adapter"]) or {}
    return {
        "kind": "pipeline",
        "bits": config.bits,
        "models": rows,
        "losses": {k: training.get(k) for k in ("first_loss", "last_loss", "first_val_loss", "last_val_loss")},
        "seconds": runner.seconds,
        "skipped": runner.skipped,
        "versions": identity.versions(),
    }


def _model_bytes(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.glob("*.safetensors"))


def table(report: Mapping[str, Any]) -> Any:
    """The report as a table for the terminal."""
    from rich.table import Table

    models = report["models"]
    suites: Sequence[str] = list(models["base"]["suites"])
    shown = Table(title="base → LoRA → float16 → few bits", caption="accuracy with its 95% Wilson interval")
    shown.add_column("model")
    for suite in suites:
        shown.add_column(suite, justify="right")
    shown.add_column("on disk", justify="right")
    shown.add_column("s a query", justify="right")
    labels = {"fused": "fused float16", "quantized": f"{report['bits']}-bit", "adapter": "base + adapter"}
    for name, row in models.items():
        size = row["bytes"] + (models["base"]["bytes"] if name == "adapter" else 0)
        cells = [_cell(row["suites"][suite]) for suite in suites]
        shown.add_row(labels.get(name, name), *cells, f"{size / 1e6:,.1f} MB", f"{row['seconds_per_query']:.2f}")
    return shown


def _cell(rate: Mapping[str, Any]) -> str:
    """A small suite as k/n, a larger one as a percentage; both with their interval."""
    lo, hi = rate["interval"]
    if rate["n"] < 20:
        return f"{rate['passed']}/{rate['n']} [{lo:.2f}, {hi:.2f}]"
    return f"{rate['accuracy']:.1%} [{100 * lo:.1f}, {100 * hi:.1f}]"


# ---- the verb ----

SUITES = ("data/suites/discrimination.jsonl", "data/suites/agent.jsonl")


def run_verb(config: PipelineConfig, *, as_json: bool) -> None:
    """Run and print the report: a table, or JSON. Raises what `run_pipeline` raises."""
    try:
        report = run_pipeline(config)
    except KeyboardInterrupt:
        print("punie-mlx: stopped; the same command goes on with the stage that was running", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(table(report))
