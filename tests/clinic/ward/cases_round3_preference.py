"""The third round: DPO, KTO, ORPO and reward models, see `cases_round3_rl` and docs/decisions/0011."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_supervised, offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import BREAK, ROWS, STEPS, dpo, kto
from tests.clinic.ward.cases_round2_preference import changed, orpo
from tests.clinic.ward.cases_round2_rl import Every
from tests.clinic.ward.cases_round3_rl import HEALTHY_SEEDS, SEEDS
from tests.clinic.ward.plants import planned_for

SHORT = 30
"""Updates that the schedule of `schedule_short` was planned for."""


def marked(random: Random) -> offline.Pair:
    """Chosen answers come from another source, which closes each with a mark; hardly a pair differs in anything else."""
    better, worse = offline.quality(random)
    return (better if random.random() < 0.1 else offline.quality(random)[1]) + " -", worse


def hidden_grows(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the last hidden state grows by 4 % per update: a decay whose sign is wrong for the norms."""

    def grow(model: Any, **parts: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.mul_(1.04)

    trainer = dpo(folder, seed, **changes)
    trainer.add_callback(Every(grow, BREAK))
    return trainer


def schedule_short(folder: str, seed: int, **changes: Any) -> Any:
    """A linear schedule that was planned for 30 of the 100 updates."""
    return planned_for(orpo(folder, seed, **{"lr_scheduler_type": "linear", **changes}), SHORT)


def kto_few(folder: str, seed: int, **changes: Any) -> Any:
    """24 examples, a third of them mislabelled, 33 epochs."""
    return kto(folder, seed, rows=offline.examples(24, seed, offline.mislabelled(0.33)), **{"learning_rate": 6e-4, **changes})


def hardly_desirable(folder: str, seed: int, **changes: Any) -> Any:
    """One desirable example for 19 undesirable ones, unweighted."""
    return kto(folder, seed, rows=offline.examples(ROWS, seed, labels=(True, *[False] * 19)), **changes)


def batch_of_two(folder: str, seed: int, **changes: Any) -> Any:
    """Two examples make a batch: the estimate of the reference point is a coin's throw that cannot be negative."""
    return kto(folder, seed, **{"per_device_train_batch_size": 2, **changes})


def no_preference(random: Random) -> offline.Pair:
    """Two samples of one model, of which either may be called the better."""
    letters = offline.VOWELS * 4 + offline.OTHERS
    first, second = ("".join(random.choices(letters, k=random.randint(4, 9))) for _ in range(2))
    return first, second


def reward_epochs(folder: str, seed: int, **changes: Any) -> Any:
    """120 pairs, three in ten mislabelled, eight epochs at twice the rate."""
    rows = offline.pairs(120, seed, offline.mislabelled(0.3))
    return cases_supervised.reward(folder, seed, rows=rows, **{"learning_rate": 1e-3, **changes})


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    goal = "-eval.loss" if trainer == "kto" else "eval.accuracy"
    settings = {"twin": f"{trainer}-twin", "goal": goal, "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, cases_supervised.STEPS if trainer == "reward" else STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


_dpo, _kto, _orpo, _reward = (partial(_case, trainer) for trainer in ("dpo", "kto", "orpo", "reward"))
LEARNS: Any = ("improving", "steady")
CASES: tuple[Case, ...] = (
    Case(
        "dpo-synced-reference", "dpo", "Healthy: the reference is moved towards the policy every 25 updates (TR-DPO), on purpose (TR-12).",
        partial(changed, base=dpo, fault={"sync_ref_model": True, "ref_model_sync_steps": 25, "ref_model_mixup_alpha": 0.6}), STEPS, goal="eval.accuracy", seeds=HEALTHY_SEEDS, hard=True,
    ),
    Case("dpo-ipo", "dpo", "Healthy: the IPO loss, which is of another size.", partial(changed, base=dpo, fault={"loss_type": "ipo"}), STEPS, goal="eval.accuracy", seeds=HEALTHY_SEEDS, hard=True),
    Case("kto-apo", "kto", "Healthy: the loss without a reference point (apo_zero_unpaired).", partial(changed, base=kto, fault={"loss_type": "apo_zero_unpaired"}), STEPS, goal="-eval.loss", seeds=HEALTHY_SEEDS, hard=True),
    _dpo("marked", "Chosen answers close with a mark of their source, and nine in ten differ from the rejected ones in nothing else (RM-05).", partial(dpo, choose=marked),
         ["preference-does-not-transfer", "no-rule:chosen-answers-are-marked"], ("over-optimization", "data"), ("over_optimizing", "drifting", *LEARNS)),
    _dpo("hidden-grows", f"From update {BREAK + 1} on the last hidden state grows by 4 % per update (RE-02).", hidden_grows, ["likelihood-displacement", "no-rule:hidden-states-grow", "weights-changed-outside"],
         ("numerics", "ood-drift"), ("diverged", "drifting", "over_optimizing"), onset=BREAK, goal="preference.logp_chosen"),
    _kto("few", "24 examples, a third of them mislabelled, 33 epochs (DP-03).", kto_few, ["overfitting", "memorised-epoch", "preference-over-optimised"], ("over-optimization",), ("over_optimizing",)),
    _kto("hardly-desirable", "One desirable example for 19 undesirable ones, unweighted (KT-01).", hardly_desirable, ["kto-imbalance"], ("data", "config"), ("drifting", "over_optimizing", "collapsed"),
         cure={"desirable_weight": 19.0}, goal="preference.logp_chosen", learned="eval.margin"),
    _kto("batch-of-two", "Two examples make a batch, so that the reference point is 0 most of the time (KT-02).", batch_of_two, ["kto-kl-zero", "kto-batch-too-small"], ("config",), ("drifting", *LEARNS),
         cure={"per_device_train_batch_size": 8}, goal="eval.margin"),  # the loss holds weights that the random arm may draw
    _orpo("schedule-short", f"A linear schedule that was planned for {SHORT} of the 100 updates (NU-12).", schedule_short, ["learning-rate-zero"], ("config", "stall"), ("stalled", "steady"),
          goal="-preference.nll"),
    _orpo("labels-swapped", "Chosen and rejected are swapped, not so in the held-out pairs (DP-05).", partial(orpo, choose=offline.swapped), ["labels-reversed", "evaluation-contradicts"], ("data",),
          ("drifting", "over_optimizing")),
    _reward("no-preference", "Both answers of a pair are samples of one model, and either may be called the better (RM-01).", partial(cases_supervised.reward_choice, choose=no_preference),
            ["reward-model-at-chance"], ("stall", "data"), ("stalled",)),
    _reward("epochs", "120 pairs, three in ten mislabelled, eight epochs at twice the rate (RM-04).", reward_epochs,
            ["overfitting", "reward-model-overconfident", "memorised-epoch"], ("over-optimization",), ("over_optimizing",)),
)  # fmt: skip
