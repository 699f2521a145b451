"""Whether answers that earn the highest reward there is satisfy the held-out checker: both scores of the same answers.

Two curves of different scales and prompts can be compared by their trends alone. `heldout.HeldoutProbe` has a checker in hand, and the hook on the reward functions has
answers whose rewards are known, so at an evaluation the checker is asked about some of the training's own answers. An answer with the highest reward of the run and the
lowest mark of the checker was paid for something else, whatever the scales are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEW = 8
"""Answers with the highest reward, below which nothing is said: one more or less would be more than a tenth."""
_SAME = 1e-9


@dataclass(slots=True)
class Answers:
    """Answers of the newest training batch beside what they earned; nothing is kept while nobody wants any.

    Attributes:
        wanted: How many to keep, from the first; 0 for none.
        given: What a reward function was given: ``prompts``, ``completions``, ``completion_ids`` and the columns of the data set.
        rewards: Rewards of all ranks ``[completion, function]``, their weights, and where the answers of this rank begin: left on the device.
    """

    wanted: int = 0
    given: dict[str, list[Any]] = field(default_factory=dict)
    rewards: tuple[torch.Tensor, torch.Tensor, int] | None = None

    def keep(self, args: Sequence[Any], matrix: Any, weights: Any, start: int) -> None:
        """Take a batch as TRL's ``_calculate_rewards(inputs, prompts, completions, completion_ids_list)`` got it, with the rewards it returned."""
        if not self.wanted or len(args) < 4 or not isinstance(matrix, torch.Tensor):
            return
        inputs, prompts, completions, ids = (list(rows)[: self.wanted] for rows in args[:4])
        columns = set(inputs[0]) - {"prompt", "completion", "completion_ids"} if inputs else set()
        self.given = {**{name: [row.get(name) for row in inputs] for name in columns}, "prompts": prompts, "completions": completions, "completion_ids": ids}
        self.rewards = matrix, weights, start

    def totals(self) -> Floats:
        """Weighted sum of the rewards of each answer kept, NaN where no function scored it. Waits for the device."""
        if self.rewards is None:
            return np.zeros(0)
        matrix, weights, start = self.rewards
        own = matrix[start : start + len(self.given["prompts"])].double().cpu().numpy()
        total: Floats = np.nansum(own * weights.double().cpu().numpy(), axis=1)
        total[np.isnan(own).all(axis=1)] = np.nan
        return total


@dataclass(slots=True)
class Marks:
    """Range of what a checker has given, and the best that it has given to an answer of the training."""

    low: float = math.inf
    high: float = -math.inf
    best: float = -math.inf

    def see(self, marks: Sequence[float | None], *, trained: bool = False) -> None:
        """Widen the range by the finite marks."""
        finite = [mark for mark in marks if mark is not None and math.isfinite(mark)]
        if finite:
            self.low, self.high = min(self.low, *finite), max(self.high, *finite)
            self.best = max(self.best, *finite) if trained else self.best


def unearned(totals: Floats, top: float, marks: Sequence[float | None], seen: Marks) -> float | None:
    """Share of the answers with the highest reward that have the checker's lowest mark.

    Args:
        totals: Reward of each answer.
        top: The highest reward of the run.
        marks: The checker's mark of each answer; None where it has none.
        seen: What the checker has given in this run, these marks included.

    Returns:
        0 to 1; None with fewer than `FEW` such answers, where the checker has always said the same, and where it never gave an answer of the training more than its
        lowest mark: then it may not know these prompts at all.
    """
    if len(totals) != len(marks) or not seen.best > seen.low + _SAME:
        return None
    paid = [mark for total, mark in zip(totals, marks, strict=True) if total >= top - _SAME and mark is not None and math.isfinite(mark)]
    return sum(mark <= seen.low + _SAME for mark in paid) / len(paid) if len(paid) >= FEW else None


def ask(answers: Answers, top: float, columns: Sequence[str], seen: Marks, score: Callable[[dict[str, Any]], Sequence[float | None]]) -> float | None:
    """`unearned` of the answers kept, whose marks `score` gives; None where there are none, or where they lack a column that the checker's own prompts have."""
    totals = answers.totals()
    if not len(totals) or not set(columns) - {"prompt"} <= set(answers.given):
        return None
    marks = score(dict(answers.given))
    seen.see(marks, trained=True)
    finite = totals[np.isfinite(totals)]
    return unearned(totals, max(top, *finite) if len(finite) else top, marks, seen)
