#!/usr/bin/env python3
"""The bare loop of mlx_lm's `BatchGenerator` on one model: what a server can reach at best.

    echo '{"prompts": [[1, 2, 3]], "max_tokens": 8}' | python scripts/bench_engine.py --model data/tiny-base

Each line of stdin is a batch of prompts (token ids), each line of stdout its figures: seconds, tokens, and the seconds
to the first token of each prompt. Greedy, no grammar, no text, no cache of prompts; in float32 where MLX runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# isort: off
import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
import mlx.core as mx

# isort: on
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model

from punie_mlx import hardware, weights


def run(model: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """One batch, all prompts there at the beginning, to the last token."""
    began = time.perf_counter()
    generator = BatchGenerator(model, completion_batch_size=32, prefill_batch_size=8, prefill_step_size=2048)
    uids = generator.insert(prompts, [max_tokens] * len(prompts))
    first: dict[int, float] = {}
    tokens = 0
    while responses := generator.next_generated():
        now = time.perf_counter() - began
        for response in responses:
            first.setdefault(response.uid, now)
        tokens += len(responses)
    seconds = time.perf_counter() - began
    generator.close()
    return {"seconds": seconds, "tokens": tokens, "first": [first[uid] for uid in uids]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    model: Any = load_model(parser.parse_args().model)[0]
    model.eval()
    if hardware.on_cpu():
        mx.disable_compile()
        weights.compute_in_float32(model)
    mx.eval(model.parameters())
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, **json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
