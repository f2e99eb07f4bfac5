"""Do the fields of a request count: tool_choice, parallel calls, schemas, the limit; and calls with hard arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from punie_mlx.doctor import server_probes as probes
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.server_answer import Answer
from punie_mlx.doctor.server_calls import ROOTS
from punie_mlx.doctor.server_client import parsed
from punie_mlx.doctor.server_probes import Probe
from punie_mlx.doctor.server_session import Session, asked, clip, told

QUILL = probes.tool("send_pigeon", "Send a carrier pigeon.", tower=probes.only("Quill-9", "string"))
GREETING = Probe("Good morning, Farrow-6!", (QUILL,), "")  # which needs no tool
THINKING = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "◁think▷", "◁/think▷")
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict,
}  # fmt: skip

UNCALLED = (*ROOTS, "server-plain-call")


# ---- tool_choice ----


def choice_none(session: Session) -> Iterator[Finding]:
    answer = session.ask(session.caller, tool_choice="none")
    if not answer.ok or answer.calls:
        yield _ignored(
            session,
            answer,
            ("server-choice-none", "medium", 'with tool_choice "none"', "a call comes all the same"),
            "An agent that wants a last answer in words gets another call, for which nobody waits.",
        )


def choice_required(session: Session) -> Iterator[Finding]:
    answer = session.ask(GREETING, tool_choice="required")
    _not_cut(answer)
    if not answer.ok or (not answer.calls and answer.finish != "length"):
        yield _ignored(
            session,
            answer,
            ("server-choice-required", "high", 'with tool_choice "required"', "no call comes"),
            "Agents with an output type ask so for every turn: they fail where the model answers in words.",
        )


def choice_named(session: Session) -> Iterator[Finding]:
    answer = session.ask(GREETING, tools=[probes.ORBIT, QUILL], tool_choice=probes.named("send_pigeon"))
    _not_cut(answer)
    if not answer.ok or not answer.calls or any(n != "send_pigeon" for n in answer.names):
        made = f"came {clip(', '.join(map(str, answer.names)))}" if answer.names else "no call came"
        yield _ignored(
            session,
            answer,
            ("server-choice-named", "medium", "a named tool was demanded, and", made),
            "Clients that ask for one function (extraction, structured output) fail.",
        )


def _ignored(session: Session, answer: Answer, what: tuple[str, str, str, str], effect: str) -> Finding:
    """`what`: check, severity, what was asked for, and what came of it where the request was not refused."""
    check, severity, wish, came = what
    summary = f"{wish} {came if answer.ok else 'the request is refused'}"
    return session.found(
        check, severity, summary, (asked(answer, "tool_choice"), told(answer)), effect, "choice-ignored"
    )


def _not_cut(answer: Answer) -> None:
    if answer.ok and not answer.calls and answer.finish == "length":
        raise Skip("the model did not end its call within the limit of tokens")


# ---- several calls ----


def parallel(session: Session) -> Iterator[Finding]:
    answer = session.ask(probes.BOTH)
    if len(answer.calls) == 1 and (answer.calls[0].values or {}).get("satellite") == "Quorra-13":
        yield session.found(
            "server-parallel",
            "medium",
            "of two calls that were asked for, only the second comes",
            (asked(answer), told(answer)),
            "The agent runs one tool of two, and the model takes the other for done.",
            "dropped",
        )
        return
    if len(answer.calls) < 2:
        raise Skip("the model made no parallel call")
    single = session.ask(probes.BOTH, parallel_tool_calls=False)
    if len(single.calls) > 1:
        yield session.found(
            "server-parallel",
            "low",
            f"with parallel_tool_calls false {len(single.calls)} calls come",
            (asked(single, "parallel_tool_calls"), told(single)),
            "An agent that runs one tool at a time runs several, in an order that it did not choose.",
            "choice-ignored",
        )
    stream = session.ask(probes.BOTH, stream=True)
    if stream.ok and 0 < len(stream.calls) < len(answer.calls):
        yield session.found(
            "server-parallel",
            "high",
            f"{len(answer.calls)} calls come in one piece, and {len(stream.calls)} when streamed",
            (asked(stream, "stream"), told(answer), told(stream, "streamed")),
            "Agents stream, and join the calls into one that is none of them.",
            "protocol",
        )


# ---- arguments ----


def _called(session: Session, probe: Probe) -> Answer:
    """A call with the arguments that `probe` leaves, required where the server can. Raises `Skip`."""
    answer = session.ask(probe, tool_choice="required")
    if not answer.calls:
        answer = session.ask(probe)
    return answer


def typed_arguments(session: Session) -> Iterator[Finding]:
    answer = _called(session, probes.TYPED)
    values = next((c.values for c in answer.calls if c.values), None)
    if not values:
        raise Skip("the model did not make the call")
    schema = probes.TYPED.tools[0]["function"]["parameters"]
    compared, wrong = _misread(values, probes.TYPED_VALUES, schema["properties"])
    if not compared:
        raise Skip("the model's call has none of the parameters")
    if wrong:
        yield session.found(
            "server-typed-arguments",
            "medium",
            f"arguments come in other types or values than they were written in: {', '.join(n for n, _, _ in wrong)}",
            tuple(Shown(f"{name}, which must be {json.dumps(want)}", json.dumps(got)) for name, got, want in wrong),
            "Tools get a number for a code, null for a word, or another number: they fail, or do something else.",
            "converted",
        )


def _misread(
    got: dict[str, Any], wanted: dict[str, Any], schemas: dict[str, Any]
) -> tuple[int, list[tuple[str, Any, Any]]]:
    """How many values were compared, and those that no model writes: of another type than the schema's, or rounded."""
    compared, wrong = 0, []
    for name in wanted.keys() & got.keys():
        compared += 1
        value, want, schema = got[name], wanted[name], schemas[name]
        if not _is(value, schema["type"]):
            wrong.append((name, value, want))
        elif isinstance(want, dict):
            wrong += [(f"{name}.{n}", g, w) for n, g, w in _misread(value, want, schema["properties"])[1]]
        elif value != want and value == _rounded(want):
            wrong.append((name, value, want))
    order = list(wanted)
    return compared, sorted(wrong, key=lambda w: order.index(w[0].partition(".")[0]))


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _rounded(value: Any) -> Any:
    return int(float(value)) if isinstance(value, int) else None


def markers(session: Session) -> Iterator[Finding]:
    answer = _called(session, probes.MARKED)
    text = next((c.values.get("text") for c in answer.calls if c.values), None)
    want = probes.MARKED_TEXT
    if text == want:
        return
    cut = isinstance(text, str) and len(text) < len(want) and want.startswith(text.rstrip()) and text.strip()
    spilled = "Marlow-5 page" in answer.content and not answer.calls
    leaked = bool(answer.calls) and "Marlow-5 page" in answer.content
    if not (cut or spilled or leaked):
        raise Skip("the model did not write the text that was asked for")
    yield session.found(
        "server-markers-in-text",
        "medium",
        "a marker of the format within an argument ends the call",
        (Shown("the argument that was asked for", want), told(answer)),
        "An agent that writes code or prose about tools cuts its own files: what follows the marker is lost.",
        "text-parser",
    )


# ---- thinking ----


def reasoning(session: Session) -> Iterator[Finding]:
    thinking = session.ask(
        session.caller, chat_template_kwargs={"enable_thinking": True}, max_tokens=probes.THINKING_TOKENS
    )
    for answer in session.answers:
        tag = next((t for t in THINKING if t in answer.content), None)
        if tag and not any(tag in str(m.get("content")) for m in answer.asked["messages"]):
            yield session.found(
                "server-reasoning",
                "medium",
                f"the model's thinking comes as content ({tag})",
                (asked(answer), Shown("content", clip(answer.content)), told(answer)),
                "Users read the thinking, agents take it for the answer, and a call after it may not be read.",
                "no-reasoning-parser",
            )
            return
    if not thinking.ok:
        raise Skip(f"the server refuses chat_template_kwargs ({thinking.reply.outcome})")
    if not any(a.reasoning for a in session.answers):
        raise Skip("the model did not think")
    if not thinking.calls and thinking.finish != "length":
        raise Skip("the model thought, and did not call")


# ---- limits of an answer ----


def cut_call(session: Session) -> Iterator[Finding]:
    probe = session.caller
    _, full = session.plain
    written = full.completion_tokens
    if written is None:
        raise Skip("the server does not count the tokens of answers")
    less = written - max(3, min(8, written // 4))
    answer = session.ask(probe, max_tokens=min(max(2, less), probes.MOST_TOKENS))  # whatever number the server told
    if not answer.ok:
        raise Skip(f"max_tokens is refused ({answer.reply.outcome})")
    whole = [c.values for c in answer.calls if c.values is not None]
    if not answer.calls and not answer.content.strip() and not answer.reasoning:
        summary = "a call that max_tokens cuts off is lost: the answer is empty"
    elif whole and whole != [c.values for c in full.calls][: len(whole)]:
        summary = "a call that max_tokens cuts off comes as if it were whole"
    elif answer.finish != "length" and not whole:
        summary = f"an answer that max_tokens cuts off ends with finish_reason {answer.finish}"
    else:
        return
    yield session.found(
        "server-cut-call",
        "medium",
        summary,
        (asked(answer, "max_tokens"), told(full, "answered without the limit"), told(answer, "answered with it")),
        "An agent cannot see that its limit was too low: it gets nothing, or runs a tool with half an argument.",
        "dropped",
    )


def response_format(session: Session) -> Iterator[Finding]:
    answer = session.chat(**probes.FORMATTED)
    if answer.ok and answer.finish == "length":
        raise Skip("the answer did not end within the limit of tokens")
    if parsed(answer.content) != {"harbour": "Ostrava-3"}:
        yield session.found(
            "server-response-format",
            "medium",
            "response_format with a JSON schema is " + ("not kept" if answer.ok else "refused"),
            (asked(answer, "response_format"), told(answer)),
            "Agents with native structured output get text that does not parse.",
            "schema-ignored",
        )


CHECKS = (
    Check("server-choice-none", "server", 'tool_choice "none" is kept', choice_none, UNCALLED),
    Check("server-choice-required", "server", 'tool_choice "required" is kept', choice_required, UNCALLED),
    Check("server-choice-named", "server", "A named tool is called", choice_named, UNCALLED),
    Check("server-parallel", "server", "Parallel calls come whole", parallel, ROOTS),
    Check("server-typed-arguments", "server", "Arguments have the schema's types", typed_arguments, ROOTS),
    Check("server-markers-in-text", "server", "Markers within arguments are text", markers, ROOTS),
    Check("server-reasoning", "server", "Thinking is told apart", reasoning, ROOTS),
    Check("server-cut-call", "server", "A call that is cut off is not lost", cut_call, ROOTS),
    Check("server-response-format", "server", "response_format is kept", response_format, ("server-reasoning",)),
)
