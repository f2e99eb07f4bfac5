"""What the template makes of thinking: its switches, and the thinking of earlier steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.doctor import cases
from punie_mlx.doctor.cases import THOUGHT, Talk
from punie_mlx.doctor.excerpts import around, piece, shared, shared_end
from punie_mlx.doctor.findings import Check, Finding, Skip
from punie_mlx.doctor.specimen import Specimen


@dataclass(frozen=True)
class Setting:
    """One position of a switch: variables of the template, or words of the system message."""

    label: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    system: str = cases.SYSTEM

    def render(self, specimen: Specimen, messages: list[cases.Message]) -> str:
        return cases.seen(specimen, [cases.system(self.system), *messages], **self.kwargs)


def switches(specimen: Specimen) -> list[tuple[Setting, Setting]]:
    """The switches that the template knows, each on and off."""
    found = []
    for name in specimen.mentions("enable_thinking", "thinking"):
        found.append((Setting(f"{name}=True", {name: True}), Setting(f"{name}=False", {name: False})))
    if specimen.mentions("thinking_budget"):
        found.append((Setting("thinking_budget=4096", {"thinking_budget": 4096}), _budget(0)))
    if "/no_think" in specimen.template and "/think" in specimen.template.replace("</think", ""):
        on, off = (Setting(w, system=f"{cases.SYSTEM} {w}") for w in ("/think", "/no_think"))
        found.append((on, off))
    return found


def _budget(tokens: int) -> Setting:
    return Setting(f"thinking_budget={tokens}", {"thinking_budget": tokens})


def thinking_reversed(specimen: Specimen) -> Iterator[Finding]:
    """Switches of thinking do something, and what they say."""
    found = switches(specimen)
    efforts = specimen.mentions("reasoning_effort")
    if not found and not efforts:
        raise Skip("the template has no switch for thinking")
    for on, off in found:
        fault = _without_effect(specimen, on, off) or _reversed(specimen, on, off)
        if fault:
            yield fault
            return
    for name in efforts:
        low, high = (Setting(f"{name}={v}", {name: v}) for v in ("low", "high"))
        if fault := _without_effect(specimen, high, low) or _exchanged(specimen, high, low):
            yield fault


def _without_effect(specimen: Specimen, on: Setting, off: Setting) -> Finding | None:
    texts = {s.label: s.render(specimen, [cases.user()]) for s in (on, off)}
    bare = cases.seen(specimen, [cases.system(on.system), cases.user()], add_generation_prompt=False, **on.kwargs)
    if bare == texts[on.label]:
        return None  # where nothing opens the assistant's turn, no switch can show there
    if len({text.replace(s.system, "") for text, s in zip(texts.values(), (on, off), strict=True)}) > 1:
        return None
    ends = ((label, piece(text, len(text) - 80, len(text))) for label, text in texts.items())
    return _finding("medium", f"{on.label} and {off.label} make the same prompt.", specimen, *ends)


def _exchanged(specimen: Specimen, high: Setting, low: Setting) -> Finding | None:
    """Where the prompt names the effort: by the other one's word."""
    texts = {s.label: s.render(specimen, [cases.user()]) for s in (high, low)}
    begin, end = len(shared(*texts.values())), len(shared_end(*texts.values()))
    told = {label: text[begin : len(text) - end] for label, text in texts.items()}
    if not ("low" in told[high.label] and "high" in told[low.label]):
        return None
    pieces = ((label, piece(text, begin - 40, len(text) - end + 20)) for label, text in texts.items())
    return _finding("high", f"{high.label} and {low.label} name each other's effort.", specimen, *pieces)


def _reversed(specimen: Specimen, on: Setting, off: Setting) -> Finding | None:
    if not specimen.detection.think:
        return None
    opening, closing = (t.strip() for t in specimen.detection.think)
    made = {s.label: s.render(specimen, [cases.user()]) for s in (on, off)}
    tails = {label: text.rstrip() for label, text in made.items()}
    ends = [(label, piece(text, len(text) - 80, len(text))) for label, text in made.items()]
    if tails[off.label].endswith(opening):
        return _finding("high", f"With {off.label} the prompt opens thinking.", specimen, *ends)
    if tails[on.label].endswith(closing):
        return _finding("high", f"With {on.label} the prompt closes thinking before it begins.", specimen, *ends)
    # Turns before the user's last message may lose their thinking: that is how many models are made.
    loop = Talk.of(specimen).loop(thought=THOUGHT)
    texts = {s.label: s.render(specimen, loop) for s in (on, off)}
    counts = {label: _history(text).count(opening) for label, text in texts.items()}
    if counts[on.label] >= counts[off.label]:
        return None
    told = on.render(specimen, [cases.user(), cases.answer() | {cases.THINKING: THOUGHT}])
    if THOUGHT in told:
        return None  # it is only beside calls that thinking is lost: reasoning-dropped says so
    return _finding(
        "high",
        f"With {on.label} the turns of history hold no thinking; with {off.label} they hold its tags.",
        specimen,
        *((label, around(text, cases.FIRST, cases.ORBIT.result, reach=30)) for label, text in texts.items()),
    )


def _history(text: str) -> str:
    """The prompt up to its last message: without the generation prompt."""
    return text[: max(text.rfind(w) for w in (cases.FIRST, cases.SECOND, cases.ORBIT.result))]


def _finding(severity: str, summary: str, specimen: Specimen, *shown: tuple[str, str]) -> Finding:
    return Finding(
        "thinking-reversed",
        severity,
        summary,
        tuple(specimen.show(*s) for s in shown),
        "The model is shown the opposite of what was asked for: it skips thinking when told to think, or thinks when "
        "told not to, and its thinking lands in the answer.",
        "With thinking off, end the prompt with an empty closed block; with thinking on, leave the turn open, and keep "
        "`reasoning_content` of the steps after the user's last message in history.",
    )


def reasoning_dropped(specimen: Specimen) -> Iterator[Finding]:
    """What the model thought before a call is there when the result comes."""
    if not specimen.detection.think and specimen.detection.format != "harmony":
        raise Skip("the template shows no tags of thinking")
    on = next((on.kwargs for on, _ in switches(specimen) if on.kwargs), {})
    talk = Talk.of(specimen)
    text = cases.seen(specimen, talk.loop(thought=THOUGHT), cases.OFFERED, **on)
    if cases.ORBIT.name not in text:
        raise Skip("the turn that calls is not shown: tool-calls-dropped says so")
    if THOUGHT not in text:
        yield Finding(
            "reasoning-dropped",
            "medium",
            "What the model thought before a call is left out when the result comes.",
            (
                specimen.show("what the prompt does not hold", THOUGHT),
                specimen.show("the turn as the prompt shows it", around(text, cases.FIRST, cases.ORBIT.name, reach=30)),
            ),
            "In a loop of several calls the model begins its plan anew at each step, or loses it.",
            "Write `message.reasoning_content` between the tags, for turns after the user's last message.",
        )


CHECKS = (
    Check("thinking-reversed", "template", "The switch of thinking is reversed or dead", thinking_reversed),
    Check(
        "reasoning-dropped",
        "template",
        "Thinking is lost between the calls of a loop",
        reasoning_dropped,
        follows=("thinking-reversed", "tool-calls-dropped"),
    ),
)
