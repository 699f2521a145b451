"""The fourth round: AsyncGRPO, online DPO, distillation and SDPO, see `cases_round4_rl` and docs/decisions/0012."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_distillation, plants
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_round2_preference import online
from tests.clinic.ward.cases_round2_rl import Every
from tests.clinic.ward.cases_round2_supervised import with_head
from tests.clinic.ward.cases_round4_rl import SEEDS, TWIN_SEEDS
from tests.suite import build_distillation
from tests.suite.build_async import PER_STEP, Sampler

from trainvitals.integrations import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

GOAL = cases_distillation.GOAL
Scores = list[float]


# ---- healthy ----


def noisy_pairs(folder: str, seed: int, **changes: Any) -> Any:
    """A judge with noise of a tenth, larger batches, a linear schedule and a stronger tie to the reference."""
    random = Random(seed)

    def judged(completions: Sequence[Any]) -> Scores:
        return [score + random.gauss(0, 0.1) for score in tiny.vowels(completions)]

    return online(folder, seed, reward=judged, **{"per_device_train_batch_size": 24, "lr_scheduler_type": "linear", "beta": 0.1, "max_steps": 70, **changes})


def accumulated(folder: str, seed: int, **changes: Any) -> Any:
    """Micro-batches of four, three of them make an update, answers up to 24 tokens, a cosine to 0."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_completion_length": 24, "lr_scheduler_type": "cosine", "max_steps": 80}
    return cases_distillation.plain(folder, seed, **{**settings, **changes})


SDPO = {**cases_distillation.BASE, "learning_rate": 2e-4, "max_completion_length": 32}


def sdpo(folder: str, seed: int, *, reward: Any = tiny.vowels, callbacks: Any = (), **changes: Any) -> Any:
    """The healthy self-distillation: what succeeded in a group goes into the teacher's prompt."""
    return build_distillation.sdpo(folder, reward=reward, callbacks=callbacks, **{**SDPO, "seed": seed, **changes})


# ---- AsyncGRPO ----


def sync_rare(folder: str, seed: int, **changes: Any) -> Any:
    """Weights are synced every fifteenth update at seven times the rate: fourteen updates out of fifteen train on what an older policy wrote."""
    return cases_async.plain(folder, seed, sampler={"per_sync": 15 * PER_STEP, "ahead": 15 * PER_STEP}, **{"weight_sync_steps": 15, "learning_rate": 5e-3, "queue_maxsize": 1024, **changes})


def one_slow(folder: str, seed: int, **changes: Any) -> Any:
    """From update 31 on every third batch has two answers that think for a quarter of a second each, and all wait for them."""

    def slow(sampler: Sampler, version: int) -> None:
        waits = version > 30 and version % 3 == 0
        sampler.seconds, sampler.per_sync = (0.25, 0) if waits else (0.0, PER_STEP)

    return cases_async.plain(folder, seed, sampler={"at_version": slow}, **changes)


def norm_epsilon(folder: str, seed: int, **changes: Any) -> Any:
    """From update 25 on the sampler is another build, whose norms have an epsilon of 4e-3 instead of 1e-6."""

    def rebuilt(sampler: Sampler, version: int) -> None:
        if version == 25:
            for module in sampler.model.modules():
                if hasattr(module, "variance_epsilon"):
                    module.variance_epsilon = 4e-3

    return cases_async.plain(folder, seed, sampler={"at_version": rebuilt}, **changes)


def mixture(folder: str, seed: int, *, sampler: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The healthy training of a mixture of four experts, two for each token, which had the time to become different."""
    from tests.suite import build_async, build_models

    def saved(output_dir: str) -> tuple[str, Any, Any]:
        vocabulary = tiny.tokenizer()
        policy = build_models.mixture(vocabulary, steps=200)
        policy.config.output_router_logits = False  # its balance loss wants a mask that this trainer does not give
        return build_distillation.saved(output_dir, policy, vocabulary, "policy"), vocabulary, policy

    dense, build_async._folder = build_async._folder, saved
    try:
        return cases_async.plain(folder, seed, sampler=sampler, **changes)
    finally:
        build_async._folder = dense


def other_experts(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler numbers the experts the other way round when it takes over the routers: every token goes to other experts there than in the trainer."""

    def perturb(sampler: Sampler, version: int) -> None:
        with torch.no_grad():
            for name, weight in sampler.model.named_parameters():
                if name.endswith("mlp.gate.weight"):
                    weight.copy_(weight.flip(0))

    return mixture(folder, seed, sampler={"at_version": perturb}, **changes)


# ---- distillation ----


def outlier_batches(folder: str, seed: int, **changes: Any) -> Any:
    """From update 37 on one batch in nine meets a teacher whose logits are twelve times as large and those of other tokens."""
    teacher = with_head(lambda head: head)
    own = teacher.lm_head.weight.detach().clone()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(3))

    def swap(**parts: Any) -> None:
        step = trainer.state.global_step
        with torch.no_grad():
            teacher.lm_head.weight.copy_(12 * own[order] if step % 9 == 0 else own)

    trainer = cases_distillation.plain(folder, seed, teacher=teacher, callbacks=[Every(swap, 36)], **changes)
    return trainer  # bound before `swap` runs


def no_success(folder: str, seed: int, **changes: Any) -> Any:
    """From update 31 on the reward function gives a share of ten instead of a share of one: no answer reaches the threshold of a success any more."""
    return sdpo(folder, seed, reward=plants.reward_from(30, lambda text, ended: plants.share(text, ended) / 10), **changes)


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


_async = partial(_case, "async_grpo")
CASES: tuple[Case, ...] = (
    Case("sdpo-twin", "sdpo", "Self-distillation with what succeeded in a group in the teacher's prompt.", sdpo, cases_distillation.STEPS, goal=GOAL, seeds=TWIN_SEEDS),
    Case("async_grpo-moe-twin", "async_grpo", "A mixture of four experts, two for each token.", mixture, cases_async.STEPS, seeds=TWIN_SEEDS),
    Case("online_dpo-noisy-judge", "online_dpo", "Healthy: a judge with noise, larger batches, a linear schedule.", noisy_pairs, 70, seeds=SEEDS),
    Case("distillation-accumulated", "distillation", "Healthy: three micro-batches of four make an update, a cosine to 0.", accumulated, 80, goal=GOAL, seeds=SEEDS),
    _async(
        "sync-rare", "Weights are synced every fifteenth update at seven times the rate (TR-01).", sync_rare, 90, ["clip-ratio-high", "ratio-blow-up"], ("ood-drift", "config"),
        ("drifting", "collapsed", "diverged", *HEALTHY_STATES), cure={"weight_sync_steps": 1, "learning_rate": 7e-4},
    ),
    _async(
        "one-slow", "From update 31 on every third batch waits for two answers that take a quarter of a second each (AS-14).", one_slow, 90, ["rollout-starved", "no-rule:long-tail-of-generation"],
        ("efficiency",), HEALTHY_STATES, onset=30, goal="-time.data_wait_seconds", twin="async_grpo-time-twin", keeps_time=True,
    ),
    _async(
        "norm-epsilon", "From update 25 on the sampler's norms have an epsilon of 4e-3 (AS-01).", norm_epsilon, cases_async.STEPS, ["sampler-mismatch"], ("ood-drift", "numerics"),
        ("drifting", "collapsed", *HEALTHY_STATES), onset=24, goal="-sampler.kl",
    ),
    _async(
        "other-experts", "The sampler numbers the experts the other way round, so that tokens go to other experts than in the trainer (AS-11).", other_experts, 90, ["sampler-mismatch"],
        ("ood-drift", "numerics"), ("drifting", "collapsed", *HEALTHY_STATES), goal="-sampler.kl", twin="async_grpo-moe-twin",
    ),
    _case(
        "distillation", "outlier-batches", "From update 37 on one batch in nine meets a teacher with other, far larger logits (NU-03).", outlier_batches, 90,
        ["gradient-spike", "loss-spike"], ("numerics", "data"), ("drifting", "diverged", *HEALTHY_STATES), onset=36, goal=GOAL,
    ),
    _case(
        "sdpo", "no-success", "From update 31 on rewards are a tenth of what they were, so that nothing counts as a success (DI-07).", no_success, 90,
        ["self-distillation-inactive", "reward-scale-shift"], ("stall", "config"), ("stalled", "steady"), onset=30, goal=GOAL,
    ),
)  # fmt: skip
