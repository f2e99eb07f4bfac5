"""The examination: order of harm, what follows from what, what could not be checked; and its pages of explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from punie_mlx.doctor import table
from punie_mlx.doctor.findings import AREAS, SEVERITIES, Check, Finding, Shown, Skip, examine
from punie_mlx.errors import ConfigError


def finding(check: str, severity: str = "high") -> Finding:
    return Finding(check, severity, "it is wrong", (Shown("rendered", "the text"),), "nothing works", "mend it")


def finds(*findings: Finding) -> Callable[[object], Iterator[Finding]]:
    return lambda _: iter(findings)


def test_the_worst_comes_first_and_what_follows_is_left_out() -> None:
    def cannot_tell(_: object) -> Iterator[Finding]:
        raise Skip("there is no vocabulary")

    checks = [
        Check("costs", "template", "", finds(finding("costs", "low"))),
        Check("dropped", "template", "", finds(finding("dropped"))),
        Check("several", "template", "", finds(finding("several")), follows=("dropped", "fine", "costs")),
        Check("fine", "template", "", finds(), follows=("dropped",)),
        Check("unknown", "template", "", cannot_tell),
        Check("some", "template", "", finds(finding("some", "medium")), follows=("fine", "unknown")),
    ]
    found = examine(None, checks)
    assert [f.check for f in found.findings] == ["dropped", "some", "costs"]
    assert found.passed == ("fine",)
    assert dict(found.skipped) == {"unknown": "there is no vocabulary", "several": "it follows from dropped, costs"}


def test_two_examinations_make_one() -> None:
    low = examine(None, [Check("costs", "data", "", finds(finding("costs", "low")))])
    high = examine(None, [Check("dropped", "data", "", finds(finding("dropped")))])
    assert [f.check for f in (low + high).findings] == ["dropped", "costs"]


def test_the_json_has_the_promised_keys_and_the_evidence_twice() -> None:
    told = finding("dropped").to_json()
    assert {"check", "severity", "evidence", "effect", "remedy"} <= told.keys()
    assert told["evidence"] == "rendered: the text"
    assert told["shown"] == [{"label": "rendered", "text": "the text"}]


@pytest.mark.parametrize(("severity", "shown"), [("bad", (Shown("a", "b"),)), ("high", ())])
def test_a_finding_needs_a_severity_and_evidence(severity: str, shown: tuple[Shown, ...]) -> None:
    with pytest.raises(ValueError, match=r"severity|evidence"):
        Finding("x", severity, "", shown, "", "")


# ---- the table ----


def test_every_check_has_a_name_of_its_own_an_area_and_a_page() -> None:
    checks = table.checks()
    ids = [c.id for c in checks]
    assert len(ids) == len(set(ids)) > 30
    assert {c.area for c in checks} == set(AREAS)
    assert {f"{i}.md" for i in ids} == {p.name for p in table.PAGES.iterdir()}
    for check in checks:
        text = table.explanation(check.id)
        assert text.startswith(f"# {check.id}: ")
        assert len(text.split()) > 60
        assert set(check.follows) <= set(ids), check.id


def test_a_check_that_follows_comes_after_what_it_follows_in_its_examination() -> None:
    area = {c.id: c.area for c in table.checks()}
    together = {"template", "round-trip", "vocabulary"}
    for check in table.checks():
        for other in check.follows:
            assert area[other] == check.area or {area[other], check.area} <= together, (check.id, other)


def test_an_unknown_check_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tool-calls-dropped"):
        table.explanation("../../errors")


def test_severities_are_in_order_of_harm() -> None:
    assert SEVERITIES == ("high", "medium", "low")
