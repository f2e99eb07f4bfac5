"""The report: every figure is the file's, no text of a model is markup, and the page stays small and whole."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner, Result

from punie_mlx.cli_report import report as verb
from punie_mlx.errors import ConfigError, DataError, OutputError
from punie_mlx.evals.compare import compare
from punie_mlx.evals.report.cases import Limits, failures
from punie_mlx.evals.report.exchange import MOST_TOKENS, tokens
from punie_mlx.evals.report.inputs import read_inputs
from punie_mlx.evals.report.page import page, write_page
from punie_mlx.evals.runs import read_run
from punie_mlx.evals.summary import percentile
from punie_mlx.pages.frame import document
from punie_mlx.pages.plots import Dot, Scale, bins, histogram, scatter
from punie_mlx.pages.text import attribute, html, spaced, tag

from .made import made_case, made_run, of_format_1, written
from .report_data import HOSTILE, POINTS, failed_case, pipeline, profile, runs, sweep, write_all

VOID = {"meta", "input"}
TAGS = """html head meta title style body main header h1 h2 h3 h4 h5 p div span section aside nav ul li a b i u code pre
    table caption thead tbody tr th td svg rect path circle g line text polyline desc details summary figure figcaption
    form label input select option button output script footer"""
KNOWN = frozenset(TAGS.split())


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps the tags, the texts, and the rows of each table by its caption."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.raw: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._caption: str | None = None
        self._rows: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed out of order"
        if tag == "table":
            rows = [["".join(cell).strip() for cell in row] for row in self._rows]
            self.tables.setdefault(self._caption or "", []).extend(rows)
            self._caption = None

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["script"], ["style"]):
            self.raw.append(data)
            return
        self.texts.append(data)
        if self._caption is not None and "caption" in self.open:
            self._caption += data
        elif self._caption is not None and self._rows and self._rows[-1]:
            self._rows[-1][-1].append(data)


def parsed(*paths: Path, **limits: int) -> Page:
    return Page(page(read_inputs(paths), Limits(**limits))[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_all(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def source(files: list[Path]) -> str:
    return page(read_inputs(files), Limits())[0]


@pytest.fixture(scope="module")
def shown(source: str) -> Page:
    return Page(source)


def percents(rate: dict[str, Any]) -> Iterator[str]:
    lo, hi = rate["interval"]
    yield from (f"{rate['accuracy']:.1%}", f"{100 * lo:.1f}–{100 * hi:.1f}", f"{rate['passed']}/{rate['n']}")


# ---- every figure is the file's ----


def test_the_table_of_runs_says_what_the_files_say(shown: Page, files: list[Path]) -> None:
    head, *rows = shown.tables["Summary of the runs"]
    records = [read_run(p) for p in files[:2]]
    found = compare(records)["runs"]
    assert [row[0][0] for row in rows] == ["A", "B"]
    for row, record, compared in zip(rows, records, found, strict=True):
        cell, summary = dict(zip(head, row, strict=True)), record["summary"]
        assert [cell[k] for k in ("", "95% interval", "passed")] == list(percents(summary))
        assert cell["lenient"] == f"{summary['lenient']['accuracy']:.1%}"
        assert cell["balanced"] == f"{summary['call_or_not']['balanced_accuracy']:.1%}"
        assert cell["parse failures"] == str(summary["parse_failures"]["failed"]) and cell["errors"] == "0"
        if against := compared["against_baseline"]:
            expected = [str(against["only_baseline"]), str(against["only_this"]), f"{against['p']:.3f}"]
            assert [cell["only A"], cell["only this"], cell["p"]] == expected
            assert cell["p, Holm"] == f"{against['p_holm']:.3f}"
    assert "with retry" not in head and "pass^k" not in head, "no run could fill it"


def test_categories_and_checks_say_what_the_files_say(shown: Page, files: list[Path]) -> None:
    for i, record in enumerate(map(read_run, files[:2])):
        for key, rate in record["summary"]["by_category"].items():
            rows = shown.tables[Page(html(key)).text]
            assert rows[i + 1][2:] == list(percents(rate))
        for key, caption in (("call", "A call was expected: it called"), ("no_call", "No call was expected")):
            rate = record["summary"]["call_or_not"][key]
            rows = next((r for c, r in shown.tables.items() if c.startswith(caption)), None)
            assert (rows[i + 1][2:] if rows else []) == (list(percents(rate)) if rate["n"] else [])
        names = record["summary"]["by_check"]["names"]
        assert shown.tables["right tools"][i + 1][2:] == list(percents(names))


def test_bars_are_as_long_as_their_figures(source: str, files: list[Path]) -> None:
    table = re.search(r'<table class="summary">.*?</table>', source, re.S)
    assert table
    drawn = [ElementTree.fromstring(t) for t in re.findall(r"<svg.*?</svg>", table[0], re.S)]
    for svg, record in zip(drawn, map(read_run, files[:2]), strict=True):
        assert float(svg.find("rect").get("width")) == pytest.approx(100 * record["summary"]["accuracy"], abs=0.01)
        low, high = (
            re.findall(r"[\d.]+", svg.find("path").get("d"))[0],
            re.findall(r"H([\d.]+)", svg.find("path").get("d"))[0],
        )
        assert [float(low), float(high)] == pytest.approx([100 * e for e in record["summary"]["interval"]], abs=0.01)


def test_confusion_counts_each_expectation(shown: Page, files: list[Path]) -> None:
    confusion = read_run(files[0])["summary"]["confusion"]
    head, *rows = shown.tables["Tools expected, by the tools that were called; only tools that were confused"][:2]
    assert confusion["read_file"] == {"list_dir": 6, "read_file": 6}
    assert head[1:] == ["list_dir", "read_file"] and rows[0] == ["read_file", "6", "6"]
    links = [a["href"] for name, a in shown.tags if name == "a" and a["href"].startswith("#case")]
    ids = {a["id"] for _, a in shown.tags if "id" in a}
    assert links and all(link[1:] in ids for link in links)
    assert len(ids) == sum("id" in a for _, a in shown.tags), "an id stands there twice"


def test_times_leave_the_warm_up_out(shown: Page, files: list[Path]) -> None:
    head, *rows = shown.tables["Seconds a query"]
    for row, record in zip(rows, map(read_run, files[:2]), strict=True):
        cell, told = dict(zip(head, row, strict=True)), record["summary"]["seconds_per_query"]
        walls = [c["seconds"]["wall"] for c in record["cases"]][1:]
        assert cell["queries"] == str(len(walls)) == "11"
        assert cell["p50"] == short(told["median"]) and cell["mean"] == short(told["mean"])
        assert cell["p95"] == short(percentile(walls, 95)) and cell["warm-up"] == short(told["warm_up"])
    phases = shown.tables["Phases of a request, by run"]
    assert phases[0] == ["phase", "A p50", "A p95", "B p50", "B p95"]
    assert phases[2] == ["prefill", "48 ms", "48 ms", "48 ms", "48 ms"]


def short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def test_the_other_kinds_are_shown_with_their_figures(shown: Page, source: str) -> None:
    head, *rows = shown.tables["The models of the sweep"]
    models = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert models["5-bit"] == {
        "model": "5-bit", "": "picked", "accuracy": "93.0%", "95% interval": "86.3–96.6", "p, Holm": "0.688",
        "size": "1.50 MB", "bits a weight": "5.500", "KL mean": "0.009", "KL p99": "0.081", "top-1": "99.1%",
        "tokens/s": "640", "balanced": "89.1%", "lost": "7", "gained": "3", "p": "0.344", "bits": "5", "group": "64",
        "recipe": "uniform",
    }  # fmt: skip
    assert models["3-bit"][""] == "worse" and models["fused"][""] == "reference"
    assert shown.tables["Phases of fused on punie-mlx"][2][1:] == ["100 ms", "233 ms", "117 ms", "6.30 s", "70.0%"]
    assert shown.tables["The models of the pipeline, by suite"][2] == [
        "fused",
        "4.40 MB",
        "91.7% 64.6–98.5",
        "",
        "f" * 12,
    ]
    drawn = {
        s.findtext("title"): s for s in map(ElementTree.fromstring, re.findall(r"<svg[^>]*img.*?</svg>", source, re.S))
    }
    assert set(drawn) == {"Loss of adapter", "Accuracy against size",
                          "KL divergence from the reference against bits a weight"}  # fmt: skip
    assert "5-bit: 1.5 MB, 93%, picked" in drawn["Accuracy against size"].findtext("desc", "")
    assert len(list(drawn["Accuracy against size"].iter("circle"))) == 4 + 1, "four models, one of them ringed"
    assert "fused" not in drawn["KL divergence from the reference against bits a weight"].findtext("desc", "")
    assert "4 points, from 2 at step 0" in drawn["Loss of adapter"].findtext("desc", "")


# ---- nothing of a model is markup, nothing comes from outside ----


def test_hostile_text_stays_text(shown: Page, source: str) -> None:
    assert {n for n, _ in shown.tags} <= KNOWN
    assert [n for n, _ in shown.tags].count("script") == 1 and [n for n, _ in shown.tags].count("style") == 1
    assert not any(k.startswith("on") or k in ("src", "style", "srcdoc", "action") for _, a in shown.tags for k in a)
    assert all(a["href"].startswith("#") for _, a in shown.tags if "href" in a)
    assert "alert('owned')" in shown.text and "alert" not in "".join(shown.raw)
    assert all(point in shown.text for point in POINTS)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", source)
    source.encode("utf-8")


def test_only_its_own_style_and_script_are_allowed(shown: Page) -> None:
    policy = next(a["content"] for n, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    for text in shown.raw:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", "".join(shown.raw))


def test_text_is_made_harmless_everywhere() -> None:
    assert html("<b>&\u202e") == '&lt;b&gt;&amp;<span class="cp">U+202E</span>'
    assert html(tag("b", "<")) == "<b>&lt;</b>" and html("é🌍\n\t") == "é🌍\n\t"
    assert spaced(" a\n\u0007") == '<u>·</u>a<u>↵</u>\n<span class="cp">U+0007</span>'
    assert attribute('"><\u200b') == "&quot;&gt;&lt;U+200B"
    assert (
        tag("a", "x", class_="k", data_id='"', hidden=True, title=None) == '<a class="k" data-id="&quot;" hidden>x</a>'
    )
    with pytest.raises(ValueError, match="could end its element"):
        document("t", "", script="'</script>'")


# ---- the cases that failed ----


def test_each_failed_case_unfolds_to_all_that_is_known(shown: Page) -> None:
    text = re.sub(r"\s+", " ", shown.text)
    for said in (
        "Read file 4", "read_file(path: string, lines?: integer, mode?: \"r\" | \"b\")", 'read_file(path="a.txt")',
        "lines is at least 3, or is absent", "names: expected read_file; got list_dir (No.)", "refused in 3.10 ms",
        "Exchange 1 · 125 ms · 7 → 2 tokens · ended by tool_calls", "the 1 messages of the exchange",
        "Only the first response with calls counts.", "Time on the server, 120 ms", "HTTP request", "HTTP response",
        "The same 7 tokens as in A",
    ):  # fmt: skip
        assert said in text, said
    assert "the first 9 tokens" not in text, "few tokens are not worth a fold"
    chips = [a["title"] for n, a in shown.tags if n == "i" and a.get("class") == "c"]
    assert chips and set(chips) == {"1", "2"}, "control tokens are marked, with their ids"
    cases = [a for n, a in shown.tags if a.get("class") == "case"]
    assert [(c["data-failed"], c["data-passed"]) for c in cases] == [
        ("A", "B"), ("A B", ""), ("A", "B"), ("A", "B"), ("A", "B"), ("A", "B"),
    ]  # fmt: skip


def test_repeats_of_a_case_are_told_apart(tmp_path: Path) -> None:
    cases = [made_case(True, "x"), failed_case("x", "No.", repeat=1), failed_case("x", "Never.", repeat=2)]
    shown = parsed(written(tmp_path / "r.json", made_run(cases, passed_with_retry=None)))
    assert "failed 2 of 3 times" in shown.text and "Try 2" in shown.text and "Try 3" in shown.text
    head, row = shown.tables["Summary of the runs"]
    assert dict(zip(head, row, strict=True))["pass^k"] == "0.0% k=3"


def test_files_of_the_first_format_are_shown_with_what_they_have(tmp_path: Path) -> None:
    shown = parsed(written(tmp_path / "old.json", of_format_1(made_run([True, False]))))
    assert "This run file keeps no tokens and no HTTP bodies." in shown.text
    assert "without tokens and HTTP bodies" in shown.text and "1/2" in shown.text


def test_long_prompts_show_their_ends() -> None:
    made = Page(tokens([[i, f"<{i}>"] for i in range(3 * MOST_TOKENS)], "Prompt"))
    assert sum(n == "i" for n, _ in made.tags) == MOST_TOKENS
    assert f"{2 * MOST_TOKENS:,} tokens left out" in made.text and f"<{3 * MOST_TOKENS - 1}>" in made.text


def test_a_page_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    cases = [failed_case(f"case {i}", "word " * 200, query=f"Question {i}") for i in range(120)]
    inputs = read_inputs([written(tmp_path / "r.json", made_run(cases))])
    whole, notes = page(inputs, Limits())
    assert notes == [] and len(Page(whole).text) > 120 * 1000
    few, notes = page(inputs, Limits(cases=10))
    assert "110 of 120 failed cases are listed without their details" in Page(few).text and len(notes) == 1
    assert all(f"Question {i}" in few for i in range(120))
    small, notes = page(inputs, Limits(bytes=300_000))
    assert 200_000 < len(small.encode()) <= 300_000 and "without their details" in notes[0]
    assert all(f"Question {i}" in small for i in range(120))
    tiny, notes = page(inputs, Limits(bytes=60_000))
    assert len(tiny.encode()) <= 60_000 and "not even listed" in notes[-1]


# ---- what a reader must know ----


def test_warnings_say_what_not_to_believe(tmp_path: Path) -> None:
    first = made_run([True, False], "one", limit=2, concurrency=4)
    other = made_run([True, False], "two", suite="6" * 64)
    twin = made_run([made_case(True, "0", error="lost"), made_case(False, "1")], "three", fingerprint="a" * 64)
    paths = [written(tmp_path / f"{i}.json", r) for i, r in enumerate((first, other, twin))]
    text = parsed(*paths).text
    for said in ("different suites", "first 2 cases", "are the same model", "several cases were in flight", "C 1",
                 "not paired"):  # fmt: skip
        assert said in text, said
    assert "Mind" not in parsed(written(tmp_path / "fine.json", made_run([True]))).text


def test_a_directory_of_a_pipeline_stands_for_what_is_in_it(tmp_path: Path) -> None:
    for name, run in zip(("base", "fused"), runs(), strict=True):
        (tmp_path / "scores" / name).mkdir(parents=True)
        written(tmp_path / "scores" / name / "result.json", run)
    written(tmp_path / "report.json", pipeline())
    inputs = read_inputs([tmp_path, tmp_path / "report.json"])
    assert [r.letter for r in inputs.runs] == ["A", "B"] and len(inputs.pipelines) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.json", None, "does not exist"),
        ("a.json", "{}", "says no kind"),
        ("metrics.jsonl", "\n", "holds no measurement"),
        ("c.json", json.dumps({"kind": "comparison"}), "give the run files themselves"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_inputs([tmp_path / name])


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of"):
        read_inputs([tmp_path])


# ---- plots ----


def test_points_lie_where_their_values_are() -> None:
    dots = [Dot("a", 1.0, 0.0), Dot("b", 2.0, 5.0, (4.0, 6.0), ring=True), Dot("c", 3.0, 10.0)]
    svg = ElementTree.fromstring(scatter("t", dots, Scale("x"), Scale("y"), "n"))
    xs, ys = ([float(c.get(k, "")) for c in svg.iter("circle") if c.get("class") == "fill"] for k in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2) and ys[0] - ys[1] == pytest.approx(
        ys[1] - ys[2], abs=0.2
    )
    assert [t.text for t in svg.iter("text") if "label" in (t.get("class") or "")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="nothing was measured for t"):
        scatter("t", [], Scale("x"), Scale("y"), "n")


def test_a_histogram_holds_every_value() -> None:
    values = [0.011, 0.1, 0.1, 0.1, 9.0]
    scale = bins(values)
    assert scale.low <= 0.011 and scale.high >= 9.0
    svg = ElementTree.fromstring(histogram(values, scale, [0.1], "r0"))
    heights = sorted(float(r.get("height", "")) for r in svg.iter("rect"))
    assert heights == pytest.approx([40 / 3, 40 / 3, 40], abs=0.01)
    mark = float(re.findall(r"M([\d.]+)", svg.find("path").get("d"))[0])
    tallest = max(svg.iter("rect"), key=lambda r: float(r.get("height", "")))
    left = float(tallest.get("x", ""))
    assert left - 0.2 <= mark <= left + float(tallest.get("width", "")) + 0.2


# ---- the verb ----


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)


def test_the_verb_writes_a_page_and_tables(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*files)
    assert done.exit_code == 0 and "comparison" in done.stdout and "size and accuracy" in done.stdout
    assert "report.html" in done.stderr and len(failures(read_inputs(files).runs)) == 6
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_markdown_and_json_are_for_others(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "| 5-bit | 5.500 | 1.50 MB | 0.009 | 93.0% [86.3, 96.6] | 0.688 | 640 | picked |" in run(
        *files, "--markdown", "-"
    ).stdout.replace("\\", "")
    found = json.loads(run(*files, "--json", "--markdown", "r.md").stdout)
    assert found["runs"][0]["summary"]["passed"] == 6 and found["comparison"]["runs"][1]["label"] == "fused"
    assert "cases" not in found["runs"][0] and (tmp_path / "r.md").read_text().startswith("| run |")
    assert not (tmp_path / "report.html").exists()
    assert isinstance(run(*files, "--json", "--markdown", "-").exception, ConfigError)


def test_a_page_that_cannot_be_written_is_an_error(files: list[Path], tmp_path: Path) -> None:
    inputs = read_inputs(files[:1])
    with pytest.raises(OutputError, match="is a directory"):
        write_page(inputs, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_page(inputs, tmp_path / "file" / "report.html")


def test_results_other_than_runs_make_a_page_too(tmp_path: Path) -> None:
    paths = [written(tmp_path / "sweep.json", sweep()), written(tmp_path / "profile.json", profile())]
    shown = parsed(*paths)
    assert "Failed cases" not in shown.text and "Size and accuracy" in shown.text
    assert HOSTILE[:10] in shown.text
