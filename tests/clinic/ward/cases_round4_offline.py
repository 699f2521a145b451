"""The fourth round: SFT, reward models, DPO, KTO and ORPO, see `cases_round4_rl` and docs/decisions/0012."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_supervised, offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import EVAL, dpo, kto
from tests.clinic.ward.cases_round2_preference import orpo
from tests.clinic.ward.cases_round4_rl import SEEDS, TWIN_SEEDS
from tests.clinic.ward.cases_supervised import Masked, sft
from transformers import PrinterCallback

from trainvitals.integrations import tiny

PACKED = {"packing": True, "packing_strategy": "wrapped", "eval_packing": False, "max_length": 160, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "max_steps": 180}
RESUME = 60
AWAY_ASK = "TRANSLATE: {}-{} INTO {}"


# ---- SFT: healthy ----


def resumed(folder: str, seed: int, **changes: Any) -> Any:
    """A run that ended after 40 updates goes on from its checkpoint, with all that belongs to it."""
    first = sft(folder, seed, **{**changes, "max_steps": 120, "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 40})
    first.add_callback(_Stop(40))
    first.remove_callback(PrinterCallback)
    first.train()
    again = sft(folder, seed, **{"lr_scheduler_type": "linear", **changes})
    train = again.train
    again.train = lambda: train(resume_from_checkpoint=f"{folder}/checkpoint-40")
    return again


class _Stop(offline.At):
    """Ends a training after some updates."""

    def __init__(self, step: int) -> None:
        super().__init__(step, lambda **parts: None)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stop when it is time."""
        if state.global_step >= self.step:
            control.should_training_stop = True


def wide(folder: str, seed: int, **changes: Any) -> Any:
    """A model half as wide again with fewer schooling steps, answers of three words with a few misspellings, batches of twelve."""
    answer = partial(offline.phrase, noise=0.03, count=3)
    settings = {"per_device_train_batch_size": 12, "learning_rate": 2e-3, "max_length": 72, "lr_scheduler_type": "cosine", "weight_decay": 0.01, "max_steps": 100}
    model = tiny.pretrain(tiny.model(tiny.tokenizer(), seed=3, width=96), tiny.tokenizer(), steps=60, seed=3)
    return sft(folder, seed, rows=offline.dialogues(12 * 100, seed, answer), answer=answer, model=model, **{**settings, **changes})


def packed(folder: str, seed: int, **changes: Any) -> Any:
    """Rows are packed, five to a sequence, and neighbours have nothing to do with each other."""
    return sft(folder, seed, rows=offline.dialogues(3600, seed), **{**PACKED, **changes})


def away(random: Random) -> offline.Row:
    """A row of another domain: other questions, other words."""
    ask = AWAY_ASK.format(random.randint(100, 999), random.randint(100, 999), random.choice(("GREEK", "LATIN")))
    return {"prompt": offline.turn("user", ask), "completion": offline.turn("assistant", offline.phrase(random, offline.AWAY))}


@cache
def _schooled() -> dict[str, torch.Tensor]:
    """Weights of the policy after it has learned the words of `offline.HOME`."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trainer = offline.sft(folder, rows=offline.dialogues(960, 77), **{**cases_supervised.SFT, "max_steps": 100, "seed": 77})
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def second_subject(folder: str, seed: int, *, replay: float, **changes: Any) -> Any:
    """A model that knows one domain learns another, with that share of rows of the first; the first is what is evaluated."""
    random, model = Random(seed), offline.policy()
    model.load_state_dict(_schooled())
    home = offline.dialogues(960, seed)
    rows = [row if random.random() < replay else away(random) for row in home]
    return sft(folder, seed, rows=rows, model=model, **{"learning_rate": 2e-3, "eval_steps": 10, **changes})


# ---- SFT: faults ----


def grows(folder: str, seed: int, **changes: Any) -> Any:
    """From update 41 on the share of a second source grows from nothing to all: its sampler has no weights, and the first source runs dry. Evaluated is the first."""
    random, rows = Random(seed), offline.dialogues(960, seed)
    mixed = [away(random) if random.random() < (place / 8 - 40) / 50 else row for place, row in enumerate(rows)]
    return sft(folder, seed, rows=mixed, **{"train_sampling_strategy": "sequential", **changes})


def adapter_scale(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters of rank 64 with an alpha of 0.25: what they add is divided by 256."""
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=64, lora_alpha=0.25, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return sft(folder, seed, model=get_peft_model(offline.policy(), adapters), **{"learning_rate": 1e-3, **changes})


def many_views(folder: str, seed: int, **changes: Any) -> Any:
    """24 rows of answers of four words are read forty times at a rate and a half."""
    answer = partial(offline.phrase, count=4)
    return sft(folder, seed, rows=offline.dialogues(24, seed, answer), answer=answer, **{"learning_rate": 6e-3, "max_length": 80, "eval_steps": 10, **changes})


def role_renamed(folder: str, seed: int, **changes: Any) -> Any:
    """From update 61 on the rows are of another export, which calls the assistant a model: the collator that looks for the assistant finds nothing to label."""
    rows = offline.dialogues(960, seed)
    for row in rows[60 * 8 :]:
        row["completion"] = [{**row["completion"][0], "role": "model"}]
    return sft(folder, seed, rows=rows, collator=Masked(tiny.tokenizer()), **{"train_sampling_strategy": "sequential", **changes})


# ---- reward models ----


def reward_linear(folder: str, seed: int, **changes: Any) -> Any:
    """A linear schedule to 0, pairs read in order."""
    return cases_supervised.reward(folder, seed, **{"lr_scheduler_type": "linear", "learning_rate": 8e-4, "train_sampling_strategy": "sequential", **changes})


def resumed_anew(folder: str, seed: int, **changes: Any) -> Any:
    """After update 60 the run is resumed with its weights alone: no state of the optimizer, the schedule and the data from their beginning."""
    half = offline.pairs(RESUME * 8, seed, offline.mislabelled(0.05))

    def forget(optimizer: Any, lr_scheduler: Any, **parts: Any) -> None:
        optimizer.state.clear()
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.last_epoch = 0

    return offline.at(reward_linear(folder, seed, rows=half + half, **changes), RESUME, forget)


# ---- DPO, KTO, ORPO ----


def dpo_adapters(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters of rank 8 on all projections; the reference is the model without them."""
    from peft import LoraConfig
    from tests.clinic.ward.cases_preference import BASE
    from trl import DPOConfig, DPOTrainer

    adapters = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return DPOTrainer(
        model=offline.policy(),
        args=DPOConfig(**tiny.arguments(folder, **{**BASE, "max_length": 64, "learning_rate": 3e-4, "seed": seed, **changes})),
        train_dataset=offline._set(offline.pairs(960, seed)),
        eval_dataset=offline._set(offline.pairs(48, EVAL + seed)),
        processing_class=tiny.tokenizer(),
        peft_config=adapters,
    )


def harder_pairs(folder: str, seed: int, **changes: Any) -> Any:
    """Easy pairs come first, then ones that are less and less clear, in order and as planned."""
    random, rows = Random(seed), []
    for place in range(110 * 8):
        rows += offline.pairs(1, random.randrange(10**9), partial(offline.quality, noise=0.1 + 0.3 * place / 880))
    return dpo(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", "beta": 0.2, "max_steps": 110, **changes})


def two_epochs(folder: str, seed: int, **changes: Any) -> Any:
    """Two views of 640 examples in batches of 16, a cosine, a tenth of the labels wrong."""
    rows = offline.examples(640, seed, offline.mislabelled(0.1))
    return kto(folder, seed, rows=rows, **{"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 10, "max_steps": 80, **changes})


def blocks(folder: str, seed: int, **changes: Any) -> Any:
    """The export is grouped by label: 25 batches of desirable examples, 25 of undesirable ones, and so on, read in order."""
    rows = []
    for place in range(2):
        rows += offline.examples(200, 100 * seed + 2 * place, labels=(True,)) + offline.examples(200, 100 * seed + 2 * place + 1, labels=(False,))
    return kto(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def norm_scaled(folder: str, seed: int, **changes: Any) -> Any:
    """The checkpoint was converted with the last norm eight times as large: the policy is certain of what it does not know."""
    trainer = orpo(folder, seed, **changes)
    with torch.no_grad():
        trainer.model.model.norm.weight.mul_(8.0)
    return trainer


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    goal = "-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy"
    settings = {"twin": f"{trainer}-twin", "goal": goal, "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


def _healthy(name: str, what: str, build: Callable[..., Any], steps: int, *, seeds: Sequence[int] = SEEDS, hard: bool = False) -> Case:
    trainer = name.split("-")[0]
    return Case(name, trainer, what, build, steps, goal="-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy", seeds=tuple(seeds), hard=hard)


LEARNS: Any = ("improving", "steady")
_sft, _dpo = partial(_case, "sft"), partial(_case, "dpo")
CASES: tuple[Case, ...] = (
    _healthy("sft-packed", "Healthy: rows are packed, five to a sequence, 180 updates.", packed, PACKED["max_steps"]),
    _healthy("sft-replay-twin", "A model that knows one domain learns another, with half of the rows of the first.", partial(second_subject, replay=0.5), 120, seeds=TWIN_SEEDS),
    _healthy("reward-linear-twin", "A linear schedule to 0, pairs read in order.", reward_linear, 120, seeds=TWIN_SEEDS),
    _healthy("dpo-lora-twin", "Adapters of rank 8 on all projections.", dpo_adapters, 100, seeds=TWIN_SEEDS),
    _healthy("sft-resumed", "Healthy: a run that ended after 40 updates goes on from its checkpoint.", resumed, 120, hard=True),
    _healthy("sft-wide", "Healthy: a wider model, longer answers with misspellings, batches of twelve, weight decay.", wide, 100),
    _healthy("dpo-harder-pairs", "Healthy: the pairs become harder in the course of the run, as planned.", harder_pairs, 110, hard=True),
    _healthy("kto-two-epochs", "Healthy: two views of 640 examples, a tenth of the labels wrong, a cosine.", two_epochs, 80),
    _sft("source-grows", "From update 41 on the share of another source grows from nothing to all (SF-13).", grows, 120, ["prompt-drift", "overfitting", "completion-drift"],
         ("ood-drift", "data", "over-optimization"), ("drifting", "over_optimizing"), onset=40, from_start=("data-sorted",)),
    _sft("adapter-scale", "Adapters of rank 64 with an alpha of 0.25 (LO-10).", adapter_scale, 120, ["loss-plateau", "no-rule:adapter-scale-too-small"], ("stall", "config"), ("stalled", "steady"),
         twin="sft-lora-twin"),
    _sft("many-views", "24 rows are read forty times at a rate and a half (SF-02).", many_views, 120, ["memorised-epoch", "overfitting", "too-many-epochs"], ("over-optimization", "config"), ("over_optimizing",)),
    _sft("role-renamed", "From update 61 on rows are of an export in which the collator finds no answer (SF-04).", role_renamed, 120, ["labels-masked", "rows-without-labels"], ("data",), ("stalled", "diverged"), onset=60, from_start=("data-sorted",)),
    _sft("forgets", "A model that knows one domain learns another, without a row of the first (SF-09).", partial(second_subject, replay=0.0), 120, ["evaluation-unlearned", "overfitting", "no-rule:forgetting"],
         ("over-optimization", "ood-drift"), ("over_optimizing", "drifting"), twin="sft-replay-twin"),
    _case("reward", "resumed-anew", f"After update {RESUME} the run is resumed with its weights alone: optimizer, schedule and data begin anew (NU-13).", resumed_anew, 120,
          ["resumed-without-optimizer", "learning-rate-jump"], ("config", "numerics"), ("drifting", *LEARNS), onset=RESUME, from_start=("duplicate-rows",), twin="reward-linear-twin"),
    _dpo("adapters-outgrow", "The learning rate of the adapters is 0.1, over three hundred times too high (LO-09).", partial(dpo_adapters, learning_rate=0.1), 100, ["adapter-learning-rate-high", "adapter-outgrows-base", "step-size-too-large"],
         ("config", "ood-drift", "numerics"), ("diverged", "drifting", "over_optimizing", "stalled"), twin="dpo-lora-twin", cure={"learning_rate": 3e-4}, goal="preference.logp_chosen"),
    _case("kto", "blocks", "Examples come in blocks of 25 batches with one label (SF-11).", blocks, 100, ["data-sorted", "kto-one-class"], ("data", "ood-drift"),
          ("drifting", "over_optimizing", "collapsed", *LEARNS)),
    _case("orpo", "norm-scaled", "The last norm came out eight times as large (SF-08).", norm_scaled, 100, ["loss-starts-high", "no-rule:checkpoint-converted-wrongly"], ("data", "numerics"), LEARNS, goal="-preference.nll"),
)  # fmt: skip
