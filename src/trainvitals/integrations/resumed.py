"""Family: what a resumed run got back from its checkpoint.

transformers loads optimizer and scheduler only if both files are there, and says nothing when they are not: a checkpoint that was saved with
``save_only_model=True``, or copied without its large files, goes on with empty moments and a schedule that begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"optim.state_missing"})
"""Signals that only these wraps give."""


def install(hooks: Hooks) -> None:
    """Look at the optimizer when the trainer has loaded what it found. Sharded optimizers are loaded by others."""
    from trainvitals.integrations.facts import sharded  # which imports the list of families

    if sharded(hooks.trainer.args):
        return
    told = [0.0]  # transformers 5 does not even call the method in a fresh run

    def after_load(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        checkpoint = args[0] if args else kwargs.get("checkpoint")
        told[:] = [float(checkpoint is not None and empty(hooks.trainer.optimizer))]

    def tell() -> None:
        if told:
            hooks.give("optim.state_missing", told.pop())

    hooks.wrap(hooks.trainer, "_load_optimizer_and_scheduler", after_load, gives=SIGNALS)
    hooks.at_step_end.append(tell)


def empty(optimizer: Any) -> bool:
    """Whether an optimizer of Adam's family, which always keeps moments once it has stepped, has none."""
    groups = getattr(optimizer, "param_groups", None) or []
    adam = any("betas" in group for group in groups)
    return adam and not getattr(optimizer, "state", True)
