"""Family: reward models in training: two scores per pair, one for the chosen and one for the rejected response.

TRL logs means. How margins are spread, whether the scores follow the length of the responses, and whether the two responses of
a pair differ at all, is only in the batch and in its scores.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({
    "preference.margin_std", "preference.negative_margin_fraction", "preference.identical_fraction", "preference.score_std",
    "preference.length_correlation", "preference.longer_chosen_fraction", "preference.score_bound_fraction",
})  # fmt: skip
"""Signals that only these wraps give."""

_STEP_LIMIT = 4096  # as in hooks.py
_NEWEST = 256  # scores that are looked at for a bound
_FEWEST = 64  # of them at least: the smallest and the largest are at the ends by definition
_AT_END = 1e-3  # of the range of the scores: two grades of a linear layer are wider, as they move with every update


def install(hooks: Hooks) -> None:
    """Read the scores, which TRL hands to `accelerator.gather` in every loss, and the pairs that they belong to."""
    trainer = hooks.trainer
    if not hasattr(trainer.args, "center_rewards_coefficient"):
        return
    reader = _Scores(hooks)
    hooks.wrap(trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=SIGNALS, needed=True)
    hooks.wrap(getattr(trainer, "accelerator", None), "gather", reader.after_gather, needed=True)
    hooks.at_step_end.append(reader.step_end)


class _Scores:
    """What one step has gathered so far."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._ids: torch.Tensor | None = None  # of the micro-batch whose loss is being computed
        self._scores: torch.Tensor | None = None
        self._parts: list[torch.Tensor] = []
        self._newest: deque[float] = deque(maxlen=_NEWEST)

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """A loss begins: wait for its scores."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        self._ids = inputs.get("input_ids") if self._hooks.training else None
        self._scores = None
        return args

    def after_gather(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Scores of this rank: the one thing gathered in a loss that has a number for every row of the batch."""
        local = args[0] if args else kwargs.get("tensor")
        if self._ids is None or self._scores is not None or not isinstance(local, torch.Tensor):
            return
        if local.is_floating_point() and local.numel() == self._ids.shape[0]:
            self._scores = local.detach().reshape(-1)

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Put scores and lengths of the micro-batch together."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        ids, scores = self._ids, self._scores
        self._ids = self._scores = None
        if ids is None or len(self._parts) >= _STEP_LIMIT:
            return
        if scores is None:
            msg = "the loss did not gather its scores, so margins and lengths cannot be read"
            raise LookupError(msg)
        with torch.no_grad():
            chosen, rejected, same = pair_lengths(ids, inputs["attention_mask"])
            self._parts.append(torch.stack([*scores.double().chunk(2), chosen.double(), rejected.double(), same.double()]))

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        if self._parts:
            self._hooks.put([torch.cat(self._parts, dim=1)], self._signals)
        self._parts = []

    def _signals(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        table = tensors[0]
        self._newest.extend(table[:2].flatten().tolist())
        share = at_the_ends(self._newest)
        return score_signals(*table) | ({} if share is None else {"preference.score_bound_fraction": share})


def pair_lengths(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of the chosen and the rejected response of each pair behind their common beginning, and whether they are the same.

    Args:
        ids: Token ids of TRL's collator: first all chosen sequences, then all rejected ones.
        mask: Attention mask, padding on the right.
    """
    chosen, rejected = ids.chunk(2)
    first, second = (part.bool() for part in mask.chunk(2))
    prefix = ((chosen == rejected) & first & second).long().cumprod(1).sum(1)
    lengths = first.sum(1) - prefix, second.sum(1) - prefix
    return *lengths, (lengths[0] == 0) & (lengths[1] == 0)


def at_the_ends(scores: Sequence[float]) -> float | None:
    """Share of scores that are next to the smallest or the largest of them; None for too few, for equal ones, and for those that are not finite."""
    low, high = (min(scores), max(scores)) if len(scores) >= _FEWEST else (0.0, 0.0)
    near = _AT_END * (high - low)
    if not math.isfinite(near) or not near > 0 or not all(math.isfinite(one) for one in scores):
        return None
    return sum(one - low < near or high - one < near for one in scores) / len(scores)


def score_signals(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_length: torch.Tensor, rejected_length: torch.Tensor, same: torch.Tensor
) -> dict[str, float]:
    """Signals of one step.

    Args:
        chosen: Score of each pair's chosen response.
        rejected: Score of each pair's rejected response.
        chosen_length: Tokens of the chosen response.
        rejected_length: Tokens of the rejected response.
        same: 1 where the two responses are the same.
    """
    margin = chosen - rejected
    values = {
        "preference.negative_margin_fraction": float((margin < 0).double().mean()),
        "preference.identical_fraction": float(same.mean()),
        "preference.longer_chosen_fraction": float(((chosen_length - rejected_length).sign().mean() + 1) / 2),
        "preference.score_std": float(torch.cat([chosen, rejected]).std()),
    }
    if len(margin) > 1:
        values["preference.margin_std"] = float(margin.std())
    score = torch.cat([chosen - chosen.mean(), rejected - rejected.mean()])
    length = torch.cat([chosen_length - chosen_length.mean(), rejected_length - rejected_length.mean()])
    scale = float(torch.linalg.vector_norm(score) * torch.linalg.vector_norm(length))
    if scale > 0:
        values["preference.length_correlation"] = max(-1.0, min(1.0, float(score @ length) / scale))
    return values
