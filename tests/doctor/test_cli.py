"""`punie-mlx doctor`: what it prints, what it writes, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from punie_mlx.chat import templates
from punie_mlx.cli_doctor import doctor as verb
from punie_mlx.errors import ConfigError, ModelError, OutputError

EVIL = "<script>alert(1)</script>\x1b[31m"
BROKEN = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""A chat template for words only, as models for conversation have it."""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "chat_template.jinja"
    file.write_text(BROKEN)
    return file


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of a model's tokenizer and configuration, to be spoiled."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_base.iterdir():
        if file.suffix in (".json", ".jinja"):
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_shipped_model_is_healthy(tiny_base: Path) -> None:
    result = run(tiny_base)
    assert result.exit_code == 0, result.stdout
    assert "no findings" in result.stdout
    assert "qwen3_coder" in result.stdout


def test_findings_end_with_1_and_say_what_to_do(template: Path) -> None:
    result = run("--template", template)
    assert result.exit_code == 1
    for said in ("tools-ignored", "tool-calls-dropped", "high", "effect", "remedy"):
        assert said in result.stdout


def test_json_holds_the_findings_with_their_evidence(template: Path) -> None:
    result = run("--template", template, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    for finding in told["findings"]:
        assert {"check", "severity", "evidence", "effect", "remedy"} <= finding.keys()
        assert finding["evidence"].strip()
    assert "tool-calls-dropped" in {f["check"] for f in told["findings"]}
    assert told["facts"]["subject"] == str(template)


def test_one_check_alone_and_all_but_one(template: Path) -> None:
    only = json.loads(run("--template", template, "--json", "--check", "tools-ignored").stdout)
    assert [f["check"] for f in only["findings"]] == ["tools-ignored"]
    rest = json.loads(run("--template", template, "--json", "--skip", "tools-ignored").stdout)
    assert "tools-ignored" not in {f["check"] for f in rest["findings"]}
    assert rest["findings"]


def test_fix_writes_a_template_that_passes_beside_the_first(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    good = templates.make("hermes")
    broken = good.replace("text(message.content) ~ '\\n</tool_response>'", "'\\n</tool_response>'")
    assert broken != good
    file.write_text(broken)
    result = run("--template", file, "--fix")
    mended = tmp_path / "chat_template.mended.jinja"
    assert result.exit_code == 0, result.stdout
    assert file.read_text() == broken
    assert f"{mended}: it is our template of hermes; found no more: tool-result-lost\n" in result.stdout
    for said in ("+++", "punie-mlx serve", f"--chat-template {mended}", "llama-server"):
        assert said in result.stdout
    assert run("--template", mended).exit_code == 0
    with pytest.raises(OutputError, match=r"chat_template\.mended\.jinja"):
        raise (again := run("--template", file, "--fix")).exception  # type: ignore[misc]
    assert not again.stdout, "before anything is looked at"
    assert run("--template", file, "--fix", "--overwrite").exit_code == 0


def test_fix_says_what_it_cannot_mend_and_ends_with_1(template: Path) -> None:
    result = run("--template", template, "--fix")
    assert result.exit_code == 1
    assert "left: tools-ignored, tool-calls-dropped" in result.stdout
    assert "--family" in result.stdout


def test_fix_takes_the_family_that_is_named(template: Path) -> None:
    result = run("--template", template, "--fix", "--family", "hermes")
    assert result.exit_code == 0, result.stdout
    assert "<tools>" in template.with_name("chat_template.mended.jinja").read_text()


def test_the_page_is_safe_and_whole(template: Path, tmp_path: Path) -> None:
    template.write_text(BROKEN.replace("<|im_end|>", EVIL))
    page = tmp_path / "page.html"
    assert run("--template", template, "--html", page).exit_code == 1
    text = page.read_text()
    assert "tool-calls-dropped" in text
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched
    assert "<dt>reader of calls</dt>" in text
    assert "&lt;dt" not in text


def test_a_terminal_is_not_obeyed(template: Path) -> None:
    template.write_text(BROKEN.replace("<|im_end|>", EVIL))
    assert "\x1b" not in run("--template", template).stdout


@pytest.mark.parametrize("broken", ["{% for m in messages %}{{ m.content", "{{ messages\n | nonsense }}"])
def test_a_template_that_cannot_be_compiled_is_one_finding_with_its_line(template: Path, broken: str) -> None:
    template.write_text(broken)
    told = json.loads(run("--template", template, "--json").stdout)
    assert [f["check"] for f in told["findings"]] == ["render-error"]
    assert "(line " in told["findings"][0]["evidence"]
    assert not {"content-parts", "system-messages"} & set(told["passed"]), "nothing was rendered"


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_model_without_a_template_is_one_finding(model: Path, text: str) -> None:
    (model / "chat_template.jinja").write_text(text)
    told = json.loads(run(model, "--json").stdout)
    assert [f["check"] for f in told["findings"]] == ["template-missing"]
    assert not {"marker-flags", "end-of-turn"} & set(told["passed"]), "nothing was rendered"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ['{"a":', "[1]"])
def test_a_broken_file_of_a_model_is_named(model: Path, name: str, text: str) -> None:
    (model / name).write_text(text)
    with pytest.raises(ModelError, match=f"{name} .*: give a directory"):
        raise run(model).exception  # type: ignore[misc]


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_the_page_takes_the_place_of_nothing_that_is_looked_at(model: Path, name: str) -> None:
    before = (model / name).read_bytes()
    with pytest.raises(OutputError, match="is an input itself"):
        raise run(model, "--html", model / name).exception  # type: ignore[misc]
    assert (model / name).read_bytes() == before
    template, page = model / "chat_template.jinja", model / "page.html"
    with pytest.raises(OutputError, match="is an input itself"):
        raise run("--template", template, "--html", template).exception  # type: ignore[misc]
    with pytest.raises(OutputError, match="is an input itself"):
        raise run("--template", template, "--fix", "--out", page, "--html", page).exception  # type: ignore[misc]
    for _ in range(2):
        assert run(model, "--check", "two-templates", "--html", page).exit_code == 0


def test_checks_are_listed_and_explained() -> None:
    listed = run("--list").stdout
    assert "tool-calls-dropped" in listed
    assert "template:" in listed
    explained = run("--explain", "tool-calls-dropped").stdout
    assert explained.startswith("# tool-calls-dropped")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ([], ConfigError, "nothing to look at"),
        (["--fix"], ConfigError, "--fix mends a template"),
        (["--template", "{template}", "--fix", "--family", "nonsense"], ConfigError, "hermes"),
        (["--template", "missing.jinja"], ConfigError, "cannot be read"),
        (["--template", "{template}", "--probe"], ConfigError, "--probe needs the model"),
        (["--template", "{template}", "--check", "nonsense"], ConfigError, "nonsense"),
        (["--template", "{template}", "--check", "adapter-fit"], ConfigError, "give --adapter DIR, too"),
        (["--template", "{template}", "--check", "server-models"], ConfigError, "give --url URL, too"),
        (["--url", "http://127.0.0.1:9", "--check", "ids-lost"], ConfigError, "give a model directory or --template"),
        (["--template", "{template}", "--check", "ids-lost", "--skip", "ids-lost"], ConfigError, "both"),
        (["--template", "{template}", "--out", "x.jinja"], ConfigError, "give --fix, too"),
        (["--template", "{template}", "--family", "hermes"], ConfigError, "give --fix, too"),
        (["--explain", "nonsense"], ConfigError, "nonsense"),
        (["{directory}"], ModelError, "tokenizer"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], error: type[Exception], words: str, template: Path, tmp_path: Path
) -> None:
    given = [a.format(template=template, directory=tmp_path) for a in arguments]
    result = run(*given)
    assert isinstance(result.exception, error), result.exception
    assert words in str(result.exception)
    assert error("x").exit_code == 2  # type: ignore[attr-defined]
