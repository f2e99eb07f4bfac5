"""What a run shows and records."""

from __future__ import annotations

import inspect
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import punie_mlx  # noqa: F401  (the BLAS, before mlx)
from punie_mlx.errors import DiskError, OutputError
from punie_mlx.train.metrics import METRICS, Recorder, plain, read_metrics


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]


def test_each_measurement_is_a_line_on_the_disk_at_once(tmp_path):
    import mlx.core as mx

    with Recorder(tmp_path, 2, quiet=True) as recorder:
        recorder.record("train", 1, loss=mx.array(0.5), learning_rate=np.float32(1e-4), peak_memory=1 << 40)
        first = {"kind": "train", "step": 1, "loss": 0.5, "learning_rate": 0.0001, "peak_memory": 1 << 40}
        assert lines(tmp_path) == [first]
        recorder.record("skip", 2, reason="the loss is “nan”", rows=("a.jsonl:1", Path("b")))
    assert lines(tmp_path)[1] == {"kind": "skip", "step": 2, "reason": "the loss is “nan”", "rows": ["a.jsonl:1", "b"]}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None), (np.float32("inf"), None), (-float("inf"), None), (1 / 3, 0.3333333), (True, True),
        (12345678.9, 12345680.0), (7, 7), (None, None), ({"a": [float("nan")]}, {"a": [None]}), (np.arange(2), [0, 1]),
    ],
)  # fmt: skip
def test_figures_become_json(value, written):
    assert plain(value) == written
    json.dumps(plain(value), allow_nan=False)


def test_a_resumed_run_keeps_what_it_does_not_measure_again(tmp_path):
    with Recorder(tmp_path, 9, quiet=True) as recorder:
        for step in range(1, 7):
            recorder.record("train", step, loss=step)
    whole = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(whole[:-20])  # killed while it wrote the last line
    with Recorder(tmp_path, 9, quiet=True, from_step=4) as recorder:
        recorder.record("resume", 4)
        recorder.record("train", 5, loss=50)
    assert [(line["kind"], line["step"], line.get("loss")) for line in lines(tmp_path)] == [
        *(("train", step, step) for step in range(1, 5)), ("resume", 4, None), ("train", 5, 50),
    ]  # fmt: skip
    Recorder(tmp_path, 9, quiet=True).__exit__()
    assert lines(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"kind": "train", "step": 3, "lo', '{"kind": "train"}', "\0\0", "7", '{"step": 1}'])
def test_what_a_killed_run_left_is_read(torn, tmp_path):
    good = '{"kind": "train", "step": 2}'
    (tmp_path / METRICS).write_text(f"{good}\n{torn}")
    assert read_metrics(tmp_path / METRICS) == [json.loads(good)]
    with Recorder(tmp_path, 9, quiet=True, from_step=2) as recorder:
        recorder.record("train", 3)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3]


def test_what_cannot_be_written_is_told(tmp_path, full_disk):
    with pytest.raises(OutputError, match=r"none/metrics\.jsonl cannot be written"):
        (tmp_path / "none").write_text("a file")
        Recorder(tmp_path / "none", 1, quiet=True)
    with Recorder(full_disk, 1, quiet=True) as recorder, pytest.raises(DiskError, match="free some space and resume"):
        for step in range(100_000):
            recorder.record("train", step, loss=0.5)


def test_the_silent_one_says_and_writes_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Recorder.silent() as recorder:
        recorder.record("valid", 1, loss=1.0)
        recorder.advance(1, 0.5)
        recorder.say("hello")
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def run(recorder: Recorder) -> None:
    """Four steps, with all that can be said of them; markup in the names must come out as it is."""
    with recorder:
        for step in range(1, 5):
            recorder.advance(step, 1 / step)
            figures = {"tokens_per_second": 1234.5, "peak_memory": 1_500_000_000}
            recorder.record("train", step, loss=1 / step, **figures)
        recorder.record("valid", 4, loss=float("nan"), seconds=0.1)
        recorder.record("select", 4, calls_right=3, calls=4, direct_right=1, direct=2, seconds=0.1)
        recorder.record("skip", 4, reason="the [bold]loss", rows=[f"rows[{i}].jsonl" for i in range(6)])
        recorder.record("checkpoint", 4, path="checkpoints/0000004")


SAID = (
    "step 4: validation loss not a number",
    "step 4: 3 of 4 calls and 1 of 2 direct answers right",
    "step 4: skipped, the [bold]loss: rows[0].jsonl, rows[1].jsonl, rows[2].jsonl, rows[3].jsonl and 2 more",
)


def test_without_a_terminal_there_are_plain_lines_now_and_then(tmp_path, capsys):
    run(Recorder(tmp_path, 4))
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first.startswith("step 1/4, loss 1.000, 1,234 tokens/s, 1.50 GB, 0:0") and first.endswith(" left")
    assert rest == ["step 4/4, loss 0.250, 1,234 tokens/s, 1.50 GB", *SAID]  # no line for each step


def test_quiet_shows_nothing(tmp_path, capfd):
    run(Recorder(tmp_path, 4, quiet=True))
    assert capfd.readouterr() == ("", "")
    assert len(lines(tmp_path)) == 8


def test_on_a_terminal_there_is_a_bar(tmp_path):
    head = (
        "from __future__ import annotations\nfrom pathlib import Path\nfrom punie_mlx.train.metrics import Recorder\n"
    )
    code = f"{head}{inspect.getsource(run)}run(Recorder(Path({str(tmp_path)!r}), 4))"
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    env.pop("CI", None)
    with subprocess.Popen([sys.executable, "-c", code], stderr=side, stdin=side, env=env) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                more = os.read(main, 65536)
            except OSError:  # the other side is closed
                break
            if not more:
                break
            shown += more
    os.close(main)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "4/4" in text and "loss 0.250" in text and "1,234 tokens/s" in text and "1.50 GB" in text
    assert all(line in text for line in SAID) and "━" in text
