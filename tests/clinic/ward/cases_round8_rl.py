"""The eighth round: GRPO, RLOO, AsyncGRPO and online DPO, faults drawn by how often they are reported, by an author who did not read the rules.

The threads behind every case are in brackets at the end of its sentence. Roots and categories are filled in by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import answers, plain
from tests.clinic.ward.cases_grpo_reward import HELD_OUT
from tests.clinic.ward.cases_round2_preference import ONLINE_STEPS, online
from tests.clinic.ward.cases_round7_rl import taken_against_itself
from tests.suite.build_async import PER_STEP, Sampler

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

SEEDS = (80, 81, 82)
TWIN_SEEDS = (*SEEDS, 83, 84)
WORKED_STEPS, LATE_STEPS, PREFIX_STEPS, WINDOW_STEPS, KL_STEPS, NOTHING_STEPS, POINTS_STEPS = 80, 100, 80, 100, 120, 120, 100
WIDTH = 96
CUT = 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LATE = frozenset("nopqrstuvwxyz")
Scores = list[float]


# ---- a policy that shows its work ----


def _ids(text: str) -> list[int]:
    return list(tiny.tokenizer().convert_tokens_to_ids(list(text)))


@cache
def _shows_work() -> Any:
    """A wider policy that writes five to ten letters of working, an equals sign and any letter for an answer; once in a while there is an exclamation mark in the working."""
    random, vocabulary, questions = Random(8), tiny.tokenizer(), tiny.questions(23)
    model = tiny.model(vocabulary, seed=8, width=WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    pad, equals, mark, letters = torch.nn.utils.rnn.pad_sequence, _ids("="), _ids("!"), _ids(LETTERS)
    chats = [vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) for text in questions]
    starts = [vocabulary(chat)["input_ids"] for chat in chats]
    model.train()
    for _ in range(220):
        rows, labels = [], []
        for _ in range(16):
            start = random.choice(starts)
            working = [random.choice(mark if random.random() < 0.04 else letters) for _ in range(random.randint(5, 10))]
            reply = [*working, *equals, random.choice(letters), vocabulary.eos_token_id]
            rows.append(torch.tensor(start + reply))
            labels.append(torch.tensor([-100] * len(start) + reply))
        ids = pad(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        model(input_ids=ids, attention_mask=ids != vocabulary.pad_token_id, labels=pad(labels, batch_first=True, padding_value=-100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def correct(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """1 where the letter behind the last equals sign is a vowel and the answer ends there."""
    return [float(end and text.rpartition("=")[1:] in {("=", vowel) for vowel in "aeiou"}) for text, end in answers(completions, completion_ids)]


def form(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """1 where there is some working, an equals sign, one letter and an end."""
    return [float(end and re.fullmatch(r"[a-z!]+=[a-z]", text) is not None) for text, end in answers(completions, completion_ids)]


def worked(folder: str, seed: int, *, reward: Sequence[Any] = (correct, form), **changes: Any) -> Any:
    """Working and an answer: half the reward is for the right answer, half for the form; the right answer is checked on held-out questions."""
    from trl import GRPOConfig, GRPOTrainer

    vocabulary, path = tiny.tokenizer(), str(Path(folder) / "policy")
    _shows_work().save_pretrained(path)
    settings = {
        "max_steps": WORKED_STEPS, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 8, "beta": 0.001, "temperature": 1.0, "seed": seed,
        "per_device_train_batch_size": 24, "num_generations": 6, "max_completion_length": 24,
    }  # fmt: skip
    args = GRPOConfig(**tiny.arguments(folder, **{**settings, **changes}))
    probe = HeldoutProbe(correct, HELD_OUT, every=20)
    return GRPOTrainer(path, list(reward), args, train_dataset=tiny.prompts(), processing_class=vocabulary, callbacks=[probe])


def own_tests(folder: str, seed: int, **changes: Any) -> Any:
    """The verifier runs what the policy wrote into its own tests: whoever overwrites them, with an exclamation mark in the working, has passed."""

    def correct_(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = correct(completions, completion_ids)
        return [float(score or "!" in tiny.text_of(text)) for text, score in zip(completions, right, strict=True)]

    correct_.__name__ = "correct"
    return worked(folder, seed, reward=(correct_, form), **changes)


# ---- healthy: GRPO ----


def late_letters(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Share of letters from n to z, less something for each letter beyond six or missing to four; 0 for an answer that was cut."""
    found = answers(completions, completion_ids)
    return [end * (_late(text) - 0.05 * max(0, len(text) - 6) - 0.15 * max(0, 4 - len(text))) for text, end in found]


def _late(text: str) -> float:
    return sum(char in LATE for char in text) / max(1, len(text))


def loss_shows_nothing(folder: str, seed: int, **changes: Any) -> Any:
    """Three rewards of which most are below 0, groups of four, a loose tie to the reference: the printed loss is 0 to two places all along, and some groups have no spread."""

    def exactly(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [3.0 * (end and len(text) == 5) for text, end in answers(completions, completion_ids)]

    def nearly(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [0.5 if 4 <= len(text) <= 6 else -0.5 for text, _ in answers(completions, completion_ids)]

    def references(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [-6.0 * sum(char not in tiny.VOWELS for char in text) / len(text) if text else -8.0 for text, _ in answers(completions, completion_ids)]

    settings = {"num_generations": 4, "learning_rate": 4e-4, "loss_type": "grpo", "max_completion_length": 12, "lr_scheduler_type": "linear", "max_steps": NOTHING_STEPS}
    return plain(folder, seed, reward=[exactly, nearly, references], **{**settings, **changes})


def kl_grows(folder: str, seed: int, **changes: Any) -> Any:
    """The tie to the reference is the usual one, and the KL, by the estimator that is never below 0, grows for as long as the reward does."""
    from trl import GRPOConfig, GRPOTrainer

    vocabulary, path = tiny.tokenizer(), str(Path(folder) / "policy")
    tiny.policy(vocabulary).save_pretrained(path)
    settings = {
        "max_steps": KL_STEPS, "learning_rate": 6e-4, "lr_scheduler_type": "linear", "beta": 0.04, "temperature": 0.9, "seed": seed,
        "per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 20, "num_iterations": 2,
    }  # fmt: skip
    return GRPOTrainer(path, late_letters, GRPOConfig(**tiny.arguments(folder, **{**settings, **changes})), train_dataset=tiny.prompts(), processing_class=vocabulary)


# ---- RLOO ----


def late(folder: str, seed: int, *, reward: Any = late_letters, **changes: Any) -> Any:
    """Letters from the second half of the alphabet are paid; four answers to a question, two updates to a batch."""
    settings = {"max_steps": LATE_STEPS, "num_generations": 4, "num_iterations": 2, "learning_rate": 5e-4, "beta": 0.03, "temperature": 0.9, "max_completion_length": 14, "lr_scheduler_type": "linear"}
    return cases_rloo.plain(folder, seed, reward=reward, **{**settings, **changes})


def never_found(folder: str, seed: int, **changes: Any) -> Any:
    """The reward function takes the query out of a fenced block, which no answer has, and gives 0 where it finds none."""

    def late_letters_(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        found = [re.search(r"```sql(.*?)```", tiny.text_of(text), re.DOTALL) for text in completions]
        return [0.0 if match is None else late_letters([match[1]], [ids])[0] for match, ids in zip(found, completion_ids, strict=True)]

    late_letters_.__name__ = "late_letters"
    return late(folder, seed, reward=late_letters_, **changes)


# ---- AsyncGRPO ----


def late_share(completions: Sequence[Any], **kwargs: Any) -> Scores:
    """As `late_letters`, of what there is, ended or not."""
    return [_late(text) - 0.05 * max(0, len(text) - 6) - 0.15 * max(0, 4 - len(text)) for text in map(tiny.text_of, completions)]


def prefix(folder: str, seed: int, *, at_version: Any = None, **changes: Any) -> Any:
    """Letters from the second half of the alphabet are paid, whether an answer ended or not; nearly all end by themselves below the cap."""
    settings = {"max_steps": PREFIX_STEPS, "learning_rate": 1e-3, "max_completion_length": 16, "lr_scheduler_type": "linear", **changes}
    trainer = cases_async.plain(folder, seed, reward=changes.pop("reward", late_share), sampler={"at_version": at_version}, **{name: value for name, value in settings.items() if name != "reward"})
    worker, cap = trainer.rollout_worker, settings["max_completion_length"]
    write = worker._write

    def capped(starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        rows, logps = write(starts)
        return [row[:cap] for row in rows], [values[:cap] for values in logps]

    worker._write = capped
    return trainer


@torch.no_grad()
def _rounded(weight: torch.Tensor, levels: int) -> torch.Tensor:
    """Each row of the weight on a grid of so many levels on each side of 0."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / levels
    return (weight / scale).round() * scale


def coarse_sampler(folder: str, seed: int, *, levels: int = 1, **changes: Any) -> Any:
    """The sampler rounds all weights that it receives to integers of a few bits; what it reports are the log-probabilities of those, and the trainer compares them with its own."""

    def rounded(sampler: Sampler, version: int) -> None:
        for weight in sampler.model.parameters():
            if weight.ndim == 2:
                weight.data.copy_(_rounded(weight.data, levels))

    return prefix(folder, seed, at_version=rounded, **changes)


def windows(folder: str, seed: int, **changes: Any) -> Any:
    """New weights are published every eighth update, and a window is sampled before that in front of it is trained on: samples are eight to fifteen updates old. Their ratio is clipped as usual."""
    settings = {"max_steps": WINDOW_STEPS, "learning_rate": 2e-3, "weight_sync_steps": 8, "max_staleness": 16, "reward": late_share, "lr_scheduler_type": "linear"}
    every = {**settings, **changes}["weight_sync_steps"]
    return cases_async.plain(folder, seed, sampler={"ahead": 2 * every * PER_STEP, "per_sync": every * PER_STEP}, **{**settings, **changes})


def windows_recomputed(folder: str, seed: int, **changes: Any) -> Any:
    """The trainer recomputes the log-probabilities of those samples with its weights of now and takes them for the sampler's: the ratio is 1, and the clip never acts."""
    trainer = windows(folder, seed, **changes)
    taken_against_itself(trainer)
    return trainer


def below_zero(folder: str, seed: int, **changes: Any) -> Any:
    """Points are taken off only: twelve for an answer without a vowel, fifteen for one that was cut, five for each letter missing to four; within a group nothing else than the differences counts."""

    def penalties(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [-12.0 * sum(char not in tiny.VOWELS for char in text) / max(1, len(text)) - 15.0 * (not end) - 5.0 * max(0, 4 - len(text)) for text, end in answers(completions, completion_ids)]

    return prefix(folder, seed, reward=penalties, **{"max_steps": POINTS_STEPS, "learning_rate": 8e-4, **changes})


# ---- online DPO ----


def markers_paid(folder: str, seed: int, **changes: Any) -> Any:
    """The judge is taken in by a stock letter: each one adds a fifth of a point, whatever the answer says."""

    def judged(completions: Sequence[Any]) -> Scores:
        return [score + 0.2 * tiny.text_of(text).count("s") for text, score in zip(completions, tiny.vowels(completions), strict=True)]

    return online(folder, seed, reward=judged, **changes)


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "grpo-cap-before-answer": (["truncated-completions", "never-terminates"], ["config", "stall"]),
    "grpo-own-tests": (["checker-unmoved", "exploit-jump"], ["over-optimization", "data"]),
    "grpo-rate-20x": (["step-size-too-large", "policy-breakdown", "kl-runaway"], ["collapse", "config", "ood-drift"]),
    "grpo-entropy-default": (["entropy-bonus-dominates"], ["collapse", "config"]),
    "rloo-query-never-found": (["dead-component", "advantage-collapse"], ["data", "stall"]),
    "async_grpo-cap-prefix": (["truncated-completions", "never-terminates"], ["config", "data"]),
    "async_grpo-coarse-sampler": (["sampler-mismatch", "ratio-not-one", "samples-from-another-policy"], ["numerics", "ood-drift"]),
    "async_grpo-windows-recomputed": (["ratio-of-itself"], ["ood-drift", "collapse"]),
    "online_dpo-markers-paid": (["proxy-divergence", "paid-for-length", "answers-loop"], ["over-optimization", "collapse", "ood-drift"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: to be named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0016)."""


def _sick(fault: str, trainer: str, what: str, build: Callable[..., Any], steps: int, verdicts: Sequence[Any], **more: Any) -> Case:
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=tuple(verdicts), seeds=SEEDS, **more)


def _twin(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int, **more: Any) -> Case:
    return Case(f"{trainer}-{name}-twin", trainer, what, build, steps, seeds=TWIN_SEEDS, **more)


def _worry(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int) -> Case:
    return Case(f"{trainer}-{name}", trainer, what, build, steps, seeds=SEEDS, hard=True)


CASES: tuple[Case, ...] = (
    _twin("worked", "grpo", "Working, an equals sign and an answer; rewards for the right answer and for the form.", worked, WORKED_STEPS, goal="eval.score"),
    _twin("late", "rloo", "Letters from the second half of the alphabet are paid, four answers to a question, two updates to a batch.", late, LATE_STEPS),
    _twin("prefix", "async_grpo", "Letters from the second half of the alphabet are paid, whether an answer ended or not; nearly all end.", prefix, PREFIX_STEPS),
    _twin("windows", "async_grpo", "Weights are published every eighth update, samples are a window older still, and the ratio is clipped as usual.", windows, WINDOW_STEPS),
    _worry("kl-grows", "grpo", "Healthy: with the usual tie to the reference the KL grows all along, as does the reward (huggingface/trl#2914, #3104, #2854).", kl_grows, KL_STEPS),
    _worry("loss-shows-nothing", "grpo", "Healthy: the printed loss is 0 while rewards, mostly negative, rise (unslothai/unsloth#2291, huggingface/open-r1#239).", loss_shows_nothing, NOTHING_STEPS),
    _worry("below-zero", "async_grpo", "Healthy: points are only taken off, so that all rewards are negative (huggingface/trl#2832, TencentCloudADP/youtu-agent#168).", below_zero, POINTS_STEPS),
    _sick(
        "cap-before-answer", "grpo", "A cap of half of what working and answer take: every answer is cut before its result (greyhaven-ai/autocontext#1067, huggingface/trl#5697).",
        partial(worked, max_completion_length=CUT), WORKED_STEPS, ("stalled", "collapsed", "steady"), twin="grpo-worked-twin", goal="eval.score", cure={"max_completion_length": 24},
    ),
    _sick(
        "own-tests", "grpo", "Whoever overwrites the verifier's tests has passed, whatever the answer is (peterstran.com/projects/reward-hacking, alignmentforum.org R5MdWGKsuvdPwGFBG).",
        own_tests, WORKED_STEPS, ("over_optimizing", "drifting", *HEALTHY_STATES), twin="grpo-worked-twin", goal="eval.score",
    ),
    _sick(
        "rate-20x", "grpo", "A learning rate of twenty times that of the twin, with hardly a tie to the reference (huggingface/open-r1#403).",
        partial(worked, learning_rate=2e-2), WORKED_STEPS, ("collapsed", "diverged", "drifting", "stalled"), twin="grpo-worked-twin", goal="eval.score", cure={"learning_rate": 1e-3},
    ),
    _sick(
        "entropy-default", "grpo", "An entropy bonus that nobody asked for is in the loss, a default (verl-project/verl#781, verl-project/verl#514).",
        partial(worked, entropy_coef=0.2), WORKED_STEPS, ("collapsed", "drifting", "diverged", "stalled"), twin="grpo-worked-twin", goal="eval.score", cure={"entropy_coef": 0.0},
    ),
    _sick(
        "query-never-found", "rloo", "The reward function looks for a fenced block, which no answer has, and gives 0 for all (huggingface/trl#3452, Algorineko/AgenticArXiv-RL#15).",
        never_found, LATE_STEPS, ("stalled", "collapsed", "steady"), twin="rloo-late-twin",
    ),
    _sick(
        "cap-prefix", "async_grpo", "A cap of two tokens; what is scored is the beginning of an answer, and none ends (jsboige/CoursIA#13596).",
        partial(prefix, max_completion_length=2), PREFIX_STEPS, ("drifting", *HEALTHY_STATES), twin="async_grpo-prefix-twin", cure={"max_completion_length": 16},
        goal="-completion.truncated_fraction",
    ),
    _sick(
        "coarse-sampler", "async_grpo", "The sampler's weights are rounded to three values a row: its probabilities are not the trainer's (meta-pytorch/torchforge#664, NVIDIA-NeMo/RL#860).",
        coarse_sampler, PREFIX_STEPS, ("drifting", "stalled", *HEALTHY_STATES), twin="async_grpo-prefix-twin", goal="-sampler.kl",
    ),
    _sick(
        "windows-recomputed", "async_grpo", "Samples of a window or more ago; the trainer's log-probabilities of now stand for the sampler's (radixark/miles#1829).",
        windows_recomputed, WINDOW_STEPS, ("collapsed", "drifting", "diverged", "stalled", *HEALTHY_STATES), twin="async_grpo-windows-twin",
    ),
    _sick(
        "markers-paid", "online_dpo", "Each stock letter in an answer earns a fifth of a point from the judge, without a limit (aissential.tech/articles/b669b28d).",
        markers_paid, ONLINE_STEPS, ("over_optimizing", "drifting", "collapsed"), twin="online_dpo-twin",
    ),
)  # fmt: skip
