"""SFT on answers from a small lexicon, and reward models that learn to prefer vowels; see `offline` for both tasks.

The healthy SFT brings the loss of unseen rows from 4.1, that of random letters, to about 1.0 (the choice of the words keeps it
above 0.4); the healthy reward model gets about 0.9 of unseen pairs right, as many as their letters allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import HEALTHY_SEEDS, Case

from trainvitals.integrations import tiny

STEPS = 120
BREAK = 60
BATCH = 8
ROWS = STEPS * BATCH
EVAL = 1000  # seeds of held-out rows begin here
CALM = {
    "max_steps": STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "per_device_train_batch_size": BATCH,
    "eval_strategy": "steps", "eval_steps": 20, "per_device_eval_batch_size": 32,
}  # fmt: skip
SFT = {**CALM, "learning_rate": 4e-3}
REWARD = {**CALM, "learning_rate": 5e-4}


# ---- SFT ----


def sft(folder: str, seed: int, *, rows: Any = None, answer: Callable[[Random], str] = offline.phrase, **changes: Any) -> Any:
    """The healthy training, or the same on other rows or answers; held-out rows are of the kind of the training rows."""
    rows = offline.dialogues(ROWS, seed, answer) if rows is None else rows
    held_out = offline.dialogues(32, EVAL + seed, answer)
    return offline.sft(folder, rows=rows, held_out=held_out, **{**SFT, "seed": seed, **changes})


def sft_varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters, noise, epochs and evaluation drawn by the seed from ranges that people use."""
    draw = Random(seed)
    answer = partial(offline.phrase, noise=draw.choice((0.0, 0.05, 0.1)), count=draw.choice((1, 2, 3)))
    settings = {
        "learning_rate": draw.choice((2e-3, 4e-3, 6e-3)),
        "per_device_train_batch_size": draw.choice((8, 8, 16)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "warmup_steps": draw.choice((0, 5, 10)),
        "weight_decay": draw.choice((0.0, 0.01)),
        "max_grad_norm": draw.choice((0.3, 1.0)),
        "eval_strategy": draw.choice(("no", "steps")),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    rows = offline.dialogues(draw.choice((480, 960)), seed, answer)
    return sft(folder, seed, rows=rows, answer=answer, **{**settings, **changes})


class Masked:
    """A user's collator: labels only behind a response template, as TRL's DataCollatorForCompletionOnlyLM did it.

    Args:
        vocabulary: The tokenizer.
        template: What begins a response; rows without it come out without labels.
        pad_too: Mask every pad token, as transformers' DataCollatorForLanguageModeling does.
    """

    def __init__(self, vocabulary: Any, template: str = "<|im_start|>assistant\n", *, pad_too: bool = False) -> None:
        self.pad, self.pad_too = vocabulary.pad_token_id, pad_too
        self.template = vocabulary(template, add_special_tokens=False)["input_ids"]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width, size = max(len(row["input_ids"]) for row in rows), len(self.template)
        ids = torch.full((len(rows), width), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for place, row in enumerate(rows):
            one = list(row["input_ids"])
            ids[place, : len(one)], mask[place, : len(one)] = torch.tensor(one), 1
            ends = [at + size for at in range(len(one)) if one[at : at + size] == self.template]
            if ends:
                labels[place, ends[-1] : len(one)] = ids[place, ends[-1] : len(one)]
        if self.pad_too:
            labels[ids == self.pad] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def labels_masked(folder: str, seed: int, **changes: Any) -> Any:
    """A collator looks for a response template that the chat template never writes."""
    return sft(folder, seed, collator=Masked(tiny.tokenizer(), "### Response:"), **changes)


def half_masked(folder: str, seed: int, **changes: Any) -> Any:
    """Half of the rows are of another template, in which the collator finds no response."""
    rows = offline.dialogues(ROWS, seed)
    for row in rows[::2]:
        row["completion"] = [{"role": "model", "content": row["completion"][0]["content"]}]
    return sft(folder, seed, rows=rows, collator=Masked(tiny.tokenizer()), **changes)


def end_missing(folder: str, seed: int, **changes: Any) -> Any:
    """The pad token is the end token, and the collator masks every pad token."""
    vocabulary = tiny.tokenizer()
    vocabulary.pad_token = vocabulary.eos_token
    return sft(folder, seed, vocabulary=vocabulary, collator=Masked(vocabulary, pad_too=True), **changes)


def template_doubled(folder: str, seed: int, **changes: Any) -> Any:
    """Questions that went through the chat template are put into messages again."""
    vocabulary, rows = tiny.tokenizer(), offline.dialogues(ROWS, seed)
    for row in rows:
        row["prompt"] = offline.turn("user", vocabulary.apply_chat_template(row["prompt"], tokenize=False))
    return sft(folder, seed, rows=rows, **{"max_length": 96, **changes})


def sft_rate(folder: str, seed: int, *, factor: float, **changes: Any) -> Any:
    """The learning rate times a factor from the start."""
    return sft(folder, seed, **{"learning_rate": SFT["learning_rate"] * factor, **changes})


def sft_rate_later(folder: str, seed: int, *, factor: float, **changes: Any) -> Any:
    """The learning rate times a factor from `BREAK` on, as after a resume with another schedule."""
    return offline.at(sft(folder, seed, **changes), BREAK, offline.scale_rate(factor))


def overfit(folder: str, seed: int, **changes: Any) -> Any:
    """16 rows, 60 epochs."""
    return sft(folder, seed, rows=offline.dialogues(16, seed), **changes)


def sft_nan(folder: str, seed: int, **changes: Any) -> Any:
    """A weight of the last layer becomes NaN."""
    return offline.at(sft(folder, seed, **changes), BREAK, offline.poison)


def sft_blocked(folder: str, seed: int, **changes: Any) -> Any:
    """No gradient reaches a weight any more."""
    return offline.at(sft(folder, seed, **changes), BREAK, offline.block)


def switched(folder: str, seed: int, **changes: Any) -> Any:
    """The second half of the rows, read in order, is of another domain: other questions, other words, longer answers."""
    rows, random = offline.dialogues(BREAK * BATCH, seed), Random(seed)
    for _ in range(ROWS - len(rows)):
        ask = f"TRANSLATE: {random.randint(100, 999)}-{random.randint(100, 999)} INTO {random.choice(('GREEK', 'LATIN'))}"
        answer = offline.phrase(random, offline.AWAY, count=3)
        rows.append({"prompt": offline.turn("user", ask), "completion": offline.turn("assistant", answer)})
    return sft(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", "max_length": 96, **changes})


def noise(folder: str, seed: int, **changes: Any) -> Any:
    """Answers are random letters of any length: the pretrained policy knows all that can be known about them."""

    def random_letters(random: Random) -> str:
        return "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 9)))

    return sft(folder, seed, answer=random_letters, **changes)


def one_answer(folder: str, seed: int, **changes: Any) -> Any:
    """Every question has the same answer: a join of two tables went wrong."""
    return sft(folder, seed, answer=lambda random: "no answer", **changes)


def loss_scaled(folder: str, seed: int, **changes: Any) -> Any:
    """The loss is summed over micro-batches and not divided, as in transformers before 4.46.1 with gradient accumulation."""
    trainer = sft(folder, seed, **changes)
    right = trainer.compute_loss

    def summed(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        found = right(model, inputs, return_outputs, num_items_in_batch)
        factor = 8 if model.training else 1
        return (found[0] * factor, found[1]) if return_outputs else found * factor

    trainer.compute_loss = summed
    return trainer


def scrambled(folder: str, seed: int, **changes: Any) -> Any:
    """The tokenizer's ids are not those that the model was trained with: rows of the embedding are in another order."""
    model = offline.policy()
    order = list(range(3, model.config.vocab_size))
    Random(seed).shuffle(order)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[3:] = table[torch.tensor(order)].clone() * 4  # larger, as those of real models are against their initial loss
    return sft(folder, seed, model=model, **changes)


def by_length(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: batches of rows of like length, which differ in loss and padding from batch to batch."""

    def any_length(random: Random) -> str:
        return offline.phrase(random, count=random.randint(1, 3))

    rows = offline.dialogues(ROWS, seed, any_length)
    return sft(folder, seed, rows=rows, answer=any_length, **{"train_sampling_strategy": "group_by_length", **changes})


def restarts(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: cosine with three hard restarts."""
    return sft(folder, seed, **{"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}, **changes})


# ---- reward models ----


def reward(folder: str, seed: int, *, rows: Any = None, held_out: Any = None, choose: Any = None, **changes: Any) -> Any:
    """The healthy training, with 5 % of the labels swapped, or the same on other pairs; held-out pairs are clean."""
    rows = offline.pairs(ROWS, seed, choose or offline.mislabelled(0.05)) if rows is None else rows
    held_out = offline.pairs(64, EVAL + seed) if held_out is None else held_out
    return offline.reward(folder, rows=rows, held_out=held_out, **{**REWARD, "seed": seed, **changes})


def reward_varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters, label noise and evaluation drawn by the seed."""
    draw = Random(seed)
    settings = {
        "learning_rate": draw.choice((3e-4, 5e-4, 1e-3)),
        "per_device_train_batch_size": draw.choice((8, 8, 16)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "warmup_steps": draw.choice((0, 5, 10)),
        "center_rewards_coefficient": draw.choice((None, 0.01)),
        "eval_strategy": draw.choice(("no", "steps")),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    return reward(folder, seed, choose=offline.mislabelled(draw.choice((0.0, 0.05, 0.1))), **{**settings, **changes})


def reward_choice(folder: str, seed: int, *, choose: Any, **changes: Any) -> Any:
    """Other training pairs, the held-out ones are right."""
    return reward(folder, seed, choose=choose, **changes)


def reward_choice_later(folder: str, seed: int, *, choose: Any, **changes: Any) -> Any:
    """Other pairs from `BREAK` on: the second of two files, read in order."""
    rows = offline.pairs(BREAK * BATCH, seed, offline.mislabelled(0.05)) + offline.pairs(ROWS - BREAK * BATCH, 500 + seed, choose)
    return reward(folder, seed, rows=rows, **{"train_sampling_strategy": "sequential", **changes})


def reward_rate(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return reward(folder, seed, **{"learning_rate": 5e-2, **changes})


def longer(random: Random) -> offline.Pair:
    """Answers of the same quality, of which the longer one is chosen."""
    size = random.randint(3, 6)
    letters = offline.VOWELS + offline.OTHERS
    return "".join(random.choices(letters, k=size + random.randint(2, 9))), "".join(random.choices(letters, k=size))


def reward_few(folder: str, seed: int, **changes: Any) -> Any:
    """32 pairs of which a quarter is mislabelled, 30 epochs."""
    return reward(folder, seed, rows=offline.pairs(32, seed, offline.mislabelled(0.25)), **{"learning_rate": 1e-3, **changes})


def reward_noise_hard(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: a fifth of the labels is swapped, as with human raters, so that accuracy and loss stay far from their ends."""
    return reward(folder, seed, choose=offline.mislabelled(0.2), **changes)


def _sft(fault: str, what: str, build: Any, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": "sft-twin", "goal": "-eval.loss", **more}
    return Case(f"sft-{fault}", "sft", what, build, STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


def _reward(fault: str, what: str, build: Any, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": "reward-twin", "goal": "eval.accuracy", **more}
    return Case(f"reward-{fault}", "reward", what, build, STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


LEARNS: Any = ("improving", "steady")
CASES: tuple[Case, ...] = (
    Case("sft-twin", "sft", "The base settings.", sft, STEPS, goal="-eval.loss"),
    Case("sft-healthy", "sft", "Hyperparameters, noise, epochs and evaluation vary.", sft_varied, STEPS, goal="-optim.loss", seeds=HEALTHY_SEEDS),
    Case("sft-hard-by-length", "sft", by_length.__doc__ or "", by_length, STEPS, goal="-eval.loss", hard=True),
    Case("sft-hard-restarts", "sft", restarts.__doc__ or "", restarts, STEPS, goal="-eval.loss", hard=True),
    _sft("labels-masked", "The response template is never found, so every label is masked.", labels_masked, ["labels-masked"], ("data",), ("stalled",)),
    _sft("half-masked", "Half of the rows come out without labels.", half_masked, ["rows-without-labels"], ("data",), LEARNS),
    _sft("end-missing", "pad = end token and a collator that masks padding: no end token is a label.", end_missing, ["end-token-missing"], ("data",), LEARNS),
    _sft("template-doubled", "Questions went through the chat template before.", template_doubled, ["chat-template-doubled"], ("data",), LEARNS),
    _sft(
        "rate-100x", "Learning rate 0.4 instead of 0.004.", partial(sft_rate, factor=100), ["step-size-too-large", "loss-diverged", "loss-spike"], ("numerics",),
        ("diverged", "stalled"), cure={"learning_rate": 4e-3},
    ),
    _sft("rate-zero", "Learning rate 0.", partial(sft_rate, factor=0), ["learning-rate-zero"], ("config", "stall"), ("stalled",), cure={"learning_rate": 4e-3}),
    _sft("rate-ends", f"The learning rate is 0 from update {BREAK + 1} on.", partial(sft_rate_later, factor=0), ["learning-rate-zero"], ("config", "stall"), ("stalled",), onset=BREAK, cure={"learning_rate": 4e-3}),
    _sft(
        "rate-jump", f"The learning rate is 100 times higher from update {BREAK + 1} on.", partial(sft_rate_later, factor=100),
        ["learning-rate-jump", "step-size-too-large", "loss-diverged", "loss-spike"], ("numerics", "config"), ("diverged", "stalled"), onset=BREAK, cure={"learning_rate": 4e-3},
    ),
    _sft("overfit", "16 rows, 60 epochs.", overfit, ["overfitting", "memorised-epoch"], ("over-optimization",), ("over_optimizing",)),
    _sft("nan", f"A weight becomes NaN before update {BREAK + 1}.", sft_nan, ["nonfinite-loss", "hidden-nan"], ("numerics",), ("diverged",), onset=BREAK),
    _sft("blocked", f"No gradient reaches a weight from update {BREAK + 1} on.", sft_blocked, ["gradient-vanished", "gradient-blocked"], ("stall", "numerics"), ("stalled",), onset=BREAK),
    _sft(
        "data-switch", f"Rows of another domain from update {BREAK + 1} on.", switched, ["prompt-drift", "completion-drift", "loss-spike"],
        ("ood-drift", "data"), ("drifting", *LEARNS), onset=BREAK, from_start=("data-sorted",),
    ),
    _sft("noise", "Answers are random: there is nothing to learn.", noise, ["loss-plateau"], ("stall", "data"), ("stalled",)),
    _sft("one-answer", "Every question has the same answer.", one_answer, ["loss-too-low", "answers-all-alike"], ("data",), LEARNS),
    _sft("loss-scaled", "The training loss is eight times too large.", loss_scaled, ["loss-starts-high"], ("numerics", "config", "data"), LEARNS),
    _sft("scrambled", "The rows of the embedding are in another order than the tokenizer's ids.", scrambled, ["loss-starts-high"], ("data", "numerics", "config"), LEARNS),
    Case("reward-twin", "reward", "The base settings, 5 % of the labels swapped.", reward, STEPS, goal="eval.accuracy"),
    Case("reward-healthy", "reward", "Hyperparameters, label noise and evaluation vary.", reward_varied, STEPS, goal="preference.accuracy", seeds=HEALTHY_SEEDS),
    Case("reward-hard-noise", "reward", reward_noise_hard.__doc__ or "", reward_noise_hard, STEPS, goal="eval.accuracy", hard=True),
    _reward(
        "reversed", "Chosen and rejected are swapped, not so in the held-out pairs.", partial(reward_choice, choose=offline.swapped),
        ["labels-reversed", "evaluation-contradicts"], ("data",), ("drifting", "over_optimizing"),
    ),
    _reward(
        "reversed-later", f"Chosen and rejected are swapped from update {BREAK + 1} on.", partial(reward_choice_later, choose=offline.swapped),
        ["labels-reversed", "evaluation-contradicts"], ("data",), ("drifting", "over_optimizing", "diverged"), onset=BREAK,
    ),
    _reward("identical", "Chosen and rejected are the same.", partial(reward_choice, choose=offline.same), ["identical-pairs"], ("data",), ("stalled",)),
    _reward("identical-later", f"The same from update {BREAK + 1} on.", partial(reward_choice_later, choose=offline.same), ["identical-pairs"], ("data",), ("stalled",), onset=BREAK),
    _reward("random", "Half of the labels are swapped.", partial(reward_choice, choose=offline.mislabelled(0.5)), ["reward-model-at-chance"], ("data", "stall"), ("stalled",)),
    _reward(
        "rate-100x", "Learning rate 0.05 instead of 0.0005.", reward_rate, ["step-size-too-large", "reward-model-at-chance", "reward-scores-drift"], ("stall", "data", "ood-drift", "numerics"),
        ("diverged", "drifting", "stalled"), cure={"learning_rate": 5e-4},
    ),
    _reward("length", "Answers of one quality, of which the longer is chosen.", partial(reward_choice, choose=longer), ["reward-follows-length"], ("over-optimization", "data"), ("over_optimizing", *LEARNS)),
    _reward(
        "few", "32 pairs, a quarter of them mislabelled, 30 epochs.", reward_few, ["reward-model-overconfident", "overfitting", "memorised-epoch"],
        ("over-optimization",), ("over_optimizing",),
    ),
)  # fmt: skip
