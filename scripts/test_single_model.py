#!/usr/bin/env python
"""What does a model write, before any server reads it? Generates without the server and prints the raw text.

    python scripts/test_single_model.py data/tiny-base
    python scripts/test_single_model.py MODEL --adapter ADAPTER --suite data/suites/agent.jsonl --limit 10

One prompt for each query of the suite, with its tools, at temperature 0; control tokens are shown as they are.
For a score use `punie-mlx eval`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from punie_mlx.chat.render import encode, render
from punie_mlx.corpus.suite import read_suite
from punie_mlx.errors import PunieError
from punie_mlx.export.hub import resolve
from punie_mlx.serve.engine import load

SUITE = Path(__file__).resolve().parent.parent / "data" / "suites" / "discrimination.jsonl"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory, or a name on the hub")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter directory to lay over the model")
    parser.add_argument("--suite", type=Path, default=SUITE, help="queries and their tools (default: the five queries)")
    parser.add_argument("--limit", type=int, help="only the first N queries")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of one answer (default: 512)")
    return parser.parse_args()


def main() -> None:
    given = options()
    from mlx_lm import stream_generate

    cases = read_suite(given.suite).cases[: given.limit]
    loaded = load(resolve(given.model), given.adapter)
    for case in cases:
        text = render(loaded.tokenizer, case.conversation, case.tools, add_generation_prompt=True)
        start = time.perf_counter()
        tokens = []
        finish = "length"
        prompt = encode(loaded.tokenizer, text)
        for piece in stream_generate(loaded.network, loaded.tokenizer, prompt, max_tokens=given.max_tokens):
            tokens.append(piece.token)
            finish = piece.finish_reason or finish
        seconds = time.perf_counter() - start
        print(f"── {case.id} ({case.category}): {case.query}")
        print(loaded.tokenizer.decode(tokens, skip_special_tokens=False))
        print(f"   [{len(prompt)} → {len(tokens)} tokens, {seconds:.2f} s, {finish}]\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except PunieError as e:
        print(f"test_single_model: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
