"""Faults of mlx_lm's own trainer, each shown on the unmodified package, with ours beside it.

A failure that says "mended" is good news about mlx_lm: drop that test, and what the documentation says of the fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import lora
from mlx_lm.models import qwen3
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
from mlx_lm.tuner.trainer import TrainingArgs, default_loss, evaluate, iterate_batches, train
from mlx_lm.tuner.utils import linear_to_lora_layers

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import ConfigError
from punie_mlx.train import adapters, checkpoint, loop
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loss import checkpointed, examine, mean_loss
from punie_mlx.train.optimizers import make_optimizer
from punie_mlx.train.plan import Planner, Step, plan_once
from punie_mlx.train.samples import Sample, SampleOptions, make_samples

VOCABULARY = 64


def stock(fault: bool, what: str) -> None:
    """Hold that stock mlx_lm still has a fault."""
    assert fault, f"mended in this mlx_lm: {what}. Drop this test and what the documentation says of it"


class Rows:
    """What `CacheDataset` wraps: rows with two keys that `process` turns into (tokens, offset)."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"number": i, "length": self._lengths[i]}

    def process(self, row: dict[str, int]) -> tuple[list[int], int]:
        return [row["number"] + 1] * row["length"], 1


def ours(lengths: list[int], batch_size: int, seed: int = 0) -> Planner:
    """Our plan over the same rows."""
    tokens = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    samples = [Sample(t, ((1, len(t), 1.0),)) for t in tokens]
    return Planner(samples, batch_size=batch_size, max_batch_tokens=10**6, share=False, seed=seed)


def epoch(planner: Planner, number: int = 0) -> list[Step]:
    start = number * planner.steps_per_epoch
    return [planner.step(i) for i in range(start, start + planner.steps_per_epoch)]


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """On a CPU MLX runs a C++ compiler for each kernel."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def small() -> nn.Module:
    """A random Qwen3 with one layer."""
    mx.random.seed(0)
    arguments = {
        "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY,
        "max_position_embeddings": 512, "rope_theta": 1e4, "tie_word_embeddings": True,
    }  # fmt: skip
    return qwen3.Model(qwen3.ModelArgs.from_dict(arguments))


# ---- batches ----


def test_rows_are_not_sorted_by_length():
    lengths = [300, 20] * 8
    data = CacheDataset(Rows(lengths))
    widths = {b.shape[1] for b, _ in iterate_batches(data, 2, 512)}
    stock({data.itemlen(0), data.itemlen(1)} == {2} and widths == {321}, "rows are sorted by their length")
    assert sorted(g.suffix.shape for s in epoch(ours(lengths, 2)) for g in s.parts[0]) == [(2, 20)] * 4 + [(2, 300)] * 4


def test_rows_beyond_a_multiple_of_the_batch_are_never_seen():
    def seen(i: int) -> set[int]:
        np.random.seed(i)
        return {int(n) for b, _ in iterate_batches(CacheDataset(Rows([9] * 5)), 2, 512) for n in b[:, 0].tolist()}

    stock(set().union(*map(seen, range(9))) == {1, 2, 3, 4}, "the rows left over are trained on")
    for number in range(2):
        assert sorted(i for step in epoch(ours([9] * 5, 2), number) for i in step.samples) == [0, 1, 2, 3, 4]


def test_validation_changes_the_order_of_training():
    model = small()

    def order(validate: bool) -> list[int]:
        np.random.seed(1)
        batches, out = iterate_batches(CacheDataset(Rows([9] * 12)), 1, 512, loop=True), []
        for i in range(24):
            out.append(next(batches)[0][0, 0].item())
            if validate and i == 5:
                evaluate(model, CacheDataset(Rows([9] * 3)), 1, -1)
        return out

    stock(order(validate=False) != order(validate=True), "validation draws from a generator of its own")
    plan, again = ours([9] * 12, 1), ours([9] * 12, 1)
    first = [plan.step(i).samples for i in range(24)]
    state = np.random.get_state()[1].tolist()
    steps = plan_once(again.samples, batch_size=1, max_batch_tokens=512, share=False)
    mean_loss(examine(model, "off"), model, [g for s in steps for g in s.parts[0]], 96.0)
    assert np.random.get_state()[1].tolist() == state
    assert [again.step(i).samples for i in range(24)] == first


# ---- the loss ----


def test_a_token_of_padding_is_trained():
    """Of a turn of 6 tokens behind a prompt of 3."""
    (batch, lengths), *_ = iterate_batches([(list(range(1, 10)), 3)], 1, 512)
    _, count = default_loss(small(), batch, lengths)
    stock(count.item() == 7, "no padding is trained")
    sample = Sample(np.arange(1, 10, dtype=np.int32), ((3, 9, 1.0),))
    (step,) = plan_once([sample], batch_size=1, max_batch_tokens=512, share=False)
    (group,) = step.parts[0]
    assert step.supervised == 6 and group.targets[group.weights > 0].tolist() == [4, 5, 6, 7, 8, 9]


def test_a_prompt_that_is_too_long_turns_all_weights_to_nan(tiny_base, make_row, tmp_path):
    model = small()
    model.freeze()
    linear_to_lora_layers(model, 1, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    args = TrainingArgs(batch_size=1, iters=1, max_seq_length=32, adapter_file=str(tmp_path / "a.safetensors"))
    with contextlib.redirect_stdout(io.StringIO()):
        train(model, optim.Adam(1e-4), [([1] * 60, 50)], args=args)
    weights = dict(tree_flatten(model.trainable_parameters()))
    stock(all(mx.isnan(w).all().item() for w in weights.values()), "a batch without a loss is left out")
    row = make_row(0)
    row["messages"][1]["content"] *= 50
    for overlong in ("drop", "cut"):
        made = make_samples(
            [Row(row["messages"], row["tools"])], load_tokenizer(tiny_base), SampleOptions(200, overlong)
        )
        assert made.items or made.dropped
        assert all(sample.supervised > 0 and len(sample.tokens) <= 200 for sample in made.items)


def test_mask_prompt_trains_the_last_message_only(tiny_base, make_row):
    tokenizer, row = load_tokenizer(tiny_base), make_row(0)
    tokens, offset = ChatDataset([row], tokenizer, mask_prompt=True).process(row)
    learned, whole = tokenizer.decode(tokens[offset:]), tokenizer.decode(tokens)
    stock("<tool_call>" in whole and "<tool_call>" not in learned, "calls in the middle of a conversation are learned")
    samples = make_samples([Row(row["messages"], row["tools"])], tokenizer, SampleOptions()).items
    turns = [tokenizer.decode(s.tokens[start:stop].tolist()) for s in samples for start, stop, _ in s.spans]
    assert len(turns) == 2 and turns[0].startswith("<tool_call>") and "<tool_call>" not in turns[1]


# ---- adapters ----


@pytest.mark.parametrize("bits", [5, 6])
def test_dora_crashes_on_layers_of_5_and_6_bits(bits):
    model = small()
    model.freeze()
    nn.quantize(model, 32, bits, class_predicate=lambda _, m: isinstance(m, nn.Linear))
    with pytest.raises(ConfigError, match=f"miscounts the columns of a {bits}-bit layer"):
        adapters.attach(model, TrainConfig(method="dora"))
    try:
        linear_to_lora_layers(model, 1, {"rank": 2, "scale": 1.0, "dropout": 0.0}, use_dora=True)
        mx.eval(model(mx.array([[1, 2, 3]])))
        crashed = False
    except ValueError:
        crashed = True
    stock(crashed, f"DoRA works on a {bits}-bit base")


# ---- a whole run ----


class Watch(TrainingCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.cached: list[int] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.losses.append(train_info["train_loss"])
        self.cached.append(mx.get_cache_memory())


def run_stock(out: Path, iters: int, resume: Path | None = None, watch: Watch | None = None) -> dict[str, mx.array]:
    """What `mlx_lm.lora` does once model and rows are loaded, with the same row in each step; the adapter."""
    model = small()
    settings = {**lora.CONFIG_DEFAULTS, "adapter_path": str(out), "iters": iters, "batch_size": 1, "num_layers": 1}
    settings |= {"learning_rate": 1e-2, "steps_per_report": 1, "clear_cache_threshold": 1 << 30}
    settings |= {"resume_adapter_file": str(resume) if resume else None}
    with contextlib.redirect_stdout(io.StringIO()):
        lora.train_model(types.SimpleNamespace(**settings), model, Rows([40]), [], watch)
    return dict(mx.load(str(out / "adapters.safetensors")))


def test_resume_restores_nothing_but_the_adapter(tmp_path):
    whole, watch = run_stock(tmp_path / "whole", 6), Watch()
    run_stock(tmp_path / "half", 3)
    resumed = run_stock(tmp_path / "rest", 3, tmp_path / "half" / "adapters.safetensors", watch)
    stock(
        not all(mx.array_equal(whole[k], resumed[k]).item() for k in whole), "a resumed run ends as an undisturbed one"
    )
    left = {p.name for p in (tmp_path / "half").iterdir()}
    stock(left == {"adapters.safetensors", "adapter_config.json"}, "the optimizer's state is saved")
    assert len(watch.losses) == 3 and all(map(math.isfinite, watch.losses))

    config = TrainConfig(layers=1, learning_rate=1e-2)
    model, optimizer = small(), make_optimizer(config, 6)
    adapters.attach(model, config)
    optimizer.update(model, nn.value_and_grad(model, lambda: model(mx.array([[1, 2]])).square().mean())()[1])
    path = checkpoint.save(tmp_path, checkpoint.Progress(step=1), model, optimizer, {})
    other, fresh = small(), make_optimizer(config, 6)
    adapters.attach(other, config)
    checkpoint.restore(path, other, fresh)
    assert checkpoint.read(path).step == 1
    for before, after in ((model.trainable_parameters(), other.trainable_parameters()), (optimizer.state, fresh.state)):
        before, after = dict(tree_flatten(before)), dict(tree_flatten(after))
        assert before.keys() == after.keys() and all(mx.array_equal(before[k], after[k]).item() for k in before)


def test_the_cache_is_cleared_at_every_step_whatever_its_threshold(tmp_path):
    watch = Watch()
    run_stock(tmp_path, 3, watch=watch)
    stock(max(watch.cached) < 64, "--clear-cache-threshold counts")  # a number or two were freed since
    buffer = mx.zeros(1 << 16)
    mx.eval(buffer)
    del buffer
    loop.clear_cache()
    assert mx.get_cache_memory() >= 4 << 16


def test_a_callback_is_discarded_and_checkpointing_stays(tiny_base, make_row, tmp_path):
    """`mlx_lm.lora.run`, which its command and its Python users call; one step on a single row."""
    (tmp_path / "train.jsonl").write_text(json.dumps(make_row(0)) + "\n")
    settings = {**lora.CONFIG_DEFAULTS, "train": True, "model": str(tiny_base), "data": str(tmp_path)}
    settings |= {"adapter_path": str(tmp_path / "out"), "iters": 1, "batch_size": 1, "num_layers": 1}
    settings |= {"grad_checkpoint": True}
    watch, plain = Watch(), qwen3.TransformerBlock.__call__
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            lora.run(types.SimpleNamespace(**settings), watch)
        stock(qwen3.TransformerBlock.__call__ is not plain, "gradient checkpointing patches no class")
    finally:
        qwen3.TransformerBlock.__call__ = plain
    stock(watch.losses == [], "a callback is called")
    model = small()
    with checkpointed(model):
        assert model.layers[0].__class__ is not qwen3.TransformerBlock
    assert model.layers[0].__class__ is qwen3.TransformerBlock and qwen3.TransformerBlock.__call__ is plain
