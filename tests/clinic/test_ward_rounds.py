"""Each later round of the clinic is what its list says, with seeds that no earlier round has."""

from __future__ import annotations

from tests.clinic.ward import rounds, score
from tests.clinic.ward.cases import CASES, EVERY, ROUND_FIVE, ROUND_FOUR, ROUND_SEVEN, ROUND_SIX, ROUND_THREE, ROUND_TWO, by_id
from tests.clinic.ward.record import FOLDERS, seeds_in
from tests.clinic.ward.score import set_aside, split_of


def test_the_second_round_is_what_its_list_says() -> None:
    listed = score.listed("two")
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_TWO)
    assert len({case.id for case in EVERY}) == len(EVERY)
    assert not set(listed["seeds"]) & ({seed for case in CASES for seed in case.seeds} | set(set_aside()["seeds"]))
    faults = [case for case in ROUND_TWO if case.sick]
    assert len(faults) >= 30
    assert all(len(case.seeds) == 5 for case in faults)
    assert len({case.trainer for case in faults}) >= 9
    assert sum(case.hard for case in ROUND_TWO if len(case.seeds) >= 3) >= 8
    assert {split_of(case, 0) for case in ROUND_TWO} == {"round two: new case"}
    assert split_of(CASES[0], 5) == "round two: new seed"
    assert rounds.seeds(rounds.TWO, CASES[0]) == (5, 6)
    assert rounds.seeds(rounds.TWO, by_id("grpo-healthy")) == (120, 121)
    assert rounds.seeds(rounds.TWO, faults[0]) == faults[0].seeds


def test_the_third_round_is_what_its_list_says() -> None:
    listed = score.listed("three")
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_THREE)
    trained = {seed for case in (*CASES, *ROUND_TWO) for seed in case.seeds} | set(set_aside()["seeds"]) | set(score.listed("two")["seeds"])
    assert not trained & {*listed["seeds"], *(seed for case in ROUND_THREE for seed in case.seeds)}
    faults = [case for case in ROUND_THREE if case.sick]
    assert len(faults) >= 24
    assert all(len(case.seeds) == 4 for case in faults)
    assert len({case.trainer for case in faults}) >= 8
    assert sum(not case.sick and len(case.seeds) == 3 for case in ROUND_THREE) >= 9
    assert {split_of(case, case.seeds[0]) for case in ROUND_THREE} == {"round three: new case"}
    assert split_of(CASES[0], 7) == split_of(ROUND_TWO[0], 7) == "round three: new seed"
    assert split_of(CASES[0], 5) == "round two: new seed"
    assert rounds.seeds(rounds.THREE, by_id("orpo-twin")) == (7, 8)
    assert rounds.seeds(rounds.THREE, faults[0]) == faults[0].seeds
    for case in (*CASES, *ROUND_TWO):
        assert seeds_in(case.id, FOLDERS["three"]) <= set(listed["seeds"])


def test_the_fourth_round_is_what_its_list_says() -> None:
    listed, older = score.listed("four"), (*CASES, *ROUND_TWO, *ROUND_THREE)
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_FOUR)
    trained = {seed for case in older for seed in case.seeds} | set(set_aside()["seeds"]) | {seed for word in ("two", "three") for seed in score.listed(word)["seeds"]}
    assert not trained & {*listed["seeds"], *(seed for case in ROUND_FOUR for seed in case.seeds)}
    faults = [case for case in ROUND_FOUR if case.sick]
    assert len(faults) >= 24
    assert all(len(case.seeds) == 3 and 1 <= len(case.roots) <= 3 for case in faults)
    assert len({case.trainer for case in faults}) >= 8
    assert sum(not case.sick and len(case.seeds) == 3 for case in ROUND_FOUR) >= 6
    assert {split_of(case, case.seeds[0]) for case in ROUND_FOUR} == {"round four: new case"}
    assert split_of(CASES[0], 9) == split_of(ROUND_TWO[0], 9) == "round four: new seed"
    assert split_of(CASES[0], 7) == "round three: new seed"
    assert rounds.seeds(rounds.FOUR, by_id("orpo-twin")) == rounds.seeds(rounds.FOUR, by_id("sft-moe-twin")) == (9,)
    assert rounds.seeds(rounds.FOUR, faults[0]) == faults[0].seeds
    for case in older:
        assert seeds_in(case.id, FOLDERS["four"]) <= set(listed["seeds"])


def test_the_fifth_round_is_what_its_list_says() -> None:
    listed, older = score.listed("five"), (*CASES, *ROUND_TWO, *ROUND_THREE, *ROUND_FOUR)
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_FIVE)
    trained = {seed for case in older for seed in case.seeds} | set(set_aside()["seeds"]) | {seed for word in ("two", "three", "four") for seed in score.listed(word)["seeds"]}
    assert not trained & {*listed["seeds"], *(seed for case in ROUND_FIVE for seed in case.seeds)}
    faults = [case for case in ROUND_FIVE if case.sick]
    assert len(faults) >= 20
    assert all(len(case.seeds) == 3 and 1 <= len(case.roots) <= 3 for case in faults)
    assert sum(not case.sick and len(case.seeds) == 3 for case in ROUND_FIVE) >= 6
    assert {split_of(case, case.seeds[0]) for case in ROUND_FIVE} == {"round five: new case"}
    assert split_of(CASES[0], 16) == split_of(ROUND_FOUR[0], 16) == "round five: new seed"
    assert split_of(CASES[0], 9) == "round four: new seed"
    assert rounds.seeds(rounds.FIVE, by_id("grpo-twin")) == (16,)
    assert rounds.seeds(rounds.FIVE, faults[0]) == faults[0].seeds
    for case in older:
        assert seeds_in(case.id, FOLDERS["five"]) <= set(listed["seeds"])


def test_the_sixth_round_is_what_its_list_says() -> None:
    listed, older = score.listed("six"), (*CASES, *ROUND_TWO, *ROUND_THREE, *ROUND_FOUR, *ROUND_FIVE)
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_SIX)
    trained = {seed for case in older for seed in case.seeds} | set(set_aside()["seeds"]) | {seed for word in ("two", "three", "four", "five") for seed in score.listed(word)["seeds"]}
    assert not trained & {*listed["seeds"], *(seed for case in ROUND_SIX for seed in case.seeds)}
    faults = [case for case in ROUND_SIX if case.sick]
    assert len(faults) == 18
    assert all(len(case.seeds) == 3 and case.roots and "#" in case.what for case in faults)
    assert sum(not case.sick and len(case.seeds) == 3 for case in ROUND_SIX) == 6
    assert {split_of(case, case.seeds[0]) for case in ROUND_SIX} == {"round six: new case"}
    assert split_of(CASES[0], 17) == split_of(ROUND_FIVE[0], 17) == "round six: new seed"
    assert rounds.seeds(rounds.SIX, by_id("orpo-twin")) == (17,)
    for case in older:
        assert seeds_in(case.id, FOLDERS["six"]) <= set(listed["seeds"])


def test_the_seventh_round_is_what_its_list_says() -> None:
    listed, older = score.listed("seven"), (*CASES, *ROUND_TWO, *ROUND_THREE, *ROUND_FOUR, *ROUND_FIVE, *ROUND_SIX)
    assert sorted(listed["cases"]) == sorted(case.id for case in ROUND_SEVEN)
    trained = {seed for case in older for seed in case.seeds} | set(set_aside()["seeds"]) | {seed for word in ("two", "three", "four", "five", "six") for seed in score.listed(word)["seeds"]}
    assert not trained & {*listed["seeds"], *(seed for case in ROUND_SEVEN for seed in case.seeds)}
    faults = [case for case in ROUND_SEVEN if case.sick]
    assert len(faults) == 18
    assert all(len(case.seeds) == 3 and 1 <= len(case.roots) <= 4 and case.what.endswith(").") for case in faults)
    assert len({case.trainer for case in faults}) == 9
    assert sum(not case.sick and len(case.seeds) == 3 for case in ROUND_SEVEN) == 6
    assert {split_of(case, case.seeds[0]) for case in ROUND_SEVEN} == {"round seven: new case"}
    assert split_of(CASES[0], 18) == split_of(ROUND_SIX[0], 18) == "round seven: new seed"
    assert rounds.seeds(rounds.SEVEN, by_id("kto-twin")) == (18,)
    for case in older:
        assert seeds_in(case.id, FOLDERS["seven"]) <= set(listed["seeds"])
