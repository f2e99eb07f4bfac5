"""`punie-mlx audit`: the table, JSON and HTML of what was found, and its exit code."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from punie_mlx.cli_audit import audit as verb
from punie_mlx.corpus.audit.page import page
from punie_mlx.corpus.audit.read import read_corpus
from punie_mlx.corpus.audit.report import json_text, to_json
from punie_mlx.corpus.audit.run import CHECKS, audit, chosen
from punie_mlx.errors import ConfigError, DataError, OutputError

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
EVIL = "<script>alert(1)</script> \x1b[31m & \ud800 é"


def asked(query: str, name: str = "look", system: str = "Be brief.") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": {}}}
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": query},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "It is 1."},
    ]
    return {"messages": messages, "tools": [LOOK]}


def write(directory: Path, **splits: list[Any]) -> Path:
    directory.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return directory


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """A corpus with an error (a leak), a warning (a copy), and a text that would do harm if it were not escaped."""
    rows = [asked("Read it"), asked("Read it"), asked(EVIL)]
    return write(tmp_path / "leaky", train=rows, valid=[asked("Read it"), asked(EVIL)])


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write(tmp_path / "clean", train=[asked("Read the first"), asked("What holds the second file")])


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)


# ---- exit codes ----


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--fail-on", "never"], 0),
        (["--check", "duplicate"], 0),
        (["--check", "duplicate", "--fail-on", "warning"], 1),
        (["--skip", "leak_row", "--skip", "leak_query"], 0),
    ],
)
def test_findings_decide_the_exit_code(leaky: Path, options: list[str], code: int) -> None:
    assert run(leaky, *options).exit_code == code


def test_a_clean_corpus_ends_well(clean: Path) -> None:
    found = run(clean, "--fail-on", "warning")
    assert found.exit_code == 0, found.output
    assert "2 rows (train 2)" in found.output


def test_what_cannot_be_used_is_an_input_error(leaky: Path, tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "absent").exception, DataError)
    assert isinstance(run(leaky, "--fail-on", "sometimes").exception, ConfigError)
    assert isinstance(run(leaky, "--drop-conflicts").exception, ConfigError)
    assert isinstance(run(leaky, "--html", leaky / "train.jsonl" / "x.html").exception, OutputError)
    with pytest.raises(ConfigError, match="leak_query"):
        chosen(["leak_qurey"])


# ---- the table ----


def test_the_table_names_check_count_and_place(leaky: Path) -> None:
    shown = run(leaky).output
    line = next(line for line in shown.splitlines() if line.startswith("duplicate"))
    assert line.split()[:5] == ["duplicate", "warning", "1", "1", "·"]
    assert "train.jsonl:2 the same row as train.jsonl:1" in shown
    assert "not run (needs --tokenizer)" in shown
    assert "distinct queries" in shown


def test_limit_shows_more_findings(leaky: Path) -> None:
    one, two, none = (run(leaky, "--check", "leak_query", "--limit", n).output for n in (1, 2, 0))
    assert [text.count("the query stands at") for text in (one, two, none)] == [1, 2, 0]


def test_a_text_of_a_row_does_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    evil = write(tmp_path / "evil", train=[asked("Read it", EVIL)])
    shown = run(evil, "--check", "tool_rare").output
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown


# ---- JSON ----


def test_json_holds_every_finding(leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "audit.json"
    shown = run(leaky, "--json", "--json-out", out)
    told = json.loads(shown.stdout)
    assert told == json.loads(out.read_text())
    checks = {c["name"]: c for c in told["checks"]}
    assert checks["leak_query"]["count"] == 2
    assert checks["leak_query"]["by_split"] == {"valid": 2}
    assert checks["duplicate"]["findings"] == [
        {
            "where": "train.jsonl:2",
            "split": "train",
            "severity": "warning",
            "detail": "the same row as train.jsonl:1",
            "also": ["train.jsonl:1"],
        }
    ]
    assert told["rows"] == {"train": 3, "valid": 2}
    assert told["figures"]["queries"] == {"train": 2, "valid": 2, "all": 2}
    assert sum(told["summary"].values()) == sum(c["count"] for c in told["checks"])
    assert set(told["clean"]) | set(checks) | set(told["skipped"]) == {c.name for c in CHECKS}


def test_json_is_utf8_whatever_the_rows_hold(tmp_path: Path) -> None:
    found = audit(read_corpus(write(tmp_path / "evil", train=[asked("Read it", EVIL)])))
    text = json_text(found)
    assert json.loads(text.encode("utf-8")) == json.loads(json.dumps(to_json(found)))
    assert "é" in text


# ---- HTML ----


class Tags(HTMLParser):
    """The tags of a page, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_and_runs_nothing(leaky: Path, tmp_path: Path) -> None:
    assert run(leaky, "--html", tmp_path / "audit.html").exit_code == 1
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == []
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "img", "iframe", "a"})
    assert not re.search(r"https?:|url\(|@import", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "light dark" in text


def test_the_page_folds_each_check(leaky: Path) -> None:
    found = audit(read_corpus(leaky))
    text = page(found)
    assert text.count("<details>") == len({f.check for f in found.findings})
    assert text.count("<td><code>valid.jsonl:1</code></td>") == 2  # leak_row and leak_query
    assert text.index(">Errors<") < text.index(">Warnings<")


# ---- the whole of it ----


def test_every_check_has_a_name_of_its_own_and_says_what_to_do() -> None:
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert re.fullmatch(r"[a-z_]+", check.name)
        assert check.severity in ("error", "warning", "note")
        assert check.help.endswith(".") and not check.title.endswith("."), check.name


def test_the_shipped_corpus_has_no_error(root: Path) -> None:
    found = audit(read_corpus(root / "data" / "phase8_xml_format"))
    assert [f for f in found.findings if f.severity == "error"] == []


def test_fix_writes_a_corpus_without_the_errors(leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed"
    assert run(leaky, "--fix", out).exit_code == 1
    assert isinstance(run(leaky, "--fix", out).exception, OutputError)
    assert run(out).exit_code == 0
