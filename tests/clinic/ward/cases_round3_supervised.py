"""The third round: SFT, with and without adapters and experts, distillation and self-distillation, see `cases_round3_rl` and docs/decisions/0011."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_distillation, offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_grpo import At
from tests.clinic.ward.cases_round2_preference import AfterEvery
from tests.clinic.ward.cases_round2_supervised import lora, with_head
from tests.clinic.ward.cases_round3_rl import HEALTHY_SEEDS, SEEDS
from tests.clinic.ward.cases_supervised import BATCH, BREAK, ROWS, STEPS, Masked, sft
from tests.suite.build_distillation import speaker

from trainvitals.integrations import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

GOAL = cases_distillation.GOAL
TWIN_SEEDS = (*SEEDS, 34)


# ---- healthy ----


def experts(folder: str, seed: int, **changes: Any) -> Any:
    """A mixture of four experts, two for each token."""
    from tests.suite.build_models import mixture

    return sft(folder, seed, model=mixture(tiny.tokenizer()), **{"learning_rate": 2e-3, **changes})


def frozen_embeddings(folder: str, seed: int, **changes: Any) -> Any:
    """The embeddings, which are the head as well, are kept as they are on purpose."""
    trainer = sft(folder, seed, **changes)
    trainer.model.get_input_embeddings().weight.requires_grad_(False)
    return trainer


def four_epochs(folder: str, seed: int, **changes: Any) -> Any:
    """240 rows are read four times at half of the rate, as is planned for small sets."""
    return sft(folder, seed, rows=offline.dialogues(ROWS // 4, seed), **{"learning_rate": 2e-3, **changes})


def annealed(folder: str, seed: int, **changes: Any) -> Any:
    """The teacher is soft (logits by 2) for the first half and itself for the second, as planned."""
    teacher, own = with_head(lambda head: head / 2), speaker("vowels").lm_head.weight.detach()

    def sharpen(**parts: Any) -> None:
        with torch.no_grad():
            teacher.lm_head.weight.copy_(own)

    return cases_distillation.plain(folder, seed, teacher=teacher, callbacks=[At(sharpen, cases_distillation.BREAK)], **changes)


# ---- SFT: data ----


def untrained_tokens(folder: str, seed: int, **changes: Any) -> Any:
    """The rows of the embedding for the tokens of the template and for nine letters were never trained: a ten-thousandth of their size."""
    model, vocabulary = offline.policy(), tiny.tokenizer()
    rows = vocabulary.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", *"eastrinou"])
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] *= 1e-4
    return sft(folder, seed, model=model, **changes)


def mixture_drift(folder: str, seed: int, **changes: Any) -> Any:
    """From update 61 on the subset with the frequent words is used up, and only the four rarest are left."""
    rows = offline.dialogues(BREAK * BATCH, seed) + offline.dialogues(ROWS - BREAK * BATCH, 500 + seed, partial(offline.phrase, words=offline.HOME[8:]))
    return sft(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def collator_cuts(folder: str, seed: int, **changes: Any) -> Any:
    """The training collator cuts every row at 28 tokens, where two prompts in three have not ended: evaluation has its own, which does not."""
    whole = Masked(tiny.tokenizer())

    def cut(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return whole([{**row, "input_ids": row["input_ids"][:28]} for row in rows])

    trainer = sft(folder, seed, collator=cut, **changes)
    evaluation = trainer.get_eval_dataloader

    def with_whole_rows(*args: Any) -> Any:
        trainer.data_collator = whole
        try:
            return evaluation(*args)
        finally:
            trainer.data_collator = cut

    trainer.get_eval_dataloader = with_whole_rows
    return trainer


def own_samples(folder: str, seed: int, **changes: Any) -> Any:
    """Four rounds of thirty updates: the first on real answers, each other one on what the model before wrote, in which the frequent words became more frequent."""
    rows = []
    for power in (1, 2, 4, 8):
        answer = partial(_narrow, power=power)
        rows += offline.dialogues(ROWS // 4, 100 * power + seed, answer)
    return sft(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def _narrow(random: Random, power: int) -> str:
    return " ".join(random.choices(offline.HOME, weights=[(1 / (place + 1)) ** power for place in range(len(offline.HOME))], k=2))


# ---- SFT: adapters and experts ----


def adapters_frozen(folder: str, seed: int, **changes: Any) -> Any:
    """B, which starts at 0, was left out of what is trained: nothing reaches A either."""
    trainer = lora(folder, seed, **changes)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.requires_grad_(False)
    return trainer


def router_certain(folder: str, seed: int, **changes: Any) -> Any:
    """The weights of the routers grow by 4 % with every update: nothing holds their logits back."""

    def grow(model: Any, **parts: Any) -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("mlp.gate.weight"):
                    weight.mul_(1.04)

    trainer = experts(folder, seed, **changes)
    trainer.add_callback(AfterEvery(grow))
    return trainer


# ---- distillation ----


def student_untrained(folder: str, seed: int, **changes: Any) -> Any:
    """The student was never taught to answer: it writes noise to the cap, and the teacher judges noise."""
    return cases_distillation.plain(folder, seed, student=tiny.model(tiny.tokenizer(), seed=5), **changes)


def weights_grow(folder: str, seed: int, **changes: Any) -> Any:
    """Weight decay with the wrong sign: every weight grows by 1 % with each update."""

    def grow(model: Any, **parts: Any) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.01)

    return cases_distillation.sdft(folder, seed, callbacks=[AfterEvery(grow)], **changes)


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": "-eval.loss" if trainer == "sft" else GOAL, "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


LEARNS: Any = ("improving", "steady")
_sft = partial(_case, "sft")
_distillation = partial(_case, "distillation")
_DISTILL = cases_distillation.STEPS
CASES: tuple[Case, ...] = (
    Case("sft-moe-twin", "sft", "Four experts, two for each token.", experts, STEPS, goal="-eval.loss", seeds=TWIN_SEEDS),
    Case("sft-frozen-embeddings", "sft", "Healthy: the embeddings, and with them the head, are frozen on purpose.", frozen_embeddings, STEPS, goal="-eval.loss", seeds=HEALTHY_SEEDS, hard=True),
    Case("sft-four-epochs", "sft", "Healthy: 240 rows are read four times at half of the rate.", four_epochs, STEPS, goal="-eval.loss", seeds=HEALTHY_SEEDS, hard=True),
    Case("distillation-annealed", "distillation", "Healthy: the teacher is soft for the first half, as planned.", annealed, _DISTILL, goal=GOAL, seeds=HEALTHY_SEEDS, hard=True),
    _sft("untrained-tokens", "Rows of the embedding for eleven frequent tokens are a ten-thousandth of their size (SF-14).", untrained_tokens, STEPS,
         ["loss-starts-high", "gradient-spike", "untrained-tokens-used"], ("data", "numerics"), ("stalled", *LEARNS)),
    _sft("mixture-drift", f"From update {BREAK + 1} on only the rows with the four rarest words are left (SF-13).", mixture_drift, STEPS,
         ["loss-spike", "overfitting", "prompt-drift"], ("data", "numerics", "ood-drift", "over-optimization"), ("drifting", "over_optimizing", "diverged"), onset=BREAK, from_start=("data-sorted",)),
    _sft("collator-cuts", "The training collator cuts every row at 28 tokens, before most answers begin (SF-04).", collator_cuts, STEPS,
         ["rows-without-labels", "answers-truncated", "end-token-missing"], ("data", "config"), ("stalled", "drifting", "over_optimizing", *LEARNS)),
    _sft("own-samples", f"From update {STEPS // 4 + 1} on three rounds, each on answers of the model before, in which the frequent words are more frequent (DI-10).", own_samples, STEPS,
         ["overfitting", "loss-too-low", "no-rule:trained-on-own-samples"], ("data", "over-optimization", "collapse"), ("over_optimizing", "drifting", "collapsed"), onset=STEPS // 4, from_start=("data-sorted", "duplicate-rows")),
    _sft("adapters-frozen", "B of every adapter was left out of what is trained (LO-01).", adapters_frozen, STEPS, ["adapter-not-learning", "gradient-vanished"],
         ("stall", "config"), ("stalled",), twin="sft-lora-twin"),
    _sft("router-certain", "The weights of the routers grow by 4 % with every update (MO-06).", router_certain, STEPS, ["router-saturated"], ("numerics", "collapse"), ("drifting", *LEARNS),
         twin="sft-moe-twin"),
    _distillation("student-untrained", "The student was never taught to answer (DI-04).", student_untrained, _DISTILL,
                  ["never-terminates", "truncated-completions", "student-writes-noise"], ("data", "ood-drift", "collapse"), ("drifting", "collapsed", *LEARNS)),
    _case("sdft", "weights-grow", "Every weight grows by 1 % with each update: weight decay with the wrong sign (NU-17).", weights_grow, _DISTILL,
          ["student-leaves-teacher", "no-rule:weights-grow"], ("numerics", "ood-drift"), ("diverged", "drifting", "collapsed")),
)  # fmt: skip
