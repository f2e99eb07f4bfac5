"""Real templates: what is found in each, word for word, and every bit of it proved by rendering once more."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat.alone import Alone
from punie_mlx.doctor import table
from punie_mlx.doctor.excerpts import CUT
from punie_mlx.doctor.findings import Shown, examine
from punie_mlx.doctor.specimen import Rendering, Specimen
from tests.doctor.goldens import GOLDEN, findings, told
from tests.doctor.proofs import PROOFS

NAMES = sorted(p.stem for p in GOLDEN.glob("*.json"))
_ABSENT = re.compile(r"(?:does|do) not hold")


@dataclass(frozen=True)
class Watched(Specimen):
    """Keeps what was asked of it, with what came of it."""

    asked: list[tuple[str, str]] = field(default_factory=list, compare=False)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> Rendering:
        made = super().render(messages, tools, **kwargs)
        self.asked.append((repr((messages, tools, kwargs)), made.error or made.text))
        return made


@cache
def specimen(file: Path) -> Specimen:
    return Specimen.of_file(file)


def golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def test_every_real_template_has_a_golden_file(real_data: Path) -> None:
    assert sorted(p.stem for p in (real_data / "templates").glob("*.jinja")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_in_a_real_template_and_every_piece_of_evidence(name: str, real_data: Path) -> None:
    template = (real_data / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    watched = Watched(template, Alone(template), name)
    found = findings(watched)
    assert told(watched) == golden(name)
    for finding in found:
        for shown in finding.shown:
            assert stands(shown, watched), (finding.check, shown)


def stands(shown: Shown, watched: Watched) -> bool:
    """Whether the evidence is what it says: in a prompt word for word, or in what was asked and in no such prompt."""
    if _ABSENT.search(shown.label):
        words = shown.text.split(", ")
        return any(all(w in asked and w not in made for w in words) for asked, made in watched.asked)
    if shown.label == "the text":
        return any(repr(shown.text)[1:-1] in asked or shown.text[1:-1] in asked for asked, _ in watched.asked)
    pieces = [p for p in shown.text.split(CUT) if p]
    return any(all(p in text for p in pieces) for text in (*(made for _, made in watched.asked), watched.template))


@pytest.mark.parametrize(
    ("name", "check"), [(name, found["check"]) for name in NAMES for found in golden(name)], ids=lambda v: v
)
def test_what_is_found_shows_itself_in_other_words_too(name: str, check: str, real_data: Path) -> None:
    assert PROOFS[check](specimen(real_data / "templates" / f"{name}.jinja"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_found_does_not_show_itself(name: str, real_data: Path) -> None:
    template = specimen(real_data / "templates" / f"{name}.jinja")
    passed = examine(template, table.checks("template")).passed
    assert [check for check in passed if check in PROOFS and PROOFS[check](template)] == []


def test_the_faults_of_smollm3_are_found() -> None:
    found = {f["check"]: f for f in golden("HuggingFaceTB-SmolLM3-3B")}
    for check in ("tools-ignored", "tool-calls-dropped", "tool-result-as-user", "thinking-reversed"):
        assert found[check]["severity"] == "high"
    result, user = found["tool-result-as-user"]["shown"].values()
    assert "<|im_start|>user\nperigee Kestrel-19<|im_end|>" in result
    assert "<|im_start|>user\nWhere is buoy Fennrick?<|im_end|>" in user
    assert "<think>\n\n</think>" in found["thinking-reversed"]["shown"]["enable_thinking=False"]
    assert "think>" not in found["thinking-reversed"]["shown"]["enable_thinking=True"]


def test_evidence_holds_no_date_and_is_short() -> None:
    for name in NAMES:
        for finding in golden(name):
            for text in finding["shown"].values():
                assert len(text) <= 460, (name, finding["check"])
                assert not re.search(r"20\d\d-\d\d-\d\d", text), name
