"""The checks of templates on a small template of the tests: each fault in each of its forms, and what is no fault."""

from __future__ import annotations

import pytest

from punie_mlx.doctor import table
from punie_mlx.doctor.cases import OFFERED, ORBIT, Talk, user
from punie_mlx.doctor.excerpts import Frame, around, piece, shared, shared_end
from punie_mlx.doctor.findings import Examined, Finding, Skip, examine
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.doctor.template_tools import tool_choice
from tests.doctor.template_faults import ARGUMENTS, ASKS, FAIR, FAULTS, GOOD, IN_CALL, TAGS, TEXT


def examined(template: str) -> Examined:
    return examine(Specimen.of_text(template), table.checks("template"))


def faulty(old: str, new: str) -> list[Finding]:
    """What is found in the good template with `new` in the place of `old`."""
    assert old in GOOD
    return list(examined(GOOD.replace(old, new)).findings)


def test_nothing_is_found_in_a_good_template() -> None:
    found = examined(GOOD)
    assert found.findings == ()
    assert found.skipped == ()
    assert len(found.passed) == len(table.checks("template"))


@pytest.mark.parametrize(
    ("check", "severity", "summary", "evidence", "old", "new"), FAULTS, ids=[f"{f[0]}: {f[2]}" for f in FAULTS]
)
def test_a_fault_is_named_by_its_own_check_alone(
    check: str, severity: str, summary: str, evidence: str, old: str, new: str
) -> None:
    found = faulty(old, new)
    assert [(f.check, f.severity) for f in found] == [(check, severity)], [f.summary for f in found]
    assert summary in found[0].summary
    assert evidence in found[0].evidence


def test_every_check_of_templates_is_tried() -> None:
    assert {f[0] for f in FAULTS} == {c.id for c in table.checks("template")}


# ---- what is no fault ----


@pytest.mark.parametrize(("what", "old", "new"), FAIR, ids=[f[0] for f in FAIR])
def test_what_is_no_fault_is_not_named(what: str, old: str, new: str) -> None:
    template = GOOD.replace(old, new)
    if what.startswith("ids"):
        template = template.replace(
            "<tool_response>\\n' ~ content", "<tool_response id=' ~ message.tool_call_id ~ '>\\n' ~ content"
        )
    assert [(f.check, f.summary) for f in examined(template).findings] == []


def test_json_text_that_cannot_be_taken_apart_may_be_shown_whole() -> None:
    assert faulty(IN_CALL, TAGS) == []


def test_a_template_without_any_tools_has_the_faults_and_not_what_follows_from_them() -> None:
    bare = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content if m.role != 'tool' }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    found = examined(bare)
    checks = {f.check for f in found.findings}
    assert {"tools-ignored", "tool-calls-dropped", "tool-result-lost", "content-null"} <= checks
    assert not checks & {"schema-lost", "several-calls", "ids-lost", "call-text-dropped"}
    assert "follows from" in dict(found.skipped)["several-calls"]


def test_a_template_that_raises_on_everything_has_one_fault() -> None:
    found = examined("{{ raise_exception('closed for today') }}")
    assert [f.check for f in found.findings] == ["render-error"]
    assert "closed for today" in found.findings[0].evidence
    assert not found.passed  # of a prompt that there is not, nothing can be right


def test_a_template_that_cannot_be_compiled_has_one_fault() -> None:
    found = examined("{% if messages %}{{ messages[0].content }")
    assert [f.check for f in found.findings] == ["render-error"]


def test_a_template_for_requests_with_tools_only_is_looked_at_with_tools() -> None:
    found = examined("{{- tools[0].function.name[:0] -}}" + GOOD)
    assert [(f.check, f.severity) for f in found.findings] == [("render-error", "medium")]
    assert "without tools" in found.findings[0].summary


@pytest.mark.parametrize(
    "order",
    [
        "Always answer with a tool call.",
        "You must call a function in every reply.",
        "Every answer must be a tool call!",
        "Respond only with a function call",
        "Given these functions, please respond with a JSON for a function call with its proper arguments.",
        "Never answer without calling a tool.",
    ],
)
def test_orders_to_call_are_read(order: str) -> None:
    template = GOOD.replace(ASKS, "{{- " + repr(order + "\n") + " -}}" + ASKS)
    (found,) = tool_choice(Specimen.of_text(template))
    assert order.rstrip(".!")[-20:] in found.evidence


# ---- conversations and excerpts ----


def test_calls_are_written_in_the_spelling_that_a_template_takes() -> None:
    assert Talk.of(Specimen.of_text(GOOD)) == Talk()
    text_only = GOOD.replace(ARGUMENTS, "('' + arguments)")
    assert Talk.of(Specimen.of_text(text_only)) == Talk(as_text=True)
    words_only = GOOD.replace(TEXT, TEXT + "{{- raise_exception('say something') if not content -}}")
    assert Talk.of(Specimen.of_text(words_only)).content


def test_the_frame_of_a_user_and_the_word_of_the_assistant_are_learned() -> None:
    frame = Frame.of(Specimen.of_text(GOOD))
    assert frame.before.endswith("user\n")
    assert frame.after.startswith("<|im_end|>\n")
    assert frame.assistant_word == "assistant"
    asked = Specimen.of_text(GOOD).render([user()]).text
    assert frame.holds(asked, "Where is buoy Fennrick?")
    looped = Specimen.of_text(GOOD).render(Talk().loop(), OFFERED).text
    assert not frame.holds(looped, ORBIT.result)
    assert not frame.holds(asked, "not there")


def test_turns_that_differ_in_nothing_leave_a_check_without_an_answer() -> None:
    same = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert "generation-prompt" in dict(examined(same).skipped)
    with pytest.raises(Skip):
        Frame.of(Specimen.of_text("nothing"))


def test_excerpts_are_cut_where_something_is_left_out() -> None:
    text = "a" * 300 + "KEY" + "b" * 300
    assert around(text, "KEY", reach=2) == "…aaKEYbb…"
    assert around("KEY", "KEY") == "KEY"
    assert around(text, "missing").endswith("b")
    assert piece(text, 0, 600) == "a" * 110 + "…" + "b" * 110 + "…"
    assert piece("<|im_start|>user hello<|im_end|> and 1 < 2", 4, 26) == "<|im_start|>user hello<|im_end|>…"
    assert piece("x" * 50 + " < " + "y" * 50, 40, 60) == "…" + "x" * 10 + " < " + "y" * 7 + "…"
    assert shared("abcd", "abxd", "abcd") == "ab"
    assert shared("ab", "ab") == shared("ab", "abc") == "ab"
    assert shared("", "a") == ""
    assert shared_end("xbc", "ybc") == "bc"
