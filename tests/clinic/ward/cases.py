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
ROUND_TWO: tuple[Case, ...] = (*cases_round2_rl.CASES, *cases_round2_preference.CASES, *cases_round2_supervised.CASES)
"""What the second round adds: faults and healthy settings that were written after the rules, by somebody who did not read them (docs/decisions/0009)."""
ROUND_THREE: tuple[Case, ...] = (*cases_round3_rl.CASES, *cases_round3_preference.CASES, *cases_round3_supervised.CASES)
"""The same of the third round: faults that were drawn by lot from the catalogue of failures (docs/decisions/0011)."""
ROUND_FOUR: tuple[Case, ...] = (*cases_round4_rl.CASES, *cases_round4_sampled.CASES, *cases_round4_offline.CASES)
"""The same of the fourth round: drawn by lot again, with another order (docs/decisions/0012)."""
ROUND_FIVE: tuple[Case, ...] = (*cases_round5_rl.CASES, *cases_round5_offline.CASES)
"""The same of the fifth round: what people reported in public (docs/decisions/0013)."""
ROUND_SIX: tuple[Case, ...] = (*cases_round6_rl.CASES, *cases_round6_offline.CASES)
"""The same of the sixth round: bugs that frameworks had and mended (docs/decisions/0014)."""
ROUND_SEVEN: tuple[Case, ...] = (*cases_round7_rl.CASES, *cases_round7_offline.CASES)
"""The same of the seventh round: what people reported or mended, one query for each symptom (docs/decisions/0015)."""
EVERY: tuple[Case, ...] = (*CASES, *ROUND_TWO, *ROUND_THREE, *ROUND_FOUR, *ROUND_FIVE, *ROUND_SIX, *ROUND_SEVEN)


def by_id(case_id: str) -> Case:
    """The case of that id, of any round.

    Raises:
        KeyError: There is none.
    """
    for case in EVERY:
        if case.id == case_id:
            return case
    raise KeyError(f"no case {case_id!r}; `python -m tests.clinic.ward list` prints them")
