"""Intervals of shares and rates, so that few runs never look like many."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: two-sided 95 %."""


def wilson(hits: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927, without continuity correction); (0, 1) when nothing was tried.

    Raises:
        ValueError: `hits` lies outside 0 to `of`.
    """
    if not 0 <= hits <= of:
        msg = f"{hits} hits of {of}"
        raise ValueError(msg)
    if of == 0:
        return 0.0, 1.0
    share, square = hits / of, z * z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == of else middle + half)


def poisson(events: int, exposure: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate, events per unit of exposure (Garwood 1936); (0, inf) without exposure.

    It holds for independent events. Firings of one run hang together, so read it with the share of runs.

    Raises:
        ValueError: A negative number.
    """
    if events < 0 or exposure < 0:
        msg = f"{events} events in {exposure}"
        raise ValueError(msg)
    if exposure == 0:
        return 0.0, math.inf
    tail = (1 - level) / 2
    low = 0.0 if events == 0 else _mean_where(events - 1, 1 - tail)
    return low / exposure, _mean_where(events, tail) / exposure


def _mean_where(most: int, chance: float) -> float:
    """Mean of the Poisson distribution for which ``P(X <= most)`` equals `chance`, by bisection."""
    low, high = 0.0, most + 12.0 * math.sqrt(most + 1.0) + 20.0
    while (middle := (low + high) / 2) not in (low, high):
        if at_most(most, middle) > chance:
            low = middle
        else:
            high = middle
    return middle


def at_most(most: int, mean: float) -> float:
    """``P(X <= most)`` of a Poisson distribution."""
    if mean == 0:
        return 1.0
    log = math.log(mean)
    return min(1.0, math.fsum(math.exp(count * log - mean - math.lgamma(count + 1)) for count in range(most + 1)))


def sign_test(one: int, other: int) -> float:
    """Two-sided p value that two counts of a fair coin differ so much or more (McNemar's exact test on discordant pairs)."""
    tosses = one + other
    tail = sum(math.comb(tosses, count) for count in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / 2**tosses))


def needed(share: float, z: float = Z95) -> int:
    """Trials without a hit after which the Wilson interval ends at or below `share`."""
    return math.ceil(z * z * (1 - share) / share) if share > 0 else 0


def counted(hits: int, of: int) -> str:
    """``2 of 23 [2% to 27%]``; a dash when nothing was tried."""
    if not of:
        return "-"
    low, high = wilson(hits, of)
    return f"{hits} of {of} [{low:.0%} to {high:.0%}]"


def rated(events: int, steps: int) -> str:
    """``0.65 [0.34 to 1.14]`` per 1,000 steps; a dash without steps."""
    if not steps:
        return "-"
    low, high = poisson(events, steps / 1000)
    return f"{events / steps * 1000:.2f} [{low:.2f} to {high:.2f}]"
