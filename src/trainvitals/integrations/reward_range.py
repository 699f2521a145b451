"""Family: trainers that are paid by a reward *model*: do its inputs stay in the range that they had when the run began?

A reward model is right where its training data were. What it says about texts unlike anything it was asked before is extrapolation, and a
policy that is paid for extrapolation learns to be strange (InfoRM, arXiv:2402.09345, and its follow-up on the share of outliers). Its own data are
seldom at hand, the run's first samples always are.

The feature of a sample is what the score head reads at its last token, without the part along the head's own weight: to move along that is what the
policy is paid for. From the first `REFERENCE` samples come mean and variance of each dimension, from the next `CALIBRATION` ones the distance
that 1 % of them exceed. The distance is the diagonal Mahalanobis distance; features hang together, so that its quantile is measured and not taken from
chi-square. ``reward.model_outside_fraction`` is the share of an update's samples beyond it: 1 % as long as nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"reward.model_outside_fraction"})
"""Signals that only these wraps give."""

REFERENCE = 256
"""Samples from which mean and variance of each dimension come."""
CALIBRATION = 256
"""Samples from which the limit comes."""
_QUANTILE = 0.99
_STEP_LIMIT = 4096  # as in hooks.py


def install(hooks: Hooks) -> None:
    """Read the input of the score head of each reward model that the trainer holds."""
    trainer = hooks.trainer
    functions = getattr(trainer, "reward_funcs", None)
    models = [*(functions if isinstance(functions, list | tuple) else []), getattr(trainer, "reward_model", None)]
    readers = []
    for model in (getattr(model, "module", model) for model in models if isinstance(model, nn.Module)):
        head, backbone = getattr(model, "score", None), getattr(model, getattr(model, "base_model_prefix", ""), None)
        if not isinstance(head, nn.Linear) or head.out_features != 1 or not isinstance(backbone, nn.Module):
            continue
        reader = _Range(hooks, head)
        if hooks.wrap(backbone, "forward", before=reader.before_backbone) and hooks.wrap(head, "forward", before=reader.before_head, gives=SIGNALS):
            readers.append(reader)
            hooks.wrap(trainer, "generate_completions", reader.after_sample, before=reader.before_sample)  # PPO's samples for the log
    if readers:
        hooks.at_step_end.append(lambda: _step_end(hooks, readers))


class _Range:
    """What one reward model was asked at first, and how far what it is asked now is from it."""

    def __init__(self, hooks: Hooks, head: nn.Linear) -> None:
        self._hooks, self._head = hooks, head
        self._mask: torch.Tensor | None = None
        self._off = False
        self._seen = 0
        self._sum: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self.distances: list[torch.Tensor] = []
        self._first: list[float] = []
        self._limit: float | None = None

    def before_sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Samples for the log begin: no part of training."""
        self._off = True
        return args

    def after_sample(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """They are over."""
        self._off = False

    def before_backbone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Which tokens are about to be scored."""
        self._mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        return args

    def before_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Features of one batch, on the device; nothing is waited for."""
        hidden, mask, self._mask = args[0], self._mask, None
        if self._off or not self._hooks.training or hidden.dim() != 3 or len(self.distances) >= _STEP_LIMIT:
            return args
        with torch.no_grad():
            self._take(last_features(hidden, mask, self._head.weight))
        return args

    def _take(self, features: torch.Tensor) -> None:
        if self._seen < REFERENCE:
            total, squares = features.sum(0), (features * features).sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._squares = squares if self._squares is None else self._squares + squares
            self._seen += len(features)
            return
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._seen
        variance = (self._squares / self._seen - mean * mean).clamp(min=1e-12)
        self.distances.append(((features - mean) ** 2 / variance).mean(1))

    def outside(self, distances: list[float]) -> float | None:
        """Share of the samples of an update beyond the limit; None while the limit is being found."""
        if self._limit is None:
            self._first += distances
            if len(self._first) >= CALIBRATION:
                self._limit = float(np.quantile(self._first, _QUANTILE))
                self._first = []
            return None
        return sum(not distance <= self._limit for distance in distances) / len(distances)


def last_features(hidden: torch.Tensor, mask: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """What the head reads at the last token of each sample, without the part along its weight, in double precision.

    Args:
        hidden: Hidden states, shape (batch, time, width).
        mask: 1 for tokens, on whichever side the padding is; None when there is none.
        weight: Weight of the head, shape (1, width).
    """
    if mask is None or mask.dim() != 2:
        features = hidden[:, -1]
    else:
        places = torch.arange(mask.shape[1], device=mask.device)
        features = hidden[torch.arange(len(hidden), device=hidden.device), (mask.long() * places).argmax(1).to(hidden.device)]
    features, direction = features.double(), weight.detach().double().reshape(-1)
    direction = direction / torch.linalg.vector_norm(direction).clamp(min=1e-12)
    return features - (features @ direction).unsqueeze(1) * direction


def _step_end(hooks: Hooks, readers: list[_Range]) -> None:
    """Hand over the distances of this step; of several reward models the one with the largest share counts."""
    parts = [(reader, torch.cat(reader.distances)) for reader in readers if reader.distances]
    for reader in readers:
        reader.distances = []
    if not parts:
        return

    def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
        told = [reader.outside(tensor.tolist()) for (reader, _), tensor in zip(parts, tensors, strict=True)]
        shares = [share for share in told if share is not None]
        return {"reward.model_outside_fraction": max(shares)} if shares else {}

    hooks.put([tensor for _, tensor in parts], compute)
