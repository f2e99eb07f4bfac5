"""The sweep as a whole on a small model, how it goes on, and what it picks."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from punie_mlx import identity, sweep, sweep_result
from punie_mlx.cli import app
from punie_mlx.errors import ConfigError, DataError, DiskError, OutputError
from punie_mlx.evals import runner
from punie_mlx.export.divergence import Teacher
from punie_mlx.export.quantize import quantize
from punie_mlx.sweep import LOCK, WORK, SweepConfig, check, run_sweep, variants
from punie_mlx.sweep_result import pick, table

Edit = Callable[..., SweepConfig]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, root: Path, scripted_model: Path, tiny_base: Path) -> Path:
    """A model whose answers are short, rows, and a suite of two cases."""
    path = tmp_path_factory.mktemp("sweep")
    shutil.copytree(scripted_model, path / "fused")
    shutil.copyfile(tiny_base / "chat_template.jinja", path / "fused" / "chat_template.jinja")
    data = root / "data" / "phase8_xml_format"
    (path / "rows").mkdir()
    for name in ("train", "valid", "test"):
        lines = (data / f"{name}.jsonl").read_text().splitlines(keepends=True)[:3]
        (path / "rows" / f"{name}.jsonl").write_text("".join(lines))
    cases = (root / "data" / "suites" / "discrimination.jsonl").read_text().splitlines(keepends=True)[:2]
    (path / "suite.jsonl").write_text("".join(cases))
    return path


@pytest.fixture(scope="module")
def config(ground: Path) -> SweepConfig:
    return SweepConfig(
        model=ground / "fused", out=ground / "out", suites=(ground / "suite.jsonl",), prompts=ground / "rows",
        bits=(8, 3), turns=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(config: SweepConfig) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:  # the speed of a model of bytes is no figure to wait for
        patch.setattr(sweep, "PROMPTS", 1)
        patch.setattr(sweep, "TOKENS", 4)
        return run_sweep(config, said.append), said


def test_a_sweep_from_end_to_end(swept, config):
    """Real servers, real runs; every figure of the interface is there, and the files are."""
    result, _ = swept
    assert json.loads((config.out / "sweep.json").read_text()) == json.loads(json.dumps(result))
    assert (result["kind"], result["format"], result["reference"]) == ("sweep", 1, "fused")
    assert [(r["label"], r["what"], r["bits"]) for r in result["rows"]] == [
        ("fused", "fused", 16), ("8-bit", "quantized", 8), ("3-bit", "quantized", 3)
    ]  # fmt: skip
    reference, eight, three = result["rows"]
    assert reference["kl"] is None and reference["mcnemar"] is None and reference["speed_ratio"] == 1
    assert reference["bytes"] > eight["bytes"] > three["bytes"] > 0
    assert eight["kl"]["tokens"] == three["kl"]["tokens"] == result["prompts"]["positions"] > 0
    assert result["prompts"]["split"] == "test"
    for row in (eight, three):
        run = json.loads((config.out / row["run"]).read_text())
        assert run["model"]["fingerprint"] == row["fingerprint"] and run["model"]["label"] == row["label"]
        assert row["fingerprint"] == identity.fingerprint(config.out / "models" / row["label"])
        assert row["accuracy"]["n"] == 2 and row["tokens_per_second"] > 0
        assert row["mcnemar"].keys() == {"only_first", "only_second", "p"}
    assert result["picked"] == "3-bit" and "score more cases" in result["why"]
    assert not (config.out / WORK).exists()


def test_the_picture_stands_alone(swept, config):
    text = (config.out / "accuracy_size.svg").read_text()
    picture = ElementTree.fromstring(text)
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    labels = [e.text for e in picture.iter() if e.get("class", "").startswith("label")]
    assert sorted(labels) == ["3-bit", "8-bit", "fused"]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "prefers-color-scheme" in text


def test_the_table_shows_each_model(swept):
    from rich.console import Console

    console = Console(width=160, file=io.StringIO())
    console.print(table(swept[0]))
    shown = console.file.getvalue()
    assert "fused (reference)" in shown and "3-bit ← picked" in shown and "(×1.00)" in shown


def test_what_is_done_is_not_done_again_also_where_weights_were_dropped(swept, config, monkeypatch):
    """Then only what a new question needs is made again."""
    again: list[str] = []
    dropping = replace(config, drop=True)
    assert run_sweep(dropping, again.append) == swept[0]
    assert [line for line in again if "done already" not in line] == ["dropped the weights of 8-bit"]
    models = config.out / "models"
    assert not list((models / "8-bit").glob("*.safetensors")) and list((models / "3-bit").glob("*.safetensors"))
    again.clear()
    assert run_sweep(dropping, again.append) == swept[0]
    assert all("done already" in line for line in again)
    shutil.rmtree(config.out / "divergence" / "8-bit")
    again.clear()
    assert run_sweep(config, again.append) == swept[0]
    made = [line.partition(":")[0] for line in again if "done already" not in line]
    assert made == ["quantize 8-bit", "divergence 8-bit"]


def test_a_run_of_the_suite_that_is_stopped_goes_on_with_the_next_case(swept, config, ground, monkeypatch):
    """Ctrl-C after the first case of the first variant: it is not run again."""
    fewer = replace(config, bits=(8,), out=ground / "stopped")
    (fewer.out / "models").mkdir(parents=True)
    (fewer.out / LOCK).touch()
    shutil.copytree(config.out / "models" / "8-bit", fewer.out / "models" / "8-bit")
    for name in ("runs/fused", "divergence/8-bit"):
        shutil.copytree(config.out / name, fewer.out / name)
    whole = runner.Journal.add

    def stop(self: Any, record: Any) -> None:
        whole(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.Journal, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(fewer, lambda line: None)
    monkeypatch.undo()
    (kept,) = (fewer.out / WORK).rglob("*.partial.jsonl")
    assert len(kept.read_text().splitlines()) == 2  # its head, and one case
    assert not (fewer.out / "runs" / "8-bit").exists()
    ran: list[Any] = []
    monkeypatch.setattr(runner.Journal, "add", lambda self, record: (ran.append(record), whole(self, record)))
    result = run_sweep(fewer, lambda line: None)
    assert len(ran) == 1 and result["rows"][1]["accuracy"]["n"] == 2


# ---- what is picked ----


def made(label: str, size: int, *, lost: int = 0, gained: int = 0, p: float = 1.0, worse: bool = False) -> dict:
    return {
        "label": label, "what": "fused" if label == "fused" else "quantized", "bytes": size, "worse": worse,
        "kl": {"mean": size / 1e6}, "accuracy": {"accuracy": 0.9, "n": 500, "interval": [0.87, 0.93]},
        "mcnemar": {"only_first": lost, "only_second": gained, "p": p}, "p_holm": p, "margin": 0.021,
        "not_worse": {"holds": True, "margin": 0.05},
    }  # fmt: skip


def test_the_smallest_that_is_not_worse_is_picked():
    rows = [
        made("fused", 400),
        made("8-bit", 200),
        made("5-bit", 130),
        made("4-bit", 110, lost=40, p=0.001, worse=True),
    ]
    picked, why = pick(rows, "fused")
    assert picked == "5-bit"
    assert "smallest of 3" in why and "Smaller and worse: 4-bit" in why and "2.1 points" in why


def test_of_two_of_one_size_the_nearer_one_is_picked():
    near = made("4-bit-dwq", 110) | {"kl": {"mean": 1e-9}}
    assert pick([made("fused", 400), made("4-bit", 110), near], "fused")[0] == "4-bit-dwq"


def test_what_is_only_not_shown_to_be_worse_is_told_apart():
    """Few cases: the small model is picked, and the result says that this proves little, and of which more is shown."""
    small = made("3-bit", 90) | {"not_worse": {"holds": False, "margin": 0.05}}
    picked, why = pick([made("fused", 400), made("5-bit", 130), small], "fused")
    assert picked == "3-bit" and why.endswith("5 points, that is shown of 5-bit, not of this one.")
    assert sweep_result.surest([made("fused", 400), made("5-bit", 130), small]) == "5-bit"
    assert sweep_result.surest([made("fused", 400), small]) is None


def test_where_all_are_worse_none_is_picked():
    picked, why = pick([made("fused", 400), made("3-bit", 90, worse=True)], "fused")
    assert picked is None and "take more bits" in why


def test_worse_means_more_lost_than_gained_and_significant_among_all(tmp_path, swept, config):
    """Planted outcomes: one variant loses 12 of 40 cases, one gains as many, one loses 5."""
    run = json.loads((config.out / "runs" / "fused" / "result.json").read_text())
    case = run["cases"][0]

    def write(label: str, lost: int, gained: int) -> dict:
        outcomes = [not (lost > i or (20 <= i < 40 and i - 20 >= gained)) for i in range(40)]
        cases = [case | {"id": str(i), "passed": ok, "reasons": [] if ok else ["x"]} for i, ok in enumerate(outcomes)]
        path = tmp_path / "runs" / label / "result.json"
        path.parent.mkdir(parents=True)
        content = run | {"cases": cases, "model": run["model"] | {"label": label}}
        content["summary"] = run["summary"] | {"n": 40, "passed": sum(outcomes), "accuracy": sum(outcomes) / 40}
        path.write_text(json.dumps(content))
        size = {"fused": 400}.get(label, 100)
        return {"label": label, "what": "fused" if label == "fused" else "quantized", "bits": 4, "group_size": 64,
                "recipe": "uniform", "bytes": size, "bits_per_weight": 4.5, "kl": {"mean": 0.1}, "run": path,
                "fingerprint": "f"}  # fmt: skip

    fused = write("fused", 0, 0)
    rows = [write("loses", 12, 0), write("gains", 0, 12), write("loses a few", 5, 0)]
    speed = {"models": {r["label"]: {"tokens_per_second": 10.0} for r in (fused, *rows)}}
    result = sweep_result.conclude({"margin": 0.05}, [fused], rows, speed)
    found = {r["label"]: r for r in result["rows"]}
    assert {label: r["worse"] for label, r in found.items()} == {
        "fused": False, "loses": True, "gains": False, "loses a few": False
    }  # fmt: skip
    assert found["loses"]["mcnemar"] == {"only_first": 12, "only_second": 0, "p": 2 / 2**12}
    assert found["loses"]["p_holm"] == pytest.approx(3 * 2 / 2**12) and found["gains"]["p_holm"] < 0.05
    assert found["loses a few"]["mcnemar"]["p"] == 2 / 2**5
    assert found["loses"]["margin"] > found["loses a few"]["margin"] > 0


# ---- what is made, and what is refused ----


def labels(config: SweepConfig) -> list[str]:
    return [v.label for v in variants(config)]


def test_every_variant_has_a_label_of_its_own(config, ground):
    assert labels(config) == ["8-bit", "3-bit"]
    assert labels(replace(config, bits=(8, 5, 3), mixed=True, dwq=ground / "rows")) == [
        "8-bit", "5-bit", "5-bit-mixed", "5-bit-dwq", "3-bit", "3-bit-mixed"
    ]  # fmt: skip
    assert labels(replace(config, bits=(4,), group_sizes=(32, 128))) == ["4-bit-g128", "4-bit-g32"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"bits": (8, 7)}, ConfigError, "--bits 7"),
        ({"group_sizes": (48,)}, ConfigError, "--group-size 48"),
        ({"bits": (8, 8)}, ConfigError, "twice"),
        ({"bits": ()}, ConfigError, "nothing to sweep"),
        ({"suites": ()}, ConfigError, "no suite"),
        ({"adapter": Path("x")}, ConfigError, "--adapter needs --base"),
        ({"margin": 5.0}, ConfigError, "--margin 5"),
        ({"limit": 0}, ConfigError, "--limit 0"),
        ({"prompts": Path("/nowhere")}, DataError, "does not exist"),
    ],
)
def test_bad_settings_are_found_before_any_work(change, error, match, config, tmp_path):
    with pytest.raises(error, match=match):
        check(replace(config, out=tmp_path / "out", **change))
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_and_foreign_directories_are_refused(config, ground, tmp_path):
    quantize(ground / "fused", tmp_path / "few" / "4bit", bits=4)
    with pytest.raises(ConfigError, match="quantized already"):
        check(replace(config, model=tmp_path / "few" / "4bit", out=tmp_path / "out"))
    with pytest.raises(OutputError, match="holds something else"):
        check(replace(config, out=tmp_path / "few"))
    with pytest.raises(OutputError, match="its own input"):
        check(replace(config, out=ground))


def test_the_disk_is_asked_first(config, full_disk):
    with pytest.raises(DiskError, match="the sweep over 2 quantized models"):
        check(replace(config, out=full_disk / "out"))


def test_the_verb_says_what_is_wrong(ground):
    from typer.testing import CliRunner

    command = ["sweep", "--model", str(ground / "fused"), "--suite", "s", "--prompts", "p", "--out", "o", "--bits", "x"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError) and "whole numbers" in str(result.exception)


def test_the_teacher_is_asked_once(swept, config, monkeypatch):
    """Two divergences are measured anew with one teacher; nothing else is."""
    shutil.rmtree(config.out / "divergence")
    count = []
    whole = Teacher.of.__func__
    monkeypatch.setattr(Teacher, "of", classmethod(lambda cls, *a, **k: (count.append(1), whole(cls, *a, **k))[1]))
    assert run_sweep(config, lambda line: None) == swept[0]
    assert len(count) == 1
