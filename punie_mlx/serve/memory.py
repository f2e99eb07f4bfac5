"""How much memory a model needs, told from its files without loading it: weights, and the KV cache of its requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import hardware, tensors

DEFAULT_CONTEXT = 32768  # for the few configs that name none
BLOCK = 256  # tokens by which a cache grows
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
GROUP = 64  # of a quantized cache, with a scale and a bias each


@dataclass(frozen=True)
class Needed:
    """Bytes; the KV cache is that of as many requests as run at once, each as long as the context."""

    weights: int
    kv_cache: int
    available: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model: that of a model with images has it inside."""
    return {**config, **(config.get("text_config") or {})}


def context_of(config: Mapping[str, Any]) -> int:
    """Tokens of prompt and answer together that the model was made for."""
    return text_config(config).get("max_position_embeddings") or DEFAULT_CONTEXT


def weights(files: Iterable[Path], config: Mapping[str, Any]) -> int:
    """Bytes of the weights in memory. On a CPU they are kept in float32 (see `punie_mlx.weights`)."""
    arrays = {name: entry for file in files for name, entry in tensors.head(file).items()}
    if not hardware.on_cpu():
        return sum(map(_size, arrays.values()))
    group = (config.get("quantization") or {}).get("group_size") or GROUP
    floats = packed = parameters = 0
    for name, entry in arrays.items():
        count = math.prod(entry.shape)
        if f"{name.removesuffix('.weight')}.scales" in arrays and name.endswith(".weight"):
            packed += _size(entry)
        else:
            floats += count * 4
            parameters += 0 if name.endswith(".biases") else count * group if name.endswith(".scales") else count
    dense = parameters * 4
    return dense if packed and dense <= hardware.memory_bytes() // 4 else floats + packed


def kv_cache(config: Mapping[str, Any], tokens: int, bits: int | None = None) -> int:
    """Bytes of the cache of one request of so many tokens; layers with a state of fixed size count as nothing."""
    text = text_config(config)
    width = 2.0 if not hardware.on_cpu() else 4.0
    if bits:
        width = bits / 8 + 2 * width / GROUP
    window = text.get("sliding_window") or tokens
    held = sum(_blocks(min(tokens, window) if kind == "sliding" else tokens) for kind in _layers(text))
    return int(held * _numbers_per_token(text) * width)


def _layers(text: Mapping[str, Any]) -> list[str]:
    """What each layer that keeps tokens is: "full" or "sliding"."""
    count = int(text.get("num_hidden_layers") or 0)
    kinds = text.get("layer_types")
    if not kinds:
        every = int(text.get("full_attention_interval") or 1)  # the layers between have a state of fixed size
        return ["full"] * (count // every)
    named = {"full_attention": "full", "attention": "full", "global_attention": "full"}
    return [k for kind in kinds if (k := "sliding" if "sliding" in kind else named.get(kind))]


def _numbers_per_token(text: Mapping[str, Any]) -> int:
    if text.get("kv_lora_rank"):  # one compressed vector for keys and values
        return int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 0)
    heads = int(text.get("num_attention_heads") or 1)
    size = text.get("head_dim") or int(text.get("hidden_size") or 0) // heads
    return 2 * int(text.get("num_key_value_heads") or heads) * int(size)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def _size(entry: tensors.Entry) -> int:
    return math.prod(entry.shape) * BYTES.get(entry.kind, 1)
