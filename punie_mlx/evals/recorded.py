"""An `openai` client that puts each of its exchanges on the record of the case that made it.

    async with connect(url, timeout) as client:
        run = Run()
        with recording(run):
            await client.chat.completions.create(...)

What is recorded is what went over the wire: bodies as sent and received. The server is asked for its own trace of each
answer with a header that others ignore.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import openai

from punie_mlx.evals.agent import Run, Turn

TRACE_HEADER = {"X-Punie-Trace": "1"}
TRACE_KEY = "punie_trace"
MOST_BYTES = 1_000_000
"""A longer body is cut: one runaway answer must not make a result file that nobody can open."""

_current: ContextVar[Run | None] = ContextVar("current run", default=None)


def connect(url: str, timeout: float) -> openai.AsyncOpenAI:
    """A client for `url` that records its exchanges, never retries and uses no proxy of the environment."""
    http = openai.DefaultAsyncHttpxClient(
        trust_env=False, timeout=timeout, event_hooks={"request": [_started], "response": [_finished]}
    )
    return openai.AsyncOpenAI(
        base_url=url, api_key="not-needed", max_retries=0, http_client=http, default_headers=TRACE_HEADER
    )


@contextmanager
def recording(run: Run) -> Generator[None]:
    """Put the exchanges of this block on the record of `run`, its errors too: none that a server can cause is raised.

    Time is counted from here.
    """
    token = _current.set(run)
    run.began = time.perf_counter()
    run.client.go()
    try:
        yield
    except (openai.OpenAIError, ValueError) as e:
        failed(run, e)
    finally:
        run.client.halt()
        run.seconds = run.now()
        _current.reset(token)


def failed(run: Run, error: Exception) -> None:
    """`run` ended with `error`."""
    run.error = f"{type(error).__name__}: {error}"
    run.lost = isinstance(_root(error), openai.APIConnectionError)


def _root(e: BaseException) -> BaseException:
    while not isinstance(e, openai.APIConnectionError) and e.__cause__ is not None:
        e = e.__cause__
    return e


async def _started(request: Any) -> None:
    if run := _current.get():
        run.client.halt()
    request.extensions["punie_started"] = time.perf_counter()


async def _finished(response: Any) -> None:
    """Put one exchange on the record of the run that made it."""
    run = _current.get()
    if run is None or not response.request.url.path.endswith("/chat/completions"):
        return
    await response.aread()
    ended, start = time.perf_counter(), response.request.extensions["punie_started"]
    run.recorder.go()
    request = json.loads(response.request.content)
    run.sent = request["messages"]
    turn = read_turn(response.status_code, response.text, ended - start)
    turn.at, turn.request = start - run.began, bounded(request)
    run.add(turn)
    run.recorder.halt()
    run.client.go()


def read_turn(status: int, text: str, seconds: float) -> Turn:
    """What a response body of the API says; the text itself where it is no such body."""
    try:
        body = json.loads(text)
    except ValueError:
        return Turn(seconds, status, {"role": "error", "content": text}, response=bounded(text))
    trace = body.pop(TRACE_KEY, None) if isinstance(body, dict) else None
    kept: dict[str, Any] = {"response": bounded(body), "trace": bounded(trace)}
    try:
        choice = body["choices"][0]
        problems = (choice.get("punie") or {}).get("problems") or []
        more: dict[str, Any] = {
            "finish_reason": choice.get("finish_reason"),
            "usage": body.get("usage"),
            "problems": problems,
        }
        return Turn(seconds, status, choice["message"], **more, **kept)
    except (LookupError, TypeError, AttributeError):
        return Turn(seconds, status, {"role": "error", "content": text}, **kept)


def bounded(value: Any) -> Any:
    """`value`, or the beginning of its JSON text where that is longer than `MOST_BYTES`, marked as cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    data = text.encode(errors="replace")
    if len(data) <= MOST_BYTES:
        return value
    return {"cut": True, "bytes": len(data), "text": data[:MOST_BYTES].decode(errors="ignore")}
