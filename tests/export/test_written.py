"""Weights are read back before they get their name, and the float16 model goes only when nothing is lost by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from punie_mlx import identity
from punie_mlx.cli import app
from punie_mlx.errors import ConfigError, DataError, DiskError, ModelError, OutputError
from punie_mlx.export import intermediate, store
from punie_mlx.export.fuse import fuse
from punie_mlx.export.quantize import quantize


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 0x01  # the last bit of a weight: a finite value all the same
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def renamed(path: Path) -> None:
    weights = dict(mx.load(str(path)))
    weights["other"] = weights.pop("model.norm.weight")
    mx.save_safetensors(str(path), weights)


def narrowed(path: Path) -> None:
    weights = dict(mx.load(str(path)))
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(mx.bfloat16)
    mx.save_safetensors(str(path), weights)


@pytest.mark.parametrize("damage", [flipped, truncated, emptied, renamed, narrowed])
@pytest.mark.parametrize("verb", ["fuse", "quantize"])
def test_a_damaged_write_never_replaces_anything(verb, damage, tmp_path, base, adapter, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("the model of yesterday")
    settle = store.settle

    def disk_that_fails(path: Path) -> None:
        settle(path)
        damage(path)

    monkeypatch.setattr(store, "settle", disk_that_fails)
    with pytest.raises(OutputError, match=r"model\.safetensors is not on the disk as it was written"):
        fuse(base, adapter, out, overwrite=True) if verb == "fuse" else quantize(base, out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["old"]


def test_the_manifest_names_the_hash_of_each_file(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(store, "SHARD_GB", 0)
    fuse(base, adapter, tmp_path / "fused")
    manifest = identity.read_manifest(tmp_path / "fused")
    shards = sorted(p.name for p in (tmp_path / "fused").glob("*.safetensors"))
    assert sorted(manifest["files"]) == shards and len(shards) > 10
    for name, wanted in manifest["files"].items():
        assert identity.hash_file(tmp_path / "fused" / name) == wanted
    store.check_files(tmp_path / "fused", manifest)
    flipped(tmp_path / "fused" / shards[3])
    with pytest.raises(ModelError, match=shards[3]):
        store.check_files(tmp_path / "fused", manifest)


def test_values_that_compare_unequal_to_themselves_are_compared_by_their_bits(tmp_path):
    odd = {"a": mx.array([float("nan"), -0.0, 1.0], mx.float16), "b": mx.array([1, 2], mx.uint32), "c": mx.array(3.0)}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), odd)
    assert store.verify_shard(tmp_path / "x.safetensors", odd) == identity.hash_file(tmp_path / "x.safetensors")
    with pytest.raises(OutputError, match="a has other values"):
        store.verify_shard(tmp_path / "x.safetensors", odd | {"a": mx.array([float("nan"), 0.0, 1.0], mx.float16)})


def test_the_whole_is_asked_of_the_disk_first(tmp_path, base, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(store, "require_disk", lambda path, needed, what: asked.append(needed))
    quantize(base, tmp_path / "out")
    assert asked[0] > store.size_bytes(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("punie_mlx.hardware.free_disk", lambda path: store.size_bytes(tmp_path / "out") - 1)
    with pytest.raises(DiskError, match=r"needs .* are free"):
        quantize(base, tmp_path / "again")


# ---- --drop-intermediate ----


@pytest.fixture(scope="module")
def ready(models: Path, base: Path, adapter: Path) -> tuple[Path, Path]:
    fuse(base, adapter, models / "drop-fused", retention=None)
    quantize(models / "drop-fused", models / "drop-5bit")
    return models / "drop-fused", models / "drop-5bit"


@pytest.fixture
def pair(ready: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A fused model and the 5-bit model that was made of it, to be spoilt."""
    for source, name in zip(ready, ("fused", "5bit"), strict=True):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "fused", tmp_path / "5bit"


def test_the_float16_model_goes_once_the_other_is_there(pair):
    fused, made = pair
    size = store.size_bytes(fused)
    assert intermediate.drop(fused, made) == size
    assert [p.name for p in fused.parent.iterdir()] == ["5bit"]


def other_kind(fused: Path, made: Path) -> None:
    (fused / "manifest.json").write_text(json.dumps({"kind": "original"}))


def no_manifest(fused: Path, made: Path) -> None:
    (fused / "manifest.json").unlink()


def changed(fused: Path, made: Path) -> None:
    flipped(fused / "model.safetensors")


def mine(fused: Path, made: Path) -> None:
    (fused / "notes.txt").write_text("of three weeks")


def mine_too(fused: Path, made: Path) -> None:
    (fused / "logs").mkdir()


def from_the_hub(fused: Path, made: Path) -> None:
    manifest = json.loads((fused / "manifest.json").read_text())
    (fused / "manifest.json").write_text(json.dumps(manifest | {"hub": {"repo": "org/name"}}))


def broken(fused: Path, made: Path) -> None:
    flipped(made / "model.safetensors")


def of_another(fused: Path, made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps(manifest | {"inputs": {"model": "0" * 64}}))


def gone(fused: Path, made: Path) -> None:
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (other_kind, "no model that punie-mlx fuse wrote"),
        (no_manifest, "its manifest says nothing"),
        (changed, "was changed after"),
        (mine, r"holds notes\.txt"),
        (mine_too, "holds logs"),
        (from_the_hub, "came from the model hub"),
        (broken, "is not as it was written"),
        (of_another, "was not made of"),
        (gone, "no model that punie-mlx quantize wrote"),
    ],
)
def test_nothing_else_is_deleted(spoil: Callable[[Path, Path], None], why, pair):
    fused, made = pair
    spoil(fused, made)
    before = sorted(p.name for p in fused.iterdir())
    with pytest.raises(ModelError, match=why):
        intermediate.drop(fused, made)
    assert sorted(p.name for p in fused.iterdir()) == before


def test_what_lies_in_the_hubs_cache_is_kept(pair, tmp_path):
    fused, made = pair
    cached = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    cached.parent.mkdir(parents=True)
    fused.rename(cached)
    with pytest.raises(ModelError, match="came from the model hub"):
        intermediate.drop(cached, made)
    assert (cached / "model.safetensors").is_file()


def test_the_directory_that_one_is_in_can_go(pair, monkeypatch):
    fused, made = pair
    monkeypatch.chdir(fused)
    intermediate.drop(Path(), Path("../5bit"))
    assert not fused.exists() and [p.name for p in made.parent.iterdir()] == ["5bit"]


def test_a_tuning_that_was_asked_for_is_not_left_out(pair):
    fused, made = pair
    done = invoke(fused, made, "--dwq", "data")
    assert isinstance(done.exception, ConfigError) and "was made without --dwq" in str(done.exception)
    assert fused.exists()


def test_a_link_is_not_followed(pair):
    fused, made = pair
    link = fused.with_name("link")
    link.symlink_to(fused)
    with pytest.raises(ModelError, match="is a link"):
        intermediate.drop(link, made)
    assert (fused / "model.safetensors").is_file()


# ---- the verb, with a check ----


def run_file(path: Path, model: Path, outcomes: list[bool]) -> Path:
    """A result of `punie-mlx eval --json` in its first format, which is read like any."""
    case = {
        "suite": "s", "category": "c", "query": "q", "reasons": [], "checks": dict.fromkeys(CHECKS),
        "unread_call": False, "error": None, "answer": "a", "raw_text": [], "expected_calls": [], "calls": [],
        "messages": [], "turns": [], "seconds": {"wall": 1.0, "model": 1.0, "tools": 0.0},
    }  # fmt: skip
    cases = [case | {"id": str(i), "passed": passed} for i, passed in enumerate(outcomes)]
    result = {
        "kind": "evaluation", "summary": {"n": len(cases), "passed": sum(outcomes)},
        "model": {"name": model.name, "fingerprint": identity.fingerprint(model)},
        "suite": {"hash": "abc", "files": []}, "versions": {}, "cases": cases,
        "settings": {"concurrency": 1, "max_tokens": 16, "temperature": 0.0},
    }  # fmt: skip
    path.write_text(json.dumps(result))
    return path


CHECKS = ("names", "arguments", "execution", "answer")


def invoke(fused: Path, made: Path, *more: str):
    command = ["quantize", "--model", str(fused), "--out", str(made), "--drop-intermediate", *more]
    return CliRunner().invoke(app, command)


def test_made_and_dropped_in_one_go(pair):
    fused, made = pair
    shutil.rmtree(made)
    done = invoke(fused, made)
    assert done.exit_code == 0, done.output
    assert made.is_dir() and not fused.exists() and "are free again" in done.output


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--min-accuracy", "0.9"], 0),
        (["--min-accuracy", "0.95"], 1),
        (["--not-worse-than", "equal.json"], 0),
        (["--not-worse-than", "better.json"], 1),
    ],
)
def test_the_check_decides(more, code, pair, monkeypatch):
    fused, made = pair
    monkeypatch.chdir(fused.parent)
    run_file(Path("run.json"), made, [True] * 36 + [False] * 4)
    run_file(Path("equal.json"), fused, [False] * 2 + [True] * 36 + [False] * 2)
    run_file(Path("better.json"), fused, [True] * 40)
    run_file(Path("run.json"), made, [True] * 30 + [False] * 10) if "better.json" in more else None
    done = invoke(fused, made, "--if-passed", "run.json", *more)
    assert done.exit_code == code, (done.output, done.exception)
    assert fused.exists() == bool(code)


def test_a_run_of_another_model_is_no_check(pair, base):
    fused, made = pair
    run = run_file(fused.parent / "run.json", base, [True] * 10)
    done = invoke(fused, made, "--if-passed", str(run), "--min-accuracy", "0.5")
    assert isinstance(done.exception, DataError) and "scored another model" in str(done.exception)
    assert fused.exists()


def test_checks_that_check_nothing_are_refused(pair):
    fused, made = pair
    run = run_file(fused.parent / "run.json", made, [True] * 10)
    for more, why in [
        (["--if-passed", str(run)], "one thing to check"),
        (["--min-accuracy", "0.5"], "go with --if-passed"),
        (["--if-passed", str(run), "--min-accuracy", "50"], "a part of 1"),
        (["--if-passed", str(run), "--min-accuracy", "0.5", "--overwrite"], "score it afterwards"),
        (["--bits", "4"], "was made with bits 5"),
    ]:
        done = invoke(fused, made, *more)
        assert isinstance(done.exception, ConfigError) and why in str(done.exception), (more, done.exception)
    assert fused.exists()
