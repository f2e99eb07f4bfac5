"""The text of templates: code apart from words, and edits that touch nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.chat.templates import literal
from punie_mlx.doctor.jinja_text import Edit, Text, apply, escaped_private, value, visible_private
from punie_mlx.doctor.specimen import Specimen

TEMPLATE = """{# message.content in a comment #}message.content in words
{%- for m in messages %}
    {%- if m['content'] == 'message.content %}' %}
        {{- {'a': {'b': m.content}} }}
    {%- elif m.role == "tool" %}
        {{- '}} message.content' ~ m.content -}}
    {%- else %}{{ x }}{% endif %}
{%- endfor %}{{ y }}"""


def test_code_is_told_from_words() -> None:
    text = Text(TEMPLATE)
    assert len(text.code) == len(TEMPLATE)
    assert [m[0] for m in text.find(r"\w+\.content\b")] == ["m.content", "m.content"]
    assert [m[0] for m in text.find(r"m\['content'\]")] == ["m['content']"]
    assert [m[0] for m in text.find(r"message\.content", strings=True)] == ["message.content"] * 2


def test_tags_know_their_depth_and_loops() -> None:
    text = Text(TEMPLATE)
    assert [(t.word, t.depth) for t in text.statements] == [
        ("for", 0), ("if", 1), ("elif", 1), ("else", 1), ("endif", 1), ("endfor", 0),
    ]  # fmt: skip
    assert [(t.depth, t.loops) for t in text.outputs] == [(2, ("m",))] * 3 + [(0, ())]
    assert text.variable_of(r"\bmessages\b") == "m"
    assert text.variable_of(r"\btools\b") is None


def test_a_branch_ends_where_the_next_begins() -> None:
    text = Text(TEMPLATE)
    ((tag, end),) = text.branches(r"['\"]tool['\"]")
    assert TEMPLATE[tag.end : end].strip() == "{{- '}} message.content' ~ m.content -}}"


def test_a_set_with_a_body_is_a_block() -> None:
    text = Text("{% set a = 1 %}{% set b %}{{ x }}{% endset %}{{ y }}")
    assert [t.depth for t in text.outputs] == [1, 0]


def test_what_is_never_closed_is_no_tag() -> None:
    assert [t.word for t in Text("{% if a %}{{ 'b").tags] == ["if"]


def test_edits_are_put_in_from_left_to_right_and_never_overlap() -> None:
    assert apply("abcdef", [Edit(4, 5, "E"), Edit(0, 0, "<"), Edit(1, 3, "-"), Edit(2, 4, "no")]) == "<a-dEf"
    edits = Text("{{ a.content + b.content }}").replace(r"(\w)\.content", r"(\1 or '')")
    assert apply("{{ a.content + b.content }}", edits) == "{{ (a or '') + (b or '') }}"


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_literal_stands_for_its_text(text: str) -> None:
    written = literal(text)
    assert written.isascii()
    assert value(written) == text
    assert Specimen.of_text(f"{{{{ {written} }}}}").render([]).text == text


def test_characters_of_private_use_become_escapes_that_render_the_same() -> None:
    template = "\ue00f{# \ue001 #}{{ 'a\ue00f' ~ \"\uf8ff\" }}{% if 'x\ue00f' in 'x\ue00f' %}b{% endif %}"
    escaped = escaped_private(template)
    assert escaped.isascii()
    assert Specimen.of_text(escaped).render([]) == Specimen.of_text(template).render([])
    assert visible_private("a\ue00f") == "a\\ue00f"


def test_real_templates_are_read_to_their_end(real_data: Path) -> None:
    for file in sorted((real_data / "templates").glob("*.jinja")):
        text = Text(file.read_text())
        last = text.statements[-1]
        assert last.word.startswith("end") and last.depth == 0, file.name
        rebuilt = [text.template[t.start : t.end] for t in text.tags]
        assert all(tag.startswith("{") and tag.endswith("}") for tag in rebuilt), file.name
        assert text.variable_of(r"messages\b"), file.name


@pytest.mark.parametrize("broken", ["", "{{", "{%", "{#", "}}", "{{ '", "{% if %}", "{{ {'a': 1 }}"])
def test_any_text_can_be_read(broken: str) -> None:
    assert len(Text(broken).code) == len(broken)
