"""What a result file says of one run of a case: the verdicts, and everything that was said and done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from punie_mlx.corpus.suite import Case
from punie_mlx.evals.agent import Run, Turn
from punie_mlx.evals.score import Verdict, score


@dataclass(frozen=True)
class Trial:
    """One run of a case that is to be made."""

    suite: str
    case: Case
    repeat: int = 0
    seed: int | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.suite, self.case.id, self.repeat

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.case.id}#{self.repeat}"


@dataclass(frozen=True)
class Outcome:
    """A trial that was run, and how it is judged; each verdict is found once."""

    trial: Trial
    run: Run
    retries: int = 0
    """How often the agent was allowed to ask again."""

    @cached_property
    def strict(self) -> Verdict:
        """Judged by what the suite says."""
        return score(self.trial.case, self.run)

    @cached_property
    def lenient(self) -> Verdict:
        """Judged by BFCL's loose comparison. A retry forgives nothing here either: only what came before it counts."""
        return score(self.trial.case, self.run.first_try(), lenient=True)

    @property
    def reasons(self) -> list[str]:
        """Why it failed; empty where it passed. A first try that was refused is a failure."""
        asked = f"retry: the agent had to ask again ({self.run.retried} times)"
        return [*self.strict.reasons, *([asked] if self.run.retried else [])]

    @property
    def passed(self) -> bool:
        return not self.reasons

    @cached_property
    def passed_with_retry(self) -> bool | None:
        """Whether it passed where asking again is allowed; None where it was not."""
        return score(self.trial.case, self.run.forgiven()).passed if self.retries else None

    @property
    def called_when_it_should(self) -> bool:
        """Whether there is a call if and only if the case wants one."""
        return bool(self.run.calls) is self.trial.case.expects_call

    @property
    def parse_failures(self) -> int:
        """Calls that could not be read: those that the server names, and one that stands in the answer as text."""
        named = sum(t.broken for t in self.run.turns)
        last = self.run.turns[-1].broken if self.run.turns else 0
        return named + (self.strict.unread_call and not last)


def record(outcome: Outcome) -> dict[str, Any]:
    """The record of a run, as JSON."""
    trial, run, verdict = outcome.trial, outcome.run, outcome.strict
    case = trial.case
    return {
        "suite": trial.suite,
        "id": case.id,
        "category": case.category,
        "source": case.source,
        "repeat": trial.repeat,
        "seed": trial.seed,
        "query": case.query,
        "passed": outcome.passed,
        "passed_with_retry": outcome.passed_with_retry,
        "lenient": outcome.lenient.passed,
        "reasons": outcome.reasons,
        "checks": verdict.checks,
        "unread_call": verdict.unread_call,
        "parse_failures": outcome.parse_failures,
        "retried": run.retried,
        "error": run.error,
        "answer": run.answer,
        "raw_text": [t.message.get("content") or "" for t in run.turns],
        "expects_call": case.expects_call,
        "expected_calls": [c.model_dump(mode="json", exclude_none=True) for c in case.alternatives[0]],
        "expect": case.expect.model_dump(mode="json", exclude_none=True),
        "calls": [asdict(c) for c in run.calls],
        "files": run.files,
        "messages": run.messages,
        "turns": [
            {"seconds": t.seconds, "status": t.status, "finish_reason": t.finish_reason, "usage": t.usage}
            for t in run.turns
        ],
        "trajectory": [_exchange(t) for t in run.turns],
        "seconds": {
            "wall": run.seconds,
            "model": sum(t.seconds for t in run.turns),
            "tools": sum(c.seconds for c in run.calls),
            "client": run.client.seconds,
            "record": run.recorder.seconds,
        },
    }


def _exchange(turn: Turn) -> dict[str, Any]:
    return {
        "at": turn.at,
        "seconds": turn.seconds,
        "status": turn.status,
        "request": turn.request,
        "response": turn.response,
        "finish_reason": turn.finish_reason,
        "usage": turn.usage,
        "trace": turn.trace,
    }
