"""The second round: SFT, with and without adapters, and distillation, see `cases_round2_rl` and docs/decisions/0009."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tests.clinic.ward import cases_distillation, offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_grpo import At
from tests.clinic.ward.cases_round2_preference import changed
from tests.clinic.ward.cases_round2_rl import HEALTHY_SEEDS, Every
from tests.clinic.ward.cases_supervised import BREAK, ROWS, STEPS, sft
from tests.suite.build_distillation import speaker

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

GOAL = cases_distillation.GOAL


# ---- SFT: healthy ----


def lora(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters on all projections at a rate that adapters bear."""
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return sft(folder, seed, model=get_peft_model(offline.policy(), adapters), **{"learning_rate": 1e-3, **changes})


# ---- SFT: faults ----


def cut(folder: str, seed: int, **changes: Any) -> Any:
    """A length at which most rows end in the middle of their answer."""
    return sft(folder, seed, **{"max_length": 40, **changes})


def in_training(trainer: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The same trainer, whose training batches are changed before the loss; evaluation is right."""
    right = trainer.compute_loss

    def wrong(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        return right(model, change(dict(inputs)) if model.training else inputs, *rest, **more)

    trainer.compute_loss = wrong
    return trainer


def labels_shifted(folder: str, seed: int, **changes: Any) -> Any:
    """Labels are shifted by one before a loss that shifts them itself: the model learns the token after the next."""

    def shift(inputs: dict[str, Any]) -> dict[str, Any]:
        labels = torch.full_like(inputs["labels"], -100)
        labels[:, :-1] = inputs["labels"][:, 1:]
        return {**inputs, "labels": labels}

    return in_training(sft(folder, seed, **changes), shift)


def padding_learned(folder: str, seed: int, **changes: Any) -> Any:
    """Batches are padded to 64 tokens, and the padding is trained on."""

    def pad(inputs: dict[str, Any]) -> dict[str, Any]:
        more = 64 - inputs["input_ids"].shape[1]

        def wider(tensor: Any, value: int) -> Any:
            return torch.nn.functional.pad(tensor, (0, more), value=value)

        ids, mask, labels = wider(inputs["input_ids"], 0), wider(inputs["attention_mask"], 0), wider(inputs["labels"], -100)
        return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.where(mask == 0, ids, labels)}

    return in_training(sft(folder, seed, **{"max_length": 64, **changes}), pad)


def sorted_rows(folder: str, seed: int, **changes: Any) -> Any:
    """Rows are sorted by answer and read in order: each batch holds one kind, and what came first is forgotten."""
    rows = sorted(offline.dialogues(ROWS, seed), key=lambda row: row["completion"][0]["content"])
    return sft(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def dropout(folder: str, seed: int, **changes: Any) -> Any:
    """Dropout of 0.9 behind each layer, in training only."""

    def drop(module: Any, inputs: Any, output: Any) -> Any:
        return torch.nn.functional.dropout(output, 0.9, training=module.training)

    trainer = sft(folder, seed, **changes)
    for layer in trainer.model.model.layers:
        layer.mlp.register_forward_hook(drop)
        layer.self_attn.o_proj.register_forward_hook(drop)
    return trainer


def norms_only(folder: str, seed: int, **changes: Any) -> Any:
    """Only the norms' weights are trained: a list of trainable modules that matched little else."""
    trainer = sft(folder, seed, **changes)
    for name, weight in trainer.model.named_parameters():
        weight.requires_grad_("norm" in name)
    return trainer


def decay_later(folder: str, seed: int, **changes: Any) -> Any:
    """From update 61 on the weight decay is 50."""

    def decay(optimizer: Any, **parts: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = 50.0

    return offline.at(sft(folder, seed, **changes), BREAK, decay)


# ---- distillation ----


def with_head(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The teacher with another head, no longer tied to its embedding: TRL takes the head's weight, not what the module gives."""
    teacher = speaker("vowels")
    teacher.config.tie_word_embeddings = False
    teacher.lm_head.weight = torch.nn.Parameter(change(teacher.lm_head.weight.detach().clone()))
    return teacher


def teacher_flat(folder: str, seed: int, **changes: Any) -> Any:
    """The teacher's logits are divided by 10."""
    return cases_distillation.plain(folder, seed, teacher=with_head(lambda head: head / 10), **changes)


def teacher_overflows(folder: str, seed: int, **changes: Any) -> Any:
    """From update 46 on a number in a thousand of the teacher's last layer is infinite, as in half precision."""
    teacher, broken = speaker("vowels"), [False]
    random = torch.Generator().manual_seed(seed)

    def overflow(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(torch.rand(output.shape, generator=random) < 1e-3, float("inf")) if broken[0] else output

    def begin(**parts: Any) -> None:
        broken[0] = True

    teacher.model.norm.register_forward_hook(overflow)
    return cases_distillation.plain(folder, seed, teacher=teacher, callbacks=[At(begin, cases_distillation.BREAK)], **changes)


def student_rolled_back(folder: str, seed: int, **changes: Any) -> Any:
    """Every tenth update the student's weights become those of the start: a checkpoint is loaded where one should be saved."""
    start = speaker("plain").state_dict()

    def load(model: Any, **parts: Any) -> None:
        if trainer.state.global_step % 10 == 0:
            model.load_state_dict(start)

    trainer = cases_distillation.plain(folder, seed, callbacks=[Every(load, cases_distillation.BREAK)], **changes)
    return trainer


def _case(trainer: str, fault: str, what: str, build: Any, steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": "-eval.loss" if trainer == "sft" else GOAL, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


LEARNS: Any = ("improving", "steady")
_sft = partial(_case, "sft")
_distillation = partial(_case, "distillation")
CASES: tuple[Case, ...] = (
    Case("sft-lora-twin", "sft", "Adapters of rank 8 on all projections.", lora, STEPS, goal="-eval.loss"),
    Case(
        "sft-accumulation", "sft", "Healthy: micro-batches of one, eight of them make an update.",
        partial(changed, base=sft, fault={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}), STEPS, goal="-eval.loss", seeds=HEALTHY_SEEDS, hard=True,
    ),
    Case("sft-long-warmup", "sft", "Healthy: the warm-up takes two thirds of the run.", partial(changed, base=sft, fault={"warmup_steps": 80}), STEPS, goal="-eval.loss", seeds=HEALTHY_SEEDS, hard=True),
    Case(
        "sft-constant-rate", "sft", "Healthy: a constant rate without warm-up, logged and evaluated every ten updates.",
        partial(changed, base=sft, fault={"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 10, "eval_steps": 10}), STEPS, goal="-eval.loss",
        seeds=HEALTHY_SEEDS, hard=True,
    ),
    _sft("answers-cut", "A length of 40 tokens ends most rows in the middle of their answer.", cut, STEPS, ["end-token-missing", "rows-without-labels", "labels-masked", "answers-truncated"],
         ("data", "config"), LEARNS, cure={"max_length": 64}, goal="-token.cut_fraction", learned="-eval.loss"),  # held-out rows are cut as well, so that their loss alone shows nothing
    _sft("labels-shifted", "Labels are shifted once too often: the model learns the token after the next.", labels_shifted, STEPS, ["overfitting", "evaluation-contradicts", "no-rule:labels-shifted", "labels-not-shifted"],
         ("data", "over-optimization"), ("over_optimizing", "drifting")),
    _sft("padding-learned", "Batches are padded to 64 tokens and the padding is trained on.", padding_learned, STEPS, ["loss-too-low", "padding-learned"], ("data", "efficiency"), LEARNS),
    _sft("sorted", "Rows are sorted by answer and read in order.", sorted_rows, STEPS, ["completion-drift", "prompt-drift", "loss-spike", "overfitting", "data-sorted"],
         ("data", "ood-drift", "numerics", "over-optimization"), ("drifting", "over_optimizing", "diverged", "stalled")),
    _sft("dropout", "Dropout of 0.9 behind each layer, in training only.", dropout, STEPS, ["loss-plateau", "forward-pass-random"], ("stall", "config"), ("stalled", *LEARNS)),
    _sft("norms-only", "Only the norms' weights are trained.", norms_only, STEPS, ["loss-plateau", "hardly-anything-trained"], ("stall", "config"), ("stalled", "steady")),
    _sft("decay-later", f"From update {BREAK + 1} on the weight decay is 50.", decay_later, STEPS, ["loss-spike", "loss-diverged", "step-size-too-large", "no-rule:weight-decay-too-high"],
         ("numerics", "config"), ("diverged", "drifting", "stalled"), onset=BREAK),
    _distillation("teacher-flat", "The teacher's logits are divided by 10.", teacher_flat, cases_distillation.STEPS,
                  ["teacher-knows-nothing", "entropy-explosion", "never-terminates", "truncated-completions", "no-rule:teacher-temperature"], ("data", "collapse", "ood-drift", "config"),
                  ("drifting", "collapsed"), goal="-policy.entropy"),
    _distillation("teacher-overflows", f"From update {cases_distillation.BREAK + 1} on single numbers of the teacher's last layer are infinite.", teacher_overflows, cases_distillation.STEPS, ["nonfinite-loss", "hidden-nan"],
                  ("numerics",), ("diverged",), onset=cases_distillation.BREAK),
    _distillation("rolled-back", f"From update {cases_distillation.BREAK + 1} on every tenth update loads the weights of the start.", student_rolled_back, cases_distillation.STEPS,
                  ["loss-spike", "student-diverges-from-teacher", "no-rule:weights-changed-by-hand", "weights-changed-outside"], ("numerics", "ood-drift"), ("drifting", "diverged", "stalled"), onset=cases_distillation.BREAK),
)  # fmt: skip
