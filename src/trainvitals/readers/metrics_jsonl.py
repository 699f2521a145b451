"""JSONL of metrics: one object per row under the trainer's own names (a callback's dump, verl's `file` backend, LLaMA-Factory)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainvitals.names import Mapper
from trainvitals.readers.rows import Log, Recording, build, make_row
from trainvitals.readers.source import InputError

_CONFIG_KEYS = ("config", "training_args", "args", "run_start", "hparams")


def read(text: str, path: str, mapper: Mapper) -> Recording:
    """Read one metrics JSONL.

    Raises:
        InputError: No line is a JSON object, or the steps make no sense.
    """
    log = Log(path, [], run_id=run_id(path))
    bad: list[int] = []
    lines = text.splitlines()
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = decode_object(line)
        if record is None:
            bad.append(place)
            continue
        config = next((record[key] for key in _CONFIG_KEYS if isinstance(record.get(key), dict)), None)
        if config is not None and not any(isinstance(value, (int, float)) and mapper.is_known(str(key)) for key, value in record.items()):
            log.config.update(config)
            continue
        log.rows.append(make_row(record, place))
    _explain(log, bad, len(lines), torn=bool(lines) and lines[-1].lstrip().startswith("{") and not text.endswith("\n"))
    return build(log, mapper, format="jsonl")


def _explain(log: Log, bad: list[int], total: int, *, torn: bool) -> None:
    """Tell of lines that are no JSON; a torn last one is what a running or killed writer leaves."""
    if not log.rows and bad == [total] and torn:
        raise InputError("the file ends inside its first line", log.path, total, "it was cut off, or is still being written: wait for a whole line, or copy it again")
    if not log.rows:
        raise InputError("no JSON object in any line", log.path, bad[0] if bad else None, "expected one JSON object per line")
    if bad and bad[-1] == total:
        bad.pop()
        log.notes.append(f"line {total}: torn last line left out")
    if len(bad) > len(log.rows):
        raise InputError("most lines are no JSON objects", log.path, bad[0], "expected one JSON object per line")
    for place in bad[:5]:
        log.notes.append(f"line {place}: no JSON object, left out")
    if len(bad) > 5:
        log.notes.append(f"{len(bad) - 5} more lines that are no JSON object, left out")


def decode_object(line: str) -> dict[str, Any] | None:
    """One line as an object; bare NaN and Infinity are read as such; None when it is no object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def run_id(path: str) -> str:
    """A name for the run: the file's, or its folder's where the file name says nothing."""
    if path == "-":
        return "stdin"
    name = Path(path).name.removesuffix(".gz").removesuffix(".xz")
    stem = name.partition(".")[0] if "." in name[1:] and name.count(".") == 1 else name.rpartition(".")[0] or name
    return Path(path).resolve().parent.name or stem if stem in ("trainer_state", "trainer_log", "metrics", "log", "logs") else stem
