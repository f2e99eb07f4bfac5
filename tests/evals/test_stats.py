"""Intervals and tests against known values."""

import itertools
import math
from fractions import Fraction

import pytest

from punie_mlx.evals.stats import (
    Z95,
    Pairs,
    clustered,
    holm,
    mcnemar,
    mean_of_two,
    not_worse,
    pass_hat_k,
    sign_flip,
    tango,
    tango_z,
    wilson,
)


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


# ---- cases that were run several times ----


def test_clustered_is_wilson_where_each_case_was_run_once():
    for n in (1, 2, 7, 30):
        for k in range(n + 1):
            got = clustered([1.0] * k + [0.0] * (n - k), n)
            assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(got, wilson(k, n), strict=True))


def test_repeats_that_always_agree_tell_nothing_new():
    """Four runs of each case that always agree: the interval is that of the cases, not of four times as many."""
    for k, n in ((10, 10), (0, 10), (7, 10)):
        assert clustered([1.0] * k + [0.0] * (n - k), 4 * n) == pytest.approx(wilson(k, n))


def test_repeats_that_are_independent_count():
    """Cases that all pass every second time: no case differs from another, and every run counts."""
    assert clustered([0.5] * 10, 20) == pytest.approx(wilson(10, 20))


def mixtures(n, repeats, mixture):
    """Every outcome of `n` cases drawn from `mixture` (weight, chance to pass) and run `repeats` times, with its
    chance: how many cases had how many passes."""
    passes = [sum(w * math.comb(repeats, c) * p**c * (1 - p) ** (repeats - c) for w, p in mixture)
              for c in range(repeats + 1)]  # fmt: skip
    for drawn in itertools.combinations_with_replacement(range(repeats + 1), n):
        counts = [drawn.count(c) for c in range(repeats + 1)]
        ways = math.factorial(n) / math.prod(map(math.factorial, counts))
        yield drawn, ways * math.prod(p**k for p, k in zip(passes, counts, strict=True))


@pytest.mark.parametrize("mixture", [[(1, 0.7)], [(0.3, 0.0), (0.7, 1.0)], [(0.5, 0.2), (0.5, 0.9)]])
def test_the_intervals_of_repeats_cover(mixture):
    """By every outcome that there is: the rate is in its interval about as often as 95% says; a plain Wilson interval
    over all runs, which takes repeats for cases, misses it far more often where cases differ."""
    n, repeats = 16, 3
    rate, cube = sum(w * p for w, p in mixture), sum(w * p**3 for w, p in mixture)
    covered = dict.fromkeys(("mean", "pass^3", "naive"), 0.0)
    for drawn, chance in mixtures(n, repeats, mixture):
        runs = [[True] * c + [False] * (repeats - c) for c in drawn]
        found = {
            "mean": (rate, clustered([c / repeats for c in drawn], n * repeats)),
            "pass^3": (cube, pass_hat_k(runs, 3)[1]),
            "naive": (rate, wilson(sum(drawn), n * repeats)),
        }
        for name, (truth, (lo, hi)) in found.items():
            covered[name] += chance * (lo <= truth <= hi)
    assert min(covered["mean"], covered["pass^3"]) > 0.93, covered
    if mixture == [(0.3, 0.0), (0.7, 1.0)]:
        assert covered["naive"] < 0.85, covered


def test_pass_hat_k_counts_the_groups_of_k_runs():
    cases = [[True, True, False, True], [True] * 4, [False, True, False, False]]
    for k in range(1, 5):
        groups = [[all(g) for g in itertools.combinations(runs, k)] for runs in cases]
        by_hand = sum(sum(g) / len(g) for g in groups) / len(groups)
        value, (lo, hi) = pass_hat_k(cases, k)
        assert math.isclose(value, by_hand) and lo <= value <= hi


def test_pass_hat_k_is_unbiased():
    """Its expectation over all outcomes is p^k; that of (c/n)^k is not."""
    n, p = 5, Fraction(7, 10)
    for k in (1, 2, 3):
        expected = plain = Fraction(0)
        for c in range(n + 1):
            chance = math.comb(n, c) * p**c * (1 - p) ** (n - c)
            expected += chance * Fraction(math.comb(c, k), math.comb(n, k))
            plain += chance * Fraction(c, n) ** k
        assert expected == p**k and (k == 1 or plain > p**k)
        assert pass_hat_k([[True] * 4 + [False]], k)[0] == pytest.approx(math.comb(4, k) / math.comb(5, k))


def test_pass_hat_k_needs_k_runs():
    with pytest.raises(ValueError, match=r"pass\^3 needs cases of at least 3 runs"):
        pass_hat_k([[True] * 3, [True] * 2], 3)


# ---- balanced accuracy ----


@pytest.mark.parametrize(
    ("first", "second", "lo", "hi"),
    # Newcombe 1998 (Statistics in Medicine 17:873), table II, method 10: differences of independent rates.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_mean_of_two_against_published_values(first, second, lo, hi):
    """p1 - p2 is p1 + (1 - p2) - 1, so the published differences are those of means of p1 and 1 - p2."""
    (k, n), (j, m) = first, second
    mean = mean_of_two(k / n, wilson(k, n), 1 - j / m, wilson(m - j, m))
    assert [round(2 * end - 1, 4) for end in mean] == [lo, hi]


# ---- two runs ----


@pytest.mark.parametrize(
    ("gained", "lost", "n", "lo", "hi"),
    [
        (1, 7, 21, -0.517, -0.026),  # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness
        (6, 16, 161, -0.124, -0.005),  # the same: complete response
    ],
)
def test_tango_against_published_values(gained, lost, n, lo, hi):
    assert [round(end, 3) for end in tango(Pairs(gained, lost, n))] == [lo, hi]


def test_tango_published_test():
    """Tango 1998, his example: 44 pairs of which one is lost, margin 0.1: Z = 1.709, p = 0.044, 90% from -0.096."""
    pairs = Pairs(0, 1, 44)
    assert round(tango_z(pairs, -0.1), 3) == 1.709
    found = not_worse(pairs, 0.1, alpha=0.05)
    assert (round(found.p, 3), round(found.lower, 3), found.holds) == (0.044, -0.096, True)
    assert not not_worse(pairs, 0.1).holds  # at the level of one end of a 95% interval it does not


@pytest.mark.parametrize("gained, lost, n", [(3, 5, 20), (0, 4, 12), (6, 0, 9), (2, 2, 5), (1, 0, 30)])
def test_tango_against_brute_force(gained, lost, n):
    """The constrained estimate by trying every rate: its likelihood is the highest, and the ends have z = ±1.96."""

    def statistic(d):
        def log_likelihood(only_first):
            rates = (only_first + d, only_first, 1 - 2 * only_first - d)
            counts = (gained, lost, n - gained - lost)
            if any(r <= 0 and c for r, c in zip(rates, counts, strict=True)) or min(rates) < -1e-12:
                return -math.inf
            return sum(c * math.log(r) for r, c in zip(rates, counts, strict=True) if c)

        low, high = max(0.0, -d), (1 - d) / 2
        best = max((low + (high - low) * i / 20_000 for i in range(20_001)), key=log_likelihood)
        return (gained - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))

    lo, hi = tango(Pairs(gained, lost, n))
    assert math.isclose(statistic(lo), Z95, abs_tol=2e-3) and math.isclose(statistic(hi), -Z95, abs_tol=2e-3)
    assert tango(Pairs(lost, gained, n)) == pytest.approx((-hi, -lo), abs=1e-9)


def test_tango_covers():
    """By every outcome of 30 pairs: the difference is in its interval about as often as 95% says."""
    n = 30
    for only_second, only_first in ((0.05, 0.05), (0.2, 0.1), (0.02, 0.2), (0.4, 0.1)):
        covered = 0.0
        for gained in range(n + 1):
            for lost in range(n + 1 - gained):
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                rest = (1 - only_second - only_first) ** (n - gained - lost)
                chance = ways * only_second**gained * only_first**lost * rest
                if chance > 1e-9:
                    lo, hi = tango(Pairs(gained, lost, n))
                    covered += chance * (lo <= only_second - only_first <= hi)
        assert 0.93 < covered < 0.99


def test_tango_at_the_edges():
    assert tango(Pairs(0, 0, 0)) == (-1.0, 1.0)
    assert tango(Pairs(5, 0, 5))[1] == 1.0 and tango(Pairs(0, 5, 5))[0] == -1.0
    lo, hi = tango(Pairs(0, 0, 100))
    assert lo == pytest.approx(-hi) and 0.03 < hi < 0.04  # nothing flipped: still no proof of equality
    with pytest.raises(ValueError, match="3 gained and 3 lost of 5"):
        tango(Pairs(3, 3, 5))


def test_pairs_of_single_runs_are_counts():
    got = Pairs.of([1.0, -1.0, 0.0, 1.0, 0.0], 5)
    assert (got.gained, got.lost, got.n) == pytest.approx((2, 1, 5)) and got.difference == pytest.approx(0.2)


def test_pairs_of_repeats():
    """Repeats that agree add nothing; those that are shared among all cases alike do."""
    agree = Pairs.of([1.0, -1.0, 0.0, 1.0, 0.0], 20)
    assert agree.n == pytest.approx(5)
    spread = Pairs.of([0.25] * 8, 32)
    assert spread.n == pytest.approx(32) and spread.difference == pytest.approx(0.25)


def test_sign_flip_is_mcnemar_for_single_runs():
    for b, c in ((1, 9), (0, 6), (0, 0), (3, 3), (9, 1), (20, 31)):
        test = mcnemar([True] * b + [False] * c, [False] * b + [True] * c)
        assert math.isclose(sign_flip([1] * c + [-1] * b + [0] * 4), test.p)


@pytest.mark.parametrize("differences", [[2, -1, 3, 0, 1], [5], [-2, -2, -2, 1], [4, -4], [1, 1, 2, 3, 5, -8, 2], []])
def test_sign_flip_against_all_signs(differences):
    seen = abs(sum(differences))
    sums = [abs(sum(map(math.prod, zip(differences, signs, strict=True))))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    assert math.isclose(sign_flip(differences), sum(s >= seen for s in sums) / len(sums))


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust of R
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_is_the_closed_test():
    """By definition: each hypothesis's p is the worst that Bonferroni gives to any set of hypotheses with it."""
    p = [0.004, 0.2, 0.011, 0.011, 0.6]
    for i, adjusted in enumerate(holm(p)):
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size) if i in s]
        assert math.isclose(adjusted, max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets))


def test_not_worse_agrees_with_the_interval():
    """Holds if and only if the lower end of the 95% interval is above the margin; few cases never prove it."""
    for gained, lost, n in ((0, 0, 5), (0, 0, 245), (2, 3, 100), (0, 9, 300), (5, 1, 40), (0, 12, 300)):
        pairs = Pairs(gained, lost, n)
        found = not_worse(pairs, 0.05)
        assert found.holds is (tango(pairs)[0] > -0.05)
        assert math.isclose(found.lower, tango(pairs)[0], abs_tol=1e-9)
    assert not not_worse(Pairs(0, 0, 5), 0.05).holds and not_worse(Pairs(0, 0, 245), 0.05).holds
    with pytest.raises(ValueError, match="margin of 0"):
        not_worse(Pairs(0, 0, 5), 0)
