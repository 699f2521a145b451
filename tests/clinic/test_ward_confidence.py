"""The table of confidence: only the development half, the truth as planted, and a file that the rules can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.clinic.ward import confidence as ward
from tests.clinic.ward import record, score
from tests.clinic.ward.case import Case

from trainvitals.cli.trials import Score, read_labels
from trainvitals.rulelang import confidence
from trainvitals.rulelang.loader import RuleSet, load_rules


@pytest.fixture(scope="module")
def rules() -> RuleSet:
    return load_rules()


def stream(case: str, seed: int) -> list[dict[str, Any]]:
    """A short run whose gradient is NaN from step 31 on when the seed is odd."""
    head = {"schema": "trainvitals/1.0", "run": f"{case}-s{seed}"}
    start = {**head, "kind": "run_start", "trainer": "sft", "framework": "trl", "version": "0", "emits": ["optim.loss", "optim.grad_norm"]}
    bad = {"value": None, "nonfinite": "nan"}
    steps = [
        {**head, "kind": "signal", "step": step, "values": {"optim.loss": bad if seed % 2 and step > 30 else 1.0, "optim.grad_norm": 1.0}}
        for step in range(1, 61)
    ]
    return [start, *steps]


def case(case_id: str, **more: Any) -> Case:
    return Case(case_id, "sft", "a test", lambda *_: None, 60, **more)


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """A sick case, a healthy one, and one that is set aside as a whole; of the others, seed 3 is set aside and 7 is of the second round."""
    cases = [case("bad", onset=30, roots=("nonfinite-loss",)), case("fine"), case("aside", roots=("nonfinite-loss",))]
    for one in cases:
        seeds = (1, 3, 5, 7) if one.roots else (0, 2)
        record.save(one.id, {seed: stream(one.id, seed) for seed in seeds}, tmp_path)
    monkeypatch.setattr(ward, "path_of", lambda case_id: record.path_of(case_id, tmp_path))
    monkeypatch.setattr(score, "set_aside", lambda: {"faults": ["aside"], "seeds": [3]})
    monkeypatch.setattr(score, "listed", lambda word: {"cases": [], "seeds": [7] if word == "two" else []})
    return cases


def test_what_is_set_aside_is_not_read(clinic: list[Case]) -> None:
    assert [run.run for run in ward.trials(clinic)] == ["bad-s1", "bad-s5", "fine-s0", "fine-s2"]


def test_the_first_sick_update_is_the_onset(clinic: list[Case], rules: RuleSet) -> None:
    """A case counts healthy updates: a firing at update 30 is false, one at 31 is true."""
    assert ward.label(clinic[0]).onset == 31
    outcomes = ward.judged(ward.trials(clinic), rules)
    row = ward.table(outcomes, rules)["rules"]["nonfinite-loss"]
    assert (row["healthy_runs"], row["healthy_steps"], row["false_runs"], row["early"]) == (2, 120, 0, 0)
    assert (row["own_runs"], row["found"], row["precision"], row["low"], row["high"]) == (2, 2, 1.0, 0.342, 1.0)


def test_its_labels_are_those_that_the_commands_read(clinic: list[Case], tmp_path: Path) -> None:
    runs = ward.trials(clinic)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(ward.labels(runs)))
    assert read_labels(str(path)) == {run.run: run.label for run in runs}


def test_the_file_is_read_by_the_rules_and_is_the_same_every_time(clinic: list[Case], rules: RuleSet, tmp_path: Path) -> None:
    content = ward.table(ward.judged(ward.trials(clinic), rules), rules)
    text = ward.render(content)
    assert json.loads(text) == content
    assert ward.render(ward.table(ward.judged(ward.trials(clinic), rules), rules)) == text
    (tmp_path / "table.json").write_text(text)
    read = confidence.read(tmp_path / "table.json")
    found = confidence.of(rules.by_id["nonfinite-loss"], read)
    assert found is not None
    assert found.confidence is not None
    assert found.confidence.runs == 2
    assert "2 healthy and 2 sick runs" in found.basis
    assert sum(line.strip().startswith('"nonfinite-loss"') for line in text.splitlines()) == 1


def test_wrong_firings_lower_it_and_milestones_have_none(rules: RuleSet) -> None:
    counts = Score("nonfinite-loss", healthy=10, false_runs=1, early=1, own=5, found=5, other=4, after=3)
    row = ward.row(counts, rules)
    assert row["precision"] == 0.8
    assert row["low"] < 0.8 < row["high"]
    assert ward.row(Score("nonfinite-loss", healthy=10), rules)["precision"] is None
    info = next(rule.id for rule in rules if rule.severity == "info")
    assert ward.row(Score(info, healthy=10, false_runs=4), rules)["precision"] is None
