"""Findings on a terminal: what they say stands there as it is, within the width, side by side where there is room."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from punie_mlx.doctor import terminal
from punie_mlx.doctor.findings import Examined, Finding, Shown
from punie_mlx.doctor.page import page
from punie_mlx.doctor.specimen import Specimen

MARKUP = "[red]a[/red] [link=x]b[/link] [/]"
LONG = "x" * 300
TOKENS = tuple((1000 + i, spelling) for i, spelling in enumerate([MARKUP, LONG, "\n", *("東京", "ab") * 40]))


def finding(*shown: Shown) -> Finding:
    return Finding("tool-calls-dropped", "high", MARKUP, shown, MARKUP, MARKUP)


def told(found: Examined, width: int) -> list[str]:
    out = io.StringIO()
    terminal.show(found, Console(file=out, width=width, highlight=False))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 140])
def test_nothing_is_taken_for_markup_and_nothing_is_too_wide(width: int) -> None:
    pieces = (Shown("one " + MARKUP, f"{MARKUP}\x1b[31m\n{LONG}", TOKENS), Shown("two", MARKUP, TOKENS))
    facts = {"subject": MARKUP, "vLLM": {MARKUP: [MARKUP, LONG]}}
    lines = told(Examined((finding(*pieces),), skipped=(("a", MARKUP),), facts=facts), width)
    assert max(map(cell_len, lines)) <= width
    assert sum(line.count("[red]a[/red]") for line in lines) >= 10
    assert "\x1b" not in "".join(lines)


def test_two_pieces_stand_beside_each_other_where_there_is_room() -> None:
    found = Examined((finding(Shown("one", "a", TOKENS), Shown("two", "b", TOKENS)),))
    assert [line for line in told(found, 140) if "─ one ─" in line and "─ two ─" in line]
    assert not [line for line in told(found, 80) if "─ one ─" in line and "─ two ─" in line]


def test_a_label_that_is_too_long_is_seen_to_be_cut() -> None:
    lines = told(Examined((finding(Shown("one " * 40, "a"), Shown("two", "b")),)), 140)
    assert any("…─╮" in line for line in lines)


def test_checks_that_were_left_out_for_one_reason_have_one_line() -> None:
    lines = told(Examined(passed=("x",), skipped=(("a", "it is so"), ("b", "it is not"), ("c", "it is so"))), 80)
    assert lines == ["not checked, since it is so: a, c", "not checked, since it is not: b",
                     "no findings; 1 check found nothing"]  # fmt: skip


def test_what_was_cut_out_has_no_tokens(tiny_base) -> None:
    shown = Specimen.of_model(tiny_base).show("rendered", "…<|im_end|>\n…")
    assert "".join(text for _, text in shown.tokens) == "<|im_end|>\n"


def test_what_a_model_wrote_is_a_table_of_a_row_for_each_probe() -> None:
    raw = {"asked": "a call", "kind": "native", "note": "", "right": True, "text": "<tool_call>\n" + LONG}
    raw |= {"chances": {"opener": 0.98526, "fence": None}, "tokens": [[1, "x", 0.5]] * 600}
    behaviour = {"verdict": "emits native tokens", "answers": [raw, raw | {"note": "odd", "right": False}]}
    found = Examined(facts={"behaviour": behaviour})
    lines = told(found, 140)
    assert [line.split()[:5] for line in lines if "0.9853" in line] == [
        ["a", "call", "native", "yes", "0.9853"],
        ["a", "call", "native", "(odd)", "no"],
    ]
    assert page(found, "m").count("0.9853</td>") == 2
    assert len(lines) < 15 and any("…" in line for line in lines)
