"""What the template makes of turns: their roles, their order, and the prompt for the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from punie_mlx.doctor import cases
from punie_mlx.doctor.cases import BERTH, ORBIT, SECOND_SYSTEM, SYSTEM, THOUGHT, Message, Talk, seen
from punie_mlx.doctor.excerpts import Frame, after, around, piece, shared, told
from punie_mlx.doctor.findings import Check, Finding, Skip
from punie_mlx.doctor.specimen import Rendering, Specimen
from punie_mlx.doctor.template_thinking import Setting, switches


def text_lost(specimen: Specimen) -> Iterator[Finding]:
    """What users and assistant said stands in the prompt."""
    talk = Talk.of(specimen)
    spoken = [cases.user(), cases.answer(), cases.user(cases.SECOND)]
    looped = [*talk.loop(), cases.answer(), cases.user(cases.SECOND)]
    lasting = [m for n in range(10, 22) for m in (cases.user(f"Sound Vardo-{n}."), cases.answer(f"Hold Ness-{n}."))]
    for messages in (spoken, looped, [*lasting, cases.user()]):
        text = seen(specimen, messages)
        lost = [m["content"] for m in messages if m["role"] in ("user", "assistant") and m["content"]]
        lost = [w for w in lost if w != cases.ASIDE and not told(text, w)]
        if lost:
            yield Finding(
                "text-lost",
                "high",
                "Part of what user or assistant said is left out of the prompt.",
                (
                    specimen.show("what the prompt does not hold", ", ".join(lost[:3])),
                    specimen.show("the prompt", piece(text, len(text) - 200, len(text))),
                ),
                "The model answers without having read the whole conversation.",
                "Write the content of every message of the roles user and assistant.",
            )
            return


# ---- system and developer ----


def system_messages(specimen: Specimen) -> Iterator[Finding]:
    """Every system message is in the prompt, wherever it stands, and as no other role's."""
    seen(specimen, [cases.user()])  # or nothing could be said of them
    talk = Talk.of(specimen)
    first, second = cases.system(), cases.system(SECOND_SYSTEM)
    ask, closing = cases.user(), [cases.answer(), cases.user(cases.SECOND)]
    places: tuple[tuple[str, str, str, list[Message]], ...] = (
        ("The system message", "high", SYSTEM, [first, ask]),
        ("The system message, once a tool has answered,", "high", SYSTEM, [first, *talk.loop()]),
        ("The system message, once another question follows,", "high", SYSTEM, [first, ask, *closing]),
        ("A second system message", "medium", SECOND_SYSTEM, [first, second, ask]),
        ("The system message, once there is a second one,", "medium", SYSTEM, [first, second, ask]),
        ("A system message later on", "medium", SECOND_SYSTEM, [first, ask, cases.answer(), second, closing[1]]),
        ("A system message without any other", "low", SYSTEM, [first]),
    )
    for what, severity, words, messages in places:
        for tools in (None, cases.OFFERED):
            bare = [m for m in messages if m["content"] != words] or [ask]
            if specimen.render(bare, tools).failed:
                continue
            fault = _misplaced(specimen, specimen.render(messages, tools), words)
            if fault:
                yield _role_finding("system-messages", severity, f"{what} {fault[0]}.", specimen, fault[1])
                return


def _misplaced(specimen: Specimen, made: Rendering, words: str) -> tuple[str, str] | None:
    """What became of `words` that are the system's, and where that can be seen."""
    if made.failed:
        return "cannot be rendered", (made.error or "")[:200]
    if not told(made.text, words):
        return "is left out of the prompt", around(made.text, cases.FIRST, cases.SECOND)
    frame = Frame.of(specimen)
    for whose, held in {"the user's": frame.holds, "the assistant's": frame.opens}.items():
        if held(made.text, words):
            return f"is shown as {whose}", around(made.text, words)
    return None


def _role_finding(check: str, severity: str, summary: str, specimen: Specimen, shown: str) -> Finding:
    return Finding(
        check,
        severity,
        summary,
        (specimen.show("what is rendered", shown or "(nothing)"),),
        "Instructions of the agent do not reach the model, or the request fails.",
        "Give every message of the roles system and developer a system turn where it stands, or join them into the "
        "first one.",
    )


def developer_role(specimen: Specimen) -> Iterator[Finding]:
    """Instructions under the role developer, OpenAI's newer name for system, are the system's."""
    seen(specimen, [cases.user()])
    for tools in (None, cases.OFFERED):
        made = specimen.render([{"role": "developer", "content": SYSTEM}, cases.user()], tools)
        plain = specimen.render([cases.system(), cases.user()], tools)
        if plain.failed or SYSTEM not in plain.text:
            continue  # the system's own message fares no better: system-messages says so
        fault = _misplaced(specimen, made, SYSTEM)
        if fault:
            yield _role_finding(
                "developer-role", "medium", f"A message of the role developer {fault[0]}.", specimen, fault[1]
            )
            return


# ---- the prompt for the next turn ----


def generation_prompt(specimen: Specimen) -> Iterator[Finding]:
    """The prompt ends where the assistant's turn begins, when it is asked for, and not inside its thinking."""
    word = Frame.of(specimen).assistant_word
    if not word:
        raise Skip("turns of the assistant begin as the user's do")
    if missing := _not_opened(specimen, word):
        yield missing
        return
    yield from _cut_short(specimen)
    yield from _unasked(specimen, word)
    yield from _opens_thinking(specimen)


def _not_opened(specimen: Specimen, word: str) -> Finding | None:
    """The assistant's turn begins with `word`, and a prompt does not."""
    asked = {
        "a question": ([cases.user()], cases.FIRST, cases.OFFERED),
        "a result": (Talk.of(specimen).loop(), ORBIT.result, cases.OFFERED),
        "a question without tools": ([cases.user()], cases.FIRST, None),
    }
    for what, (messages, last, tools) in asked.items():
        made = specimen.render(messages, tools)
        answered = specimen.render([*messages, cases.answer()], tools, add_generation_prompt=False)
        if made.failed or answered.failed or last not in made.text or cases.ANSWER not in answered.text:
            continue
        expected = answered.text[answered.text.rfind(last) : answered.text.rfind(cases.ANSWER)]
        if word in expected and word not in after(made.text, last):
            return _prompt(
                _NOT_OPENED,
                "high",
                f"The prompt after {what} does not open the assistant's turn.",
                specimen,
                ("the prompt's end", piece(made.text, len(made.text) - 90, len(made.text))),
                ("the same with an answer", around(answered.text, last, cases.ANSWER, reach=20)),
            )
    return None


def _cut_short(specimen: Specimen) -> Iterator[Finding]:
    """White space with which every turn of the assistant begins is left to the model to write."""
    talk = Talk.of(specimen)
    prompt = after(seen(specimen, [cases.user()], cases.OFFERED), cases.FIRST)
    turns = (cases.answer(), talk.calls(ORBIT), cases.answer() | {cases.THINKING: THOUGHT})
    made = [specimen.render([cases.user(), t], cases.OFFERED, add_generation_prompt=False) for t in turns]
    begun = [after(m.text, cases.FIRST) for m in made if cases.FIRST in m.text]
    if len(begun) < len(turns):
        return  # render-error and text-lost say so
    same = shared(*begun)
    if same.startswith(prompt) and same != prompt and not same[len(prompt) :].strip():
        yield _prompt(
            _CUT_SHORT,
            "low",
            "The prompt ends before the white space with which the assistant's turns begin.",
            specimen,
            ("the prompt's end", piece(prompt, len(prompt) - 90, len(prompt))),
            ("the same with an answer", around(made[0].text, cases.FIRST, cases.ANSWER, reach=20)),
        )


def _unasked(specimen: Specimen, word: str) -> Iterator[Finding]:
    """Behind a finished answer, without being asked for."""
    text = seen(specimen, [cases.user(), cases.answer()], add_generation_prompt=False)
    tail = after(text, cases.ANSWER)
    if word in tail:
        yield _prompt(
            _NOT_OPENED,
            "medium",
            "The assistant's turn is opened without being asked for.",
            specimen,
            ("a finished conversation, no generation prompt asked", around(text, cases.ANSWER + tail)),
        )


def _opens_thinking(specimen: Specimen) -> Iterator[Finding]:
    opener = specimen.detection.think[0].strip() if specimen.detection.think else ""
    if not opener:
        return
    for setting in (Setting(""), *(on for on, _ in switches(specimen))):
        how = f" with {setting.label}" if setting.label else ""
        text = setting.render(specimen, [cases.user()])
        if text.rstrip().endswith(opener):
            yield _prompt(
                _THINKS,
                "low",
                f"The prompt{how} ends inside thinking: {opener} is already open.",
                specimen,
                ("the prompt's end", piece(text, len(text) - 90, len(text))),
            )
            return


def _prompt(said: tuple[str, str], severity: str, summary: str, specimen: Specimen, *shown: tuple[str, str]) -> Finding:
    effect, remedy = said
    return Finding("generation-prompt", severity, summary, tuple(specimen.show(*s) for s in shown), effect, remedy)


_NOT_OPENED = (
    "The model goes on with another turn than its own: it writes a user's message, or a second header.",
    "End with the assistant's opener where `add_generation_prompt` is set, whatever the last message is.",
)
_CUT_SHORT = (
    "The model must write that white space itself. Where it does not, it goes on in a form that it was never taught.",
    "End the prompt with the same characters that stand in history before the assistant's first word.",
)
_THINKS = (
    "The model writes only the closing tag. A reader that waits for the opening one shows thinking as text.",
    "Tell the server's reader: vLLM and SGLang need `--reasoning-parser` of this model's family, llama.cpp "
    "`--reasoning-format`; punie-mlx serve sees it by itself.",
)


# ---- prompts that continue each other ----


def not_prefix_preserving(specimen: Specimen) -> Iterator[Finding]:
    """Each prompt of an agent's loop begins with the one before."""
    talk = Talk.of(specimen)
    word = Frame.of(specimen).assistant_word
    if word and _not_opened(specimen, word):
        raise Skip("a prompt does not open the assistant's turn: generation-prompt says so")
    found = switches(specimen)
    settings = [(Setting(""), True), *((on, True) for on, _ in found), *((off, False) for _, off in found)]
    for setting, thinks in settings:
        for path in _paths(specimen, talk, setting, cases.THOUGHT if thinks else ""):
            made = [specimen.render(m, cases.OFFERED, **setting.kwargs) for m in path]
            for before, behind in pairwise(made):
                if not before.failed and not behind.failed and _parts(setting, before.text, behind.text):
                    how = f" with {setting.label}" if setting.label else ""
                    yield _broken(specimen, how, before.text, behind.text)
                    return


def _paths(specimen: Specimen, talk: Talk, setting: Setting, thought: str) -> Iterator[list[list[Message]]]:
    """Conversations, each of which goes on from the one before."""
    begin = [cases.system(setting.system), cases.user()]
    opener, closer = (tag.strip() for tag in specimen.detection.think or ("", ""))
    end = specimen.render(begin, cases.OFFERED, **setting.kwargs).text.rstrip()
    if closer and end.endswith(closer):
        thought = ""  # the prompt has closed thinking: none follows
    one = [*begin, *talk.turn(ORBIT, thought=thought)]
    yield [begin, one, [*one, *talk.turn(BERTH, thought=thought)]]
    if not (opener and end.endswith(opener)):
        # The thinking of earlier questions is dropped by design; turns that never had any stay as they are.
        turns = [cases.answer(), cases.user(cases.SECOND)]
        done = [*begin, *talk.turn(ORBIT)]
        yield from ([begin, [*begin, *turns]], [done, [*done, *turns]])
    if setting.system == SYSTEM:
        yield [begin[1:], one[1:]]


def _parts(setting: Setting, before: str, behind: str) -> bool:
    """Whether the prompts part; what the next one has lost altogether is another check's."""
    everywhere = (setting.system, cases.FIRST, "chart_reef")
    lost = any((w in before) != (w in behind) for w in everywhere)
    lost = lost or any(w in before and w not in behind for w in (ORBIT.name, ORBIT.result))
    return not lost and not behind.startswith(before)


def _broken(specimen: Specimen, how: str, before: str, behind: str) -> Finding:
    at = next(i for i, (a, b) in enumerate(zip(before + "\0", behind + "\1", strict=False)) if a != b)
    share = round(100 * at / len(before))
    return Finding(
        "not-prefix-preserving",
        "low",
        f"A prompt{how} is not the beginning of the next one: they part after {share} % of it.",
        (
            specimen.show("one prompt, where they part", piece(before, at - 60, at + 60)),
            specimen.show("the next prompt, at the same place", piece(behind, at - 60, at + 60)),
        ),
        "A server cannot go on from the prompt that it has just read: from this place on it is computed anew in every "
        "step, and what the model wrote is shown to it in another form.",
        "Write each turn the same way whether it is the last or not; what opens a turn in the prompt must also stand "
        "in history.",
    )


# ---- conversations that must render ----


def render_error(specimen: Specimen) -> Iterator[Finding]:
    """Legal conversations render; what other checks look at is left to them."""
    raised: dict[str, list[str]] = {}
    legal = _legal(specimen)
    for name, (messages, tools, _) in legal.items():
        made = specimen.render(messages, tools)
        if made.failed:
            raised.setdefault(made.error or "", []).append(name)
    for error, names in raised.items():
        offered = [n for n in names if legal[n][1] is not None]
        bare = [n for n in names if n not in offered]
        if any(legal[n][2] for n in offered):
            yield _raising(specimen, error, "high", _listed(names))
            continue
        if bare:  # some templates are for requests with tools only
            lacking = ", without tools" if any(legal[n][2] for n in bare) else ""
            yield _raising(specimen, error, "medium", _listed(bare) + lacking)
        if offered:
            yield _raising(specimen, error, "medium", _listed(offered))


def _raising(specimen: Specimen, error: str, severity: str, what: str) -> Finding:
    return Finding(
        "render-error",
        severity,
        f"The template raises on {what}.",
        (specimen.show("the error", error[:200]),),
        "The server answers such a request with an error, and the agent stops.",
        next((how for kind, how in _MENDINGS.items() if kind in error), _MENDING),
    )


_MENDING = "Take out the rule that raises, or the operation that does not expect this value."
_IN_SANDBOX = (
    "transformers renders templates in a sandbox in which nothing may be changed in place, and so do the servers that "
    "use it: write `names.ids = names.ids + [id]` for `names.ids.append(id)`, and count instead of `pop`."
)
_MENDINGS = {
    "SecurityError": _IN_SANDBOX,
    "TemplateSyntaxError": "The file is no Jinja, or was cut short or changed on its way: take it anew from the model, "
    "or mend the line that is named.",
}
"""By the kind of the error."""


def _listed(names: list[str]) -> str:
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} other conversations"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_NAMED = 5


Legal = tuple[list[Message], Sequence[Mapping[str, Any]] | None, bool]


def _legal(specimen: Specimen) -> dict[str, Legal]:
    """Conversations by name, each with its tools, and whether an agent cannot do without it."""
    talk = Talk.of(specimen)
    ask, tools = cases.user(), cases.OFFERED
    bare = cases.tool("ring_bell", None, None)
    empty = cases.tool("ring_bell", "Ring the bell Odalys.", {"type": "object", "properties": {}})
    idle = cases.Call("ring_bell", {}, "rN6cY8Wd2", "rung Isolde-4")
    long_id = replace(ORBIT, id="call_8f2Kq0ZxW3mB6nVtY1cDsLpa")
    optional = cases.tool("ring_bell", "Ring it.", cases.schema(peal={"anyOf": [{"type": "string"}, {"type": "null"}]}))
    no_calls = cases.answer() | {"tool_calls": None}
    loop = talk.loop()
    return {
        "a question": ([ask], None, True),
        "a question with tools": ([ask], tools, True),
        "a second question": ([ask, cases.answer(), cases.user(cases.SECOND)], None, True),
        "a call and its result": (loop, tools, True),
        "calls in history and no tools": (loop, None, False),
        "an answer after a result": ([*loop, cases.answer()], tools, True),
        "a second call after a result": ([*loop, *talk.turn(BERTH)], tools, True),
        "a question after a whole loop": ([*loop, cases.answer(), cases.user(cases.SECOND)], tools, True),
        "thinking and text beside a call": (
            [ask, *talk.turn(ORBIT, content=cases.ASIDE, thought=THOUGHT)],
            tools,
            False,
        ),
        "an answer with tool_calls: null": ([ask, no_calls, cases.user(cases.SECOND)], tools, False),
        "an answer with tool_calls: []": ([ask, no_calls | {"tool_calls": []}, cases.user(cases.SECOND)], tools, False),
        "text beside a call": ([ask, *talk.turn(ORBIT, content=cases.ASIDE)], tools, False),
        "a call without arguments": ([ask, *talk.turn(idle)], [empty], False),
        "a call with true, null, a list and an object": ([ask, *talk.turn(cases.TYPED)], tools, False),
        "a tool without parameters": ([ask], [empty], False),
        "a tool with only a name": ([ask], [bare], False),
        "a tool with a parameter that may be null": ([ask], [optional], False),
        "a result that is empty": ([*loop[:2], cases.result(ORBIT, "")], tools, False),
        "a question right after a result": ([*loop, cases.user(cases.SECOND)], tools, False),
        "two messages of the user in a row": ([ask, cases.user(cases.SECOND)], None, False),
        "ids as OpenAI writes them": ([ask, *talk.turn(long_id)], tools, True),
    }


CHECKS = (
    Check("text-lost", "template", "What was said is left out", text_lost),
    Check("system-messages", "template", "System messages are lost or change their role", system_messages),
    Check("developer-role", "template", "The developer's message is lost or changes its role", developer_role),
    Check("generation-prompt", "template", "The prompt does not end where an answer begins", generation_prompt),
    Check(
        "not-prefix-preserving",
        "template",
        "A prompt does not begin with the one before",
        not_prefix_preserving,
        follows=("thinking-reversed",),
    ),
    Check("render-error", "template", "A legal conversation cannot be rendered", render_error),
)
