"""How far one optimizer step moves the weights: ``optim.update_ratio``, relative to their size; what rounding took of it: ``optim.update_lost_fraction``; and
whether anything else moved them: ``optim.moved_outside_ratio``.

The learning rate says how far a step should go, this says how far it went: a rate that is far too high shows here from the first
update on, before loss or reward can tell. Copying all weights would double their memory, so a fixed sample stands for them: every
so manieth number of up to `TENSORS` matrices, `NUMBERS` of each at most. The sample is a vector of at most 256 KiB on the weights'
own device; nothing is read from there within the step. Weights have a rhythm (LoRA's A and B in turn, seven projections a layer, rows of
4,096 numbers), so neither choice may have one: an even stride would see one kind of matrix, or one column of each.

A number in bfloat16 has eight bits: a step below 1/512 of it is rounded away, at every update anew, and nothing else in a run says so (arXiv:2010.06192,
section 3). It is counted among the numbers of the sample that had a gradient, where the optimizer writes into these weights themselves: with a finer copy
behind them, as DeepSpeed keeps one, nothing is lost.

Between two updates nobody writes the weights. What they were after one update they must be before the next, to the last bit: a checkpoint of another
run that is loaded, a callback that scales or averages, or memory that went bad shows there, and at the update at which it happens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch

from trainvitals.integrations.adapters import trainable_fraction
from trainvitals.integrations.later import Later

TENSORS = 16
NUMBERS = 4096
MARKED = 8
"""Numbers of each tensor that a checkpoint remembers beside our state."""
ROUGH = (torch.bfloat16, torch.float16)
"""Types of weights in which a small step can be lost."""
IN_PLACE = ("torch.optim", "bitsandbytes.optim", "transformers.optimization")
"""Modules of optimizers that write into the weights that they are given, without a finer copy and without stochastic rounding."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples with 1, 4, 9, ... are spread evenly and keep no time with anything


class UpdateSize:
    """Takes a sample of the weights before a step and compares it after the step."""

    def __init__(self) -> None:
        self._views: list[torch.Tensor] = []
        self._before: torch.Tensor | None = None
        self._model: torch.nn.Module | None = None
        self._vectors: list[torch.Tensor] = []  # norms and biases are few numbers, and decide much
        self._left: list[torch.Tensor] = []  # matrices and vectors as the newest update left them, each joined
        self._expected: list[float] = []
        self._sampled: list[torch.nn.Parameter] = []
        self._rough: set[int] = set()
        self._asked: torch.Tensor | None = None  # which numbers of the sample are rough and had a gradient

    def begin(self) -> None:
        """A training begins: whatever was done to the weights before it is nobody's business."""
        self._left = []

    def mark(self) -> list[float]:
        """A few numbers of each sampled tensor as the newest update left them, for the checkpoint."""
        return marked([*self._views, *self._vectors]) if self._left else []

    def expect(self, mark: list[float]) -> None:
        """The run goes on from a checkpoint with that `mark`: the next `before` says whether these are its weights."""
        self._expected = mark

    def before(self, model: torch.nn.Module, optimizer: Any = None, later: Later | None = None) -> dict[str, float]:
        """Remember the sample; call it when the gradients are there and the step is not done.

        Args:
            model: What is trained.
            optimizer: What moves it. None: it is not known, and nothing is said of rounding.
            later: Takes what moved the weights since the update before; None: it is not asked.

        Returns:
            ``optim.trainable_fraction``, the first time that a model is seen; after a resume ``optim.resumed_differing_fraction``.
        """
        new = model is not self._model
        if new:
            chosen, moved = sampled(model.parameters()), moved_in_place(optimizer)
            self._model, self._views = model, [strided(p.detach()) for p in chosen]
            self._sampled, self._rough = chosen, {id(p) for p in chosen if p.dtype in ROUGH and id(p) in moved}
            self._vectors, self._left = vectors(model.parameters()), []
        self._before = _joined(self._views)
        if later is not None and self._left and "Dummy" not in type(getattr(optimizer, "optimizer", optimizer)).__name__:  # a layer-wise optimizer steps in the backward pass
            now = _parts(self._before, self._vectors)
            later.put([norm for new, old in zip(now, self._left, strict=True) for norm in ((new - old).norm(), old.norm())], moved_outside)
        self._asked = torch.cat([asked(p, id(p) in self._rough) for p in self._sampled]) if self._rough else None
        values = {"optim.trainable_fraction": trainable_fraction(model)} if new else {}
        expected, self._expected = self._expected, []
        return {**values, **differing(expected, marked([*self._views, *self._vectors]))} if expected else values

    def after(self, later: Later) -> None:
        """Compare; call it after the step. Without `before` nothing happens."""
        before, self._before = self._before, None
        if before is None:
            return
        now = _joined(self._views)
        assert now is not None
        self._left = _parts(now, self._vectors)
        moved = torch.linalg.vector_norm(now - before)
        later.put([moved, torch.linalg.vector_norm(before)], update_ratio)
        if self._asked is not None:
            later.put([((now == before) & self._asked).sum(), self._asked.sum()], lost_fraction)


def sampled(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The matrices that stand for all trainable ones, `TENSORS` at most.

    Matrices on other devices than the first, sharded ones and ones that do not lie in one piece are left out.
    """
    fitting = [p for p in parameters if p.requires_grad and p.dim() >= 2 and p.is_contiguous() and type(p.data).__name__ != "DTensor"]
    fitting = [p for p in fitting if p.device == fitting[0].device and p.numel() > 0]
    return [fitting[place] for place in places(len(fitting))]


def vectors(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Views on up to `TENSORS` of the trainable vectors, on the device of the first, `NUMBERS` numbers of each."""
    fitting = [p for p in parameters if p.requires_grad and p.dim() == 1 and type(p.data).__name__ != "DTensor" and p.numel() > 0]
    fitting = [p for p in fitting if p.device == fitting[0].device]
    return [fitting[place].detach()[:NUMBERS] for place in places(len(fitting))]


def strided(matrix: torch.Tensor) -> torch.Tensor:
    """View on the numbers that stand for a matrix, `NUMBERS` at most: it shows them as they are whenever it is read."""
    return matrix.view(-1)[:: stride(matrix.numel(), matrix.shape[-1])][:NUMBERS]


def asked(p: torch.nn.Parameter, rough: bool) -> torch.Tensor:
    """Which of a matrix's numbers in the sample had a gradient; none where it is not `rough`."""
    if not rough or p.grad is None or not p.grad.is_contiguous():
        return torch.zeros(len(strided(p.detach())), dtype=torch.bool, device=p.device)
    return strided(p.grad) != 0


def moved_in_place(optimizer: Any) -> set[int]:
    """Ids of the parameters that an optimizer of `IN_PLACE` writes into; accelerate's wrapper is looked through."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if inner is None or not type(inner).__module__.startswith(IN_PLACE):
        return set()
    return {id(p) for group in inner.param_groups for p in group["params"]}


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


def _parts(matrices: torch.Tensor, vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    joined = _joined(vectors)
    return [matrices] if joined is None else [matrices, joined]


def _joined(views: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat([view.float() for view in views]) if views else None


def update_ratio(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Norm of the change over norm of the weights before it; nothing where all sampled weights were zero."""
    moved, size = (float(tensor) for tensor in tensors)
    return {"optim.update_ratio": moved / size} if size != 0.0 else {}


def lost_fraction(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Share of the numbers with a gradient that are after the step what they were before it; nothing where none had one."""
    lost, asked = (float(tensor) for tensor in tensors)
    return {"optim.update_lost_fraction": lost / asked} if asked else {}


def moved_outside(tensors: list[torch.Tensor]) -> dict[str, float]:
    """``optim.moved_outside_ratio``: norm of what changed over norm of what was, of matrices or of vectors, whichever is larger; NaN where weights became NaN.

    Args:
        tensors: Norm of the change and norm before: of the matrices, then of the vectors where there are any. What was all 0 is left out.
    """
    numbers = [float(tensor) for tensor in tensors]
    ratios = [moved / size for moved, size in zip(numbers[::2], numbers[1::2], strict=True) if size != 0.0]
    return {"optim.moved_outside_ratio": max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio)} if ratios else {}


def marked(views: Iterable[torch.Tensor]) -> list[float]:
    """The first `MARKED` numbers of each tensor."""
    return [float(number) for view in views for number in view[:MARKED].tolist()]


def differing(expected: list[float], found: list[float]) -> dict[str, float]:
    """``optim.resumed_differing_fraction``: share of the numbers that a checkpoint remembers which are others now, by more than half precision explains.

    Nothing where another number of them is sampled: something else is trained, by another plan.
    """
    if len(found) != len(expected):
        return {}
    others = [not abs(now - then) <= 0.01 * abs(then) + 1e-6 for now, then in zip(found, expected, strict=True)]
    return {"optim.resumed_differing_fraction": sum(others) / len(others)}
