"""What the template makes of the calls that the assistant has made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

from punie_mlx.doctor import cases
from punie_mlx.doctor.cases import ASIDE, BERTH, ORBIT, THOUGHT, Talk, seen
from punie_mlx.doctor.excerpts import after, around, between, told
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.specimen import Specimen

_FORGETS = (
    "The model sees a result for which it never asked: it does not learn from its own calls, repeats them, and writes "
    "the next one in another form."
)
_NOT_SHOWN = "calls or results are not shown at all: another check says so"
_WRITE = "Write `message.tool_calls` into the assistant's turn, just as the model itself is taught to write calls."


def tool_calls_dropped(specimen: Specimen) -> Iterator[Finding]:
    """The assistant's calls stay in history, with their names and arguments."""
    talk = Talk.of(specimen)
    closing = [cases.answer(), cases.user(cases.SECOND)]
    conversations = {
        "a call": talk.loop(),
        "a call of an earlier question": [*talk.loop(), *closing],
        "a call beside text": [cases.user(), *talk.turn(ORBIT, content=ASIDE)],
    }
    for what, messages in conversations.items():
        text = seen(specimen, messages, cases.OFFERED)
        lost = [w for w in (ORBIT.name, *ORBIT.words) if w not in text]
        if lost:
            part = "" if ORBIT.name in lost else "the arguments of "
            part = "the name of " if lost == [ORBIT.name] else part
            yield Finding(
                "tool-calls-dropped",
                "high",
                f"The prompt leaves out {part}{what} that the assistant has made.",
                (
                    specimen.show("what the prompt does not hold", ", ".join(lost)),
                    specimen.show("the prompt where it should stand", around(text, cases.FIRST, ORBIT.result)),
                ),
                _FORGETS,
                _WRITE,
            )
            return


def call_text_dropped(specimen: Specimen) -> Iterator[Finding]:
    """Text that the assistant wrote beside a call stays."""
    talk = Talk.of(specimen)
    turn = [cases.user(), *talk.turn(ORBIT, content=ASIDE)]
    seen(specimen, turn, cases.OFFERED)  # where text beside a call raises, that is another check's
    no_calls = cases.answer(ASIDE) | {"tool_calls": []}  # servers answer so, and agents give back what they got
    conversations = {
        "beside a call is left out of the prompt": turn,
        "beside a call is left out of the prompt where it has thought before": [
            cases.user(),
            *talk.turn(ORBIT, content=ASIDE, thought=THOUGHT),
        ],
        "beside a call is left out of the prompt once it has answered": [*turn, cases.answer()],
        "beside an empty list of calls is left out of the prompt": [cases.user(), no_calls, cases.user(cases.SECOND)],
    }
    for what, messages in conversations.items():
        made = specimen.render(messages, cases.OFFERED)
        if made.failed or told(made.text, ASIDE):
            continue
        yield Finding(
            "call-text-dropped",
            "medium",
            f"Text that the assistant wrote {what}.",
            (
                specimen.show("what the prompt does not hold", ASIDE),
                specimen.show("the turn as the prompt shows it", around(made.text, cases.FIRST, ORBIT.name)),
            ),
            "What the model said while it called (a plan, a reason, a promise to the user) is gone a turn later.",
            "Write `message.content` before the calls where it is not empty.",
        )
        return


# ---- content that is not there ----

_NOTHINGS = re.compile(r"\b(?:None|null|undefined|Undefined)\b")


def content_null(specimen: Specimen) -> Iterator[Finding]:
    """A message with calls and without content renders as one whose content is empty."""
    talk = Talk.of(specimen)
    plain = replace(talk, content="")
    base = seen(specimen, talk.loop(), cases.OFFERED)
    absent = plain.loop()
    absent[1] = {k: v for k, v in absent[1].items() if k != "content"}
    kinds = (
        ("content: null", replace(plain, content=None).loop(), "high"),
        ("no content", absent, "medium"),
        ('content: ""', plain.loop(), "high"),
    )
    for kind, messages, severity in kinds:
        made = specimen.render(messages, cases.OFFERED)
        told = set(_NOTHINGS.findall(made.text)) - set(_NOTHINGS.findall(base))
        if not made.failed and not told and (talk.content or made.text == base):
            continue
        shown = specimen.show("what is rendered", (made.error or "")[:200] or _turn(made.text))
        otherwise = f"shows the word {min(told)}." if told else "is not rendered as one with an empty text is."
        yield Finding(
            "content-null",
            severity if made.failed else "medium" if told else "low",
            f"A message with calls and {kind} " + ("cannot be rendered." if made.failed else otherwise),
            (shown, specimen.show(f"the same with content: {json.dumps(talk.content)}", _turn(base))),
            "OpenAI's API writes exactly this after a call, so the agent's second request fails (or the model reads a "
            "word that nobody wrote), unless the server fills in an empty text.",
            "Do not use `message.content` bare: write `(message.content or '')`, and join with `~`, not `+`.",
        )
        return


def _turn(text: str) -> str:
    return around(text, cases.FIRST, ORBIT.name, reach=40)


# ---- arguments ----

_JSON = json.dumps(dict(ORBIT.arguments))


def arguments_form(specimen: Specimen) -> Iterator[Finding]:
    """Arguments as JSON text and as an object are the same call."""
    talk = Talk.of(specimen)
    made = {as_text: specimen.render(replace(talk, as_text=as_text).loop(), cases.OFFERED) for as_text in (False, True)}
    if all(m.failed for m in made.values()):
        raise Skip(f"no call can be rendered: {made[False].error}")
    texts = {k: m.text for k, m in made.items()}
    shows = {k: not m.failed and _shows_arguments(m.text) for k, m in made.items()}
    if not any(shows.values()) and not any(_names_arguments(t) for t in texts.values()):
        raise Skip(_NOT_SHOWN)
    if any(shows.values()) and texts[False] == texts[True]:
        return
    if shows[False] and shows[True] and _squeezed(texts[False]) == _squeezed(texts[True]):
        return
    if shows[False] and _JSON not in texts[False] and _JSON in texts[True]:
        return  # each argument has a frame of its own, and no template can take JSON text apart: it shows all it has
    severity, summary, remedy = _verdict(shows, {k: m.failed for k, m in made.items()}, texts)
    labels = {False: "arguments as an object", True: "arguments as JSON text"}
    yield Finding(
        "arguments-form",
        severity,
        summary,
        tuple(
            specimen.show(labels[k], m.error or around(m.text, ORBIT.name, *_in_call(m.text), reach=30))
            for k, m in made.items()
        ),
        "The same call reads differently to the model, or the request fails, depending on what the server makes of it.",
        remedy,
    )


def _verdict(shows: dict[bool, bool], failed: dict[bool, bool], texts: dict[bool, str]) -> tuple[str, str, str]:
    parse = "mlx_lm, vLLM and punie-mlx parse the text first, so nothing fails there; other servers may not. "
    how = "Write `arguments if arguments is string else arguments | tojson`, or parse the text where keys are needed."
    if not any(shows.values()):
        twice = '\\"body' in texts[False]
        what = "are encoded a second time, as a string of JSON" if twice else "come out wrong, in either form"
        return "high", f"The arguments of a call {what}.", how
    if not shows[False]:
        what = "cannot be rendered" if failed[False] else "come out wrong"
        return "high", f"Arguments as an object {what}; only JSON text works.", how
    if failed[True]:
        return "low", "Arguments as JSON text cannot be rendered; only an object works.", parse + how
    if '\\"' in texts[True] and '\\"' not in texts[False]:
        return "low", "Arguments as JSON text are encoded a second time.", parse + how
    if not shows[True]:
        return "low", "Arguments as JSON text come out wrong; only an object works.", parse + how
    return "low", "Arguments as JSON text and as an object render differently.", parse + how


def _shows_arguments(text: str) -> bool:
    return _names_arguments(text) and '\\"body' not in text and "'body'" not in text


def _names_arguments(text: str) -> bool:
    """Whether the arguments are there at all, be they escaped or in Python's spelling."""
    return all(w in text for w in ORBIT.words)


def _in_call(text: str) -> list[str]:
    return [w for w in ORBIT.words if w in text]


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# ---- several ----


def several_calls(specimen: Specimen) -> Iterator[Finding]:
    """Two calls of one message and their results: each there, in order, each in a frame of its own."""
    talk = Talk.of(specimen)
    seen(specimen, talk.loop(), cases.OFFERED)  # where one call cannot be rendered, that is another check's
    made = specimen.render([cases.user(), *talk.turn(ORBIT, BERTH)], cases.OFFERED)
    text = made.text
    if made.failed:
        fault = "cannot be rendered"
    else:
        fault = _fault_of_two(text, [[ORBIT.name, *ORBIT.words], [BERTH.name, *BERTH.words]])
    if fault:
        shown = made.error or around(text, *(w for w in (ORBIT.name, BERTH.name, BERTH.result) if w in text), reach=40)
        yield Finding(
            "several-calls",
            "high",
            f"Two calls in one message {fault}.",
            (specimen.show("a message with two calls, and two results", shown),),
            "A model that calls two tools at once loses one of the calls or results, or takes two results for one.",
            "Loop over `message.tool_calls`, each call in a frame of its own; frame each result by itself, too.",
        )


def _fault_of_two(text: str, calls: list[list[str]]) -> str:
    """What is wrong, or "": words of both calls, then both results."""
    words = [w for call in calls for w in call]
    if gone := [w for w in words if w not in text]:
        return f"are not both shown ({', '.join(gone)} missing)"
    if gone := [w for w in (*ORBIT.result.split(), *BERTH.result.split()) if w not in text]:
        return f"do not keep both results ({', '.join(gone)} missing)"
    if not text.find(ORBIT.name) < text.find(BERTH.name):
        return "change their order"
    if not text.find(ORBIT.result.split()[-1]) < text.find(BERTH.result.split()[-1]):
        return "have their results in another order"
    first = max(text.find(w) for w in calls[0] if w not in calls[1])
    if text.find(BERTH.name) < first:
        return "run into each other"
    if ORBIT.result in text and BERTH.result in text and not between(text, ORBIT.result, BERTH.result).strip():
        return "have results with nothing between them"
    return ""


# ---- ids and names ----


def ids_lost(specimen: Specimen) -> Iterator[Finding]:
    """Where calls or results carry ids or names, the other side carries the same."""
    talk = Talk.of(specimen)
    text = seen(specimen, talk.loop(), cases.OFFERED)
    if not all(w in text for w in (ORBIT.name, ORBIT.result, *ORBIT.words)):
        raise Skip(_NOT_SHOWN)
    found = chain(_one_sided(specimen, text), _unnamed(specimen, talk, text), _swapped(specimen, talk, text))
    yield from islice(found, 1)


def _finding(summary: str, severity: str, *shown: Shown) -> Finding:
    return Finding(
        "ids-lost",
        severity,
        summary,
        shown,
        "The model cannot tell which result belongs to which call, or is told the wrong one.",
        "Keep the names of calls by their ids while the messages are gone through, and write for each result what its "
        "own `tool_call_id` points to; OpenAI's API sends no `name` with a result.",
    )


def _one_sided(specimen: Specimen, text: str) -> Iterator[Finding]:
    count = text.count(ORBIT.id)
    if count != 1:
        return
    at, name, told = text.find(ORBIT.id), text.find(ORBIT.name), text.find(ORBIT.result)
    alone = replace(ORBIT, id="vB5nH3Js7")
    other = specimen.render([cases.user(), Talk.of(specimen).calls(ORBIT), cases.result(alone)], cases.OFFERED)
    side = "call" if ORBIT.id in other.text else "result"
    yield _finding(
        f"The id stands with the {side} and not with the {'result' if side == 'call' else 'call'}.",
        "medium",
        specimen.show("call and result", around(text, *(text[p : p + 9] for p in sorted((at, name, told))), reach=40)),
    )


_NAMING = ("harmony", "kimi")
"""Formats in which results stand under the names of their calls."""


def _end_of_call(text: str) -> int:
    return max(text.find(w) + len(w) for w in (ORBIT.name, *ORBIT.words))


def _unnamed(specimen: Specimen, talk: Talk, text: str) -> Iterator[Finding]:
    """A result without a name, as OpenAI's API sends it, against one with the name."""
    named = [*talk.loop()[:2], cases.result(ORBIT, name=ORBIT.name)]
    other = specimen.render(named, cases.OFFERED)
    if other.failed:
        return
    bare = text.count(ORBIT.name)
    odd = set(_NOTHINGS.findall(text)) - set(_NOTHINGS.findall(other.text))
    if odd or (bare == 1 and other.text.count(ORBIT.name) > 1):
        yield _finding(
            "A result without a `name` (OpenAI's API sends none) is not told by the name of its call.",
            "high",
            specimen.show("without a name", around(text, *ORBIT.words, ORBIT.result, reach=20)),
            specimen.show("with its name", around(other.text, *ORBIT.words, ORBIT.result, reach=20)),
        )
    elif specimen.detection.format in _NAMING and ORBIT.name not in text[_end_of_call(text) :]:
        yield _finding(
            f"A result does not say the name of its call, as {specimen.detection.format} has it.",
            "high",
            specimen.show("call and result", around(text, *ORBIT.words, ORBIT.result, reach=20)),
        )


def _swapped(specimen: Specimen, talk: Talk, one: str) -> Iterator[Finding]:
    """Two results, in the order of their calls and in the other: each under its own name or id."""
    begin = [cases.user(), talk.calls(ORBIT, BERTH)]
    orders = {"in the order of their calls": (ORBIT, BERTH), "in another order than their calls": (BERTH, ORBIT)}
    for order, (first, second) in orders.items():
        made = specimen.render([*begin, cases.result(first), cases.result(second)], cases.OFFERED)
        if made.failed or first.result not in made.text or second.result not in made.text:
            return
        if made.text.find(first.result) > made.text.find(second.result):
            first, second = second, first  # the template brings them into the order of the calls
        gap = between(made.text, first.result, second.result)
        for what in ("name", "id"):
            told = [c for c in (first, second) if getattr(c, what) in gap]
            # What stands between two results is the end of the first one's frame and the beginning of the other's.
            owner = first if getattr(ORBIT, what) in after(one, ORBIT.result) else second
            if told and owner not in told:
                yield _finding(
                    f"Results {order} get each other's {what}.",
                    "medium",
                    specimen.show(
                        f"the results of {first.name} and {second.name}",
                        around(made.text, first.result, second.result, reach=50),
                    ),
                )
                return


# ---- values ----

_PYTHON = ("True", "False", "None", "['Sorrel-3'", "{'beam'")


def value_types(specimen: Specimen) -> Iterator[Finding]:
    """Values of arguments and of schemas are written as JSON, not in Python's spelling."""
    talk = Talk.of(specimen)
    base = seen(specimen, talk.loop(), cases.OFFERED)
    if "'body'" in base:
        raise Skip("arguments are shown in Python's spelling altogether: arguments-form says so")
    made = specimen.render([cases.user(), *talk.turn(cases.TYPED)], cases.OFFERED)
    found = [python for python in _PYTHON if re.search(rf"(?<!\w){re.escape(python)}", made.text)]
    odd = [python for python in found if python not in base]
    if odd:
        yield Finding(
            "value-types",
            "medium",
            f"Values of a call stand in Python's spelling: {', '.join(odd)}.",
            (specimen.show("arguments of a call", around(made.text, "lit", "Tansy-8", reach=30)),),
            "The model learns from its own history to write True, None or {'a': 1}, which no JSON reader takes.",
            "Use `value | tojson` for everything that is not a string, in place of `value | string` or plain output.",
        )
        return
    yield from _declared(specimen, base)


def _declared(specimen: Specimen, base: str) -> Iterator[Finding]:
    """Schemas."""
    declared = cases.tool("set_lamp", "Set the lamp Corwin.", cases.schema(lit={"type": "boolean", "default": True}))
    text = specimen.render([cases.user()], [declared]).text
    whole = "'set_lamp'" in text
    if whole or ("set_lamp" in text and re.search(r"\bTrue\b", text) and not re.search(r"\bTrue\b", base)):
        yield Finding(
            "value-types",
            "medium" if whole else "low",
            f"{'Tools stand' if whole else 'A default of a parameter stands'} in Python's spelling.",
            (specimen.show("a tool with a default of true", around(text, "set_lamp", "True", reach=30)),),
            "The model is shown a spelling of true, false or null that its own calls must not have.",
            "Write the schema with `| tojson`.",
        )


CHECKS = (
    Check("tool-calls-dropped", "template", "The assistant's calls are left out of history", tool_calls_dropped),
    Check(
        "call-text-dropped",
        "template",
        "Text beside a call is left out",
        call_text_dropped,
        follows=("tool-calls-dropped", "text-lost"),
    ),
    Check("content-null", "template", "A message without content fails or prints None", content_null),
    Check("arguments-form", "template", "Arguments as text and as an object differ", arguments_form),
    Check(
        "several-calls",
        "template",
        "Several calls or results of a turn are mixed up",
        several_calls,
        follows=("tool-calls-dropped", "tool-result-lost", "tool-result-as-user"),
    ),
    Check(
        "ids-lost",
        "template",
        "Results do not say which call they answer",
        ids_lost,
        follows=("tool-calls-dropped", "tool-result-lost", "tool-result-as-user", "several-calls"),
    ),
    Check("value-types", "template", "Values stand in Python's spelling", value_types, follows=("tool-calls-dropped",)),
)
