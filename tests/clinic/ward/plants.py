"""Faults that several trainers can be given: broken scores from an update on, a learning rate that jumps, NaN in a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import transformers

from trainvitals.integrations import tiny

Score = Callable[[str, bool], float | None]
"""Reward of one completion, from its text and whether it ended by itself."""


def reward_from(onset: int, broken: Score) -> Any:
    """The reward of `tiny` for the first `onset` updates, `broken` for those after.

    It keeps the name ``vowels``: who breaks a reward function seldom renames it.
    """

    def vowels(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> list[float | None]:
        if trainer_state.global_step < onset:
            return list(tiny.vowels(completions, completion_ids))
        return [broken(tiny.text_of(text), tiny.END_ID in ids) for text, ids in zip(completions, completion_ids, strict=True)]

    return vowels


def noisy(noise: float, seed: int) -> Any:
    """The reward of `tiny` with Gaussian noise of that standard deviation."""
    random = Random(seed)

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return [score + random.gauss(0, noise) for score in tiny.vowels(completions, completion_ids)]

    return vowels


def share(text: str, ended: bool) -> float:
    """The task of `tiny`: share of vowels, 0 for a completion that was cut off."""
    return sum(char in tiny.VOWELS for char in text) / max(1, len(text)) * ended


class RateJump(transformers.TrainerCallback):  # type: ignore[misc]
    """Multiplies the learning rate after `onset` updates, as a resume with another configuration does."""

    def __init__(self, onset: int, factor: float) -> None:
        self.onset, self.factor = onset, factor

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any) -> None:
        """The scheduler's base and what the next update uses."""
        if state.global_step == self.onset:
            scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
            scheduler.base_lrs = [rate * self.factor for rate in scheduler.base_lrs]
            scheduler._last_lr = [rate * self.factor for rate in scheduler._last_lr]
            for group in optimizer.param_groups:
                group["lr"] *= self.factor


class NaNLayer(transformers.TrainerCallback):  # type: ignore[misc]
    """The last layer gives NaN in the backward's forward pass from update ``onset + 1`` on, as an overflow in half precision does."""

    def __init__(self, onset: int) -> None:
        self.onset = onset

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Spoil the layer once."""
        if state.global_step == self.onset:
            model.model.layers[-1].mlp.register_forward_hook(_to_nan)


def _to_nan(module: Any, inputs: Any, output: Any) -> Any:
    return output * float("nan") if torch.is_grad_enabled() else output


def planned_for(trainer: Any, updates: int) -> Any:
    """The learning-rate schedule is made for so many updates, whatever the run has."""
    made = trainer.create_scheduler
    trainer.create_scheduler = lambda num_training_steps, optimizer=None: made(num_training_steps=updates, optimizer=optimizer)
    return trainer
