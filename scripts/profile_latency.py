#!/usr/bin/env python3
"""Where an agent's time goes with our server, and the same requests beside mlx_lm.server's: `punie-mlx profile` twice.

    python scripts/profile_latency.py --model runs/fused --limit 40 --json profile.json
    python scripts/profile_latency.py --model ~/models/Qwen3-Coder-5bit --suite my.jsonl --repeats 3

Prints the phases, a request's times, and the ratios of ours to mlx_lm.server's; exit code 1 where the phases do not add
up to the wall time within 2%. Where MLX runs on a CPU ours computes in float32 whatever the files say, since half
precision and quantized weights are slow there; so that like is compared with like, mlx_lm.server gets the same weights
written in float32, unless --same-files asks for the very files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from punie_mlx import hardware, identity
from punie_mlx.evals.profile import adds_up
from punie_mlx.evals.profile_tables import grids, warnings
from punie_mlx.evals.profiling import ProfileConfig, profile
from punie_mlx.evals.tables import terminal

ROOT = Path(__file__).resolve().parent.parent
QUANTIZATION = ("quantization", "quantization_config")


def in_float32(model: Path, out: Path) -> Path:
    """`model` as our server computes it on a CPU: its weights in float32, dequantized where there is room."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from punie_mlx import weights

    network = weights.load_lazily(model)
    weights.compute_in_float32(network)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    arrays = dict(tree_flatten(network.parameters()))
    config = json.loads((out / "config.json").read_text()) | {"torch_dtype": "float32"}
    if not any(name.endswith(".scales") for name in arrays):  # a large one keeps its bits
        config = {key: value for key, value in config.items() if key not in QUANTIZATION}
    (out / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-base", help="model directory")
    parser.add_argument("--adapter", type=Path, help="adapter directory, for both servers")
    parser.add_argument("--suite", type=Path, default=ROOT / "data" / "suites" / "agent.jsonl", help="cases to run")
    parser.add_argument("--limit", type=int, default=40, help="only the first cases; the very first is the warm-up")
    parser.add_argument("--repeats", type=int, default=1, help="run each case so often")
    parser.add_argument("--same-files", action="store_true", help="mlx_lm.server gets the very files on a CPU, too")
    parser.add_argument("--json", type=Path, help="file for the profile")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        copied = hardware.on_cpu() and not given.same_files
        config = ProfileConfig(
            model=given.model,
            adapter=given.adapter,
            suites=(given.suite,),
            limit=given.limit,
            repeats=given.repeats,
            compare_stock=True,
            stock_model=in_float32(given.model, Path(scratch) / given.model.resolve().name) if copied else None,
        )
        found = profile(config)
    if given.json:
        identity.write_json(given.json, found)
    console = Console()
    for grid in grids(found):
        console.print(terminal(grid))
    for warning in warnings(found):
        console.print(f"! {warning}", markup=False, highlight=False, soft_wrap=True)
    return 0 if adds_up(found) else 1


if __name__ == "__main__":
    sys.exit(main())
