"""Invariant: a number that must lie within bounds, always and exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Invariant:
    """Whether ``low <= x <= high`` has ever been broken, and where first.

    For what holds by construction: a mask that covers something, a checksum that agrees (low = high), a ratio of 1 on the
    first inner step. Source: notes/pathologies.md 6.1, after TrainCheck (OSDI 2025).

    False alarms: none, if it is an invariant; what may be off by rounding belongs into the bounds. Delay: 0 samples.

    Attributes:
        seen: Finite samples.
        broken: Samples out of bounds.
        first: Number of the first of them, counting from 0 over all samples; None while it holds.
        nonfinite: Samples that were NaN or infinite. They neither keep nor break a bound.

    Args:
        low: Smallest value allowed, in the unit of x.
        high: Largest value allowed.
    """

    __slots__ = ("broken", "first", "high", "low", "nonfinite", "seen")

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        self.low = low
        self.high = high
        self.seen = self.broken = self.nonfinite = 0
        self.first: int | None = None

    def add(self, x: float) -> bool | None:
        """Whether this sample keeps the bounds; None when it is not finite."""
        if x - x != 0.0:
            self.nonfinite += 1
            return None
        self.seen += 1
        if self.low <= x <= self.high:
            return True
        self.broken += 1
        if self.first is None:
            self.first = self.seen + self.nonfinite - 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"seen": self.seen, "broken": self.broken, "first": self.first, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.seen, self.broken, self.first, self.nonfinite = state["seen"], state["broken"], state["first"], state["nonfinite"]
