#!/usr/bin/env bash
# Lint, types, tests.  scripts/test.sh [options of pytest]
source "$(dirname "$0")/setup.sh"
ruff check --quiet .
ruff format --check --quiet .
ty check --quiet
exec python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 40 --durations-min 5 "$@"
