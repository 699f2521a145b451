"""Judging from the logs alone: rows as TRL would have logged them, nothing of our hooks, the same truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.clinic.ward import logs_only
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.peer_rows import Row, Run, read_runs

from trainvitals.rulelang.loader import load_rules


def _run(*rows: Row) -> Run:
    return Run("x-s0", "x", 0, "grpo", {}, 20, "completed", rows)


def test_a_window_is_a_mean_and_some_names_are_of_its_last_update() -> None:
    rows = [Row(step, "train", {"loss": float(step), "grad_norm": float(step), "reward": None if step < 3 else 1.0}) for step in range(1, 5)]
    state = json.loads(logs_only.as_state(_run(*rows[:3], Row(3, "eval", {"eval_loss": 9.0}), rows[3]), every=2))
    assert state["log_history"] == [
        {"loss": 1.5, "grad_norm": 2.0, "reward": None, "step": 2},
        {"eval_loss": 9.0, "step": 3},
        {"loss": 3.5, "grad_norm": 4.0, "reward": 1.0, "step": 4},
    ]
    assert (state["global_step"], state["logging_steps"], state["max_steps"]) == (4, 2, 20)


def test_an_unfinished_window_is_not_logged() -> None:
    state = json.loads(logs_only.as_state(_run(*(Row(step, "train", {"loss": 1.0}) for step in range(1, 8))), every=5))
    assert [row["step"] for row in state["log_history"]] == [5]


@pytest.mark.parametrize("every", logs_only.EVERY)
def test_a_log_alone_tells_a_run_that_never_ends_from_its_twin(every: int) -> None:
    rules = load_rules()
    sick = list(logs_only.judge_logs([by_id("grpo-never-ends")], every, rules))
    assert len(sick) == 5
    assert all(run.after and not run.false and run.states[-1] == "collapsed" for run in sick)
    assert not any(run.alarms for run in logs_only.judge_logs([by_id("grpo-twin")], every, rules))


def test_rows_hold_nothing_that_only_hooks_know() -> None:
    names = {name for row in read_runs("grpo-twin")[0].rows for name in row.logs}
    assert "loss" in names
    assert not [name for name in names if name.startswith(("optim.", "policy.", "completion.", "data."))]


def test_the_section_shows_what_is_kept(tmp_path: Path) -> None:
    assert logs_only.section(tmp_path / "none.json") == ""
    kept = {"runs": 3, **{name: {"hits": 1, "of": 2} for name in ("detected", "first", "sick_verdict", "false_runs")}, "false_rate": {"events": 1, "updates": 500}, "delay": 4.0}
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"10": kept}))
    text = logs_only.section(path)
    assert "| a row every 10 updates, TRL's default | 3 | 50% (1/2; " in text
    assert "| 2.00 (1 in 500; " in text
