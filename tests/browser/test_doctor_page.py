"""The doctor's page in Chromium: quiet, legible, light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path

import pytest

from punie_mlx.doctor.examination import static
from punie_mlx.doctor.page import page
from punie_mlx.doctor.specimen import Specimen

from .conftest import Opened
from .test_report_page import SCHEMES, WIDTHS

WORDS_ONLY = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    specimen = Specimen.of_model(tiny_base).with_template(WORDS_ONLY, "words only")
    path = tmp_path_factory.mktemp("doctor") / "page.html"
    path.write_text(page(static(specimen), specimen.name), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), list(zip(WIDTHS, SCHEMES, strict=True)))
def test_the_findings_are_there_and_nothing_overflows(opened: Opened, file: Path, scheme: str, width: int) -> None:
    with opened(file, width=width, color_scheme=scheme) as shown:
        assert shown.locator("h1").inner_text() == "What is wrong with words only"
        finding = shown.locator("section.finding", has=shown.locator("h2 code", has_text="tool-calls-dropped"))
        assert finding.locator(".evidence figure").count() >= 1
        assert "Remedy" in finding.inner_text()
        assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_explanations_open_by_keyboard(opened: Opened, file: Path) -> None:
    with opened(file) as shown:
        summary = shown.locator("section.finding details summary", has_text="What this check looks at").first
        summary.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("section.finding details[open] pre").first.is_visible()
