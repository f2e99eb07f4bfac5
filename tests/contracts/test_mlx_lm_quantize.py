"""What quantizing and tuning hold of mlx_lm that is private or has changed between releases."""

from __future__ import annotations

import contextlib
import inspect
import io

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx_lm import utils
from mlx_lm.quant.dwq import dwq_quantize

from punie_mlx.export import dwq
from punie_mlx.export.prompts import Said


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_a_predicate_names_the_bits_of_single_layers_and_the_loader_reads_them(tiny_base):
    assert parameters(utils.quantize_model) >= {"model", "config", "group_size", "bits", "quant_predicate"}
    model, config = utils.load_model(tiny_base, lazy=True)
    wide = {"group_size": 64, "bits": 8, "mode": "affine"}
    with contextlib.redirect_stdout(io.StringIO()):
        model, config = utils.quantize_model(
            model, config, 64, 4, quant_predicate=lambda name, _: wide if "v_proj" in name else "mlp" not in name
        )
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    assert (attention.q_proj.bits, attention.v_proj.bits) == (4, 8) and type(mlp.up_proj) is nn.Linear
    assert config["quantization"]["model.layers.0.self_attn.v_proj"] == wide
    assert config["quantization_config"] == config["quantization"]


def small() -> nn.Module:
    mx.random.seed(3)
    model = nn.Sequential(nn.Embedding(96, 64), nn.Linear(64, 128), nn.Linear(128, 96))
    return model


def test_one_step_of_ours_is_one_step_of_dwq_quantize():
    """The loss and its temperature are theirs, where all positions count: the same gradient, so the same SGD step."""
    assert parameters(dwq_quantize) >= {"model", "target_fn", "opt", "train_data", "valid_data", "dtype", "temperature"}
    mx.random.seed(5)
    tokens = [int(t) for t in mx.random.randint(1, 96, (33,))]
    changes = {}
    for name in ("stock", "ours"):
        teacher, student = small(), small()
        nn.quantize(student, 64, 4)
        student.freeze()
        layers = {n: m for n, m in student.named_modules() if hasattr(m, "scales")}
        before = {n: (m.scales, m.biases) for n, m in layers.items()}
        sgd = optimizers.SGD(learning_rate=1.0)
        if name == "stock":
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                dwq_quantize(
                    student, lambda batch, i, split: teacher(batch), sgd, [(tokens, 0)], [(tokens, 0)], 1, 33, 0,  # noqa: B023
                    dtype=mx.float32,
                )  # fmt: skip
        else:
            dwq._prepare(student, layers)
            dwq._step(student, teacher, dwq.DwqConfig().temperature, sgd)(Said(tuple(tokens), 1))
        after = {n: (m.scales, m.biases) for n, m in student.named_modules() if hasattr(m, "scales")}
        changes[name] = [a - b for n in before for a, b in zip(after[n], before[n], strict=True)]
    assert len(changes["stock"]) == 6
    for stock, ours in zip(changes["stock"], changes["ours"], strict=True):
        size = mx.linalg.norm(stock).item()
        assert size > 0 and mx.linalg.norm(ours - stock).item() < 0.01 * size
