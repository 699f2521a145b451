"""How far one optimizer step moves the weights, relative to their size: ``optim.update_ratio``.

The learning rate says how far a step should go, this says how far it went: a rate that is far too high shows here from the first
update on, before loss or reward can tell. Copying all weights would double their memory, so a fixed sample stands for them: every
so manieth number of up to `TENSORS` matrices, `NUMBERS` of each at most. The sample is a vector of at most 256 KiB on the weights'
own device; nothing is read from there within the step. Weights have a rhythm (LoRA's A and B in turn, seven projections a layer, rows of
4,096 numbers), so neither choice may have one: an even stride would see one kind of matrix, or one column of each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch

from trainvitals.integrations.adapters import trainable_fraction
from trainvitals.integrations.later import Later

TENSORS = 16
NUMBERS = 4096
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples with 1, 4, 9, ... are spread evenly and keep no time with anything


class UpdateSize:
    """Takes a sample of the weights before a step and compares it after the step."""

    def __init__(self) -> None:
        self._views: list[torch.Tensor] = []
        self._before: torch.Tensor | None = None
        self._model: torch.nn.Module | None = None

    def before(self, model: torch.nn.Module) -> dict[str, float]:
        """Remember the sample; call it when the gradients are there and the step is not done.

        Returns:
            ``optim.trainable_fraction``, the first time that a model is seen.
        """
        new = model is not self._model
        if new:
            self._model, self._views = model, sample(model.parameters())
        self._before = _joined(self._views)
        return {"optim.trainable_fraction": trainable_fraction(model)} if new else {}

    def after(self, later: Later) -> None:
        """Compare; call it after the step. Without `before` nothing happens."""
        before, self._before = self._before, None
        if before is None:
            return
        now = _joined(self._views)
        assert now is not None
        moved = torch.linalg.vector_norm(now - before)
        later.put([moved, torch.linalg.vector_norm(before)], update_ratio)


def sample(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Views on the numbers that stand for all trainable matrices: they show the weights as they are whenever they are read.

    Matrices on other devices than the first, sharded ones and ones that do not lie in one piece are left out.
    """
    fitting = [p for p in parameters if p.requires_grad and p.dim() >= 2 and p.is_contiguous() and type(p.data).__name__ != "DTensor"]
    fitting = [p for p in fitting if p.device == fitting[0].device and p.numel() > 0]
    return [p.detach().view(-1)[:: stride(p.numel(), p.shape[-1])][:NUMBERS] for p in (fitting[i] for i in places(len(fitting)))]


def places(count: int) -> list[int]:
    """Up to `TENSORS` of `count` places: one in each of equal stretches, at a point of the stretch that wanders without a rhythm."""
    if count <= TENSORS:
        return list(range(count))
    edges = [i * count // TENSORS for i in range(TENSORS + 1)]
    return [begin + int(i * i * _GOLDEN % 1 * (end - begin)) for i, (begin, end) in enumerate(itertools.pairwise(edges))]


def stride(numbers: int, row: int) -> int:
    """Step through a matrix that gives `NUMBERS` numbers or somewhat fewer, from all its rows and columns in turn.

    Args:
        numbers: Of the matrix.
        row: Of one row; a step with a common factor would come back to the same columns.
    """
    step = max(1, numbers // NUMBERS)
    while math.gcd(step, row) > 1:
        step += 1
    return step


def _joined(views: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat([view.float() for view in views]) if views else None


def update_ratio(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Norm of the change over norm of the weights before it; nothing where all sampled weights were zero."""
    moved, size = (float(tensor) for tensor in tensors)
    return {"optim.update_ratio": moved / size} if size != 0.0 else {}
