"""Post-mortem over the records of all ranks: who stopped first, who left no word, whose records are missing.

A killed process cannot say so; its file just ends. Only the first and the last record of each file are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"rank(\d+)\.jsonl")
_TAIL = 1 << 16  # a record is far shorter; a torn last line is passed over


def notes(path: str) -> list[str]:
    """What the files beside ``.../rank<N>.jsonl`` say about the ranks; empty for a single process or another file name.

    Args:
        path: The file that is read, of any rank.
    """
    here = Path(path)
    if not _NAME.fullmatch(here.name):
        return []
    ends: dict[int, Mapping[str, Any]] = {}
    world = 1
    for file in here.parent.glob("rank*.jsonl"):
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue  # rank0.1.jsonl: an earlier run
        first, last = _edges(file)
        world = max(world, int(first.get("world_size") or 1))
        if last:
            ends[int(match[1])] = last
    return told(ends, world)


def told(ends: Mapping[int, Mapping[str, Any]], world: int) -> list[str]:
    """The same from the last record of each rank and the number of ranks that the run had."""
    if world < 2 or not ends:
        return []
    found = []
    missing = [rank for rank in range(world) if rank not in ends]
    if missing:
        found.append(f"no records of {_ranks(missing)} here: written on another disk, or the process died before it trained")
    steps = {rank: int(last.get("step") or 0) for rank, last in ends.items()}
    furthest = max(steps.values())
    dead = [rank for rank, last in ends.items() if last.get("kind") != "run_end"]
    if dead and len(dead) < len(ends):
        for rank in sorted(dead):
            found.append(
                f"rank {rank} stops at step {steps[rank]} without a last word (others: step {furthest}): it was killed (memory, node, scheduler), or it still hangs"
            )
    behind = [rank for rank, step in steps.items() if step < furthest - 1 and rank not in dead]
    if behind:
        found.append(f"{_ranks(sorted(behind))} ended early: at step {min(steps[rank] for rank in behind)}, others at step {furthest}")
    return found


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _edges(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """First and last whole record; empty where there is none."""
    try:
        with file.open("rb") as stream:
            first = _decode(stream.readline(1 << 20))
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read().split(b"\n")
    except OSError:
        return {}, {}
    return first, next((record for line in reversed(lines) if (record := _decode(line))), {})


def _decode(line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and "kind" in record else {}
