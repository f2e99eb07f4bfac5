"""Rows against the prompt that is served: each fault is planted in a row of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat.render import encode, render
from punie_mlx.doctor import data
from punie_mlx.doctor.data import DataSubject
from punie_mlx.doctor.findings import Examined, Finding, examine
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import DataError

Row = dict[str, Any]
PARAMETERS = {"type": "object", "properties": {"pier": {"type": "string"}}, "required": ["pier"]}
TOOL = {"type": "function", "function": {"name": "reserve_berth", "description": "Reserve.", "parameters": PARAMETERS}}
CALL = {"type": "function", "function": {"name": "reserve_berth", "arguments": {"pier": "Ostrava-12"}}}
ASKED = {"role": "user", "content": "A berth at Ostrava-12, please."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "slip 26"}
ANSWER = {"role": "assistant", "content": "It is slip 26."}
GOOD: Row = {"messages": [ASKED, CALLING, RESULT, ANSWER], "tools": [TOOL]}
FENCE = '```json\n{"name": "reserve_berth", "arguments": {"pier": "Ostrava-12"}}\n```'


@pytest.fixture(scope="module")
def specimen(tiny_base: Path) -> Specimen:
    return Specimen.of_model(tiny_base)


def look(specimen: Specimen, path: Path, *rows: Row | str, limit: int = 200) -> Examined:
    file = path / "train.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return examine(DataSubject(specimen, path, limit), data.CHECKS)


def by_check(examined: Examined) -> dict[str, Finding]:
    return {f.check: f for f in examined.findings}


def text_row(specimen: Specimen, tools: list[Row]) -> str:
    return render(specimen.tokenizer, GOOD["messages"], tools)


def test_rows_in_structure_are_right(specimen, tmp_path):
    examined = look(specimen, tmp_path, GOOD)
    assert not examined.findings and not examined.skipped


def test_a_ready_made_text_as_the_template_writes_it_is_right(specimen, tmp_path):
    for before in ([], [{"role": "system", "content": "Be the pilot Quillon."}]):
        text = render(specimen.tokenizer, [*before, *GOOD["messages"]], [TOOL])
        assert not look(specimen, tmp_path, {"text": text, "tools": [TOOL]}).findings


def test_the_corpora_that_we_ship(specimen, root):
    fences = by_check(examine(DataSubject(specimen, root / "data" / "phase8_json_format", 20), data.CHECKS))
    assert set(fences) == {"data-call-format", "data-results", "data-prompt-differs"}
    assert fences["data-call-format"].shown[0].label == "train.jsonl:1"
    converted = examine(DataSubject(specimen, root / "data" / "phase8_xml_format", 20), data.CHECKS)
    assert not converted.findings and not converted.skipped


def test_calls_in_fences(specimen, tmp_path):
    row = GOOD | {"messages": [ASKED, {"role": "assistant", "content": FENCE}, RESULT, ANSWER]}
    found = by_check(look(specimen, tmp_path, row, GOOD))
    assert set(found) == {"data-call-format", "data-prompt-differs"}
    finding = found["data-call-format"]
    assert finding.summary.startswith("1 of 2 rows") and "in fences" in finding.summary
    assert finding.shown[0].text == FENCE and "<function=reserve_berth>" in finding.shown[1].text


def test_calls_in_the_tags_of_another_format(specimen, tmp_path):
    said = '<tool_call>\n{"name": "reserve_berth", "arguments": {"pier": "Ostrava-12"}}\n</tool_call>'
    row = GOOD | {"messages": [ASKED, {"role": "assistant", "content": said}, RESULT, ANSWER]}
    assert "in tags" in by_check(look(specimen, tmp_path, row))["data-call-format"].summary


def test_results_as_words_of_the_user(specimen, tmp_path):
    row = GOOD | {"messages": [ASKED, CALLING, {"role": "user", "content": "Tool result: slip 26"}, ANSWER]}
    finding = by_check(look(specimen, tmp_path, row))["data-results"]
    assert finding.shown[0].text == "Tool result: slip 26"
    assert "<tool_response>\nslip 26\n</tool_response>" in finding.shown[1].text


def test_the_first_token_at_which_a_text_parts_from_the_served_prompt(specimen, tmp_path):
    """A line break before the call: the token before it is the last that both have."""
    text = text_row(specimen, [TOOL])
    broken = text.replace("<tool_call>\n<function", "<tool_call><function")
    assert broken != text
    found = by_check(look(specimen, tmp_path, {"text": broken, "tools": [TOOL]}))
    assert set(found) == {"data-prompt-differs"}
    finding = found["data-prompt-differs"]
    one, other = (encode(specimen.tokenizer, t) for t in (broken, text))
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert finding.severity == "high" and finding.summary.endswith(f"train.jsonl:1 at token {at}")
    row, served = finding.shown
    assert row.tokens[3][0] == one[at] and served.tokens[3][0] == other[at]
    assert row.tokens[:3] == served.tokens[:3] and row.tokens[2][1] == "<tool_call>"


def test_the_number_of_a_token_is_counted_from_the_beginning(specimen, tmp_path):
    """Behind many line breaks: of a text that is cut among them, the tokens are others."""
    said = "A list:" + "\n\n\n\n".join("abcdefg") + "\n" * 90 + "x" * 20
    text = render(specimen.tokenizer, [{"role": "user", "content": said}, *GOOD["messages"][1:]], [TOOL])
    taught = text.replace("<tool_call>\n<function", "<tool_call><function")
    one, other = encode(specimen.tokenizer, taught), encode(specimen.tokenizer, text)
    first = next(i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    (finding,) = look(specimen, tmp_path, {"text": taught, "tools": [TOOL]}).findings
    assert finding.summary.endswith(f"at token {first}")


def test_without_tokens_the_first_character(specimen, tmp_path):
    text = text_row(specimen, [TOOL]).replace("<tool_call>\n<function", "<tool_call><function")
    alone = Specimen.of_text(specimen.template)
    examined = look(alone, tmp_path, {"text": text, "tools": [TOOL]})
    (finding,) = examined.findings
    assert finding.summary.endswith(f"at character {text.index('<function=')}")
    assert [c for c, _ in examined.skipped] == ["data-not-rendered"]


def test_rows_without_tools_part_where_the_tools_are_served(specimen, tmp_path):
    """And nowhere else: what else is wrong would be hidden behind it."""
    for row in ({"messages": GOOD["messages"]}, {"text": text_row(specimen, [])}):
        found = by_check(look(specimen, tmp_path, row))
        assert set(found) == {"data-no-tools"}
        served = found["data-no-tools"].shown[1]
        assert served.label == "served" and "Tools" in served.text
    direct = {"messages": [ASKED, ANSWER]}
    assert not look(specimen, tmp_path, direct).findings, "who calls nothing needs no tools"


def test_a_history_that_the_template_rewrites(tmp_path):
    """A template that writes the last turn otherwise: a whole conversation is not what was served turn by turn."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
        "<parameter=pier>\n{{ c.function.arguments.pier }}\n</parameter>\n</function>\n</tool_call>{% endfor %}"
        "{% if m.role == 'assistant' and not loop.last %}(said){% endif %}{% if loop.last and m.role == 'user' %}!"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (finding,) = look(Specimen.of_text(template), tmp_path, GOOD).findings
    assert (finding.check, finding.severity) == ("data-prompt-differs", "low")
    assert "mlx_lm.lora" in finding.remedy and "!" in finding.shown[1].text


def test_turns_that_the_template_does_not_write(specimen, tmp_path):
    dropped = specimen.template.replace("'<tool_call>\\n<function=' ~ f.name ~ '>'", "'<tool_call>\\n<function='")
    assert dropped != specimen.template
    found = by_check(look(specimen.with_template(dropped), tmp_path, GOOD))
    assert "call of reserve_berth" in found["data-not-rendered"].shown[0].text


def test_calls_of_tools_that_are_not_offered(specimen, tmp_path):
    other = json.loads(json.dumps(TOOL).replace("reserve_berth", "cancel_berth"))
    found = by_check(look(specimen, tmp_path, GOOD | {"tools": [other]}))
    assert set(found) == {"data-unknown-tool"}
    assert found["data-unknown-tool"].shown[0].text == "calls reserve_berth, offers cancel_berth"


def test_rows_and_calls_that_cannot_be_read(specimen, tmp_path):
    cut = GOOD | {"messages": [ASKED, {"role": "assistant", "content": FENCE.replace('"}}', "")}]}
    found = by_check(look(specimen, tmp_path, "{", cut, GOOD))
    assert set(found) == {"data-broken"}
    assert found["data-broken"].summary == "1 of 3 rows are no rows; 1 of 3 rows hold calls that cannot be read"


def test_a_row_that_is_no_text_is_a_bad_one(specimen, tmp_path):
    half = GOOD | {"messages": [ASKED, {"role": "assistant", "content": "\ud800"}]}
    assert "half of a surrogate pair" in by_check(look(specimen, tmp_path, half))["data-broken"].shown[0].text
    thought = {"role": "assistant", "content": "x", "reasoning_content": [1]}
    look(specimen, tmp_path, {"messages": [ASKED, thought, {**thought, "reasoning_content": "so"}]})


def test_no_more_rows_than_were_asked_for_and_never_none(specimen, tmp_path):
    assert not look(specimen, tmp_path, GOOD, "{", limit=1).findings
    with pytest.raises(DataError, match="holds no rows"):
        look(specimen, tmp_path)


def test_real_rows(specimen, real_data):
    """Calls in fences and in tags without their line breaks, results as words, no tools."""
    fences = by_check(examine(DataSubject(specimen, real_data / "punie" / "mlx_format", 20), data.CHECKS))
    assert set(fences) >= {"data-call-format", "data-results", "data-no-tools", "data-prompt-differs", "data-broken"}
    tags = by_check(examine(DataSubject(specimen, real_data / "punie" / "phase22", 10), data.CHECKS))
    assert set(tags) == {"data-no-tools", "data-prompt-differs"}
    row, served = tags["data-prompt-differs"].shown
    assert "<tool_call><function=" in row.text and "<tool_call>\n<function=" in served.text
