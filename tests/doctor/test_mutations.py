"""A fault that is planted in a good template is named by its own check, and by no other; good templates have none."""

from __future__ import annotations

import pytest

from punie_mlx.chat.templates import FAMILIES, make
from punie_mlx.doctor import table
from punie_mlx.doctor.findings import Examined, examine
from punie_mlx.doctor.specimen import Specimen

from .mutations import MUTATIONS, Mutation

AREAS = ("template", "round-trip")
CHATML = ("<|im_start|>", "<|im_end|>")
GOOD = {
    **{family: make(family) for family in FAMILIES},
    "newer Mistral": make("mistral", ["[INST]", "[/INST]", "[ARGS]", "[SYSTEM_PROMPT]"]),
    "Hermes of Nous": make("hermes", [*CHATML, "<|begin_of_text|>"]),
    "SmolLM3 with markers of private use": make("smollm3", [*CHATML, "\ue00f", "\ue010"], markers=("\ue00f", "\ue010")),
}


def examined(template: str) -> Examined:
    return examine(Specimen.of_text(template), table.checks(*AREAS))


@pytest.mark.parametrize("template", GOOD.values(), ids=GOOD.keys())
def test_a_good_template_has_no_finding(template: str) -> None:
    found = examined(template)
    assert [(f.check, f.evidence) for f in found.findings] == []
    only_where_it_thinks = {"thinking-reversed", "reasoning-dropped"}
    assert {check for check, _ in found.skipped} <= only_where_it_thinks


def test_mistral_with_ids_of_calls_is_good_but_for_mlx_lm() -> None:
    """As Small 3.2 was trained: mlx_lm's reader takes the id for the name."""
    found = examined(make("mistral", template="[ARGS][CALL_ID][SYSTEM_PROMPT]"))
    assert [f.check for f in found.findings] == ["mlx-parser"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_fault_is_named_by_its_own_check_alone(mutation: Mutation) -> None:
    assert [f.check for f in examined(mutation.template).findings] == [mutation.check]


def test_each_check_has_a_fault_and_each_family_has_several() -> None:
    assert {m.check for m in MUTATIONS} == {c.id for c in table.checks(*AREAS)}
    assert len({m.template for m in MUTATIONS}) == len(MUTATIONS) >= 25
    for family in FAMILIES:
        assert sum(m.family == family for m in MUTATIONS) >= 4, family
