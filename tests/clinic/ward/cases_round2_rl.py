"""The second round: GRPO, RLOO, PPO and AsyncGRPO with faults that were written after the rules, by somebody who did not read them.

See docs/decisions/0009. Every fault is one that people have had; a root that begins with ``no-rule:`` is what a person would say where no
rule's title does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_ppo, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import At, answers, changed, plain
from tests.clinic.ward.cases_grpo_reward import judge, probed
from tests.suite.build_async import Sampler
from tests.suite.build_distillation import speaker
from tests.suite.build_sampling import vowel_share

from trainvitals.integrations import tiny

STEPS = 100
BREAK = 50
EARLY = 25
GROUP = 8
HEALTHY_SEEDS = (0, 1, 2)
Scores = list[float]


# ---- healthy ----


def curriculum(folder: str, seed: int, **changes: Any) -> Any:
    """The second half of the prompts, read in order, is another part of the plan: longer questions of other words."""
    from datasets import Dataset

    random = Random(seed)
    later = [f"please write the name of item {random.randint(100, 999)} of the list {random.randint(10, 99)}" for _ in range(4 * (STEPS - BREAK))]
    texts = [tiny.questions()[place % 64] for place in range(4 * BREAK)] + later
    trainer = plain(folder, seed, **{"shuffle_dataset": False, **changes})
    trainer.train_dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])
    return trainer


def jackpot(folder: str, seed: int, **changes: Any) -> Any:
    """Three points more for an answer of vowels only with at least four different ones: rare at first."""

    def vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = tiny.vowels(completions, completion_ids)
        found = zip(answers(completions, completion_ids), right, strict=True)
        return [score + 3.0 * (score == 1.0 and len(set(text)) >= 4) for (text, _), score in found]

    return plain(folder, seed, reward=vowels, **changes)


def noisy_judge(folder: str, seed: int, **changes: Any) -> Any:
    """Right or wrong only, and three verdicts in ten are wrong themselves."""
    random = Random(seed)

    def half_vowels(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        right = [score >= 0.5 for score in tiny.vowels(completions, completion_ids)]
        return [float(verdict != (random.random() < 0.3)) for verdict in right]

    return plain(folder, seed, reward=half_vowels, **{"num_generations": 16, **changes})


def nearly_solved(folder: str, seed: int, **changes: Any) -> Any:
    """The policy was taught the task before: the reward starts near 0.7 and the rest is soon won."""
    trainer = plain(folder, seed, **changes)
    trainer.model.load_state_dict(speaker("vowels").state_dict())
    return trainer


def nan_metric(folder: str, seed: int, **changes: Any) -> Any:
    """One logged mean, that of the answers which ended, is NaN every third update, as the mean of an empty list is; nothing else is."""

    def empty_mean(**parts: Any) -> None:
        if trainer.state.global_step % 3 == 0:
            trainer._metrics["train"]["completions/mean_terminated_length"].append(float("nan"))

    trainer = plain(folder, seed, **changes)
    trainer.add_callback(Every(empty_mean))
    return trainer


def hot(folder: str, seed: int, **changes: Any) -> Any:
    """Sampled at temperature 1.3 on purpose, for variety."""
    return cases_rloo.plain(folder, seed, **{"temperature": 1.3, "learning_rate": 1e-3, **changes})


class Every(At):
    """Does something before every update from `onset` + 1 on."""

    def __init__(self, act: Callable[..., None], onset: int = 0) -> None:
        super().__init__(act, onset)

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Act, from then on."""
        if state.global_step >= self.onset:
            self.act(**parts)


# ---- faults of the reward ----


def permuted(folder: str, seed: int, **changes: Any) -> Any:
    """From update 26 on the scores come back in another order than the answers were sent: a thread pool without order."""
    random = Random(seed)
    return plain(folder, seed, reward=judge(lambda texts, right: random.sample(right, len(right)), onset=EARLY), **changes)


def one_late(folder: str, seed: int, **changes: Any) -> Any:
    """From `EARLY` on every batch is given the scores of the batch before: a queue that is read one too late."""
    kept: list[Scores] = [[]]

    def late(completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        right = list(tiny.vowels(completions, completion_ids))
        before, kept[0] = kept[0], right
        return right if trainer_state.global_step < EARLY else before

    late.__name__ = "vowels"
    return cases_rloo.plain(folder, seed, reward=late, **changes)


def cached(folder: str, seed: int, **changes: Any) -> Any:
    """From update 26 on scores come from a cache whose key is the prompt, not the answer."""
    cache: dict[str, float] = {}

    def vowels(prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> Scores:
        right = list(tiny.vowels(completions, completion_ids))
        keys = [prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in prompts]
        if trainer_state.global_step < EARLY:
            return right
        return [cache.setdefault(key, score) for key, score in zip(keys, right, strict=True)]

    return plain(folder, seed, reward=vowels, **changes)


def contradict(folder: str, seed: int, **changes: Any) -> Any:
    """Two judges of which one wants what the other does not: their sum says nothing."""

    def consonants(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [end - score for (_, end), score in zip(answers(completions, completion_ids), tiny.vowels(completions, completion_ids), strict=True)]

    return plain(folder, seed, reward=[tiny.vowels, consonants], **changes)


def saturated(folder: str, seed: int, **changes: Any) -> Any:
    """The reward model's last layer saturates: every answer of a fifth of vowels or more gets the highest score."""
    return cases_ppo.plain(folder, seed, score_of=lambda *parts: vowel_share(*parts).clamp(max=0.2), **changes)


# ---- faults of the optimizer ----


def decayed(folder: str, seed: int, **changes: Any) -> Any:
    """Weight decay 100 instead of 0."""
    return plain(folder, seed, **{"weight_decay": 100.0, **changes})


def layer_reset(folder: str, seed: int, **changes: Any) -> Any:
    """Before update 51 the last layer's weights are drawn anew, as a loader does that misses its keys."""

    def draw(model: Any, **parts: Any) -> None:
        with torch.no_grad():
            for name, weight in model.model.layers[-1].named_parameters():
                if "norm" not in name:
                    weight.normal_(0.0, 1.0 if weight.dim() > 1 else 0.0, generator=torch.Generator().manual_seed(seed))

    return plain(folder, seed, callbacks=[At(draw)], **changes)


def back_to_start(folder: str, seed: int, **changes: Any) -> Any:
    """Before update 51 the weights are those of the start: a resume that took the first checkpoint."""
    start = tiny.policy(tiny.tokenizer()).state_dict()
    return plain(folder, seed, callbacks=[At(lambda model, **parts: model.load_state_dict(start))], **changes)


# ---- faults of the sampler ----


def greedy_later(folder: str, seed: int, **changes: Any) -> Any:
    """From update 46 on the sampler takes the likeliest token: a server that restarted with its own defaults."""

    def greedy(**parts: Any) -> None:
        trainer.generation_config.top_k = 1

    trainer = cases_rloo.plain(folder, seed, callbacks=[At(greedy, cases_rloo.BREAK)], **changes)
    return trainer  # bound before `greedy` runs


def banned(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the sampler may not write a vowel: a list of banned words that was split into letters."""

    def ban(**parts: Any) -> None:
        trainer.generation_config.suppress_tokens = tiny.tokenizer().convert_tokens_to_ids(list("aeiou"))

    trainer = plain(folder, seed, callbacks=[At(ban)], **changes)
    return trainer


def hot_later(folder: str, seed: int, **changes: Any) -> Any:
    """From update 51 on the sampler's temperature is 4, the trainer still reckons with 1."""

    def heat(**parts: Any) -> None:
        trainer.generation_config.temperature = 4.0

    trainer = plain(folder, seed, callbacks=[At(heat)], **changes)
    return trainer


def _sampler_from(change: Callable[[Sampler], None]) -> dict[str, Any]:
    return {"at_version": lambda sampler, version: change(sampler) if version == cases_async.BREAK else None}


def async_logps(folder: str, seed: int, **changes: Any) -> Any:
    """From update 46 on the sampler reports the probabilities of the token before: an answer's list is off by one."""

    def shift(sampler: Sampler) -> None:
        write = sampler._write

        def shifted(starts: Any) -> Any:
            rows, logps = write(starts)
            return rows, [[*one[-1:], *one[:-1]] for one in logps]

        sampler._write = shifted  # type: ignore[method-assign]

    return cases_async.plain(folder, seed, sampler=_sampler_from(shift), **changes)


# ---- PPO ----


def no_discounting(folder: str, seed: int, **changes: Any) -> Any:
    """Gamma 0: the score of the answer reaches its last token only."""
    return cases_ppo.plain(folder, seed, **{"gamma": 0.0, **changes})


def model_swapped(folder: str, seed: int, **changes: Any) -> Any:
    """Before update 33 the reward model is another one, whose scores are 20 lower: critic and whitening must start again."""
    shifted = cases_ppo.score_from(cases_ppo.BREAK, lambda *parts: vowel_share(*parts) - 20.0)
    return cases_ppo.plain(folder, seed, score_of=shifted, **changes)


def _grpo(fault: str, what: str, build: Any, roots: Sequence[str], categories: Any, verdicts: Any, **more: Any) -> Case:
    return Case(f"grpo-{fault}", "grpo", what, build, STEPS, roots=tuple(roots), categories=categories, verdicts=verdicts, **{"twin": "grpo-twin", **more})


CASES: tuple[Case, ...] = (
    Case("grpo-curriculum", "grpo", "Healthy: the prompts of the second half are of another kind, as planned.", curriculum, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-jackpot", "grpo", "Healthy: a rare answer is worth four times as much.", jackpot, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-pairs", "grpo", "Healthy: groups of two.", partial(changed, fault={"num_generations": 2}), STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-noisy-judge", "grpo", "Healthy: right or wrong only, and three verdicts in ten are wrong.", noisy_judge, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-nearly-solved", "grpo", "Healthy: the policy knows most of the task from the start.", nearly_solved, STEPS, seeds=HEALTHY_SEEDS, hard=True),
    Case("grpo-nan-metric", "grpo", "Healthy: the logged mean length of ended answers is NaN every third update, nothing else is.", nan_metric, STEPS, seeds=(10, 11, 12), hard=True),
    Case(
        "grpo-rare-logs", "grpo", "Healthy: logged and evaluated every ten updates.", partial(changed, base=probed, fault={"logging_steps": 10}), STEPS,
        seeds=(13, 14, 15), hard=True,
    ),
    Case("rloo-hot", "rloo", "Healthy: sampled at temperature 1.3 on purpose.", hot, cases_rloo.STEPS, seeds=HEALTHY_SEEDS, hard=True),
    _grpo(
        "scores-permuted", f"From update {EARLY + 1} on the scores come back in another order than the answers.", permuted,
        ["reward-plateau", "scores-ignore-answers"], ("stall", "data"), ("stalled", "drifting", "collapsed"), onset=EARLY,
    ),
    _grpo(
        "scores-cached", f"From update {EARLY + 1} on scores come from a cache by prompt: one score for a whole group.", cached,
        ["advantage-collapse", "no-rule:scores-from-a-cache"], ("collapse", "stall", "data"), ("stalled", "collapsed"), onset=EARLY,
    ),
    _grpo(
        "judges-contradict", "A second reward function wants the opposite of the first: their sum is constant.", contradict,
        ["advantage-collapse", "reward-plateau", "no-rule:rewards-contradict"], ("collapse", "stall", "data"), ("stalled", "collapsed"),
        goal="reward.component_mean{component=vowels}",
    ),
    _grpo(
        "weight-decay", "Weight decay 100 instead of 0: a twentieth of every weight goes at each update.", decayed,
        ["policy-breakdown", "entropy-explosion", "weight-decay-too-large"], ("collapse", "config", "numerics"), ("collapsed", "drifting", "diverged"),
        cure={"weight_decay": 0.0},
    ),
    _grpo(
        "clip-tiny", "Gradients are clipped to a norm of 1e-8 instead of 1: what is left is below Adam's epsilon.", partial(changed, fault={"max_grad_norm": 1e-8}),
        ["gradient-always-clipped", "reward-plateau", "updates-too-small"], ("numerics", "stall", "config"), ("stalled",), cure={"max_grad_norm": 1.0},
    ),
    _grpo(
        "epsilon-one", "Adam's epsilon is 1 instead of 1e-8: hardly anything moves.", partial(changed, fault={"adam_epsilon": 1.0}),
        ["reward-plateau", "updates-too-small"], ("stall", "config"), ("stalled",), cure={"adam_epsilon": 1e-8},
    ),
    _grpo(
        "warmup-endless", "A warm-up of 20 000 updates in a run of 100.", partial(changed, fault={"warmup_steps": 20_000}),
        ["schedule-mismatch", "reward-plateau", "warmup-never-ends"], ("stall", "config"), ("stalled",), cure={"warmup_steps": 5},
    ),
    _grpo(
        "layer-reset", f"Before update {BREAK + 1} the last layer's weights are drawn anew.", layer_reset,
        ["policy-breakdown", "reward-collapse", "reward-drop", "no-rule:weights-changed-by-hand"], ("collapse",), ("collapsed", "drifting", "diverged"), onset=BREAK,
    ),
    _grpo(
        "back-to-start", f"Before update {BREAK + 1} the weights are those of the start.", back_to_start, ["policy-set-back", "reward-drop", "reward-collapse", "weights-changed-outside"],
        ("collapse",), ("collapsed", "drifting", *HEALTHY_STATES), onset=BREAK,
    ),
    _grpo(
        "letters-banned", f"From update {BREAK + 1} on the sampler may not write a vowel.", banned,
        ["reward-drop", "reward-collapse", "sampler-mismatch", "completion-drift", "samples-from-another-policy"], ("collapse", "ood-drift"), ("collapsed", "drifting"), onset=BREAK,
    ),
    _grpo(
        "sampler-hot", f"From update {BREAK + 1} on the sampler's temperature is 4, the trainer reckons with 1.", hot_later,
        ["sampler-mismatch", "completion-drift", "reward-drop", "reward-collapse", "entropy-explosion", "samples-from-another-policy"], ("collapse", "ood-drift"), ("collapsed", "drifting"), onset=BREAK,
    ),
    Case(
        "rloo-scores-late", "rloo", f"From update {EARLY + 1} on every batch gets the scores of the batch before.", one_late, cases_rloo.STEPS, onset=EARLY, twin="rloo-twin",
        roots=("reward-plateau", "scores-ignore-answers"), categories=("stall", "data"), verdicts=("stalled", "drifting", "collapsed"),
    ),
    Case(
        "rloo-greedy-later", "rloo", f"From update {cases_rloo.BREAK + 1} on the sampler takes the likeliest token.", greedy_later, cases_rloo.STEPS, onset=cases_rloo.BREAK,
        twin="rloo-twin", roots=("mode-collapse", "advantage-collapse", "samples-from-another-policy", "samples-repeat"), categories=("collapse",), verdicts=("collapsed", "stalled"), goal="-reward.group_zero_std_fraction",
    ),
    Case(
        "ppo-gamma-zero", "ppo", "Gamma 0: the score reaches the last token only.", no_discounting, cases_ppo.STEPS, twin="ppo-twin",
        roots=("reward-plateau", "discount-too-small"), categories=("stall", "config"), verdicts=("stalled",), cure={"gamma": 1.0}, needs_trl=cases_ppo.TRL,
    ),
    Case(
        "ppo-saturated", "ppo", "The reward model gives every answer of a fifth of vowels or more the highest score.", saturated, cases_ppo.STEPS, twin="ppo-twin",
        roots=("reward-plateau", "no-rule:reward-model-saturated"), categories=("stall", "data"), verdicts=("stalled", "steady"), needs_trl=cases_ppo.TRL,
    ),
    Case(
        "ppo-model-swapped", "ppo", f"From update {cases_ppo.BREAK + 1} on another reward model scores, 20 lower.", model_swapped, cases_ppo.STEPS, onset=cases_ppo.BREAK, twin="ppo-twin",
        roots=("reward-drop", "reward-collapse", "value-loss-spike", "reward-model-out-of-range", "reward-scale-shift"), categories=("collapse", "numerics", "data", "ood-drift"),
        verdicts=("collapsed", "drifting", "diverged"), needs_trl=cases_ppo.TRL,
    ),
    Case(
        "async_grpo-logps-shifted", "async_grpo", f"From update {cases_async.BREAK + 1} on the sampler reports the probabilities of the token before.", async_logps, cases_async.STEPS,
        onset=cases_async.BREAK, twin="async_grpo-twin", roots=("sampler-mismatch", "ratio-blow-up", "clip-ratio-high"), categories=("ood-drift",),
        verdicts=("drifting", "stalled", "collapsed", "diverged"), goal="-sampler.kl",
    ),
)  # fmt: skip
