"""Several runs in one file, packed or not, and folders of files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from trainvitals.items import Frame, RunEnd, RunStart
from trainvitals.readers import InputError, logs_in, read, read_runs


def stream(run: str, steps: int = 3, *, resumed_from: int | None = None, end: bool = True) -> str:
    """Records of one attempt of one run."""
    head: dict[str, Any] = {"schema": "trainvitals/1.0", "run": run}
    rows = [{**head, "kind": "run_start", "trainer": "grpo", "framework": "trl", "version": "0", "resumed_from": resumed_from}]
    first = (resumed_from or 0) + 1
    rows += [{**head, "kind": "signal", "step": step, "values": {"reward.mean": step / 10}} for step in range(first, first + steps)]
    if end:
        rows.append({**head, "kind": "run_end", "step": first + steps - 1, "status": "completed"})
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def names(path: Path) -> list[tuple[str, int]]:
    """Run id and number of frames of every run."""
    found = []
    for recording in read_runs(path):
        items = list(recording.items)
        start = items[0]
        assert isinstance(start, RunStart)
        found.append((start.run_id, sum(isinstance(item, Frame) for item in items)))
    return found


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_every_run_of_a_file_is_read(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "many.jsonl"
    path.write_bytes(pack((stream("a-s0", 3) + stream("a-s1", 5) + stream("b-s0", 2)).encode()))
    assert names(path) == [("a-s0", 3), ("a-s1", 5), ("b-s0", 2)]


def test_a_file_of_one_run_is_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl.xz"
    path.write_bytes(lzma.compress(stream("a-s0", 3).encode()))
    items = list(read(path).items)
    assert [item.step for item in items if isinstance(item, Frame)] == [1, 2, 3]
    assert names(path) == [("a-s0", 3)]


def test_one_run_is_expected_and_several_are_there(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl.xz"
    path.write_bytes(lzma.compress("".join(stream(f"a-s{seed}") for seed in range(4)).encode()))
    with pytest.raises(InputError, match=r"holds 4 runs \(a-s0, a-s1, a-s2, \.\.\.\), one is expected") as caught:
        read(path)
    assert "rules backtest --runs" in caught.value.hint
    assert "xz -dc" in caught.value.hint


def test_attempts_of_a_run_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "resumed.jsonl"
    # The second attempt under the same name, the third under another one that says where it goes on.
    path.write_text(stream("a", 3, end=False) + stream("a", 3) + stream("a-again", 2, resumed_from=3))
    assert names(path) == [("a", 8)]
    assert sum(isinstance(item, RunEnd) for item in read(path).items) == 2


def test_what_a_run_was_read_from_has_a_digest_of_its_own(tmp_path: Path) -> None:
    path, alone = tmp_path / "many.jsonl", tmp_path / "alone.jsonl.xz"
    path.write_text(stream("a-s0") + stream("a-s1"))
    alone.write_bytes(lzma.compress(stream("a-s1").encode()))
    first, second = (recording.digest for recording in read_runs(path))
    assert first != second
    assert [recording.digest for recording in read_runs(alone)] == [second]


def test_a_torn_xz_keeps_what_came_before_and_a_broken_one_is_told(tmp_path: Path) -> None:
    rows = stream("a", 2000)
    packed = lzma.compress(rows.encode())
    torn = tmp_path / "torn.jsonl.xz"
    torn.write_bytes(packed[: len(packed) // 2])
    assert 100 < sum(isinstance(item, Frame) for item in read(torn).items) < 2000
    torn.write_bytes(packed[:40] + bytes(40) + packed[80:])
    with pytest.raises(InputError, match="damaged xz file"):
        read(torn)
    torn.write_bytes(lzma.compress(stream("a", 2, end=False).encode()) + bytes(4) + lzma.compress(stream("a", 1, resumed_from=2).encode()))
    assert sum(isinstance(item, Frame) for item in read(torn).items) == 3


def test_folders_are_searched(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.xz", "deep/run/vitals/rank0.jsonl", "deep/run/vitals/rank1.jsonl", "deep/c.jsonl.gz", "labels.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [Path(name).relative_to(tmp_path).as_posix() for name in logs_in(tmp_path)]
    assert found == ["a.jsonl.xz", "b.jsonl", "deep/c.jsonl.gz", "deep/run"]
    assert logs_in(tmp_path / "b.jsonl") == [str(tmp_path / "b.jsonl")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no log in this folder or below"):
        logs_in(tmp_path / "empty")
