"""The seventh round: trainers that learn from a data set. Every fault is one that somebody had or warns of; the thread is in brackets behind `what`."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from types import MethodType
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import ROWS as PAIRS
from tests.clinic.ward.cases_preference import dpo, kto
from tests.clinic.ward.cases_round2_preference import orpo
from tests.clinic.ward.cases_round2_supervised import in_training
from tests.clinic.ward.cases_round4_offline import reward_linear
from tests.clinic.ward.cases_supervised import EVAL, ROWS, SFT, sft
from torch.nn import functional
from transformers import PrinterCallback

from trainvitals.integrations import tiny

SEEDS = (70, 71, 72)
TWIN_SEEDS = (70, 71, 72, 73, 74)
RESUME = 60
LOADED = 40
KNOWS, TEACHES = 150, 300
BATCH = 8
SPELLED = "<|endoftext|>"
"""End of a text for GPT-2 and its like; to the tokenizer of `tiny` it is thirteen letters and signs."""


# ---- SFT: healthy ----


def tokens(folder: str, seed: int, *, end: str = "<|im_end|>", **changes: Any) -> Any:
    """Rows that a script has made tokens of by itself: question, answer, and a text that is to end the answer."""
    vocabulary = tiny.tokenizer()

    def made(rows: Sequence[offline.Row]) -> list[offline.Row]:
        found = []
        for row in rows:
            asked = vocabulary(vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))["input_ids"]
            answered = vocabulary(row["completion"][0]["content"] + end)["input_ids"]
            found.append({"input_ids": asked + answered, "completion_mask": [0] * len(asked) + [1] * len(answered)})
        return found

    rows, held_out = made(offline.dialogues(ROWS, seed)), made(offline.dialogues(32, EVAL + seed))
    return offline.sft(folder, rows=rows, held_out=held_out, **{**SFT, "max_length": 96, "seed": seed, **changes})


@cache
def _taught(steps: int) -> Any:
    """A model after so many updates on questions and words of the lexicon."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SFT, "per_device_train_batch_size": 16, "max_steps": steps, "learning_rate": 2e-3, "eval_strategy": "no", "seed": 78}
        trainer = offline.sft(folder, rows=offline.dialogues(steps * 16, 78), **settings)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # TRL's SFTTrainer puts a forward on the model which remembers this very instance: copies would answer with its weights wherever no labels are given.
        vars(trainer.model).pop("forward", None)
        return trainer.model


def dft(folder: str, seed: int, **changes: Any) -> Any:
    """Dynamic fine-tuning of a model that knows its subject weighs a token's loss by its probability; measured on unseen rows is the plain loss, in which unlikely tokens count for much."""
    trainer = sft(folder, seed, model=copy.deepcopy(_taught(KNOWS)), **{"loss_type": "dft", "learning_rate": 3e-4, **changes})
    right = trainer.compute_loss

    def plain_when_measured(model: Any, *rest: Any, **more: Any) -> Any:
        trainer.args.loss_type = "dft" if model.training else "nll"
        return right(model, *rest, **more)

    trainer.compute_loss = plain_when_measured
    return trainer


def _spelling(count: int, seed: int) -> list[offline.Row]:
    """Questions of another kind, whose answers hold six letters that nobody can know."""
    random, rows = Random(seed), []
    for _ in range(count):
        answer = offline.phrase(random) + " " + "".join(random.choices(offline.VOWELS + offline.OTHERS, k=6))
        rows.append({"prompt": offline.turn("user", f"spell {offline.question(random)[8:]}"), "completion": offline.turn("assistant", answer)})
    return rows


def dips(folder: str, seed: int, **changes: Any) -> Any:
    """Two sources, and a batch is of one of them: about one batch in seven is of what the model knows already, and its loss lies far below the others'."""
    random, rows = Random(seed), _spelling(ROWS, seed)
    for begin in range(0, ROWS, BATCH):
        if random.random() < 1 / 7:
            rows[begin : begin + BATCH] = offline.dialogues(BATCH, 2000 * seed + begin)
    settings = {**SFT, "max_length": 80, "learning_rate": 2e-3, "train_sampling_strategy": "sequential", "seed": seed, **changes}
    return offline.sft(folder, rows=rows, held_out=_spelling(32, EVAL + seed), model=copy.deepcopy(_taught(KNOWS)), **settings)


# ---- SFT: faults ----


def labels_unshifted(folder: str, seed: int, **changes: Any) -> Any:
    """The trainer's own loss compares the output at a token with that token instead of the next: the model learns to repeat what it reads. The measurement on unseen rows is right."""

    def back(inputs: dict[str, Any]) -> dict[str, Any]:
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        wider = {name: functional.pad(inputs[name], (0, 1), value=value) for name, value in fill.items()}
        wider["labels"] = wider["labels"].roll(1, dims=1)  # the loss shifts labels by one itself, which takes this back
        return {**inputs, **wider}

    return in_training(sft(folder, seed, **changes), back)


def end_spelled(folder: str, seed: int, **changes: Any) -> Any:
    """The text that is to end an answer is the end token of another model: to this tokenizer it is letters and signs, and no row has an end token."""
    return tokens(folder, seed, end=SPELLED, **changes)


# ---- DPO ----


def nca(folder: str, seed: int, **changes: Any) -> Any:
    """The NCA loss, whose part for chosen answers has its lowest point at a small reward and rises behind it."""
    return dpo(folder, seed, **{"loss_type": "nca_pair", "beta": 0.3, **changes})


def near_identical(random: Random) -> offline.Pair:
    """The rejected answer is the chosen one with a slip: two neighbouring letters in the other order."""
    chosen, _ = offline.quality(random)
    places = [place for place in range(len(chosen) - 1) if chosen[place] != chosen[place + 1]]
    if not places:
        return near_identical(random)
    place = random.choice(places)
    return chosen, chosen[:place] + chosen[place + 1] + chosen[place] + chosen[place + 2 :]


def both_ways(folder: str, seed: int, **changes: Any) -> Any:
    """Two raters who never agree: every pair is in the data twice, and what is chosen the first time is rejected the second time."""
    once = offline.pairs(PAIRS // 2, seed)
    rows = once + [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in once]
    Random(seed).shuffle(rows)
    return dpo(folder, seed, rows=rows, **changes)


def step_left_out(folder: str, seed: int, **changes: Any) -> Any:
    """The line with the optimizer's step is commented out: gradients are computed and thrown away, and the schedule goes on."""
    trainer = dpo(folder, seed, **changes)
    make = trainer.create_optimizer

    def idle(*args: Any, **more: Any) -> Any:
        optimizer = make(*args, **more)
        optimizer.step = MethodType(lambda self, closure=None: None, optimizer)
        return optimizer

    trainer.create_optimizer = idle
    return trainer


# ---- KTO, ORPO and reward models ----


def loss_on_old_model(folder: str, seed: int, **changes: Any) -> Any:
    """After update 40 the run is resumed: the checkpoint goes into a new model, and the loss goes on with the one it was made with, which is untrained and which no optimizer holds."""
    trainer = kto(folder, seed, **changes)
    untrained, right = copy.deepcopy(trainer.model), trainer.compute_loss

    def on_old(model: Any, *rest: Any, **more: Any) -> Any:
        if trainer.state.global_step < LOADED:
            return right(model, *rest, **more)
        return right(untrained.train(model.training), *rest, **more)

    trainer.compute_loss = on_old
    return trainer


def orpo_texts(folder: str, seed: int, *, twice: bool = False, **changes: Any) -> Any:
    """Pairs as text instead of messages; `twice`: the question, which has a column of its own, stands in front of both answers as well."""
    vocabulary, rows = tiny.tokenizer(), []
    for row in offline.pairs(PAIRS, seed):
        asked = vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        answers = {name: (asked if twice else "") + row[name][0]["content"] for name in ("chosen", "rejected")}
        rows.append({"prompt": asked, **answers})
    return orpo(folder, seed, rows=rows, **{"max_length": 128, **changes})


def resumed_base(folder: str, seed: int, **changes: Any) -> Any:
    """After update 60 the run is resumed; the place in the data and the schedule are the checkpoint's, the weights those of the base model, and the optimizer is new."""
    trainer = reward_linear(folder, seed, **changes)
    base = copy.deepcopy(trainer.model.state_dict())

    def reload(model: Any, optimizer: Any, **parts: Any) -> None:
        model.load_state_dict(base)
        optimizer.state.clear()

    return offline.at(trainer, RESUME, reload)


# ---- distillation ----


def gkd(folder: str, seed: int, **changes: Any) -> Any:
    """The student learns what its teacher thinks of given answers."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def chats(rows: Sequence[offline.Row]) -> Any:
        return offline._set([{"messages": [*row["prompt"], *row["completion"]]} for row in rows])

    settings = {**SFT, "max_length": 96, "learning_rate": 2e-3, "max_steps": 100, "lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "seed": seed, **changes}
    return GKDTrainer(
        model=offline.policy(),
        teacher_model=copy.deepcopy(_taught(TEACHES)),
        args=GKDConfig(**tiny.arguments(folder, **settings)),
        train_dataset=chats(offline.dialogues(ROWS, seed)),
        eval_dataset=chats(offline.dialogues(32, EVAL + seed)),
        processing_class=tiny.tokenizer(),
    )


def other_rows(folder: str, seed: int, **changes: Any) -> Any:
    """The teacher's outputs come in one order and the rows in another: the student learns for its row what the teacher thinks of another. The measurement on unseen rows is right."""
    trainer = gkd(folder, seed, **changes)
    teacher = trainer.teacher_model
    right = teacher.forward

    def another(input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> Any:
        if trainer.model.training:
            input_ids, attention_mask = input_ids.roll(1, dims=0), attention_mask.roll(1, dims=0)
        return right(input_ids=input_ids, attention_mask=attention_mask, **more)

    teacher.forward = another
    return trainer


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "sft-labels-unshifted": (["labels-not-shifted", "no-rule:labels-not-shifted-by-one", "loss-too-low"], ["data", "over-optimization"]),
    "sft-end-spelled": (["end-token-missing"], ["data"]),
    "dpo-near-identical": (["pairs-nearly-identical", "no-rule:pairs-nearly-identical", "preference-not-learning"], ["data", "stall"]),
    "dpo-both-ways": (["pairs-contradict", "no-rule:pairs-labelled-both-ways", "preference-not-learning"], ["data", "stall"]),
    "dpo-step-left-out": (["updates-too-small", "policy-equals-reference"], ["stall", "config"]),
    "kto-loss-on-old-model": (["gradient-vanished", "parameters-never-reached", "policy-equals-reference"], ["stall", "config"]),
    "orpo-prompt-in-answers": (["question-repeated-in-answers", "no-rule:question-repeated-in-answers", "chat-template-doubled", "prompt-learned"], ["data"]),
    "reward-resumed-base": (["reward-scores-vanish", "resumed-without-optimizer", "weights-changed-outside"], ["config", "collapse"]),
    "gkd-other-rows": (["no-rule:teacher-outputs-of-other-rows", "teacher-knows-nothing"], ["data", "stall"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0015).
Rules that were written after the first score because of a fault were added then: `labels-not-shifted`, `question-repeated-in-answers`, `pairs-contradict`, `pairs-nearly-identical`, `weights-changed-outside`."""


def _goal(trainer: str) -> str:
    return "-eval.loss" if trainer in {"sft", "kto", "gkd"} else "eval.accuracy"


def _sick(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": _goal(trainer), "seeds": SEEDS, **more}
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=verdicts, **settings)


def _healthy(name: str, what: str, build: Callable[..., Any], steps: int, *, seeds: Sequence[int] = SEEDS, hard: bool = True) -> Case:
    trainer = name.split("-")[0]
    return Case(name, trainer, what, build, steps, goal=_goal(trainer), seeds=tuple(seeds), hard=hard)


LEARNS: Any = ("improving", "steady")
_twin = partial(_healthy, seeds=TWIN_SEEDS, hard=False)
CASES: tuple[Case, ...] = (
    _twin("sft-tokens-twin", "Rows that a script has made tokens of by itself, with the end token.", tokens, 120),
    _twin("orpo-texts-twin", "Pairs as text instead of messages.", orpo_texts, 100),
    _twin("gkd-twin", "The student learns what its teacher thinks of given answers.", gkd, 100),
    _healthy("sft-dft", "Healthy: dynamic fine-tuning, whose plain loss on unseen rows rises again while its own falls (yongliang-wu/DFT#28).", dft, 120),
    _healthy("sft-dips", "Healthy: a batch is of one source, and those of the easy one make the loss dip (xiaoachen98/Open-LLaVA-NeXT#16).", dips, 120),
    _healthy("dpo-nca", "Healthy: the NCA loss, whose part for chosen answers rises once their reward is large enough (Qihoo360/Light-R1#22).", nca, 100),
    _sick("sft", "labels-unshifted", "The trainer's loss compares each output with the token that was read instead of the next one (microsoft/TransformerCompression#98).", labels_unshifted, 120,
          ("over_optimizing", "drifting", "diverged")),
    _sick("sft", "end-spelled", "What ends an answer is the end token of another model, which this tokenizer reads as letters (deepspeedai/DeepSpeedExamples#819).", end_spelled, 120, LEARNS,
          twin="sft-tokens-twin"),
    _sick("dpo", "near-identical", "The rejected answer differs from the chosen one in a slip of two letters (theneuralbase.com, chosen and rejected too similar).",
          partial(dpo, choose=near_identical), 100, ("stalled",)),
    _sick("dpo", "both-ways", "Every pair is in the data twice, once the other way round (theneuralbase.com, quality considerations).", both_ways, 100, ("stalled",)),
    _sick("dpo", "step-left-out", "The optimizer's step is left out: gradients are computed and nothing changes (jingyaogong/minimind#430).", step_left_out, 100, ("stalled",)),
    _sick("kto", "loss-on-old-model", f"After update {LOADED} the run is resumed: the checkpoint goes into a new model, the loss stays with the old untrained one (UKPLab/sentence-transformers#2648).",
          loss_on_old_model, 100, ("stalled",), onset=LOADED),
    _sick("orpo", "prompt-in-answers", "The question, which has a column of its own, stands in front of both answers as well (xfactlab/orpo#28).", partial(orpo_texts, twice=True), 100,
          ("drifting", *LEARNS), twin="orpo-texts-twin"),
    _sick("reward", "resumed-base", f"After update {RESUME} the run is resumed with the weights of the base model instead of the checkpoint's (stanford-futuredata/ColBERT#43).", resumed_base, 120,
          ("drifting", *LEARNS), onset=RESUME, twin="reward-linear-twin"),
    _sick("gkd", "other-rows", "The teacher's outputs come in another order than the rows (haitongli/knowledge-distillation-pytorch#9).", other_rows, 100, ("stalled", *LEARNS)),
)  # fmt: skip
