"""An adapter added to its model: the right sum, in float16, for dense, quantized and mixture models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from punie_mlx import identity
from punie_mlx.errors import DiskError, ModelError, OutputError
from punie_mlx.export import store
from punie_mlx.export.fuse import fuse, merge


def logits(model: Path, adapter: Path | None = None) -> mx.array:
    network, _ = mlx_lm.load(str(model), adapter_path=str(adapter) if adapter else None)
    network.set_dtype(mx.float32)
    return network(mx.array([[5, 9, 300, 12, 77, 4]]))


def relative(found: mx.array, wanted: mx.array) -> float:
    return (mx.linalg.norm(found - wanted) / mx.linalg.norm(wanted)).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantize": 4},
        {"dtype": mx.bfloat16},
        {"model_type": "qwen3_moe"},
        {"model_type": "qwen3_moe", "quantize": 4},
    ],
    ids=["float16", "4-bit", "bfloat16", "mixture", "4-bit mixture"],
)
def test_the_fused_model_answers_as_the_adapted_one(changes, tmp_path, make_model, make_adapter):
    base = make_model(tmp_path / "base", **changes)
    adapter = make_adapter(tmp_path / "adapter", base)
    report = fuse(base, adapter, tmp_path / "fused")
    wanted = logits(base, adapter)
    assert relative(logits(base), wanted) > 0.1, "the adapter changes too little to tell"
    assert relative(logits(tmp_path / "fused"), wanted) < 5e-3
    assert report.layers > 0
    assert report.fingerprint == identity.fingerprint(tmp_path / "fused")


def test_the_sum_is_rounded_once(tmp_path, base, adapter):
    """float32 sum, then float16: what mlx_lm's own fuse does not do."""
    fuse(base, adapter, tmp_path / "fused")
    name = "model.layers.1.self_attn.q_proj"
    lora = mx.load(str(adapter / "adapters.safetensors"))
    weight = mx.load(str(base / "model.safetensors"))[f"{name}.weight"].astype(mx.float32)
    wanted = (weight + 10.0 * (lora[f"{name}.lora_a"] @ lora[f"{name}.lora_b"]).T).astype(mx.float16)
    found = mx.load(str(tmp_path / "fused" / "model.safetensors"))[f"{name}.weight"]
    assert mx.array_equal(found, wanted)


def test_the_output_is_a_whole_float16_model(tmp_path, make_model, make_adapter):
    base = make_model(tmp_path / "base", quantize=4)
    (base / "README.md").write_text("about the base")
    fuse(base, make_adapter(tmp_path / "adapter", base), tmp_path / "fused")
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert "quantization" not in config and "quantization_config" not in config
    weights = mx.load(str(tmp_path / "fused" / "model.safetensors"))
    assert {w.dtype for w in weights.values()} == {mx.float16}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "fused" / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "fused" / "README.md").exists()
    manifest = identity.read_manifest(tmp_path / "fused")
    assert manifest["kind"] == "fused"
    assert manifest["inputs"]["model"] == identity.fingerprint(base)


def test_large_models_are_written_in_shards(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(store, "SHARD_GB", 0)  # a file for each tensor
    fuse(base, adapter, tmp_path / "fused")
    index = json.loads((tmp_path / "fused" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(index["weight_map"]) > 10
    assert relative(logits(tmp_path / "fused"), logits(base, adapter)) < 5e-3


def test_an_adapter_of_another_model_is_refused(tmp_path, base, adapter, make_model):
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="was trained on another model"):
        fuse(other, adapter, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_an_unsigned_adapter_of_another_shape_is_refused(tmp_path, base, make_model, make_adapter):
    adapter = make_adapter(tmp_path / "adapter", base, signed=False)
    wider = make_model(tmp_path / "wider", hidden_size=128)
    with pytest.raises(ModelError, match="does not fit the model"):
        fuse(wider, adapter, tmp_path / "fused")
    fuse(base, adapter, tmp_path / "fused")  # and fits its own


def test_a_missing_model_or_adapter_is_named(tmp_path, base, adapter):
    with pytest.raises(ModelError, match=r"model directory .*nowhere does not exist"):
        fuse(tmp_path / "nowhere", adapter, tmp_path / "fused")
    with pytest.raises(ModelError, match="no adapter directory"):
        fuse(base, tmp_path / "nowhere", tmp_path / "fused")


def test_an_existing_output_stays_unless_it_may_be_replaced(tmp_path, base, adapter):
    out = tmp_path / "fused"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(OutputError, match="--overwrite"):
        fuse(base, adapter, out)
    assert (out / "mine").read_text() == "keep"
    fuse(base, adapter, out, overwrite=True)
    assert not (out / "mine").exists() and (out / "model.safetensors").is_file()


def test_an_input_is_never_replaced(tmp_path, base, adapter):
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    with pytest.raises(OutputError, match="is an input itself"):
        fuse(copy, adapter, copy, overwrite=True)
    assert identity.fingerprint(copy) == identity.fingerprint(base)


def test_values_beyond_float16_are_refused(tmp_path, base, make_adapter):
    adapter = make_adapter(tmp_path / "adapter", base, size=300.0)
    with pytest.raises(ModelError, match="float16 cannot"):
        fuse(base, adapter, tmp_path / "fused")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_no_room_is_said_before_writing(full_disk, base, adapter):
    with pytest.raises(DiskError, match=r"needs .* MB .* are free"):
        fuse(base, adapter, full_disk / "fused")
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_runs_full_leaves_nothing(full_disk, base, adapter, monkeypatch):
    monkeypatch.setattr(store, "require_disk", lambda *_: None)  # another program may fill the disk after the check
    with pytest.raises(DiskError, match="nothing was left there"):
        fuse(base, adapter, full_disk / "fused")
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "settings", "layers"),
    [
        ({}, {"method": "dora"}, 7),
        ({"quantize": 4}, {"method": "dora", "targets": ("mlp.*",)}, 3),
        ({"model_type": "qwen3_moe"}, {"method": "dora", "targets": ("self_attn.*",)}, 4),
        ({"model_type": "qwen3_moe", "quantize": 5}, {"targets": ("switch_mlp.*", "o_proj")}, 4),
        ({}, {"method": "full"}, 11),
        ({"dtype": mx.bfloat16}, {"method": "full", "targets": ("q_proj", "input_layernorm")}, 2),
        ({"quantize": 4}, {"method": "full", "targets": ("*_layernorm",)}, 2),
    ],
    ids=["dora", "dora 4-bit", "dora mixture", "targets 5-bit mixture", "full", "full targets", "full norms 4-bit"],
)
def test_dora_full_and_targets_are_fused(changes, settings, layers, tmp_path, make_model, make_trained):
    base = make_model(tmp_path / "base", **changes)
    adapter = make_trained(tmp_path / "adapter", base, **settings)
    assert fuse(base, adapter, tmp_path / "fused").layers == layers
    wanted = logits(base, adapter)
    assert relative(logits(base), wanted) > 0.02, "the adapter changes too little to tell"
    assert relative(logits(tmp_path / "fused"), wanted) < 2e-3


def test_the_scaled_rows_of_dora_are_rounded_once(tmp_path, base, make_trained):
    adapter = make_trained(tmp_path / "adapter", base, method="dora")
    fuse(base, adapter, tmp_path / "fused")
    name = "model.layers.1.self_attn.q_proj"
    dora = {k.removeprefix(f"{name}."): v for k, v in mx.load(str(adapter / "adapters.safetensors")).items()}
    weight = mx.load(str(base / "model.safetensors"))[f"{name}.weight"].astype(mx.float32)
    weight = weight + 20.0 * (dora["lora_a"] @ dora["lora_b"]).T
    wanted = (dora["m"] / mx.linalg.norm(weight, axis=1))[:, None] * weight
    found = mx.load(str(tmp_path / "fused" / "model.safetensors"))[f"{name}.weight"]
    assert mx.array_equal(found, wanted.astype(mx.float16))


def test_a_full_adapter_takes_the_place_of_the_weights(tmp_path, base, make_trained):
    adapter = make_trained(tmp_path / "adapter", base, method="full")
    fuse(base, adapter, tmp_path / "fused")
    found = mx.load(str(tmp_path / "fused" / "model.safetensors"))
    for name, value in mx.load(str(adapter / "adapters.safetensors")).items():
        assert mx.array_equal(found[name], value.astype(mx.float16)), name


def test_an_adapter_without_a_layer_of_the_model_is_refused(tmp_path, base, adapter):
    empty = tmp_path / "empty"
    shutil.copytree(adapter, empty)
    content = json.loads((empty / "adapter_config.json").read_text())
    content["lora_parameters"]["keys"] = ["nothing"]
    (empty / "adapter_config.json").write_text(json.dumps(content))
    mx.save_safetensors(str(empty / "adapters.safetensors"), {})
    with pytest.raises(ModelError, match="changes no layer"):
        fuse(base, empty, tmp_path / "fused")


def test_an_unknown_kind_of_layer_is_refused(base):
    from mlx_lm.tuner.lora import LoRALinear
    from mlx_lm.utils import load_model

    class OtherLinear(LoRALinear):
        pass

    network, _ = load_model(base)
    network.layers[0].self_attn.q_proj = OtherLinear(64, 64)
    with pytest.raises(ModelError, match=r"q_proj is a OtherLinear, which cannot be fused: train LoRA or DoRA"):
        merge(network)
