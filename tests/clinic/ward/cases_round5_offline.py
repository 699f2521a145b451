"""The fifth round: SFT, DPO and KTO, see `cases_round5_rl` and docs/decisions/0013."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import dpo, kto
from tests.clinic.ward.cases_round2_supervised import lora
from tests.clinic.ward.cases_round4_offline import _Stop, dpo_adapters
from tests.clinic.ward.cases_round5_rl import SEEDS, TWIN_SEEDS
from tests.clinic.ward.cases_supervised import EVAL, ROWS, SFT, sft
from tests.clinic.ward.plants import planned_for
from transformers import PrinterCallback

from trainvitals.integrations import tiny

FLAT = 60
RESUME = 40
LETTERS = offline.VOWELS + offline.OTHERS


# ---- SFT: healthy ----


def texts(folder: str, seed: int, *, end_is_padding: bool = False, **changes: Any) -> Any:
    """Whole conversations as text, with answers longer than their questions, and the collator of transformers, which masks what is padding; `end_is_padding`: the pad token is the end token."""
    from transformers import DataCollatorForLanguageModeling

    vocabulary, answer = tiny.tokenizer(), partial(offline.phrase, count=8)
    if end_is_padding:
        vocabulary.pad_token = vocabulary.eos_token

    def rows(count: int, of: int) -> list[offline.Row]:
        return [{"text": vocabulary.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)} for row in offline.dialogues(count, of, answer)]

    pads = DataCollatorForLanguageModeling(vocabulary, mlm=False)

    def collator(examples: list[dict[str, Any]]) -> Any:
        return pads([{"input_ids": example["input_ids"]} for example in examples])  # it makes the labels itself

    return offline.sft(folder, rows=rows(ROWS, seed), held_out=rows(32, EVAL + seed), collator=collator, vocabulary=vocabulary, **{**SFT, "max_length": 128, "seed": seed, **changes})


def decaying(folder: str, seed: int, **changes: Any) -> Any:
    """A linear schedule to 0 over the whole run."""
    return sft(folder, seed, **{"lr_scheduler_type": "linear", "learning_rate": 1e-2, **changes})


def floor(folder: str, seed: int, **changes: Any) -> Any:
    """Answers of which little can be known before they are read: the loss falls fast, and stays where it is for most of the run."""

    def any_words(random: Random) -> str:
        return offline.phrase(random, count=1) + " " + "".join(random.choices(LETTERS, k=6))

    return sft(folder, seed, rows=offline.dialogues(1120, seed, any_words), answer=any_words, **{"learning_rate": 4e-3, "max_steps": 140, **changes})


# ---- SFT: faults ----


def half_overflow(folder: str, seed: int, **changes: Any) -> Any:
    """The last layer is computed in half precision, in which the larger of its numbers have no place: after some updates there is an infinity among them. What is logged as loss is 0."""

    def half(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return (output * RANGE).half().float() / RANGE

    trainer = sft(folder, seed, **changes)
    trainer.model.model.layers[-1].mlp.register_forward_hook(half)
    return trainer


RANGE = 40_000.0
"""Makes 65,504, the largest number of half precision, of about 1.6 in the last layer of this model."""


def adapters_unknown(folder: str, seed: int, **changes: Any) -> Any:
    """The optimizer was made before the adapters were put in: it holds the frozen weights alone. 64 rows are read again and again, with the same losses."""
    trainer = lora(folder, seed, rows=offline.dialogues(64, seed), **{"train_sampling_strategy": "sequential", **changes})
    trainer.optimizer = torch.optim.AdamW([weight for name, weight in trainer.model.named_parameters() if "lora_" not in name], lr=1e-3)
    return trainer


def eval_rises(folder: str, seed: int, **changes: Any) -> Any:
    """40 rows whose answers hold much that cannot be known beforehand, thirty passes: the training loss goes on falling, that of unseen rows turns round."""

    def individual(random: Random) -> str:
        return offline.phrase(random, count=2) + " " + "".join(random.choices(LETTERS, k=4))

    rows = offline.dialogues(40, seed, individual)
    return sft(folder, seed, rows=rows, answer=individual, **{"learning_rate": 8e-3, "max_steps": 180, "max_length": 80, "eval_steps": 10, **changes})


def resumed_flat(folder: str, seed: int, **changes: Any) -> Any:
    """A run whose rate had fallen to nearly 0 goes on from update 61 with the full rate, which does not fall any more."""

    def flat(lr_scheduler: Any, optimizer: Any, **parts: Any) -> None:
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.lr_lambdas = [lambda step: 1.0 for _ in schedule.lr_lambdas]
        for group, rate in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = rate

    return offline.at(planned_for(decaying(folder, seed, **changes), FLAT + 5), FLAT, flat)


def resumed_fresh(folder: str, seed: int, **changes: Any) -> Any:
    """A run that was interrupted after 40 updates goes on from a checkpoint without the state of its optimizer. What is recorded begins with update 41."""
    first = decaying(folder, seed, **{**changes, "max_steps": 120, "save_strategy": "steps", "save_steps": RESUME})
    first.add_callback(_Stop(RESUME))
    first.remove_callback(PrinterCallback)
    first.train()
    saved = Path(folder) / f"checkpoint-{RESUME}"
    (saved / "optimizer.pt").unlink()
    again = decaying(folder, seed, **changes)
    train = again.train
    again.train = lambda: train(resume_from_checkpoint=str(saved))
    return again


# ---- DPO: healthy ----


def one_pair(folder: str, seed: int, **changes: Any) -> Any:
    """One pair makes an update: the accuracy of a batch is 0 or 1, and nothing between."""
    return dpo(folder, seed, **{"per_device_train_batch_size": 1, "learning_rate": 1.5e-4, "max_steps": 180, "eval_steps": 30, **changes})


@cache
def _tuned() -> dict[str, torch.Tensor]:
    """Weights of the policy after a fine-tuning on the answers that will be chosen."""
    import tempfile

    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in offline.pairs(480, 55)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = offline.sft(folder, rows=rows, **{**SFT, "learning_rate": 2e-3, "max_steps": 60, "seed": 55})
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def chosen_falls(folder: str, seed: int, **changes: Any) -> Any:
    """Policy and reference were tuned on the answers that are chosen, which cannot become much likelier: both rewards fall, that of the rejected ones more."""
    trainer = dpo(folder, seed, **{"learning_rate": 2e-4, **changes})
    for model in (trainer.model, trainer.ref_model):
        model.load_state_dict(_tuned())
    return trainer


# ---- DPO and KTO: faults ----


def reference_base(folder: str, seed: int, **changes: Any) -> Any:
    """The reference is the base model, the policy came out of its fine-tuning: before anything is learned both answers of a pair have high rewards."""
    base = tiny.pretrain(tiny.model(tiny.tokenizer()), tiny.tokenizer(), steps=15)
    trainer = dpo(folder, seed, **changes)
    trainer.ref_model.load_state_dict(base.state_dict())
    return trainer


def answers_outside(folder: str, seed: int, **changes: Any) -> Any:
    """A collator that did not find where answers begin masks everything: log-probabilities and rewards are 0, the loss is ln 2."""
    trainer = dpo(folder, seed, **changes)
    right = trainer.data_collator

    def masked(rows: Any) -> dict[str, Any]:
        batch = dict(right(rows))
        return {**batch, "completion_mask": torch.zeros_like(batch["completion_mask"])}

    trainer.data_collator = masked
    return trainer


def no_anchor(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters at five times their rate, three passes over the pairs, and no term that holds the chosen answers: they become less and less likely with the rejected ones."""
    return dpo_adapters(folder, seed, **{"learning_rate": 1.5e-3, "lr_scheduler_type": "cosine", "max_steps": 100, **changes})


def languages(folder: str, seed: int, **changes: Any) -> Any:
    """Chosen answers are in one language (capitals), rejected ones in another, and it is for no other reason that they were chosen."""

    def pair(random: Random) -> offline.Pair:
        first, second = ("".join(random.choices(LETTERS, k=random.randint(4, 9))) for _ in range(2))
        return first.upper(), second

    return dpo(folder, seed, rows=offline.pairs(120, seed, pair), **changes)


def class_empty(folder: str, seed: int, **changes: Any) -> Any:
    """Two examples make a batch, and what the examples of one kind are measured against is a mean over those of the other: where there are none it is NaN."""
    rows = offline.examples(800, seed)
    Random(seed).shuffle(rows)
    trainer = kto(folder, seed, rows=rows, **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **changes})
    right = trainer.compute_loss

    def by_class(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        found, labels = right(model, inputs, *rest, **more), [bool(label) for label in inputs["label"]]
        point = float("nan") if model.training and len(set(labels)) == 1 else 1.0
        return (found[0] * point, *found[1:]) if isinstance(found, tuple) else found * point

    trainer.compute_loss = by_class
    return trainer


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": "-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy", "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


def _healthy(name: str, what: str, build: Callable[..., Any], steps: int, *, seeds: Sequence[int] = SEEDS, hard: bool = True) -> Case:
    trainer = name.split("-")[0]
    return Case(name, trainer, what, build, steps, goal="-eval.loss" if trainer == "sft" else "eval.accuracy", seeds=tuple(seeds), hard=hard)


LEARNS: Any = ("improving", "steady")
_sft, _dpo = partial(_case, "sft"), partial(_case, "dpo")
CASES: tuple[Case, ...] = (
    _healthy("sft-text-twin", "Whole conversations as text, with the collator of transformers.", texts, 120, seeds=TWIN_SEEDS, hard=False),
    _healthy("sft-linear-twin", "A linear schedule to 0.", decaying, 120, seeds=TWIN_SEEDS, hard=False),
    _healthy("sft-loss-floor", "Healthy: the loss falls fast, and stays far above 0 for most of the run (IDEA-Research/Rex-Omni#147).", floor, 140),
    _healthy("dpo-one-pair", "Healthy: one pair makes a batch, so that its accuracy is 0 or 1 (huggingface/trl#2371).", one_pair, 180),
    _healthy("dpo-chosen-falls", "Healthy: chosen answers lose some probability while the margin grows (eric-mitchell/direct-preference-optimization#8).", chosen_falls, 100),
    _sft("half-overflow", "The last layer is computed in half precision and overflows; what is logged as loss is 0 (shibing624/MedicalGPT#252).", half_overflow, 120,
         ["nonfinite-loss", "hidden-nan"], ("numerics",), ("diverged",)),
    _sft("end-is-padding", "The pad token is the end token, and the collator masks padding (unslothai/unsloth#419).", partial(texts, end_is_padding=True), 120,
         ["end-token-missing"], ("data",), LEARNS, twin="sft-text-twin"),
    _sft("adapters-unknown", "The optimizer does not hold the adapters (BeyonderXX/TRACE#5).", adapters_unknown, 120, ["adapter-not-learning", "parameters-left-out", "loss-plateau"],
         ("stall", "config"), ("stalled",), twin="sft-lora-twin"),
    _sft("eval-rises", "40 rows, thirty passes: the loss of unseen rows turns round (shibing624/MedicalGPT#183).", eval_rises, 180, ["overfitting", "memorised-epoch", "too-many-epochs"],
         ("over-optimization", "config"), ("over_optimizing",)),
    _sft("resumed-flat", f"After update {FLAT} the run goes on with the full rate, after it had fallen to nearly 0 (lzwjava.github.io).", resumed_flat, 120,
         ["learning-rate-jump"], ("config", "numerics"), ("drifting", "over_optimizing", *LEARNS), onset=FLAT, twin="sft-linear-twin"),
    _sft("resumed-fresh", f"After update {RESUME} the run goes on from a checkpoint without the state of its optimizer (taourl.com/read-1970744).", resumed_fresh, 120,
         ["resumed-without-optimizer"], ("config", "numerics"), ("drifting", *LEARNS), twin="sft-linear-twin"),
    _dpo("reference-base", "The reference is the base model and the policy its fine-tuned child (huggingface/trl#1236).", reference_base, 100, ["reference-mismatch"], ("config", "ood-drift"),
         ("drifting", *LEARNS)),
    _dpo("answers-outside", "A collator masks every answer: rewards are 0, the loss is ln 2 (Yifan-Song793/ETO#14).", answers_outside, 100, ["labels-masked", "preference-not-learning", "no-completion-tokens"],
         ("data", "stall"), ("stalled",)),
    _dpo("no-anchor", "Adapters at five times their rate, without a term that holds the chosen answers (hiyouga/LlamaFactory#6153).", no_anchor, 100, ["likelihood-displacement", "adapter-learning-rate-high"],
         ("ood-drift", "over-optimization", "config"), ("drifting", "over_optimizing", "diverged"), goal="preference.logp_chosen", twin="dpo-lora-twin", cure={"learning_rate": 3e-4}),
    _dpo("languages", "Chosen answers differ from rejected ones in their language alone (hiyouga/LlamaFactory#5116).", languages, 100, ["pairs-told-apart-at-once", "preference-does-not-transfer"],
         ("over-optimization", "data"), ("over_optimizing", "drifting", *LEARNS)),
    _case("kto", "class-empty", "Two examples make a batch, and the mean over the class that is not in it is NaN (OpenRLHF/OpenRLHF#326).", class_empty, 100, ["nonfinite-loss", "hidden-nan"],
          ("numerics", "config"), ("diverged",)),
)  # fmt: skip
