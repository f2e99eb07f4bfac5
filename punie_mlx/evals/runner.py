"""The evaluation: start the model (or find it), make sure that it is the one asked for, run the cases, score.

    punie-mlx eval --model DIR [--adapter DIR] --suite FILE --json OUT

The result is written whole or not at all, and what was started is stopped however this ends. Until OUT is written,
finished cases lie in a journal beside it, and the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.corpus.suite import Case, Suite, read_suite
from punie_mlx.errors import ConfigError, DataError, FingerprintError, OutputError
from punie_mlx.evals import sanity, selfcheck
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.hosted import host
from punie_mlx.evals.journal import Journal, journal
from punie_mlx.evals.record import Outcome, Trial, record
from punie_mlx.evals.scratch import Scratch, ToolError
from punie_mlx.evals.server_process import STARTUP_SECONDS, answering, serving
from punie_mlx.evals.subject import THROUGH, Started, Subject, base_url, subject
from punie_mlx.evals.summary import summarize
from punie_mlx.files import atomic_file

FORMAT = 2  # of the result file
SEEDS = 2**31

Record = dict[str, Any]
Progress = Callable[[int, int, int], None]
"""Called with the cases done, the cases in all, and the cases passed so far."""
Say = Callable[[str], None]


def _to_stderr(line: str) -> None:
    print(f"punie-mlx: {line}", file=sys.stderr)


@dataclass(frozen=True)
class EvalConfig:
    """What to score, on what, how often, and where the result goes."""

    model: Path | None = None
    """The model directory; needed unless `url` and `fingerprint` are given."""
    adapter: Path | None = None
    suites: tuple[Path, ...] = ()
    out: Path | None = None
    """The JSON file to write; None writes nothing."""
    url: str | None = None
    """A running server to score instead of starting one."""
    fingerprint: str | None = None
    """The model that the server at `url` must serve."""
    through: str = "pydantic-ai"
    """One of `subject.THROUGH`."""
    limit: int | None = None
    """Only the first so many cases of each suite."""
    repeats: int = 1
    """How often each case is run."""
    seed: int = 0
    """Decides the seed of each run, where tokens are drawn at all."""
    concurrency: int = 4
    """Cases in flight at once. Seconds a query say something about the model at 1 only."""
    label: str | None = None
    """What the model is called in tables; None takes the directory's name."""
    restart: bool = False
    """Throw away what an earlier session left unfinished."""
    allow_missing_tools: bool = False
    """Score also where the prompt does not show the model its tools."""
    startup: float = STARTUP_SECONDS
    """Seconds that the model may take to load."""
    serve_options: tuple[str, ...] = ()
    """What else the server is told that is started."""
    agent: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        if not self.suites:
            raise ConfigError("no suite was given: pass --suite FILE")
        self._check_source()
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least one case must be run")
        if self.concurrency < 1:
            raise ConfigError(f"--concurrency {self.concurrency}: at least one case must be in flight")
        if self.repeats < 1:
            raise ConfigError(f"--repeats {self.repeats}: each case must be run at least once")

    def _check_source(self) -> None:
        if self.through not in THROUGH:
            raise ConfigError(f"--through {self.through}: choose one of {', '.join(THROUGH)}")
        if self.url is None and self.model is None:
            raise ConfigError("nothing to score: pass --model DIR, or --url URL with --fingerprint HASH")
        if self.url is None and self.fingerprint is not None:
            raise ConfigError("--fingerprint goes with --url: the fingerprint of --model is computed")
        if self.url is not None and self.through == "model":
            raise ConfigError("--through model runs without a server: leave --url out, and pass --model DIR")
        if self.url is not None and (self.model is None) == (self.fingerprint is None):
            raise ConfigError(
                "--url needs to know the model it must serve: pass either --fingerprint HASH or --model DIR"
            )
        if self.adapter is not None and self.model is None:
            raise ConfigError("--adapter needs --model: the model that it is laid over")
        if self.serve_options and (self.url is not None or self.through == "model"):
            raise ConfigError("there is no server to start that could take options: leave them out")

    @property
    def at_once(self) -> int:
        """Cases in flight at once: a model without a server answers one at a time."""
        return 1 if self.through == "model" else self.concurrency

    def settings(self) -> dict[str, Any]:
        """What decides the records beside model and suites."""
        told = {n: getattr(self, n) for n in ("through", "limit", "repeats", "seed", "url")}
        more = {"concurrency": self.at_once, "serve_options": list(self.serve_options)}
        return {**asdict(self.agent), **told, **more}


def evaluate(config: EvalConfig, progress: Progress | None = None, say: Say = _to_stderr) -> dict[str, Any]:
    """Run the evaluation and return the result (written to `config.out` as well).

    Raises:
        InputError: a suite, model or output that cannot be used.
        FingerprintError: another model is served; nothing was scored.
        ServerError: the server or process died or does not answer.
    """
    suites = [read_suite(p) for p in config.suites]
    if len({s.name for s in suites}) < len(suites):
        raise ConfigError("two suites have the same file name: their cases could not be told apart in the result")
    tried = selfcheck.check([case for s in suites for case in s.cases[: config.limit]])
    if config.out is not None:
        _check_output(config.out)
    wanted = config.fingerprint or identity.fingerprint(_given(config.model), config.adapter)
    start = time.perf_counter()
    with _journal(config, wanted, suites) as kept:
        work = _Work(config, wanted, plan(config, suites), kept, progress, tried)
        if work.records:
            work.tell()
            say(f"going on after {len(work.records)} of {len(work.trials)} cases that are done already")
        with _started(config, wanted) as started, tempfile.TemporaryDirectory(prefix="punie-mlx-eval-") as scratch:
            name = asyncio.run(_score_all(work, started, Path(scratch)))
        result = _result(work, name, suites, time.perf_counter() - start)
        if config.out is not None:
            write(config.out, result)
        if kept:
            kept.finish()
    return result


def plan(config: EvalConfig, suites: Sequence[Suite]) -> list[Trial]:
    """All runs of all cases: each suite whole, then again. Seeds differ by case and repeat, and stay what they are."""
    drawn = config.agent.temperature > 0
    return [
        Trial(s.name, case, repeat, _seed(config.seed, s.name, case.id, repeat) if drawn else None)
        for repeat in range(config.repeats)
        for s in suites
        for case in s.cases[: config.limit]
    ]


def _seed(*parts: Any) -> int:
    return int(identity.hash_json(parts)[:16], 16) % SEEDS


def _given(model: Path | None) -> Path:
    assert model is not None  # EvalConfig checked it
    return model


def _check_output(out: Path) -> None:
    """Find out before the work that `out` can be written."""
    if out.is_dir():
        raise OutputError(f"{out} is a directory: name the JSON file to write")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.absolute().parent).close()
    except OSError as e:
        raise OutputError(f"{out} cannot be written: {e.strerror or e}") from e


def _journal(config: EvalConfig, wanted: str, suites: Sequence[Suite]) -> Any:
    """The journal of this evaluation, as a context manager; of None where nothing is written."""
    if config.out is None:
        return nullcontext()
    facts = {
        "model": wanted,
        "suites": {s.name: s.hash for s in suites},
        "settings": config.settings(),
        "versions": identity.versions(),
    }
    return journal(config.out, facts, restart=config.restart)


# ---- the cases ----


class _Work:
    """What is to be run, what is done, and where it is kept."""

    def __init__(
        self,
        config: EvalConfig,
        wanted: str,
        trials: Sequence[Trial],
        kept: Journal | None,
        progress: Progress | None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.config, self.wanted, self.trials = config, wanted, trials
        self._kept, self._progress = kept, progress
        self._before = warnings
        self.warnings: list[str] = list(warnings)
        self._bare: int | None = None  # tokens of the first prompt without its tools; 0 where nobody tells
        self.records = {(r["suite"], r["id"], r["repeat"]): r for r in (kept.records if kept else ())}
        self._passed = sum(r["passed"] for r in self.records.values())
        self._warm = False  # whether a case was run in this session

    @property
    def left(self) -> list[Trial]:
        return [t for t in self.trials if t.key not in self.records]

    @property
    def done(self) -> list[Record]:
        """The records, in the order of the trials."""
        return [self.records[t.key] for t in self.trials if t.key in self.records]

    def judged(self, outcome: Outcome) -> None:
        """A trial is finished. Raises `FingerprintError` where another model answered it."""
        made = {**record(outcome), "warm_up": not self._warm}
        self._warm = True
        sanity.same_model([made], self.wanted)
        if self._kept:
            self._kept.add(made)
        self.records[outcome.trial.key] = made
        self._passed += made["passed"]
        self.tell()

    def tell(self) -> None:
        """Tell how far it is."""
        if self._progress:
            self._progress(len(self.records), len(self.trials), self._passed)

    async def check_prompts(self, model: Subject) -> None:
        """Raise `ModelError` where the model was not shown what it is scored on."""
        done = self.done
        if self._bare is None:
            self._bare = await model.bare(done[0]) or 0
        found = sanity.check(done, allow=self.config.allow_missing_tools, bare=self._bare or None)
        self.warnings = [*self._before, *found]

    def take_back(self) -> None:
        """Nothing of this session counts."""
        if self._kept:
            self._kept.take_back()


async def _score_all(work: _Work, started: Started, scratch: Path) -> str:
    """Run what is left and return the name of the model."""
    config = work.config
    async with subject(config.through, started, work.wanted, config.agent) as model:

        async def run(trial: Trial) -> Outcome:
            return await _run(model, trial, config.agent, scratch)

        left = work.left
        try:
            # The first alone: the warm-up, and what can be told of the prompts is told before the rest is run. They are
            # looked at also where nothing is left: the session that ran the cases may have been stopped before it did.
            for trials, concurrency in ((left[:1], 1), (left[1:], config.at_once)):
                if trials:
                    await host(trials, run, work.judged, concurrency=concurrency)
                await work.check_prompts(model)
            # A server that was replaced in the meantime is not the one to be scored.
            await model.identify()
        except FingerprintError:
            work.take_back()
            raise
    return model.name


async def _run(model: Subject, trial: Trial, settings: AgentSettings, scratch: Path) -> Outcome:
    """One trial in a directory of its own. Raises `ServerError` where nobody answers any more."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        world = _world(Path(directory), trial.case)
        run = await model.driver.run(trial.case, world, seed=trial.seed)
        if trial.case.expect.files is not None:
            run.files = world.snapshot()
    if run.lost:
        # A server that is there but slow is the case's failure; one that is gone is the end of the evaluation.
        await model.answers()
    return Outcome(trial, run, settings.retries)


def _world(directory: Path, case: Case) -> Scratch:
    try:
        return Scratch(directory, case.files)
    except (ToolError, FileExistsError, NotADirectoryError, UnicodeError) as e:
        raise DataError(f"the files of case {case.id!r} cannot be made ({e}): mend the suite") from e


@contextmanager
def _started(config: EvalConfig, wanted: str) -> Generator[Started]:
    if config.url is not None:
        yield Started(base_url(config.url))
        return
    model, seconds = _given(config.model), config.startup
    if config.through == "model":
        starting = answering(model, config.adapter, seconds=seconds)
    else:
        starting = serving(model, config.adapter, seconds=seconds, serve_options=config.serve_options)
    with starting as (process, ready):
        if ready.fingerprint != wanted:
            raise FingerprintError(
                f"the server says that it serves {ready.fingerprint}, but {config.model} is {wanted}: "
                "was the model changed while it was loaded? Nothing was scored"
            )
        yield Started(ready.url, process, ready)


# ---- the result ----


def _result(work: _Work, name: str, suites: Sequence[Suite], seconds: float) -> dict[str, Any]:
    config, cases = work.config, work.done
    hashes = {s.name: s.hash for s in suites}
    return {
        "kind": "evaluation",
        "format": FORMAT,
        "summary": {**summarize(cases, config.at_once), "seconds": seconds},
        "model": _model(config, name, work.wanted),
        "suite": {
            "hash": suites[0].hash if len(suites) == 1 else identity.hash_json(hashes),
            "files": [{"name": s.name, "path": str(s.path), "hash": s.hash, "cases": len(s.cases)} for s in suites],
        },
        "settings": config.settings(),
        "versions": identity.versions(),
        "warnings": work.warnings,
        "cases": cases,
    }


def _model(config: EvalConfig, name: str, wanted: str) -> dict[str, Any]:
    directory = config.adapter or config.model
    trained = (identity.read_manifest(config.adapter) or {}) if config.adapter else {}
    return {
        "name": name,
        "label": config.label or (directory.resolve().name if directory else name),
        "path": str(config.model) if config.model else None,
        "adapter": str(config.adapter) if config.adapter else None,
        "fingerprint": wanted,
        "trained_on": (trained.get("inputs") or {}).get("data"),
    }


def write(out: Path, result: Mapping[str, Any]) -> None:
    """Write a result, each case on a line of its own, whole or not at all."""
    head = json.dumps({k: v for k, v in result.items() if k != "cases"}, indent=1, ensure_ascii=False)
    cases = ",\n".join(json.dumps(c, ensure_ascii=False) for c in result["cases"])
    text = f'{head.removesuffix("}").rstrip()},\n "cases": [\n{cases}\n ]\n}}\n'
    with atomic_file(out) as tmp:
        tmp.write_bytes(text.encode(errors="backslashreplace"))
