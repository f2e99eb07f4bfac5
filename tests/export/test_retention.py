"""What is left of an adapter after rounding: figures of known matrices, of real layers, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.lora import LoRASwitchLinear

from punie_mlx import identity
from punie_mlx.errors import ConfigError
from punie_mlx.export import fuse as room
from punie_mlx.export import retention
from punie_mlx.export.retention import Change, measure


def random_change(base_bits: int, ratio: float, shape: tuple[int, int] = (512, 1024)) -> Change:
    """A random weight, rounded to `base_bits`, and a random change of rank 8 and of the relative size `ratio`."""
    mx.random.seed(0)
    weight = mx.random.normal(shape) * 0.02
    if base_bits == 4:
        weight = mx.dequantize(*mx.quantize(weight.astype(mx.float16), 64, 4), group_size=64, bits=4)
    else:
        weight = weight.astype(mx.bfloat16)
    weight = weight.astype(mx.float32)
    delta = mx.random.normal((shape[0], 8)) @ mx.random.normal((8, shape[1]))
    delta = delta * (ratio * mx.linalg.norm(weight) / mx.linalg.norm(delta))
    return Change(f"{base_bits} bits", lambda: weight, lambda: weight + delta)


# What was measured once, apart from this code, with matrices of 1024 × 2048: kept and cosine at each width.
MEASURED = {
    (4, 0.01): {"float16": (1.0, 1.0), "8": (0.98, 0.89), "6": (1.04, 0.43), "5": (0.78, 0.19), "4": (0.16, 0.05)},
    (4, 0.03): {"float16": (1.0, 1.0), "8": (1.0, 0.98), "6": (1.0, 0.81), "5": (0.71, 0.49), "4": (0.12, 0.11)},
    (16, 0.03): {"float16": (1.0, 1.0), "8": (1.0, 0.98), "6": (1.0, 0.81), "5": (1.0, 0.56), "4": (1.0, 0.31)},
}


@pytest.mark.parametrize(("base_bits", "ratio"), MEASURED)
def test_random_matrices_give_the_known_table(base_bits, ratio):
    layer = measure([random_change(base_bits, ratio)])["layers"][0]
    assert layer["ratio"] == pytest.approx(ratio, rel=1e-3)
    for width, (kept, cosine) in MEASURED[base_bits, ratio].items():
        assert layer[width]["kept"] == pytest.approx(kept, abs=0.06), width
        assert layer[width]["cosine"] == pytest.approx(cosine, abs=0.03), width


def test_blocks_of_rows_add_up(monkeypatch):
    whole = measure([random_change(4, 0.03, (128, 256))])
    monkeypatch.setattr(retention, "BLOCK", 256 * 3)  # three rows at a time
    assert measure([random_change(4, 0.03, (128, 256))]) == whole


def test_figures_are_those_of_the_formula():
    before = mx.zeros((2, 64)).at[0, 0].add(1.0)
    after = before.at[1, 1].add(0.25)
    layer = measure([Change("a", lambda: before, lambda: after)], [8])["layers"][0]
    assert layer == {
        "name": "a", "ratio": 0.25, "float16": {"kept": 1.0, "cosine": 1.0}, "8": {"kept": 1.0, "cosine": 1.0},
    }  # fmt: skip


def test_a_change_below_float16_is_lost():
    before = mx.full((4, 64), 1.0)
    layer = measure([Change("a", lambda: before, lambda: before + 1e-5)], [])["layers"][0]
    assert layer["float16"] == {"kept": 0.0, "cosine": 0.0}


def test_an_untouched_layer_has_nothing_to_lose():
    before = mx.random.normal((4, 64))
    found = measure([Change("a", lambda: before, lambda: before)])
    assert found["layers"][0]["ratio"] == 0 and found["layers"][0]["4"] == {"kept": 1.0, "cosine": 1.0}
    assert found["warnings"] == []


def test_what_is_never_quantized_stays_in_float16():
    norm, narrow = mx.random.normal((96,)), mx.random.normal((8, 96))
    found = measure([Change("norm", lambda: norm, lambda: norm * 1.1), Change("w", lambda: narrow, lambda: narrow * 2)])
    for layer in found["layers"]:
        assert layer["quantized"] is False
        assert layer["4"] == layer["float16"] and layer["4"]["kept"] > 0.99


def test_the_worst_expert_is_named():
    """Three experts with a change that four bits keep, and one whose change is too small for them."""
    mx.random.seed(3)
    grid = mx.random.normal((4, 32, 64)).astype(mx.float16)
    weight = mx.dequantize(*mx.quantize(grid, 64, 4), group_size=64, bits=4).astype(mx.float32)
    layer = LoRASwitchLinear.from_base(SwitchLinear(64, 32, 4, bias=False), r=4, scale=1.0)
    layer.linear.weight = weight
    sizes = mx.array([1.0, 1.0, 0.02, 1.0])[:, None, None]
    layer.lora_b = mx.random.normal(layer.lora_b.shape) * sizes
    layer.lora_a = mx.random.normal(layer.lora_a.shape)
    merged = room._merged(layer)["weight"]
    figures = measure([Change("experts", lambda: weight, lambda: merged)], [4])["layers"][0]["4"]
    assert figures["worst_expert"]["expert"] == 2
    assert figures["worst_expert"]["kept"] < 0.5 < 0.9 < figures["kept"]
    alone = measure([Change("2", lambda: weight[2], lambda: merged[2])], [4])["layers"][0]["4"]
    assert figures["worst_expert"] == {"expert": 2, **alone}


def test_what_is_about_to_be_lost_is_said():
    found = measure([random_change(4, 0.03, (128, 256))])
    assert len(found["warnings"]) == 1  # 5 bits keep 71%, 4 bits 12%
    assert found["warnings"][0].startswith("in 4 bits 1 of 1 layers keep less than half of the adapter's change")
    buried = measure([random_change(16, 0.002, (256, 512))], [3])
    assert "rounding ten times as large" in buried["warnings"][0]


def test_bits_that_mlx_does_not_have():
    with pytest.raises(ConfigError, match="--retention-bits 7"):
        measure([], [7])


# ---- in fuse ----


@pytest.fixture(scope="module")
def fused(models: Path, base: Path, adapter: Path) -> Path:
    room.fuse(base, adapter, models / "with-retention")
    return models / "with-retention"


def test_the_manifest_holds_every_layer(fused, base, adapter):
    found = identity.read_manifest(fused)["retention"]
    names = {key.rpartition(".")[0] for key in mx.load(str(adapter / "adapters.safetensors"))}
    assert {layer["name"] for layer in found["layers"]} == names
    assert found["bits"] == [8, 6, 5, 4] and found["group_size"] == 64
    layer = next(layer for layer in found["layers"] if layer["name"] == "model.layers.1.self_attn.q_proj")
    before = mx.load(str(base / "model.safetensors"))["model.layers.1.self_attn.q_proj.weight"].astype(mx.float32)
    after = mx.load(str(fused / "model.safetensors"))["model.layers.1.self_attn.q_proj.weight"].astype(mx.float32)
    moved = mx.linalg.norm(after - before) / mx.linalg.norm(before)
    assert layer["ratio"] == pytest.approx(moved.item(), rel=1e-3)
    assert layer["8"]["kept"] > layer["4"]["kept"] - 0.05 and layer["8"]["cosine"] > layer["4"]["cosine"]


def test_retention_changes_nothing_of_the_model(fused, base, adapter, tmp_path):
    report = room.fuse(base, adapter, tmp_path / "plain", retention=None)
    assert report.retention is None and "retention" not in identity.read_manifest(tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (fused / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"method": "dora"}),
        ({"quantize": 4}, {"targets": ("mlp.*",)}),
        ({"model_type": "qwen3_moe", "quantize": 4}, {"targets": ("switch_mlp.*",)}),
        ({}, {"method": "full", "targets": ("q_proj", "input_layernorm")}),
    ],
    ids=["dora", "4-bit", "4-bit mixture", "full"],
)
def test_every_method_is_measured(changes, settings, tmp_path, make_model, make_trained):
    base = make_model(tmp_path / "base", **changes)
    report = room.fuse(base, make_trained(tmp_path / "adapter", base, **settings), tmp_path / "fused", retention=[6])
    assert report.retention is not None
    layers = report.retention["layers"]
    assert len(layers) == report.layers
    for layer in layers:
        assert layer["ratio"] > 0 and layer["float16"]["kept"] == pytest.approx(1, abs=0.01)
        assert layer["6"]["kept"] > 0.6
        assert ("worst_expert" in layer["6"]) == ("switch_mlp" in layer["name"])
    if settings.get("method") == "full":
        assert {layer["name"]: layer.get("quantized", True) for layer in layers} == {
            "model.layers.1.input_layernorm": False, "model.layers.1.self_attn.q_proj": True,
        }  # fmt: skip


def test_the_verb_prints_a_table_or_json(tmp_path, base, adapter):
    from typer.testing import CliRunner

    from punie_mlx.cli import app

    command = ["fuse", "--model", str(base), "--adapter", str(adapter), "--retention-bits", "5,2"]
    shown = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "a")])
    assert shown.exit_code == 0, shown.output
    assert "median" in shown.output and "5-bit" in shown.output and "2-bit" in shown.output
    told = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(told.output)["retention"]["bits"] == [5, 2]
    none = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "c"), "--no-retention"])
    assert "median" not in none.output and none.exit_code == 0


def test_one_layer_at_a_time_is_held(base, adapter):
    """What was looked at is freed: the generator keeps no weights of layers that it has given out."""
    import weakref

    held = []
    for change in room.changes(base, adapter):
        mx.eval(change.before())
        module = change.before.__defaults__[0]
        assert isinstance(module, nn.Module)
        held.append(weakref.ref(module))
        del module, change
        assert sum(ref() is not None for ref in held) <= 1
    assert len(held) > 5
