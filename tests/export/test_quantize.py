"""A model in few bits: what is written, what is left out, what is refused."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx_lm
import pytest

from punie_mlx import identity
from punie_mlx.errors import ConfigError, DiskError, ModelError, OutputError
from punie_mlx.export.quantize import BITS, quantize


@pytest.mark.parametrize("bits", BITS)
def test_stock_mlx_lm_loads_every_width(bits, tmp_path, base):
    report = quantize(base, tmp_path / "out", bits=bits)
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    assert network.layers[0].self_attn.q_proj.bits == bits
    assert bits + 0.4 < report.bits_per_weight < bits + 0.7  # a scale and a bias of 16 bits for 64 weights
    assert report.skipped == {}
    assert report.fingerprint == identity.fingerprint(tmp_path / "out")


def test_scales_are_float16(tmp_path, make_model):
    base = make_model(tmp_path / "base", dtype=mx.bfloat16)
    quantize(base, tmp_path / "out")
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {w.dtype for k, w in weights.items() if k.endswith((".scales", ".biases"))} == {mx.float16}
    assert {w.dtype for w in weights.values()} == {mx.float16, mx.uint32}


def test_eight_bits_are_near_the_original(tmp_path, base):
    quantize(base, tmp_path / "out", bits=8)
    tokens = mx.array([[5, 9, 300, 12]])
    wanted, found = (mlx_lm.load(str(p))[0](tokens).astype(mx.float32) for p in (base, tmp_path / "out"))
    assert (mx.linalg.norm(found - wanted) / mx.linalg.norm(wanted)).item() < 0.05


def test_layers_of_another_width_are_named(tmp_path, make_model):
    base = make_model(tmp_path / "base", intermediate_size=96)
    report = quantize(base, tmp_path / "out")
    assert report.skipped == {f"model.layers.{i}.mlp.down_proj": "width 96 is not divisible by 64" for i in (0, 1)}
    assert report.bits_per_weight > 5.6  # they keep 16 bits
    assert identity.read_manifest(tmp_path / "out")["skipped"] == report.skipped
    assert quantize(base, tmp_path / "finer", group_size=32).skipped == {}
    mlx_lm.load(str(tmp_path / "out"))


def test_nothing_to_quantize_is_an_error(tmp_path, base):
    with pytest.raises(ConfigError, match=r"no layer of .* divisible by 128"):
        quantize_narrow(base, tmp_path)


def quantize_narrow(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    assert config["hidden_size"] == 64
    # every width of this model is 64 or 128: only down_proj fits a group of 128, so take it away
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    weights = mx.load(str(base / "model.safetensors"))
    for name in list(weights):
        if name.endswith("down_proj.weight"):
            weights[name] = weights[name][:, :64]
        elif name.endswith(("up_proj.weight", "gate_proj.weight")):
            weights[name] = weights[name][:64]
    mx.save_safetensors(str(narrow / "model.safetensors"), weights)
    (narrow / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    quantize(narrow, tmp_path / "out", group_size=128)


@pytest.mark.parametrize("bits", [0, 1, 7, 16, -5])
def test_bits_that_mlx_does_not_have(bits, tmp_path, base):
    with pytest.raises(ConfigError, match=f"--bits {bits}: .* 2, 3, 4, 5, 6, 8 bits"):
        quantize(base, tmp_path / "out", bits=bits)
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_that_mlx_does_not_have(tmp_path, base):
    with pytest.raises(ConfigError, match="--group-size 48"):
        quantize(base, tmp_path / "out", group_size=48)


def test_a_quantized_model_is_not_quantized_again(tmp_path, base):
    quantize(base, tmp_path / "out")
    with pytest.raises(ConfigError, match="is quantized already"):
        quantize(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_missing_models_and_existing_outputs(tmp_path, base):
    with pytest.raises(ModelError, match="does not exist"):
        quantize(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        quantize(base, tmp_path / "out")
    with pytest.raises(OutputError, match="is an input itself"):
        quantize(base, base, overwrite=True)


def test_no_room(full_disk, base):
    with pytest.raises(DiskError, match="the 5-bit model needs"):
        quantize(base, full_disk / "out")
    assert list(full_disk.iterdir()) == []
