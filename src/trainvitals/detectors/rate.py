"""Rate: evidence that a share is above (or below) what it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ODDS = (1.5, 2.5, 4.0, 8.0, 20.0, 60.0)
"""Alternatives: odds so many times those of the limit. The mixture loses at most log10(6) = 0.8 against the best of them."""
CAP = 8.0
"""Largest evidence with ``restart``, as in `shift`."""
_CAP = CAP * math.log(10.0)


class Rate:
    """Sequential likelihood-ratio test of ``share <= limit``, mixed over six alternatives.

    ``log L_q += hits * log(q / limit) + (of - hits) * log((1 - q) / (1 - limit))``, evidence = log10 of the mean of ``L_q`` over q.
    With ``restart`` each L starts anew at 1 when it has fallen below (an e-detector, for a change at any time): the mean number of
    calls to an alarm at ``evidence >= log10(1 / alpha)`` is at least 1/alpha. Without, it tests the run as a whole: the probability of
    an alarm *ever* is at most alpha, however often one looks.

    Sources: Wald 1945; Robbins 1970 (mixtures); Shin, Ramdas & Rinaldo (arXiv 2203.03532) for the restart. Assumes that the share
    expected from the past is at most the limit; not independence between calls. Within a call hits are independent trials; where
    they are not (completions of one prompt), give the batch's share as ``add(share)``, one observation: the bound then holds for any
    number between 0 and 1, because the logarithm is concave. Simulated at alpha 1e-4 with a limit of 5 % and batches of 16 (docs/detectors.md): 0.01 false alarms
    per 1,000 batches, delay 31, 4 and 0 batches at 10, 20 and 50 %; counts that hang together raise 19, as shares none.

    Args:
        limit: Share that is still acceptable, between 0 and 1 exclusively.
        side: 1: evidence that the share is above, -1: below.
        restart: See above.
    """

    __slots__ = ("_gains", "_logs", "evidence", "limit", "nonfinite", "restart", "side")

    def __init__(self, limit: float, side: int = 1, *, restart: bool = True) -> None:
        if not 0.0 < limit < 1.0 or side not in (1, -1):
            msg = f"limit lies between 0 and 1, side is 1 or -1; here they are {limit}, {side}"
            raise ValueError(msg)
        self.limit = limit
        self.side = side
        self.restart = restart
        self.evidence: float | None = None
        """log10 of the evidence; None before the first call."""
        self.nonfinite = 0
        odds = limit / (1.0 - limit)
        shares = [(others := odds * ratio**side) / (1.0 + others) for ratio in ODDS]
        self._gains = [(math.log(q / limit), math.log((1.0 - q) / (1.0 - limit))) for q in shares]
        self._logs = [0.0] * len(ODDS)

    def add(self, hits: float, of: float = 1.0) -> float | None:
        """Evidence after ``hits`` of ``of`` trials. A count outside 0 to ``of`` is refused."""
        if hits - hits != 0.0 or of - of != 0.0:
            self.nonfinite += 1
            return self.evidence
        if not 0.0 <= hits <= of:
            msg = f"{hits} hits of {of}"
            raise ValueError(msg)
        before = [min(max(log, 0.0), _CAP) for log in self._logs] if self.restart else self._logs
        logs = self._logs = [log + hits * hit + (of - hits) * miss for log, (hit, miss) in zip(before, self._gains, strict=True)]
        most = max(logs)
        self.evidence = (most + math.log(sum(math.exp(log - most) for log in logs) / len(logs))) / math.log(10.0)
        return self.evidence

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"logs": list(self._logs), "evidence": self.evidence, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._logs, self.evidence, self.nonfinite = list(state["logs"]), state["evidence"], state["nonfinite"]
