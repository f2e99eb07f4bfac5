#!/usr/bin/env python
"""Convert ready-made ChatML rows (`{"text": "<|im_start|>…"}`) into structured rows (`messages` and `tools`).

    scripts/convert_training_data.py IN OUT [--model DIR] [--offered N] [--overwrite]

Such rows hold no tools: schemas are inferred from all calls of the corpus, and each row is offered the tools that it
calls and others up to N.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from punie_mlx.corpus.convert import OFFERED, ConvertConfig, convert, default_model
from punie_mlx.errors import PunieError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="directory of .jsonl files")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--model", type=Path, help="directory with the tokenizer and chat template to convert for")
    parser.add_argument("--offered", type=int, default=OFFERED, help="tools that a row is offered at least")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    given = parser.parse_args()
    try:
        model = given.model or default_model()
        report = convert(ConvertConfig(given.source, given.out, model, given.overwrite, given.offered))
    except PunieError as e:
        print(f"convert_training_data: {e}", file=sys.stderr)
        return e.exit_code
    print(report.summary(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
