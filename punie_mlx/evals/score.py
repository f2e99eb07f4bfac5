"""From a trajectory to a verdict: tool names, arguments, execution, final answer, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from punie_mlx.corpus.suite import Case, ExpectedCall
from punie_mlx.evals.agent import Call, Run
from punie_mlx.toolcalls.looks import call_text
from punie_mlx.toolcalls.values import equal

CHECKS = ("names", "arguments", "execution", "answer")


@dataclass(frozen=True)
class Verdict:
    """`checks`: name of the check → passed, failed, or None where it does not apply. `reasons`: why it failed."""

    checks: dict[str, bool | None]
    reasons: tuple[str, ...]
    unread_call: bool
    """The answer holds the text of a call: the model wanted a tool, and the server could not read it."""

    @property
    def passed(self) -> bool:
        return not self.reasons


def score(case: Case, run: Run) -> Verdict:
    """Judge one run. Every failed check has a reason; a run without a reason passed."""
    calls = scored_calls(case, run)
    reasons: list[str] = []
    checks: dict[str, bool | None] = dict.fromkeys(CHECKS)
    text = call_text(run.answer or "", case.schemas)

    if run.error and not (run.limited and case.expect.turns == "first"):
        reasons.append(run.error)
    checks["names"] = _matching(case, calls, arguments=False) is not None
    if not checks["names"]:
        wanted = ", ".join(" or ".join(e.names) for e in case.expect.calls) or "no call"
        reasons.append(f"names: expected {wanted}; got {', '.join(c.name for c in calls) or 'no call'}")
    if any(e.arguments is not None for e in case.expect.calls):
        checks["arguments"] = _matching(case, calls, arguments=True) is not None
        if checks["names"] and not checks["arguments"]:
            reasons.append(f"arguments: {_difference(case, calls)}")
    if case.expect.calls and case.expect.execution == "succeeds":
        failed = next((c for c in calls if not c.ok), None)
        checks["execution"] = bool(calls) and failed is None
        if failed:
            reasons.append(f"execution: {failed.name}: {failed.result or 'was never executed'}")
    if not run.error or run.answer:
        if complaint := _answer_complaint(case, run.answer or "", text):
            reasons.append(f"answer: {complaint}")
        checks["answer"] = complaint is None
    elif not (run.limited and case.expect.turns == "first"):
        checks["answer"] = False
    return Verdict(checks, tuple(reasons), text is not None)


def scored_calls(case: Case, run: Run) -> list[Call]:
    """The calls that count: all of them, or those of the first turn that has any."""
    if case.expect.turns == "all" or not run.calls:
        return run.calls
    return [c for c in run.calls if c.turn == run.calls[0].turn]


def _fits(expected: ExpectedCall, call: Call, case: Case, arguments: bool) -> bool:
    if call.name not in expected.names:
        return False
    if not arguments or expected.arguments is None:
        return True
    return equal(expected.arguments, call.arguments, case.schemas[call.name])


def _matching(case: Case, calls: Sequence[Call], *, arguments: bool) -> list[Call] | None:
    """One call for each expected one, none left over; None where there is no such pairing."""

    def pair(expected: Sequence[ExpectedCall], left: Sequence[Call]) -> list[Call] | None:
        if not expected:
            return []
        for i, call in enumerate(left):
            if _fits(expected[0], call, case, arguments):
                rest = pair(expected[1:], [*left[:i], *left[i + 1 :]])
                if rest is not None:
                    return [call, *rest]
        return None

    return pair(case.expect.calls, calls) if len(calls) == len(case.expect.calls) else None


def _difference(case: Case, calls: Sequence[Call]) -> str:
    """The first expected call that the model did not make with these arguments."""
    left = list(calls)
    missed = None
    for expected in case.expect.calls:
        hit = next((c for c in left if _fits(expected, c, case, True)), None)
        if hit:
            left.remove(hit)
        else:
            missed = missed or expected
    if missed is None:
        return "no pairing of the calls with the expected ones fits"
    near = next((c for c in left if c.name in missed.names), None)
    got = _json(near.arguments) if near else "no such call"
    return f"{' or '.join(missed.names)}: expected {_json(missed.arguments)}; got {got}"


def _answer_complaint(case: Case, answer: str, text: str | None) -> str | None:
    if not answer.strip():
        return "it is empty"
    if text is not None:
        return f"it holds the text of a call: {text[:200]!r}"
    wanted = case.expect.answer.contains if case.expect.answer else []
    missing = [w for w in wanted if w not in answer]
    return f"{missing[0]!r} is not in {answer[:200]!r}" if missing else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
