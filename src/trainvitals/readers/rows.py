"""Rows of any plain log become items: steps, resumes, evaluations, the summary row, nulls, the logging interval."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from trainvitals.events import split_label
from trainvitals.items import Boundary, Frame, Item, RunEnd, RunStart
from trainvitals.names import (
    BOOKKEEPING,
    KIN,
    STEP_KEYS,
    TIME_KEYS,
    Mapper,
    config_signals,
    is_summary,
    leftover,
    number,
    planned_steps,
    safe_config,
)
from trainvitals.readers.source import InputError

Status = Literal["completed", "interrupted", "failed", "killed"]
_MAX_STEP = 10**15  # beyond that a "step" is a time stamp or an accident
_MAX_JUMPS = 10


@dataclass(slots=True)
class Row:
    """One logged row: raw metrics, and where it stood."""

    metrics: dict[str, Any]
    line: int | None = None
    step: int | None = None
    time: float | None = None


@dataclass(slots=True)
class Log:
    """A plain log as one reader took it apart."""

    path: str
    rows: list[Row]
    run_id: str
    config: dict[str, Any] = field(default_factory=dict)
    total_steps: int | None = None
    status: Status | None = None
    detail: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Recording:
    """One run, read back.

    Attributes:
        items: `RunStart` first, `RunEnd` last; can be walked once.
        format: ``own``, ``trainer_state``, ``jsonl`` or ``console``.
        mapper: Names applied and unknown; for our own records, which carry signals already, an unused one.
        notes: What was odd about the input and how it was read.
        path: File that was read.
        digest: sha256 of the text it was read from; only where several runs were asked for.
    """

    items: Iterator[Item]
    format: str
    mapper: Mapper
    notes: list[str]
    path: str = ""
    digest: str = ""


def as_step(value: Any) -> int | None:
    """A step number from whatever a logger wrote; None when it is none."""
    result = number(value) if value is not None and not isinstance(value, bool) else None
    if result is None or not math.isfinite(result) or not 0 <= result < _MAX_STEP:
        return None
    return int(result)


def as_time(value: Any) -> float | None:
    """Unix seconds from seconds, milliseconds or ISO 8601; None when it is no time (a duration, for example)."""
    if isinstance(value, str):
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
        try:
            return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
        except (OverflowError, OSError, ValueError):
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e8 < value < 1e14:
        return None
    return value / 1000 if value > 1e11 else float(value)


def make_row(record: Mapping[str, Any], line: int | None) -> Row:
    """A row from one decoded object: nested ``data``/``metrics`` are lifted, step and time are found."""
    metrics = dict(record)
    for nested in ("data", "metrics", "logs"):
        inner = metrics.get(nested)
        if isinstance(inner, dict):
            del metrics[nested]
            metrics.update({str(key): value for key, value in inner.items()})
    step = next((found for key in STEP_KEYS if (found := as_step(metrics.get(key))) is not None), None)
    time = next((moment for key in TIME_KEYS if (moment := as_time(metrics.get(key))) is not None), None)
    return Row(metrics, line, step, time)


def build(log: Log, mapper: Mapper, *, format: str) -> Recording:
    """Items of a plain log.

    Raises:
        InputError: There are no rows, or their steps make no sense.
    """
    if not log.rows:
        raise InputError("no logged rows", log.path, hint="a row is an object with metric names and numbers")
    mapper.learn(row.metrics for row in log.rows)
    _nulls(log)
    _steps(log)
    resumes = _order(log)
    total = log.total_steps or planned_steps(log.config) or _declared_total(log.rows)
    groups = _groups(log.rows)
    frames = _frames(groups, mapper)
    every = _interval(frames)
    settings = config_signals(log.config)
    if every is not None:
        settings["run.logging_every"] = every
    first = next((frame for frame in frames if frame.phase == "train"), None)
    if first is not None and any(frame.values for frame in frames):
        first.values.update(settings)
    emits = frozenset(split_label(key)[0] for key in set[str]().union(*(frame.values for frame in frames)))
    if not emits:
        log.notes.append("no known metric: nothing in this log can be evaluated")
    start = RunStart(
        run_id=log.run_id, trainer=KIN.get(mapper.trainer, mapper.trainer), framework=mapper.framework, config=safe_config(log.config), total_steps=total,
        time=log.rows[0].time, emits=emits,
    )  # fmt: skip
    last = max((row.step or 0 for row in log.rows), default=0)
    items: list[Item] = [start]
    for frame in frames:
        while resumes and frame.step >= resumes[0]:
            items.append(Boundary(resumes.pop(0), "resume", frame.time))
        items.append(frame)
    status: Status = log.status or ("interrupted" if total and last < total and not any(is_summary(row.metrics) for row in log.rows) else "completed")
    items.append(RunEnd(last, status, log.rows[-1].time, log.detail))
    return Recording(iter(items), format, mapper, log.notes, log.path)


def _declared_total(rows: Sequence[Row]) -> int | None:
    """Planned updates where rows carry them (LLaMA-Factory)."""
    return next((found for key in ("total_steps", "max_steps") if (found := as_step(rows[0].metrics.get(key)))), None)


def is_eval(row: Row) -> bool:
    """Whether every metric that has a value carries an evaluation prefix."""
    found = False
    for name, value in row.metrics.items():
        if value is None or name in BOOKKEEPING or name in ("epoch", "train/epoch"):
            continue
        if not name.removeprefix("train/").startswith(("eval_", "eval/")):
            return False  # the first metric of most rows
        found = True
    return found


def _nulls(log: Log) -> None:
    """Take out nulls that mean "not logged here" and leave those that mean "not finite".

    Loggers that must write strict JSON (orjson, TRL's own averaging) turn NaN into null: a metric that had numbers and then
    has null was not finite. A table export (pandas) writes null for every empty cell: there nulls mean nothing.
    """
    columns = tuple(log.rows[0].metrics)
    table = len(log.rows) > 1 and all(tuple(row.metrics) == columns for row in log.rows)
    if table and any(is_eval(row) or is_summary({k: v for k, v in row.metrics.items() if v is not None}) for row in log.rows):
        log.notes.append("every row has every column: null cells read as not logged")
        numeric: set[str] | None = None
    else:
        numeric = set()
    for row in log.rows:
        if numeric is None or is_eval(row):
            row.metrics = {name: value for name, value in row.metrics.items() if value is not None}
            continue
        empty = [name for name, value in row.metrics.items() if value is None]
        numeric.update(name for name in row.metrics if name not in empty)
        for name in empty:
            if name not in numeric:
                del row.metrics[name]


def _steps(log: Log) -> None:
    """Give a step to rows that have none: the row before, or the order when no row has one."""
    known = sum(row.step is not None for row in log.rows)
    if known == len(log.rows):
        return
    if known:
        log.notes.append(f"{len(log.rows) - known} rows without a step: read as part of the step before them")
        last = 0
        for row in log.rows:
            last = row.step = last if row.step is None else row.step
        return
    every = config_signals(log.config).get("run.logging_every", 1.0)
    step = 0
    for row in log.rows:
        if not is_eval(row) and (not is_summary(row.metrics) or leftover(row.metrics)):
            step += int(every)
        row.step = step
    log.notes.append(f"no row has a step: inferred from the order, {int(every)} update{'s' if every > 1 else ''} per row")


def _order(log: Log) -> list[int]:
    """Drop rows that a resumed run wrote again; steps at which it resumed.

    Raises:
        InputError: Steps jump back so often that this cannot be one run.
    """
    kept: list[Row] = []
    resumes: list[int] = []
    jumps = dropped = 0
    for row in log.rows:
        step = row.step or 0
        if kept and step < (kept[-1].step or 0):
            jumps += 1
            before = len(kept)
            while kept and (kept[-1].step or 0) >= step:
                kept.pop()
            dropped += before - len(kept)
            resumes = [at for at in resumes if at < step]
            if kept:
                resumes.append(step)
        kept.append(row)
        if jumps > _MAX_JUMPS and jumps * 5 > len(kept):
            raise InputError("steps are not in order", log.path, row.line, "several runs in one file? give one run per file")
    if jumps:
        what = "the run was resumed" if resumes else "an earlier run stands before it in the file"
        log.notes.append(f"steps go back {jumps} time{'s' if jumps > 1 else ''} ({what}): {dropped} superseded rows left out")
    log.rows[:] = kept
    return resumes


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one step together; several partial rows of one step (wandb style) are joined."""
    groups: list[list[Row]] = []
    for row in rows:
        if is_summary(row.metrics) and not (leftover(row.metrics) and (not groups or groups[-1][0].step != row.step)):
            continue
        if not groups or groups[-1][0].step != row.step:
            groups.append([row])
            continue
        group = groups[-1]
        twin = next((other for other in group if is_eval(other) == is_eval(row)), None)
        if twin is None:
            group.append(row)
        else:
            twin.metrics.update(row.metrics)
            twin.time = row.time or twin.time
    return groups


def _frames(groups: Sequence[Sequence[Row]], mapper: Mapper) -> list[Frame]:
    """Frames of every step: evaluations first, so that the training row closes the update with all of it known."""
    frames = []
    for group in groups:
        ordered = sorted(group, key=lambda row: not is_eval(row))
        for place, row in enumerate(ordered):
            frames.append(mapper.frame(row.metrics, step=row.step or 0, time=row.time, closes=place == len(ordered) - 1))
    return frames


def _interval(frames: Sequence[Frame]) -> float | None:
    """Updates per training row: the most frequent distance of steps; None with fewer than two rows."""
    steps = [frame.step for frame in frames if frame.phase == "train" and frame.values]
    gaps = Counter(after - before for before, after in pairwise(steps) if after > before)
    return float(gaps.most_common(1)[0][0]) if gaps else None
