"""Numbers of distillation from logits: divergence, student entropy, how surprised the teacher is. No trainer, no synchronisation.

Trainers log a loss that is a divergence only in some modes, and GKD's is divided by the labels of the batch *before* the student
rewrote it. Where logits are at hand, a fixed number of their positions is enough for what a health check wants to know, at the
cost of one matrix of `SAMPLE` rows beside the batch's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

SAMPLE = 256
"""Positions that are looked at per micro-batch; entropies of a few hundred tokens are known to about 5 %."""


def positions(mask: torch.Tensor, count: int = SAMPLE) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices of up to `count` positions where `mask` is set, evenly spread, and their weights (0 beyond the last).

    Both have a fixed shape, so that nothing waits for the device to know how many there are.
    """
    flat = mask.reshape(-1) != 0
    count = min(count, flat.numel())
    seen = flat.cumsum(0)
    total = seen[-1]
    number = torch.arange(1, count + 1, device=flat.device)
    wanted = torch.where(total > count, (number * total + count - 1) // count, number)
    index = torch.searchsorted(seen, wanted.to(seen.dtype)).clamp(max=flat.numel() - 1)
    return index, (wanted <= total).float()


def rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of a (batch, length, width) tensor at flat indices, as float32; never copies the whole of a sliced tensor."""
    length = table.size(1)
    return table[index // length, index % length].detach().float()


def sampled(student: torch.Tensor, teacher: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums over the sampled positions: weights, student entropy, teacher's surprise, reverse KL, k3 estimate of it.

    Args:
        student: Logits of the student, (positions, vocabulary).
        teacher: Logits of the teacher, the same shape.
        tokens: The token that is trained on, per position.
        weight: 1 or 0 per position.
    """
    own, other = student.log_softmax(-1), teacher.log_softmax(-1)
    chance = own.exp()
    said = other.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    parts = [torch.ones_like(weight), -(chance * own).sum(-1), -said, (chance * (own - other)).sum(-1)]
    return torch.stack([(torch.where(weight > 0, part, 0.0)).sum() for part in parts])


def sampled_signals(sums: torch.Tensor, vocabulary: int, *, divergence: bool) -> dict[str, float]:
    """Signals of one step from the `sampled` sums of its micro-batches.

    Args:
        sums: One row per micro-batch.
        vocabulary: Number of tokens: a uniform guess costs ``ln(vocabulary)`` nats.
        divergence: Also give the reverse KL, where the trainer's own loss is none.
    """
    weight, entropy, surprise, reverse = (float(x) for x in sums.double().sum(0))
    if not weight:
        return {}
    values = {"policy.entropy": entropy / weight, "distill.teacher_surprise": surprise / weight / math.log(vocabulary)}
    if divergence:
        values["distill.divergence"] = _not_negative(reverse / weight)
    return values


def per_token(sums: torch.Tensor) -> dict[str, float]:
    """Divergence of one step from (sum of the divergence, number of tokens) of its micro-batches."""
    whole, tokens = (float(x) for x in sums.double().sum(0))
    return {"distill.divergence": _not_negative(whole / tokens)} if tokens else {}


def estimated(sums: torch.Tensor, vocabulary: int) -> dict[str, float]:
    """Signals from log-probabilities of sampled tokens alone: (tokens, k3 sum, teacher's surprise) of each micro-batch."""
    tokens, reverse, surprise = (float(x) for x in sums.double().sum(0))
    if not tokens:
        return {}
    return {"distill.divergence": reverse / tokens, "distill.teacher_surprise": surprise / tokens / math.log(vocabulary)}


def token_sums(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """For `estimated`: reverse KL by its k3 estimate ``exp(t - s) - 1 - (t - s)``, which is never negative."""
    keep = mask != 0
    gap = torch.where(keep, teacher.detach().float() - student.detach().float(), 0.0)
    surprise = torch.where(keep, -teacher.detach().float(), 0.0)
    return torch.stack([keep.sum().float(), (gap.exp() - 1 - gap).sum(), surprise.sum()])


def _not_negative(value: float) -> float:
    """Rounding makes a divergence of equal distributions slightly negative; NaN stays NaN."""
    return 0.0 if -1e-3 < value < 0 else value


def weight_pairs(student: Any, teacher: Any, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Up to `count` parameters of a student beside the teacher's own, spread over the model; none when they are sharded."""
    theirs = dict(teacher.named_parameters())
    found = [(mine, theirs[name]) for name, mine in student.named_parameters() if name in theirs and theirs[name].shape == mine.shape]
    if not found or any(type(mine).__name__ == "DTensor" or not mine.numel() for mine, _ in found):
        return []
    step = max(1, len(found) // count)
    return found[::step][:count]


def distance(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], limit: int = 65536) -> torch.Tensor:
    """Squared distance of the first `limit` numbers of each pair, and the squared norm of the teacher's."""
    with torch.no_grad():
        mine = [pair[0].detach().reshape(-1)[:limit].float() for pair in pairs]
        theirs = [pair[1].detach().reshape(-1)[:limit].float().to(own.device) for pair, own in zip(pairs, mine, strict=True)]
        device = mine[0].device
        gaps = [((a - b) ** 2).sum().to(device) for a, b in zip(mine, theirs, strict=True)]
        return torch.stack([torch.stack(gaps).sum(), torch.stack([(b**2).sum().to(device) for b in theirs]).sum()])


def distance_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Relative distance of the weights from what `distance` gave."""
    gap, norm = (float(x) for x in tensors[0].double())
    return {"distill.teacher_distance": math.sqrt(gap / norm)} if norm > 0 else {}
