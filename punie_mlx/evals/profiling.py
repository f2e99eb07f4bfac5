"""The profile of a model: start its server, run cases one after the other, and say where the time went.

    punie-mlx profile --model DIR --suite FILE [--compare-stock] [--json OUT]

With a comparison the requests of that run are sent again, streamed, to two fresh servers on the same model: ours and
`mlx_lm.server` (see `replay.py`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.evals import replay
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.profile import profile_of
from punie_mlx.evals.runner import EvalConfig, Progress, evaluate
from punie_mlx.evals.server_process import STARTUP_SECONDS, serving
from punie_mlx.evals.subject import HTTP


@dataclass(frozen=True)
class ProfileConfig:
    """What to profile, on what, and beside what."""

    model: Path | None = None
    """The model directory; needed unless `url` and `fingerprint` are given."""
    adapter: Path | None = None
    suites: tuple[Path, ...] = ()
    url: str | None = None
    """A running server to profile instead of starting one."""
    fingerprint: str | None = None
    """The model that the server at `url` must serve."""
    through: str = "pydantic-ai"
    limit: int | None = None
    """Only the first so many cases of each suite; the very first is the warm-up."""
    repeats: int = 1
    compare_stock: bool = False
    """Send the requests to `mlx_lm.server`, too."""
    stock_model: Path | None = None
    """What that is given, where it is not the same files: the weights in another precision, say."""
    startup: float = STARTUP_SECONDS
    agent: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        if self.through not in HTTP:
            raise ConfigError(f"--through {self.through}: a server is profiled, choose {' or '.join(HTTP)}")
        if self.compare_stock and (self.model is None or self.url is not None):
            raise ConfigError("--compare-stock starts both servers itself: pass --model DIR, and no --url")
        if self.stock_model is not None and not self.compare_stock:
            raise ConfigError("--stock-model is what --compare-stock compares with: pass that, too")
        self.evaluation(self.url)  # which checks the rest

    def evaluation(self, url: str | None) -> EvalConfig:
        """The run that is profiled."""
        return EvalConfig(
            model=self.model,
            adapter=self.adapter,
            suites=self.suites,
            url=url,
            fingerprint=self.fingerprint,
            through=self.through,
            limit=self.limit,
            repeats=self.repeats,
            concurrency=1,
            allow_missing_tools=True,  # it is timed, not scored
            agent=self.agent,
        )


def profile(config: ProfileConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run the cases and return their profile. Raises what `evaluate` raises."""
    with _served(config) as (url, warm_up):
        run = evaluate(config.evaluation(url), progress)
    found = profile_of(run, warm_up)
    if config.compare_stock:
        bodies = [x["request"] for c in run["cases"] for x in c["trajectory"] if "messages" in (x["request"] or {})]
        if not bodies:
            raise DataError("no request was kept whole, so both servers cannot be asked: leave out --compare-stock")
        found |= compare_stock(config, bodies, {k: found[k] for k in ("model", "suite", "settings", "versions")})
    return found


@contextmanager
def _served(config: ProfileConfig) -> Generator[tuple[str, dict[str, Any]]]:
    """Where the server is, and what is known of its start."""
    if config.url is not None:
        yield config.url, {}
        return
    assert config.model is not None  # the configuration was checked
    began = time.perf_counter()
    with serving(config.model, config.adapter, seconds=config.startup) as (_, ready):
        yield ready.url, {"load": time.perf_counter() - began, "start": ready.more.get("start")}


def compare_stock(config: ProfileConfig, bodies: Sequence[Any], about: dict[str, Any]) -> dict[str, Any]:
    """Both servers' profiles of `bodies`, and the ratios of ours to stock's. Raises `ServerError`."""
    assert config.model is not None
    others = config.stock_model or config.model
    with ExitStack() as servers:
        targets = [
            servers.enter_context(replay.ours(config.model, config.adapter, config.startup)),
            servers.enter_context(replay.stock(others, config.adapter, config.startup)),
        ]
        found = replay.compare(targets, bodies, repeats=config.repeats, seconds=config.agent.timeout)
    served = [{}, {"model": {**about["model"], "path": str(others), "fingerprint": _fingerprint(config, others)}}]
    profiles = [
        replay.profile_of_target(target, streamed, {**about, **model})
        for target, streamed, model in zip(targets, found, served, strict=True)
    ]
    return {"comparison": profiles, "ratios": replay.ratios(*found)}


def _fingerprint(config: ProfileConfig, model: Path) -> str:
    return identity.fingerprint(model, config.adapter if model == config.model else None)
