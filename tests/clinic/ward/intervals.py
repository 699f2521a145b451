"""95 % intervals of the report: Wilson's for a share, the exact one for a Poisson rate. Numbers only."""

from __future__ import annotations

import math

Z = 1.959964


def share(hits: int, of: int) -> tuple[float, float]:
    """Wilson score interval of ``hits / of`` (Wilson 1927); (0, 1) without data."""
    if of == 0:
        return 0.0, 1.0
    p = hits / of
    middle = (p + Z * Z / (2 * of)) / (1 + Z * Z / of)
    half = Z / (1 + Z * Z / of) * math.sqrt(p * (1 - p) / of + Z * Z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def _below(count: int, mean: float) -> float:
    """Chance of at most `count` events when `mean` are expected."""
    term = total = math.exp(-mean)
    for k in range(1, count + 1):
        term *= mean / k
        total += term
    return total


def rate(events: int, exposure: float) -> tuple[float, float]:
    """Exact interval of a rate from `events` in `exposure` (Garwood 1936), by bisection; no events: up to 3.69 / exposure."""
    if exposure <= 0:
        return 0.0, math.inf

    def solve(count: int, tail: float) -> float:
        low, high = 0.0, 10.0 + 4.0 * count
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _below(count, middle) > tail else (low, middle)
        return low

    least = solve(events - 1, 0.975) if events else 0.0
    return least / exposure, solve(events, 0.025) / exposure


def median(numbers: list[float]) -> float | None:
    """Median; None without numbers."""
    ordered = sorted(numbers)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return float(ordered[middle]) if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def quantile(numbers: list[float], q: float) -> float | None:
    """Quantile `q` with linear interpolation; None without numbers."""
    ordered = sorted(numbers)
    if not ordered:
        return None
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)
