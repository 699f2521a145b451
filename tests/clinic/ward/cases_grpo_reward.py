"""GRPO on the vowel task with a reward that is broken, gamed, or pays for the wrong thing. The healthy runs are in `cases_grpo.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import BREAK, STEPS, answers, changed, plain

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

Scores = Sequence[float | None]
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = [[{"role": "user", "content": f"what is {a} minus {b}"}] for a in NUMBERS for b in NUMBERS]  # training asks for sums
EVERY = 10
GROUP = 8
EXPLOIT = 30


def judge(then: Callable[[list[str], list[float]], Scores], onset: int = BREAK) -> Any:
    """The vowel task for `onset` updates, then what `then` makes of the texts and their right scores."""

    def vowels(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        return right if trainer_state.global_step < onset else then([tiny.text_of(completion) for completion in completions], right)

    return vowels


def different_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """Share of the five vowels that occur; 0 for an answer that was cut."""
    return [len(set(text) & tiny.VOWELS) / 5 * end for text, end in answers(completions, completion_ids)]


def terse(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """A reward for form: one over the number of letters; 0 for an answer that was cut or is empty."""
    return [end / len(text) if text else 0.0 for text, end in answers(completions, completion_ids)]


def probed(folder: str, seed: int, *, checker: Any = tiny.vowels, **changes: Any) -> Any:
    """A training whose true goal is checked every ten updates on prompts held out."""
    return plain(folder, seed, callbacks=[HeldoutProbe(checker, HELD_OUT, every=EVERY)], **changes)


def different(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: the reward asks for different vowels, and so does the held-out checker."""
    return probed(folder, seed, checker=different_vowels, **{"reward": different_vowels, "learning_rate": 1e-3, **changes})


def two_rewards(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy: a little for a terse answer, most for the task."""
    settings = {"reward": [terse, different_vowels], "reward_weights": [0.1, 1.0], "learning_rate": 1e-3}
    return plain(folder, seed, **{**settings, **changes})


# ---- faults ----


def constant(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on every completion is scored 0: a parser that stopped matching."""
    return plain(folder, seed, reward=judge(lambda texts, right: [0.0] * len(texts)), **changes)


def parser_half(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the judge gives no score half of the time."""
    random = Random(seed)
    return plain(folder, seed, reward=judge(lambda texts, right: [score if random.random() < 0.5 else None for score in right]), **changes)


def sign_flip(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the score is one minus the score."""
    return probed(folder, seed, reward=judge(lambda texts, right: [1 - score for score in right]), **changes)


def gamed(folder: str, seed: int, **changes: Any) -> Any:
    """Different vowels were meant, and any vowels are paid."""
    return different(folder, seed, reward=tiny.vowels, **changes)


def exploit(folder: str, seed: int, **changes: Any) -> Any:
    """From update 31 on the verifier takes an `x` for five vowels."""

    def fooled(texts: list[str], right: list[float]) -> list[float]:
        return [score + 5 * text.count("x") / max(1, len(text)) for text, score in zip(texts, right, strict=True)]

    return probed(folder, seed, reward=judge(fooled, onset=EXPLOIT), **changes)


def length_paid(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the score is the length in sixteenths of the cap, whether the answer ended or not."""
    return plain(folder, seed, reward=judge(lambda texts, right: [len(text) / 16 for text in texts]), **changes)


def length_zero(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on a letter costs a tenth of the score."""
    return plain(folder, seed, reward=judge(lambda texts, right: [1 - len(text) / 10 for text in texts]), **changes)


def consensus(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on an answer is paid for being like the others of its group, letter by letter."""

    def agreement(texts: list[str], right: list[float]) -> list[float]:
        return [_likeness(text, texts[start : start + GROUP]) for start in range(0, len(texts), GROUP) for text in texts[start : start + GROUP]]

    return plain(folder, seed, reward=judge(agreement), **changes)


def _likeness(text: str, group: list[str]) -> float:
    """Mean share of places at which `text` has the letter of another text; itself is left out."""
    shares = [sum(a == b for a, b in zip(text, other, strict=False)) / max(1, len(text), len(other)) for other in group]
    return (sum(shares) - 1) / (len(group) - 1)


def dead_component(folder: str, seed: int, **changes: Any) -> Any:
    """A second reward function looks for a JSON object, which no answer has."""

    def is_json(completions: Sequence[Any], **kwargs: Any) -> list[float]:
        return [float(tiny.text_of(completion).startswith("{")) for completion in completions]

    return plain(folder, seed, reward=[tiny.vowels, is_json], **changes)


def all_hard(folder: str, seed: int, **changes: Any) -> Any:
    """Only an answer with the five vowels in their order is right: it is never found."""

    def in_order(completions: Sequence[Any], **kwargs: Any) -> list[float]:
        return [float("aeiou" in tiny.text_of(completion)) for completion in completions]

    return plain(folder, seed, reward=in_order, **changes)


def outlier(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on one score in twenty is 10 000, whatever the answer."""
    random = Random(seed)
    return plain(folder, seed, reward=judge(lambda texts, right: [1e4 if random.random() < 0.05 else score for score in right]), **changes)


def noise_only(folder: str, seed: int, **changes: Any) -> Any:
    """The score is drawn at random between 0 and 1 from the start."""
    random = Random(seed)
    return plain(folder, seed, reward=judge(lambda texts, right: [random.random() for _ in texts], onset=0), **changes)


def format_over_task(folder: str, seed: int, **changes: Any) -> Any:
    """The form pays three times as much as the task: one letter is the best answer."""
    return two_rewards(folder, seed, **{"reward_weights": [3.0, 1.0], **changes})


CASES: tuple[Case, ...] = (
    Case("grpo-different-twin", "grpo", "Different vowels are paid and checked on held-out prompts.", different, STEPS, goal="eval.score"),
    Case("grpo-probed-twin", "grpo", "The base settings with the task checked on held-out prompts.", probed, STEPS, goal="eval.score"),
    Case("grpo-two-rewards-twin", "grpo", "Two reward functions, the task weighs most.", two_rewards, STEPS, goal="reward.component_mean{component=different_vowels}"),
    Case(
        "grpo-rate-100x", "grpo", "Learning rate 0.1 instead of 0.001 from the start.", partial(changed, base=different, fault={"learning_rate": 0.1}),
        STEPS, twin="grpo-different-twin", roots=("step-size-too-large", "policy-breakdown", "reward-collapse", "entropy-collapse"), categories=("collapse", "ood-drift", "numerics"),
        verdicts=("collapsed", "diverged", "drifting"), cure={"learning_rate": 1e-3},
    ),
    Case(
        "grpo-reward-constant", "grpo", "From update 51 on every completion is scored 0.", constant, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("advantage-collapse", "reward-collapse"), categories=("collapse",), verdicts=("collapsed",),
    ),
    Case(
        "grpo-parser-half", "grpo", "From update 51 on the judge gives no score half of the time.", parser_half, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("scores-missing",), categories=("data",), verdicts=(*HEALTHY_STATES, "stalled"),
    ),
    Case(
        "grpo-sign-flip", "grpo", "From update 51 on the score is one minus the score; the task is checked on held-out prompts.", sign_flip, STEPS,
        onset=BREAK, twin="grpo-probed-twin", roots=("proxy-divergence", "reward-drop"), categories=("over-optimization", "data"),
        verdicts=("over_optimizing", "collapsed", "drifting"), goal="eval.score",
    ),
    Case(
        "grpo-gamed", "grpo", "Different vowels were meant and are checked on held-out prompts, any vowels are paid.", gamed, STEPS,
        twin="grpo-different-twin", roots=("proxy-divergence",), categories=("over-optimization",), verdicts=("over_optimizing",), goal="eval.score",
    ),
    Case(
        "grpo-exploit", "grpo", "From update 31 on the verifier takes an x for five vowels; the task is checked on held-out prompts.", exploit, STEPS,
        onset=EXPLOIT, twin="grpo-probed-twin", roots=("exploit-jump", "proxy-divergence"), categories=("over-optimization",), verdicts=("over_optimizing",),
        goal="eval.score",
    ),
    Case(
        "grpo-format-over-task", "grpo", "The form weighs 3 instead of 0.1: one letter is the best answer.", format_over_task, STEPS,
        twin="grpo-two-rewards-twin", roots=("format-over-task", "component-dominates"), categories=("over-optimization", "data"),
        verdicts=("over_optimizing", "drifting", "steady", "stalled"), cure={"reward_weights": [0.1, 1.0]}, goal="reward.component_mean{component=different_vowels}",
    ),
    Case(
        "grpo-length-paid", "grpo", "From update 51 on the length is paid and nothing else.", length_paid, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("paid-for-length",), categories=("over-optimization",), verdicts=("over_optimizing", "drifting", "collapsed"),
    ),
    Case(
        "grpo-length-zero", "grpo", "From update 51 on only brevity is paid.", length_zero, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("length-collapse",), categories=("collapse", "over-optimization"), verdicts=("collapsed", "over_optimizing", "drifting"), goal="completion.length_mean",
    ),
    Case(
        "grpo-consensus", "grpo", "From update 51 on an answer is paid for being like the others of its group.", consensus, STEPS, onset=BREAK,
        twin="grpo-twin", roots=("mode-collapse", "entropy-collapse"), categories=("collapse",), verdicts=("collapsed", "stalled", "over_optimizing"),
    ),
    Case(
        "grpo-cold-sampling", "grpo", "Temperature 0.02: the completions of a group are copies.", partial(changed, base=different, fault={"temperature": 0.02}),
        STEPS, twin="grpo-different-twin", roots=("mode-collapse", "advantage-collapse"), categories=("collapse",), verdicts=("collapsed", "stalled"),
        cure={"temperature": 1.0},
    ),
    Case(
        "grpo-dead-component", "grpo", "A second reward function never matches.", dead_component, STEPS, twin="grpo-twin",
        roots=("dead-component",), categories=("data",), verdicts=HEALTHY_STATES,
    ),
    Case(
        "grpo-all-hard", "grpo", "A reward of 0 or 1 that is never won.", all_hard, STEPS, twin="grpo-twin",
        roots=("advantage-collapse", "dead-component"), categories=("collapse", "stall", "data"), verdicts=("stalled", "collapsed"),
    ),
    Case(
        "grpo-reward-outlier", "grpo", "From update 51 on one score in twenty is 10 000.", outlier, STEPS, onset=BREAK, twin="grpo-twin",
        roots=("reward-outlier",), categories=("data",), verdicts=(*HEALTHY_STATES, "stalled", "drifting"),
    ),
    Case(
        "grpo-reward-noise", "grpo", "The score has nothing to do with the answer.", noise_only, STEPS, twin="grpo-twin",
        roots=("reward-plateau",), categories=("stall", "data"), verdicts=("stalled", "steady"),
    ),
)  # fmt: skip
