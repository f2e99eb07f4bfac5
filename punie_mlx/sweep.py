"""One fused model in many widths: how large, how near to float16, how accurate, how fast; and which of them to take.

    punie-mlx sweep --model runs/fused --bits 8,6,5,4,3 --suite data/suites/agent.jsonl \\
        --prompts data/phase8_xml_format --out runs/sweep

    OUT/models/NAME/        each variant              OUT/speed/             tokens a second of all, from one process
    OUT/divergence/NAME/    its KL to float16         OUT/sweep.json         the result
    OUT/runs/NAME/          its run of the suite      OUT/accuracy_size.svg  the picture

The stages are those of `stages.py`: what is done is not done again, and a suite that was stopped goes on with the case
where it was. With `drop`, the weights of all variants but the picked one are deleted in the end; the same command
knows what they were, and makes one again only where something is to be measured on it that was not before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from punie_mlx import __version__, identity
from punie_mlx.errors import ConfigError, OutputError
from punie_mlx.files import atomic_file, locked
from punie_mlx.stages import Runner, Say, Stage, bar, clear_partials, finished, hash_tree, to_stderr

LOCK = ".sweep.lock"
RESULT = "result.json"
WORK = "unfinished"  # runs of the suite that were stopped
REFERENCE = "fused"
DWQ_BITS = (5, 4)
Json = dict[str, Any]


@dataclass(frozen=True)
class SweepConfig:
    """What is quantized, to what, and on what it is measured."""

    model: Path
    """The fused float16 model."""
    out: Path
    suites: tuple[Path, ...]
    prompts: Path
    """Directory of rows; the divergence is measured on its test split, or on valid where there is no test."""
    base: Path | None = None
    """The base that the fused model was made from: the control."""
    adapter: Path | None = None
    """Its adapter, scored over the base."""
    bits: tuple[int, ...] = (8, 6, 5, 4, 3)
    group_sizes: tuple[int, ...] = (64,)
    mixed: bool = False
    """Also a mixed recipe of each width that has one."""
    dwq: Path | None = None
    """Directory of rows: also 5 and 4 bits (where among `bits`) with scales tuned on its train split."""
    dwq_steps: int = 300
    turns: int = 256
    """At most so many held-out assistant turns for the divergence."""
    concurrency: int = 4
    limit: int | None = None
    """Only the first so many cases of each suite."""
    seed: int = 0
    margin: float = 0.05
    """Loss of accuracy that still goes as not worse."""
    drop: bool = False
    """Delete the weights of variants in the end, but those of the picked one."""
    restart: bool = False

    def __post_init__(self) -> None:
        if not self.suites:
            raise ConfigError("no suite was given: pass --suite FILE")
        if not self.bits or not self.group_sizes:
            raise ConfigError("nothing to sweep over: give --bits and --group-size, say --bits 8,5,4 --group-size 64")
        for name in ("bits", "group_sizes"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"--{name.replace('_sizes', '-size')} names one value twice: name each once")
        if self.adapter is not None and self.base is None:
            raise ConfigError("--adapter needs --base: the model that it was trained on")
        for name, least in (("turns", 1), ("concurrency", 1), ("dwq_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least one case must be run")
        if not 0 < self.margin < 1:
            raise ConfigError(f"--margin {self.margin}: give a share above 0 and below 1, say 0.05 for 5 points")

    def settings(self) -> Json:
        """What decides the figures, for the result."""
        names = ("bits", "group_sizes", "mixed", "dwq_steps", "turns", "concurrency", "limit", "seed", "margin")
        return {n: getattr(self, n) for n in names} | {"dwq": str(self.dwq) if self.dwq else None}


@dataclass(frozen=True)
class Variant:
    """One quantization of the fused model."""

    bits: int
    group_size: int
    recipe: str
    """uniform, mixed or dwq."""
    label: str


def variants(config: SweepConfig) -> list[Variant]:
    """All that is to be made, the widest first. Raises `ConfigError` for bits or group sizes that MLX does not have."""
    from punie_mlx.export.quantize import RECIPES, check_settings

    found = []
    for bits in sorted(config.bits, reverse=True):
        for group_size in sorted(config.group_sizes, reverse=True):
            check_settings(bits, group_size)
            recipes = ["uniform"]
            recipes += ["mixed"] if config.mixed and bits in RECIPES["mixed"].wider else []
            recipes += ["dwq"] if config.dwq and bits in DWQ_BITS else []
            for recipe in recipes:
                parts = [f"{bits}-bit"]
                parts += [f"g{group_size}"] if len(config.group_sizes) > 1 else []
                parts += [recipe] if recipe != "uniform" else []
                found.append(Variant(bits, group_size, recipe, "-".join(parts)))
    return found


def run_sweep(config: SweepConfig, say: Say = to_stderr) -> Json:
    """Do what is not done yet and return the result (also in `OUT/sweep.json`).

    Raises:
        InputError: a model, rows, suite, settings or output that cannot be used.
        ServerError: a server under test died.
    """
    from punie_mlx.sweep_result import conclude, draw

    made = check(config)
    with locked(config.out / LOCK, "sweep"):
        clear_partials((config.out, *(config.out / n for n in ("models", "divergence", "runs"))), say)
        road = _Road(config, Runner(config.restart, say))
        controls = road.controls()
        measured = [road.variant(v) for v in made]
        speed = road.speed(measured)
        result = conclude(config.settings(), controls, [m.facts() for m in measured], speed)
        result |= {"prompts": road.held.to_json(), "versions": identity.versions()}
        if config.drop:
            for one in measured:
                road.keep(one) if one.variant.label == result["picked"] else road.drop(one)
        identity.write_json(config.out / "sweep.json", result)
        with atomic_file(config.out / "accuracy_size.svg") as tmp:
            tmp.write_text(draw(result), encoding="utf-8")
        shutil.rmtree(config.out / WORK, ignore_errors=True)
    return result


def check(config: SweepConfig) -> list[Variant]:
    """Find out before any work what would stop it; returns what is to be made. Raises `InputError`."""
    from punie_mlx.corpus.suite import read_suite
    from punie_mlx.export import store
    from punie_mlx.export.prompts import held_out

    made = variants(config)
    for model in filter(None, (config.model, config.base)):
        identity.model_files(model)
    if store.is_quantized(store.read_config(config.model)):
        raise ConfigError(f"{config.model} is quantized already: sweep over the float16 model that fuse writes")
    if config.adapter:
        identity.check_adapter(config.base or config.model, config.adapter)
    for suite in config.suites:
        read_suite(suite)
    held_out(config.prompts)
    out = config.out.resolve()
    given = (config.model, config.prompts, *filter(None, (config.base, config.adapter, config.dwq)))
    if inside := [p for p in given if out in (p.resolve(), *p.resolve().parents)]:
        raise OutputError(f"--out {config.out} would hold its own input {inside[0]}: name another --out")
    if config.out.is_dir() and not (config.out / LOCK).is_file() and any(config.out.iterdir()):
        raise OutputError(f"{config.out} holds something else than a sweep's results: name another --out")
    _ask_disk(config, made)
    return made


def _ask_disk(config: SweepConfig, made: Sequence[Variant]) -> None:
    """Raise `DiskError` unless there is room for all variants that are not there yet, as near as can be told before."""
    from punie_mlx.export.quantize import RECIPES
    from punie_mlx.hardware import require_disk

    weights = weight_bytes(config.model) / 2  # float16
    needed = 0.0
    for one in made:
        if not (config.out / "models" / one.label).is_dir():
            wider = RECIPES["mixed"].wider[one.bits] if one.recipe == "mixed" else one.bits
            needed += weights * ((one.bits + wider) / 2 + 32 / one.group_size) / 8
    require_disk(config.out, int(needed), f"the sweep over {len(made)} quantized models")


def weight_bytes(directory: Path) -> int:
    """Size of the weights in a model's or adapter's directory."""
    return sum(p.stat().st_size for p in directory.glob("*.safetensors"))


# ---- the stages ----


@dataclass(frozen=True)
class Held:
    """The held-out turns that the divergence is measured on."""

    split: str
    rows: int
    turns: tuple[Any, ...]
    found: int

    @property
    def hash(self) -> str:
        return identity.hash_json([[list(said.tokens), said.start] for said in self.turns])

    def to_json(self) -> Json:
        tokens = sum(said.turn for said in self.turns)
        return {"split": self.split, "rows": self.rows, "turns": len(self.turns), "turns_found": self.found,
                "positions": tokens, "hash": self.hash}  # fmt: skip


@dataclass
class Measured:
    """A variant, the stage that makes it, and what was measured on it."""

    variant: Variant
    stage: Stage
    fingerprint: str
    stages: list[Stage] = field(default_factory=list)
    """What needs its weights."""
    run: Path = Path()
    divergence: Json = field(default_factory=dict)

    def facts(self) -> Json:
        manifest = identity.read_manifest(self.stage.path) or {}
        v = self.variant
        return {
            "label": v.label, "what": "quantized", "bits": v.bits, "group_size": v.group_size, "recipe": v.recipe,
            "bytes": manifest["weight_bytes"], "bits_per_weight": manifest["bits_per_weight"], "kl": self.divergence,
            "fingerprint": self.fingerprint, "run": self.run, "dwq": manifest.get("dwq"),
        }  # fmt: skip


class _Road:
    """The stages of one sweep, in the order in which they are asked for."""

    def __init__(self, config: SweepConfig, runner: Runner) -> None:
        self.config = config
        self.runner = runner
        self.fused = identity.fingerprint(config.model)
        self.dwq = _hash_rows(config.dwq) if config.dwq else ""

    @cached_property
    def held(self) -> Held:
        from punie_mlx.chat.render import load_tokenizer
        from punie_mlx.export.prompts import assistant_turns, held_out, shuffled

        split, rows = held_out(self.config.prompts)
        turns = shuffled(assistant_turns(rows, load_tokenizer(self.config.model)), self.config.seed)
        return Held(split, len(rows), tuple(turns[: self.config.turns]), len(turns))

    @cached_property
    def teacher(self) -> Any:
        """The float16 model's log-probabilities, computed once for all variants that are measured."""
        from punie_mlx.export.divergence import Teacher

        with bar("asking the float16 model", "float16 model") as step:
            return Teacher.of(self.config.model, self.held.turns, progress=step)

    def variant(self, one: Variant) -> Measured:
        """`one`, made, and measured against float16 and on the suite."""
        stage = self._quantize(one)
        # Of a variant that was dropped it is known what it was.
        kept = None if self.runner.restart else dropped(stage)
        fingerprint = kept or self.runner.run(stage)
        found = Measured(one, stage, fingerprint)
        divergence = self._divergence(one, stage.path, fingerprint)
        score = self._score(one.label, stage.path, None, {"model": fingerprint})
        found.stages = [divergence, score]
        if kept and not all(map(finished, found.stages)):
            self.runner.run(stage)
        self.runner.run(divergence)
        self.runner.run(score)
        found.divergence = json.loads((divergence.path / RESULT).read_text(encoding="utf-8"))
        found.run = score.path / RESULT
        return found

    def controls(self) -> list[Json]:
        """Rows of the reference, and of base and adapter where they are given; the reference is the first."""
        config = self.config
        given = [(REFERENCE, "fused", config.model, None)]
        if config.base:
            given.append(("base", "base", config.base, None))
        if config.base and config.adapter:
            given.append(("adapter", "adapter", config.base, config.adapter))
        rows = []
        for label, what, model, adapter in given:
            fingerprint = identity.fingerprint(model, adapter)
            stage = self._score(label, model, adapter, {"model": fingerprint})
            self.runner.run(stage)
            size = weight_bytes(model) + (weight_bytes(adapter) if adapter else 0)
            width = _width_of(model)
            rows.append({
                "label": label, "what": what, "bits": width[0], "group_size": width[1], "recipe": None, "bytes": size,
                "bits_per_weight": 16.0 if width[0] == 16 and not adapter else None, "kl": None,
                "fingerprint": fingerprint, "run": stage.path / RESULT,
            })  # fmt: skip
        return rows

    def speed(self, measured: Sequence[Measured]) -> Json:
        """Tokens a second of the reference and all variants, from one process."""
        stage = self._speed(measured)
        if not finished(stage) or self.runner.restart:
            for one in measured:
                if dropped(one.stage):
                    self.runner.run(one.stage)
        self.runner.run(stage)
        return json.loads((stage.path / RESULT).read_text(encoding="utf-8"))

    def keep(self, one: Measured) -> None:
        """Have the picked variant's weights, which an earlier sweep may have dropped."""
        if dropped(one.stage):
            self.runner.run(one.stage)

    def drop(self, one: Measured) -> None:
        """Delete a variant's weights; its manifest stays and says what it was."""
        if not dropped(one.stage):
            manifest = identity.read_manifest(one.stage.path) or {}
            identity.write_manifest(one.stage.path, {**manifest, "dropped": True})
            for path in one.stage.path.glob("*.safetensors"):
                path.unlink()
            self.runner.say(f"dropped the weights of {one.variant.label}")

    # ---- one stage each ----

    def _quantize(self, one: Variant) -> Stage:
        config = self.config
        inputs = {"model": self.fused}
        settings: Json = {"bits": one.bits, "group_size": one.group_size, "recipe": one.recipe}
        if one.recipe == "dwq":
            from punie_mlx.export.dwq import DwqConfig

            tuning = DwqConfig(steps=config.dwq_steps, seed=config.seed)
            settings["dwq"] = asdict(tuning)
            inputs |= {"rows": self.dwq, "prompts": self.held.hash}

        def make(tmp: Path) -> object:
            if one.recipe == "dwq":
                return _distill(config, one, tmp, tuning, self.held.turns)
            from punie_mlx.export.quantize import quantize

            return quantize(
                config.model, tmp, bits=one.bits, group_size=one.group_size, recipe=one.recipe, overwrite=True
            )

        path = config.out / "models" / one.label
        return Stage(f"quantize {one.label}", path, inputs, settings, make, identity.fingerprint)

    def _divergence(self, one: Variant, model: Path, fingerprint: str) -> Stage:
        def make(tmp: Path) -> None:
            from punie_mlx.export.divergence import divergence

            teacher = self.teacher
            with bar(f"measuring {one.label}", one.label) as step:
                found = divergence(teacher, model, step)
            identity.write_json(tmp / RESULT, found.to_json())

        inputs = {"float16": self.fused, "model": fingerprint, "prompts": self.held.hash}
        path = self.config.out / "divergence" / one.label
        return Stage(f"divergence {one.label}", path, inputs, {}, make, hash_tree)

    def _score(self, label: str, model: Path, adapter: Path | None, inputs: Mapping[str, str]) -> Stage:
        config = self.config
        inputs = {**inputs, **{f"suite {path.name}": identity.hash_file(path) for path in config.suites}}
        settings = {"limit": config.limit, "concurrency": config.concurrency, "seed": config.seed,
                    "punie-mlx": __version__}  # fmt: skip

        def make(tmp: Path) -> None:
            from punie_mlx.evals.runner import EvalConfig, evaluate

            # Beside the stage, not in it: what is finished of a run that is stopped is not lost with the directory.
            work = config.out / WORK / f"{label}-{stage.key[:12]}"
            work.mkdir(parents=True, exist_ok=True)
            told = EvalConfig(
                model=model, adapter=adapter, suites=config.suites, out=work / RESULT, limit=config.limit,
                concurrency=config.concurrency, seed=config.seed, label=label, restart=config.restart,
            )  # fmt: skip
            with bar(f"loading {label}", f"{label}: {{}} passed") as step:
                evaluate(told, step)
            shutil.copyfile(work / RESULT, tmp / RESULT)
            shutil.rmtree(work)

        stage = Stage(f"score {label}", config.out / "runs" / label, inputs, settings, make, hash_tree)
        return stage

    def _speed(self, measured: Sequence[Measured]) -> Stage:
        models = {REFERENCE: self.config.model, **{m.variant.label: m.stage.path for m in measured}}
        inputs = {REFERENCE: self.fused, **{m.variant.label: m.fingerprint for m in measured}}
        inputs["prompts"] = self.held.hash

        def make(tmp: Path) -> None:
            identity.write_json(tmp / RESULT, _measure_speed(models, self.held.turns))

        return Stage("speed", self.config.out / "speed", inputs, {}, make, hash_tree)


def dropped(stage: Stage) -> str | None:
    """The fingerprint of what `stage` made, if its weights were deleted since; None where they were not."""
    manifest = identity.read_manifest(stage.path) or {}
    entry = manifest.get("stage") or {}
    return entry["output"] if manifest.get("dropped") and entry.get("key") == stage.key else None


PROMPTS, TOKENS = 3, 64  # of the speed: sequences of each model, and tokens of each


def _measure_speed(models: Mapping[str, Path], turns: Sequence[Any]) -> Json:
    """Each model once, and the reference again in the end: what that differs by is the machine's doing."""
    from punie_mlx.export.speed import decode_rate
    from punie_mlx.hardware import on_cpu

    prompts = turns[:PROMPTS]
    found = {}
    with bar("measuring the speed", "speed of {}") as step:
        for i, (label, model) in enumerate(models.items()):
            step(i, len(models) + 1, label)
            found[label] = asdict(decode_rate(model, prompts, TOKENS))
        again = decode_rate(models[REFERENCE], prompts, TOKENS)
    first = found[REFERENCE]["tokens_per_second"]
    return {
        "models": found,
        "reference_again": asdict(again),
        "drift": again.tokens_per_second / first - 1,
        "how": f"decode rate of the bare engine, one sequence, {TOKENS} tokens, median of {len(prompts)} prompts"
        + ("; on a CPU quantized layers are computed as dense float32, as the server does" if on_cpu() else ""),
    }


def _distill(config: SweepConfig, one: Variant, out: Path, tuning: Any, away: Sequence[Any]) -> object:
    from punie_mlx.export.dwq import distill

    assert config.dwq is not None  # or there would be no such variant
    with bar(f"tuning {one.label}", f"{one.label}: KL {{:.2g}}") as step:
        return distill(
            config.model, out, data=config.dwq, bits=one.bits, group_size=one.group_size, config=tuning,
            away=frozenset(away), overwrite=True, progress=step,
        )  # fmt: skip


def _hash_rows(directory: Path) -> str:
    from punie_mlx.corpus.rows import SPLITS, read_split

    read_split(directory, "train")
    return identity.hash_files([p for p in directory.glob("*.jsonl") if p.stem in SPLITS], directory)


def _width_of(model: Path) -> tuple[int, int | None]:
    """Bits and group size of a model by its config; 16 and None where it is not quantized."""
    from punie_mlx.export import store

    config = store.read_config(model)
    told = next((config[k] for k in store.QUANTIZATION_KEYS if config.get(k)), {})
    return told.get("bits", 16), told.get("group_size")


# ---- the verb ----


def run_verb(config: SweepConfig, *, as_json: bool) -> Json:
    """Run, print the result as tables or JSON, and return it. Raises what `run_sweep` raises."""
    try:
        result = run_sweep(config)
    except KeyboardInterrupt:
        to_stderr("punie-mlx: stopped; the same command goes on where it was")
        raise
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return result
    from rich.console import Console

    from punie_mlx.sweep_result import table

    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table(result))
    console.print(result["why"], highlight=False, markup=False, soft_wrap=True)
    console.print(f"{config.out / 'sweep.json'}, {config.out / 'accuracy_size.svg'}", highlight=False, soft_wrap=True)
    return result
