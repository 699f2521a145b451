"""What a tool must beat to be worth anything: fixed thresholds, "NaN only", and saying nothing at all.

The thresholds are those that Amazon SageMaker Debugger documents as the defaults of its built-in rules (developer guide, 2023; the
rules themselves are closed and run only inside that service). What a rule reads from tensors is read here from the log row that
tells most of the same: a norm of the whole gradient for the mean of its absolute values. As there, a rule ends at its first alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from tests.clinic.ward.peer_rows import Row

Alert = tuple[int, str, str]
"""Step, rule, severity, the last two in the tool's own words."""

VANISHING = 1e-7
"""VanishingGradient ``threshold``: mean of absolute gradients. The norm is never smaller, so this fires later than theirs."""
LOSS_STEPS = 10
"""LossNotDecreasing ``num_steps``."""
LOSS_FALL = 0.001
"""LossNotDecreasing ``diff_percent`` 0.1 %."""
LOSS_RISE = 0.05
"""LossNotDecreasing ``increase_threshold_percent`` 5 %."""
OVERFIT = 0.1
"""Overfit ``ratio_threshold``, with ``patience`` 1."""
UPDATE_LARGE, UPDATE_SMALL = 10.0, 1e-8
"""WeightUpdateRatio ``large_threshold`` and ``small_threshold``. No TRL trainer logs this ratio: it needs a recorded signal."""


def fixed_thresholds(rows: Sequence[Row]) -> list[Alert]:
    """SageMaker-style rules at their documented defaults, each at most once per run."""
    fired: dict[str, int] = {}
    losses: deque[float] = deque(maxlen=LOSS_STEPS + 1)
    for row in rows:
        gradient, loss, held_out = row.logs.get("grad_norm"), row.logs.get("loss"), row.logs.get("eval_loss")
        found = {
            "ExplodingTensor": _nonfinite(row),
            "VanishingGradient": gradient is not None and gradient < VANISHING,
            "WeightUpdateRatio": row.update_ratio is not None and not UPDATE_SMALL <= row.update_ratio <= UPDATE_LARGE,
            "Overfit": bool(losses) and held_out is not None and held_out - losses[-1] > OVERFIT * abs(losses[-1]),
        }
        if row.kind == "train" and loss is not None:
            losses.append(loss)
            change, size = losses[-1] - losses[0], abs(losses[0])
            full = len(losses) > LOSS_STEPS
            found["LossNotDecreasing"] = full and (-change < LOSS_FALL * size or change > LOSS_RISE * size)
        for rule, hit in found.items():
            if hit:
                fired.setdefault(rule, row.step)
    return sorted((step, rule, "issue") for rule, step in fired.items())


def nan_only(rows: Sequence[Row]) -> list[Alert]:
    """The one line that everybody writes: any number in the log that is not finite, said once."""
    first = next((row.step for row in rows if _nonfinite(row)), None)
    return [] if first is None else [(first, "not-finite", "critical")]


def always_silent(rows: Sequence[Row]) -> list[Alert]:
    """Nothing. It has no false alarm."""
    del rows
    return []


def _nonfinite(row: Row) -> bool:
    return row.kind != "summary" and any(value is not None and not math.isfinite(value) for value in row.logs.values())


BASELINES: dict[str, Callable[[Sequence[Row]], list[Alert]]] = {
    "fixed-thresholds": fixed_thresholds,
    "nan-only": nan_only,
    "always-silent": always_silent,
}
"""Name in the results, and the judge."""
