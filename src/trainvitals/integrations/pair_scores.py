"""Family: scores of the two answers that a policy writes to each prompt (online DPO).

TRL logs their mean alone, and turns a score that a reward function could not give into 0. So the functions are heard for the time of
one call: ties, ends and spread of the scores, what each function gave and how often it failed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainvitals.integrations.grpo import RewardRange, reward_signals

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

TIES = frozenset({"preference.tied_fraction"})
ENDS = frozenset({"reward.max", "reward.min", "reward.std"})
HEARD = frozenset({
    "reward.unscored_fraction", "reward.component_mean", "reward.component_std", "reward.component_share",
    "reward.component_unscored_fraction", "reward.component_zero_fraction", "reward.unpaid_mean",
})  # fmt: skip
"""What can be told where functions score; a reward model scores everything, and is not heard."""

_STEP_LIMIT = 4096  # as in hooks.py


def tie_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Share of pairs whose two scores are equal, ends and spread of all scores; scores come as first samples, then second samples."""
    ties = pairs = 0
    for scores in tensors:
        first, second = scores.reshape(-1).chunk(2)
        ties += int((first == second).sum())
        pairs += len(first)
    if not pairs:
        return {}
    known = torch.cat([scores.reshape(-1) for scores in tensors])
    known = known[torch.isfinite(known)]
    ends = {"reward.max": float(known.max()), "reward.min": float(known.min())} if len(known) else {}
    spread = {"reward.std": float(known.double().std())} if len(known) > 1 else {}
    return {"preference.tied_fraction": ties / pairs, **ends, **spread}


def heard_signals(columns: Sequence[Sequence[Any]], weights: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """What each reward function gave (None or NaN where it could not), one column per function.

    Returns:
        ``reward.component_*``, ``reward.unpaid_mean``, and in ``reward.unscored_fraction`` the share of answers that no function could score.
    """
    matrix = np.asarray([[np.nan if value is None else float(value) for value in column] for column in columns], dtype=np.float64).T
    values, _ = reward_signals(matrix, np.asarray(weights, dtype=np.float64), names, 1, RewardRange())
    return {name: value for name, value in values.items() if name not in ENDS}


class PairScores:
    """Hears one trainer's reward functions.

    Attributes:
        scores: Of each micro-batch of the step, on its device: first samples, then second samples.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.scores: list[torch.Tensor] = []
        self._functions: list[Any] | None = None  # the trainer's own while ours stand in for them
        self._call: list[Sequence[Any]] = []
        self._columns: list[list[Any]] = []

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """For this one call, listen to what the reward functions return: TRL turns a failure into a score of 0."""
        functions = self._hooks.trainer.reward_funcs
        if self._functions is None and isinstance(functions, list):
            self._functions, self._call = list(functions), []
            functions[:] = [function if isinstance(function, torch.nn.Module) else self._heard(function) for function in functions]
        return args

    def _heard(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if isinstance(result, list | tuple):
                self._call.append(result)
            return result

        return call

    def after(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Scores of the sampled pairs of one micro-batch."""
        functions, call = self._functions, self._call
        if functions is not None:
            self._hooks.trainer.reward_funcs[:] = functions
            self._functions, self._call = None, []
        if not self._hooks.training or len(self.scores) >= _STEP_LIMIT:
            return
        if functions and len(call) == len(functions):
            self._columns = [[*had, *new] for had, new in zip(self._columns or [[]] * len(call), call, strict=True)]
        self.scores.append(result.detach().clone())  # TRL subtracts its penalty in place

    def step_end(self) -> None:
        """Hand over the step."""
        hooks, trainer = self._hooks, self._hooks.trainer
        if self._columns:
            weights = getattr(trainer, "reward_weights", None)
            shares = [1.0] * len(self._columns) if weights is None else [float(weight) for weight in weights]
            names = [getattr(function, "__name__", type(function).__name__) for function in trainer.reward_funcs]
            for name, value in heard_signals(self._columns, shares, names).items():
                hooks.give(name, value)
        if self.scores:
            hooks.put(self.scores, tie_signals)
        self.scores, self._columns = [], []
