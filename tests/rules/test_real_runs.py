"""The bars of the rules on real logs: every collapse is named, no healthy run gets an error."""

from __future__ import annotations

from functools import cache

import pytest
from real_runs import FOLDER, Judged, judge, labels

pytestmark = pytest.mark.skipif(
    not (FOLDER / "labels.json").exists(), reason=f"the public logs in {FOLDER} are not part of the repository"
)

RUNS = labels() if (FOLDER / "labels.json").exists() else {}
NAMES_A_COLLAPSE = {
    "reward-collapse",
    "policy-breakdown",
    "never-terminates",
    "entropy-explosion",
    "advantage-collapse",
    "sampler-mismatch",
}


@cache
def judged(name: str) -> Judged:
    return judge(name, RUNS[name])


def names(verdict: str) -> list[str]:
    return [name for name, label in RUNS.items() if str(label["verdict"]).startswith(verdict)]


@pytest.mark.parametrize("name", names("collapsed"))
def test_a_collapsed_run_is_named(name: str) -> None:
    assert judged(name).ids("error", "warning") & NAMES_A_COLLAPSE


@pytest.mark.parametrize("name", names("collapsed"))
def test_a_collapsed_run_gets_an_error_within_sixty_updates_of_its_onset(name: str) -> None:
    run = judged(name)
    steps = [step for rule in ("reward-collapse", "policy-breakdown") for step in run.fired.get("error", {}).get(rule, [])]
    assert steps
    assert min(steps) <= (run.onset or 0) + 60


@pytest.mark.parametrize("name", names("healthy"))
def test_a_healthy_run_gets_no_error(name: str) -> None:
    assert judged(name).ids("error") == set()


@pytest.mark.parametrize("name", names("healthy"))
def test_flat_groups_at_a_high_reward_are_no_collapse(name: str) -> None:
    assert "advantage-collapse" not in judged(name).ids("warning")
