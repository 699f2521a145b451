"""RLOO on the vowel task of `trainvitals.integrations.tiny`: from chance (0.2) to near its ceiling within the run."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.clinic.ward import plants
from tests.clinic.ward.case import HEALTHY_SEEDS, Case
from tests.suite import build_sampling

from trainvitals.integrations import tiny

STEPS = 90
BREAK = 45
CUT = 3
BASE = {
    "max_steps": STEPS, "learning_rate": 6e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "beta": 0.02,
    "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 16,
}  # fmt: skip


def plain(folder: str, seed: int, *, reward: Any = tiny.vowels, callbacks: Any = (), **changes: Any) -> Any:
    """The healthy training."""
    return build_sampling.rloo(folder, reward=reward, callbacks=callbacks, **{**BASE, "seed": seed, **changes})


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and noise in the reward drawn by the seed from ranges that people use."""
    draw = Random(seed)
    settings = {
        "learning_rate": draw.choice((4e-4, 6e-4, 1e-3)),
        "num_generations": draw.choice((4, 8, 16)),
        "temperature": draw.choice((0.9, 1.0)),
        "beta": draw.choice((0.0, 0.02, 0.05)),
        "num_iterations": draw.choice((1, 1, 2)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "max_completion_length": draw.choice((16, 24)),
        "normalize_advantages": draw.choice((False, False, True)),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    noise = draw.choice((0.0, 0.0, 0.05, 0.1))
    return plain(folder, seed, reward=plants.noisy(noise, seed), **{**settings, **changes})


def solved(folder: str, seed: int, **changes: Any) -> Any:
    """A task that is solved by the middle of the run: hardly a group has any spread left, hardly any gradient."""
    return plain(folder, seed, **{"learning_rate": 1.5e-3, "beta": 0.0, **changes})


def rate_jump(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the learning rate is fifty times as high."""
    return plain(folder, seed, callbacks=[plants.RateJump(BREAK, 50.0)], **changes)


def constant_reward(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on every completion is scored 0."""
    return plain(folder, seed, reward=plants.reward_from(BREAK, lambda text, ended: 0.0), **changes)


def length_paid(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on characters are paid for as well, and better than vowels."""
    return plain(folder, seed, reward=plants.reward_from(BREAK, lambda text, ended: 0.3 * plants.share(text, ended) + ended * len(text) / 10), **changes)


def scores_missing(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the parser gives up on three answers in four: no score."""
    random = Random(seed)
    return plain(folder, seed, reward=plants.reward_from(BREAK, lambda text, ended: plants.share(text, ended) if random.random() < 0.25 else None), **changes)


def wrong_sign(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the score comes with the wrong sign."""
    return plain(folder, seed, reward=plants.reward_from(BREAK, lambda text, ended: -plants.share(text, ended)), **changes)


def beta_huge(folder: str, seed: int, **changes: Any) -> Any:
    """The KL penalty outweighs the reward a hundredfold."""
    return plain(folder, seed, **{"beta": 2.0, **changes})


def cap_short(folder: str, seed: int, **changes: Any) -> Any:
    """A cap below the length of every answer; what is there is scored, so nothing asks for an end."""

    def vowels(completions: Any, **kwargs: Any) -> list[float]:
        return list(tiny.vowels(completions))

    return plain(folder, seed, reward=vowels, **{"max_completion_length": CUT, **changes})


def nan_layer(folder: str, seed: int, **changes: Any) -> Any:
    """In update ``BREAK + 1`` a layer gives NaN."""
    return plain(folder, seed, callbacks=[plants.NaNLayer(BREAK)], **changes)


CASES: tuple[Case, ...] = (
    Case("rloo-twin", "rloo", "The base settings.", plain, STEPS),
    Case("rloo-healthy", "rloo", "Hyperparameters and reward noise vary.", varied, STEPS, seeds=HEALTHY_SEEDS),
    Case("rloo-solved", "rloo", "The task is solved by the middle of the run, without a KL penalty.", solved, STEPS, hard=True),
    Case(
        "rloo-rate-jump", "rloo", f"After update {BREAK} the learning rate is fifty times as high.", rate_jump, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("step-size-too-large", "learning-rate-jump", "policy-breakdown", "kl-runaway"), categories=("collapse", "ood-drift", "numerics"), verdicts=("collapsed", "diverged", "drifting"),
        cure={"learning_rate": 6e-4},
    ),
    Case(
        "rloo-reward-constant", "rloo", f"From update {BREAK + 1} on every completion is scored 0.", constant_reward, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("advantage-collapse", "reward-collapse"), categories=("collapse",), verdicts=("collapsed",),
    ),
    Case(
        "rloo-length-paid", "rloo", f"From update {BREAK + 1} on a character is worth 0.1 and the share of vowels only 0.3.", length_paid, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("paid-for-length", "reward-drop"), categories=("over-optimization",), verdicts=("over_optimizing",), goal="-completion.length_mean",
    ),
    Case(
        "rloo-scores-missing", "rloo", f"From update {BREAK + 1} on the reward function gives None for three completions in four.", scores_missing, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("scores-missing",), categories=("data",), verdicts=("improving", "steady", "stalled"), goal="-reward.unscored_fraction",
    ),
    Case(
        "rloo-wrong-sign", "rloo", f"From update {BREAK + 1} on the score comes with the wrong sign.", wrong_sign, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("reward-drop", "reward-collapse"), categories=("collapse", "data"), verdicts=("collapsed", "drifting"),
    ),
    Case(
        "rloo-beta-huge", "rloo", "KL penalty of 2 instead of 0.02: the policy cannot leave its reference.", beta_huge, STEPS, twin="rloo-twin",
        roots=("over-regularised",), categories=("config", "stall"), verdicts=("stalled", "steady"), cure={"beta": 0.02},
    ),
    Case(
        "rloo-cap-short", "rloo", f"Answers are cut after {CUT} tokens and scored all the same.", cap_short, STEPS, twin="rloo-twin",
        roots=("truncated-completions", "never-terminates", "length-near-cap"), categories=("data", "ood-drift"), verdicts=("improving", "steady", "drifting"),
        cure={"max_completion_length": 16}, goal="-completion.truncated_fraction",
    ),
    Case(
        "rloo-nan-layer", "rloo", f"In update {BREAK + 1} the last layer gives NaN.", nan_layer, STEPS, onset=BREAK, twin="rloo-twin",
        roots=("nonfinite-loss", "hidden-nan"), categories=("numerics",), verdicts=("diverged",),
    ),
)  # fmt: skip
