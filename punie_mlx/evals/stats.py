"""The statistics of an evaluation: intervals for one result, tests and intervals between two. Nothing but the standard
library.

A score without an interval says little: 5 of 5 is compatible with a true rate of 57%. What each figure is:

- `wilson`: score interval of a rate (Wilson 1927). Where a case was run several times, its repeats are no independent
  cases: `clustered` takes each case's mean as one observation and gives Wilson's interval the *effective* number of
  trials that the spread between the cases leaves (Rao and Scott 1992; of the intervals for clustered rates, Wilson's
  with that number is among those that Saha, Miller and Wang 2016 recommend). With one run a case it is `wilson` itself.
  A bootstrap over the cases was the alternative; where every case passed it says [100%, 100%], which is never true.
- `pass_hat_k`: the chance that k runs of a case all pass (Yao et al. 2024, tau-bench, arXiv:2406.12045):
  C(c, k)/C(n, k) for c passes in n runs, unbiased where (c/n)^k is too high; mean over the cases.
- `mcnemar`: exact test on pairs of single runs. `sign_flip`: the same question where cases were run several times:
  under the null, the sign of each case's difference is a fair coin. For single runs the two give the same p.
- `holm`: p-values of several comparisons, adjusted so that the chance of any false alarm stays what was asked (1979).
- `tango`: score interval for a difference of paired rates (Tango 1998, Statistics in Medicine 17:891), one of the two
  that Fagerland, Lydersen and Laake 2014 recommend for pairs. `not_worse` is the test that he made it for: "not
  significantly worse" is not "as good"; only a lower limit above -margin is.
- `mean_of_two`: interval for the mean of two independent rates, from the intervals of each (MOVER: Zou and Donner
  2008), which is method 10 of Newcombe 1998 for a sum: balanced accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z95 = 1.959963984540054
ONE_SIDED = 0.025
"""Level of a one-sided claim: that of one end of a 95% interval, so that interval and claim agree."""

Interval = tuple[float, float]


def wilson(k: float, n: float, z: float = Z95) -> Interval:
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


# ---- cases that were run several times ----


def clustered(values: Sequence[float], most: float, z: float = Z95) -> Interval:
    """Interval for the mean of `values`, one in [0, 1] for each case.

    `most`: the trials that there would be if those of one case were independent: no fewer than the cases.
    """
    if not values:
        return 0.0, 1.0
    mean = math.fsum(values) / len(values)
    trials = _effective(values, mean * (1 - mean), most)
    return wilson(min(mean, 1.0) * trials, trials, z)


def _effective(values: Sequence[float], independent: float, most: float) -> float:
    """How many independent trials would leave the mean of `values` as uncertain as their spread says, where one trial
    has the variance `independent`. At least the cases (repeats that always agree tell nothing new), at most `most`."""
    n = len(values)
    if n < 2 or independent <= 0:
        return n
    mean = math.fsum(values) / n
    spread = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return min(max(n, n * independent / spread), max(n, most)) if spread > 0 else max(n, most)


def pass_hat_k(outcomes: Sequence[Sequence[bool]], k: int, z: float = Z95) -> tuple[float, Interval]:
    """The chance that `k` runs of a case all pass, mean over the cases (each a sequence of outcomes), and its interval.

    The interval's trials are capped at the disjoint groups of `k` runs that there are.
    """
    if not outcomes or k < 1 or any(len(runs) < k for runs in outcomes):
        raise ValueError(f"pass^{k} needs cases of at least {max(k, 1)} runs each")
    values = [math.comb(sum(runs), k) / math.comb(len(runs), k) for runs in outcomes]
    most = sum(len(runs) // k for runs in outcomes)
    return math.fsum(values) / len(values), clustered(values, most, z)


# ---- two rates of one run ----


def mean_of_two(first: float, one: Sequence[float], second: float, other: Sequence[float]) -> Interval:
    """Interval for the mean of two independent rates, each given with its own interval."""
    middle = (first + second) / 2
    down = math.hypot(first - one[0], second - other[0]) / 2
    up = math.hypot(one[1] - first, other[1] - second) / 2
    return max(0.0, middle - down), min(1.0, middle + up)


# ---- two runs ----


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


def sign_flip(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of the sum of `differences`, if each might as well have had the other sign.

    Counted, not sampled: `ways[s]` is the number of choices of signs under which the positive ones sum to s.
    """
    sizes = [abs(d) for d in differences if d]
    total, seen = sum(sizes), abs(sum(differences))
    ways = [1] + [0] * total
    reach = 0
    for size in sizes:
        reach += size
        for s in range(reach, size - 1, -1):
            ways[s] += ways[s - size]
    # Positive ones that sum to s leave a difference of 2s - total; as many choices lie above as below.
    tail = sum(ways[: (total - seen) // 2 + 1])
    return min(1.0, 2 * tail / 2 ** len(sizes))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of `p_values`, in their order."""
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, worst)
    return adjusted


@dataclass(frozen=True)
class Pairs:
    """What `tango` needs of `n` paired cases: how much only the second passed (`gained`), how much only the first
    (`lost`). Whole numbers for single runs; `of` makes them where cases were run several times."""

    gained: float
    lost: float
    n: float

    @classmethod
    def of(cls, differences: Sequence[float], most: float) -> Pairs:
        """From each case's difference of means, second minus first, scaled to the effective number of pairs."""
        n = len(differences)
        gained = math.fsum(d for d in differences if d > 0)
        lost = -math.fsum(d for d in differences if d < 0)
        if n == 0:
            return cls(0.0, 0.0, 0.0)
        scale = _effective(differences, (gained + lost) / n - ((gained - lost) / n) ** 2, most) / n
        return cls(gained * scale, lost * scale, n * scale)

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.n if self.n else 0.0


def tango_z(pairs: Pairs, difference: float) -> float:
    """The score statistic of the hypothesis that the second's rate minus the first's is `difference`."""
    gained, lost, n, d = pairs.gained, pairs.lost, pairs.n, difference
    # The likeliest rate of "only the first passed" under that hypothesis is the root of a quadratic.
    b = (2 * n - gained + lost) * d - gained - lost
    c = -lost * d * (1 - d)
    rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * rate + d * (1 - d))
    above = gained - lost - n * d
    if variance <= 0:
        return math.copysign(math.inf, above) if above else 0.0
    return above / math.sqrt(variance)


def tango(pairs: Pairs, z: float = Z95) -> Interval:
    """Score interval for the difference of paired rates; (-1, 1) where there are no pairs."""
    if pairs.n == 0:
        return -1.0, 1.0
    if min(pairs.gained, pairs.lost) < 0 or pairs.gained + pairs.lost > pairs.n * (1 + 1e-12):
        raise ValueError(f"{pairs.gained} gained and {pairs.lost} lost of {pairs.n} pairs")
    return _solve(pairs, z, -1.0, pairs.difference), _solve(pairs, -z, pairs.difference, 1.0)


def _solve(pairs: Pairs, z: float, lo: float, hi: float) -> float:
    """The difference in [lo, hi] at which the statistic, which falls, is `z`; by bisection."""
    for _ in range(80):
        middle = (lo + hi) / 2
        if tango_z(pairs, middle) > z:
            lo = middle
        else:
            hi = middle
    return (lo + hi) / 2


@dataclass(frozen=True)
class NotWorse:
    """Whether the second may be called "not worse by more than `margin`": one-sided, at the level of `ONE_SIDED`."""

    margin: float
    lower: float
    """The lower limit of the difference, second minus first."""
    p: float
    holds: bool


def not_worse(pairs: Pairs, margin: float, alpha: float = ONE_SIDED) -> NotWorse:
    """Tango's score test of the hypothesis that the second is worse than the first by `margin` or more."""
    if not 0 < margin < 1:
        raise ValueError(f"a margin of {margin}: it is a difference of rates above 0 and below 1")
    if pairs.n == 0:
        return NotWorse(margin, -1.0, 1.0, False)
    p = 0.5 * math.erfc(tango_z(pairs, -margin) / math.sqrt(2))
    return NotWorse(margin, tango(pairs, NormalDist().inv_cdf(1 - alpha))[0], p, p < alpha)
