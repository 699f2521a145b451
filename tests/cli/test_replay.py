"""Replaying stops where it is told to, and goes on over the seam of a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Run

from trainvitals.cli.replay import replay
from trainvitals.readers import read
from trainvitals.rulelang.loader import RuleSet


def resumed(path: Path) -> Path:
    """A run of 30 updates that was resumed for another 30."""
    head = {"schema": "trainvitals/1.0", "run": "r"}
    rows: list[dict[str, Any]] = []
    for first in (1, 31):
        rows.append({**head, "kind": "run_start", "trainer": "grpo", "framework": "trl", "version": "0", "resumed_from": first - 1 or None})
        rows += [{**head, "kind": "signal", "step": step, "values": {"reward.mean": step / 60}} for step in range(first, first + 30)]
        rows.append({**head, "kind": "run_end", "step": first + 29, "status": "completed"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_step_in_the_second_attempt_can_be_asked_for(run: Run, tmp_path: Path) -> None:
    out = run("explain", "reward-collapse", "--run", resumed(tmp_path / "r.jsonl"), "--at", 50).out
    assert "at step 50" in out
    assert "reward.mean: 0.833333 (step 50)" in out


def test_all_of_it_and_a_part_of_it(tmp_path: Path) -> None:
    path = resumed(tmp_path / "r.jsonl")
    whole = replay("r", read(path), RuleSet(), {"beta": 0.1}, "rloo")
    assert (whole.last_step, whole.points["reward.mean"], whole.start.trainer) == (60, [60, 1, 60], "rloo")
    assert whole.start.config["beta"] == 0.1
    assert whole.verdict is not None
    assert whole.verdict.final
    assert replay("r", read(path), RuleSet(), {}, "gold").start.trainer == "gkd", "a trainer that is named goes by its kin too"
    part = replay("r", read(path), RuleSet(), {}, None, until=20)
    assert (part.last_step, part.last_values["reward.mean"][0]) == (20, 20)
    assert part.monitor.coverage is None
