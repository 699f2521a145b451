"""Each later round of the clinic is what its list says, with seeds that no earlier round has."""

from __future__ import annotations

import pytest
from tests.clinic.ward import rounds, score
from tests.clinic.ward.cases import CASES, EVERY, by_id
from tests.clinic.ward.record import FOLDERS, seeds_in
from tests.clinic.ward.score import set_aside, split_of

SIZE = {"two": (30, 5, 9, 8), "three": (24, 4, 8, 9), "four": (24, 3, 8, 6), "five": (20, 3, 5, 6), "six": (18, 3, 5, 6), "seven": (18, 3, 9, 6), "eight": (18, 3, 10, 6), "nine": (18, 3, 10, 6)}
"""Word to how many faults a round has at least, with how many seeds each, in at least how many trainers, and at least how many healthy settings that look sick."""


@pytest.mark.parametrize("which", rounds.ALL, ids=lambda which: which.word)
def test_a_round_is_what_its_list_says(which: rounds.Round) -> None:
    listed = score.listed(which.word)
    assert sorted(listed["cases"]) == sorted(case.id for case in which.cases)
    faults, (many, seeds, trainers, hard) = [case for case in which.cases if case.sick], SIZE[which.word]
    assert len(faults) >= many
    assert all(len(case.seeds) == seeds and case.roots for case in faults)
    assert len({case.trainer for case in faults}) >= trainers
    assert sum(not case.sick and (len(case.seeds) == 3 or (case.hard and len(case.seeds) > 3)) for case in which.cases) >= hard
    assert {split_of(case, case.seeds[0]) for case in which.cases} == {f"round {which.word}: new case"}
    assert rounds.seeds(which, faults[0]) == faults[0].seeds


@pytest.mark.parametrize("which", rounds.ALL, ids=lambda which: which.word)
def test_its_seeds_are_its_own(which: rounds.Round) -> None:
    listed, earlier = score.listed(which.word), rounds.ALL[: rounds.ALL.index(which)]
    known = {seed for case in which.older for seed in case.seeds} | set(set_aside()["seeds"]) | {seed for each in earlier for seed in score.listed(each.word)["seeds"]}
    assert not known & set(listed["seeds"])
    if which.word != "two":  # its new cases begin with seed 0 as the first round's do: other cases, other folder
        assert not known & {seed for case in which.cases for seed in case.seeds}
    few = min(listed["seeds"])
    assert split_of(CASES[0], few) == split_of(which.older[-1], few) == f"round {which.word}: new seed"
    for case in which.older:
        assert seeds_in(case.id, which.folder) <= set(rounds.seeds(which, case))
        assert not set(rounds.seeds(which, case)) & {seed for folder in [*FOLDERS.values()][: which.number - 1] for seed in seeds_in(case.id, folder)}


def test_every_id_is_there_once() -> None:
    assert len({case.id for case in EVERY}) == len(EVERY)


def test_seeds_that_a_list_adds_are_those_of_cases_of_their_kind() -> None:
    two, three, four, *_ = rounds.ALL
    assert rounds.seeds(two, CASES[0]) == (5, 6)
    assert rounds.seeds(two, by_id("grpo-healthy")) == (120, 121)
    assert rounds.seeds(three, by_id("orpo-twin")) == (7, 8)
    assert rounds.seeds(four, by_id("orpo-twin")) == rounds.seeds(four, by_id("sft-moe-twin")) == (9,)
    assert rounds.seeds(rounds.ROUNDS["round-seven"], by_id("kto-twin")) == (18,)
