"""The page of an inspection: quiet, whole in both schemes and at any width, and read with the keyboard alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.corpus.rows import Row
from punie_mlx.inspector.inspection import Asked, inspect
from punie_mlx.inspector.page import write_page

from .conftest import Opened
from .test_report_page import CONTRAST, SCHEMES, UNNAMED, WIDTHS

HOSTILE = "</i></script><img src=x onerror=\"alert('owned')\"> \u202egnp\u200b \x1b[31m <|im_end|> 🌍"
WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = {"function": {"name": "get_weather", "arguments": {"city": HOSTILE}}}
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": HOSTILE},
    {"role": "user", "content": "Now?"},
    {"role": "assistant", "content": HOSTILE, "tool_calls": [CALL]},
    {"role": "tool", "content": HOSTILE},
    {"role": "assistant", "content": "Well. " * 90},
]
TITLE = "document.querySelector('.strip i.at').title"


@pytest.fixture(scope="module")
def row(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a training row that is as hostile as can be."""
    path = tmp_path_factory.mktemp("pages") / "row.html"
    write_page(inspect(Asked(tiny_base, Row(SAID, [WEATHER], "made.json", 1))), path)
    return path


@pytest.fixture(scope="module")
def answer(scripted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an answer with a call."""
    path = tmp_path_factory.mktemp("pages") / "answer.html"
    asked = Row([{"role": "user", "content": "Now #spaced-call"}], [WEATHER], "made.json", 1)
    write_page(inspect(Asked(scripted_model, asked, generate=40)), path)
    return path


@pytest.mark.parametrize(("width", "scheme"), list(zip(WIDTHS, SCHEMES, strict=True)))
def test_the_pages_are_quiet_fit_and_can_be_read(
    row: Path, answer: Path, opened: Opened, tmp_path: Path, width: int, scheme: str
) -> None:
    for file in (row, answer):
        with opened(file, width=width, color_scheme=scheme) as page:
            page.locator(".show-ids").check()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            seen, faint = page.evaluate(CONTRAST)
            assert seen > 40 and faint == []
            assert page.evaluate(UNNAMED) == []
            assert page.evaluate("[...document.querySelectorAll('.strip')].every((s) => s.tabIndex === 0)")
            page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 5000, "nothing was drawn"


def test_hostile_text_neither_runs_nor_turns_round(row: Path, opened: Opened) -> None:
    with opened(row) as page:
        strip = page.locator(".strip").first
        assert "<img src=x onerror=" in (strip.text_content() or "").replace("·", " ")
        assert page.locator("img, iframe, object, embed, link").count() == 0
        assert page.locator(".strip .cp", has_text="U+202E").count() == 4
        ends = page.locator(".strip i.control", has_text="<|im_end|>")
        assert ends.count() == 5, "one for each turn; those spelled out are text"


def test_tokens_are_reached_and_told_without_a_mouse(row: Path, opened: Opened) -> None:
    with opened(row) as page:
        about = page.locator(".about").first
        assert "Arrow keys walk" in (about.text_content() or "")
        for _ in range(9):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.strip')"):
                break
        assert page.evaluate("document.activeElement.matches('.strip')"), "one stop of the Tab key"
        assert (about.text_content() or "").startswith('control token 1: "<|im_start|>"\nmessage 1, system')
        page.keyboard.press("ArrowRight")
        assert '"system"' in page.evaluate(TITLE) and about.text_content() == page.evaluate(TITLE)
        active = page.evaluate("document.querySelector('.strip').getAttribute('aria-activedescendant')")
        assert active == page.evaluate("document.querySelector('.strip i.at').id") and active
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert '"<|im_start|>"' in page.evaluate(TITLE), "it stays at the first"
        page.keyboard.press("PageDown")
        assert page.evaluate("document.querySelector('.strip i.at').classList.contains('control')")
        before = page.evaluate("document.querySelector('.strip i.at').getBoundingClientRect().top")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.querySelector('.strip i.at').getBoundingClientRect().top") > before
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.querySelector('.strip i.at').getBoundingClientRect().top") == before
        page.keyboard.press("End")
        assert "message 5, assistant\ntrained on" in (about.text_content() or "")
        inside = """() => { const [t, s] = [".strip i.at", ".strip"].map((q) =>
          document.querySelector(q).getBoundingClientRect()); return t.top >= s.top && t.bottom <= s.bottom + 1; }"""
        assert page.evaluate(inside), "the strip scrolls to it"
        assert page.locator(".strip i.at").count() == page.locator("[aria-selected=true]").count() == 1
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.matches('.strip')"), "Tab leaves it"


def test_a_click_reaches_a_token_and_ids_can_be_shown(answer: Path, opened: Opened) -> None:
    with opened(answer) as page:
        strip = page.locator(".strip").nth(1)
        assert strip.get_attribute("aria-label") == "Answer, 10 tokens"
        assert [b.text_content() for b in strip.locator("b.state").all()] == ["content", "call", "arguments",
                                                                                "between", "content"]  # fmt: skip
        strip.locator("i", has_text="<tool_call>").click()
        told = page.locator(".about").nth(1).text_content() or ""
        assert "reader after it: call" in told and "probability" in told and "markers: <tool_call>" in told
        content = "getComputedStyle(document.querySelector('.strip i'), '::after').content"
        assert page.evaluate(content) in ("none", "normal")
        page.locator(".show-ids").focus()
        page.keyboard.press("Space")
        shown = page.locator(".strip i").first.get_attribute("data-id")
        assert json.loads(page.evaluate(content)) == shown or page.evaluate(content) == "attr(data-id)"
        assert '"name": "get_weather"' in (page.locator("#answer pre").text_content() or "")
        assert page.locator("#answer table").locator("th[scope=row]").first.text_content() == "<tool_call>"


def test_it_can_be_read_without_scripts(answer: Path, opened: Opened) -> None:
    with opened(answer, java_script_enabled=False) as page:
        token = page.locator(".strip i", has_text="<tool_call>").last
        assert "reader after it: call" in (token.get_attribute("title") or "")
        page.locator(".show-ids").check()
        assert page.locator(".strip").first.is_visible()
