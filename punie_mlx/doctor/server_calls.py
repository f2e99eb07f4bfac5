"""Does tool calling work at all: a plain call, a streamed one, the turn after it, and nothing lost on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from punie_mlx.doctor import server_probes as probes
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.server_answer import Answer
from punie_mlx.doctor.server_causes import OURS, by_message, written_as
from punie_mlx.doctor.server_session import Session, asked, clip, told

NO_CALLS = "An agent gets text where it waits for a call: it ends, or asks again."
ROOTS = ("server-wrong-format", "server-tools-refused", "server-call-as-text", "server-tools-in-prompt")
"""What explains most failures after it."""


def wrong_format(session: Session) -> Iterator[Finding]:
    if session.kind != OURS:
        raise Skip("only punie-mlx says in which format it reads calls")
    if not session.reads or not session.template_formats:
        raise Skip("the server does not show its format, or its template writes calls as no format does")
    if session.reads not in session.template_formats:
        yield session.found(
            "server-wrong-format",
            "high",
            f"the template writes calls as {session.template_format}, and the server reads them as {session.reads}",
            (
                Shown("a call in the prompt, as the template writes it", clip(session.rendered_call)),
                Shown("the format in which the server reads and constrains calls", session.reads),
            ),
            "Calls of the model are not read, or it is forced to spell them in a way that it never learned, and calls "
            "worse for it.",
            "wrong-parser",
        )


def tools_refused(session: Session) -> Iterator[Finding]:
    _, answer = session.plain
    if answer.reply.status in (0, 200):
        return
    bare = session.chat(messages=answer.asked["messages"], max_tokens=1)
    if not bare.ok:
        summary = f"a chat is refused, with tools or without ({bare.reply.outcome})"
    else:
        summary = f"a request with tools is refused ({answer.reply.outcome}), and the same without tools is not"
    yield session.found(
        "server-tools-refused",
        "high",
        summary,
        (asked(answer), told(answer), told(bare, "the same without tools")),
        "An agent stops with an error at its first request.",
        by_message(answer.reply.error) or ("auto-off" if bare.ok else "protocol"),
    )


def tools_in_prompt(session: Session) -> Iterator[Finding]:
    probe, answer = session.plain
    bare = session.chat(messages=[probes.user(probe.question)], max_tokens=1)
    if answer.prompt_tokens is None or bare.prompt_tokens is None:
        raise Skip("the server does not count the tokens of prompts")
    if answer.prompt_tokens <= bare.prompt_tokens:
        yield session.found(
            "server-tools-in-prompt",
            "high",
            "the prompt is no longer with tools than without: the model never sees them",
            (
                Shown("tokens of the prompt with two tools", str(answer.prompt_tokens)),
                Shown("tokens of the same prompt without", str(bare.prompt_tokens)),
            ),
            NO_CALLS,
            "template",
        )


def plain_call(session: Session) -> Iterator[Finding]:
    probe, answer = session.plain
    if answer.calls:
        return
    if not answer.reply.status or answer.reply.broken:
        yield session.found(
            "server-plain-call",
            "high",
            f"a plain question with tools gets no answer ({answer.reply.outcome})",
            (asked(answer), told(answer)),
            "An agent stops, or waits for ever.",
            "protocol",
        )
        return
    forced = session.ask(probe, tool_choice="required")
    if forced.calls:
        raise Skip(
            "the model answers plain questions in text, and calls where a call is required: that is the model's choice "
            "(see `punie-mlx doctor MODEL --probe`)"
        )
    yield session.found(
        "server-plain-call",
        "high",
        "no question that a tool answers is answered with a call, not even where a call is required",
        (
            *(shown for _, each in session.plainly for shown in (asked(each), told(each))),
            told(forced, 'answered with tool_choice "required"'),
        ),
        NO_CALLS,
        "not-called",
    )


def call_as_text(session: Session) -> Iterator[Finding]:
    probe, answer = session.plain
    for each in (answer, session.ask(probe, stream=True)):
        if session.written(each) is None:
            continue
        native = written_as(each.content, each.offered)
        how = f"in the format {native[0]}, which the server does not read" if native else "in no wire format"
        yield session.found(
            "server-call-as-text",
            "high",
            f"the model calls, {how}: the call comes as text",
            (asked(each), Shown("content", clip(each.content)), Shown("tool_calls", "none")),
            "The user reads the text of a call, and no tool is ever run.",
            "wrong-parser" if native else "in-text",
        )
        return


def streamed_call(session: Session) -> Iterator[Finding]:
    probe, answer = session.plain
    stream = session.ask(probe, stream=True)
    if not stream.ok and not stream.faults:
        if answer.ok:
            yield _stream_finding(
                session, f"a streamed request is refused ({stream.reply.outcome})", told(stream), stream
            )
        return
    for what, proof in stream.faults:
        yield _stream_finding(session, what, Shown("in the stream", clip(proof)), stream)
    if stream.faults:
        return
    if answer.calls and not stream.calls:
        yield _stream_finding(session, "the call that came in one piece does not come streamed", told(stream), stream)
    for call in stream.calls:
        if call.values is None and stream.finish != "length":
            proof = Shown("arguments, joined", clip(str(call.arguments)))
            yield _stream_finding(
                session, "the arguments of a streamed call do not add up to a JSON object", proof, stream
            )
    if stream.calls and stream.finish not in ("tool_calls", "length"):
        proof = Shown("finish_reason", str(stream.finish))
        yield _stream_finding(session, "a streamed call does not end with finish_reason tool_calls", proof, stream)


def _stream_finding(session: Session, summary: str, proof: Shown, stream: Answer) -> Finding:
    return session.found(
        "server-streamed-call",
        "high",
        summary,
        (asked(stream, "stream"), proof),
        "Agents stream: they lose the call, join parts of different calls, or wait for the end of the answer.",
        "protocol",
    )


# ---- the turn after ----


def second_turn(session: Session) -> Iterator[Finding]:
    answer = session.chat(messages=list(probes.SECOND), tools=[probes.ORBIT])
    if not answer.ok:
        text = session.chat(messages=_second(content=""), tools=[probes.ORBIT])
        yield session.found(
            "server-second-turn",
            "high",
            "the turn after a result is refused "
            + ("where the content beside the call is null" if text.ok else f"({answer.reply.outcome})"),
            (Shown("asked", "a question, a call with content null, and its result"), told(answer)),
            "Every agent fails after its first call.",
            by_message(answer.reply.error) or "template",
        )
    elif not answer.content.strip() and not answer.calls and not answer.reasoning and answer.finish != "length":
        yield session.found(
            "server-second-turn",
            "high",
            "the turn after a result is empty",
            (Shown("asked", "a question, a call and its result"), told(answer)),
            "The agent has the result, and never says so.",
            "template",
        )


def _second(content: str | None = None, filling: tuple[str, str] = ("", "")) -> list[dict[str, Any]]:
    question, _, _ = probes.SECOND
    arguments = json.dumps({"satellite": f"Brannoch-4{filling[0]}"})
    call = probes.calling("look_up_orbit", arguments, content=content)
    return [question, call, probes.result(f"The orbit of Brannoch-4 is 412 km high.{filling[1]}")]


def history(session: Session) -> Iterator[Finding]:
    def tokens(*filling: str) -> int | None:
        messages = _second("", (filling[0], filling[1]))
        return session.chat(messages=messages, tools=[probes.ORBIT], max_tokens=1).prompt_tokens

    base, called, answered = tokens("", ""), tokens(probes.FILLING, ""), tokens("", probes.FILLING)
    if base is None or called is None or answered is None:
        raise Skip("the server does not count the tokens of these prompts")
    for what, longer, effect in (
        ("calls that were made", called, "The model does not see that it has called, and calls again."),
        ("the results of tools", answered, "The model never sees a result: it calls again, or makes one up."),
    ):
        if longer <= base:
            yield session.found(
                "server-history",
                "high",
                f"the prompt leaves out {what}",
                (
                    Shown("tokens of the prompt", str(base)),
                    Shown(f"tokens with {len(probes.FILLING.split())} more words in {what}", str(longer)),
                ),
                effect,
                "template",
            )


CHECKS = (
    Check("server-wrong-format", "server", "Template and server spell calls alike", wrong_format),
    Check("server-tools-refused", "server", "A request with tools is served", tools_refused),
    Check("server-tools-in-prompt", "server", "Tools are in the prompt", tools_in_prompt, ("server-tools-refused",)),
    Check("server-call-as-text", "server", "A call does not come as text", call_as_text, ("server-wrong-format",)),
    Check("server-plain-call", "server", "A plain call comes", plain_call, (*ROOTS, "server-call-lost")),
    Check("server-streamed-call", "server", "A streamed call comes as clients read it", streamed_call,
          ("server-tools-refused",)),
    Check("server-second-turn", "server", "The turn after a result is served", second_turn, ("server-tools-refused",)),
    Check("server-history", "server", "Calls and results are in the prompt", history,
          ("server-tools-refused", "server-second-turn", "server-tools-in-prompt")),
)  # fmt: skip
