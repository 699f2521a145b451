"""Numbers of the report: the intervals that `trainvitals rules backtest` uses as well, and a median."""

from __future__ import annotations

import statistics

from trainvitals.cli.intervals import poisson as rate
from trainvitals.cli.intervals import wilson as share

__all__ = ["median", "rate", "share"]


def median(numbers: list[float]) -> float | None:
    """Median; None without numbers."""
    return statistics.median(numbers) if numbers else None
