"""When a fault becomes visible in the signals: what no diagnosis can be earlier than.

An oracle that knows the healthy twins looks for the first update after the injection at which some signal stays more than `FAR`
robust standard deviations from the twins for `LONG` samples in a row (pathologies.md 7.2, "symptom onset"), or is not a number
where theirs is. It knows nothing of rules.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from tests.clinic.ward.record import Records

FAR = 5.0
LONG = 3
NEAR = 10
"""Updates to both sides from which the scale at one update is taken."""
Series = dict[str, dict[int, float | None]]


def series(records: Records) -> Series:
    """Signal to update to value of one run; None for a value that is not finite. Evaluations are left out: they are rare."""
    found: Series = {}
    for record in records:
        if record["kind"] == "signal" and record.get("phase", "train") == "train" and record.get("event", "frame") == "frame":
            for name, value in record.get("values", {}).items():
                found.setdefault(name, {})[record["step"]] = None if isinstance(value, Mapping) else float(value)
    return found


class Twins:
    """Level and scale of every signal at every update, over the healthy twins of a case."""

    def __init__(self, runs: Iterable[Series]) -> None:
        self._values: dict[str, dict[int, list[float]]] = {}
        for run in runs:
            for name, values in run.items():
                for step, value in values.items():
                    if value is not None:
                        self._values.setdefault(name, {}).setdefault(step, []).append(value)
        self._level = {name: {step: statistics.median(many) for step, many in steps.items()} for name, steps in self._values.items()}
        self._scales: dict[tuple[str, int], float] = {}

    def distance(self, name: str, step: int, value: float) -> float | None:
        """Robust standard deviations between a value and the twins; None where they never gave the signal."""
        level = self._level.get(name, {}).get(step)
        if level is None:
            return None
        return abs(value - level) / self._scale(name, step)

    def _scale(self, name: str, step: int) -> float:
        key = (name, step)
        if key not in self._scales:
            level, values = self._level[name], self._values[name]
            rests = [abs(value - level[at]) for at in range(step - NEAR, step + NEAR + 1) if at in values for value in values[at]]
            # A median of five hides a part of the spread; the floor keeps a constant from being infinitely precise.
            self._scales[key] = max(1.2 * 1.4826 * statistics.median(rests), 1e-3 * abs(level[step]), 1e-9)
        return self._scales[key]


def visible(sick: Series, twins: Twins, onset: int) -> tuple[int, str] | None:
    """First update after `onset` at which the fault shows, and in which signal; None when it never does."""
    best: tuple[int, str] | None = None
    for name, values in sorted(sick.items()):
        run = 0
        for step in sorted(values):
            if step <= onset or (best is not None and step - LONG + 1 >= best[0]):
                continue
            value: Any = values[step]
            if value is None:
                best, run = (step, name), 0
                break
            away = twins.distance(name, step, value)
            run = run + 1 if away is not None and away > FAR else 0
            if run == 1:
                first = step
            if run >= LONG:
                best = (first, name)
                break
    return best
