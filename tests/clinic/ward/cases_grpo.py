"""GRPO on the vowel task of `trainvitals.integrations.tiny`, from chance (0.2) to near its ceiling: the healthy runs and the faults of
the optimizer, the sampler and the data. The faults of the reward are in `cases_grpo_reward.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.clinic.ward.case import HEALTHY_SEEDS, Case
from tests.clinic.ward.plants import planned_for
from transformers import TrainerCallback

from trainvitals.integrations import tiny

STEPS = 100
BREAK = 50
BASE = {
    "max_steps": STEPS, "learning_rate": 5e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5,
    "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 16,
}  # fmt: skip


def plain(folder: str, seed: int, **changes: Any) -> Any:
    """The healthy training."""
    settings = {**BASE, "seed": seed, **changes}
    return with_reference(folder, **settings) if settings.get("beta") else tiny.grpo(folder, **settings)


def with_reference(folder: str, *, reward: Any = tiny.vowels, callbacks: Sequence[Any] = (), **settings: Any) -> Any:
    """As `tiny.grpo` from a saved policy: TRL loads the reference of a KL penalty from where the policy came from."""
    from trl import GRPOConfig, GRPOTrainer

    vocabulary, path = tiny.tokenizer(), str(Path(folder) / "policy")
    tiny.policy(vocabulary).save_pretrained(path)
    args = GRPOConfig(**tiny.arguments(folder, **{"temperature": 1.0, **settings}))
    return GRPOTrainer(path, reward, args, train_dataset=tiny.prompts(), processing_class=vocabulary, callbacks=list(callbacks))


class At(TrainerCallback):
    """Does something once, before update `onset` + 1: to the trainer's parts as the callback gets them."""

    def __init__(self, act: Callable[..., None], onset: int = BREAK) -> None:
        self.act, self.onset = act, onset

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Act when it is time."""
        if state.global_step == self.onset:
            self.act(**parts)


def answers(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """Text of each completion, and whether it ended by itself."""
    return [(tiny.text_of(completion), tiny.END_ID in ids) for completion, ids in zip(completions, completion_ids, strict=True)]


# ---- healthy ----


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and noise in the reward drawn by the seed from ranges that people use."""
    draw = Random(seed)
    noise = draw.choice((0.0, 0.0, 0.05, 0.1))
    settings = {
        "learning_rate": draw.choice((4e-4, 6e-4, 1e-3)),
        "num_generations": draw.choice((4, 8, 16)),
        "per_device_train_batch_size": draw.choice((32, 32, 48)),
        "temperature": draw.choice((0.9, 1.0)),
        "beta": draw.choice((0.0, 0.0, 0.01)),
        "num_iterations": draw.choice((1, 1, 2)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "max_completion_length": draw.choice((16, 24)),
        "logging_steps": draw.choice((1, 1, 1, 10)),
    }
    return plain(folder, seed, reward=_noisy(noise, seed), **{**settings, **changes})


def _noisy(noise: float, seed: int) -> Any:
    random = Random(seed)

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return [score + random.gauss(0, noise) for score in tiny.vowels(completions, completion_ids)]

    return vowels


def iter4(folder: str, seed: int, **changes: Any) -> Any:
    """Four updates on each batch of completions."""
    return plain(folder, seed, **{"num_iterations": 4, **changes})


def ten_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """Vowels in tenths, at most 1, less a twentieth for each other letter; 0 for an answer that was cut. It needs ten letters, the policy writes six."""
    found = [(sum(char in tiny.VOWELS for char in text), len(text), end) for text, end in answers(completions, completion_ids)]
    return [max(0.0, min(10, good) - 0.5 * (size - good)) / 10 * end for good, size, end in found]


def long_answer(folder: str, seed: int, **changes: Any) -> Any:
    """The task needs longer answers than the policy gives at first."""
    return plain(folder, seed, **{"reward": ten_vowels, "learning_rate": 1e-3, "max_completion_length": 20, **changes})


def solved(folder: str, seed: int, **changes: Any) -> Any:
    """An easy task, won by everyone before the middle: no spread, no gradient, nothing left to learn."""

    def any_vowel(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return [float(score > 0) for score in tiny.vowels(completions, completion_ids)]

    return plain(folder, seed, reward=any_vowel, **{"learning_rate": 1e-3, **changes})


def restarts(folder: str, seed: int, **changes: Any) -> Any:
    """The learning rate falls to 0 and returns, twice."""
    settings = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}, "learning_rate": 8e-4}
    return plain(folder, seed, **{**settings, **changes})


def binary(folder: str, seed: int, **changes: Any) -> Any:
    """Right or wrong only, and one verdict in ten is wrong itself."""
    random = Random(seed)

    def half_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        right = [score >= 0.5 for score in tiny.vowels(completions, completion_ids)]
        return [float(verdict != (random.random() < 0.1)) for verdict in right]

    return plain(folder, seed, reward=half_vowels, **changes)


# ---- faults ----


def changed(folder: str, seed: int, *, fault: dict[str, Any], base: Callable[..., Any] = plain, **changes: Any) -> Any:
    """A healthy training with wrong parameters from the start."""
    return base(folder, seed, **{**fault, **changes})


def rate_jump(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the learning rate is 200 times higher: a scheduler that was rebuilt with other numbers."""

    def jump(optimizer: Any, lr_scheduler: Any, **parts: Any) -> None:
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        scheduler.base_lrs = [rate * 200 for rate in scheduler.base_lrs]
        for group in optimizer.param_groups:
            group["lr"] *= 200

    return plain(folder, seed, callbacks=[At(jump)], **changes)


def schedule_ends(folder: str, seed: int, **changes: Any) -> Any:
    """A linear schedule planned for half of the updates: from update 51 on the learning rate is 0."""
    return planned_for(plain(folder, seed, **{"lr_scheduler_type": "linear", **changes}), BREAK)


def nan_gradient(folder: str, seed: int, **changes: Any) -> Any:
    """In update 50, the second on its batch, a gradient is NaN, as after an overflow; clipping spreads it to all weights."""

    def poison(model: Any, **parts: Any) -> None:
        weight = next(weight for name, weight in model.named_parameters() if "mlp" in name)
        weight.register_hook(lambda gradient: gradient * math.nan)

    return iter4(folder, seed, callbacks=[At(poison, BREAK - 1)], **changes)


def gradient_cut(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on every gradient is 0 though the advantages are not: the graph is cut between the loss and the weights."""

    def cut(model: Any, **parts: Any) -> None:
        for weight in model.parameters():
            weight.register_hook(lambda gradient: gradient * 0)

    return plain(folder, seed, callbacks=[At(cut)], **changes)


def never_ends(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the end token cannot be sampled."""

    def suppress(**parts: Any) -> None:
        trainer.generation_config.suppress_tokens = [tiny.END_ID]

    trainer = plain(folder, seed, callbacks=[At(suppress)], **changes)
    return trainer  # bound before `suppress` runs


CASES: tuple[Case, ...] = (
    Case("grpo-twin", "grpo", "The base settings.", plain, STEPS),
    Case("grpo-healthy", "grpo", "Hyperparameters and reward noise vary.", varied, STEPS, seeds=HEALTHY_SEEDS),
    Case("grpo-iter4-twin", "grpo", "Four updates on each batch of completions.", iter4, STEPS),
    Case("grpo-long-answer", "grpo", "The task needs longer answers: length and reward grow together.", long_answer, STEPS, hard=True),
    Case("grpo-solved", "grpo", "An easy task is solved before the middle: no spread, no gradient.", solved, STEPS, hard=True),
    Case("grpo-restarts", "grpo", "Cosine learning rate with two restarts.", restarts, STEPS, hard=True),
    Case("grpo-binary", "grpo", "A reward of 0 or 1 that is wrong once in ten times.", binary, STEPS, hard=True),
    Case(
        "grpo-rate-jump", "grpo", "From update 51 on the learning rate is 200 times higher.", rate_jump, STEPS, onset=BREAK,
        twin="grpo-twin", roots=("step-size-too-large", "learning-rate-jump", "policy-breakdown"), categories=("config", "collapse", "numerics"), verdicts=("collapsed", "diverged", "drifting"),
        cure={"learning_rate": 5e-4},
    ),
    Case(
        "grpo-schedule-ends", "grpo", "A linear schedule for half of the updates: the learning rate is 0 from update 51 on.", schedule_ends, STEPS,
        onset=BREAK, twin="grpo-twin", roots=("learning-rate-zero",), categories=("config", "stall"), verdicts=("stalled",),
        cure={"lr_scheduler_type": "constant_with_warmup"},
    ),
    Case(
        "grpo-off-policy", "grpo", "Eight updates per batch at learning rate 0.03: the policy leaves its samples behind.",
        partial(changed, base=iter4, fault={"learning_rate": 3e-2, "num_iterations": 8}), STEPS, twin="grpo-iter4-twin", roots=("clip-ratio-high", "ratio-blow-up"),
        categories=("ood-drift",), verdicts=("drifting", "collapsed", "diverged", "improving", "steady"), cure={"learning_rate": 5e-4, "num_iterations": 4},
    ),
    Case(
        "grpo-beta-huge", "grpo", "KL penalty 10: the policy is pinned to its reference.", partial(changed, fault={"beta": 10.0}), STEPS,
        twin="grpo-twin", roots=("over-regularised",), categories=("config", "stall"), verdicts=("stalled", "steady"), cure={"beta": 0.0},
    ),
    Case(
        "grpo-entropy-bonus", "grpo", "Entropy bonus 1: the policy is paid for being random.", partial(changed, fault={"entropy_coef": 1.0}), STEPS,
        twin="grpo-twin", roots=("entropy-bonus-dominates", "entropy-explosion"), categories=("config", "collapse"),
        verdicts=("collapsed", "stalled", "drifting"), cure={"entropy_coef": 0.0},
    ),
    Case(
        "grpo-nan-gradient", "grpo", "In update 50, the second on its batch, a gradient is NaN; clipping spreads it to all weights.", nan_gradient, STEPS,
        onset=BREAK - 1, twin="grpo-iter4-twin", roots=("hidden-nan", "nonfinite-loss"), categories=("numerics",), verdicts=("diverged",),
    ),
    Case(
        "grpo-gradient-cut", "grpo", "From update 51 on all gradients are 0 while the advantages are not.", gradient_cut, STEPS, onset=BREAK,
        twin="grpo-twin", roots=("gradient-vanished", "gradient-blocked"), categories=("stall",), verdicts=("stalled",),
    ),
    Case(
        "grpo-never-ends", "grpo", "From update 51 on the end token cannot be sampled.", never_ends, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("never-terminates", "truncated-completions"), categories=("ood-drift", "data"), verdicts=("collapsed", "drifting"),
    ),
    Case(
        "grpo-cap-short", "grpo", "A cap of 4 tokens where the task needs eleven.", partial(changed, base=long_answer, fault={"max_completion_length": 4}), STEPS,
        twin="grpo-long-answer", roots=("truncated-completions", "length-near-cap"), categories=("data", "config"), verdicts=("steady", "stalled", "drifting", "collapsed"),
        cure={"max_completion_length": 20},
    ),
)  # fmt: skip
