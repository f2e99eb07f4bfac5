#!/usr/bin/env python
"""Convert a directory of rows with JSON fences into rows whose calls a model's own template writes as tags.

    scripts/convert_to_xml_format.py [IN [OUT]] [--model DIR] [--overwrite]

The same as `punie-mlx convert`, with the example corpus as default.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from punie_mlx.corpus.convert import ConvertConfig, convert, default_model
from punie_mlx.errors import PunieError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=Path("data/phase8_json_format"))
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/phase8_xml_format"))
    parser.add_argument("--model", type=Path, help="directory with the tokenizer and chat template to convert for")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    given = parser.parse_args()
    try:
        model = given.model or default_model()
        report = convert(ConvertConfig(given.source, given.out, model, overwrite=given.overwrite))
    except PunieError as e:
        print(f"convert_to_xml_format: {e}", file=sys.stderr)
        return e.exit_code
    print(report.summary(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
