"""The second round: DPO, KTO, ORPO, online DPO and reward models, see `cases_round2_rl` and docs/decisions/0009."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_supervised, offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import BATCH, BREAK, EVAL, ROWS, STEPS, dpo, kto
from tests.clinic.ward.cases_round2_rl import HEALTHY_SEEDS
from tests.suite import build_preference
from transformers import AutoModelForCausalLM, TrainerCallback

from trainvitals.integrations import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

ORPO = {
    "max_steps": STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "per_device_train_batch_size": BATCH,
    "eval_strategy": "steps", "eval_steps": 20, "per_device_eval_batch_size": 32, "learning_rate": 1e-3, "beta": 0.5,
}  # fmt: skip
ONLINE_STEPS = 80
ONLINE = {
    "max_steps": ONLINE_STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "per_device_train_batch_size": 16,
    "learning_rate": 1e-3, "beta": 0.05, "max_new_tokens": 16,
}  # fmt: skip


# ---- ORPO ----


def orpo(folder: str, seed: int, *, rows: Any = None, choose: Callable[[Random], offline.Pair] = offline.quality, **changes: Any) -> Any:
    """The healthy training, or the same on other pairs; held-out pairs are always right."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    vocabulary, start = tiny.tokenizer(), str(Path(folder) / "start")
    tiny.policy(vocabulary).save_pretrained(start)
    settings = {**ORPO, "max_length": 64, "seed": seed, **changes}
    return ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=ORPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(offline.pairs(ROWS, seed, choose) if rows is None else rows),
        eval_dataset=offline._set(offline.pairs(48, EVAL + seed)),
        processing_class=vocabulary,
    )


def orpo_one_bad_class(folder: str, seed: int, **changes: Any) -> Any:
    """The chosen answers are all one text: an empty column that was filled with a default."""
    rows = offline.pairs(ROWS, seed)
    for row in rows:
        row["chosen"] = offline.turn("assistant", "no answer")
    return orpo(folder, seed, rows=rows, **changes)


# ---- online DPO ----


def online(folder: str, seed: int, *, reward: Any = tiny.vowels, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """The healthy training: two answers a prompt, the one with more vowels is chosen."""

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return list(reward(completions))

    return build_preference.online_dpo(folder, reward=vowels, callbacks=callbacks, **{**ONLINE, "seed": seed, **changes})


def first_position(folder: str, seed: int, **changes: Any) -> Any:
    """The judge prefers what stands first, whatever it says."""

    def first(completions: Sequence[Any], **kwargs: Any) -> list[float]:
        return [float(place < len(completions) / 2) for place in range(len(completions))]

    return online(folder, seed, reward=first, **changes)


def longer_wins(folder: str, seed: int, **changes: Any) -> Any:
    """The judge prefers the longer answer."""
    return online(folder, seed, reward=lambda completions: [float(len(tiny.text_of(text))) for text in completions], **changes)


# ---- DPO ----


def longer(random: Random) -> offline.Pair:
    """Of two answers of like quality nine times in ten the longer one is chosen."""
    size, letters = random.randint(3, 6), offline.VOWELS + offline.OTHERS
    long, short = "".join(random.choices(letters, k=size + random.randint(2, 9))), "".join(random.choices(letters, k=size))
    return (long, short) if random.random() < 0.9 else (short, long)


class AfterEvery(TrainerCallback):  # type: ignore[misc]
    """Does something after every update, before an evaluation looks at the weights."""

    def __init__(self, act: Callable[..., None]) -> None:
        self.act = act

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Act."""
        self.act(**parts)


def in_eight_bits(folder: str, seed: int, **changes: Any) -> Any:
    """Weights are kept in 8 bits without a master copy: most updates are below their resolution and vanish."""

    def round_all(model: Any, **parts: Any) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))

    trainer = dpo(folder, seed, **changes)
    round_all(trainer.model)
    round_all(trainer.ref_model)
    trainer.add_callback(AfterEvery(round_all))
    return trainer


def weights_lost(folder: str, seed: int, **changes: Any) -> Any:
    """Before update 51 the policy's weights are random: a resume that built the model and loaded nothing."""
    other = tiny.model(tiny.tokenizer(), seed=11).state_dict()
    return offline.at(dpo(folder, seed, **changes), BREAK, lambda model, **parts: model.load_state_dict(other))


# ---- KTO ----


def weights_inverted(folder: str, seed: int, **changes: Any) -> Any:
    """One desirable example in four; the weight of three went to the other class."""
    rows = offline.examples(ROWS, seed, labels=(True, False, False, False))
    return kto(folder, seed, rows=rows, **{"undesirable_weight": 3.0, **changes})


def random_reference(folder: str, seed: int, **changes: Any) -> Any:
    """The reference has random weights."""
    trainer = kto(folder, seed, **changes)
    trainer.ref_model.load_state_dict(tiny.model(tiny.tokenizer(), seed=11).state_dict())
    return trainer


# ---- reward models ----


def head_dead(folder: str, seed: int, **changes: Any) -> Any:
    """The head that gives the score is zero and frozen: it was left out of the list of modules to train."""
    trainer = cases_supervised.reward(folder, seed, **changes)
    head = trainer.model.score.weight
    with torch.no_grad():
        head.zero_()
    head.requires_grad_(False)
    return trainer


def margins(folder: str, seed: int, **changes: Any) -> Any:
    """The column of margins holds 50: differences of scores are asked for in another unit."""
    rows = offline.pairs(cases_supervised.ROWS, seed, offline.mislabelled(0.05))
    return cases_supervised.reward(folder, seed, rows=[{**row, "margin": 50.0} for row in rows], **changes)


def backbone_reset(folder: str, seed: int, **changes: Any) -> Any:
    """Before update 61 the embeddings become noise, and stay it: they are frozen from then on."""

    def noise(model: Any, **parts: Any) -> None:
        table = model.get_input_embeddings().weight
        with torch.no_grad():
            table.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed))
        table.register_hook(torch.zeros_like)

    return offline.at(cases_supervised.reward(folder, seed, **changes), cases_supervised.BREAK, noise)


def changed(folder: str, seed: int, *, base: Callable[..., Any], fault: dict[str, Any], **changes: Any) -> Any:
    """A healthy training with other parameters."""
    return base(folder, seed, **{**fault, **changes})


def _case(trainer: str, fault: str, what: str, build: Any, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    goal = "-eval.loss" if trainer == "kto" else "reward.mean" if trainer == "online_dpo" else "eval.accuracy"
    steps = {"reward": cases_supervised.STEPS, "online_dpo": ONLINE_STEPS}.get(trainer, STEPS)
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **{"twin": f"{trainer}-twin", "goal": goal, **more})


_dpo, _kto, _orpo, _online, _reward = (partial(_case, trainer) for trainer in ("dpo", "kto", "orpo", "online_dpo", "reward"))
LEARNS: Any = ("improving", "steady")
CASES: tuple[Case, ...] = (
    Case("orpo-twin", "orpo", "The base settings.", orpo, STEPS, goal="eval.accuracy"),
    Case("online_dpo-twin", "online_dpo", "The base settings.", online, ONLINE_STEPS),
    Case(
        "dpo-no-warmup", "dpo", "Healthy: a constant learning rate without warm-up.", partial(changed, base=dpo, fault={"lr_scheduler_type": "constant", "warmup_steps": 0}),
        STEPS, goal="eval.accuracy", seeds=HEALTHY_SEEDS, hard=True,
    ),
    _orpo("lambda-huge", "The weight of the odds ratio is 100 instead of 0.5.", partial(orpo, beta=100.0), ["preference-term-dominates", "likelihood-displacement", "no-rule:lambda-too-large"],
          ("ood-drift", "config", "over-optimization"), ("drifting", "diverged", "over_optimizing"), cure={"beta": 0.5}, goal="-preference.nll"),
    _orpo("answers-cut", "A length of 28 tokens leaves little or nothing of the answers.", partial(orpo, max_length=28), ["no-completion-tokens", "labels-masked", "no-rule:answers-cut"],
          ("data", "config"), ("stalled", "diverged"), cure={"max_length": 64}),
    _orpo("chosen-default", "Every chosen answer is the same default text.", orpo_one_bad_class, ["loss-too-low", "evaluation-contradicts", "chosen-all-alike"],
          ("data", "over-optimization"), ("drifting", "over_optimizing", *LEARNS)),
    _online("first-position", "The judge prefers what stands first.", first_position, ["reward-plateau", "preference-not-learning", "no-rule:judge-by-position"],
            ("stall", "data"), ("stalled", "drifting"), goal="preference.margin"),
    _online("longer-wins", "The judge prefers the longer answer.", longer_wins, ["paid-for-length", "never-terminates", "truncated-completions", "length-growth-without-gain"],
            ("over-optimization", "ood-drift", "data"), ("over_optimizing", "drifting", "collapsed"), goal="-completion.length_mean"),
    _dpo("longer", "Of two answers of like quality nine times in ten the longer is chosen.", partial(dpo, choose=longer), ["reward-follows-length", "evaluation-contradicts", "preference-over-optimised", "preference-follows-length"],
         ("over-optimization", "data"), ("over_optimizing", "stalled", "drifting")),
    _dpo("beta-negative", "Beta -0.1: every metric looks right, the policy learns the opposite.", partial(dpo, beta=-0.1), ["likelihood-displacement", "labels-reversed", "beta-negative"],
         ("ood-drift", "config", "data"), ("drifting", "diverged", "over_optimizing"), cure={"beta": 0.1}, goal="preference.logp_chosen"),
    _dpo("beta-zero", "Beta 0: the loss is ln 2 whatever the policy does.", partial(dpo, beta=0.0), ["preference-not-learning", "policy-equals-reference", "gradient-vanished", "beta-zero"],
         ("stall", "config"), ("stalled",), cure={"beta": 0.1}),
    _dpo("eight-bits", "Weights are kept in 8 bits without a master copy: updates vanish.", in_eight_bits, ["preference-not-learning", "policy-equals-reference", "updates-too-small"],
         ("stall", "numerics"), ("stalled",)),
    _dpo("weights-lost", f"Before update {BREAK + 1} the policy's weights are random.", weights_lost, ["loss-spike", "loss-diverged", "likelihood-displacement", "no-rule:weights-changed-by-hand", "weights-changed-outside"],
         ("numerics", "ood-drift", "data"), ("diverged", "drifting", "collapsed"), onset=BREAK, goal="preference.logp_chosen"),
    _kto("weights-inverted", "One desirable example in four, and the weight of three on the other class.", weights_inverted, ["kto-imbalance"], ("data", "config"),
         ("drifting", "over_optimizing", "collapsed"), cure={"desirable_weight": 3.0, "undesirable_weight": 1.0}, goal="preference.logp_chosen", learned="eval.margin"),  # the loss holds the weights
    _kto("random-reference", "The reference has random weights.", random_reference, ["reference-mismatch"], ("config", "ood-drift"), ("drifting", "diverged", *LEARNS)),
    _reward("head-dead", "The head of the score is zero and frozen.", head_dead, ["reward-model-at-chance", "gradient-vanished", "gradient-blocked"], ("stall",), ("stalled",)),
    _reward("margins", "The column of margins asks for differences of 50.", margins, ["margins-out-of-reach", "reward-scores-explode", "loss-starts-high", "reward-model-overconfident"],
            ("over-optimization", "data", "numerics", "config"), ("over_optimizing", "drifting", "diverged", *LEARNS), goal="-eval.loss"),
    _reward("embeddings-noise", f"Before update {cases_supervised.BREAK + 1} the embeddings become noise, for good.", backbone_reset,
            ["reward-model-at-chance", "loss-spike", "reward-scores-vanish"], ("stall", "data", "numerics"), ("stalled", "drifting", "diverged"), onset=cases_supervised.BREAK),
)  # fmt: skip
