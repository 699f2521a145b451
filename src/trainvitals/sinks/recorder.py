"""The recorder: turns everything on the bus into the numbered record stream of one process.

It numbers (`seq`) in the order of the bus, whether a file is written or not, so that a replay of a recorded run gives every
finding the number it had. Signal records are built as plain dicts: no pydantic on the per-step path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trainvitals.findings import SCHEMA, ActionRecord, Finding, Record, RunEndRecord, RunStartRecord
from trainvitals.items import Applied, Boundary, Frame, RunStart, Tick
from trainvitals.sinks.encode import dumps, encode_record, is_secret, plain, rfc3339, safe_scalars

Write = Callable[..., None]


def run_start_record(item: RunStart, *, version: str, rules_digest: str) -> RunStartRecord:
    """The record of a `RunStart`; its configuration is expected to be safe already."""
    return RunStartRecord(
        ts=rfc3339(item.time),
        run=item.run_id,
        rank=item.rank,
        step=item.resumed_from,
        trainer=item.trainer,
        framework=item.framework,
        framework_version=item.framework_version,
        version=version,
        rules_digest=rules_digest,
        config=item.config,
        total_steps=item.total_steps,
        world_size=item.world_size,
        emits=None if item.emits is None else sorted(item.emits),
        resumed_from=item.resumed_from,
        carried=item.carried,
    )


class Recorder:
    """Numbers records and hands their lines to a file.

    Args:
        version: trainvitals version for ``run_start``.
        rules_digest: Digest of the rules in force.
        record_signals: Whether events become ``signal`` records (needed for replay).
        first_seq: Number of the first record; a resumed stream goes on counting.
        resumed_from: Step that a checkpoint was loaded from.
    """

    def __init__(
        self,
        *,
        version: str = "",
        rules_digest: str = "",
        record_signals: bool = True,
        first_seq: int = 0,
        resumed_from: int | None = None,
    ) -> None:
        self.seq = first_seq
        self.run = ""
        self.rank = 0
        self.write: Write | None = None
        self.resumed_from = resumed_from
        self._version = version
        self._rules_digest = rules_digest
        self._record_signals = record_signals

    def __call__(self, item: Any) -> None:
        """Number and write one item of the bus."""
        if type(item) is Frame:
            self._frame(item)
        elif isinstance(item, Record):
            self._record(item)
        elif isinstance(item, RunStart):
            self.run, self.rank = item.run_id, item.rank
            self._record(
                run_start_record(item, version=self._version, rules_digest=self._rules_digest)
            )
        elif isinstance(item, Boundary):
            self._signal(item.step, "boundary", item.time, {"what": item.what, "detail": safe_scalars(item.detail)})
        elif isinstance(item, Tick):
            self._signal(item.step, "tick", item.time, {})
        elif isinstance(item, Applied):
            self._applied(item)

    def _frame(self, frame: Frame) -> None:
        if not self._record_signals:
            return
        seq = self.seq
        self.seq = seq + 1
        if self.write is None:
            return
        values: dict[str, Any] = frame.values
        try:
            # One pass in C finds any NaN or Inf: it survives every sum.
            if not math.isfinite(sum(values.values())):
                values = {key: plain(value) for key, value in values.items()}
            line = dumps(self._frame_dict(seq, frame, values))
        except (TypeError, ValueError):
            self._make_plain(frame)
            line = dumps(self._frame_dict(seq, frame, {key: plain(value) for key, value in frame.values.items()}))
        self.write(line)

    def _frame_dict(self, seq: int, frame: Frame, values: dict[str, Any]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "seq": seq,
            "ts": rfc3339(frame.time),
            "run": self.run,
            "rank": self.rank,
            "step": frame.step,
            "kind": "signal",
            "event": "frame",
            "values": values,
            "closes": frame.closes,
            "phase": frame.phase,
            "time": frame.time,
        }
        if frame.tokens is not None:
            record["tokens"] = frame.tokens
        if frame.epoch is not None:
            record["epoch"] = frame.epoch
        return record

    @staticmethod
    def _make_plain(frame: Frame) -> None:
        """Give a frame Python's own numbers, in place: the engine comes next and must see what is recorded."""
        for key, value in frame.values.items():
            number = plain(value)
            frame.values[key] = float(number["nonfinite"]) if isinstance(number, dict) else number
        frame.step = int(frame.step)
        frame.closes = bool(frame.closes)
        frame.time, frame.tokens, frame.epoch = (
            None if value is None or not math.isfinite(value) else float(value) for value in (frame.time, frame.tokens, frame.epoch)
        )

    def _signal(self, step: int, event: str, time: float | None, extra: dict[str, Any]) -> None:
        if not self._record_signals:
            return
        head = {"schema": SCHEMA, "seq": self.seq, "ts": rfc3339(time), "run": self.run, "rank": self.rank, "step": int(step)}
        self.seq += 1
        if self.write is not None:
            self.write(dumps({**head, "kind": "signal", "event": event, "time": time, **extra}))

    def _applied(self, item: Applied) -> None:
        name = str(item.parameter)
        old, new = (
            None if is_secret(name, value) else safe_scalars({"value": value}).get("value") for value in (item.old, item.new)
        )
        self._signal(item.step, "applied", item.time, {"detail": {"parameter": name, "old": old, "new": new}})
        changed = ActionRecord.model_validate(
            {
                "ts": rfc3339(item.time),
                "run": self.run,
                "rank": self.rank,
                "step": int(item.step),
                "parameter": name,
                "from": old,
                "to": new,
            }
        )
        self._record(changed)

    def _record(self, record: Record) -> None:
        # Records are frozen for everybody else; their number and stream are this class's to give, in bus order.
        record.__dict__["seq"] = self.seq
        if not record.run:
            record.__dict__["run"] = self.run
        self.seq += 1
        if self.write is None:
            return
        grave = isinstance(record, RunEndRecord) or (isinstance(record, Finding) and record.severity == "error")
        self.write(encode_record(record), sync=grave)
