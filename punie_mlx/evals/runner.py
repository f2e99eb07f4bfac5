"""The evaluation: start the server (or find it), make sure that it serves the model asked for, run the cases, score.

    punie-mlx eval --model DIR [--adapter DIR] --suite FILE --json OUT

The result is written whole or not at all, and the server is stopped however this ends.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from punie_mlx import identity
from punie_mlx.corpus.suite import Case, Suite, read_suite
from punie_mlx.errors import ConfigError, FingerprintError, InputError, OutputError, ServerError
from punie_mlx.evals.agent import AgentSettings, Harness, Run, connect
from punie_mlx.evals.score import Verdict, score
from punie_mlx.evals.scratch import Scratch
from punie_mlx.evals.server_process import STARTUP_SECONDS, serving
from punie_mlx.evals.summary import summarize
from punie_mlx.files import atomic_file

PROBE_SECONDS = 30.0

Progress = Callable[[int, int, int], None]
"""Called with the cases done, the cases in all, and the cases passed so far."""


@dataclass(frozen=True)
class EvalConfig:
    """What to score, on what, and where the result goes."""

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
    limit: int | None = None
    """Only the first so many cases of each suite."""
    concurrency: int = 4
    """Cases in flight at once. Seconds a query say something about the model at 1 only."""
    startup: float = STARTUP_SECONDS
    """Seconds that the server may take to load."""
    agent: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        if not self.suites:
            raise ConfigError("no suite was given: pass --suite FILE")
        if self.url is None and self.model is None:
            raise ConfigError("nothing to score: pass --model DIR, or --url URL with --fingerprint HASH")
        if self.url is None and self.fingerprint is not None:
            raise ConfigError("--fingerprint goes with --url: the fingerprint of --model is computed")
        if self.url is not None and (self.model is None) == (self.fingerprint is None):
            raise ConfigError(
                "--url needs to know the model it must serve: pass either --fingerprint HASH or --model DIR"
            )
        if self.adapter is not None and self.model is None:
            raise ConfigError("--adapter needs --model: the model that it is laid over")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least one case must be run")
        if self.concurrency < 1:
            raise ConfigError(f"--concurrency {self.concurrency}: at least one case must be in flight")


@dataclass(frozen=True)
class _Served:
    url: str
    died: Callable[[], ServerError | InputError | None]
    """The error that tells how the server died, or None where it lives (or is not ours)."""


def evaluate(config: EvalConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run the evaluation and return the result (written to `config.out` as well).

    Raises:
        InputError: a suite, model or output that cannot be used.
        FingerprintError: the server serves another model; nothing was scored.
        ServerError: the server died or does not answer.
    """
    suites = [read_suite(p) for p in config.suites]
    if len({s.name for s in suites}) < len(suites):
        raise ConfigError("two suites have the same file name: their cases could not be told apart in the result")
    if config.out is not None:
        _check_output(config.out)
    wanted = config.fingerprint or identity.fingerprint(_given(config.model), config.adapter)
    start = time.perf_counter()
    with _server(config, wanted) as served, tempfile.TemporaryDirectory(prefix="punie-mlx-eval-") as scratch:
        name, cases = asyncio.run(_score_all(config, served, wanted, suites, Path(scratch), progress))
    result = _result(config, name, wanted, suites, cases, time.perf_counter() - start)
    if config.out is not None:
        with atomic_file(config.out) as tmp:
            tmp.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


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


@contextmanager
def _server(config: EvalConfig, wanted: str) -> Generator[_Served, None, None]:
    if config.url is not None:
        yield _Served(base_url(config.url), lambda: None)
        return
    with serving(_given(config.model), config.adapter, seconds=config.startup) as (process, ready):
        if ready.fingerprint != wanted:
            raise FingerprintError(
                f"the server says that it serves {ready.fingerprint}, but {config.model} is {wanted}: "
                "was the model changed while it was loaded? Nothing was scored"
            )
        died = lambda: None if process.alive() else process.death("while cases were running")  # noqa: E731
        yield _Served(ready.url, died)


def base_url(url: str) -> str:
    """`url` as the base of the OpenAI routes. Raises `ConfigError` where it is none."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url} is no address: give something like http://127.0.0.1:8080/v1")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))


async def _score_all(
    config: EvalConfig,
    served: _Served,
    wanted: str,
    suites: Sequence[Suite],
    scratch: Path,
    progress: Progress | None,
) -> tuple[str, list[dict[str, Any]]]:
    work = [(s.name, c) for s in suites for c in s.cases[: config.limit]]
    records: list[dict[str, Any] | None] = [None] * len(work)
    async with connect(served.url, config.agent.timeout) as client:
        name = await _identify(client, served, wanted)
        agent = Harness(client, name, config.agent)

        async def one(index: int) -> None:
            suite, case = work[index]
            records[index] = await _case(agent, served, suite, case, scratch / str(index))
            if progress:
                done = [r for r in records if r]
                progress(len(done), len(work), sum(r["passed"] for r in done))

        await one(0)  # alone: the warm-up
        left = iter(range(1, len(work)))

        async def worker() -> None:
            for index in left:
                await one(index)

        await _together([worker() for _ in range(config.concurrency)])
        # A server that was replaced in the meantime is not the one to be scored.
        await _identify(client, served, wanted)
    return name, [r for r in records if r]


async def _together(workers: Sequence[Any]) -> None:
    """Run all; where one fails, stop the others and raise its error."""
    tasks = [asyncio.ensure_future(w) for w in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _identify(client: openai.AsyncOpenAI, served: _Served, wanted: str) -> str:
    """The name under which the server serves the model `wanted`. Raises `FingerprintError`, `ServerError`."""
    try:
        listed = (await client.with_options(timeout=PROBE_SECONDS).models.list()).data
    except (openai.OpenAIError, ValueError) as e:
        raise served.died() or ServerError(f"the server at {served.url} does not list its models: {e}") from e
    found = {m.id: (m.model_extra or {}).get("fingerprint") for m in listed or []}
    for name, fingerprint in found.items():
        if fingerprint == wanted:
            return name
    seen = ", ".join(f"{n} ({f or 'no fingerprint'})" for n, f in found.items()) or "no model"
    raise FingerprintError(
        f"the server at {served.url} serves {seen}, not the model asked for ({wanted}): nothing was scored"
    )


async def _case(agent: Harness, served: _Served, suite: str, case: Case, directory: Path) -> dict[str, Any]:
    directory.mkdir()
    run = await agent.run(case, Scratch(directory, case.files))
    if run.lost:
        # A server that is there but slow is the case's failure; one that is gone is the end of the evaluation.
        if dead := served.died():
            raise dead
        await _answers(agent.client, served)
    return _record(suite, case, run, score(case, run))


async def _answers(client: openai.AsyncOpenAI, served: _Served) -> None:
    try:
        await client.with_options(timeout=PROBE_SECONDS).models.list()
    except openai.APIConnectionError as e:
        raise served.died() or ServerError(f"the server at {served.url} does not answer any more: {e}") from e


def _record(suite: str, case: Case, run: Run, verdict: Verdict) -> dict[str, Any]:
    model, tools = sum(t.seconds for t in run.turns), sum(c.seconds for c in run.calls)
    return {
        "suite": suite,
        "id": case.id,
        "category": case.category,
        "query": case.query,
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "checks": verdict.checks,
        "unread_call": verdict.unread_call,
        "error": run.error,
        "answer": run.answer,
        "raw_text": [t.message.get("content") or "" for t in run.turns],
        "expected_calls": [c.model_dump(mode="json", exclude_none=True) for c in case.expect.calls],
        "calls": [asdict(c) for c in run.calls],
        "messages": run.messages,
        "turns": [
            {"seconds": t.seconds, "status": t.status, "finish_reason": t.finish_reason, "usage": t.usage}
            for t in run.turns
        ],
        "seconds": {"wall": run.seconds, "model": model, "tools": tools},
    }


def _result(
    config: EvalConfig,
    name: str,
    wanted: str,
    suites: Sequence[Suite],
    cases: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    hashes = {s.name: s.hash for s in suites}
    return {
        "kind": "evaluation",
        "summary": {**summarize(cases, config.concurrency), "seconds": seconds},
        "model": {
            "name": name,
            "path": str(config.model) if config.model else None,
            "adapter": str(config.adapter) if config.adapter else None,
            "fingerprint": wanted,
        },
        "suite": {
            "hash": suites[0].hash if len(suites) == 1 else identity.hash_json(hashes),
            "files": [{"name": s.name, "path": str(s.path), "hash": s.hash, "cases": len(s.cases)} for s in suites],
        },
        "settings": {
            **asdict(config.agent), "retries": 0, "limit": config.limit, "concurrency": config.concurrency,
            "url": config.url,
        },
        "versions": identity.versions(),
        "cases": cases,
    }  # fmt: skip
