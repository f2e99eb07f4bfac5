"""The statistics of an evaluation: intervals for one result, exact tests between two. Nothing but the standard library.

A score without an interval says little: 5 of 5 is compatible with a true rate of 57%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for `k` successes in `n` trials; (0, 1) where nothing was tried."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    p = k / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact by definition; the formula gets there only up to rounding.
    lo = 0.0 if k == 0 else (centre - half) / scale
    hi = 1.0 if k == n else (centre + half) / scale
    return lo, hi


@dataclass(frozen=True)
class McNemar:
    """Cases that only the first solved, that only the second solved, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test on paired outcomes: under the null, each discordant pair is a fair coin."""
    if len(first) != len(second):
        raise ValueError(f"paired outcomes differ in length: {len(first)} and {len(second)}")
    b = sum(x and not y for x, y in zip(first, second, strict=True))
    c = sum(y and not x for x, y in zip(first, second, strict=True))
    return McNemar(b, c, _binomial_two_sided(min(b, c), b + c))


def _binomial_two_sided(k: int, n: int) -> float:
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)
