"""Evaluating a recording, exactly as it was or would have been live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainvitals.findings import Record
from trainvitals.items import Boundary, Frame, Item, RunEnd, RunStart
from trainvitals.names import KIN

if TYPE_CHECKING:
    from trainvitals.findings import CoverageRecord, Finding, Verdict
    from trainvitals.monitor import Monitor
    from trainvitals.readers import Recording
    from trainvitals.rulelang.loader import RuleSet


@dataclass
class Replayed:
    """One evaluated log.

    Attributes:
        path: As the user named it.
        start: The newest `RunStart`, with the user's settings in it.
        records: What the monitor said, in order.
        points: Series key to number of samples, first and last step.
        last_values: Series key to step and value of its newest sample.
    """

    path: str
    recording: Recording
    monitor: Monitor
    start: RunStart = field(default_factory=lambda: RunStart(run_id=""))
    records: list[Any] = field(default_factory=list)
    points: dict[str, list[int]] = field(default_factory=dict)
    last_values: dict[str, tuple[int, float]] = field(default_factory=dict)

    def hear(self, item: Any) -> None:
        """Subscriber of the bus: keeps the records."""
        if isinstance(item, Record):
            self.records.append(item)

    def note(self, frame: Frame) -> None:
        """Count the samples of a frame."""
        for key, value in frame.values.items():
            self.last_values[key] = (frame.step, value)
            seen = self.points.setdefault(key, [0, frame.step, frame.step])
            seen[0] += 1
            seen[2] = frame.step

    @property
    def findings(self) -> list[Finding]:
        """Transitions in order."""
        return [record for record in self.records if record.kind == "finding"]

    @property
    def verdict(self) -> Verdict | None:
        """The last word."""
        return self.monitor.verdict

    @property
    def coverage(self) -> CoverageRecord:
        """What was evaluated."""
        assert self.monitor.coverage is not None
        return self.monitor.coverage

    @property
    def last_step(self) -> int:
        """Last step of the log."""
        return self.monitor.step


class _Checkpoints:
    """The rules' state as the live run put it beside those checkpoints from which it was resumed later."""

    def __init__(self, monitor: Monitor, items: list[Item]) -> None:
        self._engine = monitor.engine
        self._wanted = {item.resumed_from for item in items if isinstance(item, RunStart) and item.carried}
        self._states: dict[int | None, str] = {}

    def save(self, item: Boundary) -> None:
        if item.what == "save_end" and item.step in self._wanted:
            self._states[item.step] = json.dumps(self._engine.state_dict())

    def load(self, item: RunStart) -> None:
        if item.carried and item.resumed_from in self._states:
            self._engine.load_state_dict(json.loads(self._states[item.resumed_from]))


def replay(
    path: str, recording: Recording, ruleset: RuleSet, config: Mapping[str, Any], trainer: str | None, until: int | None = None
) -> Replayed:
    """Evaluate a recording, exactly as it was or would have been live.

    Args:
        path: As the user named it.
        recording: From `common.read_log`; its items are used up.
        ruleset: Rules.
        config: Configuration values that override the log's.
        trainer: Trainer that overrides the log's.
        until: Stop after this step, without the end of the run; None for all.
    """
    from trainvitals.monitor import Monitor

    monitor = Monitor(rules=ruleset, console=False, fail_soft=False)
    monitor.unknown_metrics = recording.mapper.unknown
    replayed = Replayed(path, recording, monitor)
    monitor.bus.subscribe("collect", replayed.hear)
    items = list(recording.items)
    checkpoints = _Checkpoints(monitor, items)
    for item in items:
        if isinstance(item, RunEnd) and item is not items[-1]:
            monitor.end_attempt(item)
            continue
        if until is not None and _is_beyond(item, until):
            break
        if isinstance(item, Boundary):
            checkpoints.save(item)
        elif isinstance(item, Frame):
            replayed.note(item)
        elif isinstance(item, RunStart):
            checkpoints.load(item)
            item = replayed.start = replace(item, config={**item.config, **config}, trainer=KIN.get(trainer, trainer) if trainer else item.trainer)
        monitor.publish(item)
    if until is None:
        monitor.close()
    return replayed


def _is_beyond(item: Item, until: int) -> bool:
    return isinstance(item, RunEnd) or (isinstance(item, Frame) and item.step > until)
