"""PPO on the vowel task, with a hand-written reward model; recorded with TRL 1.12, the last that has PPO."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from tests.clinic.ward.case import HEALTHY_SEEDS, Case
from tests.suite import build_sampling
from tests.suite.build_sampling import Score, vowel_share

STEPS = 64
BREAK = 32
CUT = 3
BASE = {"updates": STEPS, "lr_scheduler_type": "constant", "num_ppo_epochs": 2, "learning_rate": 6e-4}
TRL = "1.12"


def plain(folder: str, seed: int, *, score_of: Score = vowel_share, optimizer: Any = None, **changes: Any) -> Any:
    """The healthy training."""
    return build_sampling.ppo(folder, score_of=score_of, optimizer=optimizer, **{**BASE, "seed": seed, **changes})


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and noise in the reward model drawn by the seed from ranges that people use."""
    draw = Random(seed)
    settings = {
        "learning_rate": draw.choice((4e-4, 6e-4, 1e-3)),
        "num_ppo_epochs": draw.choice((1, 2, 4)),
        "kl_coef": draw.choice((0.02, 0.05, 0.1)),
        "vf_coef": draw.choice((0.1, 0.1, 0.5)),
        "lam": draw.choice((0.95, 0.95, 1.0)),
        "temperature": draw.choice((0.9, 1.0)),
        "lr_scheduler_type": draw.choice(("constant", "linear")),
        "response_length": draw.choice((16, 24)),
    }
    return plain(folder, seed, score_of=_noisy(draw.choice((0.0, 0.0, 0.05, 0.1)), seed), **{**settings, **changes})


def _noisy(noise: float, seed: int) -> Score:
    random = torch.Generator().manual_seed(seed)

    def score(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        exact = vowel_share(vowels, text, ended)
        return exact + noise * torch.randn(exact.shape, generator=random)

    return score


def score_from(onset: int, broken: Score) -> Score:
    """The task for the first `onset` updates, `broken` for those after; one batch is one call."""
    calls = 0

    def score(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return (vowel_share if calls <= onset else broken)(vowels, text, ended)

    return score


def on_policy(folder: str, seed: int, **changes: Any) -> Any:
    """One epoch of one mini-batch: the policy is its own old policy, no ratio leaves 1 and nothing is ever clipped."""
    return plain(folder, seed, **{"num_ppo_epochs": 1, "learning_rate": 1e-3, **changes})


def rate_100x(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return plain(folder, seed, **{"learning_rate": 6e-2, **changes})


def constant_reward(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the reward model says 0."""
    return plain(folder, seed, score_of=score_from(BREAK, lambda vowels, text, ended: 0.0 * vowels), **changes)


def reward_scale(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the reward model's scores are a hundred times as large: value loss and gradient follow."""
    return plain(folder, seed, score_of=score_from(BREAK, lambda *parts: 100.0 * vowel_share(*parts)), **changes)


def length_paid(folder: str, seed: int, **changes: Any) -> Any:
    """From the twentieth update on the reward model scores the length in sixteenths of the cap."""
    return plain(folder, seed, score_of=score_from(20, lambda vowels, text, ended: text.cumsum(1) / 16 * ended), **changes)


def kl_huge(folder: str, seed: int, **changes: Any) -> Any:
    """The KL penalty outweighs the score."""
    return plain(folder, seed, **{"kl_coef": 5.0, **changes})


def cap_short(folder: str, seed: int, **changes: Any) -> Any:
    """A cap below the length of every answer; the reward model scores what is there."""
    return plain(folder, seed, score_of=build_sampling.unfinished_too, **{"response_length": CUT, **changes})


def _two_rates(folder: str, seed: int, critic_factor: Any, prepare: Any = None, **changes: Any) -> Any:
    """The policy at the base rate, the critic at that times ``critic_factor(update)``."""
    rate = changes.get("learning_rate", BASE["learning_rate"])

    def optimizer(policy: Any, critic: Any) -> Any:
        if prepare is not None:
            prepare(critic)
        made = torch.optim.AdamW([{"params": policy.parameters(), "lr": rate}, {"params": critic.parameters(), "lr": rate}], eps=1e-8)
        return made, torch.optim.lr_scheduler.LambdaLR(made, [lambda update: 1.0, critic_factor])

    return plain(folder, seed, optimizer=optimizer, **changes)


def critic_jump(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the critic's learning rate is a thousand times as high, the policy's is as before."""
    return _two_rates(folder, seed, lambda update: 1.0 if update < BREAK else 1000.0, **changes)


def critic_random(folder: str, seed: int, **changes: Any) -> Any:
    """A critic with a random head that never learns: advantages are mostly its noise."""

    def randomise(critic: Any) -> None:
        with torch.no_grad():
            critic.score.weight.normal_(0.0, 2.0, generator=torch.Generator().manual_seed(seed))

    return _two_rates(folder, seed, lambda update: 0.0, prepare=randomise, **changes)


CASES: tuple[Case, ...] = (
    Case("ppo-twin", "ppo", "The base settings.", plain, STEPS, needs_trl=TRL),
    Case("ppo-healthy", "ppo", "Hyperparameters and noise in the reward model vary.", varied, STEPS, seeds=HEALTHY_SEEDS, needs_trl=TRL),
    Case("ppo-on-policy", "ppo", "One epoch of one mini-batch: the ratio is 1 and the clip fraction 0 all along.", on_policy, STEPS, hard=True, needs_trl=TRL),
    Case(
        "ppo-rate-100x", "ppo", "Learning rate 0.06 instead of 0.0006 from the start.", rate_100x, STEPS, twin="ppo-twin",
        roots=("step-size-too-large", "update-too-large", "ratio-blow-up", "policy-breakdown"), categories=("collapse", "ood-drift", "numerics"), verdicts=("collapsed", "diverged", "drifting"),
        cure={"learning_rate": 6e-4}, needs_trl=TRL,
    ),
    Case(
        "ppo-critic-jump", "ppo", f"After update {BREAK} the critic's learning rate is a thousand times as high.", critic_jump, STEPS, onset=BREAK, twin="ppo-twin",
        roots=("critic-misleads", "value-loss-spike"), categories=("ood-drift", "numerics"), verdicts=("drifting", "stalled", "collapsed", "diverged"), goal="-value.loss",
        needs_trl=TRL,
    ),
    Case(
        "ppo-critic-random", "ppo", "The critic's head is random and its learning rate is 0.", critic_random, STEPS, twin="ppo-twin",
        roots=("critic-misleads",), categories=("ood-drift",), verdicts=("drifting", "stalled", "steady"), needs_trl=TRL,
    ),
    Case(
        "ppo-reward-constant", "ppo", f"From update {BREAK + 1} on every response is scored 0.", constant_reward, STEPS, onset=BREAK, twin="ppo-twin",
        roots=("reward-collapse",), categories=("collapse",), verdicts=("collapsed",), needs_trl=TRL,
    ),
    Case(
        "ppo-reward-scale", "ppo", f"From update {BREAK + 1} on the scores are a hundred times as large.", reward_scale, STEPS, onset=BREAK, twin="ppo-twin",
        roots=("reward-scale-shift", "value-loss-spike", "reward-model-out-of-range"), categories=("numerics", "data"), verdicts=("improving", "steady", "drifting", "stalled"),
        goal="-value.loss", needs_trl=TRL,
    ),
    Case(
        "ppo-length-paid", "ppo", "From update 21 on the score is the length.", length_paid, STEPS, onset=20, twin="ppo-twin",
        roots=("paid-for-length", "reward-drop"), categories=("over-optimization",), verdicts=("over_optimizing",), goal="-completion.length_mean", needs_trl=TRL,
    ),
    Case(
        "ppo-kl-huge", "ppo", "KL coefficient of 5 instead of 0.05: the policy cannot leave its reference.", kl_huge, STEPS, twin="ppo-twin",
        roots=("over-regularised",), categories=("config", "stall"), verdicts=("stalled", "steady"), cure={"kl_coef": 0.05}, needs_trl=TRL,
    ),
    Case(
        "ppo-cap-short", "ppo", f"Responses are cut after {CUT} tokens and scored all the same.", cap_short, STEPS, twin="ppo-twin",
        roots=("truncated-completions", "never-terminates", "length-near-cap"), categories=("data", "ood-drift"), verdicts=("improving", "steady", "drifting"),
        cure={"response_length": 16}, goal="-completion.truncated_fraction", needs_trl=TRL,
    ),
)  # fmt: skip
