"""`rules calibrate`: sweep, budget, ties, and the plain word when the runs cannot tell."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Output, Run, rows, write
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.cli.calibrate import REACH, Sweep, Tried, choose, grid
from trainvitals.cli.trials import Score
from trainvitals.rulelang.model import Param

RULE = """
id: kl-high
code: KL900
version: 1.0.0
title: KL is high
category: ood-drift
severity: warning
params:
  limit: {default: 1, unit: nats, range: [0.05, 20], why: the rule of a test}
let:
  level: mean(policy.kl_ref, updates=5)
when: level > limit
message: "KL is {level:num}."
docs: {explain: a test, look_first: a test, false_positives: [none], references: [none]}
"""


def log(seed: int, sick: bool, *, level: float = 0.6) -> list[dict[str, Any]]:
    """KL of 0.2 with noise; of 0.6 from step 41 on when sick."""
    source = random.Random(seed)
    return [
        {**row, "kl": (level if sick and row["step"] > 40 else 0.2) + source.uniform(-0.05, 0.05)} for row in rows(80, bad_from=10_000)
    ]


def clinic(folder: Path, healthy: int, sick: int, *, loud: int = 0) -> tuple[Path, Path]:
    """Runs and labels; `loud` healthy runs look like sick ones."""
    runs = folder / "runs"
    runs.mkdir()
    labels: dict[str, Any] = {}
    for place in range(healthy):
        write(runs / f"fine-{place}.jsonl", log(place, place < loud))
        labels[f"fine-{place}"] = {"healthy": True}
    for place in range(sick):
        write(runs / f"bad-{place}.jsonl", log(100 + place, True))
        labels[f"bad-{place}"] = {"roots": ["kl-high"], "onset": 41}
    (folder / "labels.json").write_text(json.dumps(labels))
    return runs, folder / "labels.json"


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    """A rule whose limit is too high for these runs."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "kl-high.yaml").write_text(RULE)
    return folder


def calibrate(run: Run, rule: Path, runs: Path, labels: Path, *more: object) -> Output:
    return run("rules", "calibrate", "kl-high", "--rules", rule, "--runs", runs, "--labels", labels, *more)


def test_a_better_value_is_found_and_its_override_works(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 8, 8)
    before = {path: path.read_bytes() for path in rule.iterdir()}
    done = calibrate(run, rule, runs, labels)
    assert done.code == 0
    assert "kl-high: 8 healthy runs, 8 with its fault, 0 sick of something else" in done.out
    assert "8 healthy runs cannot show that false alarms stay within 5%" in done.out
    assert "73 without any would" in done.out
    snippet = done.out[done.out.index("schema: ") :]
    (entry,) = yaml.safe_load(snippet)["rules"]
    assert 0.25 < entry["params"]["limit"] < 0.65
    assert "found 8 of 8 [68% to 100%] instead of 0 of 8 [0% to 32%]" in entry["reason"]
    assert {path: path.read_bytes() for path in rule.iterdir()} == before  # it proposes, it writes nothing
    overrides = tmp_path / "trainvitals.yaml"
    overrides.write_text(snippet)
    again = calibrate(run, rule, runs, labels, "--overrides", overrides)
    assert again.code == 0
    assert "No change is proposed." in again.out
    assert "8 of 8" in run("rules", "backtest", "kl-high", "--rules", rule, "--runs", runs, "--labels", labels, "--overrides", overrides).out


def test_among_equals_the_nearest_to_the_value_in_force(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 8, 8)
    document = json.loads(calibrate(run, rule, runs, labels, "-f", "json").out)
    (param,) = document["params"]
    perfect = [one["value"] for one in param["values"] if one["found"] == 8 and one["false_alarms"] == 0]
    assert len(perfect) >= 2
    assert param["best"] == max(perfect)  # all lie below the value in force
    assert document["override"]["rules"][0]["params"] == {"limit": max(perfect)}


def test_too_few_runs_are_told_and_nothing_is_proposed(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 3, 3)
    done = calibrate(run, rule, runs, labels)
    assert done.code == 3
    assert "these runs cannot tell" in done.out
    assert "found 3 of 3 [44% to 100%] instead of 0 of 3 [0% to 56%]" in done.out
    assert "by chance with p = 0.25" in done.out
    assert "schema:" not in done.out
    assert json.loads(calibrate(run, rule, runs, labels, "-f", "json").out)["override"] is None


@pytest.mark.parametrize(("healthy", "sick", "word"), [(0, 4, "no healthy run"), (4, 0, "no sick run whose label names kl-high")])
def test_one_kind_of_run_alone_tells_nothing(run: Run, rule: Path, tmp_path: Path, healthy: int, sick: int, word: str) -> None:
    runs, labels = clinic(tmp_path, healthy, sick)
    done = calibrate(run, rule, runs, labels)
    assert done.code == 3
    assert word in done.out
    assert "of 4 [0% to 49%]" in done.out


def test_the_budget_decides(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 10, 8, loud=2)
    strict = json.loads(calibrate(run, rule, runs, labels, "-f", "json").out)["params"][0]
    assert (strict["best"], strict["status"]) == (1.0, "keep")
    assert "no value within the budget finds more (0 of 8" in strict["why"]
    lax = json.loads(calibrate(run, rule, runs, labels, "--false-alarms", "0.2", "-f", "json").out)["params"][0]
    assert lax["status"] == "change"
    assert "false alarms 2 of 10" in lax["why"]


def test_same_input_same_bytes(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 4, 4)
    assert calibrate(run, rule, runs, labels, "-f", "json").out == calibrate(run, rule, runs, labels, "-f", "json").out


def test_values_that_the_rule_cannot_have_are_named(run: Run, tmp_path: Path) -> None:
    runs, labels = tmp_path / "runs", tmp_path / "labels.json"
    runs.mkdir()
    for name, bad_from in (("fine", 10_000), ("bad", 60)):
        write(runs / f"{name}.jsonl", rows(bad_from=bad_from))
    labels.write_text(json.dumps({"fine": {"healthy": True}, "bad": {"roots": ["advantage-collapse"], "onset": 60}}))
    done = run("rules", "calibrate", "advantage-collapse", "--runs", runs, "--labels", labels, "--points", 5)
    assert "  0 is no value: 'narrow' of rule 'advantage-collapse' is refused: E302" in done.out  # near_zero: a spread is never below 0
    assert done.code == 3
    assert "no value within the budget finds more (1 of 1 [21% to 100%]; false alarms 0 of 1 [0% to 79%]); but so few runs" in done.out
    assert "6 at least could" in done.out


def test_wrong_use(run: Run, rule: Path, tmp_path: Path) -> None:
    runs, labels = clinic(tmp_path, 1, 1)
    assert calibrate(run, rule, runs, labels, "--false-alarms", "2").code == 2
    assert run("rules", "calibrate", "kl-high", "--rules", rule, "--runs", runs).code == 2
    (rule / "kl-high.yaml").write_text(RULE.replace("params:\n  limit: {default: 1, unit: nats, range: [0.05, 20], why: the rule of a test}\n", "").replace("> limit", "> 1"))
    assert "has no parameter" in calibrate(run, rule, runs, labels).err


# ---- the grid ---------------------------------------------------------------------------------------------------------


def test_grids_of_ranges_people_wrote() -> None:
    share = grid(Param("share", 0.3, "fraction", 0.02, 0.95), 13)
    assert share == [0.02, 0.031, 0.049, 0.077, 0.12, 0.19, 0.3, 0.41, 0.52, 0.62, 0.73, 0.84, 0.95]
    rate = grid(Param("rate", 2e-5, "rate", 1e-7, 1), 13)
    assert rate[0] == 2e-7
    assert rate[-1] == 2e-3
    assert all(1.8 < high / low < 2.6 for low, high in pairwise(rate))
    assert grid(Param("hits", 2, "count", 1, 1000), 13) == [1, 2, 4, 9, 20, 43, 93, 200]
    assert grid(Param("most", 0.1, "reward", 0, 1e6), 7) == [0, 0.033, 0.067, 0.1, 0.46, 2.2, 10]


@given(
    st.floats(-1e3, 1e3).flatmap(lambda low: st.tuples(st.just(low), st.floats(low + 1e-3, 1e6)).flatmap(lambda pair: st.tuples(st.just(pair), st.floats(*pair)))),
    st.integers(3, 40),
)
def test_a_grid_stays_inside_and_holds_the_value_in_force(numbers: tuple[tuple[float, float], float], points: int) -> None:
    (low, high), default = numbers
    values = grid(Param("x", default, "ratio", low, high), points)
    assert default in values
    assert values == sorted(set(values))
    assert all(low <= value <= high for value in values)
    assert len(values) <= points + 1
    if default > 0.01:
        assert max(values) <= default * (REACH + 1) * 1.1


# ---- the choice -------------------------------------------------------------------------------------------------------


def tried(value: float, found: int, false: int, *, early: int = 0, of: int = 20) -> Tried:
    """A value with so many runs found and so many false alarms, out of 20 each."""
    score = Score("x", healthy=of, false_runs=false, own=of, found=found, early=early)
    names = [str(place) for place in range(of)]
    return Tried(value, score, "", frozenset(names[:found]), frozenset(names[:false]))


def chosen(*values: Tried, default: float = 1.0, budget: float = 0.05) -> Sweep:
    found = Sweep(Param("x", default, "ratio", 0.01, 100), list(values))
    choose(found, budget)
    return found


def test_more_detection_wins_only_within_the_budget() -> None:
    found = chosen(tried(0.1, 20, 9), tried(0.3, 15, 1), tried(1.0, 5, 0))
    assert found.best is found.tried[1]
    assert found.status == "change"
    assert found.chance == pytest.approx(2 / 2**10)


def test_zero_is_not_the_nearest_of_equals() -> None:
    values = [tried(value, 0 if value >= 1 else 20, 0) for value in (0.0, 0.25, 0.5, 1.0, 2.0)]
    best = chosen(*values).best
    assert best is not None
    assert best.value == 0.5


def test_a_default_over_the_budget_gives_way_to_a_quieter_value() -> None:
    found = chosen(tried(1.0, 20, 10), tried(3.0, 18, 0))
    assert (found.best, found.status) == (found.tried[1], "change")
    found = chosen(tried(1.0, 20, 3), tried(3.0, 18, 0))
    assert found.status == "undecided"


def test_no_value_keeps_the_budget() -> None:
    found = chosen(tried(1.0, 20, 10), tried(3.0, 18, 5))
    assert (found.best, found.status) == (None, "undecided")
    assert "no value keeps false alarms within 5%; the least is 5 of 20 [11% to 47%] at x = 3" in found.words


def test_fewer_alarms_before_the_onset_break_ties_but_do_not_prove_anything() -> None:
    found = chosen(tried(1.0, 10, 0, early=4), tried(2.0, 10, 0))
    assert (found.best, found.status) == (found.tried[1], "undecided")


def test_the_rule_is_judged_without_what_would_hide_it(run: Run, rule: Path, tmp_path: Path) -> None:
    """Its cause opens first in every sick run: the backtest tells only the cause, the calibration sees both."""
    (rule / "kl-cause.yaml").write_text(RULE.replace("kl-high", "kl-cause").replace("KL900", "KL901").replace("default: 1,", "default: 0.4,"))
    asks = RULE.replace("default: 1,", "default: 0.5,").replace("when: level > limit", "caused_by: [kl-cause]\nwhen: level > limit or (firing('kl-cause') and level > limit)")
    (rule / "kl-high.yaml").write_text(asks)
    runs, labels = clinic(tmp_path, 6, 6)
    hidden = run("rules", "backtest", "kl-high", "--rules", rule, "--runs", runs, "--labels", labels, "-f", "json")
    (one,) = json.loads(hidden.out)["rules"]
    assert (one["own_fault"]["found"], one["hidden_runs"]) == (0, 6)
    values = json.loads(calibrate(run, rule, runs, labels, "-f", "json").out)["params"][0]["values"]
    assert next(value["found"] for value in values if value["value"] == 0.5) == 6
