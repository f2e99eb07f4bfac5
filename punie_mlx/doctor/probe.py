"""The model is asked, and what it writes is looked at before any parser has read it.

    probed = probe(direct.Model(directory, adapter), Specimen.of_model(directory))
    print(probed.verdict, probed.to_json())

Prompts are those that the server would send: the model's own template, no text of a message a control token. Generation
is greedy, and both tokens and seconds are bounded. Where the opener of a call is several tokens, its probability is the
product of each one's, given those before it: where it was written, or else where the answer begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from punie_mlx import raw
from punie_mlx.chat.render import Prompt, safe_prompt
from punie_mlx.chat.safe import vocabulary
from punie_mlx.direct import Model
from punie_mlx.doctor.probed import Answer, Probed
from punie_mlx.doctor.probes import PROBES, Probe
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.doctor.written import NATIVE, Opener, Written, look
from punie_mlx.errors import DataError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.wire import Format

THINK = ("<think>", "</think>")
ANALYSIS = ("<|channel|>analysis", "<|end|>")
FENCE = "```json\n"
LONGEST = 32  # tokens of an opener or a head that are looked at
TAIL = 160  # characters of a prompt that are shown
ENDS = 4  # end tokens that are watched


@dataclass(frozen=True)
class Limits:
    """Where a probing ends: tokens of an answer, tokens of thinking before it, and seconds for all answers."""

    answer: int = 256
    thinking: int = 800
    seconds: float = 300.0


def probe(
    model: Model,
    specimen: Specimen,
    *,
    probes: Sequence[Probe] = PROBES,
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Probed:
    """Ask `model` with the template of `specimen`. A probe that cannot be rendered or has no time left is left out."""
    limits = limits or Limits()
    asking = _Asking(model, specimen, limits, time.monotonic() + limits.seconds)
    answers: list[Answer] = []
    left_out: list[tuple[str, str]] = []
    for each in probes:
        if time.monotonic() >= asking.until:
            left_out.append((each.id, asking.late))
            continue
        tell(each.about)
        try:
            answers.append(asking.ask(each))
        except (DataError, TimeoutError) as e:
            left_out.append((each.id, str(e)))
    return Probed(
        name=specimen.name,
        format=asking.wire.name if asking.wire else "",
        opener=asking.opener,
        answers=tuple(answers),
        left_out=tuple(left_out),
        tools_shown=asking.tools_shown,
        ends=tuple(model.spelled(i) for i in sorted(model.ends)),
        turn_end=_turn_end(specimen),
    )


class _Asking:
    """One model, asked several times with one template."""

    def __init__(self, model: Model, specimen: Specimen, limits: Limits, until: float) -> None:
        self.model, self.limits, self.until = model, limits, until
        self.late = f"the {limits.seconds:g} seconds of the probing were over"
        self.tokenizer = specimen.tokenizer if specimen.has_vocabulary else model.tokenizer
        self.wire = specimen.wire
        self.think = _thinking(specimen, self.wire)
        self.opener = opener_of(self.wire, self.tokenizer) if self.wire else None
        self.watched = self._watched()
        self.tools_shown = True

    def _watched(self) -> dict[str, int]:
        """The tokens of which each step's probability is kept, by what they are."""
        first = {"opener": self.opener.tokens if self.opener else (), "fence": _encode(self.tokenizer, FENCE)}
        if self.think[0]:
            first["thinking"] = _encode(self.tokenizer, self.think[0])
        watched = {label: tokens[0] for label, tokens in first.items() if tokens}
        for token in sorted(self.model.ends)[:ENDS]:
            watched[f"end {self.model.spelled(token)}"] = token
        if self.wire is None:  # nothing says which of them is the model's own
            known = self.tokenizer.get_vocab()
            watched |= {f.open: known[f.open] for f in formats.FORMATS.values() if f.open in known}
        return watched

    def ask(self, probe: Probe) -> Answer:
        """Raises `DataError` where the template cannot render the question, `TimeoutError` where time is over."""
        prompt = safe_prompt(self.tokenizer, probe.messages, probe.tools)
        self.tools_shown = self.tools_shown and all(name in prompt.text for name in probe.names)
        steps = self._generate(prompt)
        in_reasoning = prompt.opens(self.think[0])
        begins = _begins(steps, self.think, in_reasoning)
        ended = bool(steps) and steps[-1].end
        full = len(steps) - (begins or 0) >= self.limits.answer  # or it thought for as long as it may
        if not (ended or full):  # what was cut off by the clock says nothing of the model
            raise TimeoutError(self.late)
        said = [s for s in steps if not s.end]
        written = self._look([(s.token, s.text) for s in said], probe, in_reasoning, cut=not ended)
        answer = Answer(
            probe=probe,
            prompt=_tail(prompt.text),
            raw=tuple((s.token, s.spelling, s.probability) for s in steps),
            text="".join(s.text for s in said),
            ended=ended,
            cut=not ended and begins is not None,
            written=written,
            begins=begins,
        )
        return answer if begins is None else self._at_the_beginning(answer, prompt, steps, begins)

    def _generate(self, prompt: Prompt) -> list[raw.Step]:
        """The steps of an answer: so many of thinking, and so many behind it."""
        steps: list[raw.Step] = []
        limits, in_reasoning = self.limits, prompt.opens(self.think[0])
        left = max(self.until - time.monotonic(), 0.0)
        thinking = max(limits.thinking, limits.answer)  # what says nothing at all may go on for as long as an answer
        for step in raw.watch(self.model, prompt.tokens, self.watched, most=thinking + limits.answer, seconds=left):
            steps.append(step)
            if len(steps) >= limits.answer:
                begins = _begins(steps, self.think, in_reasoning)
                if len(steps) >= (thinking if begins is None else begins + limits.answer):
                    break
        return steps

    def _look(self, pieces: list[tuple[int, str]], probe: Probe, in_reasoning: bool, *, cut: bool) -> Written:
        return look(
            pieces,
            self.wire,
            probe.offered,
            opener=self.opener,
            control=self.model.control,
            in_reasoning=in_reasoning,
            cut=cut,
        )

    def _at_the_beginning(self, answer: Answer, prompt: Prompt, steps: Sequence[raw.Step], begins: int) -> Answer:
        """`answer` with what the model held likely where it begins, and what it writes behind the head of a call."""
        step, opener = steps[begins], self.opener
        answer = replace(answer, chances=dict(step.watched), likeliest=(step.top[0][1], step.top[0][2]))
        if opener is None:
            return answer
        before = [*prompt.tokens, *(s.token for s in steps[:begins])]
        found = opener.find([s.token for s in steps[begins:]])
        written = begins + found if found >= 0 else -1
        opening = (step.watched["opener"],)
        if written >= 0:
            opening = tuple(s.probability for s in steps[written : written + len(opener.tokens)])
        elif not opener.single:
            opening = tuple(raw.likelihood(self.model, before, list(opener.tokens)))
        forced = None
        if (
            answer.probe.wants
            and answer.probe.fresh
            and answer.written.kind != NATIVE
            and time.monotonic() < self.until
        ):
            forced = self._forced(answer.probe, before, opener)
        return replace(answer, opening=opening, opened=written if written >= 0 else None, forced=forced)

    def _forced(self, probe: Probe, before: list[int], opener: Opener) -> Written | None:
        """What becomes of the head of a call behind `before`; None where the clock ran out."""
        head = [(token, self.tokenizer.decode([token])) for token in opener.head_tokens]
        left = max(self.until - time.monotonic(), 0.0)
        prompt = [*before, *opener.head_tokens]
        steps = list(raw.watch(self.model, prompt, {}, most=self.limits.answer, seconds=left))
        said = [(s.token, s.text) for s in steps if not s.end]
        if len(steps) < self.limits.answer and not (steps and steps[-1].end):
            return None
        return self._look([*head, *said], probe, in_reasoning=False, cut=not (steps and steps[-1].end))


def opener_of(wire: Format, tokenizer: Any) -> Opener | None:
    """How a call of `wire` begins in the tokens of `tokenizer`; None for a format that begins with the tool's name."""
    one, other = (wire.render([ToolCall(name, {"path": "x"})]) for name in ("read_file", "start_server"))
    head = one[: _shared(one, other)]
    marker = wire.open if wire.open and head.lstrip().startswith(wire.open) else head
    tokens, head_tokens = (_stable(tokenizer, part, one, other) for part in (marker, head))
    if not tokens:
        return None
    return Opener(marker, tokens, head, head_tokens if len(head_tokens) >= len(tokens) else tokens)


def _stable(tokenizer: Any, part: str, one: str, other: str) -> tuple[int, ...]:
    """The tokens of `part` that stay the same whatever follows it in `one` and in `other`."""
    known = tokenizer.get_vocab().get(part)
    if known is not None:
        return (known,)
    own, *whole = (_encode(tokenizer, text) for text in (part, one, other))
    return tuple(own[: min(LONGEST, *(_shared(own, text) for text in whole))])


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` as it stands behind a prompt."""
    return vocabulary(tokenizer).encode(text, (), continued=True)


def _thinking(specimen: Specimen, wire: Format | None) -> tuple[str, str]:
    """The tags around thinking: those of the format, or those that the template shows."""
    if wire is not None and wire.name == "harmony":
        return ANALYSIS
    opening, closing = wire.think if wire else specimen.detection.think or THINK
    return opening.strip(), closing.strip()


def _begins(steps: Sequence[raw.Step], think: tuple[str, str], in_reasoning: bool) -> int | None:
    """The step at which the answer begins, behind thinking and white space."""
    opening, closing = think
    texts = [s.text or (s.spelling if s.end else "") for s in steps]
    start = 0
    if in_reasoning or (opening and "".join(texts).lstrip().startswith(opening)):
        said = ""
        for start, text in enumerate(texts, 1):  # noqa: B007  it is used behind the loop
            said += text
            if closing in said:
                break
        else:
            return None
    return next((i for i in range(start, len(texts)) if texts[i].strip()), None)


def _turn_end(specimen: Specimen) -> str:
    """The token that the template writes behind an answer; "" where it writes none."""
    said = "Zeeland-71"
    rendered = specimen.render(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}], add_generation_prompt=False
    )
    _, found, behind = rendered.text.rpartition(said)
    behind = behind.lstrip()
    control = getattr(specimen.tokenizer, "added_tokens_decoder", {}).values()
    return next((t.content for t in control if found and t.content and behind.startswith(t.content)), "")


def _tail(prompt: str) -> str:
    return f"…{prompt[-TAIL:]}" if len(prompt) > TAIL else prompt
