"""A model in few bits: what is written, what is left out, what is refused."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx_lm
import pytest

from punie_mlx import identity
from punie_mlx.errors import ConfigError, DiskError, ModelError, OutputError
from punie_mlx.export.quantize import BITS, RECIPES, quantize
from punie_mlx.serve import loading


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


# ---- mixed recipes ----


def bits_of(network) -> dict[str, int]:
    return {name: m.bits for name, m in network.named_modules() if hasattr(m, "scales")}


@pytest.mark.parametrize("bits", sorted(RECIPES["mixed"].wider))
def test_stock_mlx_lm_and_our_server_load_a_mixed_model(bits, tmp_path, base):
    """Embedding, output and a quarter of the other layers are wider, and the config says so."""
    report = quantize(base, tmp_path / "out", bits=bits, recipe="mixed")
    wide = RECIPES["mixed"].wider[bits]
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    found = bits_of(network)
    assert {n for n, b in found.items() if b == wide} == set(report.wider or {})
    assert set(found.values()) == {bits, wide} and len(report.wider or {}) == 2 + round(0.25 * (len(found) - 2))
    assert found["lm_head"] == found["model.embed_tokens"] == wide
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert config["bits"] == bits and config["lm_head"] == {"group_size": 64, "bits": wide, "mode": "affine"}
    mine = loading.load(tmp_path / "out").network
    tokens = mx.array([[5, 9, 300, 12]])
    network.set_dtype(mx.float32)
    assert mx.allclose(mine(tokens), network(tokens), atol=1e-3).item()


def test_a_mixed_model_is_larger_and_nearer(tmp_path, base):
    tokens = mx.array([[5, 9, 300, 12]])
    wanted = mlx_lm.load(str(base))[0](tokens).astype(mx.float32)
    error, size = {}, {}
    for recipe in RECIPES:
        size[recipe] = quantize(base, tmp_path / recipe, bits=3, recipe=recipe).bits_per_weight
        found = mlx_lm.load(str(tmp_path / recipe))[0](tokens).astype(mx.float32)
        error[recipe] = mx.linalg.norm(found - wanted).item()
    assert size["uniform"] < size["mixed"] and error["mixed"] < error["uniform"]


def test_the_layers_with_the_least_retention_are_wider(tmp_path, base):
    """The retention in the manifest decides, at the width that is nearest to the one asked for."""
    fused = tmp_path / "fused"
    fused.mkdir()
    for path in base.iterdir():
        (fused / path.name).symlink_to(path)
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"]
    weak = {"model.layers.1.self_attn.k_proj": 0.1, "model.layers.0.self_attn.o_proj": 0.2}
    layers = [
        {"name": n, "ratio": 0.01, "8": {"kept": 1.0, "cosine": 1 - weak.get(n, 0.9)},
         "4": {"kept": 1.0, "cosine": weak.get(n, 0.9)}}
        for n in names
    ]  # fmt: skip
    told = {"layers": layers, "bits": [8, 4], "group_size": 64, "warnings": []}
    identity.write_manifest(fused, {"kind": "fused", "retention": told})
    report = quantize(fused, tmp_path / "out", bits=4, recipe="mixed")
    wider = set(report.wider or {}) - {"lm_head", "model.embed_tokens"}
    assert weak.keys() <= wider and len(wider) == round(0.25 * 14)
    assert identity.read_manifest(tmp_path / "out")["wider_by"] == "retention"


def test_without_retention_the_error_of_the_weights_decides(tmp_path, base):
    """A layer with one huge weight in each group loses the rest of the group."""
    rough = tmp_path / "rough"
    rough.mkdir()
    for path in base.iterdir():
        (rough / path.name).write_bytes(path.read_bytes())
    weights = mx.load(str(base / "model.safetensors"))
    name = "model.layers.1.mlp.up_proj"
    weight = weights[f"{name}.weight"]
    weights[f"{name}.weight"] = mx.where(mx.arange(weight.shape[1]) % 64 == 0, 0.0, weight * weight * weight)
    mx.save_safetensors(str(rough / "model.safetensors"), weights)
    assert name in (quantize(rough, tmp_path / "out", bits=4, recipe="mixed").wider or {})
    assert identity.read_manifest(tmp_path / "out")["wider_by"] == "weight error"


def test_what_the_architecture_says_of_a_layer_still_holds(tmp_path, make_model):
    """The router of a mixture keeps its 8 bits in any recipe."""
    base = make_model(tmp_path / "base", model_type="qwen3_moe")
    for recipe in RECIPES:
        quantize(base, tmp_path / recipe, bits=3, recipe=recipe)
        found = bits_of(mlx_lm.load(str(tmp_path / recipe))[0])
        assert {b for n, b in found.items() if n.endswith("mlp.gate")} == {8}


def test_recipes_that_there_are_not(tmp_path, base):
    with pytest.raises(ConfigError, match="--recipe best: choose one of uniform, mixed"):
        quantize(base, tmp_path / "out", recipe="best")
    with pytest.raises(ConfigError, match="nothing wider than 8 bits"):
        quantize(base, tmp_path / "out", bits=8, recipe="mixed")
    assert list(tmp_path.iterdir()) == []
