"""Level: a number beyond a limit on most of the recent samples."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


class Level:
    """``side * (x - limit) > 0`` on at least ``hits`` of the newest ``of`` samples.

    For limits that a paper or a framework gives, and for limits relative to the run's own start. Source: the k-of-n run rule
    of control charts (Western Electric 1956; Champ & Woodall 1987).

    False alarms depend on how far the limit is from the healthy level. With independent samples that are beyond it with
    probability p each, a window of n alarms with ``P(Binomial(n, p) >= k)``; autocorrelated ones come in rows and raise more
    (docs/detectors.md: at 2 standard deviations, 4 of 5, 0.00 per 1,000 white, 1.8 at an autocorrelation of 0.9). Delay after a step well
    beyond the limit: hits - 1 samples; to the limit itself 9.
    Nothing with a frozen reference suits a signal that is meant to move (notes/pathologies.md 6.2): choose the bad side.

    Args:
        limit: In the unit of x; with ``reference`` a multiple of the reference.
        side: 1 alarms above, -1 below.
        hits: Samples beyond the limit.
        of: Among so many of the newest.
        reference: The limit is relative to the median of so many first samples, which then are not judged; 0: absolute.
    """

    __slots__ = ("_first", "_hits", "hits", "level", "limit", "nonfinite", "of", "reference", "side")

    def __init__(self, limit: float, side: int = 1, *, hits: int = 4, of: int = 5, reference: int = 0) -> None:
        if side not in (1, -1) or not 1 <= hits <= of:
            msg = f"side is 1 or -1 and 1 <= hits <= of; here they are {side}, {hits}, {of}"
            raise ValueError(msg)
        self.limit = limit
        self.side = side
        self.hits = hits
        self.of = of
        self.reference = reference
        self.level: float | None = None if reference else limit
        """The limit in the unit of x; None while the reference is being taken."""
        self.nonfinite = 0
        self._first: list[float] = []
        self._hits: list[bool] = []

    @property
    def alarm(self) -> bool:
        """Whether enough of the newest samples are beyond the limit."""
        return sum(self._hits) >= self.hits

    def add(self, x: float) -> bool | None:
        """Whether this sample is beyond the limit; None when that is not known yet, or when it is not finite."""
        if x - x != 0.0:
            self.nonfinite += 1
            return None
        if self.level is None:
            self._first.append(x)
            if len(self._first) == self.reference:
                self.level = self.limit * median(self._first)
                self._first = []
            return None
        beyond = self.side * (x - self.level) > 0.0
        self._hits.append(beyond)
        del self._hits[: -self.of]
        return beyond

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"level": self.level, "first": list(self._first), "hits": list(self._hits), "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.level, self._first, self._hits, self.nonfinite = state["level"], list(state["first"]), list(state["hits"]), state["nonfinite"]
