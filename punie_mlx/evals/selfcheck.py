"""Can the scorer tell right from wrong on these cases? Tried on made-up runs before any model is asked, at no cost.

Each case is scored on runs that must fail it (nothing said and done, the right words without the call, a call of a tool
that nobody offered, a call where none is wanted) and on one that does all it expects. A scorer that passes everything,
a case that a silent model would pass, and a case that nothing can pass are found before they become a figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from punie_mlx.corpus.suite import Case
from punie_mlx.errors import DataError
from punie_mlx.evals.agent import Call, Run, Turn
from punie_mlx.evals.gold import perfect
from punie_mlx.evals.score import score

SHOWN = 5
ADVICE = "mend its expectation (punie-mlx suite check), or the scorer"


def check(cases: Sequence[Case]) -> list[str]:
    """Warnings about cases that could not be tried on a right run.

    Raises:
        DataError: names the first case that a wrong run passes, or a right one does not.
    """
    untried = []
    for case in cases:
        good = perfect(case)
        for what, run in _wrong(case, good):
            if score(case, run).passed or (case.expects_call and score(case, run, lenient=True).passed):
                raise DataError(f"case {case.id!r} is passed by {what}: {ADVICE}")
        if good is None:
            untried.append(case.id)
        elif reasons := score(case, good).reasons:
            raise DataError(
                f"case {case.id!r} is not passed by a run that does all it expects ({reasons[0]}): {ADVICE}"
            )
    if not untried:
        return []
    more = " …" if len(untried) > SHOWN else ""
    return [
        f"{len(untried)} cases were not tried on a right run, none could be made: {', '.join(untried[:SHOWN])}{more}"
    ]


def _wrong(case: Case, good: Run | None) -> Iterator[tuple[str, Run]]:
    """Runs that must not pass, and what they are."""
    base = good or Run(turns=[Turn(0.0, 200, {"role": "assistant", "content": "Done."})], answer="Done.", files={})
    expected = "although it expects a call" if case.expects_call else "although it wants an answer"
    yield f"a model that says and does nothing, {expected}", Run(files=base.files)
    foreign = Call(1, "call-1", _unknown(case), {}, result="ok", ok=True)
    if case.expects_call:
        yield "a model that makes no call, although it expects one", replace(base, calls=[])
        yield "a call of a tool that is not offered", replace(base, calls=[foreign, *base.calls[1:]])
    elif not any(case.alternatives):
        offered = [replace(foreign, name=name) for name in list(case.schemas)[:1]]
        for call in [foreign, *offered]:
            yield f"a call of {call.name}, although it wants none", replace(base, calls=[call])


def _unknown(case: Case) -> str:
    name = "no_such_tool"
    while name in case.schemas:
        name += "_"
    return name
