"""`attach`: what a callback cannot see, read from the trainer itself. Two lines give every signal::

    from trainvitals.integrations.trl import attach

    trainer = GRPOTrainer(...)
    attach(trainer)
    trainer.train()

`attach` adds a `VitalsCallback` and `Hooks`: wraps, on this *instance* only, of the methods that hold the raw numbers.
"""

from __future__ import annotations

from typing import Any

from trainvitals.integrations.families import FAMILIES
from trainvitals.integrations.hooks import Hooks
from trainvitals.integrations.transformers import VitalsCallback


def attach(trainer: Any, **monitor_kwargs: Any) -> VitalsCallback:
    """Observe a `transformers.Trainer` or a TRL trainer closely.

    Args:
        trainer: The trainer, before ``train()``.
        **monitor_kwargs: For `VitalsCallback` and `trainvitals.monitor.Monitor`.

    Returns:
        The callback; after training its ``monitor`` has the verdict and the findings. A second call returns the same one.

    Raises:
        ValueError: If the trainer already has a `VitalsCallback` and `monitor_kwargs` are given, which would be lost.
    """
    callback = next((cb for cb in trainer.callback_handler.callbacks if isinstance(cb, VitalsCallback)), None)
    if callback is None:
        callback = VitalsCallback(**monitor_kwargs)
        trainer.add_callback(callback)
    elif monitor_kwargs:
        msg = f"the trainer already has a VitalsCallback: give {', '.join(sorted(monitor_kwargs))} to that one"
        raise ValueError(msg)
    if callback.hooks is None:
        callback.trainer = trainer
        callback.hooks = Hooks(callback, trainer, [family.install for family in FAMILIES])
    return callback


def detach(trainer: Any) -> None:
    """Undo `attach`: restore the trainer's methods and remove the callback."""
    for callback in [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, VitalsCallback)]:
        callback.finish("interrupted")
        if callback.hooks is not None:
            callback.hooks.remove()
        callback.hooks = callback.trainer = None
        trainer.remove_callback(callback)
