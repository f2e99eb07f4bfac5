"""A model that says what a test wants, token by token: control tokens as such, all else as ordinary text."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
)  # fmt: skip
TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
</function>
</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function.name }} {{ call.function.arguments | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
HEAD, SLOT = 64, 31  # width of the head, and the dimension that rotary positions turn least


def pieces_of(script: str) -> list[str]:
    """`script` in tokens: control tokens and, in characters of their own, what stands between them.

    A control token behind `\\` is spelled out in ordinary tokens.
    """
    control = "|".join(map(re.escape, CONTROL))
    parts = [p for p in re.split(rf"(\\(?:{control})|{control})", script) if p]
    out: list[str] = []
    for part in parts:
        if part in CONTROL:
            out.append(part)
            continue
        rest = part.removeprefix("\\")
        while rest:  # no piece comes twice, so that each tells what follows
            size = next((n for n in range(7, len(rest)) if rest[:n] not in out), len(rest))
            out.append(rest[:size])
            rest = rest[size:]
    return out


def build_replaying_model(path: Path, scripts: Mapping[str, str]) -> Path:
    """A real Qwen3 model that answers a prompt holding a key of `scripts` with its script.

    Its one head finds which key the prompt holds; a neuron for each step of each script fires where that key and the
    step's last token come together, and writes the next token.
    """
    import mlx.core as mx
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert len(scripts) <= HEAD
    byte_of = _byte_level()
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    lines = {
        key: [p if p in CONTROL else "".join(byte_of[b] for b in p.encode()) for p in pieces_of(script)]
        for key, script in scripts.items()
    }
    for name in itertools.chain(*lines.values()):
        if name not in CONTROL:
            vocabulary.setdefault(name, len(vocabulary))
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    pieces = sorted({p for script in scripts.values() for p in pieces_of(script)}, key=len, reverse=True)
    split = pre_tokenizers.Split(Regex("|".join(map(re.escape, pieces))), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(c, special=True) for c in CONTROL])
    bpe.add_tokens(list(scripts))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(path))

    ids = tokenizer.get_vocab()
    size, end, start = len(ids), ids["<|im_end|>"], ids[byte_of[ord("\n")]]
    steps = []
    for slot, (key, names) in enumerate(lines.items()):
        chain = [start, *(ids[n] for n in names), end]
        assert len(set(chain)) == len(chain), f"{key}: a piece comes twice: move the text a little"
        steps += [(slot, now, then) for now, then in itertools.pairwise(chain)]
    width = -(-(size + HEAD) // 64) * 64  # what the last token is, then which key the prompt holds
    queries, keys, values = (mx.zeros((HEAD, width)) for _ in range(3))
    out, gate, down = mx.zeros((width, HEAD)), mx.zeros((len(steps), width)), mx.zeros((width, len(steps)))
    queries[SLOT, :size] = 1
    for slot, key in enumerate(lines):
        keys[SLOT, ids[key]] = 1
        values[slot, ids[key]] = width**-0.5
        out[size + slot, slot] = 1
    gate[:, :size] = -3
    for neuron, (slot, now, then) in enumerate(steps):
        gate[neuron, now] = -1
        gate[neuron, size + slot] = 2
        down[then, neuron] = 1
    up = mx.zeros((len(steps), width))
    up[:, :size] = 1
    arrays = {"q_proj": queries, "k_proj": keys, "v_proj": values, "o_proj": out}
    _save(path, size, end, arrays, {"gate_proj": gate, "up_proj": up, "down_proj": down})
    return path


def _byte_level() -> dict[int, str]:
    """The character that stands for each byte in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _save(path: Path, size: int, end: int, attention: dict[str, Any], mlp: dict[str, Any]) -> None:
    import mlx.core as mx

    neurons, width = mlp["gate_proj"].shape
    config = {
        "model_type": "qwen3", "hidden_size": width, "num_hidden_layers": 1, "intermediate_size": neurons,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "rms_norm_eps": 1e-6,
        "vocab_size": size, "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": True,
        "eos_token_id": end,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    arrays = {f"{layer}self_attn.{name}.weight": array for name, array in attention.items()}
    arrays |= {f"{layer}mlp.{name}.weight": array for name, array in mlp.items()}
    arrays |= {f"{layer}{name}.weight": mx.ones(width) for name in ("input_layernorm", "post_attention_layernorm")}
    arrays |= {f"{layer}self_attn.{n}_norm.weight": mx.full(HEAD, 4.0) for n in "qk"}
    arrays |= {"model.norm.weight": mx.ones(width), "model.embed_tokens.weight": mx.eye(size, width)}
    half = {name: array.astype(mx.float16) for name, array in arrays.items()}
    mx.save_safetensors(str(path / "model.safetensors"), half, metadata={"format": "mlx"})


@pytest.fixture(scope="session")
def replaying(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Iterator[Any]]:
    """`with replaying(scripts) as server`: a server whose model answers each key with its script."""

    def start(scripts: Mapping[str, str], *options: str) -> Any:
        path = tmp_path_factory.mktemp("replaying") / "replaying"
        path.mkdir()
        return serving(build_replaying_model(path, scripts), *options)

    return start
