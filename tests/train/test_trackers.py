"""Figures sent on: really to TensorBoard, whose files are read back; the other packages are not installed in tests."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path

import pytest

from punie_mlx.errors import ConfigError
from punie_mlx.train.metrics import Recorder
from punie_mlx.train.trackers import RUN, TENSORBOARD, TRACKERS, Kind, Trackers, require


def scalars(directory: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard would read, (tag, step, value) in order: without figures that a later file has purged."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: list[tuple[str, int, float]] = []
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length, its checksum, content, its checksum
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = [f for f in found if f[1] < event.step]
            values = [v for v in event.summary.value if v.HasField("simple_value")]
            found += [(v.tag, event.step, round(v.simple_value, 6)) for v in values]
    return found


def test_tensorboard_gets_every_number(tmp_path):
    recorder = Recorder(tmp_path, 4, quiet=True, trackers=["tensorboard"], settings={"targets": ("q_proj",), "rank": 8})
    with recorder:
        recorder.record("train", 2, loss=0.5, grad_norm=float("nan"), ready=True)
        recorder.record("skip", 3, reason="the loss is nan", rows=["train.jsonl:1"])
        recorder.record("valid", 4, loss=0.25)
    assert scalars(tmp_path / TENSORBOARD) == [("train/loss", 2, 0.5), ("valid/loss", 4, 0.25)]
    (path,) = (tmp_path / TENSORBOARD).iterdir()
    assert b"q_proj" in path.read_bytes() and b"settings" in path.read_bytes()


def test_a_resumed_run_goes_on_under_its_name(tmp_path):
    said: list[str] = []
    names: list[str] = []
    for from_step in (0, 2):
        trackers = Trackers(["tensorboard"], tmp_path, "", {}, said.append, from_step)
        for step in (from_step + 1, from_step + 2, from_step + 3):
            trackers.log("train", step, {"loss": float(from_step)})
        trackers.close()
        names.append(json.loads((tmp_path / RUN).read_text())["name"])
        # Its files are named by the second.
        for path in (tmp_path / TENSORBOARD).glob("events*"):
            path.rename(path.with_name(f"{from_step}"))
    assert scalars(tmp_path / TENSORBOARD) == [("train/loss", s, 0.0 if s < 3 else 2.0) for s in (1, 2, 3, 4, 5)]
    Trackers(["tensorboard"], tmp_path, "", {}, said.append).close()
    names.append(json.loads((tmp_path / RUN).read_text())["name"])
    assert names[0] == names[1] != names[2] and said == []
    assert scalars(tmp_path / TENSORBOARD) == []  # another run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_told_before_training(name, tmp_path):
    if importlib.util.find_spec(TRACKERS[name].package):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=rf"pip install 'punie-mlx\[{name}\]'"):
        Recorder(tmp_path, 1, quiet=True, trackers=["tensorboard", name])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"'mlflow': it must be one of wandb, tensorboard, trackio"):
        require(["mlflow"])


def test_every_tracker_is_an_extra(root):
    import tomllib

    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, kind in TRACKERS.items():
        assert extras[name][0].startswith(kind.package)


class Broken:
    """A tracker whose service is gone after the first figures."""

    def __init__(self, package: object, run: object) -> None:
        self.got = 0

    def log(self, step: int, figures: object) -> None:
        print("greetings")
        self.got += 1
        if self.got > 1:
            raise OSError("no\nroute")

    def close(self) -> None:
        raise AssertionError("closed after it had failed")


def test_one_that_fails_is_left_out_and_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKERS, "broken", Kind("json", Broken))
    with Recorder(tmp_path, 9, trackers=["broken", "tensorboard"]) as recorder:
        for step in (1, 2, 3):
            recorder.record("train", step, loss=step / 2)
    out, err = capsys.readouterr()
    assert out == "" and "greetings" in err
    assert err.count("broken failed and gets no more figures (no route)") == 1
    assert len(scalars(tmp_path / TENSORBOARD)) == 3
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_one_that_cannot_begin_stops_the_run_before_it_starts(tmp_path, monkeypatch):
    def fail(package: object, run: object) -> Broken:
        raise RuntimeError("no key")

    monkeypatch.setitem(TRACKERS, "closed", Kind("json", fail, "log in"))
    with pytest.raises(ConfigError, match=r"cannot begin \(no key\): log in, or leave it out"):
        Recorder(tmp_path, 9, quiet=True, trackers=["tensorboard", "closed"])


def test_without_trackers_nothing_is_imported(tmp_path):
    before = set(sys.modules)
    Trackers([], tmp_path, "", {}, print).log("train", 1, {"loss": 1.0})
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in ("tensorboardX", "wandb", "trackio")}
    assert list(tmp_path.iterdir()) == []
