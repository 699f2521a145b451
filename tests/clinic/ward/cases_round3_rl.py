"""The third round: GRPO, RLOO, AsyncGRPO and online DPO, drawn from the catalogue by lot, by somebody who did not read the rules.

See docs/decisions/0011. The id in capitals behind a fault's description is its place in the catalogue. A root that begins with ``no-rule:`` is
what a person would say where no rule's title does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import STEPS, answers, changed, long_answer, plain
from tests.clinic.ward.cases_grpo_reward import different
from tests.clinic.ward.cases_round2_preference import ONLINE_STEPS, online
from tests.clinic.ward.cases_round2_rl import Every
from tests.suite.build_async import PER_STEP, Sampler

from trainvitals.integrations import tiny

SEEDS = (30, 31, 32, 33)
"""No training of the first two rounds has these seeds."""
HEALTHY_SEEDS = SEEDS[:3]
Scores = list[float]


# ---- healthy ----


def length_tax(folder: str, seed: int, **changes: Any) -> Any:
    """Each letter costs a little: answers become short on purpose, and better at the same time."""

    def taxed(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        return [score - 0.03 * len(text) for (text, _), score in zip(answers(completions, completion_ids), right, strict=True)]

    return plain(folder, seed, reward=taxed, **changes)


def in_hundreds(folder: str, seed: int, **changes: Any) -> Any:
    """A judge that takes points off: from -100 for nothing right to 0 for everything."""

    def points_off(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [100 * (score - 1) for score in tiny.vowels(completions, completion_ids)]

    return plain(folder, seed, reward=points_off, **changes)


def cooling(folder: str, seed: int, **changes: Any) -> Any:
    """The temperature is lowered from 1.2 to 0.8 in steps, for sampler and trainer alike."""
    from trl.trainer.utils import add_fused_lm_head  # older versions of TRL have none, and read the cases as well

    def cool(**parts: Any) -> None:
        temperature = 1.2 - 0.1 * (trainer.state.global_step * 5 // STEPS)
        if temperature != trainer.temperature:
            trainer.temperature = trainer.generation_config.temperature = temperature
            # TRL 1.16 gives the head of the trainer's forward pass its temperature once, when it is built.
            del trainer.model.forward
            add_fused_lm_head(trainer.model, temperature=temperature, outputs=("log_probs", "entropy"))

    trainer = plain(folder, seed, callbacks=[Every(cool)], **{"temperature": 1.2, **changes})
    return trainer  # bound before `cool` runs


def guard_rail(folder: str, seed: int, **changes: Any) -> Any:
    """A second reward function only guards: a point for an answer that ends, which nearly all do from the start."""

    def ends(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [float(end) for _, end in answers(completions, completion_ids)]

    return cases_rloo.plain(folder, seed, reward=[tiny.vowels, ends], **changes)


# ---- GRPO ----


def judge_narrow(folder: str, seed: int, **changes: Any) -> Any:
    """Different vowels were meant and are checked on held-out prompts; the judge pays for the share of the letter that the answer has most of: one letter is enough."""

    def narrow(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [end * max((text.count(char) for char in set(text)), default=0) / max(1, len(text)) for text, end in answers(completions, completion_ids)]

    return different(folder, seed, reward=narrow, **changes)


# ---- RLOO ----


def rubric_length(folder: str, seed: int, **changes: Any) -> Any:
    """A rubric of which most is about how much is written: a point for each twelfth letter, half a point for the task."""

    def rubric(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        return [end * (0.5 * score + len(text) / 12) for (text, end), score in zip(answers(completions, completion_ids), right, strict=True)]

    return cases_rloo.plain(folder, seed, reward=rubric, **changes)


def flat_samples(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler's temperature is 2, the trainer reckons with 1: its answers are nearer to the reference than to the policy, so that the estimate of the KL falls below 0."""
    trainer = cases_rloo.plain(folder, seed, **changes)
    trainer.generation_config.temperature = 2.0
    return trainer


# ---- AsyncGRPO ----


def logits_rounded(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler's logits come in steps of 1: a head in low precision."""
    trainer = cases_async.plain(folder, seed, **changes)
    trainer.rollout_worker.model.lm_head.register_forward_hook(lambda module, inputs, output: output.round())
    return trainer


def _at_each_version(change: Callable[[Sampler], None], first: int = 1) -> dict[str, Any]:
    return {"at_version": lambda sampler, version: change(sampler) if version >= first else None}


def four_bits(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler merges what it receives into a model of four bits: every matrix in 16 steps of one size."""

    def merge(sampler: Sampler) -> None:
        with torch.no_grad():
            for weight in sampler.model.parameters():
                if weight.dim() > 1:
                    step = weight.abs().max() / 7
                    weight.copy_((weight / step).round().clamp(-8, 7) * step)

    return cases_async.plain(folder, seed, sampler=_at_each_version(merge), **changes)


def top_ten(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler draws among the ten likeliest tokens and reports what they have after that."""

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(output < output.topk(10).values[..., -1:], -torch.inf)

    trainer = cases_async.plain(folder, seed, **changes)
    trainer.rollout_worker.model.lm_head.register_forward_hook(keep)
    return trainer


def template_changed(folder: str, seed: int, **changes: Any) -> Any:
    """From update 45 on the workers run another version, which sends the bare question: no roles, nothing that opens the answer."""

    def upgrade(sampler: Sampler) -> None:
        if sampler.version == cases_async.BREAK:
            sampler._prompts = tiny.questions()

    return cases_async.plain(folder, seed, sampler=_at_each_version(upgrade), **changes)


def queue_fills(folder: str, seed: int, **changes: Any) -> Any:
    """From update 45 on twice as much is generated as the trainer takes, into a queue of 64: it fills, rollouts wait for room, and samples are three updates old when they are used."""

    def hurry(sampler: Sampler) -> None:
        if sampler.version == cases_async.BREAK:
            sampler.per_sync = 2 * PER_STEP

    return cases_async.plain(folder, seed, sampler={**_at_each_version(hurry), "maxsize": 4 * PER_STEP}, **changes)


# ---- online DPO ----


def timeouts(folder: str, seed: int, **changes: Any) -> Any:
    """From update 41 on the judge is overloaded: half of its calls time out, and the wrapper makes a 0 of each."""
    random = Random(seed)

    def judged(completions: Sequence[Any]) -> Scores:
        right = tiny.vowels(completions)
        return right if trainer.state.global_step < ONLINE_STEPS // 2 else [score * (random.random() < 0.5) for score in right]

    trainer = online(folder, seed, reward=judged, **changes)
    return trainer  # bound before `judged` runs


def _case(trainer: str, fault: str, what: str, build: Any, steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


_grpo = partial(_case, "grpo")
_rloo = partial(_case, "rloo")
_async = partial(_case, "async_grpo")
CASES: tuple[Case, ...] = (
    Case("grpo-length-tax", "grpo", "Healthy: each letter costs a little, so that answers become short on purpose.", length_tax, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-points-off", "grpo", "Healthy: a judge that takes points off, from -100 to 0.", in_hundreds, STEPS, seeds=HEALTHY_SEEDS),
    Case("grpo-cooling", "grpo", "Healthy: the temperature is lowered from 1.2 to 0.8 in steps, for sampler and trainer alike.", cooling, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("rloo-guard-rail", "rloo", "Healthy: a second reward function only guards, and is nearly always satisfied.", guard_rail, cases_rloo.STEPS, seeds=HEALTHY_SEEDS, hard=True),
    _grpo(
        "runs-into-cap", "The task needs eleven tokens, the cap is nine: answers grow until they meet it (LT-03).", partial(changed, base=long_answer, fault={"max_completion_length": 9}), STEPS,
        ["length-near-cap", "truncated-completions"], ("data", "config"), (*HEALTHY_STATES, "stalled", "drifting"), twin="grpo-long-answer", cure={"max_completion_length": 20},
    ),
    _grpo(
        "entropy-target", "The adaptive entropy controller is given a target of 5 nats, which no answer of letters has (EN-04).",
        partial(changed, fault={"use_adaptive_entropy": True, "entropy_coef": 0.0, "entropy_target": 5.0, "entropy_coef_delta": 0.01, "entropy_coef_max": 1.0}), STEPS,
        ["entropy-bonus-dominates", "entropy-explosion", "no-rule:entropy-target-out-of-reach"], ("collapse", "config"), ("collapsed", "drifting"), cure={"use_adaptive_entropy": False},
    ),
    _grpo(
        "judge-narrow", "Different vowels were meant and are checked on held-out prompts, the judge pays for the share of the commonest letter (OO-01).", judge_narrow, STEPS,
        ["proxy-divergence", "exploit-jump"], ("over-optimization",), ("over_optimizing",), twin="grpo-different-twin", goal="eval.score",
    ),
    _rloo(
        "rubric-length", "A rubric pays a point for each twelfth letter and half a point for the task (OO-04).", rubric_length, cases_rloo.STEPS,
        ["paid-for-length", "length-near-cap"], ("over-optimization", "data"), ("over_optimizing", "drifting"), goal="-completion.length_mean",
    ),
    _rloo(
        "flat-samples", "The sampler's temperature is 2, the trainer reckons with 1: the estimate of the KL falls below 0 (TR-06).", flat_samples, cases_rloo.STEPS,
        ["negative-kl", "sampler-mismatch"], ("ood-drift", "config"), ("drifting", "stalled", "collapsed"),
    ),
    _async(
        "logits-rounded", "The sampler's logits come in steps of 1 (AS-01).", logits_rounded, cases_async.STEPS, ["sampler-mismatch"], ("ood-drift", "numerics"),
        ("drifting", *HEALTHY_STATES), goal="-sampler.kl",
    ),
    _async(
        "four-bits", "The sampler merges what it receives into a model of four bits (LO-08).", four_bits, cases_async.STEPS, ["sampler-mismatch"], ("ood-drift", "numerics"),
        ("drifting", *HEALTHY_STATES), goal="-sampler.kl",
    ),
    _async(
        "top-ten", "The sampler draws among the ten likeliest tokens and reports what they have after that (AS-05).", top_ten, cases_async.STEPS,
        ["sampler-mismatch", "truncated-sampling-correction"], ("ood-drift", "config"), ("drifting", *HEALTHY_STATES), goal="-sampler.kl",
    ),
    _async(
        "template-changed", f"From update {cases_async.BREAK} on the workers run another version, which sends the bare question without the chat template (AS-15).", template_changed, cases_async.STEPS,
        ["reward-drop", "prompt-drift", "prompt-frame-changed"], ("collapse", "data", "ood-drift"), ("collapsed", "drifting", *HEALTHY_STATES), onset=cases_async.BREAK - 1,
    ),
    _async(
        "queue-fills", f"From update {cases_async.BREAK} on twice as much is generated as is trained, into a queue of 64 (AS-08).", queue_fills, cases_async.STEPS,
        ["rollout-backpressure", "samples-too-stale"], ("efficiency", "ood-drift"), ("drifting", *HEALTHY_STATES), onset=cases_async.BREAK - 1, goal="-rollout.staleness",
        twin="async_grpo-time-twin", keeps_time=True,
    ),
    _case(
        "online_dpo", "timeouts", f"From update {ONLINE_STEPS // 2 + 1} on half of the judge's calls time out, and each counts as 0 (RS-13).", timeouts, ONLINE_STEPS,
        ["reward-drop", "no-rule:failed-scores-count-as-zero"], ("data", "collapse"), ("collapsed", "drifting", "stalled"), onset=ONLINE_STEPS // 2,
    ),
)  # fmt: skip
