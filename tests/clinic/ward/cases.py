"""All cases, in one list that a reader can see; each trainer's are in a file of its own."""

from __future__ import annotations

from tests.clinic.ward import (
    cases_async,
    cases_distillation,
    cases_grpo,
    cases_grpo_reward,
    cases_ppo,
    cases_preference,
    cases_rloo,
    cases_round2_preference,
    cases_round2_rl,
    cases_round2_supervised,
    cases_round3_preference,
    cases_round3_rl,
    cases_round3_supervised,
    cases_round4_offline,
    cases_round4_rl,
    cases_round4_sampled,
    cases_round5_offline,
    cases_round5_rl,
    cases_round6_offline,
    cases_round6_rl,
    cases_round7_offline,
    cases_round7_rl,
    cases_round8_offline,
    cases_round8_rl,
    cases_round9_offline,
    cases_round9_rl,
    cases_supervised,
)
from tests.clinic.ward.case import Case

CASES: tuple[Case, ...] = (
    *cases_grpo.CASES,
    *cases_grpo_reward.CASES,
    *cases_rloo.CASES,
    *cases_ppo.CASES,
    *cases_async.CASES,
    *cases_supervised.CASES,
    *cases_preference.CASES,
    *cases_distillation.CASES,
)
BY_ROUND: dict[str, tuple[Case, ...]] = {
    "two": (*cases_round2_rl.CASES, *cases_round2_preference.CASES, *cases_round2_supervised.CASES),
    "three": (*cases_round3_rl.CASES, *cases_round3_preference.CASES, *cases_round3_supervised.CASES),
    "four": (*cases_round4_rl.CASES, *cases_round4_sampled.CASES, *cases_round4_offline.CASES),
    "five": (*cases_round5_rl.CASES, *cases_round5_offline.CASES),
    "six": (*cases_round6_rl.CASES, *cases_round6_offline.CASES),
    "seven": (*cases_round7_rl.CASES, *cases_round7_offline.CASES),
    "eight": (*cases_round8_rl.CASES, *cases_round8_offline.CASES),
    "nine": (*cases_round9_rl.CASES, *cases_round9_offline.CASES),
}
"""What each later round adds, by its word: faults and healthy settings that were written after the rules, by somebody who did not read them. `rounds` tells how each was chosen."""
EVERY: tuple[Case, ...] = (*CASES, *(case for cases in BY_ROUND.values() for case in cases))


def before(word: str) -> tuple[Case, ...]:
    """Every case of the rounds before that one."""
    words = [*BY_ROUND]
    return (*CASES, *(case for older in words[: words.index(word)] for case in BY_ROUND[older]))


def by_id(case_id: str) -> Case:
    """The case of that id, of any round.

    Raises:
        KeyError: There is none.
    """
    for case in EVERY:
        if case.id == case_id:
            return case
    raise KeyError(f"no case {case_id!r}; `python -m tests.clinic.ward list` prints them")
