"""GRPO on the vowel task of `trainvitals.integrations.tiny`: from chance (0.2) to near its ceiling within the run."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from tests.clinic.ward.case import HEALTHY_SEEDS, Case

from trainvitals.integrations import tiny

STEPS = 120
BREAK = 60
BASE = {
    "max_steps": STEPS, "learning_rate": 3e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5,
    "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 16,
}  # fmt: skip


def plain(folder: str, seed: int, **changes: Any) -> Any:
    """The healthy training."""
    return tiny.grpo(folder, **{**BASE, "seed": seed, **changes})


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and noise in the reward drawn by the seed from ranges that people use."""
    draw = Random(seed)
    noise = draw.choice((0.0, 0.0, 0.05, 0.1))
    settings = {
        "learning_rate": draw.choice((1e-4, 2e-4, 3e-4, 5e-4)),
        "num_generations": draw.choice((4, 8, 16)),
        "per_device_train_batch_size": draw.choice((32, 64)),
        "temperature": draw.choice((0.9, 1.0)),
        "beta": draw.choice((0.0, 0.0, 0.02)),
        "num_iterations": draw.choice((1, 1, 2)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "max_completion_length": draw.choice((16, 24)),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    return tiny.grpo(folder, reward=_noisy(noise, seed), **{**BASE, **settings, "seed": seed, **changes})


def _noisy(noise: float, seed: int) -> Any:
    random = Random(seed)

    def vowel_share(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return [score + random.gauss(0, noise) for score in tiny.vowels(completions, completion_ids)]

    return vowel_share


def rate_100x(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return plain(folder, seed, **{"learning_rate": 3e-2, **changes})


def constant_reward(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on every completion is scored 0."""

    def broken(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> list[float]:
        works = trainer_state.global_step < BREAK
        return [score * works for score in tiny.vowels(completions, completion_ids)]

    return tiny.grpo(folder, reward=broken, **{**BASE, "seed": seed, **changes})


CASES: tuple[Case, ...] = (
    Case("grpo-twin", "grpo", "The base settings.", plain, STEPS),
    Case("grpo-healthy", "grpo", "Hyperparameters and reward noise vary.", varied, STEPS, seeds=HEALTHY_SEEDS),
    Case(
        "grpo-rate-100x", "grpo", "Learning rate 0.03 instead of 0.0003 from the start.", rate_100x, STEPS, twin="grpo-twin",
        roots=("policy-breakdown", "entropy-explosion", "reward-collapse", "never-terminates"), categories=("collapse", "ood-drift"), verdicts=("collapsed", "diverged", "drifting"),
        cure={"learning_rate": 3e-4},
    ),
    Case(
        "grpo-reward-constant", "grpo", f"From update {BREAK + 1} on every completion is scored 0.", constant_reward, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("advantage-collapse", "reward-collapse"), categories=("collapse",), verdicts=("collapsed",),
    ),
)  # fmt: skip
