"""What the clinic says of advice: when a run counts as cured, and that every suggestion is worth more than a random change."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clinic.ward import cure_page
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import EVERY, by_id
from tests.clinic.ward.cure import ARMS, WAITS, end_of, first_change, read, recovered, way_back

from trainvitals.findings import Action


def _case(goal: str) -> Case:
    return Case("x-fault", "grpo", "A fault.", lambda *_, **__: None, 100, onset=50, roots=("a",), categories=("collapse",), verdicts=("collapsed",), goal=goal)


def test_recovery_is_within_five_percent_on_the_good_side() -> None:
    assert recovered("reward.mean", 0.96, 1.0)
    assert not recovered("reward.mean", 0.94, 1.0)
    assert recovered("-optim.loss", 2.05, 2.0)
    assert not recovered("-optim.loss", 2.2, 2.0)
    assert not recovered("reward.mean", None, 1.0)
    assert end_of({step: float(step) for step in range(1, 21)}) == 15.5
    assert end_of({1: 1.0, 2: None}) is None


def test_the_first_typed_suggestion_is_followed_with_what_goes_along() -> None:
    look = Action(action_id="a-1", type="inspect", text="Look.")
    change = Action.model_validate({"action_id": "a-2", "parameter": "learning_rate", "to": 1e-6, "also": [{"parameter": "num_iterations", "from": 8, "to": 1}]})
    later = Action(action_id="a-3", parameter="beta", to=0.1)
    assert first_change([look, change, later]) == {"learning_rate": 1e-6, "num_iterations": 1}
    assert first_change([look]) == {}


def test_kept_forks_are_of_known_cases_and_arms() -> None:
    kept = read()
    assert kept["forks"]
    for entry in kept["forks"]:
        case = by_id(entry["case"])
        assert set(entry["arms"]) <= {arm for arm in ARMS if arm != "right" or case.cure}
        assert entry["alarm"] is None or entry["right"] == dict(case.cure or {})
        assert all("learned" in arm for arm in entry["arms"].values() if case.learned and arm["recovered"])  # standing still is no recovery
    assert all(set(entry["recovered"]) <= {str(wait) for wait in WAITS} and by_id(entry["case"]).cure for entry in kept["lead"])


def test_the_way_back_is_measured_from_carrying_on() -> None:
    case = _case("-optim.loss")

    def way(there: float | None, *, carried: float | None = 3.0, well: bool = False) -> float | None:
        arms = {"carry on": {"reached": carried, "recovered": well}, "suggested": {"reached": there, "recovered": False}}
        return way_back(case, {"healthy": 1.0, "arms": arms}, "suggested")

    assert way(2.0) == 0.5
    assert way(1.0) == 1.0
    assert way(4.0) == -0.5
    assert way(None) == 0.0, "a run that died came nowhere"
    assert way(2.0, well=True) is None, "nothing to win"
    assert way(2.0, carried=None) is None
    assert way_back(case, {"healthy": 1.0, "arms": {"suggested": {"reached": 2.0, "recovered": True}}}, "suggested") is None


def test_standing_still_is_no_way_back() -> None:
    """`learned` of the KTO twins at the end: a standard deviation of 0.05."""
    case = by_id("kto-imbalance")
    arms = {"carry on": {"reached": -90.0, "recovered": False, "learned": 0.4}, "suggested": {"reached": -30.0, "recovered": False, "learned": 0.35}}
    entry = {"healthy": -20.0, "arms": arms}
    assert way_back(case, entry, "suggested") == pytest.approx(60 / 70)
    arms["suggested"]["learned"] = 0.0
    assert way_back(case, entry, "suggested") == 0.0


def test_each_fault_counts_once_however_many_seeds_were_forked() -> None:
    entries = [{"case": case, "arms": {"suggested": {"recovered": well}}} for case, well in [("a", True), ("a", True), ("a", True), ("b", False), ("b", True)]]
    assert cure_page.by_fault(entries, "suggested") == 0.75
    assert cure_page.by_fault(entries, "random") is None


def test_a_suggestion_is_worth_what_it_does_beyond_a_random_one() -> None:
    cases = {"x-fault": _case("reward.mean")}

    def fork(ours: tuple[float, bool], control: tuple[float, bool], *, alone: bool = False) -> dict[str, Any]:
        arms = {"carry on": {"changes": {}, "reached": 0.0, "recovered": alone}}
        arms |= {name: {"changes": {"beta": 0.1}, "reached": value, "recovered": well} for name, (value, well) in (("suggested", ours), ("random", control))}
        return {"case": "x-fault", "seed": 0, "healthy": 1.0, "rule": "a", "suggested": {"beta": 0.1}, "arms": arms}

    def worth(*entries: dict[str, Any]) -> bool | None:
        return cure_page.Suggestion("a", ("beta",), entries).beats_chance(cases)

    assert worth(fork((1.0, True), (0.0, False)))
    assert not worth(fork((1.0, True), (1.0, True)))
    assert not worth(fork((0.4, False), (0.0, False))), "less than half of the way"
    assert worth(fork((0.6, False), (0.0, False)))
    assert not worth(fork((0.6, False), (1.0, True))), "the random change recovered"
    assert worth(fork((0.6, False), (1.0, True)), fork((0.6, False), (0.0, False)), fork((0.6, False), (0.0, False)))
    assert worth(fork((1.0, True), (0.0, False), alone=True)) is None, "it recovers by itself"
    assert not worth(fork((1.0, True), (0.0, False), alone=True), fork((0.0, False), (0.0, False)))


def test_every_suggestion_that_was_followed_beats_a_random_change() -> None:
    """Issue 4: advice that does not beat the random arm is not advice. Drop it, say it in words, or find when it is true."""
    cases = {case.id: case for case in EVERY}
    known = cure_page.suggestions(cases)
    assert len(known) > 30
    assert [f"{one.rule}: {', '.join(one.parameters)}" for one in known if one.beats_chance(cases) is False] == []
