"""DPO and KTO on pairs of answers, the better of which has more vowels; see `offline`.

The healthy DPO brings the accuracy on unseen pairs from chance to about 0.9, as many as their letters allow. KTO logs no accuracy;
there the loss of unseen examples falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from tests.clinic.ward import offline
from tests.clinic.ward.case import HEALTHY_SEEDS, Case

from trainvitals.integrations import tiny

STEPS = 100
BREAK = 50
BRIEF = 80  # updates of the many healthy runs
BATCH = 8
ROWS = STEPS * BATCH
EVAL = 1000  # seeds of held-out rows begin here
BASE = {
    "max_steps": STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "per_device_train_batch_size": BATCH,
    "eval_strategy": "steps", "eval_steps": 20, "per_device_eval_batch_size": 32, "learning_rate": 3e-4, "beta": 0.1,
}  # fmt: skip


# ---- DPO ----


def dpo(folder: str, seed: int, *, rows: Any = None, choose: Callable[[Random], offline.Pair] = offline.quality, **changes: Any) -> Any:
    """The healthy training, or the same on other pairs; held-out pairs are always right."""
    rows = offline.pairs(ROWS, seed, choose) if rows is None else rows
    return offline.dpo(folder, rows=rows, held_out=offline.pairs(48, EVAL + seed), **{**BASE, "seed": seed, **changes})


def _drawn(draw: Random) -> dict[str, Any]:
    """Hyperparameters within the ranges that people use."""
    return {
        "max_steps": BRIEF,
        "learning_rate": draw.choice((2e-4, 3e-4, 5e-4)),
        "beta": draw.choice((0.05, 0.1, 0.2)),
        "per_device_train_batch_size": draw.choice((8, 8, 16)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "warmup_steps": draw.choice((0, 5, 10)),
        "eval_strategy": draw.choice(("no", "steps")),
        "logging_steps": draw.choice((1, 1, 10)),
    }


def dpo_varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and label noise drawn by the seed."""
    draw = Random(seed)
    settings = {**_drawn(draw), "label_smoothing": draw.choice((0.0, 0.0, 0.1))}
    rows = offline.pairs(480, seed, offline.mislabelled(draw.choice((0.0, 0.05, 0.1))))
    return dpo(folder, seed, rows=rows, **{**settings, **changes})


def dpo_later(folder: str, seed: int, *, choose: Callable[[Random], offline.Pair], **changes: Any) -> Any:
    """Other pairs from `BREAK` on: the second of two files, read in order."""
    rows = offline.pairs(BREAK * BATCH, seed) + offline.pairs(ROWS - BREAK * BATCH, 500 + seed, choose)
    return dpo(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def other_reference(folder: str, seed: int, **changes: Any) -> Any:
    """The reference was trained on after the policy was copied from it."""
    reference = tiny.pretrain(offline.policy(), tiny.tokenizer(), steps=15, seed=seed + 1)
    rows = offline.pairs(ROWS, seed)
    return offline.dpo(folder, rows=rows, held_out=offline.pairs(48, EVAL + seed), reference=reference, **{**BASE, "seed": seed, **changes})


def reference_follows(folder: str, seed: int, **changes: Any) -> Any:
    """The reference becomes the policy after every update (TR-DPO with the wrong numbers), so that no margin can grow."""
    return dpo(folder, seed, **{"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0, **changes})


def dpo_few(folder: str, seed: int, **changes: Any) -> Any:
    """24 pairs, a third of them mislabelled, 40 epochs."""
    return dpo(folder, seed, rows=offline.pairs(24, seed, offline.mislabelled(0.33)), **{"learning_rate": 5e-4, **changes})


def dpo_rate_later(folder: str, seed: int, *, factor: float, **changes: Any) -> Any:
    """The learning rate times a factor from `BREAK` on."""
    return offline.at(dpo(folder, seed, **changes), BREAK, offline.scale_rate(factor))


def dpo_nan(folder: str, seed: int, **changes: Any) -> Any:
    """A weight of the last layer becomes NaN."""
    return offline.at(dpo(folder, seed, **changes), BREAK, offline.poison)


# ---- KTO ----


def kto(folder: str, seed: int, *, rows: Any = None, **changes: Any) -> Any:
    """The healthy training, or the same on other examples; held-out examples are always right."""
    rows = offline.examples(ROWS, seed) if rows is None else rows
    return offline.kto(folder, rows=rows, held_out=offline.examples(48, EVAL + seed), **{**BASE, "seed": seed, **changes})


def kto_varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters and label noise drawn by the seed."""
    draw = Random(seed)
    settings, choose = _drawn(draw), offline.mislabelled(draw.choice((0.0, 0.05, 0.1)))
    labels = draw.choice(((True, False), (True, True, False), (True, False, False)))
    share = sum(labels) / len(labels)  # the weights balance the classes, as TRL's guide asks
    weights = {"desirable_weight": max(1.0, (1 - share) / share), "undesirable_weight": max(1.0, share / (1 - share))}
    return kto(folder, seed, rows=offline.examples(480, seed, choose, labels), **{**settings, **weights, **changes})


def kto_labels(folder: str, seed: int, *, labels: Sequence[bool], **changes: Any) -> Any:
    """Labels in another proportion."""
    return kto(folder, seed, rows=offline.examples(ROWS, seed, labels=labels), **changes)


def kto_sorted(folder: str, seed: int, **changes: Any) -> Any:
    """The second half of the examples, read in order, holds undesirable ones only."""
    rows = offline.examples(BREAK * BATCH, seed) + offline.examples(ROWS - BREAK * BATCH, 500 + seed, labels=(False,))
    return kto(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def kto_reversed(folder: str, seed: int, **changes: Any) -> Any:
    """Good answers are labelled undesirable and bad ones desirable."""
    return kto(folder, seed, rows=offline.examples(ROWS, seed, offline.swapped), **changes)


def kto_blocked(folder: str, seed: int, **changes: Any) -> Any:
    """No gradient reaches a weight any more."""
    return offline.at(kto(folder, seed, **changes), BREAK, offline.block)


def kto_noise_hard(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: a fifth of the labels is wrong, and ten updates make one logged row."""
    return kto(folder, seed, rows=offline.examples(ROWS, seed, offline.mislabelled(0.2)), **{"logging_steps": 10, **changes})


def _case(trainer: str, fault: str, what: str, build: Any, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": "eval.accuracy" if trainer == "dpo" else "-eval.loss", **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


_dpo, _kto = partial(_case, "dpo"), partial(_case, "kto")
LEARNS: Any = ("improving", "steady")
CASES: tuple[Case, ...] = (
    Case("dpo-twin", "dpo", "The base settings.", dpo, STEPS, goal="eval.accuracy"),
    Case("dpo-healthy", "dpo", "Hyperparameters, label noise and evaluation vary.", dpo_varied, BRIEF, goal="preference.accuracy", seeds=HEALTHY_SEEDS),
    Case("dpo-hard-noise", "dpo", "Healthy: a fifth of the labels is swapped, as with human raters.", partial(dpo, choose=offline.mislabelled(0.2)), STEPS, goal="eval.accuracy", hard=True),
    _dpo(
        "reversed", "Chosen and rejected are swapped, not so in the held-out pairs.", partial(dpo, choose=offline.swapped),
        ["labels-reversed", "evaluation-contradicts"], ("data",), ("drifting", "over_optimizing"),
    ),
    _dpo(
        "reversed-later", f"Chosen and rejected are swapped from update {BREAK + 1} on.", partial(dpo_later, choose=offline.swapped),
        ["labels-reversed", "evaluation-contradicts"], ("data",), ("drifting", "over_optimizing", "diverged"), onset=BREAK,
    ),
    _dpo("identical", "Chosen and rejected are the same.", partial(dpo, choose=offline.same), ["identical-pairs"], ("data",), ("stalled",)),
    _dpo(
        "rate-100x", "Learning rate 0.03 instead of 0.0003.", partial(dpo, learning_rate=3e-2), ["step-size-too-large", "margin-explosion", "likelihood-displacement", "preference-over-optimised"],
        ("over-optimization", "ood-drift", "numerics"), ("diverged", "over_optimizing", "drifting"), cure={"learning_rate": 3e-4}, goal="preference.logp_chosen", learned="eval.accuracy",
    ),
    _dpo(
        "rate-jump", f"The learning rate is 100 times higher from update {BREAK + 1} on.", partial(dpo_rate_later, factor=100),
        ["learning-rate-jump", "step-size-too-large", "margin-explosion", "likelihood-displacement"], ("config", "numerics", "over-optimization", "ood-drift"), ("diverged", "over_optimizing", "drifting"), onset=BREAK,
        cure={"learning_rate": 3e-4}, goal="preference.logp_chosen", learned="eval.accuracy",
    ),
    _dpo("reference", "The reference was trained on after the policy was copied from it.", other_reference, ["reference-mismatch"], ("config", "ood-drift"), ("drifting", *LEARNS)),
    _dpo(
        "reference-follows", "The reference is replaced by the policy after every update.", reference_follows, ["policy-equals-reference"], ("config", "stall"), ("stalled",),
        cure={"sync_ref_model": False},
    ),
    _dpo("beta-huge", "Beta 20 instead of 0.1 pins the policy to its reference.", partial(dpo, beta=20.0), ["beta-too-large"], ("config",), ("stalled", "over_optimizing"), cure={"beta": 0.1}, goal="-eval.loss"),
    _dpo("few", "24 pairs, a third of them mislabelled, 40 epochs.", dpo_few, ["overfitting", "memorised-epoch", "preference-over-optimised"], ("over-optimization",), ("over_optimizing",)),
    _dpo("random", "Half of the labels are swapped.", partial(dpo, choose=offline.mislabelled(0.5)), ["preference-not-learning"], ("stall", "data"), ("stalled",)),
    _dpo("nan", f"A weight becomes NaN before update {BREAK + 1}.", dpo_nan, ["nonfinite-loss", "hidden-nan"], ("numerics",), ("diverged",), onset=BREAK),
    Case("kto-twin", "kto", "The base settings.", kto, STEPS, goal="-eval.loss"),
    Case("kto-healthy", "kto", "Hyperparameters, class shares with their weights, label noise and evaluation vary.", kto_varied, BRIEF, goal="-optim.loss", seeds=HEALTHY_SEEDS),
    Case("kto-hard-noise", "kto", kto_noise_hard.__doc__ or "", kto_noise_hard, STEPS, goal="-eval.loss", hard=True),
    _kto("one-class-later", f"Only undesirable examples from update {BREAK + 1} on.", kto_sorted, ["kto-one-class"], ("data",), ("drifting", "over_optimizing", "collapsed"), onset=BREAK),
    _kto(
        "imbalance", "One desirable example in eight, unweighted.", partial(kto_labels, labels=(True, *[False] * 7)), ["kto-imbalance"], ("data", "config"),
        ("drifting", "over_optimizing", "collapsed"), cure={"desirable_weight": 7.0}, goal="preference.logp_chosen", learned="eval.margin",  # the loss holds the weights
    ),
    _kto(
        "rate-100x", "Learning rate 0.03 instead of 0.0003.", partial(kto, learning_rate=3e-2), ["step-size-too-large", "margin-explosion", "kto-kl-zero"],
        ("over-optimization", "numerics", "config", "ood-drift"), ("diverged", "over_optimizing", "drifting"), cure={"learning_rate": 3e-4}, goal="preference.logp_chosen", learned="-eval.loss",
    ),
    _kto("reversed", "Good answers are labelled undesirable and bad ones desirable, not so in the held-out set.", kto_reversed, ["labels-reversed", "evaluation-contradicts"], ("data",), ("drifting", "over_optimizing")),
    _kto("blocked", f"No gradient reaches a weight from update {BREAK + 1} on.", kto_blocked, ["gradient-vanished", "gradient-blocked"], ("stall", "numerics"), ("stalled",), onset=BREAK),
)  # fmt: skip
