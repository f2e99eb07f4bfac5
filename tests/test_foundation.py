"""Errors, atomic outputs, identity, hardware and the command line's entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import punie_mlx
from punie_mlx import errors, files, hardware, identity


def run(*args: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "punie_mlx", *args], capture_output=True, text=True, **more)


def test_public_names_are_sorted_and_there() -> None:
    assert punie_mlx.__all__ == sorted(punie_mlx.__all__)
    assert all(hasattr(punie_mlx, name) for name in punie_mlx.__all__)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PunieError)]
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)
    assert {c.exit_code for c in classes} == {1, 2, 3}


def test_atomic_dir_leaves_nothing_of_a_failed_block(tmp_path: Path) -> None:
    good = tmp_path / "out"
    with files.atomic_dir(good) as tmp:
        (tmp / "a").write_text("1")
    with pytest.raises(RuntimeError), files.atomic_dir(good, overwrite=True) as tmp:
        (tmp / "a").write_text("2")
        raise RuntimeError
    assert (good / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_dir_refuses_then_replaces(tmp_path: Path) -> None:
    good = tmp_path / "out"
    good.mkdir()
    with pytest.raises(errors.OutputError, match="--overwrite"), files.atomic_dir(good):
        pass
    with files.atomic_dir(good, overwrite=True) as tmp:
        (tmp / "a").write_text("2")
    assert (good / "a").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_file_keeps_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as tmp:
        tmp.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_require_disk_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(errors.DiskError, match=r"needs 1,000,000,000,000\.0 MB .* MB are free"):
        hardware.require_disk(tmp_path / "not" / "yet", 10**18, "a test")


def test_fingerprint_is_of_what_counts(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "renamed"
    shutil.copytree(tiny_base, copy)
    (copy / "README.md").write_text("another card")
    assert identity.fingerprint(copy) == identity.fingerprint(tiny_base)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert identity.fingerprint(copy) != identity.fingerprint(tiny_base)


def test_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelError, match="does not exist"):
        identity.fingerprint(tmp_path / "none")
    with pytest.raises(errors.ModelError, match=r"config\.json"):
        identity.fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(errors.ModelError, match="safetensors"):
        identity.fingerprint(tmp_path)


def test_help_teaches_every_verb() -> None:
    out = run("--help")
    assert out.returncode == 0, out.stderr
    verbs = ("generate", "convert", "parse", "train", "fuse", "quantize", "serve", "eval", "pipeline")
    assert [v for v in verbs if v not in out.stdout] == []
    for verb in verbs:
        assert "Example" in run(verb, "--help").stdout, verb


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    out = run("generate", str(tmp_path))
    assert out.returncode == 2
    assert out.stderr.startswith("punie-mlx: ")
    assert out.stderr.count("\n") == 1
    assert "Traceback" not in out.stderr


def test_openblas_is_loaded_before_mlx() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux interposes OpenBLAS")
    code = (
        "import punie_mlx, sys; print(int('mlx.core' in sys.modules)); import mlx.core;"
        "print(open('/proc/self/maps').read().count('openblas') > 0)"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    before, loaded = out.stdout.split()
    assert before == "0"
    if not hardware.load_fast_blas():
        pytest.skip("OpenBLAS is not on this machine")
    assert loaded == "True"


def test_manifest_round_trip(tmp_path: Path) -> None:
    made = identity.manifest("test", inputs={"a": "1"}, settings={"b": 2}, note="é")
    identity.write_manifest(tmp_path, made)
    assert identity.read_manifest(tmp_path) == json.loads(json.dumps(made))
    assert identity.read_manifest(tmp_path / "none") is None
