"""The record of everything that an agent did with one case, and how agents are told to run.

Three drivers make such a record of the same case: PydanticAI's agent and the `openai` client, both over HTTP, and the
model itself without a server. What is scored is what the model wrote: an exchange is on record also where the agent
rejected it. A first try that fails is a failure; calls that an agent had to ask for again are `refused`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from punie_mlx.corpus.suite import Case
from punie_mlx.errors import ConfigError
from punie_mlx.evals.scratch import Scratch
from punie_mlx.evals.stopwatch import Stopwatch

BROKEN = ("malformed", "truncated")
"""Kinds of problems that say that a call could not be read."""


@dataclass(frozen=True)
class AgentSettings:
    """How each case is run."""

    max_tokens: int = 1024
    """Tokens of one response. Too few cut a call in two."""
    request_limit: int = 4
    """Requests for one query: a call, its result and the answer need two. Each follow-up has as many."""
    timeout: float = 600.0
    """Seconds that one response may take."""
    temperature: float = 0.0
    retries: int = 0
    """How often an agent may ask again after a call that it cannot execute, or an empty answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.request_limit < 1:
            raise ConfigError("--max-tokens and --requests must be at least 1")
        if self.temperature < 0 or self.retries < 0:
            raise ConfigError("--temperature and --retries cannot be below 0")


@dataclass
class Call:
    """A call that the model made, and what became of it."""

    turn: int
    id: str
    name: str
    arguments: Any
    """The arguments, read from their JSON; the text itself where it is no JSON."""
    result: str | None = None
    ok: bool | None = None
    """Whether the tool did what it was asked; None where it was never executed."""
    seconds: float = 0.0
    at: float | None = None
    """When it was executed, in seconds since the case began."""
    refused: bool = False
    """The agent could not execute it and asked again."""


@dataclass
class Turn:
    """One exchange with the server, or one generation of the model without one."""

    seconds: float
    status: int
    message: dict[str, Any]
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    at: float = 0.0
    """When it began, in seconds since the case began."""
    request: Any = None
    response: Any = None
    trace: dict[str, Any] | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)
    """What the reader of the calls said of them: each with its kind, detail and raw text."""

    @property
    def silent(self) -> bool:
        """Neither a call nor a word."""
        return not self.message.get("tool_calls") and not self.message.get("content")

    @property
    def broken(self) -> int:
        """How many calls could not be read."""
        calls = self.message.get("tool_calls") or []
        unread = sum(not isinstance(arguments_of(c), Mapping) for c in calls)
        return unread + sum(p.get("kind") in BROKEN for p in self.problems)


@dataclass
class Run:
    """The whole trajectory of one case."""

    turns: list[Turn] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    answer: str | None = None
    error: str | None = None
    limited: bool = False
    """The run was ended by the limit on requests."""
    lost: bool = False
    """The server did not answer at all."""
    retried: int = 0
    """How often the agent had to ask again."""
    seconds: float = 0.0
    files: dict[str, str] | None = None
    """Path → text of the scratch directory afterwards; None where it was not looked at."""
    began: float = field(default_factory=time.perf_counter, repr=False, compare=False)
    client: Stopwatch = field(default_factory=Stopwatch, repr=False, compare=False)
    """Runs while neither the server nor a tool is waited for: the agent's own work."""
    recorder: Stopwatch = field(default_factory=Stopwatch, repr=False, compare=False)
    """Runs while an exchange is put on record."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, as the server saw it, and its last response."""
        return [*self.sent, *(t.message for t in self.turns[-1:])]

    def now(self) -> float:
        """Seconds since the case began."""
        return time.perf_counter() - self.began

    def add(self, turn: Turn) -> None:
        """Put an exchange and its calls on record."""
        self.turns.append(turn)
        for call in turn.message.get("tool_calls") or []:
            name = (call.get("function") or {}).get("name") or ""
            self.calls.append(Call(len(self.turns), call.get("id") or "", name, arguments_of(call)))

    def execute(self, case: Case, scratch: Scratch, id: str, name: str, arguments: Mapping[str, Any]) -> str:
        """Run the tool of the last call of that id that has no result yet, and return what it says."""
        watched = self.client.halt()
        at, start = self.now(), time.perf_counter()
        outcome = scratch.call(name, arguments, case.schemas[name])
        for call in reversed(self.calls):
            if call.id == id and call.result is None:
                call.result, call.ok = outcome.text, outcome.ok
                call.at, call.seconds = at, time.perf_counter() - start
                break
        if watched:
            self.client.go()
        return outcome.text

    def refuse(self, id: str) -> None:
        """The last call of that id was not executed, and is asked for again."""
        for call in reversed(self.calls):
            if call.id == id and call.result is None:
                call.refused = True
                break

    def first_try(self) -> Run:
        """The same run as it looks where nothing is asked for again: it ends with the first response that was refused.

        A response is refused for one of its calls, or because it says nothing.
        """
        if not self.retried:
            return self
        silent = (i for i, turn in enumerate(self.turns, 1) if turn.silent)
        last = min([*(c.turn for c in self.calls if c.refused), *silent], default=len(self.turns))
        error = f"the agent had to ask again ({self.retried} times)"
        calls = [c for c in self.calls if c.turn <= last]
        return replace(self, turns=self.turns[:last], calls=calls, answer=None, error=error, limited=False, lost=False)

    def forgiven(self) -> Run:
        """The same run as it looks where asking again is allowed: without what was refused."""
        return replace(self, calls=[c for c in self.calls if not c.refused], retried=0)


class Driver(Protocol):
    """Runs cases one at a time or several at once."""

    async def run(self, case: Case, scratch: Scratch, *, seed: int | None = None) -> Run:
        """Run one case to its end. What goes wrong is part of the record; nothing is raised but cancellation."""
        ...


def arguments_of(call: Mapping[str, Any]) -> Any:
    """The arguments of a call of the API, read from their JSON; the text itself where it is no JSON.

    No text at all stands for no arguments, as clients take it.
    """
    arguments: Any = (call.get("function") or {}).get("arguments")
    if arguments in (None, ""):
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, TypeError, RecursionError):  # the last: brackets in brackets without end
        return arguments
