"""Many runs: files of ours that hold one run after another, and folders that hold many files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trainvitals.readers import trainer_state
from trainvitals.readers.metrics_jsonl import decode_object
from trainvitals.readers.source import InputError

PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.jsonl.xz", "*.log")
"""Names of logs in a folder that is no run folder itself."""


def runs_of(text: str) -> list[tuple[str, str]]:
    """Name and lines of every run in a text of our records, in order.

    A run begins at a ``run_start`` of another ``run`` that does not say that it goes on from a checkpoint. Several starts of
    one run are its attempts and stay together. What stands before the first start belongs to the first run.
    """
    cuts: list[tuple[str, int]] = []
    place = 0
    for line in text.split("\n"):
        record = decode_object(line) if '"run_start"' in line else None
        if record is not None and record.get("kind") == "run_start":
            name = str(record.get("run", ""))
            if not cuts or (name != cuts[-1][0] and record.get("resumed_from") is None):
                cuts.append((name, place if cuts else 0))
        place += len(line) + 1
    if len(cuts) < 2:
        return [(cuts[0][0] if cuts else "", text)]
    ends = [start for _, start in cuts[1:]] + [len(text)]
    return [(name, text[start:end]) for (name, start), end in zip(cuts, ends, strict=True)]


def only_run(text: str, path: str) -> str:
    """The text itself.

    Raises:
        InputError: It holds several runs.
    """
    runs = runs_of(text)
    if len(runs) > 1:
        names = ", ".join(name for name, _ in runs[:3]) + (", ..." if len(runs) > 3 else "")
        unpack = "xz -dc" if path.endswith(".xz") else "gzip -dc" if path.endswith(".gz") else "cat"
        hint = f"judge all of them with: trainvitals rules backtest --runs {path}; one of them with: {unpack} {path} | grep '\"run\":\"{runs[0][0]}\"' | trainvitals check -"
        raise InputError(f"holds {len(runs)} runs ({names}), one is expected", path, hint=hint)
    return text


def logs_in(path: str | Path) -> list[str]:
    """Logs to read at a path: a file itself, the one log of a run folder, or all logs below a folder, sorted.

    A run folder holds ``vitals/rank0.jsonl``, ``rank0.jsonl`` or ``trainer_state.json`` (its own or a checkpoint's); `read` finds
    the best log in it, so it is one entry.

    Raises:
        InputError: There is nothing.
    """
    name = os.fspath(path)
    if not Path(name).is_dir():
        return [name]
    found = list(_walk(Path(name)))
    if not found:
        raise InputError("no log in this folder or below", name, hint=f"looked for run folders and {', '.join(PATTERNS)}")
    return found


def _walk(folder: Path) -> Iterator[str]:
    try:
        if any((folder / name).is_file() for name in ("vitals/rank0.jsonl", "rank0.jsonl")) or trainer_state.newest(folder) is not None:
            yield str(folder)
            return
        for file in sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}):
            yield str(file)
        below = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", str(folder)) from None
    for entry in below:
        yield from _walk(entry)
