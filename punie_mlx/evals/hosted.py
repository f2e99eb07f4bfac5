"""Trials as a `Dataset` of pydantic_evals, judged by evaluators of our own over the recorded run.

Its own tool evaluators read OpenTelemetry spans and fail every case where none are recorded, and an evaluator or task
that raises is a line in its report there. Here it is the end: whatever goes wrong is raised. Nothing is sent anywhere:
without logfire its spans are nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_evals import Case as HostedCase
from pydantic_evals import Dataset
from pydantic_evals.evaluators import EvaluationReason, Evaluator, EvaluatorContext
from pydantic_evals.lifecycle import CaseLifecycle
from pydantic_evals.reporting import EvaluationReport

from punie_mlx.errors import PunieError
from punie_mlx.evals.record import Outcome, Trial

Context = EvaluatorContext[Trial, Outcome, Any]
Judge = Evaluator[Trial, Outcome, Any]


@dataclass(repr=False)
class Passed(Judge):
    """Every check of the suite held, at the first try."""

    def evaluate(self, ctx: Context) -> EvaluationReason:
        return EvaluationReason(value=ctx.output.passed, reason="\n".join(ctx.output.reasons) or None)


@dataclass(repr=False)
class Lenient(Judge):
    """The same with BFCL's loose comparison."""

    def evaluate(self, ctx: Context) -> EvaluationReason:
        lenient = ctx.output.lenient
        return EvaluationReason(value=lenient.passed, reason="\n".join(lenient.reasons) or None)


@dataclass(repr=False)
class CalledWhenItShould(Judge):
    """A call was made if and only if the case wants one."""

    def evaluate(self, ctx: Context) -> bool:
        return ctx.output.called_when_it_should


@dataclass(repr=False)
class ParseFailures(Judge):
    """How many calls could not be read."""

    def evaluate(self, ctx: Context) -> int:
        return ctx.output.parse_failures


JUDGES: tuple[type[Judge], ...] = (Passed, Lenient, CalledWhenItShould, ParseFailures)


async def host(
    trials: Sequence[Trial],
    run: Callable[[Trial], Awaitable[Outcome]],
    judged: Callable[[Outcome], None],
    *,
    concurrency: int,
) -> EvaluationReport[Trial, Outcome, Any]:
    """Run and judge all trials, so many at once, and tell of each as soon as it is judged.

    Raises what `run` and `judged` raise, and `PunieError` where a judge fails; the trials under way are stopped then.
    """
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextmanager
    def guarded() -> Any:
        try:
            yield
        except Exception as e:
            if not broken.done():
                broken.set_exception(e)
            raise

    async def task(trial: Trial) -> Outcome:
        with guarded():
            return await run(trial)

    class Told(CaseLifecycle[Trial, Outcome, Any]):
        async def teardown(self, result: Any) -> None:
            if broken.done() or getattr(result, "output", None) is None:
                return  # the task failed, and was told of, or it was stopped
            with guarded():
                _check_judges(result)
                judged(result.output)

    data = Dataset[Trial, Outcome, Any](
        name="punie-mlx",
        cases=[HostedCase(name=t.name, inputs=t) for t in trials],
        evaluators=[judge() for judge in JUDGES],
    )
    whole = asyncio.ensure_future(data.evaluate(task, max_concurrency=concurrency, progress=False, lifecycle=Told))
    try:
        await asyncio.wait({whole, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            broken.result()
        return whole.result()
    finally:
        whole.cancel()
        await asyncio.gather(whole, return_exceptions=True)
        if not broken.done():
            broken.cancel()


def _check_judges(result: Any) -> None:
    """Raise `PunieError` unless every judge gave its verdict."""
    if result.evaluator_failures:
        failed = result.evaluator_failures[0]
        raise PunieError(f"the judge {failed.name} failed on case {result.name}: {failed.error_message}")
    given = {*result.assertions, *result.scores}
    missing = [j.__name__ for j in JUDGES if j.__name__ not in given]
    if missing:
        raise PunieError(f"the judge {missing[0]} gave no verdict on case {result.name}: report this")
