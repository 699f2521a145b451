"""What the record files of all ranks say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainvitals.readers import other_ranks, read
from trainvitals.readers.other_ranks import told


def write(folder: Path, rank: int, steps: int, *, end: str | None = "completed", world: int = 3, torn: bool = False) -> None:
    head: dict[str, Any] = {"schema": "trainvitals/1.0", "run": "r", "rank": rank}
    rows = [{**head, "seq": 0, "kind": "run_start", "trainer": "sft", "world_size": world, "config": {}}]
    rows += [{**head, "seq": step, "step": step, "kind": "signal", "event": "frame", "values": {"optim.loss": 1.0}} for step in range(1, steps + 1)]
    if end is not None:
        rows.append({**head, "seq": steps + 1, "step": steps, "kind": "run_end", "status": end})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "vitals").mkdir(exist_ok=True)
    (folder / "vitals" / f"rank{rank}.jsonl").write_text(text + ('{"schema": "trainvi' if torn else ""))


def test_a_killed_rank_is_named(tmp_path):
    write(tmp_path, 0, 20, end="failed")
    write(tmp_path, 1, 17, end=None, torn=True)
    write(tmp_path, 2, 20, end="killed")
    found = read(tmp_path).notes
    assert found == ["rank 1 stops at step 17 without a last word (others: step 20): it was killed (memory, node, scheduler), or it still hangs"]


def test_sound_ranks_and_single_processes_say_nothing(tmp_path):
    for rank, steps in enumerate((20, 19, 20)):  # one step apart is no difference: ranks end the last one at their own time
        write(tmp_path, rank, steps)
    assert read(tmp_path).notes == []
    assert told({0: {"kind": "signal", "step": 3}}, 1) == []


def test_a_rank_whose_records_are_elsewhere(tmp_path):
    write(tmp_path, 0, 20, world=12)
    assert read(tmp_path).notes == [
        "no records of ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more here: written on another disk, or the process died before it trained"
    ]


def test_a_rank_that_ended_early(tmp_path):
    write(tmp_path, 0, 20, world=2)
    write(tmp_path, 1, 12, world=2)
    assert read(tmp_path).notes == ["rank 1 ended early: at step 12, others at step 20"]


def test_a_run_that_still_goes_on_is_no_death(tmp_path):
    for rank in range(3):
        write(tmp_path, rank, 5 + rank, end=None)
    assert not any("last word" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("name", ["log.jsonl", "rank0.1.jsonl", "rankx.jsonl"])
def test_other_files_are_no_ranks(tmp_path, name):
    write(tmp_path, 1, 3)
    assert other_ranks.notes(str(tmp_path / "vitals" / name)) == []


def test_an_unreadable_neighbour_is_a_missing_one(tmp_path):
    write(tmp_path, 0, 3, world=2)
    (tmp_path / "vitals" / "rank1.jsonl").write_bytes(b"\x00\xff\n")
    assert read(tmp_path).notes == ["no records of rank 1 here: written on another disk, or the process died before it trained"]
