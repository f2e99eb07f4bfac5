"""The pages in a browser: quiet, whole in both schemes and at any width, and usable without a mouse or scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from punie_mlx.corpus.audit.page import page as audit_page
from punie_mlx.corpus.audit.read import read_corpus
from punie_mlx.corpus.audit.run import CHECKS, audit
from punie_mlx.evals.report.cases import Limits
from punie_mlx.evals.report.inputs import read_inputs
from punie_mlx.evals.report.page import write_page
from punie_mlx.train.report import write_report

from ..evals.made import made_case, made_run, written
from ..evals.report_data import metrics, write_all
from .conftest import Opened

WIDTHS, SCHEMES = (360, 1280), ("light", "dark")
UNFOLD = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"

# Each text on the page: its contrast with what lies behind it, where that is below 4.5.
CONTRAST = """() => {
  const read = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = read(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  let seen = 0;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const [a, b] = [luminance(read(e.closest("svg") ? style.fill : style.color)), luminance(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (contrast < 4.5) faint.push(`${e.tagName} ${e.className} ${contrast.toFixed(2)} ${e.textContent.slice(0, 20)}`);
  }
  return [seen, [...new Set(faint)].slice(0, 10)];
}"""
# What those who cannot see the page would miss.
UNNAMED = """() => [
  ...[...document.querySelectorAll("svg:not([aria-hidden=true])")].filter((s) =>
    !(s.getAttribute("aria-labelledby") || "-").split(" ").every((id) => document.getElementById(id)?.textContent)),
  ...[...document.querySelectorAll("input, select")].filter((f) => !f.labels.length),
  ...[...document.querySelectorAll("table")].filter((t) => !t.querySelector("th[scope]") || !t.caption?.textContent),
  ...[...document.querySelectorAll("pre, .scroll, .tokens")].filter((s) => s.tabIndex !== 0),
].map((e) => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    write_page(read_inputs(write_all(directory)), directory / "report.html", Limits(cases=5))
    return directory / "report.html"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_quiet_and_fits(report: Path, opened: Opened, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(report, width=width, color_scheme=scheme) as page:
        assert page.title().startswith("base") and page.locator("details.case").count() == 6
        page.screenshot(path=tmp_path / "top.png")
        page.evaluate(UNFOLD)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        seen, faint = page.evaluate(CONTRAST)
        assert seen > 500 and faint == []
        page.locator("details.case .sides").first.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "case.png")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert dark is (scheme == "dark")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("top.png", "case.png")), "nothing was drawn"


def test_a_wide_matrix_scrolls_in_its_frame(opened: Opened, tmp_path: Path) -> None:
    names = [f"a_tool_with_a_long_name_{i}" for i in range(12)]
    cases = [made_case(False, n, expected=[n], called=[m]) for n, m in zip(names, names[1:] + names[:1], strict=True)]
    write_page(read_inputs([written(tmp_path / "r.json", made_run(cases))]), tmp_path / "report.html")
    with opened(tmp_path / "report.html", width=360) as page:
        assert page.locator(".matrix td").count() == 144
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_everything_has_a_name(report: Path, opened: Opened) -> None:
    with opened(report) as page:
        page.evaluate(UNFOLD)
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate("document.documentElement.lang") == "en"


def test_hostile_text_neither_runs_nor_turns_round(report: Path, opened: Opened) -> None:
    with opened(report) as page:
        asked = page.locator("details.case", has_text="Read file 2").locator(".asked pre").first
        assert "</script></style><script>alert('owned')" in asked.text_content()
        assert page.locator("img, iframe, object, embed, link").count() == 0
        assert page.locator(".cp", has_text="U+202E").count() > 5


def test_cases_are_filtered_searched_and_sorted(report: Path, opened: Opened) -> None:
    with opened(report) as page:
        shown = page.locator("details.case:visible")
        page.get_by_label("Failed by").select_option("B")
        assert shown.count() == 1 and page.locator("#count").text_content() == "1 of 6 cases"
        page.get_by_label("Failed by").select_option("*")
        assert shown.count() == 5
        page.get_by_label("Failed by").select_option("")
        page.get_by_label("Search").fill("NOR  i.")
        assert shown.count() == 1 and "case 2" in (shown.text_content() or "")
        page.get_by_label("Search").fill("")
        page.locator("#category").select_option("no tool")
        assert [c.get_attribute("data-category") for c in shown.all()] == ["no tool"] * 2
        page.locator("#category").select_option("")
        page.locator("#order").select_option("failed")
        assert shown.first.get_attribute("data-failed") == "A B"
        page.locator("#order").select_option("seconds")
        times = [float(c.get_attribute("data-seconds") or 0) for c in shown.all()]
        assert times == sorted(times, reverse=True) and len(times) == 6


def test_a_case_opens_by_keyboard_and_by_its_link(report: Path, opened: Opened) -> None:
    with opened(report) as page:
        page.locator("#fold").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        first = page.locator("details.case").first
        assert first.get_attribute("open") is not None and first.locator(".side").count() == 2
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "PRE", "what scrolls is reached by Tab"
        page.get_by_role("button", name="Fold all").click()
        assert page.locator("details.case[open]").count() == 0
        page.locator("#confusion details summary").last.click()
        link = page.locator("#confusion a").last
        link.click()
        case = page.locator(link.get_attribute("href") or "none").locator("xpath=ancestor::details[1]")
        assert case.get_attribute("open") is not None
    with opened(report, anchor="#case-s-case-6") as page:
        assert "Read file 6" in (page.locator("details.case[open]").text_content() or "")


def test_it_can_be_read_without_scripts_and_on_paper(report: Path, opened: Opened) -> None:
    with opened(report, java_script_enabled=False) as page:
        assert not page.locator("#filter").is_visible()
        page.locator("details.case > summary").first.click()
        assert page.locator("details.case .side").first.is_visible()
    with opened(report, reduced_motion="reduce") as page:
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible() and not page.locator("#filter").is_visible()
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_the_pages_of_training_and_audit_are_quiet_too(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics())
    write_report(tmp_path / "training.html", tmp_path / "metrics.jsonl", {"steps": 60, "settings": {"iters": 60}})
    row = {"messages": [{"role": "user", "content": "Read it <b>\u202e"}, {"role": "assistant", "content": "No."}]}
    (tmp_path / "train.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    (tmp_path / "audit.html").write_text(audit_page(audit(read_corpus(tmp_path / "train.jsonl"), CHECKS)))
    for name in ("training", "audit"):
        for width, scheme in zip(WIDTHS, SCHEMES, strict=True):
            with opened(tmp_path / f"{name}.html", width=width, color_scheme=scheme) as page:
                page.evaluate(UNFOLD)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
    with opened(tmp_path / "training.html") as page:
        page.locator("svg[data-chart]").first.hover()
        assert "training" in (page.locator(".readout").first.text_content() or ""), "the script of the curves runs"


# ---- the fixture itself ----


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ('<img src="http://127.0.0.1:9/x.png" alt="">', "request: http://127.0.0.1:9/x.png"),
        ("<script>throw new Error('planted')</script>", "script error: planted"),
        ("<script>console.warn('planted')</script>", "console warning: planted"),
        (
            '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'"><script>1</script>',
            "policy violated: script-src-elem",
        ),
        ("<script>setTimeout(() => fetch('other.json').catch(() => 0))</script>", "other.json"),
    ],
)
def test_a_page_that_is_not_quiet_is_caught(opened: Opened, tmp_path: Path, planted: str, found: str) -> None:
    (tmp_path / "planted.html").write_text(f"<!doctype html><title>planted</title>{planted}")
    with pytest.raises(AssertionError, match=found), opened(tmp_path / "planted.html"):
        pass
