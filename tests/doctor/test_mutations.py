"""A fault that is planted in a good template is named by its own check, and by no other; good templates have none."""

from __future__ import annotations

import pytest

from punie_mlx.chat.templates import FAMILIES, make
from punie_mlx.doctor import table
from punie_mlx.doctor.mend import mend
from punie_mlx.doctor.specimen import Specimen

from .mutations import MUTATIONS, Mutation
from .once import examined_once, found, kept  # noqa: F401 (the first is a fixture)

AREAS = ("template", "round-trip")
CHATML = ("<|im_start|>", "<|im_end|>")
GOOD = {
    **{family: make(family) for family in FAMILIES},
    "newer Mistral": make("mistral", ["[INST]", "[/INST]", "[ARGS]", "[SYSTEM_PROMPT]"]),
    "Mistral with a token before the text of a result": make("mistral", template="[SYSTEM_PROMPT][TOOL_CONTENT]"),
    "Mistral with spaces behind its tokens": make("mistral", template="[INST] "),
    "Hermes of Nous": make("hermes", [*CHATML, "<|begin_of_text|>"]),
    "SmolLM3 with markers of private use": make("smollm3", [*CHATML, "\ue00f", "\ue010"], markers=("\ue00f", "\ue010")),
}


@pytest.mark.parametrize("template", GOOD.values(), ids=GOOD.keys())
def test_a_good_template_has_no_finding(template: str) -> None:
    examined = kept(Specimen.of_text(template))
    assert [(f.check, f.evidence) for f in examined.findings] == []
    needs_more = {"thinking-reversed", "reasoning-dropped"} | {c.id for c in table.checks("vocabulary")}
    assert {check for check, _ in examined.skipped} <= needs_more


def test_mistral_with_ids_of_calls_is_good_but_for_mlx_lm() -> None:
    """As Small 3.2 was trained: mlx_lm's reader takes the id for the name."""
    assert found(make("mistral", template="[ARGS][CALL_ID][SYSTEM_PROMPT]")) == ["mlx-parser"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_fault_is_named_by_its_own_check_alone_and_mended(mutation: Mutation) -> None:
    assert found(mutation.template) == [mutation.check]
    ill = Specimen.of_text(mutation.template)
    mended = mend(ill, kept(ill))
    assert mended is not None
    assert mended.cleared == (mutation.check,)
    assert found(mended.template) == []
    assert mended.diff
    assert bool(mended.rewrites) == (mended.way == "rewrite") == (mended.family is None)


def test_each_check_has_a_fault_and_each_family_has_several() -> None:
    assert {m.check for m in MUTATIONS} == {c.id for c in table.checks(*AREAS)}
    assert len({m.template for m in MUTATIONS}) == len(MUTATIONS) >= 25
    for family in FAMILIES:
        assert sum(m.family == family for m in MUTATIONS) >= 4, family
