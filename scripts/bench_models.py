#!/usr/bin/env python3
"""Make the models that a server is measured with: they write words, and never end by themselves.

    python scripts/bench_models.py --out /tmp/models
    python scripts/bench_models.py --out /tmp/models --hidden 1024 --layers 12 --dtype bfloat16

    larger-4bit      a Qwen3 model with random weights (105 million as it stands), in 4 bits, groups of 64
    larger-float32   the same weights, dequantized, in float32: what our server makes of them where it runs on a CPU
    tiny-float16     data/tiny-base
    tiny-float32     the same weights in float32

All have the tokenizer and the template of data/tiny-base. The rows of the output matrix are zero but for tokens that
are words, so that under greedy decoding every answer is plain text as long as was asked for (the end token has logit
0, and the largest of a thousand others is above it). A grammar can still ask for any token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# isort: off
import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
import mlx.core as mx

# isort: on
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3 import Model, ModelArgs

from punie_mlx import weights
from punie_mlx.chat.render import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "data" / "tiny-base"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
GROUP, BITS = 64, 4


def make(out: Path, names: list[str], *, hidden: int, layers: int, dtype: str, seed: int = 0) -> dict[str, Path]:
    """Write the named models below `out`; return their directories."""
    made = {name: out / name for name in names}
    for size in sorted({name.split("-")[0] for name in names}):
        model, config = tiny() if size == "tiny" else larger(hidden, layers, seed)
        words_only(model)
        if size == "larger":
            nn.quantize(model, GROUP, BITS)
            model.set_dtype(getattr(mx, dtype))  # of the scales
            quantization = {"group_size": GROUP, "bits": BITS}
            if (path := made.get("larger-4bit")) is not None:
                write(path, model, config | {"quantization": quantization, "quantization_config": quantization})
        elif (path := made.get("tiny-float16")) is not None:
            model.set_dtype(mx.float16)
            write(path, model, config)
        if (path := made.get(f"{size}-float32")) is not None:
            weights.densify(model)
            model.set_dtype(mx.float32)
            write(path, model, config | {"torch_dtype": "float32"})
    return made


def larger(hidden: int, layers: int, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights: heads of 64, three query heads for each key head where that comes out even."""
    heads = hidden // 64
    config = json.loads((TINY / "config.json").read_text()) | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
        "tie_word_embeddings": False,
    }
    mx.random.seed(seed)
    return Model(ModelArgs.from_dict(config)), config


def tiny() -> tuple[nn.Module, dict[str, Any]]:
    """data/tiny-base, with an output matrix of its own."""
    config = json.loads((TINY / "config.json").read_text()) | {"tie_word_embeddings": False}
    model = Model(ModelArgs.from_dict(config))
    held = dict(tree_flatten(weights.load_lazily(TINY).parameters()))
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    model.load_weights(list(held.items()))
    return model, config


def words_only(model: Any) -> None:
    """Make zero the rows of the output matrix of all tokens but words."""
    tokenizer = load_tokenizer(TINY)
    rows = model.lm_head.weight.shape[0]
    texts = {i: tokenizer.decode([i]) for i in tokenizer.get_vocab().values() if i < rows}
    keep = [float(len(texts.get(i, "")) > 2 and texts[i].isascii() and texts[i].isalpha()) for i in range(rows)]
    model.lm_head.weight = model.lm_head.weight * mx.array(keep)[:, None]


def write(path: Path, model: Any, config: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        shutil.copy(TINY / name, path / name)
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})


NAMES = ("larger-4bit", "larger-float32", "tiny-float16", "tiny-float32")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a directory is made in it for each")
    parser.add_argument("--names", default=",".join(NAMES), help="which, with commas (default: all)")
    parser.add_argument("--hidden", type=int, default=768, help="width of the larger one (default 768)")
    parser.add_argument("--layers", type=int, default=12, help="its layers (default 12)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of its scales")
    return parser


def main() -> int:
    asked = options().parse_args()
    names = asked.names.split(",")
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"no such model: {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name, path in make(asked.out, names, hidden=asked.hidden, layers=asked.layers, dtype=asked.dtype).items():
        size = sum(f.stat().st_size for f in path.iterdir())
        print(f"{name}: {weights.parameter_count(weights.load_lazily(path)) / 1e6:.1f} M, {size / 1e6:.1f} MB, {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
