#!/usr/bin/env python3
"""Make the example corpus of a coding agent's world.  generate_domain_examples.py OUT [--seed N] [--overwrite]

The same as `punie-mlx generate`, under the name that older notes use.
"""

import sys

from punie_mlx.cli import main

sys.argv.insert(1, "generate")
main()
