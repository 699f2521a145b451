"""Faults and healthy runs of trainers to which rules were opened late (`tests/rules/closed_cells.yaml`).

The healthy ones back every opened cell, together with those of the ward; the faults show the rules that matter most speaking there.

    python -m tests.clinic.opened [CASE ...] [--seeds 0 1]      train, print what was told

They are known faults in trainers that had no case of them, no blind round: nothing here is counted on the benchmark's page.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import cases_async, cases_distillation, cases_ppo, cases_rloo, plants
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_round4_sampled import sdpo
from tests.clinic.ward.record import is_at_home, record
from tests.clinic.ward.score import Judged, judge
from tests.suite import build_distillation, build_preference

from trainvitals.integrations import tiny
from trainvitals.rulelang.loader import load_rules

BREAK = 40
STEPS = 90


def online_dpo(folder: str, seed: int, *, reward: Any = tiny.vowels, **changes: Any) -> Any:
    """The healthy training: of two answers the one with more vowels is chosen."""
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 16, "learning_rate": 5e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "beta": 0.1, "max_new_tokens": 24, "seed": seed}
    return build_preference.online_dpo(folder, reward=reward, **{**settings, **changes})


def from_break(broken: plants.Score) -> Any:
    """The reward of `tiny` until `BREAK`."""
    return plants.reward_from(BREAK, broken)


def unscored(seed: int) -> Any:
    """From `BREAK` on the parser gives up on half of the answers."""
    random = Random(seed)
    return from_break(lambda text, ended: plants.share(text, ended) if random.random() < 0.5 else None)


def outlier(seed: int) -> Any:
    """From `BREAK` on one answer in forty is worth ten thousand."""
    random = Random(seed)
    return from_break(lambda text, ended: 1e4 if random.random() < 0.025 else plants.share(text, ended))


def longer(text: str, ended: bool) -> float:
    """Characters are paid for as well, and better than vowels."""
    return 0.3 * plants.share(text, ended) + ended * len(text) / 10


def never(completions: Any, **kwargs: Any) -> list[float]:
    """A parser that finds nothing."""
    return [0.0] * len(completions)


def some_unscored(seed: int) -> Any:
    """The parser gives up on half of the answers, from the first on."""
    random = Random(seed)
    return lambda completions, completion_ids=None, **kwargs: [score if random.random() < 0.5 else None for score in tiny.vowels(completions, completion_ids)]


def three_steps(completions: Any, **kwargs: Any) -> list[float]:
    """Half a point for any answer, a whole one for three vowels in five letters, which is rare: groups are tied although nothing is solved."""
    return [0.0 if not tiny.text_of(completion) else 1.0 if score >= 0.6 else 0.5 for score, completion in zip(tiny.vowels(completions), completions, strict=True)]


def with_seed(build: Callable[..., Any], made: Callable[[int], Any]) -> Callable[..., Any]:
    """`build` with a reward that draws by the seed."""
    return lambda folder, seed, **changes: build(folder, seed, reward=made(seed), **changes)


def loops(folder: str, seed: int, *, build: Callable[..., Any], **changes: Any) -> Any:
    """From `BREAK` on the teacher wants the token that was written last once more."""
    teacher = copy.deepcopy(build_distillation.speaker("vowels"))
    own, trainer = teacher.forward, None

    def again(input_ids: Any = None, **kwargs: Any) -> Any:
        out = own(input_ids=input_ids, **kwargs)
        if trainer is not None and trainer.state.global_step >= BREAK:
            kept = out.logits.shape[1]
            out.logits = out.logits.scatter_add(-1, input_ids[:, -kept:, None], torch.full_like(input_ids[:, -kept:, None], 12, dtype=out.logits.dtype))
        return out

    teacher.forward = again
    trainer = build(folder, teacher=teacher, **{**cases_distillation.BASE, "learning_rate": 2e-3, "seed": seed, **changes})
    return trainer


def suite(build: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """A builder of the suite, with the seed among its settings."""
    base = {"max_steps": STEPS, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, **settings}
    return lambda folder, seed, **changes: build(folder, **{**base, "seed": seed, **changes})


def _sick(name: str, what: str, build: Callable[..., Any], *roots: str, onset: int = 0, steps: int = STEPS, needs_trl: str = "") -> Case:
    return Case(name, name.split("-")[0], what, build, steps, onset=onset, roots=roots, twin=f"{name.split('-')[0]}-twin", seeds=(0, 1), needs_trl=needs_trl)


def _healthy(name: str, what: str, build: Callable[..., Any], *, needs_trl: str = "") -> Case:
    return Case(name, name.split("-")[0], what, build, STEPS, seeds=(100, 101), needs_trl=needs_trl)


_PLANTED = f"From update {BREAK + 1} on"
CASES: tuple[Case, ...] = (
    _healthy("sdpo-plain", "The base settings.", sdpo),
    _healthy("sdpo-slow", "Half the rate, groups of four, a linear schedule.", partial(sdpo, learning_rate=1e-4, num_generations=4, lr_scheduler_type="linear")),
    _healthy("sdpo-two-rewards", "Two reward functions, both alive.", partial(sdpo, reward=[tiny.vowels, plants.reward_from(10_000, longer)])),
    _sick("sdpo-sign", f"{_PLANTED} the score has the wrong sign.", partial(sdpo, reward=from_break(lambda text, ended: -plants.share(text, ended))), "self-distillation-inactive", "reward-collapse", "reward-drop", "reward-scale-shift", onset=BREAK),
    _sick("sdpo-unscored", f"{_PLANTED} half of the answers get no score.", with_seed(sdpo, unscored), "scores-missing", onset=BREAK),
    _sick("sdpo-outlier", f"{_PLANTED} one answer in forty is worth ten thousand.", with_seed(sdpo, outlier), "reward-outlier", "reward-scale-shift", onset=BREAK),
    _sick("sdpo-dead", "One of two reward functions finds nothing.", partial(sdpo, reward=[tiny.vowels, never]), "dead-component"),
    _sick("sdpo-rate", "A learning rate a hundred times too high.", partial(sdpo, learning_rate=2e-2), "step-size-too-large", "policy-breakdown", "entropy-explosion"),
    _sick("sdpo-length", "Characters are paid for.", partial(sdpo, reward=plants.reward_from(0, longer), success_reward_threshold=0.8), "paid-for-length", "length-near-cap", "never-terminates"),
    _sick("sdpo-masked", "Answers that are cut are left out of the loss, and nearly all are.", partial(sdpo, max_completion_length=3, mask_truncated_completions=True), "masked-truncation", "truncated-completions"),
    _healthy("online_dpo-plain", "The base settings.", online_dpo),
    _sick("online_dpo-sign", f"{_PLANTED} the judge prefers the worse answer.", partial(online_dpo, reward=from_break(lambda text, ended: -plants.share(text, ended))), "reward-collapse", "reward-drop", "reward-scale-shift", onset=BREAK),
    _sick("online_dpo-zero", f"{_PLANTED} every answer scores 0.", partial(online_dpo, reward=from_break(lambda text, ended: 0.0)), "judge-undecided", "scores-turned-to-zero", onset=BREAK),
    _sick("online_dpo-dead", "One of two reward functions finds nothing.", partial(online_dpo, reward=[tiny.vowels, never]), "dead-component"),
    _sick("online_dpo-outlier", f"{_PLANTED} one answer in forty is worth ten thousand.", with_seed(online_dpo, outlier), "reward-outlier", "reward-scale-shift", onset=BREAK),
    _sick("online_dpo-length", "Characters are paid for.", partial(online_dpo, reward=plants.reward_from(0, longer)), "paid-for-length", "length-near-cap"),
    _sick("online_dpo-free", "A beta of a hundredth and thirty times the rate.", partial(online_dpo, beta=0.001, learning_rate=1.5e-2), "step-size-too-large", "kl-runaway", "likelihood-displacement", "margin-explosion", "reward-collapse", "length-collapse"),
    _sick("async_grpo-coarse", "Half a point for nearly any answer.", partial(cases_async.plain, reward=three_steps, learning_rate=2e-5, max_steps=140), "coarse-reward", "groups-too-small", steps=140),
    _sick("async_grpo-unscored", "Half of the answers get no score.", with_seed(cases_async.plain, some_unscored), "scores-missing"),
    _sick("rloo-masked", "Answers that are cut are left out of the loss, and nearly all are.", partial(cases_rloo.plain, learning_rate=2e-5, max_completion_length=3, mask_truncated_completions=True), "masked-truncation", "truncated-completions", "gradient-blocked"),
    _healthy("a2po-plain", "Points for an answer with a vowel.", suite(build_preference.a2po, learning_rate=1e-4)),
    _healthy("xpo-plain", "A random reward model.", suite(build_preference.xpo, learning_rate=5e-4), needs_trl="1.12"),
    _healthy("nash_md-plain", "A random reward model.", suite(build_preference.nash_md, learning_rate=5e-4), needs_trl="1.12"),
    _healthy("bco-plain", "Good and bad answers, one by one.", suite(build_preference.bco, learning_rate=5e-4), needs_trl="1.12"),
    _healthy("ppo-plain", "The base settings.", cases_ppo.plain, needs_trl="1.12"),
    _sick("ppo-unclipped", "A clip range of 1.5 over four epochs.", partial(cases_ppo.plain, cliprange=1.5, num_ppo_epochs=4), "clip-range-too-wide", needs_trl="1.12"),
    _healthy("gkd-plain", "Half of the batches are written by the student.", suite(build_distillation.gkd, learning_rate=1e-3)),
    _sick("gkd-loops", f"{_PLANTED} the teacher wants every token once more.", partial(loops, build=build_distillation.gkd, max_new_tokens=24), "answers-loop", onset=BREAK),
)  # fmt: skip


def run(case: Case, seed: int) -> Judged:
    """Train it and hear what is said."""
    return judge(record(case, seed), case, seed, load_rules())


def main(argv: list[str] | None = None) -> int:
    """Train them and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.opened", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_args(argv)
    for case in CASES:
        if not is_at_home(case) or (options.cases and not any(case.id.startswith(name) for name in options.cases)):
            continue
        for seed in options.seeds or case.seeds:
            found = run(case, seed)
            said = ", ".join(f"{alarm.rule} at {alarm.step}" for alarm in found.alarms) or "nothing"
            first = (found.causes or ["nothing"])[0]
            mark = ("right" if first in case.roots else "named later" if set(case.roots) & {alarm.rule for alarm in found.after} else "MISSED") if case.sick else ("FALSE" if found.alarms else "silent")
            print(f"{case.id:24} {seed:4} {mark:12} first: {first}; {said}; verdict {found.states[-1] if found.states else '-'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
