"""The fifth round: GRPO, RLOO and AsyncGRPO, each fault as somebody reported it in public, by an author who did not read the rules.

See docs/decisions/0013, which names the thread behind every case. A root that begins with ``no-rule:`` is what a person would say where no
rule's title does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import STEPS, answers, changed, long_answer, plain
from tests.clinic.ward.cases_grpo_reward import EVERY, HELD_OUT, probed, terse, two_rewards
from tests.suite.build_async import CAP, Sampler

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

SEEDS = (50, 51, 52)
"""No training of the first four rounds has these seeds."""
TWIN_SEEDS = (*SEEDS, 53, 54)
TARGET = 5
Scores = list[float]


# ---- healthy ----


def near(completions: Sequence[Any], **kwargs: Any) -> Scores:
    """What is missing or too much to a length of five characters, with a minus: the reward of TRL's first GRPO example as it was meant."""
    return [-float(abs(TARGET - len(tiny.text_of(text)))) for text in completions]


def near_length(folder: str, seed: int, *, reward: Any = near, **changes: Any) -> Any:
    """Answers of five characters are paid, and checked on held-out prompts."""
    return plain(folder, seed, reward=reward, callbacks=[HeldoutProbe(near, HELD_OUT, every=EVERY)], **changes)


def cool(folder: str, seed: int, *, raw: bool = False, **changes: Any) -> Any:
    """The sampler draws at a temperature of 0.6, for which the trainer knows it, and reports what it drew from; `raw`: what the logits were before."""
    settings = {"temperature": 0.6, "learning_rate": 1e-3, **changes}
    trainer = cases_async.plain(folder, seed, **settings)
    sampler = trainer.rollout_worker
    sampler._write = partial(_write_at, sampler, float(settings["temperature"]), raw)
    return trainer


@torch.no_grad()
def _write_at(sampler: Sampler, temperature: float, raw: bool, starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """As `Sampler._write`, at a temperature; the log-probabilities are those of the temperature, or those of the logits as they are (`raw`)."""
    pad, end, width = sampler.vocabulary.pad_token_id, sampler.vocabulary.eos_token_id, max(map(len, starts))
    ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
    rows: list[list[int]] = [[] for _ in starts]
    values: list[list[float]] = [[] for _ in starts]
    for _ in range(CAP):
        mask = (ids != pad).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = sampler.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1].float()
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=sampler._random)
        reported = (logits if raw else logits / temperature).log_softmax(-1).gather(-1, drawn)[:, 0]
        for row, value, token, logp in zip(rows, values, drawn[:, 0].tolist(), reported.tolist(), strict=True):
            if not row or row[-1] != end:
                row.append(token)
                value.append(logp)
        ids = torch.cat([ids, drawn.clamp(min=1)], 1)
        if all(row[-1] == end for row in rows):
            break
    return rows, values


def loss_zero(folder: str, seed: int, **changes: Any) -> Any:
    """One update on a batch, no tie to the reference, the loss as a mean by answer: what is logged as loss is 0 in every update."""
    settings = {"loss_type": "grpo", "scale_rewards": "group", "learning_rate": 8e-4, "max_steps": 110, "num_generations": 16}
    return plain(folder, seed, **{**settings, **changes})


def loss_rises(folder: str, seed: int, **changes: Any) -> Any:
    """With a tie to the reference the logged loss is hardly more than its penalty: it rises from 0 for as long as the policy moves, and goes on when the reward is near its top."""
    return plain(folder, seed, **{"beta": 0.02, "learning_rate": 7e-4, "loss_type": "grpo", "max_steps": 130, **changes})


def tied_groups(folder: str, seed: int, **changes: Any) -> Any:
    """RLOO on a task that is soon solved: groups have no spread, and what is left of the gradient is that of the tie to the reference, as the objective has it."""

    def any_vowel(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [float(score > 0) for score in tiny.vowels(completions, completion_ids)]

    return cases_rloo.plain(folder, seed, reward=any_vowel, **{"beta": 0.05, "learning_rate": 8e-4, "max_steps": 110, **changes})


# ---- the reward ----


def distance(completions: Sequence[Any], **kwargs: Any) -> Scores:
    """The reward of the example as it was printed: the distance to the wanted length, without a minus."""
    return [float(abs(TARGET - len(tiny.text_of(text)))) for text in completions]


def noise_scaled(folder: str, seed: int, **changes: Any) -> Any:
    """A rubric read by a model: all answers get about a half, a twentieth of it goes by the answer, and the same answer gets another score each time; groups are divided by their spread."""
    random = Random(seed)

    def rubric(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [0.5 + 0.05 * score + random.gauss(0, 0.05) for score in tiny.vowels(completions, completion_ids)]

    return probed(folder, seed, reward=rubric, **changes)


def neutral_score(folder: str, seed: int, **changes: Any) -> Any:
    """The right answers cannot be parsed, and the reward function gives a neutral half for every answer in that case: what is left is the reward for form."""

    def different_vowels(completions: Sequence[Any], **kwargs: Any) -> Scores:
        return [0.5] * len(completions)

    return two_rewards(folder, seed, reward=[terse, different_vowels], **changes)


def length_bonus(folder: str, seed: int, **changes: Any) -> Any:
    """Beside the task a second reward function pays quietly for each character, as much for a full page as the task is worth."""

    def fullness(completions: Sequence[Any], **kwargs: Any) -> Scores:
        return [min(len(tiny.text_of(text)), 14) / 14 for text in completions]

    return plain(folder, seed, reward=[tiny.vowels, fullness], **changes)


def cap_reasoning(folder: str, seed: int, **changes: Any) -> Any:
    """The default cap is below what an answer needs: three tokens, where the verifier wants four letters and the end. Nearly all answers are cut, and none is right."""

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        return [score * (len(text) >= 4) for (text, _), score in zip(answers(completions, completion_ids), right, strict=True)]

    return plain(folder, seed, reward=vowels, **{"max_completion_length": 3, **changes})


# ---- the trainer ----


def _generated(trainer: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """The same trainer, whose scored batches are changed before they are trained on."""
    right = trainer._generate_and_score_completions

    def changed_batch(inputs: Any) -> Any:
        batch = right(inputs)
        if trainer.model.training:
            change(batch)
        return batch

    trainer._generate_and_score_completions = changed_batch
    return trainer


def groups_of_one(folder: str, seed: int, **changes: Any) -> Any:
    """Samples of one prompt are not given one id, so that each is a group of its own: its advantage is its reward, without a baseline."""
    trainer = plain(folder, seed, **changes)
    score, kept = trainer._calculate_rewards, {}

    def noted(*parts: Any, **more: Any) -> Any:
        kept["rewards"] = score(*parts, **more)
        return kept["rewards"]

    def alone(batch: dict[str, Any]) -> None:
        batch["advantages"] = kept["rewards"].nansum(1).to(batch["advantages"].dtype)

    trainer._calculate_rewards = noted
    return _generated(trainer, alone)


# ---- the policy ----


def _school(questions: Sequence[str], answer: Callable[[Random, int], list[int]], *, steps: int) -> dict[str, torch.Tensor]:
    """Weights of the policy after a second schooling, in which each question is answered by what `answer` gives for its place."""
    random, vocabulary = Random(5), tiny.tokenizer()
    model = tiny.policy(vocabulary)
    chats = [vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) for text in questions]
    starts = [vocabulary(chat)["input_ids"] for chat in chats]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    pad = torch.nn.utils.rnn.pad_sequence
    model.train()
    for _ in range(steps):
        rows, labels = [], []
        for _ in range(16):
            place = random.randrange(len(starts))
            reply = [*answer(random, place), vocabulary.eos_token_id]
            rows.append(torch.tensor(starts[place] + reply))
            labels.append(torch.tensor([-100] * len(starts[place]) + reply))
        ids = pad(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        model(input_ids=ids, attention_mask=ids != vocabulary.pad_token_id, labels=pad(labels, batch_first=True, padding_value=-100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@cache
def _by_heart() -> dict[str, torch.Tensor]:
    """One answer for each question, learned by heart."""
    letters, questions = tiny.tokenizer().convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz")), sorted(set(tiny.questions()))
    fixed = [Random(text).choices(letters, k=Random(text + "!").randint(3, 7)) for text in questions]
    weights = _school(questions, lambda random, place: fixed[place], steps=260)
    return {**weights, "model.norm.weight": 2 * weights["model.norm.weight"]}  # as certain as many more updates would make it


def sharp_start(folder: str, seed: int, **changes: Any) -> Any:
    """The policy comes from a fine-tuning that taught it one answer for each question by heart: the samples of a group are the same, whatever the questions are worth."""
    trainer = plain(folder, seed, **changes)
    trainer.model.load_state_dict(_by_heart())
    return trainer


def _grpo(fault: str, what: str, build: Callable[..., Any], roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": "grpo-twin", "seeds": SEEDS, **more}
    return Case(f"grpo-{fault}", "grpo", what, build, STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **settings)


CASES: tuple[Case, ...] = (
    Case("grpo-near-twin", "grpo", "Answers of five characters are paid, and checked on held-out prompts.", near_length, STEPS, goal="eval.score", seeds=TWIN_SEEDS),
    Case("async_grpo-cool-twin", "async_grpo", "Sampled at a temperature of 0.6, of which the trainer knows.", cool, cases_async.STEPS, seeds=TWIN_SEEDS),
    Case("grpo-loss-zero", "grpo", "Healthy: what is logged as loss is 0 in every update (huggingface/trl#3452).", loss_zero, 110, seeds=SEEDS, hard=True),
    Case("grpo-loss-rises", "grpo", "Healthy: the loss rises with the KL while the reward is near its top (aburkov/theLMbook#6).", loss_rises, 130, seeds=SEEDS, hard=True),
    Case("rloo-tied-groups", "rloo", "Healthy: hardly a group has spread, and the tie to the reference still gives a gradient (huggingface/trl#5588).", tied_groups, 110, seeds=SEEDS, hard=True),
    _grpo(
        "distance-paid", "The distance to the wanted length is paid without a minus (huggingface/trl#2771).", partial(near_length, reward=distance),
        ["proxy-divergence", "paid-for-length", "no-rule:reward-has-the-wrong-sign"], ("over-optimization", "data"), ("over_optimizing", "drifting", "collapsed"), twin="grpo-near-twin", goal="eval.score",
    ),
    _grpo(
        "groups-of-one", "Every sample is a group of its own: its advantage is its reward (PeterGriffinJin/Search-R1#88).", groups_of_one,
        ["advantages-off-centre", "no-rule:groups-of-one"], ("data", "numerics"), ("drifting", "collapsed", "stalled", *HEALTHY_STATES),
    ),
    _grpo(
        "cap-reasoning", "A cap of three tokens, where the verifier wants four letters and an end (huggingface/trl#5759).", cap_reasoning,
        ["truncated-completions", "length-near-cap", "dead-component"], ("data", "config", "stall", "collapse"), ("stalled", "collapsed"), cure={"max_completion_length": 16},
    ),
    _grpo(
        "rate-50x", "A learning rate fifty times that which is advised (datawhalechina/hello-agents#771).", partial(changed, base=long_answer, fault={"learning_rate": 5e-2}),
        ["step-size-too-large", "policy-breakdown", "reward-collapse"], ("collapse", "numerics", "config"), ("collapsed", "diverged", "drifting"), twin="grpo-long-answer", cure={"learning_rate": 1e-3},
    ),
    _grpo(
        "sharp-start", "The policy knows one answer for each question by heart, so that a group holds copies (huggingface/trl#3857).", sharp_start,
        ["mode-collapse", "advantage-collapse"], ("collapse", "stall"), ("collapsed", "stalled"),
    ),
    _grpo(
        "noise-scaled", "A rubric whose scores differ more by chance than by the answers, divided by their spread (google/tunix#953).", noise_scaled,
        ["scores-not-repeatable", "no-rule:judge-is-mostly-noise"], ("data", "stall"), ("stalled", "steady", "improving"), twin="grpo-probed-twin", goal="eval.score",
    ),
    _grpo(
        "neutral-score", "The right answers cannot be parsed, and every answer gets a neutral half (FareedKhan-dev/train-deepseek-r1#4).", neutral_score,
        ["dead-component", "component-dominates"], ("data", "over-optimization"), ("over_optimizing", "drifting", "stalled", *HEALTHY_STATES), twin="grpo-two-rewards-twin",
        goal="reward.component_mean{component=different_vowels}",
    ),
    _grpo(
        "format-wins", "Form and task weigh the same, and the form is easier: it goes to its top and the task falls (huggingface/open-r1#255).", partial(changed, base=two_rewards, fault={"reward_weights": [1.0, 1.0]}),
        ["format-over-task"], ("over-optimization", "data"), ("over_optimizing", "drifting", "collapsed", "steady", "stalled"), twin="grpo-two-rewards-twin", cure={"reward_weights": [0.1, 1.0]},
        goal="reward.component_mean{component=different_vowels}",
    ),
    _grpo(
        "length-bonus", "A second reward function pays for each character (didierlopes.com).", length_bonus, ["paid-for-length", "length-near-cap"], ("over-optimization", "data"),
        ("over_optimizing", "drifting"), goal="-completion.length_mean", cure={"reward_weights": [1.0, 0.0]},
    ),
    Case(
        "async_grpo-raw-logps", "async_grpo", "Sampled at 0.6, the log-probabilities that are reported are those before the temperature (huggingface/trl#4159).", partial(cool, raw=True), cases_async.STEPS,
        roots=("sampler-mismatch", "ratio-not-one"), categories=("ood-drift", "numerics", "config"), verdicts=("drifting", "collapsed", "stalled", "diverged"), twin="async_grpo-cool-twin",
        cure={"temperature": 1.0}, goal="-sampler.kl", seeds=SEEDS,
    ),
)  # fmt: skip
