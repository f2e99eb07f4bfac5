"""Checks of a probed model: what it writes where a call is wanted, after a result, and where words would do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.probed import Answer, Probed
from punie_mlx.doctor.written import CODE, FENCE, LENIENT, MALFORMED, NATIVE, OTHER, PROSE, shown
from punie_mlx.toolcalls.calls import ToolCall

LONGEST = 180  # characters of an answer that are shown
MANY = 40  # tokens of it
WRITES = {
    FENCE: "writes fences",
    CODE: "writes code that calls the tool",
    PROSE: "answers in words",
    MALFORMED: "writes what nothing reads as a call",
    OTHER: "writes calls of another format",
}
_WORDS = {"opener": "the opener of a call", "fence": "a fence", "thinking": "the opener of thinking"}
LORA = (
    "`punie-mlx convert ROWS OUT --model MODEL_DIR`, then `punie-mlx train --model MODEL_DIR --data OUT --out ADAPTER`"
)
MEND = "`punie-mlx doctor MODEL_DIR --fix`"


# ---- a call is wanted ----


def no_native_calls(probed: Probed) -> Iterator[Finding]:
    """Fences, code, words or another format where a call of the model's own format was wanted."""
    asked = _asked_for_calls(probed)
    wrong = [a for a in probed.of_kind(FENCE, CODE, PROSE, OTHER, MALFORMED) if not probed.opened(a)]
    if not wrong:
        return
    kind = max((a.written.kind for a in wrong), key=[a.written.kind for a in wrong].count)
    named = f" ({wrong[0].written.note})" if kind == OTHER else ""
    what = f"the format {probed.format}" if probed.format else "a format that its template shows"
    summary = (
        f"asked for a call, the model {WRITES[kind]}{named}: {len(wrong)} of {len(asked)} answers hold none of {what}"
    )
    saved = sum(a.written.rescued for a in wrong)
    if saved:
        summary += f". `--rescue` would read {saved}: the parser is saving you then, the model never emits "
        summary += _opener(probed)
    yield Finding(
        "no-native-calls",
        "high" if 2 * len(wrong) >= len(asked) else "medium",
        summary,
        (*_evidence(probed, wrong[0]), *_put_there(probed, wrong)),
        "A server that reads the model's own format hands the agent text and no call: nothing is done, or the agent "
        "takes the fence for the answer.",
        _remedy(probed, wrong),
    )


def parser_saves_you(probed: Probed) -> Iterator[Finding]:
    """Calls that only a forgiving reader reads."""
    _asked_for_calls(probed)
    saved = [a for a in probed.asked_for_calls() if a.written.kind == LENIENT]
    if not saved:
        return
    never = not any(probed.opened(a) for a in probed.asked_for_calls())
    told = f"the parser is saving you: {len(saved)} calls are read though "
    told += f"the model never emits {_opener(probed)}" if never else saved[0].written.note
    yield Finding(
        "parser-saves-you",
        "medium",
        told,
        (*_evidence(probed, saved[0]), Shown("why only a forgiving reader reads it", saved[0].written.note)),
        "It works here, and fails in mlx_lm, vLLM or llama.cpp, which look for the token: the call comes as text.",
        _remedy(probed, saved),
    )


def broken_calls(probed: Probed) -> Iterator[Finding]:
    """Calls that are opened as they should be, and cannot be read."""
    asked = _asked_for_calls(probed)
    broken = [a for a in probed.asked_for_calls() if a.written.kind == MALFORMED and probed.opened(a)]
    if not broken:
        return
    yield Finding(
        "broken-calls",
        "high" if 2 * len(broken) >= len(asked) else "medium",
        f"{_of(broken, probed.asked_for_calls())} calls are opened and cannot be read: {broken[0].written.note}",
        _evidence(probed, broken[0]),
        "A server shows the agent the raw text of the call, or loses it.",
        "Constrained decoding holds what follows the opener to the tools' schemas: `punie-mlx serve --constrain auto`, "
        f"which is the default. Or train: {LORA}; `punie-mlx audit` says whether rows teach broken calls.",
    )


def wrong_arguments(probed: Probed) -> Iterator[Finding]:
    """Calls that can be read, of another tool or with other arguments than asked for."""
    _asked_for_calls(probed)
    wrong = [
        a for a in probed.asked_for_calls() if a.written.kind in (NATIVE, LENIENT) and not a.right and not _made_up(a)
    ]
    for answer in wrong[:1]:
        wanted, made = answer.probe.wants, answer.written.calls
        assert wanted is not None
        yield Finding(
            "wrong-arguments",
            "medium",
            f"{_of(wrong, probed.asked_for_calls())} calls are not the one that was asked for: "
            + ", ".join(f"{a.probe.id} ({a.probe.about})" for a in wrong),
            (
                Shown(f"{answer.probe.id}: wanted", _cut(_spelled([wanted]))),
                Shown(f"{answer.probe.id}: called", _cut(_spelled(made))),
                _raw(answer),
            ),
            "The agent's tool runs with what nobody asked for.",
            "Where types or names are wrong, `punie-mlx serve --constrain auto` holds calls to the schemas. Where "
            f"values are, the model does not copy them: take a larger one, or train on rows with such values: {LORA}.",
        )


# ---- no call is wanted ----


def repeats_call(probed: Probed) -> Iterator[Finding]:
    """The call whose result has just come, again."""
    after = _answers(probed, [a for a in probed.answers if a.probe.after])
    for answer in [a for a in after if a.probe.after in a.written.calls][:1]:
        yield Finding(
            "repeats-call",
            "high",
            f"given the result of {_spelled([c for c in answer.written.calls if c == answer.probe.after])}, the model "
            "makes the same call again",
            (Shown(f"{answer.probe.id}: the prompt ends", answer.prompt), _raw(answer), *_chances(probed, answer)),
            "The agent calls the same tool until its limit of steps.",
            "Look at the template first: where `tool-result-as-user` or `tool-calls-dropped` are found, the model sees "
            f"a new question, and {MEND} mends that. Else train on rows whose last turn answers from a result: {LORA}.",
        )


def needless_call(probed: Probed) -> Iterator[Finding]:
    """A call where words would do."""
    asked = _answers(probed, probed.asked_for_words())
    called = [a for a in asked if a.written.is_call and a.probe.after not in a.written.calls and not _made_up(a)]
    for answer in called[:1]:
        yield Finding(
            "needless-call",
            "medium",
            f"{_of(called, asked)} questions that want words get a call: "
            + ", ".join(f"{a.probe.id} ({a.probe.about})" for a in called),
            _evidence(probed, answer),
            "The agent runs tools for nothing, and may do harm with one that does not fit.",
            "Offer the tools only where they are wanted, or `tool_choice: none`. A model that was tuned on calls alone "
            "learns to call always: put about 30% rows with direct answers among them and train again.",
        )


def made_up_tool(probed: Probed) -> Iterator[Finding]:
    """A call of a tool that nobody offered."""
    for answer in [a for a in _answers(probed, probed.answers) if _made_up(a)][:1]:
        yield Finding(
            "made-up-tool",
            "medium",
            f"the model calls {_made_up(answer)[0]}, which was not offered ({answer.probe.id}: {answer.probe.about})",
            (Shown(f"{answer.probe.id}: offered", ", ".join(sorted(answer.probe.names))), _raw(answer)),
            "The agent answers that there is no such tool, and a turn is lost, or it stops.",
            "`punie-mlx serve --constrain auto`, which is the default, lets no other name be written. Where the prompt "
            f"does not show the tools (`tools-ignored`), mend the template: {MEND}.",
        )


# ---- any answer ----


def never_ends(probed: Probed) -> Iterator[Finding]:
    """Answers that go on until they are cut off."""
    endless = [a for a in _answers(probed, probed.answers) if a.cut]
    if not endless:
        return
    passed = next((a for a in endless if probed.turn_end and _passed(a, probed)), None)
    answer = passed or endless[0]
    cause = f"the model's end tokens are {' '.join(probed.ends) or 'none'}"
    remedy = (
        "Check that the training rows end with an end token (`punie-mlx train` puts it there and trains it), and give "
        "requests a `max_tokens`."
    )
    if passed:
        cause = f"it writes {shown(probed.turn_end)}, where the template ends a turn, and goes on, since {cause}"
        remedy = f"Add the id of {shown(probed.turn_end)} to `eos_token_id` in generation_config.json and config.json."
    last = answer.raw[-MANY:]
    yield Finding(
        "never-ends",
        "high" if 2 * len(endless) >= len(probed.answers) else "medium",
        f"{_of(endless, probed.answers)} answers have no end after {len(answer.raw)} tokens: {cause}",
        (
            Shown(f"{answer.probe.id}: the last raw tokens", f"…{answer.text[-LONGEST:]}", tuple(t[:2] for t in last)),
            *_chances(probed, answer),
        ),
        "Each turn takes as long as it is allowed to, and calls are followed by text that was not asked for.",
        remedy,
    )


def not_a_number(probed: Probed) -> Iterator[Finding]:
    """Weights that compute to no numbers."""
    for answer in [a for a in _answers(probed, probed.answers) if not a.numbers][:1]:
        yield Finding(
            "not-a-number",
            "high",
            "the model's probabilities are no numbers: its weights, or its adapter's, are broken",
            (_raw(answer), Shown("probabilities", ", ".join(str(p) for _, _, p in answer.raw[:5]))),
            "Whatever is asked, the same token comes.",
            "Load the model without its adapter: if that is well, train again with a lower learning rate, and leave "
            "out rows without a supervised token. Else fetch the weights again.",
        )


# ---- what they have in common ----


def _answers(probed: Probed, answers: Sequence[Answer]) -> Sequence[Answer]:
    if not answers:
        raise Skip("no such question was answered: " + "; ".join(f"{p}: {why}" for p, why in probed.left_out))
    return answers


def _asked_for_calls(probed: Probed) -> Sequence[Answer]:
    answers = _answers(probed, probed.asked_for_calls(fresh=True))
    if probed.verdict is None:
        raise Skip(f"no answer came to an end of its thinking within {len(answers[0].raw)} tokens")
    return answers


def _passed(answer: Answer, probed: Probed) -> bool:
    """Whether a token at which the template ends a turn stands in the middle of the answer."""
    return probed.turn_end not in probed.ends and any(s == probed.turn_end for _, s, _ in answer.raw[:-1])


def _made_up(answer: Answer) -> list[str]:
    return [c.name for c in answer.written.calls if c.name not in answer.probe.names]


def _spelled(calls: Iterable[ToolCall]) -> str:
    return " ".join(f"{c.name} {json.dumps(c.arguments, ensure_ascii=False)}" for c in calls)


def _opener(probed: Probed) -> str:
    return shown(probed.opener.text.strip()) if probed.opener else "the tokens of a format"


def _cut(text: str) -> str:
    return f"{text[:LONGEST]}…" if len(text) > LONGEST else text


def _raw(answer: Answer) -> Shown:
    tokens = tuple((token, spelling) for token, spelling, _ in answer.raw[:MANY])
    return Shown(f"{answer.probe.id}: raw tokens, before any parser", _cut(shown(answer.text)), tokens)


def _evidence(probed: Probed, answer: Answer) -> tuple[Shown, ...]:
    return (
        Shown(f"{answer.probe.id}: asked", str(answer.probe.messages[-1]["content"])),
        _raw(answer),
        *_chances(probed, answer),
    )


def _chances(probed: Probed, answer: Answer) -> tuple[Shown, ...]:
    """What was likely where the answer begins."""
    if not answer.likeliest:
        return ()
    told = []
    for label, p in answer.chances.items():
        if label == "opener" and probed.opener:
            later = answer.opened is not None and answer.opened != answer.begins
            where = f" where it was written, at token {answer.opened}" if later else ""
            told.append(f"{_WORDS[label]} {_opener(probed)} {_opening(answer)}{where}")
        else:
            told.append(f"{_WORDS.get(label, shown(label))} {p:.4f}")
    told.append(f"the likeliest, {shown(answer.likeliest[0])!r}, {answer.likeliest[1]:.4f}")
    return (Shown(f"{answer.probe.id}: probabilities where the answer begins", "; ".join(told)),)


def _opening(answer: Answer) -> str:
    """The opener's probability: of a token, or of several as the product of each one's given those before it."""
    if len(answer.opening) < 2:
        return f"{answer.opens or 0.0:.4f}"
    return f"{' × '.join(f'{p:.4f}' for p in answer.opening)} = {answer.opens or 0.0:.4f} (token by token)"


def _put_there(probed: Probed, answers: Sequence[Answer]) -> tuple[Shown, ...]:
    """What an answer becomes with the head of a call put there, as constrained decoding would."""
    forced = next((a for a in sorted(answers, key=lambda a: not a.right_when_forced) if a.forced), None)
    if forced is None or forced.forced is None or probed.opener is None:
        return ()
    became = _spelled(forced.forced.calls) or forced.forced.note or forced.forced.kind
    label = f"{forced.probe.id}: with {shown(probed.opener.head)!r} put where the answer begins"
    return (
        Shown(
            label,
            _cut(f"{became} ({'the call that was wanted' if forced.right_when_forced else 'not what was wanted'})"),
        ),
    )


def _remedy(probed: Probed, wrong: Sequence[Answer]) -> str:
    """What would mend it, the cheapest first."""
    steps = []
    if not probed.tools_shown:
        steps.append(f"The prompt does not even name the tools, so first mend the template: {MEND}.")
    elif not probed.format:
        steps.append(f"The template shows no one format in which to write calls, so first mend it: {MEND}.")
    tried = [a for a in wrong if a.forced is not None]
    well = [a for a in tried if a.right_when_forced]
    if well:
        steps.append(
            f"Constrained decoding: with its beginning put there, {_of(well, tried)} calls are right, so `punie-mlx "
            "serve --constrain auto` (the default) is enough for requests with `tool_choice: required`. With "
            "`tool_choice: auto` the model still has to choose the opener itself."
        )
    if any(a.written.rescued for a in wrong):
        steps.append("Meanwhile `punie-mlx serve --rescue` reads those that are whole.")
    steps.append(f"To teach it the format: {LORA}.")
    return " ".join(steps)


def _of(some: Sequence[Answer], every: Sequence[Answer]) -> str:
    return f"{len(some)} of {len(every)}"


def _check(id: str, title: str, run: Callable[[Probed], Iterator[Finding]]) -> Check:
    return Check(id, "behaviour", title, run, ("not-a-number",))


CHECKS = (
    Check("not-a-number", "behaviour", "the model's probabilities are no numbers", not_a_number),
    _check("no-native-calls", "asked for a call, the model writes something else", no_native_calls),
    _check("parser-saves-you", "calls are read that other parsers would not read", parser_saves_you),
    _check("broken-calls", "calls are opened and cannot be read", broken_calls),
    _check("repeats-call", "after a result the same call comes again", repeats_call),
    _check("needless-call", "a call where words are wanted", needless_call),
    _check("made-up-tool", "a call of a tool that was not offered", made_up_tool),
    _check("wrong-arguments", "calls are not those that were asked for", wrong_arguments),
    _check("never-ends", "answers go on until they are cut off", never_ends),
)
