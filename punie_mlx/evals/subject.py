"""What is scored, and how it is reached: a model behind a server that is ours or not, or in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from punie_mlx.errors import ConfigError, FingerprintError, InputError, ServerError
from punie_mlx.evals.agent import AgentSettings, Driver
from punie_mlx.evals.recorded import connect
from punie_mlx.evals.sanity import bare_tokens
from punie_mlx.evals.server_process import Ready, ServerProcess

PROBE_SECONDS = 30.0
HTTP = ("pydantic-ai", "openai")
THROUGH = (*HTTP, "model")
"""Ways to reach a model: PydanticAI's agent or the plain client over HTTP, or no server at all."""


@dataclass(frozen=True)
class Started:
    """Where the model answers: at `url`, or in `process` alone."""

    url: str = ""
    process: ServerProcess | None = None
    ready: Ready | None = None

    def died(self) -> ServerError | InputError | None:
        """The error that tells how the process died, or None where it lives (or is not ours)."""
        if self.process is None or self.process.alive():
            return None
        return self.process.death("while cases were running")


@dataclass(frozen=True)
class Subject:
    """A model that answers.

    name: that under which it is served. identify: raises `FingerprintError` unless it is still the model asked for,
    `ServerError` where it does not say. answers: raises `ServerError` where nobody answers any more. bare: the tokens
    of a record's first prompt without its tools, where they have to be asked for.
    """

    name: str
    driver: Driver
    identify: Callable[[], Awaitable[object]]
    answers: Callable[[], Awaitable[object]]
    bare: Callable[[Mapping[str, Any]], Awaitable[int | None]]


@asynccontextmanager
async def subject(through: str, started: Started, wanted: str, settings: AgentSettings) -> AsyncGenerator[Subject]:
    """The model `wanted`, reached `through` one of `THROUGH`. Raises `FingerprintError`, `ServerError`."""
    if through == "model":
        yield _direct(started, wanted, settings)
        return
    async with connect(started.url, settings.timeout) as client:

        async def identify() -> str:
            return await _identify(client, started, wanted)

        async def answers() -> None:
            await _answers(client, started)

        async def bare(record: Mapping[str, Any]) -> int | None:
            return await bare_tokens(client, record)

        name = await identify()
        yield Subject(name, _http_driver(through, client, name, settings), identify, answers, bare)


def _http_driver(through: str, client: openai.AsyncOpenAI, name: str, settings: AgentSettings) -> Driver:
    if through == "openai":
        from punie_mlx.evals.drive_openai import OpenAIDriver

        return OpenAIDriver(client, name, settings)
    from punie_mlx.evals.drive_pydantic_ai import PydanticAIDriver

    return PydanticAIDriver(client, name, settings)


def _direct(started: Started, wanted: str, settings: AgentSettings) -> Subject:
    from punie_mlx.evals.drive_model import ModelDriver

    assert started.process and started.ready  # `serving` or `answering` made them
    ready = started.ready

    async def answers() -> None:
        if dead := started.died():
            raise dead

    async def identify() -> None:
        await answers()
        if ready.fingerprint != wanted:
            raise FingerprintError(f"the process answers with {ready.fingerprint}, not with {wanted}")

    async def bare(record: Mapping[str, Any]) -> None:
        return None  # its prompts are all known

    return Subject(ready.model, ModelDriver(started.process, ready.more, settings), identify, answers, bare)


async def _identify(client: openai.AsyncOpenAI, started: Started, wanted: str) -> str:
    """The name under which the server serves the model `wanted`. Raises `FingerprintError`, `ServerError`."""
    try:
        listed = (await client.with_options(timeout=PROBE_SECONDS).models.list()).data
    except (openai.OpenAIError, ValueError) as e:
        raise started.died() or ServerError(f"the server at {started.url} does not list its models: {e}") from e
    found = {m.id: (m.model_extra or {}).get("fingerprint") for m in listed or []}
    for name, fingerprint in found.items():
        if fingerprint == wanted:
            return name
    seen = ", ".join(f"{n} ({f or 'no fingerprint'})" for n, f in found.items()) or "no model"
    raise FingerprintError(
        f"the server at {started.url} serves {seen}, not the model asked for ({wanted}): nothing was scored"
    )


async def _answers(client: openai.AsyncOpenAI, started: Started) -> None:
    if dead := started.died():
        raise dead
    try:
        await client.with_options(timeout=PROBE_SECONDS).models.list()
    except openai.APIConnectionError as e:
        raise started.died() or ServerError(f"the server at {started.url} does not answer any more: {e}") from e


def base_url(url: str) -> str:
    """`url` as the base of the OpenAI routes. Raises `ConfigError` where it is none."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url} is no address: give something like http://127.0.0.1:8080/v1")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))
