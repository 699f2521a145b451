"""AsyncGRPO on the vowel task with a stand-in for the rollout worker at TRL's own seams, see `tests/suite/build_async.py`.

The trainer announces version 1 before the first update, so update ``n`` trains on samples of version ``n`` and the sync behind it
announces ``n + 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.clinic.ward import plants
from tests.clinic.ward.case import Case
from tests.suite import build_async
from tests.suite.build_async import PER_STEP, Sampler

from trainvitals.integrations import tiny

STEPS = 90
BREAK = 45
BASE = {"max_steps": STEPS, "learning_rate": 7e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
SEEDS = tuple(range(100, 110))


def plain(folder: str, seed: int, *, reward: Any = tiny.vowels, sampler: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The healthy training: every sample is of the weights that it trains."""
    return build_async.async_grpo(folder, reward=reward, sampler={"seed": seed, **(sampler or {})}, **{**BASE, "seed": seed, **changes})


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters, noise and the age of the samples drawn by the seed from ranges that people use."""
    draw = Random(seed)
    settings = {
        "learning_rate": draw.choice((5e-4, 7e-4, 1e-3)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "epsilon_high": draw.choice((None, 0.28)),
        "weight_sync_steps": draw.choice((1, 1, 2)),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    sampler = {"ahead": PER_STEP * draw.choice((1, 1, 2)), "per_sync": PER_STEP * settings["weight_sync_steps"]}
    return plain(folder, seed, reward=plants.noisy(draw.choice((0.0, 0.0, 0.05, 0.1)), seed), sampler=sampler, **{**settings, **changes})


def _from_version(version: int, change: Callable[[Sampler], None]) -> dict[str, Any]:
    """Change the sampler when that version is announced."""
    return {"at_version": lambda sampler, announced: change(sampler) if announced == version else None}


def a_step_ahead(folder: str, seed: int, **changes: Any) -> Any:
    """The queue holds more than the next update needs, so every sample is one version old: what asynchronous training is made for."""
    return plain(folder, seed, sampler={"ahead": 3 * PER_STEP}, **changes)


def rate_100x(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return plain(folder, seed, **{"learning_rate": 7e-2, **changes})


def constant_reward(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on every sample is scored 0."""

    def vowels(completions: Any, **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    return plain(folder, seed, sampler=_from_version(BREAK + 1, lambda sampler: setattr(sampler, "reward", vowels)), **changes)


def sync_lost(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the weight transfer never looks at what it is given, and versions go on counting."""
    return plain(folder, seed, sampler=_from_version(BREAK, lambda sampler: setattr(sampler, "takes", "nothing")), **changes)


def sampler_forgets(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the sampler receives the weights and goes on with those it has, and versions go on counting."""
    return plain(folder, seed, sampler=_from_version(BREAK, lambda sampler: setattr(sampler, "takes", "and-forgets")), **changes)


def stale(folder: str, seed: int, **changes: Any) -> Any:
    """At `BREAK` four updates' worth of samples are queued at once: from then on every sample waits for four updates, the limit."""
    return plain(folder, seed, sampler=_from_version(BREAK, lambda sampler: sampler._add(4 * PER_STEP)), **changes)


def starved(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on a group takes a tenth of a second and none is made in advance."""

    def slow(sampler: Sampler) -> None:
        sampler.seconds, sampler.per_sync = 0.1, 0

    return plain(folder, seed, sampler=_from_version(BREAK, slow), **changes)


CASES: tuple[Case, ...] = (
    Case("async_grpo-twin", "async_grpo", "The base settings.", plain, STEPS),
    Case("async_grpo-time-twin", "async_grpo", "The base settings, with times.", plain, STEPS, keeps_time=True),
    Case("async_grpo-healthy", "async_grpo", "Hyperparameters, reward noise and the age of samples vary.", varied, STEPS, seeds=SEEDS),
    Case("async_grpo-a-step-ahead", "async_grpo", "Every sample is one version old, four are allowed.", a_step_ahead, STEPS, hard=True),
    Case(
        "async_grpo-rate-100x", "async_grpo", "Learning rate 0.07 instead of 0.0007 from the start.", rate_100x, STEPS, twin="async_grpo-twin",
        roots=("step-size-too-large", "policy-breakdown", "entropy-explosion", "clip-ratio-high"), categories=("collapse", "ood-drift", "numerics"), verdicts=("collapsed", "diverged", "drifting"),
        cure={"learning_rate": 7e-4},
    ),
    Case(
        "async_grpo-reward-constant", "async_grpo", f"From update {BREAK + 1} on every sample is scored 0.", constant_reward, STEPS, onset=BREAK, twin="async_grpo-twin",
        roots=("advantage-collapse", "reward-collapse"), categories=("collapse",), verdicts=("collapsed",),
    ),
    Case(
        "async_grpo-sync-lost", "async_grpo", f"After update {BREAK} weight syncs hand the sampler nothing.", sync_lost, STEPS, onset=BREAK, twin="async_grpo-twin",
        roots=("sampler-weights-frozen",), categories=("ood-drift",), verdicts=("drifting", "collapsed", "stalled"),
    ),
    Case(
        "async_grpo-sampler-forgets", "async_grpo", f"After update {BREAK} the sampler receives weights and does not use them.", sampler_forgets, STEPS, onset=BREAK,
        twin="async_grpo-twin", roots=("sampler-left-behind",), categories=("ood-drift",), verdicts=("drifting", "collapsed", "stalled"),
    ),
    Case(
        "async_grpo-stale", "async_grpo", f"After update {BREAK} the queue holds four updates' worth, so samples are as old as is allowed.", stale, STEPS, onset=BREAK,
        twin="async_grpo-twin", roots=("samples-too-stale",), categories=("ood-drift",), verdicts=("improving", "steady", "drifting"), goal="-rollout.staleness",
    ),
    Case(
        "async_grpo-starved", "async_grpo", f"After update {BREAK} the trainer waits 0.1 s for each group.", starved, STEPS, onset=BREAK, twin="async_grpo-time-twin",
        roots=("rollout-starved",), categories=("efficiency",), verdicts=("improving", "steady"), goal="-time.data_wait_seconds", keeps_time=True,
    ),
)  # fmt: skip
