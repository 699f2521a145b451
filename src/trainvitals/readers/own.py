"""Our own JSONL back to the exact items of the recorded run: the same findings come out of the same rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from trainvitals.items import Applied, Boundary, BoundaryKind, Frame, Item, RunEnd, RunStart, Tick
from trainvitals.names import Mapper
from trainvitals.readers.metrics_jsonl import decode_object, run_id
from trainvitals.readers.rows import Recording, as_step, as_time
from trainvitals.readers.source import InputError

_BOUNDARIES = frozenset(get_args(BoundaryKind))
_STATUSES = frozenset({"completed", "interrupted", "failed", "killed"})
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether one decoded line is a record of ours, of any version."""
    return str(record.get("schema", "")).startswith("trainvitals/") and "kind" in record


def read(text: str, path: str, mapper: Mapper) -> Recording:
    """Replay one stream. A resumed run (several ``run_start``) gives a `Boundary` ``resume`` at each seam.

    Raises:
        InputError: A record is malformed or of a newer major version, or nothing was recorded.
    """
    notes: list[str] = []
    items: list[Item] = []
    end: RunEnd | None = None
    records = _records(text, path, notes)
    for place, (line, record) in enumerate(records):
        try:
            kind = record.get("kind")
            if kind == "run_start":
                if end is not None:
                    items.append(end)  # an attempt that ended before the run was resumed
                _run_start(record, items, notes, seam_is_told=_tells_its_seam(records, place))
                end = None
            elif kind == "signal":
                item = _signal(record)
                if item is not None:
                    items.append(item)
            elif kind == "run_end":
                end = _run_end(record)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"malformed record: {error!r}", path, line, "the file was changed by hand, or is no stream of trainvitals") from None
    if not items:
        raise InputError("no recorded events", path, hint="was the run recorded with record_signals=False?")
    if not isinstance(items[0], RunStart):
        notes.append("no run_start record at the beginning: trainer and configuration are unknown")
        run = next((str(record["run"]) for _, record in records if record.get("run")), run_id(path))
        items.insert(0, RunStart(run))
    if end is None:
        last = max((item.step for item in items if not isinstance(item, RunStart)), default=0)
        notes.append("no run_end record: the run was killed, or still goes on")
        end = RunEnd(last, "killed", detail="no run_end record")
    items.append(end)
    start = items[0]
    if isinstance(start, RunStart):
        mapper.trainer, mapper.framework = start.trainer, start.framework
    return Recording(iter(items), "own", mapper, notes, path)


def _records(text: str, path: str, notes: list[str]) -> list[tuple[int, dict[str, Any]]]:
    records: list[tuple[int, dict[str, Any]]] = []
    # Only "\n" ends a record: strings may hold the other separators that splitlines() knows.
    lines = text.rstrip().split("\n")
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = decode_object(line)
        if record is None:
            notes.append(f"line {place}: torn last line left out" if place == len(lines) else f"line {place}: torn line left out")
            continue
        schema = str(record.get("schema", ""))
        if not schema.startswith("trainvitals/1."):
            if schema.startswith("trainvitals/"):
                raise InputError(f"record of schema {schema[:40]!r}", path, place, "written by a newer trainvitals: update this one")
            notes.append(f"line {place}: no record of trainvitals, left out")
            continue
        records.append((place, record))
    return records


def _tells_its_seam(records: list[tuple[int, dict[str, Any]]], place: int) -> bool:
    """Whether a ``resume`` boundary follows the ``run_start`` at `place` before the first metrics."""
    for _, record in records[place + 1 :]:
        if record.get("kind") != "signal" or record.get("event", "frame") != "boundary":
            return False
        if record.get("what") == "resume":
            return True
    return False


def _run_start(record: Mapping[str, Any], items: list[Item], notes: list[str], *, seam_is_told: bool) -> None:
    emits, at = record.get("emits"), record.get("resumed_from")
    start = RunStart(
        run_id=str(record.get("run", "")), trainer=str(record.get("trainer", "unknown")), framework=str(record.get("framework", "unknown")),
        framework_version=record.get("framework_version"), config=dict(record.get("config") or {}), total_steps=as_step(record.get("total_steps")),
        world_size=int(record.get("world_size", 1)), rank=int(record.get("rank", 0)), time=as_time(record.get("ts")),
        emits=None if emits is None else frozenset(map(str, emits)), resumed_from=as_step(at), carried=bool(record.get("carried", False)),
    )  # fmt: skip
    if not any(isinstance(item, RunStart) for item in items):
        items.insert(0, start)
        return
    items.append(start)
    step = int(at) if at is not None else max((item.step for item in items if not isinstance(item, RunStart)), default=0)
    notes.append(f"the run was resumed at step {step}")
    if seam_is_told:
        return
    items.append(Boundary(step, "resume", as_time(record.get("ts"))))


def _number(value: Any) -> float:
    if isinstance(value, Mapping):
        return _NONFINITE[value["nonfinite"]]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{value!r} is no number"
        raise TypeError(msg)
    return value


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _revive(value: Any) -> Any:
    """Non-finite numbers inside a detail."""
    if isinstance(value, dict):
        return _NONFINITE.get(value["nonfinite"]) if set(value) == {"value", "nonfinite"} else {k: _revive(v) for k, v in value.items()}
    return value


def _signal(record: Mapping[str, Any]) -> Item | None:
    step = int(record["step"])
    time = _optional(record.get("time"))
    event = record.get("event", "frame")
    if event == "frame":
        phase = record.get("phase", "train")
        if phase not in ("train", "eval"):
            msg = f"phase {phase!r}"
            raise ValueError(msg)
        values = {str(key): _number(value) for key, value in record.get("values", {}).items()}
        return Frame(step, values, bool(record.get("closes", True)), phase, time, _optional(record.get("tokens")), _optional(record.get("epoch")))
    if event == "boundary":
        what = record["what"]
        if what not in _BOUNDARIES:
            return None  # a kind that a later minor version added
        return Boundary(step, what, time, _revive(record.get("detail") or {}))
    if event == "tick":
        return Tick(step, 0.0 if time is None else time)
    if event == "applied":
        detail = _revive(record.get("detail") or {})
        return Applied(step, str(detail["parameter"]), detail.get("old"), detail.get("new"), time)
    return None


def _run_end(record: Mapping[str, Any]) -> RunEnd:
    status = record.get("status", "completed")
    if status not in _STATUSES:
        msg = f"status {status!r}"
        raise ValueError(msg)
    return RunEnd(int(record.get("step") or 0), status, as_time(record.get("ts")), record.get("detail"))
