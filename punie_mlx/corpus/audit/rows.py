"""The checks and figures of single rows, in one table, in the order in which they are shown."""

from __future__ import annotations

from punie_mlx.corpus.audit import calls, grounds, tokens, turns

ROW_CHECKS = (*turns.CHECKS, *calls.CHECKS, *grounds.CHECKS, *tokens.CHECKS)
ROW_FIGURES = (*calls.FIGURES, *tokens.FIGURES)
