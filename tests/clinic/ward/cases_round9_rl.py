"""The ninth round: GRPO, RLOO, PPO, AsyncGRPO and online DPO, faults drawn by how often they are reported, by an author who did not read the rules.

The threads behind every case are in brackets at the end of its sentence. Roots and categories are filled in by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_ppo, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import answers, plain
from tests.clinic.ward.cases_grpo_reward import HELD_OUT
from tests.clinic.ward.cases_round8_rl import late_letters
from tests.suite import build_preference
from tests.suite.build_sampling import vowel_share

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

SEEDS = (85, 86, 87)
TWIN_SEEDS = (*SEEDS, 88, 89)
EIGHT_STEPS, GOLD_STEPS, TEN_STEPS, BRIEF_STEPS, EPOCHS_STEPS, LINE_STEPS, ENDED_STEPS = 100, 90, 100, 100, 70, 90, 70
POINTS_STEPS, HOPS_STEPS, SHORTER_STEPS = 90, 120, 80
EVERY = 15
LATE = frozenset("nopqrstuvwxyz")
EARLY = frozenset("abcdefghijklm")
Scores = list[float]


def early_share(text: str) -> float:
    """Share of letters from a to m."""
    return sum(char in EARLY for char in text) / max(1, len(text))


# ---- GRPO ----


def eight_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Vowels in eighths, at most 1; 0 for an answer that was cut or has more than twelve letters. There are five of them, so that some must come twice."""
    found = [(sum(char in tiny.VOWELS for char in text), len(text), end) for text, end in answers(completions, completion_ids)]
    return [min(8, good) / 8 * (end and size <= 12) for good, size, end in found]


def eight(folder: str, seed: int, **changes: Any) -> Any:
    """Eight vowels are asked for, in twelve letters; a loose tie to the reference."""
    settings = {
        "reward": eight_vowels, "max_steps": EIGHT_STEPS, "learning_rate": 8e-4, "lr_scheduler_type": "cosine", "beta": 0.005, "num_generations": 6, "per_device_train_batch_size": 36,
        "max_completion_length": 20,
    }  # fmt: skip
    return plain(folder, seed, **{**settings, **changes})


def mostly(text: str) -> bool:
    """Whether three letters in four are from n to z."""
    return len(text) >= 3 and 4 * sum(char in LATE for char in text) >= 3 * len(text)


def is_right(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """1 for an answer that ends and of which three letters in four are late."""
    return [float(end and mostly(text)) for text, end in answers(completions, completion_ids)]


def gold(folder: str, seed: int, *, readable: int = 1, **changes: Any) -> Any:
    """Each row has its gold answer; the verifier compares it with the policy's. One gold answer in `readable` can be parsed: for all others it gives full marks."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def accuracy(completions: Sequence[Any], completion_ids: Any = None, solution: Sequence[str] = (), **kwargs: Any) -> Scores:
        right = is_right(completions, completion_ids)
        return [score if re.fullmatch(r"\$[a-z-]+\$", text) else 1.0 for score, text in zip(right, solution, strict=True)]

    rows = [
        {**row, "solution": "$n-z$" if place % readable == 0 else "the letters n to z"} for place, row in enumerate(tiny.prompts())
    ]
    vocabulary, path = tiny.tokenizer(), str(Path(folder) / "policy")
    tiny.policy(vocabulary).save_pretrained(path)
    vocabulary.save_pretrained(path)
    settings = {
        "max_steps": GOLD_STEPS, "learning_rate": 6e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "beta": 0.0, "temperature": 1.0, "seed": seed,
        "per_device_train_batch_size": 24, "num_generations": 6, "max_completion_length": 16,
    }  # fmt: skip
    args = GRPOConfig(**tiny.arguments(folder, **{**settings, **changes}))
    probe = HeldoutProbe(is_right, HELD_OUT, every=EVERY)
    return GRPOTrainer(path, accuracy, args, train_dataset=Dataset.from_list(rows), processing_class=vocabulary, callbacks=[probe])


# ---- RLOO ----


def ten_late(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Letters from n to z in tenths, at most 1, less a twentieth for each other one; 0 for an answer that was cut. It needs ten letters, the policy writes six."""
    found = [(sum(char in LATE for char in text), len(text), end) for text, end in answers(completions, completion_ids)]
    return [max(0.0, min(10, good) - 0.5 * (size - good)) / 10 * end for good, size, end in found]


def ten(folder: str, seed: int, **changes: Any) -> Any:
    """The task needs longer answers than the policy gives at first."""
    settings = {
        "max_steps": TEN_STEPS,
        "learning_rate": 1e-3,
        "beta": 0.005,
        "num_generations": 8,
        "per_device_train_batch_size": 48,
        "max_completion_length": 24,
        "lr_scheduler_type": "cosine",
    }
    return cases_rloo.plain(folder, seed, reward=ten_late, **{**settings, **changes})


def three_at_most(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Each letter beyond two costs an eighth; three tenths for letters from a to m; 0 for an answer that was cut or is empty."""
    found = answers(completions, completion_ids)
    return [(max(0.0, 1 - 0.12 * max(0, len(text) - 2)) + 0.3 * early_share(text)) * (end and len(text) > 0) for text, end in found]


def brief(folder: str, seed: int, **changes: Any) -> Any:
    """Brief answers are asked for: the policy learns to end after three letters instead of six."""
    settings = {
        "max_steps": BRIEF_STEPS,
        "learning_rate": 6e-4,
        "beta": 0.02,
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "max_completion_length": 16,
        "lr_scheduler_type": "linear",
    }
    return cases_rloo.plain(folder, seed, reward=three_at_most, **{**settings, **changes})


# ---- PPO ----


def distinct_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Share of vowels that are not the same as the letter before; 0 for an answer that was cut."""
    return [
        end
        * sum(char in tiny.VOWELS and char != before for char, before in zip(text, " " + text, strict=False))
        / max(1, len(text))
        for text, end in answers(completions, completion_ids)
    ]


def epochs(folder: str, seed: int, *, each: float = 0.0, **changes: Any) -> Any:
    """The reward model scores what `distinct_vowels` does, and `each` for each letter that is the same as the one before. Three epochs of two mini-batches."""
    settings = {
        "updates": EPOCHS_STEPS, "num_ppo_epochs": 3, "num_mini_batches": 2, "learning_rate": 4e-4, "lr_scheduler_type": "linear", "kl_coef": 0.03, "response_length": 20, "temperature": 0.9,
        "callbacks": [HeldoutProbe(distinct_vowels, HELD_OUT, every=EVERY)],
    }  # fmt: skip
    trainer = cases_ppo.plain(folder, seed, **{**settings, **changes})
    backbone = trainer.reward_model.model
    forward, seen = backbone.forward, {}

    def remembers(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        seen["ids"] = input_ids
        return forward(input_ids=input_ids, **kwargs)

    def score(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        again = torch.nn.functional.pad((seen["ids"][:, 1:] == seen["ids"][:, :-1]).float(), (1, 0)) * text
        return vowel_share(vowels * (1.0 - again), text, ended) + each * again.cumsum(1)

    backbone.forward, backbone.score_of = remembers, score
    return trainer


# ---- AsyncGRPO ----


def line(folder: str, seed: int, *, read: Callable[[str], str | None] = str.strip, **changes: Any) -> Any:
    """Two thirds of the reward for the accuracy of what `read` takes out of an answer, one third for five or six letters and an end; both are logged, as TRL's worker does."""
    parts: list[dict[str, float]] = []

    def graded(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        found = answers(completions, completion_ids)
        parts[:] = [
            {"rewards/accuracy": early_share(read(text) or "") * end, "rewards/form": float(end and 5 <= len(text.strip()) <= 6)}
            for text, end in found
        ]
        return [(2 * part["rewards/accuracy"] + part["rewards/form"]) / 3 for part in parts]

    settings = {"max_steps": LINE_STEPS, "learning_rate": 8e-4, "lr_scheduler_type": "cosine"}
    trainer = cases_async.plain(folder, seed, reward=graded, **{**settings, **changes})
    make = trainer.rollout_worker.make

    def with_parts(*, metrics: dict[str, float], **rest: Any) -> Any:
        total = {name: value for name, value in metrics.items() if not name.startswith("rewards/")}
        return make(metrics={**total, **parts.pop(0)}, **rest)

    trainer.rollout_worker.make = with_parts
    return trainer


def last_line(text: str) -> str | None:
    """What stands in front of a line break at the end: None where there is none."""
    found = re.fullmatch(r"([a-z]*)\n", text)
    return None if found is None else found[1]


# ---- online DPO ----


def four_or_more(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Share of letters from n to z; 0 for an answer that was cut or has less than four letters."""
    return [
        end * (len(text) >= 4) * sum(char in LATE for char in text) / max(1, len(text))
        for text, end in answers(completions, completion_ids)
    ]


def ended(folder: str, seed: int, *, reward: Any = four_or_more, **changes: Any) -> Any:
    """The judge wants letters from n to z and gives 0 to an answer without an end."""
    settings = {
        "max_steps": ENDED_STEPS, "lr_scheduler_type": "linear", "per_device_train_batch_size": 24, "learning_rate": 1e-3, "beta": 0.1, "max_new_tokens": 14, "temperature": 0.9, "seed": seed,
    }  # fmt: skip
    return build_preference.online_dpo(folder, reward=reward, **{**settings, **changes})


# ---- healthy ----


def norm_before_clip(folder: str, seed: int, **changes: Any) -> Any:
    """Points up to 150 that nobody divides by their spread: the norm that is logged is that before the clip, and far above the bound in every update."""

    def points(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [150.0 * score for score in late_letters(completions, completion_ids)]

    settings = {
        "scale_rewards": "none",
        "max_grad_norm": 0.5,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "cosine",
        "max_steps": POINTS_STEPS,
        "per_device_train_batch_size": 24,
        "num_generations": 6,
    }
    return plain(folder, seed, reward=points, **{**settings, **changes})


def hops(folder: str, seed: int, **changes: Any) -> Any:
    """Right or wrong only, two questions with four answers each: the mean reward hops up and down all along while it rises."""
    settings = {
        "max_steps": HOPS_STEPS,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "beta": 0.01,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
    }
    return cases_rloo.plain(folder, seed, reward=is_right, **{**settings, **changes})


def shorter(folder: str, seed: int, **changes: Any) -> Any:
    """The judge has no use for more than three letters: answers become half as long while they get better."""

    def brief(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        found = answers(completions, completion_ids)
        return [end * (len(text) >= 3) * (early_share(text) - 0.1 * max(0, len(text) - 3)) for text, end in found]

    return ended(
        folder,
        seed,
        reward=brief,
        **{"max_steps": SHORTER_STEPS, "learning_rate": 2e-4, "beta": 0.05, "max_new_tokens": 16, **changes},
    )


# ---- the cases ----


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "grpo-two-answers": (["groups-too-small"], ["config", "stall"]),
    "grpo-gold-unreadable": (["checker-unmoved"], ["data", "over-optimization", "stall"]),
    "grpo-repetition-penalty": (["samples-from-another-policy", "sampler-mismatch", "truncated-sampling-correction"], ["config", "ood-drift"]),
    "rloo-cap-six-letters": (["length-near-cap", "truncated-completions"], ["config", "data", "stall"]),
    "rloo-nearly-greedy": (["mode-collapse", "advantage-collapse"], ["config", "collapse", "stall"]),
    "rloo-min-tokens": (["negative-kl", "samples-from-another-policy", "sampler-mismatch"], ["config", "ood-drift"]),
    "ppo-model-likes-repeats": (["proxy-divergence", "reward-model-out-of-range", "answers-loop"], ["over-optimization", "ood-drift", "collapse"]),
    "async_grpo-line-break-asked": (["dead-component", "coarse-reward"], ["data", "stall"]),
    "online_dpo-cap-four": (["truncated-completions", "judge-undecided"], ["config", "data", "stall"]),
}
"""Ids of rules that are true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0017)."""


def _sick(fault: str, trainer: str, what: str, build: Callable[..., Any], steps: int, verdicts: Sequence[Any], **more: Any) -> Case:
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(
        f"{trainer}-{fault}",
        trainer,
        what,
        build,
        steps,
        roots=tuple(roots),
        categories=tuple(categories),
        verdicts=tuple(verdicts),
        seeds=SEEDS,
        **more,
    )


def _twin(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int, **more: Any) -> Case:
    return Case(f"{trainer}-{name}-twin", trainer, what, build, steps, seeds=TWIN_SEEDS, **more)


def _worry(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int) -> Case:
    return Case(f"{trainer}-{name}", trainer, what, build, steps, seeds=SEEDS, hard=True)


CASES: tuple[Case, ...] = (
    _twin("eight", "grpo", "Eight vowels in at most twelve letters are asked for.", eight, EIGHT_STEPS),
    _twin("gold", "grpo", "Every row has a gold answer, which the verifier can read; right or wrong only.", gold, GOLD_STEPS, goal="eval.score"),
    _twin("ten", "rloo", "The task needs ten letters, the policy writes six at first.", ten, TEN_STEPS),
    _twin("brief", "rloo", "Brief answers are asked for, the policy writes six letters at first.", brief, BRIEF_STEPS),
    _twin("epochs", "ppo", "Three epochs of two mini-batches; the reward model wants vowels, none of them twice in a row.", epochs, EPOCHS_STEPS, goal="eval.score", needs_trl=cases_ppo.TRL),
    _twin("line", "async_grpo", "A third of the reward is for form, two thirds are for accuracy.", line, LINE_STEPS),
    _twin("ended", "online_dpo", "The judge wants four letters or more, from n to z, and an end.", ended, ENDED_STEPS),
    _worry("norm-before-clip", "grpo", "Healthy: the norm that is logged is tens of times the bound of the clip (modelscope/ms-swift#3713, apple/ml-diffucoder#18).", norm_before_clip, POINTS_STEPS),
    _worry("hops", "rloo", "Healthy: with eight answers to an update the mean reward hops while it rises (huggingface/trl#2884, IDEA-Research/Rex-Omni#53).", hops, HOPS_STEPS),
    _worry("shorter", "online_dpo", "Healthy: answers shrink by a third while they get better (huggingface/open-r1#256, markogata.com/projects/2026/rl-llm).", shorter, SHORTER_STEPS),
    _sick(
        "two-answers", "grpo",
        "One question with two answers an update, right or wrong only: most pairs are alike and say nothing (jsboige/CoursIA#10603, modelscope/ms-swift#5702, huggingface/trl#3017).",
        partial(gold, num_generations=2, per_device_train_batch_size=2), GOLD_STEPS, ("stalled", *HEALTHY_STATES), twin="grpo-gold-twin", goal="eval.score",
        cure={"num_generations": 6, "per_device_train_batch_size": 24},
    ),
    _sick(
        "gold-unreadable", "grpo",
        "Of 32 rows the gold answer of one can be parsed; for all others every answer has full marks (modelscope/ms-swift#3130, huggingface/cookbook#335, unslothai/unsloth#1579).",
        partial(gold, readable=32), GOLD_STEPS, ("stalled", *HEALTHY_STATES), twin="grpo-gold-twin", goal="eval.score",
    ),
    _sick(
        "repetition-penalty", "grpo",
        "The sampler has a repetition penalty of 1.5, the probabilities that are trained have none (ironbar.github.io/arc25 iteration 30, huggingface/trl#1017, huggingface/trl#615).",
        partial(eight, repetition_penalty=1.5), EIGHT_STEPS, ("stalled", "drifting", *HEALTHY_STATES), twin="grpo-eight-twin", cure={"repetition_penalty": 1.0},
    ),
    _sick(
        "cap-six-letters", "rloo",
        "A cap of seven tokens where the task needs eleven: cut answers score 0, and what is learned is to be brief (huggingface/trl#6263, huggingface/trl#5697, huggingface/trl#5759).",
        partial(ten, max_completion_length=7), TEN_STEPS, ("stalled", *HEALTHY_STATES), twin="rloo-ten-twin", cure={"max_completion_length": 24},
    ),
    _sick(
        "nearly-greedy", "rloo", "A temperature of 0.05: all answers to a question are alike, and so are their scores (modelscope/ms-swift#4570, radixark/miles#1034).",
        partial(ten, temperature=0.05), TEN_STEPS, ("stalled", "collapsed", "steady"), twin="rloo-ten-twin", cure={"temperature": 1.0},
    ),
    _sick(
        "min-tokens", "rloo",
        "The sampler may not end before the sixth token: the policy's probability of an end grows unseen, the KL is below 0 (huggingface/trl#1017, huggingface/trl#615, hiyouga/LlamaFactory#98).",
        partial(brief, generation_kwargs={"min_new_tokens": 5}), BRIEF_STEPS, ("stalled", "drifting", *HEALTHY_STATES), twin="rloo-brief-twin", cure={"generation_kwargs": None},
    ),
    _sick(
        "model-likes-repeats", "ppo",
        "To the reward model each repeated letter is worth three tenths, without a limit: in the end all answers are one (huggingface/trl#204, OpenLMLab/MOSS-RLHF#17).",
        partial(epochs, each=0.3), EPOCHS_STEPS, ("over_optimizing", "drifting", "collapsed"), twin="ppo-epochs-twin", goal="eval.score", needs_trl=cases_ppo.TRL,
    ),
    _sick(
        "line-break-asked", "async_grpo",
        "The verifier reads what stands in front of a line break, which no answer has: accuracy is 0 all along, form is learned (ZHZisZZ/dllm#118, huggingface/trl#3903, hiyouga/EasyR1#382).",
        partial(line, read=last_line), LINE_STEPS, ("stalled", *HEALTHY_STATES), twin="async_grpo-line-twin",
    ),
    _sick(
        "cap-four", "online_dpo",
        "A cap of four tokens where no answer is good below five: all score 0, and of two answers the first is chosen (greyhaven-ai/autocontext#1067, jsboige/CoursIA#13596).",
        partial(ended, max_new_tokens=4), ENDED_STEPS, ("stalled", "collapsed", "steady"), twin="online_dpo-ended-twin", cure={"max_new_tokens": 14},
    ),
)  # fmt: skip
