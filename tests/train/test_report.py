"""The report: whole without a network, as many points as measurements, and nothing of the run taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import punie_mlx  # noqa: F401  (the BLAS, before mlx)
from punie_mlx.pages.curves import MOST, Chart, Line, plainly, smoothed, svg, thinned, ticks
from punie_mlx.train.metrics import Recorder
from punie_mlx.train.report import latest, table, write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}
NASTY = """<script>alert('"&)"""
MANIFEST: dict[str, Any] = {
    "inputs": {"model": "ab" * 32}, "versions": {"mlx": "0.32.4"}, "fingerprint": "ef" * 32, "run": "4711",
    "settings": {"iters": 60, "targets": ["q_proj", NASTY], "role_weights": {"tool": 0.5}, "learning_rate": 8e-5},
    "steps": 60, "picked": 40, "samples": 1200, "dropped": {f"too long {NASTY}": 3}, "skipped": 1, "ended": "",
    "seconds": 151.2, "trained_tokens": 20000, "peak_memory": 126_500_000, "notes": (f"prompts {NASTY} are shared",),
}  # fmt: skip


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what the page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] in (["script"], ["style"]) else self.text).append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the figures of a run of 60 steps, one of them no number, and their report."""
    path = tmp_path_factory.mktemp("report")
    with Recorder(path, 60, quiet=True) as recorder:
        for step in range(0, 61, 5):
            if step:
                loss = float("nan") if step == 30 else 1 / step
                figures = {"learning_rate": 1e-4, "grad_norm": 2.0, "tokens_per_second": 1200.0}
                memory = {"peak_memory": 126e6, "active_memory": 80e6, "epoch": step / 7}
                recorder.record("train", step, loss=loss, **figures, **memory)
            if step % 20 == 0:
                recorder.record("valid", step, loss=2 / (step + 1), seconds=1.0)
                recorder.record("select", step, calls_right=step // 10, calls=6, direct_right=2, direct=4, seconds=1.0)
        recorder.record("skip", 30, reason="the loss is nan", rows=["train.jsonl:12", NASTY])
        recorder.record("resume", 40)
        recorder.record("checkpoint", 60, path="checkpoints/0000060")
    (path / "recipe.yaml").write_text(json.dumps({"model": f"models/tiny{NASTY}", "data": "runs/rows"}))
    write_report(path / "report.html", path / "metrics.jsonl", MANIFEST)
    return path


@pytest.fixture(scope="module")
def html(made: Path) -> str:
    return (made / "report.html").read_text(encoding="utf-8")


def charts(html: str) -> dict[str, ElementTree.Element]:
    """The curves by title, read as the XML that they must be."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.S)]
    return {chart.findtext("title", ""): chart for chart in found}


def count(chart: ElementTree.Element) -> dict[str, int]:
    """How many points each line has, by its class."""
    points: dict[str, int] = {}
    for piece in [*chart.iter("polyline"), *chart.iter("circle")]:
        name = piece.get("class", "")
        points[name] = points.get(name, 0) + len(piece.get("points", "one").split())
    return points


def test_it_asks_nothing_of_a_network(html):
    page = Page(html)
    assert not re.search(r"(https?:)?//\w", html.replace("// The figures", "")), "an address"
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not {"src", "href", "action", "style"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|fetch|XMLHttp|import\(", html)
    (policy,) = [value for name, value in page.attributes if value.startswith("default-src")]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert len(hashes) == 2 and all(f"'sha256-{found}'" in policy for found in hashes)
    assert "color-scheme: light dark" in html


def test_what_the_run_was_told_is_no_markup(html):
    page = Page(html)
    assert page.tags.count("script") == 1 and "alert" not in "".join(page.scripts)
    text = "".join(page.text)
    for place in (f"tiny{NASTY}", f"q_proj, {NASTY}", f"too long {NASTY}", f"prompts {NASTY}", f"12, {NASTY}"):
        assert place in text


def test_curves_have_as_many_points_as_measurements(html):
    found = {title: count(chart) for title, chart in charts(html).items()}
    assert found == {
        "Loss": {"line-0": 11, "line-0 faint": 11, "line-1": 4},  # one of twelve was no number
        "Behaviour": {"line-0": 4, "line-1": 4},
        "Learning rate": {"line-0": 12},
        "Gradient norm, before clipping": {"line-0": 12},
        "Supervised tokens a second": {"line-0": 12},
        "Memory": {"line-0": 12, "line-1": 12},
    }
    assert sum(1 for p in charts(html)["Loss"].iter("polyline") if p.get("class") == "line-0") == 2, "no gap at step 30"


def test_curves_can_be_heard_and_read(html):
    for title, chart in charts(html).items():
        title_id, desc_id = chart.get("aria-labelledby", "").split()
        assert chart.get("role") == "img" and chart.find("title").get("id") == title_id, title
        assert chart.find("desc").get("id") == desc_id
    told = charts(html)["Behaviour"].findtext("desc")
    assert told.startswith("calls right: 4 points, from 0% at step 0 to 100% at step 60; lowest 0% at step 0, highest")
    data = json.loads(charts(html)["Loss"].get("data-chart", ""))
    assert data["x"][:2] == [0, 60] and len(data["lines"][1][1]) == 11 and data["lines"][2][1][0] == [0, "2"]


def test_points_lie_where_their_values_are():
    line = Line("x", ((0, 0.0), (50, 5.0), (100, 10.0)))
    chart = ElementTree.fromstring(svg(Chart("t", (line,)), "c"))
    (points,) = [p.get("points", "").split() for p in chart.iter("polyline")]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points)
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    labels = {t.text: float(t.get("y", "")) - 4 for t in chart.iter("text") if t.get("text-anchor") == "end"}
    assert labels["0"] == pytest.approx(y0) and labels["10"] == pytest.approx(y2)


def test_tables_say_what_happened(html):
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    for said in ("0.04878", "4 of 6", "2 of 4", "too long", "went on from step 40", "126.5 MB", "0:02:31", "8e-5",
                 "tool: 0.5", "hash of the model", "ef" * 32, "12 lines of figures", "not a number"):  # fmt: skip
        assert said in text, said
    (picked,) = re.findall(r'<tr class="picked">.*?</tr>', html)
    assert picked.startswith('<tr class="picked"><td class="number">40</td>') and "picked</td>" in picked


def test_little_is_enough(tmp_path):
    """A run of one step, without validation, a recipe or a manifest worth the name."""
    with Recorder(tmp_path, 1, quiet=True) as recorder:
        recorder.record("train", 1, loss=0.5, epoch=1.0)
    write_report(tmp_path / "report.html", tmp_path / "metrics.jsonl", {})
    html = (tmp_path / "report.html").read_text()
    Page(html)
    assert count(charts(html)["Loss"]) == {"line-0": 1} and list(charts(html)) == ["Loss"]
    (tmp_path / "metrics.jsonl").write_text("")
    write_report(tmp_path / "report.html", tmp_path / "metrics.jsonl", {"settings": None})
    assert "Nothing was measured" in (tmp_path / "report.html").read_text()


def test_what_was_measured_twice_counts_once():
    lines = [{"kind": "train", "step": s, "loss": loss} for s, loss in ((1, 1.0), (2, 2.0), (2, 3.0), (1, 4.0))]
    assert [(line["step"], line["loss"]) for line in latest(lines)] == [(1, 4.0), (2, 3.0)]


def test_many_points_become_their_means():
    points = [(i, float(i % 2)) for i in range(3 * MOST)]
    few = thinned(points)
    assert len(few) <= MOST and few[-1][0] == points[-1][0]
    assert sum(v for _, v in few if v is not None) / len(few) == pytest.approx(0.5)
    assert thinned(points[:MOST]) == tuple(points[:MOST])
    assert thinned([(1, None), (2, None), (3, 1.0)], 2) == ((2, None), (3, 1.0))
    chart = ElementTree.fromstring(svg(Chart("t", (Line("x", tuple(points)),)), "c"))
    assert count(chart)["line-0"] <= MOST


def test_an_average_starts_at_the_first_value_and_skips_gaps():
    assert smoothed([(1, 4.0), (2, None), (3, 4.0)]) == ((1, pytest.approx(4.0)), (2, None), (3, pytest.approx(4.0)))
    _, (_, second) = smoothed([(1, 0.0), (2, 1.0)], 0.5)
    assert second == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3.1, 3.9, [3, 3.2, 3.4, 3.6, 3.8, 4]),
        (-2, 2, [-2, -1, 0, 1, 2]), (5, 5, [5, 6, 7, 8, 9, 10]), (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]), (0, 1.3e11, [0, 5e10, 1e11, 1.5e11]),
    ],
)  # fmt: skip
def test_axes_have_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short():
    assert [plainly(v) for v in (0.0001, 8e-5, 1.25, 12500.4, 0, -3)] == ["0.0001", "8e-5", "1.25", "12,500", "0", "-3"]


def test_a_table_without_rows_is_none():
    assert table(("a",), []) == ""
    with pytest.raises(ValueError, match="nothing was measured for Loss"):
        svg(Chart("Loss", (Line("x", ((1, None),)),)), "c")
