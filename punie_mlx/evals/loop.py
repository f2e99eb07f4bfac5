"""An agent in its plainest form: ask, execute the calls, tell their results, until the model answers.

It has PydanticAI's rules, so that the same words of a model get the same verdict through either: a call that cannot be
executed, or an empty answer, ends the run or is asked for again; no limit is passed; calls run in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from punie_mlx.corpus.suite import Case
from punie_mlx.evals.agent import AgentSettings, Run, arguments_of
from punie_mlx.evals.scratch import Scratch

Message = dict[str, Any]
Ask = Callable[[list[Message]], Awaitable[Message]]
"""Gives the model's message to a conversation, and puts the exchange on record."""
KEPT = ("role", "content", "reasoning_content", "tool_calls")
AGAIN = "Please return text or call a tool."


class RefusedError(ValueError):
    """What the model said cannot be gone on with."""


async def converse(case: Case, scratch: Scratch, run: Run, settings: AgentSettings, ask: Ask) -> None:
    """Run `case` to its end, on the record `run`. Raises `ValueError`, and what `ask` raises."""
    messages = list(case.conversation)
    for follow_up in (None, *case.follow_ups):
        if follow_up is not None:
            messages.append({"role": "user", "content": follow_up})
        answer = await _answer(case, scratch, run, settings, ask, messages)
        if answer is None:
            run.limited, run.error = True, f"the limit of {settings.request_limit} requests was reached"
            return
        run.answer = answer


async def _answer(
    case: Case, scratch: Scratch, run: Run, settings: AgentSettings, ask: Ask, messages: list[Message]
) -> str | None:
    """The text that the last query is answered with; None where the limit comes first. `messages` grow."""
    # By tool, None for an empty answer. A tool counts once a response, and anew when it was called as it should be.
    refused: Counter[str | None] = Counter()

    def may_ask_again(what: str | None, why: str) -> None:
        if refused[what] >= settings.retries:
            raise RefusedError(why)

    for _ in range(settings.request_limit):
        said = await ask(messages)
        calls = said.get("tool_calls") or []
        if calls or said.get("content"):
            messages.append({"content": None} | {k: said[k] for k in KEPT if said.get(k) is not None})
        if not calls:
            if said.get("content"):
                return said["content"]
            if run.turns[-1].finish_reason == "length":
                raise RefusedError("the limit on tokens was reached before anything was answered")
            may_ask_again(None, "the answer is empty")
            refused[None] += 1
            run.retried += 1
            messages.append({"role": "user", "content": AGAIN})
            continue
        broken = {i: why for i, call in enumerate(calls) if (why := _unusable(case, call))}
        for i, why in broken.items():
            may_ask_again(_name(calls[i]), why)
        for i in broken:
            run.refuse(calls[i].get("id") or "")
        run.retried += len(broken)
        messages += _results(case, scratch, run, calls, broken)
        failed = {_name(calls[i]) for i in broken}
        refused.update(failed)
        for name in {_name(c) for c in calls} - failed:
            del refused[name]
    return None


def _results(
    case: Case, scratch: Scratch, run: Run, calls: Sequence[Mapping[str, Any]], broken: Mapping[int, str]
) -> list[Message]:
    """The results of `calls`, as messages; `broken` ones are told why they were not executed."""
    results = []
    for i, call in enumerate(calls):
        id = call.get("id") or ""
        if i in broken:
            text = f"error: {broken[i]}; mend the call and try again"
        else:
            text = run.execute(case, scratch, id, _name(call), arguments_of(call))
        results.append({"role": "tool", "tool_call_id": id, "content": text})
    return results


def _unusable(case: Case, call: Mapping[str, Any]) -> str | None:
    """Why a call cannot be executed."""
    if _name(call) not in case.schemas:
        return f"there is no tool {_name(call)!r}"
    if not isinstance(arguments_of(call), dict):
        return f"the arguments of {_name(call)} are no JSON object"
    return None


def _name(call: Mapping[str, Any]) -> str:
    return (call.get("function") or {}).get("name") or ""
