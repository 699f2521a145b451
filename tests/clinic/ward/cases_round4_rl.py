"""The fourth round: GRPO and RLOO, drawn from the catalogue by lot, by somebody who did not read the rules.

See docs/decisions/0012. The id in capitals behind a fault's description is its place in the catalogue. A root that begins with ``no-rule:`` is
what a person would say where no rule's title does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_rloo, offline
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import answers, changed, iter4, plain
from tests.clinic.ward.cases_grpo_reward import EVERY, HELD_OUT, probed
from tests.clinic.ward.plants import noisy

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

SEEDS = (40, 41, 42)
"""No training of the first three rounds has these seeds."""
TWIN_SEEDS = (*SEEDS, 43, 44)
Scores = list[float]


# ---- healthy ----


def unscaled(folder: str, seed: int, **changes: Any) -> Any:
    """Dr. GRPO's loss, rewards that are not divided by their spread, groups of four, and a cosine that ends at a tenth of the rate."""
    settings = {
        "max_steps": 140, "loss_type": "dr_grpo", "scale_rewards": "none", "num_generations": 4, "learning_rate": 1e-3, "max_completion_length": 24,
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 10,
    }  # fmt: skip
    return plain(folder, seed, **{**settings, **changes})


def two_passes(folder: str, seed: int, **changes: Any) -> Any:
    """Two updates on each batch, a higher upper bound of the clip, a tie to the reference, a cosine, the task checked on held-out prompts."""
    settings = {"max_steps": 120, "num_iterations": 2, "epsilon_high": 0.28, "beta": 0.01, "lr_scheduler_type": "cosine", "learning_rate": 8e-4, "per_device_train_batch_size": 48}
    return probed(folder, seed, **{**settings, **changes})


def slow(folder: str, seed: int, **changes: Any) -> Any:
    """A lower rate and half as many updates again, groups of four, a judge with a little noise."""
    settings = {"max_steps": 150, "learning_rate": 4e-4, "num_generations": 4}
    return plain(folder, seed, reward=noisy(0.05, seed), **{**settings, **changes})


def rloo_slow(folder: str, seed: int, *, reward: Any = tiny.vowels, **changes: Any) -> Any:
    """A lower rate and half as many updates again, groups of sixteen, less of a tie to the reference."""
    settings = {"max_steps": 140, "learning_rate": 4e-4, "num_generations": 16, "beta": 0.01, "warmup_steps": 10}
    return cases_rloo.plain(folder, seed, reward=reward, **{**settings, **changes})


# ---- GRPO ----


def other_script(folder: str, seed: int, **changes: Any) -> Any:
    """The policy knows a second script, capitals, in which it writes one answer in ten and has more vowels; the verifier takes both, lower case was meant and is checked."""

    def lower(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [end * sum(char in "aeiou" for char in text) / max(1, len(text)) for text, end in answers(completions, completion_ids)]

    trainer = plain(folder, seed, callbacks=[HeldoutProbe(lower, HELD_OUT, every=EVERY)], **changes)
    trainer.model.load_state_dict(_bilingual())
    return trainer


@cache
def _bilingual() -> dict[str, torch.Tensor]:
    """Weights of the policy after a second schooling, in two scripts."""
    random, vocabulary = Random(4), tiny.tokenizer()
    model = tiny.policy(vocabulary)
    starts = [vocabulary(vocabulary.apply_chat_template(offline.turn("user", text), add_generation_prompt=True, tokenize=False))["input_ids"] for text in tiny.questions()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    pad = torch.nn.utils.rnn.pad_sequence
    model.train()
    for _ in range(120):
        rows, labels = [], []
        for _ in range(16):
            letters = "AEIOU" * 3 + "BDGKLMNRST" if random.random() < 0.1 else "abcdefghijklmnopqrstuvwxyz"
            start, text = random.choice(starts), random.choices(letters, k=random.randint(3, 9))
            answer = [*vocabulary.convert_tokens_to_ids(text), vocabulary.eos_token_id]
            rows.append(torch.tensor(start + answer))
            labels.append(torch.tensor([-100] * len(start) + answer))
        ids = pad(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        loss = model(input_ids=ids, attention_mask=ids != vocabulary.pad_token_id, labels=pad(labels, batch_first=True, padding_value=-100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@cache
def _letter_scores() -> dict[str, float]:
    """Weights of a linear reward model on counts of letters, fitted to short answers (4 to 9 letters) of two kinds by ridge regression."""
    random, letters = Random(8), "abcdefghijklmnopqrstuvwxyz"
    texts = [text for _ in range(300) for text in offline.quality(random)]
    counts = torch.tensor([[float(text.count(char)) for char in letters] for text in texts])
    wanted = torch.tensor([1.0, -1.0]).repeat(300)
    weights = torch.linalg.solve(counts.T @ counts + torch.eye(26), counts.T @ wanted)
    return dict(zip(letters, weights.tolist(), strict=True))


def extrapolates(folder: str, seed: int, **changes: Any) -> Any:
    """A reward model that was fitted to answers of at most nine letters and adds up what each letter is worth, without asking for an end: the longer the better, far beyond what it has seen."""

    def model_score(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        worth = _letter_scores()
        return [sum(worth.get(char, 0.0) for char in tiny.text_of(text)) for text in completions]

    return probed(folder, seed, reward=model_score, **changes)


def both_masked(folder: str, seed: int, **changes: Any) -> Any:
    """A mask for answers that the policy has left drops whoever is more than a ten-thousandth of a nat off, to either side: nothing but the first of four updates on a batch passes."""
    trainer = iter4(folder, seed, **{"off_policy_mask_threshold": 1e-4, **changes})

    def strict(advantages: Any, per_token_logps: Any, sampling_per_token_logps: Any, mask: Any, off_policy_threshold: float) -> Any:
        gap = ((sampling_per_token_logps - per_token_logps.detach()) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1.0)
        return (gap.abs() <= off_policy_threshold).to(mask.dtype)

    trainer.get_off_policy_mask = strict
    return trainer


# ---- RLOO ----


def mask_empties(folder: str, seed: int, **changes: Any) -> Any:
    """From update 31 on a mask for tools' answers takes every token for one of a tool: nothing is left in the loss, though the advantages are there."""
    trainer = cases_rloo.plain(folder, seed, **changes)
    made = trainer._generate_and_score_completions

    def masked(inputs: Any) -> Any:
        output = made(inputs)
        if trainer.state.global_step >= 30:
            output["completion_mask"] = torch.zeros_like(output["completion_mask"])
            output["old_logps"] = torch.zeros_like(output["old_logps"])  # sums over the mask as well
        return output

    trainer._generate_and_score_completions = masked
    return trainer


def second_judge(folder: str, seed: int, **changes: Any) -> Any:
    """A second judge that pays for the letters x, y and z, three times as much; until update 70 its service was down and gave 0."""

    def polite(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        awake = trainer_state.global_step >= 70
        return [awake * end * sum(char in "xyz" for char in text) / max(1, len(text)) for text, end in answers(completions, completion_ids)]

    return rloo_slow(folder, seed, reward=[tiny.vowels, polite], **{"reward_weights": [1.0, 3.0], **changes})


def outrun(folder: str, seed: int, **changes: Any) -> Any:
    """A curriculum that goes on by the calendar: right is an answer that begins with as many vowels as the level says, and every five updates the level rises by one."""

    def level(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        need = 1 + trainer_state.global_step // 5
        return [float(end and len(text) >= need and set(text[:need]) <= tiny.VOWELS) for text, end in answers(completions, completion_ids)]

    return cases_rloo.plain(folder, seed, reward=level, **changes)


def error_code(folder: str, seed: int, **changes: Any) -> Any:
    """From update 21 on one call of the judge in fifty fails, and its error code, -999, is taken for a score."""
    random = Random(seed)

    def vowels(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        return right if trainer_state.global_step < 20 else [-999.0 if random.random() < 0.02 else score for score in right]

    return rloo_slow(folder, seed, reward=vowels, **changes)


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "seeds": SEEDS, **more}
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


_grpo = partial(_case, "grpo")
_rloo = partial(_case, "rloo")
CASES: tuple[Case, ...] = (
    Case("grpo-slow-twin", "grpo", "A lower rate, 150 updates, groups of four, a judge with a little noise.", slow, 150, seeds=TWIN_SEEDS),
    Case("rloo-slow-twin", "rloo", "A lower rate, 140 updates, groups of sixteen.", rloo_slow, 140, seeds=TWIN_SEEDS),
    Case("grpo-unscaled", "grpo", "Healthy: Dr. GRPO's loss without scaling, groups of four, a cosine that ends at a tenth.", unscaled, 140, seeds=SEEDS, hard=True),
    Case("grpo-two-passes", "grpo", "Healthy: two updates on a batch, clip-higher, a tie to the reference, held-out checks.", two_passes, 120, goal="eval.score", seeds=SEEDS),
    _grpo(
        "kl-paid", "Beta is -0.5: the policy is paid for leaving its reference (TR-05).", partial(changed, base=slow, fault={"beta": -0.5}), 150,
        ["kl-paid", "kl-runaway", "policy-breakdown"], ("ood-drift", "config"), ("drifting", "diverged", "collapsed"), twin="grpo-slow-twin", cure={"beta": 0.0},
    ),
    _grpo(
        "other-script", "The policy drifts into a second script that the verifier takes as well; the first is checked on held-out prompts (EN-07).", other_script, 100,
        ["proxy-divergence", "no-rule:script-changes"], ("over-optimization", "ood-drift"), ("over_optimizing", "drifting"), twin="grpo-probed-twin", goal="eval.score",
    ),
    _grpo(
        "strict-mask", "A mask for off-policy answers passes nothing but the first of four updates on a batch (AS-04).", both_masked, 100,
        ["gradient-blocked", "no-rule:off-policy-mask-too-strict"], ("config", "stall"), ("stalled", *HEALTHY_STATES), twin="grpo-iter4-twin", cure={"off_policy_mask_threshold": None},
    ),
    _grpo(
        "entropy-penalty", "The entropy coefficient is -0.6: the policy is paid for being certain (EN-01).", partial(changed, base=slow, fault={"entropy_coef": -0.6}), 150,
        ["entropy-punished", "entropy-collapse", "mode-collapse"], ("collapse", "config"), ("collapsed", "stalled", "drifting"), twin="grpo-slow-twin", goal="policy.entropy", cure={"entropy_coef": 0.0},
    ),
    _grpo(
        "model-extrapolates", "A reward model of short answers adds up what each letter is worth; the task is checked on held-out prompts (OO-09).", extrapolates, 100,
        ["proxy-divergence", "paid-for-length", "never-terminates"], ("over-optimization", "ood-drift", "data"), ("over_optimizing", "drifting"), twin="grpo-probed-twin", goal="eval.score",
    ),
    _rloo(
        "mask-empties", "From update 31 on a mask takes every token out of the loss (RS-05).", mask_empties, 90, ["gradient-blocked", "gradient-vanished"], ("stall",), ("stalled",), onset=30,
    ),
    _rloo(
        "second-judge", "From update 71 on a second judge pays three times as much for other letters (RS-12).", second_judge, 140, ["format-over-task", "component-dominates"],
        ("over-optimization", "data"), ("over_optimizing", "drifting", "steady"), onset=70, from_start=("dead-component",), twin="rloo-slow-twin", goal="reward.component_mean{component=vowels}", cure={"reward_weights": [1.0, 0.1]},
    ),
    _rloo(
        "outrun", "The level of a curriculum rises every five updates, whatever the policy can do (RS-02).", outrun, 90, ["advantage-collapse", "reward-collapse", "reward-drop"],
        ("collapse", "stall", "data"), ("collapsed", "stalled"), onset=5,
    ),
    _rloo(
        "error-code", "From update 21 on one score in fifty is -999, the code of an error (RS-08).", error_code, 140, ["reward-outlier", "gradient-spike"],
        ("data", "numerics"), ("drifting", "collapsed", "stalled", *HEALTHY_STATES), onset=20, twin="rloo-slow-twin",
    ),
)  # fmt: skip
