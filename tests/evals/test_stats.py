"""Intervals and tests against known values."""

import math

import pytest

from punie_mlx.evals.stats import mcnemar, wilson


@pytest.mark.parametrize(
    ("k", "n", "lo", "hi"),
    [(5, 5, 0.57, 1.0), (95, 100, 0.89, 0.98), (475, 500, 0.93, 0.97), (0, 5, 0.0, 0.43), (0, 0, 0.0, 1.0)],
)
def test_wilson_known_values(k, n, lo, hi):
    got = wilson(k, n)
    assert (round(got[0], 2), round(got[1], 2)) == (lo, hi)


def test_wilson_is_symmetric_and_holds_the_rate():
    for n in (1, 7, 40):
        for k in range(n + 1):
            lo, hi = wilson(k, n)
            other_lo, other_hi = wilson(n - k, n)
            assert 0 <= lo <= k / n <= hi <= 1
            assert math.isclose(lo, 1 - other_hi, abs_tol=1e-12) and math.isclose(hi, 1 - other_lo, abs_tol=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="6 successes in 5"):
        wilson(6, 5)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    # Twice the lower tail of a fair binomial: 2·(1+10)/2^10, 2/2^6, all ties, and the even split capped at 1.
    [(1, 9, 22 / 1024), (0, 6, 2 / 64), (0, 0, 1.0), (3, 3, 1.0), (9, 1, 22 / 1024)],
)
def test_mcnemar_exact(b, c, p):
    first = [True] * b + [False] * c + [True, False]
    second = [False] * b + [True] * c + [True, False]
    got = mcnemar(first, second)
    assert (got.only_first, got.only_second) == (b, c)
    assert math.isclose(got.p, p)


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError, match="differ in length"):
        mcnemar([True], [])
