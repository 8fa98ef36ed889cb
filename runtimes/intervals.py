r"""How sure a measured fraction, difference or ratio is.

==============================  ====================================================================================
question                        method
==============================  ====================================================================================
a fraction of images            score interval: E. B. Wilson, "Probable inference, the law of succession, and
                                statistical inference", JASA 22 (1927), p. 209
is one model more often right   Q. McNemar, "Note on the sampling error of the difference between correlated
                                proportions", Psychometrika 12 (1947), p. 153; the exact binomial test on the images
                                that only one of both gets right, however many there are
is one runtime faster           percentile bootstrap: B. Efron and R. J. Tibshirani, "An Introduction to the
                                Bootstrap" (1993), section 13.3
==============================  ====================================================================================

The bootstrap's BCa interval corrects by a jackknife, which is inconsistent for medians (Efron and Tibshirani,
section 11.6), so ratios of medians get the percentile interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CONFIDENCE: Final = 0.95
"""Of every interval in a report."""

FEWEST_ROUNDS: Final = 8
"""For the interval of a ratio: resampled medians of fewer take too few values. What is called 95 % would hold the true
ratio in 48 of 100 cases with 2 rounds, and in 93 with 5."""

_RESAMPLES: Final = 2000  # Efron and Tibshirani, section 14.4: 1,000 and more for the ends of an interval

_Doubles = npt.NDArray[np.float64]


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a fraction, without continuity correction.

    Args:
        successes: From 0 to ``n``.
        n: Trials, at least 1.
        confidence: Between 0 and 1.

    Returns:
        Lower and upper end, in [0, 1]; both are inside also where all or none succeeded.

    Raises:
        ValueError: A number is out of range.
    """
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"received {successes} of {n} at {confidence}, expected 0 to n of n >= 1, inside (0, 1)")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction = successes / n
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave 1e-17 or push past 1.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    return low, 1.0 if successes == n else min(centre + half, 1.0)


def agreement_interval(agreement: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a top-1 agreement, which is kept as a fraction of whole images.

    Args:
        agreement: ``top1_agreement`` of :class:`runtimes.statistics.DifferenceStatistics`.
        n: Images compared, at least 1.
        confidence: Between 0 and 1.

    Raises:
        ValueError: A number is out of range.
    """
    return wilson(round(agreement * n), n, confidence)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's test, by the exact binomial distribution for any counts.

    Args:
        only_first: Images that the first model alone gets right.
        only_second: Images that the second model alone gets right.

    Returns:
        Probability, in [0, 1], of counts at least as unequal if both models were equally good; 1 where there are none.

    Raises:
        ValueError: A count is negative.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"received the counts {only_first} and {only_second}, expected 0 or more")
    if only_first == only_second:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


@dataclass(frozen=True)
class RatioInterval:
    """How many times as long one runtime takes as another.

    Attributes:
        ratio: Of the medians over the rounds; below 1 is faster.
        ci95: Lower and upper end of the 95 % interval; None for fewer than :data:`FEWEST_ROUNDS` rounds.
        faster: True where the whole interval is below 1, False where it is above, None where it holds 1 or is not
            known.
        remark: Why there is no interval; None where there is one.
    """

    ratio: float
    ci95: tuple[float, float] | None
    faster: bool | None
    remark: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        interval = None if self.ci95 is None else list(self.ci95)
        return {"ratio": self.ratio, "ci95": interval, "faster": self.faster, "remark": self.remark}


def ratio_of_medians(times: Sequence[float], first: Sequence[float], seed: int = 0) -> RatioInterval:
    """Whether one series of paired measurements is shorter than another.

    Whole rounds are drawn anew, both members of a pair together, so what a round did to both cancels.

    Args:
        times: One time for each round, above 0, in any unit.
        first: The other's time in the same round and unit.
        seed: Of the draws; the same seed gives the same interval.

    Raises:
        ValueError: The series differ in length, are empty, or hold a time that is not above 0.
    """
    pairs = np.array([times, first], np.float64) if len(times) == len(first) else np.empty((0, 0))
    if not pairs.size or not (pairs > 0).all():
        raise ValueError(f"received {len(times)} and {len(first)} times, expected as many of both, all above 0")
    ratio = float(_ratio(pairs[0], pairs[1]))
    if (rounds := pairs.shape[1]) < FEWEST_ROUNDS:
        return RatioInterval(ratio, None, None, f"{rounds} rounds bear no interval: {FEWEST_ROUNDS} at least do")
    low, high = (ratio, ratio) if np.ptp(pairs, axis=1).max() == 0 else _percentiles(pairs, seed)
    return RatioInterval(ratio, (low, high), True if high < 1 else False if low > 1 else None)


def _percentiles(pairs: _Doubles, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(pairs), _ratio, paired=True, vectorized=True, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _ratio(times: _Doubles, first: _Doubles, axis: int = -1) -> _Doubles:
    return np.asarray(np.median(times, axis=axis) / np.median(first, axis=axis), np.float64)
