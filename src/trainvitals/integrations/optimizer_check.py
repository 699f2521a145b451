"""Does the optimizer hold what is to be trained, does all of it get gradients, and did its state survive a resume?

Three things that are true of every healthy run whatever it learns, each known from the first updates. What was made trainable after the
optimizer was built is in no group of it; what the graph does not reach never has a gradient; and a checkpoint without ``optimizer.pt``
(``save_only_model=True``, a folder copied in part) is resumed by transformers without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

EARLY = 20
"""Updates in which ``optim.never_reached_fraction`` is told each time; later only when it changes."""
OF_SOME_INPUTS = ("expert", "visual", "vision", "image", "audio", "speech", "pooler")
"""Parts of names of what only some inputs reach: experts without tokens, the tower of pictures under text, an unused pooler."""


class OptimizerCheck:
    """Looks at the trained parameters around each update; costs a walk over those that have not had a gradient yet."""

    def __init__(self) -> None:
        self._trainable = -1
        self._updates = 0
        self._whole = 0
        self._waiting: list[torch.nn.Parameter] = []
        self._resumed = False
        self._had_state: set[int] | None = None

    def begin(self, *, resumed: bool) -> None:
        """A training begins, or goes on from a checkpoint."""
        self._trainable, self._resumed, self._had_state = -1, resumed, None

    def before(self, model: torch.nn.Module, trainable: Sequence[torch.nn.Parameter], optimizer: Any) -> dict[str, float]:
        """Signals known once the gradients are there and before they are used."""
        if not trainable:
            return {}
        values = {"optim.trainable_with_grad": sum(p.grad is not None for p in trainable) / len(trainable)}
        if len(trainable) != self._trainable:  # at the start, and when something was frozen or thawed
            self._trainable, self._updates = len(trainable), 0
            self._whole = sum(p.numel() for p in trainable)
            spared = {id(p) for name, p in model.named_parameters() if any(part in name.lower() for part in OF_SOME_INPUTS)}
            self._waiting = [p for p in trainable if id(p) not in spared]
            values.update(left_out(trainable, optimizer))
        if self._resumed:
            self._resumed, self._had_state = False, with_state(optimizer)
        known, self._updates = len(self._waiting), self._updates + 1
        if known:
            self._waiting = [p for p in self._waiting if p.grad is None]
        if self._whole and (self._updates <= EARLY or len(self._waiting) != known):
            values["optim.never_reached_fraction"] = sum(p.numel() for p in self._waiting) / self._whole
        return values

    def after(self, optimizer: Any) -> dict[str, float]:
        """After the first update that follows a resume: of the parameters with state, the share that had some before. Else nothing."""
        before, self._had_state = self._had_state, None
        now = set() if before is None else with_state(optimizer)
        # An optimizer that keeps no state (SGD without momentum) has none to lose.
        return {"optim.state_restored_fraction": len(now & (before or set())) / len(now)} if now else {}


def left_out(trainable: Iterable[torch.nn.Parameter], optimizer: Any) -> dict[str, float]:
    """``optim.left_out_fraction``: of the numbers that have a gradient, the share that is in no group of the optimizer.

    Nothing where gradients are used by other means (transformers' layer-wise optimizers hold dummies) or there are none.
    """
    if optimizer is None or "Dummy" in type(getattr(optimizer, "optimizer", optimizer)).__name__:
        return {}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    sizes = [(p.numel(), id(p) in held) for p in trainable if p.grad is not None]
    whole = sum(size for size, _ in sizes)
    return {"optim.left_out_fraction": sum(size for size, inside in sizes if not inside) / whole} if whole else {}


def with_state(optimizer: Any) -> set[int]:
    """Parameters for which the optimizer keeps something, moments for example, by their ids; accelerate's wrapper is looked through."""
    inner = getattr(optimizer, "optimizer", optimizer)
    state = getattr(inner, "state", None)
    return {id(p) for p, kept in state.items() if kept and isinstance(p, torch.Tensor)} if state else set()
