"""Lag-1 autocorrelation, the one thing that makes tests for independent samples cry wolf."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def lag1(values: Sequence[float]) -> float:
    """Correlation of neighbours around the values' own straight line, so that a trend is not taken for memory.

    ``r = sum(e_i * e_(i+1)) / sum(e_i ** 2)`` of the least-squares residuals ``e``. Of n independent samples it is about
    -2/n with a standard deviation of 1/sqrt(n) (Kendall 1954). 0 for a straight line, which has no residuals.

    Args:
        values: At least two, evenly spaced in time, in any unit.
    """
    n = len(values)
    middle, mean = (n - 1) / 2, sum(values) / n
    spread = sum((at - middle) ** 2 for at in range(n))
    slope = sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread
    rest = [value - mean - slope * (at - middle) for at, value in enumerate(values)]
    power = sum(value * value for value in rest)
    if power <= 1e-24 * (1 + mean * mean):
        return 0.0
    return sum(one * two for one, two in itertools.pairwise(rest)) / power
