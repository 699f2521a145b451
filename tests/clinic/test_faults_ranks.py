"""Faults of one rank in real DDP training: each is found under its name, at its rank, and nowhere else.

Two launches, each a chain of trainings; the first training is the healthy twin of them all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suite" / "ranks"))
from launch import fired, launch, records, series

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.trl]

OF_THE_MACHINE = {"throughput-drop", "training-stalled", "slow-rank"}  # as in conftest.py; a busy core makes its rank slow
HARMLESS = OF_THE_MACHINE | {"prompt-learned"}  # an info, and true: these chats are trained on as a whole, as is TRL's default
HANG_AT, NAN_AT, DRIFT_AT = 8, 12, 8  # as in scenarios.py


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder with the records of each scenario, and what was printed."""
    folder = tmp_path_factory.mktemp("four")
    done = launch(folder, 4, "ddp", "healthy", "slow", "nan")
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same for faults after which a job hangs or dies."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, 2, "ddp", "endless", "drift", "hang", "run_out")
    assert done.stdout.count("done hang") == 2, done.stdout[-4000:]
    return folder, done.stdout


def blamed(folder: Path) -> dict[tuple[str, str | None], int]:
    """Rules that fired about a rank."""
    machine = OF_THE_MACHINE if folder.name != "slow" else set()
    return {key: step for key, step in fired(folder).items() if key[1] is not None and key[0] not in machine}


def line(printed: str, rule: str) -> str:
    return next(line for line in printed.splitlines() if f"({rule} rank=" in line)


def test_healthy_ranks_are_not_named_and_every_rank_records(four_ranks):
    folder, _ = four_ranks
    assert {rule for rule, _ in fired(folder / "healthy")} <= HARMLESS
    for rank in range(4):
        last: dict[str, Any] = records(folder / "healthy", rank)[-1]
        assert (last["kind"], last["status"], last["rank"]) == ("run_end", "completed", rank)


def test_a_slow_rank(four_ranks):
    folder, printed = four_ranks
    assert list(blamed(folder / "slow")) == [("slow-rank", "2")]
    assert line(printed, "slow-rank").startswith("[TRL] WARNING: All ranks wait for this one during ")
    slow, other = (series(folder / "slow", 0, f"time.rank_own_seconds{{rank={rank}}}") for rank in (2, 1))
    assert sorted(slow)[len(slow) // 2] > 0.14  # it sleeps 0.15 s before each batch
    assert sorted(other)[len(other) // 2] < 0.1


def test_a_rank_with_a_nan(four_ranks):
    folder, printed = four_ranks
    found = blamed(folder / "nan")
    assert list(found) == [("rank-nonfinite", "3")]
    assert NAN_AT <= found["rank-nonfinite", "3"] <= NAN_AT + 6
    assert line(printed, "rank-nonfinite").startswith("[TRL] ERROR: The loss of this rank is NaN or infinite; other ranks are finite")


def test_a_fault_in_the_data_of_another_rank(two_ranks):
    """Rank 0's own rows are sound: only what the ranks make of a step together tells it."""
    folder, printed = two_ranks
    assert set(series(folder / "endless", 1, "token.end_label_fraction")) == {0.0}
    alone, *together = series(folder / "endless", 0, "token.end_label_fraction")
    assert alone == 1.0  # the first update, of which nobody has heard yet
    assert together[-1] == 0.5
    assert ("end-token-missing", None) in fired(folder / "endless")
    assert "of the training sequences end their last answer with an end token that is learned" in printed


def test_a_rank_whose_weights_drift(two_ranks):
    folder, printed = two_ranks
    found = blamed(folder / "drift")
    assert list(found) == [("rank-drift", "1")]
    assert DRIFT_AT <= found["rank-drift", "1"] <= DRIFT_AT + 20  # by the clock: steps of milliseconds, an exchange every 50 ms
    assert "Replicas must be equal" in line(printed, "rank-drift")


def test_a_rank_that_hangs_is_named_while_it_hangs(two_ranks):
    folder, _ = two_ranks
    found = blamed(folder / "hang")
    assert list(found) == [("rank-missing", "1")]
    assert found["rank-missing", "1"] < HANG_AT  # before any further step could end
    states = [record["state"] for record in records(folder / "hang", 0) if record["kind"] == "finding" and record["rule"]["id"] == "rank-missing"]
    assert states == ["firing", "resolved"]


def test_a_rank_whose_data_ran_out_is_named_before_the_job_dies(two_ranks):
    folder, printed = two_ranks
    assert list(blamed(folder / "run_out")) == [("rank-data-exhausted", "1")]
    assert "other ranks have a batch and wait for it" in line(printed, "rank-data-exhausted")
    assert "vitals_verdict: stalled" in printed
    assert printed.index("(rank-data-exhausted rank=1") < printed.index("Connection closed by peer")
    for rank in range(2):
        assert records(folder / "run_out", rank)[-1]["kind"] == "run_end"
