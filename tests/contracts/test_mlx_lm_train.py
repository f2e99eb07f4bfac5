"""What training and export hold of mlx_lm that is private or has changed between releases.

A failure here after an update of mlx_lm names the seam to look at, before anything subtler breaks.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import utils
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner import lora
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.layers = [self.layer]


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


# ---- adapters that stock mlx_lm loads ----

ADAPTERS = {
    "lora": {"layers": 2},
    "lora with targets": {"layers": 3, "targets": ("q_proj", "mlp.*"), "rank": 4, "scale": 3.0},
    "dora": {"method": "dora", "layers": -1, "targets": ("self_attn.*",)},
    "full": {"method": "full", "layers": 1},
    "full with targets": {"method": "full", "layers": 2, "targets": ("down_proj", "input_layernorm")},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_stock_mlx_lm_loads_what_we_train(name, tiny_base, tmp_path):
    """The stock loader's model says what the model in memory said, for each method."""
    from mlx.utils import tree_unflatten

    from punie_mlx.train import adapters
    from punie_mlx.train.config import TrainConfig

    config = TrainConfig(**ADAPTERS[name])
    model, _ = utils.load_model(tiny_base)
    tokens = mx.array([[1, 5, 20, 8]])
    adapters.attach(model, config)
    model.set_dtype(mx.float32)
    plain = model(tokens)
    changed = {k: v + 0.02 * mx.random.normal(v.shape) for k, v in adapters.trainable(model).items()}
    model.update(tree_unflatten(list(changed.items())))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), adapters.trainable(model))
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapters.describe(model, config, "a" * 64)))
    stock, _ = utils.load(str(tiny_base), adapter_path=str(tmp_path))
    stock.set_dtype(mx.float32)
    assert mx.abs(model(tokens) - plain).max().item() > 0.01, "the adapter changes too little to tell"
    assert mx.allclose(stock(tokens), model(tokens), atol=1e-5).item()
    assert [n for n, m in stock.named_modules() if "lora_a" in m] == [
        n for n, m in model.named_modules() if "lora_a" in m
    ]


@pytest.mark.parametrize(("bits", "works"), [(2, True), (3, False), (4, True), (5, False), (6, False), (8, True)])
def test_dora_miscounts_the_columns_of_some_layers(bits, works):
    """Why 3, 5 and 6 bits are refused; where this fails, mlx_lm has mended it and `adapters._dora_refuses` may go."""
    from mlx_lm.tuner.dora import DoRALinear

    layer = nn.Linear(128, 64).to_quantized(64, bits)
    dora = DoRALinear.from_base(layer, r=2)
    x = mx.random.normal((3, 128))
    if works:
        assert mx.allclose(dora(x), layer(x), atol=1e-4)
    else:
        with pytest.raises(ValueError, match="matmul"):
            dora(x)


def test_dora_knows_neither_experts_nor_quantized_embeddings():
    from mlx_lm.tuner.dora import DoRAEmbedding

    with pytest.raises(ValueError, match="doesn't support DoRA"):
        model = Line()
        model.layer = SwitchLinear(8, 8, 2)
        model.layers = [nn.Sequential(model.layer)]
        linear_to_lora_layers(model, 1, {"rank": 2, "scale": 1.0, "dropout": 0.0}, use_dora=True)
    with pytest.raises(ValueError, match="broadcast"):
        DoRAEmbedding.from_base(nn.Embedding(64, 64).to_quantized(64, 4), r=2)(mx.array([1, 2]))


def test_dora_layers_hold_what_fuse_scales():
    """Rows of W + delta, brought to the length m."""
    from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear

    x = mx.random.normal((3, 8))
    layer = DoRALinear.from_base(nn.Linear(8, 6, bias=True), r=2, scale=3.0)
    layer.lora_b, layer.m = mx.random.normal(layer.lora_b.shape), mx.random.uniform(shape=layer.m.shape)
    whole = layer.linear.weight + 3.0 * (layer.lora_a @ layer.lora_b).T
    rows = layer.m[:, None] * whole / mx.linalg.norm(whole, axis=1, keepdims=True)
    assert mx.allclose(layer(x), x @ rows.T + layer.linear.bias, atol=1e-5)
    table = DoRAEmbedding.from_base(nn.Embedding(5, 8), r=2, scale=3.0)
    table.lora_b, table.m = mx.random.normal(table.lora_b.shape), mx.random.uniform(shape=table.m.shape)
    whole = table.embedding.weight + 3.0 * table.lora_a @ table.lora_b
    rows = table.m[:, None] * whole / mx.linalg.norm(whole, axis=1, keepdims=True)
    assert mx.allclose(table(mx.array([4])), rows[4:], atol=1e-5)


# ---- how a model is taken apart (train/loss.py) ----


def test_the_parts_of_a_model_and_what_its_attention_asks_of_a_cache(tiny_base):
    from mlx_lm.models.base import create_attention_mask, create_causal_mask
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    model, _ = utils.load_model(tiny_base)
    tokens = mx.array([[1, 2, 3]])
    assert mx.allclose(model(tokens), model.model.embed_tokens.as_linear(model.model(tokens)))
    assert {type(c) for c in make_prompt_cache(model)} == {KVCache}
    asked = []

    class Cache:
        offset = 0

        def update_and_fetch(self, keys, values):
            asked.append((keys.shape, values.shape))
            return keys, values

        def make_mask(self, length, return_array=False, window_size=None):
            asked.append(length)
            return "causal"

    cached = model.model(tokens, cache=[Cache() for _ in model.layers])
    assert mx.allclose(cached, model.model(tokens), atol=1e-2)
    heads, width = model.args.num_key_value_heads, model.args.head_dim
    assert asked == [3, *[((1, heads, 3, width),) * 2] * len(model.layers)]
    assert create_attention_mask(mx.zeros((1, 3, 8)), Cache()) == "causal"
    mask = create_causal_mask(2, offset=3, window_size=2)
    assert mask.tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


# ---- select.py: real answers with the model in memory ----


def test_the_batch_generator_is_greedy_and_hands_out_the_end_token(tiny_base):
    """Without a sampler the likeliest token is taken; the response that says "stop" holds the end token itself."""
    from mlx_lm.generate import BatchGenerator, generate_step
    from mlx_lm.models.cache import make_prompt_cache

    assert parameters(BatchGenerator) >= {"model", "stop_tokens", "completion_batch_size", "prefill_batch_size"}
    assert parameters(BatchGenerator.insert) >= {"prompts", "max_tokens"}
    assert parameters(generate_step) >= {"prompt", "model", "max_tokens"}
    model, _ = utils.load_model(tiny_base)
    model.set_dtype(mx.float32)
    assert all(hasattr(c, "merge") for c in make_prompt_cache(model))
    mx.disable_compile()
    try:
        prompts = [[1, 300, 301, 302], [1, 400]]
        alone = [[token for token, _ in generate_step(mx.array(p), model, max_tokens=5)] for p in prompts]
        end = alone[0][2]
        generator = BatchGenerator(model, stop_tokens=[[end]], completion_batch_size=4, prefill_batch_size=2)
        uids = generator.insert(prompts, [5, 5])
        found, finish = {uid: [] for uid in uids}, {}
        while responses := generator.next_generated():
            for r in responses:
                found[r.uid].append(r.token)
                finish[r.uid] = r.finish_reason
        generator.close()
    finally:
        mx.enable_compile()
    stop = alone[0].index(end) + 1
    assert found[uids[0]] == alone[0][:stop] and finish[uids[0]] == "stop"
    assert end in alone[1] or (found[uids[1]] == alone[1] and finish[uids[1]] == "length")


def test_the_tokenizer_tells_text_token_by_token(tiny_base):
    tokenizer = utils.load_tokenizer(tiny_base)
    assert set(tokenizer.eos_token_ids) and "<tool_call>" in {
        t.content for t in tokenizer.added_tokens_decoder.values()
    }
    tokens, said = tokenizer.encode("<tool_call>a 🌍", add_special_tokens=False), []
    detokenizer = tokenizer.detokenizer
    for token in tokens:
        detokenizer.add_token(token)
        said.append(detokenizer.last_segment)
    detokenizer.finalize()
    assert "".join([*said, detokenizer.last_segment]) == "<tool_call>a 🌍" and said[0] == "<tool_call>"
    assert tokenizer.detokenizer is not detokenizer  # each caller has its own
