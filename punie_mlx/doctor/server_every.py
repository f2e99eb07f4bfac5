"""What must hold for every answer, however the model wrote it: nothing is lost, and calls have the API's shape."""

from __future__ import annotations

import json
from collections.abc import Iterator

from punie_mlx.doctor import server_probes as probes
from punie_mlx.doctor.findings import Check, Finding, Shown
from punie_mlx.doctor.server_answer import Answer
from punie_mlx.doctor.server_session import Session, asked, clip, told

LEAST_TOKENS = 6  # so many, and nothing to be seen, is no empty answer


def gather(session: Session) -> list[Answer]:
    """The answers that every session has, and what others there are."""
    probe, _ = session.plain
    session.ask(probe, stream=True)
    session.ask(probes.MENTION)
    session.ask(probes.BOTH)
    session.ask(probes.MARKED)
    return session.answers


def call_lost(session: Session) -> Iterator[Finding]:
    for answer in gather(session):
        if loss := _loss(answer):
            yield session.found(
                "server-call-lost",
                "high",
                loss,
                (asked(answer, "tool_choice", "stream"), told(answer)),
                "An agent waits for a call that never comes, or fails over an answer without content; what the model "
                "wrote is gone.",
                "dropped",
            )
            return


def _loss(answer: Answer) -> str | None:
    if answer.calls:
        return None
    if answer.reply.status == 200 and answer.reply.broken and not answer.reply.given_up:
        return f"an answer breaks off: {answer.reply.broken}"
    if answer.finish == "tool_calls":
        return "finish_reason is tool_calls, and tool_calls is empty"
    unseen = not answer.content.strip() and not answer.reasoning
    if answer.ok and answer.finish == "stop" and unseen and (answer.completion_tokens or 0) >= LEAST_TOKENS:
        return f"the model wrote {answer.completion_tokens} tokens, and the answer shows none of them"
    return None


def call_shape(session: Session) -> Iterator[Finding]:
    for answer in gather(session):
        for what, proof in _misshapen(answer):
            yield session.found(
                "server-call-shape",
                "high",
                what,
                (asked(answer, "stream"), Shown("in tool_calls", clip(proof))),
                "Clients refuse the answer, or take one call for another.",
                "protocol",
            )
            return


def _misshapen(answer: Answer) -> Iterator[tuple[str, str]]:
    ids = [c.id for c in answer.calls]
    if any(not isinstance(i, str) or not i for i in ids):
        yield "a call has no id", f"ids: {ids}"
    elif len(set(ids)) < len(ids):
        yield "two calls have the same id", f"ids: {ids}"
    for call in answer.calls:
        if call.kind != "function":
            yield "a call is not of the type function", f"type: {call.kind!r}"
        if not isinstance(call.name, str) or not call.name:
            yield "a call has no name", f"name: {call.name!r}"
        if not isinstance(call.arguments, str):
            yield "the arguments of a call are no string of JSON", json.dumps(call.arguments)
        elif call.values is None and answer.finish != "length" and not answer.asked.get("stream"):
            yield "the arguments of a call are no JSON object", call.arguments


def beside_call(session: Session) -> Iterator[Finding]:
    for answer in gather(session):
        if answer.calls and answer.content and not answer.content.strip():
            yield session.found(
                "server-beside-call",
                "medium",
                "content is white space beside a call, where it must be null",
                (asked(answer, "stream"), Shown("content", repr(answer.content)), told(answer)),
                "Agents that stream take the first content for the final answer, and stop before the call.",
                "protocol",
            )
            return


CHECKS = (
    Check("server-call-lost", "server", "Nothing that the model writes is lost", call_lost, ("server-wrong-format",)),
    Check("server-call-shape", "server", "Calls have the API's shape", call_shape),
    Check("server-beside-call", "server", "No white space comes beside a call", beside_call),
)
