"""`fuse --base`: an adapter of a quantized model goes onto the 16-bit original, and onto nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from punie_mlx import identity
from punie_mlx.errors import ConfigError, ModelError
from punie_mlx.export.fuse import fuse
from punie_mlx.export.original import check_original
from punie_mlx.export.quantize import quantize


@pytest.fixture(scope="module")
def rounded(models: Path, base: Path) -> Path:
    """The base in 4 bits."""
    quantize(base, models / "rounded", bits=4)
    return models / "rounded"


@pytest.fixture(scope="module")
def rounded_adapter(models: Path, rounded: Path, make_adapter) -> Path:
    return make_adapter(models / "rounded-adapter", rounded)


def moved(base: Path, path: Path, size: float, only: str = "weight") -> Path:
    """A copy of `base` with each matrix changed by a part of its own length, as a little training would."""
    shutil.copytree(base, path)
    mx.random.seed(5)
    weights = mx.load(str(path / "model.safetensors"))
    for name, value in weights.items():
        if value.ndim == 2 and only in name:
            step = mx.random.normal(value.shape) * mx.linalg.norm(value.astype(mx.float32)) / value.size**0.5
            weights[name] = (value + size * step).astype(value.dtype)
    mx.save_safetensors(str(path / "model.safetensors"), dict(weights))
    return path


def test_the_adapter_goes_onto_the_original(tmp_path, base, rounded, rounded_adapter):
    report = fuse(rounded, rounded_adapter, tmp_path / "fused", base=base)
    name = "model.layers.1.self_attn.q_proj"
    lora = mx.load(str(rounded_adapter / "adapters.safetensors"))
    weight = mx.load(str(base / "model.safetensors"))[f"{name}.weight"].astype(mx.float32)
    wanted = weight + 10.0 * (lora[f"{name}.lora_a"] @ lora[f"{name}.lora_b"]).T
    found = mx.load(str(tmp_path / "fused" / "model.safetensors"))[f"{name}.weight"]
    assert mx.array_equal(found, wanted.astype(mx.float16))
    manifest = identity.read_manifest(tmp_path / "fused")
    assert manifest["inputs"]["base"] == identity.fingerprint(base)
    assert manifest["inputs"]["model"] == identity.fingerprint(rounded)
    assert manifest["original"] == report.original
    assert manifest["original"]["forced"] is False and manifest["original"]["least_same_codes"] == 1.0
    assert manifest["sources"]["base"]["name"] == base.name
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert "quantization" not in config


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_every_width_knows_its_original(bits, tmp_path, base):
    quantize(base, tmp_path / "rounded", bits=bits, group_size=32)
    told = check_original(tmp_path / "rounded", base)
    assert told["least_same_codes"] == 1.0
    assert told["median_error"] == pytest.approx(told["median_expected"], rel=0.02)


def test_a_bfloat16_original_is_known(tmp_path, make_model):
    base = make_model(tmp_path / "base", dtype=mx.bfloat16)
    rounded = make_model(tmp_path / "rounded", dtype=mx.bfloat16, quantize=4)  # the same seed
    assert check_original(rounded, base)["least_same_codes"] == 1.0


def test_tuned_scales_are_no_other_model(tmp_path, base, rounded):
    """What DWQ does: the codes stay, scales and biases move."""
    shutil.copytree(rounded, tmp_path / "tuned")
    weights = mx.load(str(tmp_path / "tuned" / "model.safetensors"))
    for name in weights:
        if name.endswith(".scales"):
            weights[name] = (weights[name] * (1 + 0.02 * mx.random.normal(weights[name].shape))).astype(mx.float16)
    mx.save_safetensors(str(tmp_path / "tuned" / "model.safetensors"), dict(weights))
    told = check_original(tmp_path / "tuned", base)
    assert told["median_error"] > told["median_expected"] and not told["forced"]


@pytest.mark.parametrize("size", [1.0, 0.05, 0.01], ids=["another", "sibling", "near sibling"])
def test_another_model_is_refused_with_figures(size, tmp_path, base, rounded, rounded_adapter):
    other = moved(base, tmp_path / "other", size)
    with pytest.raises(ModelError, match=r"is not the original .*error \d+\.\d+% of \d+\.\d+% expected, .*same codes"):
        fuse(rounded, rounded_adapter, tmp_path / "fused", base=other)
    assert not (tmp_path / "fused").exists()
    report = fuse(rounded, rounded_adapter, tmp_path / "fused", base=other, force_base=True)
    assert report.original is not None and report.original["forced"] is True


def test_one_changed_layer_is_found(tmp_path, base, rounded):
    with pytest.raises(ModelError, match=r"1 of \d+ layers differ.*layers\.1\.mlp\.down_proj"):
        check_original(rounded, moved(base, tmp_path / "other", 0.3, only="layers.1.mlp.down_proj"))


def test_a_norm_that_was_trained_is_found(tmp_path, base, rounded):
    shutil.copytree(base, tmp_path / "other")
    weights = mx.load(str(tmp_path / "other" / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.02
    mx.save_safetensors(str(tmp_path / "other" / "model.safetensors"), dict(weights))
    with pytest.raises(ModelError, match=r"model\.norm\.weight: error 1\.9\d%, and it was never rounded"):
        check_original(rounded, tmp_path / "other")


def test_another_shape_is_refused_even_by_force(tmp_path, base, rounded, make_model):
    wider = make_model(tmp_path / "wider", intermediate_size=192)
    with pytest.raises(ModelError, match="intermediate_size: 128 and 192"):
        check_original(rounded, wider, force=True)
    with pytest.raises(ModelError, match="is quantized itself"):
        check_original(rounded, rounded, force=True)
    with pytest.raises(ModelError, match="is not quantized"):
        check_original(base, base)


def test_force_without_a_base_is_an_error(tmp_path, base, adapter):
    from typer.testing import CliRunner

    from punie_mlx.cli import app

    command = ["fuse", "--model", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "a"), "--force-base"]
    assert isinstance(CliRunner().invoke(app, command).exception, ConfigError)
