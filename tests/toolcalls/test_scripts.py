"""The scripts that fuzz the readers and measure them."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Text
from punie_mlx.toolcalls.stream import StreamParser

NAMES = tuple(formats.FORMATS)


def load(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fuzz(root: Path) -> ModuleType:
    return load(root, "fuzz_parse")


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    return load(root, "bench_parse")


def run(root: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "scripts" / script, *options]
    return subprocess.run(command, capture_output=True, text=True)


# ---- fuzzing ----


def test_any_bytes_are_a_case(fuzz):
    for data in (b"", b"\0", b"\xff" * 40, bytes(range(256)), b"\x03\x10\x00\xff\xfe<tool_call>"):
        case = fuzz.decode(data, NAMES)
        assert case.format in NAMES and len(case.text) < 20_000


def test_the_seeds_reach_every_format_and_break_nothing(fuzz):
    cases = [fuzz.decode(data, NAMES) for data in fuzz.seeds(NAMES)]
    assert {case.format for case in cases} == set(NAMES)
    assert [(case.text, wrong) for case in cases if (wrong := fuzz.complaint(case))] == []


class Careless(StreamParser):
    """A reader that loses blanks."""

    def feed(self, text, tokens=()):
        return [Text(event.text.replace(" ", "")) if type(event) is Text else event for event in super().feed(text)]


class Failing(StreamParser):
    """One that stumbles over an x."""

    def feed(self, text, tokens=()):
        return super().feed(text) if "x" not in text else 1 / 0


def test_what_it_finds(fuzz, monkeypatch):
    case = fuzz.decode(bytes((NAMES.index("hermes"), 16, 1)) + b"a b x", NAMES)
    assert case.text == "a b x" and fuzz.complaint(case) == "" and fuzz.grows(case) == ""
    monkeypatch.setattr(fuzz, "StreamParser", Careless)
    assert fuzz.complaint(case).startswith("text is lost or made up at 1")
    monkeypatch.setattr(fuzz, "StreamParser", Failing)
    assert fuzz.complaint(case) == "raises ZeroDivisionError: division by zero"


def test_it_sees_a_reader_whose_time_grows(fuzz, monkeypatch):
    case = fuzz.decode(bytes((NAMES.index("hermes"), 16, 1)) + b"abcd", NAMES)
    monkeypatch.setattr(fuzz, "cost", lambda case, text, chunk: len(text) * 1e-9)
    assert fuzz.grows(case).startswith("superlinear")
    monkeypatch.setattr(fuzz, "cost", lambda case, text, chunk: 1e-6)
    assert fuzz.grows(case) == ""


def endless(*_: object) -> None:
    while True:
        pass


def test_an_input_that_hangs_is_stopped(fuzz, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG", 0.2)
    monkeypatch.setattr(fuzz.StreamParser, "feed", endless)
    before = signal.signal(signal.SIGVTALRM, fuzz.stop_hanging)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, fuzz.HANG)
        assert "takes more than" in fuzz.complaint(fuzz.decode(b"\0\x10\0abc", NAMES))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_a_kept_input_is_replayed(root, tmp_path):
    kept = tmp_path / "crash"
    kept.write_bytes(b"\0\x10\0Hello <tool_call>")
    done = run(root, "fuzz_parse.py", "--replay", str(kept))
    assert done.returncode == 0 and "nothing wrong" in done.stdout and "Hello <tool_call>" in done.stdout
    done = run(root, "fuzz_parse.py", "--formats", "nonsense")
    assert done.returncode == 2 and "no such format: nonsense" in done.stderr


def test_a_short_hunt(root, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        done = run(root, "fuzz_parse.py", "--seconds", "1")
        assert done.returncode == 2 and "pip install atheris" in done.stderr
        return
    places = ("--corpus", str(tmp_path / "corpus"), "--keep", str(tmp_path / "kept"))
    done = run(root, "fuzz_parse.py", "--seconds", "2", *places)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and summary["executions"] > 10 and summary["crashes"] == 0


# ---- measuring ----


def test_a_short_measurement(root, tmp_path):
    done = run(
        root, "bench_parse.py", "--formats", "hermes", "--sizes", "500,2000", "--repeat", "1", "--no-limits",
        "--json", str(tmp_path / "out.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["reader"], row["format"]): row for row in found["rows"]}
    assert rows["punie-mlx", "hermes"]["costs"].keys() == {"500", "2000"} and rows["punie-mlx", "hermes"]["streams"]
    for format in ("qwen3_coder", "hermes"):
        assert rows["mlx_lm", format]["costs"] and not rows["mlx_lm", format]["streams"]
    for (reader, _), row in rows.items():
        assert row["costs"] or (reader.split()[0] in ("vllm", "sglang") and "not installed" in row["missing"])
    assert "hermes" in done.stdout and "turn 1 of 1" in done.stderr


def test_the_limits(bench):
    good = bench.Row("punie-mlx", "hermes", {1: 1e-7, 2: 1.2e-7}, 2.9e-6, True)
    assert bench.broken([good]) == []
    slow = bench.Row("punie-mlx", "glm", {1: 1e-7, 2: 1.4e-7}, 3.1e-6, False)
    assert len(bench.broken([good, slow])) == 3
    assert bench.broken([bench.Row("mlx_lm", "glm", {1: 1e-7, 2: 9e-7}, 9e-6)]) == []
    assert bench.expected(bench.Row("", "", {1000: 1e-6, 10_000: 1e-5}), 100_000) == pytest.approx(10)
