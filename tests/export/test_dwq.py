"""Tuned scales: what changes and what does not, what is kept, and what is never tuned on."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from punie_mlx import identity
from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import Row, write_rows
from punie_mlx.errors import ConfigError, DataError, OutputError
from punie_mlx.export.divergence import Teacher, divergence
from punie_mlx.export.dwq import DwqConfig, distill, splits
from punie_mlx.export.quantize import quantize

CONFIG = DwqConfig(steps=24, learning_rate=3e-3, measured=3, measurements=2)


def row(i: int) -> Row:
    said = [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i} it is, and {i * 7}."}]
    return Row(said, [])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which one of valid and one of test stand in train, too."""
    path = tmp_path_factory.mktemp("rows")
    write_rows(path / "train.jsonl", map(row, range(26)))
    write_rows(path / "valid.jsonl", map(row, (100, 101, 102, 3)))
    write_rows(path / "test.jsonl", map(row, (200, 4)))
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, base: Path, rows: Path):
    out = tmp_path_factory.mktemp("dwq") / "3bit"
    return distill(base, out, data=rows, bits=3, config=CONFIG)


def test_it_is_nearer_to_float16_on_rows_that_it_was_not_tuned_on(tuned, base, rows, tmp_path):
    report, tuning = tuned
    assert tuning.kept and tuning.after.mean < tuning.before.mean
    _, measured = splits(rows, load_tokenizer(base), CONFIG)
    teacher = Teacher.of(base, measured)
    plain = quantize(base, tmp_path / "plain", bits=3)
    assert divergence(teacher, report.out).mean == pytest.approx(tuning.after.mean, rel=1e-4)  # as it was written
    assert divergence(teacher, plain.out).mean == pytest.approx(tuning.before.mean, rel=1e-4)
    assert identity.read_manifest(report.out)["dwq"]["after"]["mean"] == tuning.after.mean
    assert f"{tuning.after.mean:.3g} after step {tuning.step}" in tuning.words()


def test_only_scales_and_biases_change(tuned, base, tmp_path):
    report, _ = tuned
    plain = quantize(base, tmp_path / "plain", bits=3)
    before, after = (mx.load(str(p / "model.safetensors")) for p in (plain.out, report.out))
    changed = {name.rpartition(".")[2] for name in before if not mx.array_equal(before[name], after[name]).item()}
    assert changed == {"scales", "biases"} and before.keys() == after.keys()
    assert {n: w.dtype for n, w in before.items()} == {n: w.dtype for n, w in after.items()}
    assert report.bits_per_weight == plain.bits_per_weight
    assert mlx_lm.load(str(report.out))[0].lm_head.bits == 3


def test_the_same_seed_gives_the_same_model(tuned, base, rows, tmp_path):
    assert distill(base, tmp_path / "again", data=rows, bits=3, config=CONFIG)[0].fingerprint == tuned[0].fingerprint


def test_what_is_worse_is_not_kept(base, rows, tmp_path):
    config = DwqConfig(steps=4, learning_rate=30.0, measured=2, measurements=2)
    report, tuning = distill(base, tmp_path / "out", data=rows, bits=4, recipe="mixed", config=config)
    assert not tuning.kept and tuning.after == tuning.before and tuning.step == 0
    assert "the plain quantization was kept" in tuning.words()
    assert report.fingerprint == quantize(base, tmp_path / "plain", bits=4, recipe="mixed").fingerprint


def test_held_out_turns_are_not_tuned_on(base, rows):
    tokenizer = load_tokenizer(base)
    turns, measured = splits(rows, tokenizer, CONFIG)
    everything, _ = splits(rows, tokenizer, DwqConfig(steps=100))
    assert len(everything) == 24 and len(turns) == 24 and len(measured) == 3
    assert not set(measured) & set(everything)
    away = everything[:5]
    left, _ = splits(rows, tokenizer, DwqConfig(steps=100), away)
    assert set(left) == set(everything) - set(away)


def test_what_is_refused(base, rows, tmp_path):
    with pytest.raises(ConfigError, match="8 bits leave nothing"):
        distill(base, tmp_path / "out", data=rows, bits=8)
    with pytest.raises(ConfigError, match="learning_rate of DWQ is 0"):
        DwqConfig(learning_rate=0)
    with pytest.raises(DataError, match="does not exist"):
        distill(base, tmp_path / "out", data=tmp_path / "none")
    with pytest.raises(OutputError, match="is an input itself"):
        distill(base, base, data=rows, overwrite=True)
    assert list(tmp_path.iterdir()) == []
