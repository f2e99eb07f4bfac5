"""What training and export hold of mlx_lm that is private or has changed between releases.

A failure here after an update of mlx_lm names the seam to look at, before anything subtler breaks.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx_lm import utils
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner import lora, trainer
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_the_trainer_takes_our_loss_batches_and_callback():
    assert parameters(trainer.train) >= {
        "model", "optimizer", "train_dataset", "val_dataset", "args", "loss", "iterate_batches", "training_callback",
    }  # fmt: skip
    assert parameters(trainer.TrainingArgs) >= {
        "batch_size", "iters", "val_batches", "steps_per_report", "steps_per_eval", "steps_per_save", "adapter_file",
        "max_seq_length", "grad_checkpoint", "clear_cache_threshold",
    }  # fmt: skip


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.layers = [self.layer]


def test_how_the_trainer_asks_for_batches_and_reports(tmp_path):
    """`loop=True` marks training; validation comes first; both reports have the keys that we record."""
    asked, reports = [], []

    def batches(dataset, batch_size, max_seq_length, loop=False, seed=None, comm_group=None):
        asked.append((dataset, loop))
        while True:
            yield mx.ones((1, 1)), mx.ones((1, 2))
            if not loop:
                return

    class Record(TrainingCallback):
        def on_train_loss_report(self, train_info):
            reports.append(train_info)

        def on_val_loss_report(self, val_info):
            reports.append(val_info)

    def loss(model, batch, bounds):
        return model.layer(batch).sum(), mx.array(1)

    args = trainer.TrainingArgs(
        batch_size=1, iters=3, val_batches=1, steps_per_report=2, steps_per_eval=2, steps_per_save=4,
        adapter_file=str(tmp_path / "a.safetensors"),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(
            Line(), optim.Adam(1e-3), [0], [1, 2], args, loss=loss, iterate_batches=batches, training_callback=Record()
        )
    assert asked[0] == ([0], True) and asked[1:] == [([1, 2], False)] * 3
    assert [r["iteration"] for r in reports] == [0, 1, 2, 2, 3]
    assert {"val_loss", "val_time"} <= reports[0].keys()
    assert {"train_loss", "trained_tokens"} <= reports[2].keys()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # no checkpoints beside it


def test_lora_layers_hold_what_fuse_adds():
    """Delta = scale * (a @ b), transposed for a linear layer; batched over experts as b @ a."""
    x = mx.random.normal((3, 8))
    layer = lora.LoRALinear.from_base(nn.Linear(8, 6, bias=False), r=2, scale=3.0)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    delta = 3.0 * (layer.lora_a @ layer.lora_b).T
    assert mx.allclose(layer(x), x @ (layer.linear.weight + delta).T, atol=1e-5)
    table = lora.LoRAEmbedding.from_base(nn.Embedding(5, 8), r=2, scale=3.0)
    table.lora_b = mx.random.normal(table.lora_b.shape)
    assert mx.allclose(
        table(mx.array([4])), (table.embedding.weight + 3.0 * table.lora_a @ table.lora_b)[4:], atol=1e-5
    )
    experts = lora.LoRASwitchLinear.from_base(SwitchLinear(8, 6, 4, bias=False), r=2, scale=3.0)
    assert experts.lora_a.shape == (4, 2, 8) and experts.lora_b.shape == (4, 6, 2)
    assert experts.linear.weight.shape == (4, 6, 8)


def test_quantized_layers_hold_what_we_dequantize():
    for layer in (nn.Linear(64, 64).to_quantized(64, 4), nn.Embedding(64, 64).to_quantized(64, 4)):
        assert layer.mode == "affine" and (layer.bits, layer.group_size) == (4, 64)
        assert "scales" in layer and "biases" in layer
    assert isinstance(SwitchLinear(64, 64, 2).to_quantized(64, 4), QuantizedSwitchLinear)


def test_the_adapter_config_that_load_adapters_reads(tmp_path, tiny_base):
    """`num_layers`, `lora_parameters` and `fine_tune_type` are enough, and a further key does not disturb."""
    parameters = {"rank": 2, "scale": 1.0, "dropout": 0.0}
    content = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters, "punie": {"anything": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    model, _ = utils.load_model(tiny_base, lazy=True)
    weights = {"model.layers.3.self_attn.q_proj.lora_b": mx.ones((2, model.layers[3].self_attn.q_proj.weight.shape[0]))}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    loaded = load_adapters(model, str(tmp_path))
    assert isinstance(loaded.layers[3].self_attn.q_proj, lora.LoRALinear)
    assert not isinstance(loaded.layers[2].self_attn.q_proj, lora.LoRALinear)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"model.layers.0.no": mx.ones(1)})
    with pytest.raises(ValueError, match="incompatible tensors"):
        load_adapters(utils.load_model(tiny_base, lazy=True)[0], str(tmp_path))


def test_lora_starts_without_a_change():
    model = Line()
    linear_to_lora_layers(model, 1, {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": {"layer"}})
    assert mx.all(model.layer.lora_b == 0).item()


def test_the_helpers_of_utils():
    assert parameters(utils.load_model) >= {"model_path", "lazy"}
    assert parameters(utils.quantize_model) >= {"model", "config", "group_size", "bits"}
    assert parameters(utils.make_shards) == {"weights", "max_file_size_gb"}
    assert len(utils.make_shards({"a": mx.ones(4), "b": mx.ones(4)}, 0)) == 2
    linear = nn.Sequential(nn.Linear(64, 64, bias=False))
    assert utils.get_total_parameters(linear) == 64 * 64
    assert utils.compute_bits_per_weight(linear) == 32


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_the_runtime_error_that_we_translate(tmp_path):
    from punie_mlx.weights import naming_a_full_disk

    path = tmp_path / "full.safetensors"
    path.symlink_to("/dev/full")
    with pytest.raises(RuntimeError, match="Unable to write"):
        mx.save_safetensors(str(path), {"a": mx.ones(1 << 20)})
    with pytest.raises(OSError, match="No space left"), naming_a_full_disk(tmp_path):
        mx.save_safetensors(str(path), {"a": mx.ones(1 << 20)})
