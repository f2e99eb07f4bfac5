"""What came of a probing: each answer with its raw tokens and probabilities, and the verdict on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.doctor.probes import Probe
from punie_mlx.doctor.written import CODE, FENCE, LENIENT, MALFORMED, NATIVE, OTHER, PROSE, Opener, Written, mostly
from punie_mlx.doctor.written import shown as readable

VERDICTS = {
    NATIVE: "emits native tokens",
    FENCE: "writes fences",
    CODE: "writes code that calls the tool",
    PROSE: "prose",
    MALFORMED: "malformed",
    LENIENT: "malformed",
    OTHER: "malformed",
}

Raw = tuple[int, str, float]
"""A token, its spelling, its probability."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote to a probe.

    cut: it did not end within the tokens that it may have. begins: the step at which the answer begins, behind thinking
    and white space; None where it never does. chances: probabilities there, by label, and `likeliest` the likeliest
    token of all. opening: of each token of the opener, given those before it, at the step `opened` where it was
    written, or else there. forced: what the answer becomes if the head of a call is put there.
    """

    probe: Probe
    prompt: str
    raw: tuple[Raw, ...]
    text: str
    ended: bool
    written: Written
    cut: bool = False
    begins: int | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    likeliest: tuple[str, float] | None = None
    opening: tuple[float, ...] = ()
    opened: int | None = None
    forced: Written | None = None

    @property
    def opens(self) -> float | None:
        """The probability of the whole opener where it was written, or else where the answer begins."""
        return math.prod(self.opening) if self.opening else None

    @property
    def right(self) -> bool:
        """Whether it is the call that was wanted, or words where they were."""
        return _right(self.written, self.probe)

    @property
    def right_when_forced(self) -> bool:
        return self.forced is not None and _right(self.forced, self.probe)

    @property
    def numbers(self) -> bool:
        """Whether the model's probabilities are numbers at all."""
        return all(math.isfinite(p) for _, _, p in self.raw)

    def to_json(self) -> dict[str, Any]:
        told = {
            "probe": self.probe.id,
            "asked": self.probe.about,
            "wants": _call(self.probe.wants.name, self.probe.wants.arguments) if self.probe.wants else None,
            "right": self.right,
            "kind": self.written.kind,
            "note": self.written.note,
            "calls": [_call(c.name, c.arguments) for c in self.written.calls],
            "prompt": self.prompt,
            "text": self.text,
            "tokens": [[token, spelling, _number(p)] for token, spelling, p in self.raw],
            "ended": self.ended,
            "begins": self.begins,
            "chances": {label: _number(p) for label, p in self.chances.items()},
            "likeliest": [self.likeliest[0], _number(self.likeliest[1])] if self.likeliest else None,
            "opener": {"tokens": [_number(p) for p in self.opening], "whole": _number(self.opens), "at": self.opened},
        }
        if self.forced is not None:
            told["forced"] = {"kind": self.forced.kind, "note": self.forced.note, "right": self.right_when_forced}
        return told


def _right(written: Written, probe: Probe) -> bool:
    return list(written.calls) == [probe.wants] if probe.wants else not written.is_call


def _call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "arguments": dict(arguments)}


def _number(p: float | None) -> float | None:
    """A probability as JSON can hold it."""
    return round(p, 6) if p is not None and math.isfinite(p) else None


@dataclass(frozen=True)
class Probed:
    """A model that was asked. `format`: the wire format that its template shows; "" where it shows none or several.

    tools_shown: the prompt holds the names of the tools. left_out: probes that got no answer, and why. ends: spellings
    of the tokens that end an answer. turn_end: what the template writes behind one.
    """

    name: str
    format: str
    opener: Opener | None
    answers: tuple[Answer, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    tools_shown: bool = True
    ends: tuple[str, ...] = ()
    turn_end: str = ""

    def asked_for_calls(self, *, fresh: bool | None = None) -> tuple[Answer, ...]:
        """The answers to probes that want a call; those whose history shows none, or one, on request."""
        return tuple(a for a in self.answers if a.probe.wants and (fresh is None or a.probe.fresh == fresh))

    def asked_for_words(self) -> tuple[Answer, ...]:
        return tuple(a for a in self.answers if not a.probe.wants)

    @property
    def kind(self) -> str | None:
        """What it mostly writes where a call is wanted, and nothing in its history shows how calls are written."""
        return mostly(a.written.kind for a in self.asked_for_calls(fresh=True))

    @property
    def verdict(self) -> str | None:
        """One of `VERDICTS`; None where no answer came to an end."""
        if self.kind == OTHER and not self.format:
            return VERDICTS[NATIVE]  # the format is the model's own, and only its template keeps it to itself
        return VERDICTS[self.kind] if self.kind else None

    def opened(self, answer: Answer) -> bool:
        """Whether the opener's tokens came in `answer`, behind its thinking."""
        tokens = [token for token, _, _ in answer.raw[answer.begins or 0 :]]
        return self.opener is not None and self.opener.find(tokens) >= 0

    def of_kind(self, *kinds: str) -> tuple[Answer, ...]:
        """The answers of these kinds where a call was wanted and nothing in the history shows one."""
        return tuple(a for a in self.asked_for_calls(fresh=True) if a.written.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        """What is learned of the model, JSON-able."""
        opener = self.opener and {
            "text": readable(self.opener.text),
            "tokens": list(self.opener.tokens),
            "how": "one token" if self.opener.single else "several tokens: the product of each one's probability",
        }
        return {
            "verdict": self.verdict,
            "model": self.name,
            "format": self.format or None,
            "opener": opener,
            "tools_shown": self.tools_shown,
            "answers": [a.to_json() for a in self.answers],
            "left_out": [{"probe": probe, "why": why} for probe, why in self.left_out],
        }
