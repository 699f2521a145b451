"""The sixth round: GRPO, RLOO and AsyncGRPO, each fault a bug that a training framework really had, by an author who did not read the rules.

The thread behind every case is in brackets at the end of its sentence. Roots and categories are filled in by somebody else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tests.clinic.ward import cases_async, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import STEPS, answers, plain
from tests.clinic.ward.cases_grpo_reward import different_vowels, probed
from tests.clinic.ward.cases_round5_rl import _school, cool
from tests.suite.build_async import Sampler

from trainvitals.integrations import tiny

SEEDS = (60, 61, 62)
TWIN_SEEDS = (*SEEDS, 63, 64)
KIND_STEPS = 120
SGD_STEPS = 80
KINDS = {"vowels": "aeiou", "early": "bcdfg"}
FAILING = 0.05
Scores = list[float | None]


# ---- healthy ----


def episodes_fail(folder: str, seed: int, **changes: Any) -> Any:
    """One episode in twenty dies in its sandbox and has no score (None), which the trainer leaves out of its group."""
    random = Random(seed)

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [None if random.random() < FAILING else score for score in tiny.vowels(completions, completion_ids)]

    return plain(folder, seed, reward=vowels, **changes)


@cache
def _reads_kinds() -> dict[str, torch.Tensor]:
    """Weights of a policy that takes notice of the word before a question: two letters in five are then of the kind that it names."""
    vocabulary, questions = tiny.tokenizer(), tiny.questions(23)
    letters = {kind: vocabulary.convert_tokens_to_ids(list(some)) for kind, some in {**KINDS, "": "abcdefghijklmnopqrstuvwxyz"}.items()}
    told = [(kind, f"{kind} {text}".strip()) for kind in letters for text in questions]

    def answer(random: Random, place: int) -> list[int]:
        return [random.choice(letters[told[place][0] if random.random() < 0.4 else ""]) for _ in range(random.randint(3, 9))]

    return _school([text for _, text in told], answer, steps=600)


def two_kinds(folder: str, seed: int, *, template: str = "{kind} {question}", **changes: Any) -> Any:
    """Half of the prompts ask for vowels and half for early consonants; the word before the question says which, and the reward goes by it."""

    def asked(completions: Sequence[Any], completion_ids: Any = None, kind: Sequence[str] = (), **kwargs: Any) -> list[float]:
        pairs = zip(answers(completions, completion_ids), kind, strict=True)
        return [end * sum(char in KINDS[wanted] for char in text) / max(1, len(text)) for (text, end), wanted in pairs]

    rows = [(tuple(KINDS)[place % 2], text) for place, text in enumerate(tiny.questions())]
    trainer = plain(folder, seed, reward=asked, **{"learning_rate": 1e-3, "max_steps": KIND_STEPS, **changes})
    trainer.train_dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": template.format(kind=kind, question=text)}], "kind": kind} for kind, text in rows])
    trainer.model.load_state_dict(_reads_kinds())
    return trainer


def given_points(folder: str, seed: int, **changes: Any) -> Any:
    """Each question gives from 0 to 2 points for what is known already, whatever the answer is; within a group that makes no difference. The task is checked on held-out prompts."""

    def points(completions: Sequence[Any], completion_ids: Any = None, given: Sequence[float] = (), **kwargs: Any) -> list[float]:
        return [start + score for start, score in zip(given, tiny.vowels(completions, completion_ids), strict=True)]

    trainer = probed(folder, seed, reward=points, **changes)
    trainer.train_dataset = Dataset.from_list([{**row, "given": place % 5 * 0.5} for place, row in enumerate(tiny.prompts())])
    return trainer


def small_steps(folder: str, seed: int, **changes: Any) -> Any:
    """Plain gradient descent without a limit to the norm, eight micro-batches to an update."""
    settings = {
        "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0, "gradient_accumulation_steps": 8, "per_device_train_batch_size": 8, "max_steps": SGD_STEPS, "reward": different_vowels,
    }  # fmt: skip
    return plain(folder, seed, **{**settings, **changes})


@cache
def _knows_vowels() -> dict[str, torch.Tensor]:
    """Weights of a policy whose letters are vowels in four cases of five: hardly anything is left to learn."""
    vowels, letters = (tiny.tokenizer().convert_tokens_to_ids(list(some)) for some in ("aeiou", "abcdefghijklmnopqrstuvwxyz"))
    return _school(tiny.questions(23), lambda random, place: [random.choice(vowels if random.random() < 0.75 else letters) for _ in range(random.randint(3, 9))], steps=150)


def kl_below_zero(folder: str, seed: int, **changes: Any) -> Any:
    """RLOO estimates the KL by the plain log ratio of the sampled tokens. A good policy that moves little, in small batches: in every sixth update or so what is logged is below 0, as an unbiased estimate of next to nothing may be."""
    settings = {"learning_rate": 1e-4, "per_device_train_batch_size": 16, "num_generations": 4, "max_steps": KIND_STEPS}
    trainer = cases_rloo.plain(folder, seed, **{**settings, **changes})
    for model in (trainer.model, trainer.ref_model):
        model.load_state_dict(_knows_vowels())
    return trainer


def three_weights(folder: str, seed: int, **changes: Any) -> Any:
    """Three reward functions are logged as they are and weighed by 0.3, 0.5 and 0.3 where they are added: the total is no sum of what is logged, and its top is 1.1."""

    def ends(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        return [float(tiny.END_ID in ids) for ids in completion_ids]

    settings = {"reward": [different_vowels, tiny.vowels, ends], "reward_weights": [0.3, 0.5, 0.3], "learning_rate": 8e-4, "max_completion_length": 24}
    return plain(folder, seed, **{**settings, **changes})


def ratio_of_prompts(folder: str, seed: int, **changes: Any) -> Any:
    """Only the logged ratio is wrong: its mean takes in the positions of the prompt, which have no old log-probability; loss and gradient are right."""
    trainer = cases_async.plain(folder, seed, **changes)
    right = trainer.compute_loss

    def logged(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        calls: list[dict[str, Any]] = []
        watch = model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
        loss = right(model, inputs, *more, **named)
        watch.remove()
        with torch.no_grad():
            logps = model(**{**calls[0], "shift_labels": calls[0]["input_ids"].roll(-1, 1)}).log_probs.flatten()
        taken = inputs["token_index"][inputs["token_index"] >= 0]
        prompt = torch.ones_like(logps, dtype=torch.bool).index_fill(0, taken, False)
        ratios = trainer._metrics["train"]["ratio"]
        ratios[-1] = (ratios[-1] * len(taken) + logps[prompt].exp().sum().item()) / len(logps)
        return loss

    trainer.compute_loss = logged
    return trainer


# ---- groups and prompts ----


def partial_groups(folder: str, seed: int, **changes: Any) -> Any:
    """Failed episodes are taken out before groups are cut by a fixed stride: all behind a gap are grouped with another prompt's, and what is left over is divided by nothing but epsilon."""
    trainer = episodes_fail(folder, seed, **changes)
    score, generate, kept = trainer._calculate_rewards, trainer._generate_and_score_completions, {}

    def noted(*parts: Any, **more: Any) -> Any:
        kept["rewards"] = score(*parts, **more)
        return kept["rewards"]

    def by_stride(inputs: Any) -> Any:
        batch, size = generate(inputs), trainer.num_generations
        came = ~kept["rewards"].isnan().all(1)
        left = kept["rewards"].nansum(1)[came]
        mean, spread = torch.zeros_like(left), torch.zeros_like(left)
        for start in range(0, len(left) // size * size, size):
            mean[start : start + size], spread[start : start + size] = left[start : start + size].mean(), left[start : start + size].std()
        advantages = torch.zeros(len(came), dtype=left.dtype)
        advantages[came] = (left - mean) / (spread + 1e-5)
        batch["advantages"] = advantages.to(batch["advantages"].dtype)
        return batch

    trainer._calculate_rewards, trainer._generate_and_score_completions = noted, by_stride
    return trainer


class Interleaved(torch.utils.data.Sampler):  # type: ignore[type-arg]
    """The prompts of a batch one after the other, and that so often, where each should be repeated in one piece."""

    def __init__(self, right: Any, size: int, group: int) -> None:
        self.right, self.size, self.group = right, size, group

    def __iter__(self) -> Iterator[int]:
        batch: list[int] = []
        for place in self.right:
            batch.append(place)
            if len(batch) == self.size:
                yield from batch[:: self.group] * self.group
                batch = []

    def __len__(self) -> int:
        return len(self.right)


def groups_interleaved(folder: str, seed: int, **changes: Any) -> Any:
    """The list of prompts is repeated as a whole, groups are cut from it piece by piece: each group holds answers to four prompts."""
    trainer = given_points(folder, seed, **changes)
    sampler = trainer._get_train_sampler
    trainer._get_train_sampler = lambda dataset=None: Interleaved(sampler(dataset), trainer.args.generation_batch_size, trainer.num_generations)
    return trainer


# ---- the update ----


def not_divided(folder: str, seed: int, **changes: Any) -> Any:
    """The loss of a micro-batch is not divided by the number of micro-batches to an update: gradients are eight times as long."""
    trainer = small_steps(folder, seed, **changes)
    right = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: right(model, inputs) * trainer.current_gradient_accumulation_steps
    return trainer


def pads_trained(folder: str, seed: int, **changes: Any) -> Any:
    """The model's turn ends with another token than that of the tokenizer, and the trainer knows the latter only: the padding behind an answer is part of it, in the loss and in its length."""
    trainer = plain(folder, seed, **changes)
    trainer.eos_token_ids = [trainer.processing_class.convert_tokens_to_ids("<|im_start|>")]
    return trainer


# ---- the sampler ----


def base_reloaded(folder: str, seed: int, **changes: Any) -> Any:
    """The engine sleeps between batches, and its waking reads the checkpoint from disk over the weights that were just sent: every batch is sampled by the policy of the start."""
    trainer = cases_rloo.plain(folder, seed, **changes)
    right, checkpoint = trainer._generate_single_turn, copy.deepcopy(trainer.model.state_dict())

    def from_disk(*parts: Any, **more: Any) -> Any:
        sent = copy.deepcopy(trainer.model.state_dict())
        trainer.model.load_state_dict(checkpoint)
        try:
            return right(*parts, **more)
        finally:
            trainer.model.load_state_dict(sent)

    trainer._generate_single_turn = from_disk
    return trainer


def adapter_twice(folder: str, seed: int, **changes: Any) -> Any:
    """At a resume the engine is given the weights with the adapter merged into them; from the next sync on it puts the adapter on top of that, so that it counts twice."""
    start = dict(tiny.policy(tiny.tokenizer()).named_parameters())

    def resume(sampler: Sampler, version: int) -> None:
        if version != cases_async.BREAK - 1:  # the trainer has the next batch in hand already
            return
        merged = {name: (weight - start[name]).detach().clone() for name, weight in sampler.model.named_parameters()}
        receive = sampler.send_weights

        def on_top(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            receive(weights)
            for name, weight in sampler.model.named_parameters():
                weight.data += merged[name]

        sampler.send_weights = on_top  # type: ignore[method-assign]

    return cases_async.plain(folder, seed, sampler={"at_version": resume}, **changes)


def logps_divided(folder: str, seed: int, **changes: Any) -> Any:
    """Log-probabilities of the sampled tokens are divided by the temperature, where it is the logits that should be: what comes out is no distribution."""
    trainer = cool(folder, seed, raw=True, **changes)
    worker, write = trainer.rollout_worker, trainer.rollout_worker._write

    def divided(starts: Any) -> Any:
        rows, values = write(starts)
        return rows, [[value / trainer.args.temperature for value in row] for row in values]

    worker._write = divided
    return trainer


# ---- the environment ----


def failures_zero(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on nine episodes in ten fail in the reset of their environment; the failure is caught and handed on as a score of 0, like a wrong answer."""
    random = Random(seed)

    def vowels(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> list[float]:
        right = list(tiny.vowels(completions, completion_ids))
        return right if trainer_state.global_step < cases_rloo.BREAK else [0.0 if random.random() < 0.9 else score for score in right]

    return cases_rloo.plain(folder, seed, reward=vowels, **changes)


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "grpo-partial-groups": (["groups-mixed", "advantages-off-centre"], ["data", "numerics"]),
    "grpo-micro-batches-not-divided": (["step-size-too-large", "no-rule:loss-not-divided-by-micro-batches"], ["numerics", "config"]),
    "grpo-question-not-rendered": (["no-rule:prompt-leaves-out-what-is-asked"], ["data", "stall"]),
    "grpo-pads-trained": (["padding-counts-as-answer", "padding-learned"], ["data", "numerics"]),
    "grpo-groups-interleaved": (["groups-mixed", "advantages-off-centre"], ["data"]),
    "rloo-base-reloaded": (["samples-from-another-policy", "sampler-left-behind", "sampler-mismatch"], ["ood-drift", "data"]),
    "rloo-failures-zero": (["scores-turned-to-zero", "failed-scores-count-as-zero", "scores-not-repeatable", "scores-ignore-answers"], ["data", "collapse"]),
    "async_grpo-adapter-twice": (["sampler-mismatch", "samples-from-another-policy"], ["ood-drift"]),
    "async_grpo-logps-divided": (["sampler-mismatch", "ratio-not-one"], ["numerics", "config"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0014).
`padding-counts-as-answer` and `scores-turned-to-zero` were written after the first score and added then."""


def _sick(fault: str, trainer: str, what: str, build: Callable[..., Any], steps: int, verdicts: Sequence[Any], **more: Any) -> Case:
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=tuple(verdicts), seeds=SEEDS, **more)


def _twin(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int, **more: Any) -> Case:
    return Case(f"{trainer}-{name}-twin", trainer, what, build, steps, seeds=TWIN_SEEDS, **more)


CASES: tuple[Case, ...] = (
    _twin("episodes-fail", "grpo", "One episode in twenty has no score.", episodes_fail, STEPS),
    _twin("two-kinds", "grpo", "A word before the question says which letters are asked for.", two_kinds, KIND_STEPS),
    _twin("given-points", "grpo", "Each question gives points of its own, from 0 to 2, beside those for the answer.", given_points, STEPS, goal="eval.score"),
    _twin("small-steps", "grpo", "Plain gradient descent, eight micro-batches to an update.", small_steps, SGD_STEPS),
    _twin("tempered", "async_grpo", "Sampled at a temperature of 0.6, of which the trainer knows.", cool, cases_async.STEPS),
    Case("rloo-kl-below-zero", "rloo", "Healthy: the logged KL is often below 0, as the estimator of the paper allows (huggingface/trl#5889).", kl_below_zero, KIND_STEPS, seeds=SEEDS, hard=True),
    Case("grpo-three-weights", "grpo", "Healthy: three rewards are logged unweighted and weighed where they are added (allenai/FineGrainedRLHF#10).", three_weights, STEPS, seeds=SEEDS, hard=True),
    Case(
        "async_grpo-ratio-of-prompts", "async_grpo", "Healthy: only the logged ratio is wrong, as its mean takes in the prompt's positions (facebookresearch/fairseq2#1489).", ratio_of_prompts,
        cases_async.STEPS, seeds=SEEDS, hard=True,
    ),
    _sick(
        "partial-groups", "grpo", "Failed episodes are taken out before groups are cut by a fixed stride (areal-project/AReaL#1419).", partial_groups, STEPS,
        ("drifting", "collapsed", "stalled", "diverged", *HEALTHY_STATES), twin="grpo-episodes-fail-twin",
    ),
    _sick(
        "micro-batches-not-divided", "grpo", "The loss is not divided by the number of micro-batches to an update (huggingface/trl#2647).", not_divided, SGD_STEPS,
        ("collapsed", "diverged", "drifting", "stalled"), twin="grpo-small-steps-twin", cure={"learning_rate": 0.3 / 8},
    ),
    _sick(
        "question-not-rendered", "grpo", "The prompt's template leaves out the word that says what is asked for (OpenHands/codescout#50).", partial(two_kinds, template="{question}"), KIND_STEPS,
        ("stalled", "steady", "improving"), twin="grpo-two-kinds-twin",
    ),
    _sick(
        "pads-trained", "grpo", "The trainer knows one end token, the model ends with another: padding is trained (huggingface/trl#7039).", pads_trained, STEPS,
        ("drifting", *HEALTHY_STATES), twin="grpo-twin",
    ),
    _sick(
        "groups-interleaved", "grpo", "Prompts are repeated as a whole list and grouped by neighbours (PrimeIntellect-ai/prime-rl#600).", groups_interleaved, STEPS,
        ("stalled", "drifting", *HEALTHY_STATES), twin="grpo-given-points-twin", goal="eval.score",
    ),
    _sick(
        "base-reloaded", "rloo", "The sampler reads the first checkpoint over the weights that it was sent (huggingface/trl#5312).", base_reloaded, cases_rloo.STEPS,
        ("stalled", "drifting", "collapsed"), twin="rloo-twin",
    ),
    _sick(
        "failures-zero", "rloo", f"From update {cases_rloo.BREAK + 1} on nine episodes in ten fail and are scored 0 (NVIDIA-NeMo/RL#2207, PrimeIntellect-ai/prime-rl#1448).", failures_zero, cases_rloo.STEPS,
        ("collapsed", "stalled", "drifting"), twin="rloo-twin", onset=cases_rloo.BREAK,
    ),
    _sick(
        "adapter-twice", "async_grpo", f"From a resume at update {cases_async.BREAK} on the sampler counts the adapter twice (modelscope/ms-swift#8275).", adapter_twice, cases_async.STEPS,
        ("drifting", "collapsed", "stalled", *HEALTHY_STATES), twin="async_grpo-twin", onset=cases_async.BREAK, goal="-sampler.kl",
    ),
    _sick(
        "logps-divided", "async_grpo", "The sampler's log-probabilities are divided by the temperature instead of its logits (PrimeIntellect-ai/prime-rl#697).", logps_divided, cases_async.STEPS,
        ("drifting", "collapsed", "stalled", "diverged", *HEALTHY_STATES), twin="async_grpo-tempered-twin", goal="-sampler.kl",
    ),
)  # fmt: skip
