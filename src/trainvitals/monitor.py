"""Monitor: the one place that composes bus, engine and sinks.

    with Monitor(output_dir="out") as monitor:
        for step in range(1, 1001):
            monitor.log(step, {"loss": loss, "kl": kl, "reward": reward})

Nothing in here raises into the caller: a fault of a rule, a sink or this module becomes one line and one record.
"""

from __future__ import annotations

import atexit
import os
import sys
import time as clock
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from trainvitals._version import __version__
from trainvitals.bus import SignalBus
from trainvitals.events import CATALOGUE, SignalSpec
from trainvitals.findings import SEVERITIES, CoverageRecord, Finding, Record, RuleCoverage, RuleRef, RunEndRecord, Verdict
from trainvitals.items import Applied, Boundary, BoundaryKind, Frame, Item, RunEnd, RunStart
from trainvitals.sinks.console import ConsoleSink
from trainvitals.sinks.encode import one_line, rfc3339, safe_scalars
from trainvitals.sinks.jsonl import JsonlSink
from trainvitals.sinks.recorder import Recorder

if TYPE_CHECKING:
    from trainvitals.rulelang.loader import RuleSet

Status = Literal["completed", "interrupted", "failed", "killed"]
STATE_VERSION = 1
INTERNAL = "internal"
"""Rule id of the records about faults of our own."""


class Monitor:
    """Watches one process of one run.

    Args:
        output_dir: Records go to ``<output_dir>/vitals/rank<N>.jsonl``; None keeps everything in memory.
        rules: A loaded `RuleSet`, a list of rule files and folders, or None for the built-in stable rules.
        overrides: Files with changes to rules (parameters, severity, switched off), each with its reason.
        enable: Ids of experimental rules to switch on, or ``experimental`` for all.
        custom: Signals of your own, see `custom_signal`.
        run: What is known about the run; None when a `RunStart` will be published, or nothing is known.
        console: True prints to stderr, False prints nothing, a stream prints there. Only rank 0 prints.
        prefix: Start of every console line.
        record_signals: Write the signals too, so that the run can be evaluated again.
        fail_soft: False raises internal errors instead of reporting them; for tests.
        resumed_from: Step of the checkpoint that training continues from; an existing record file is then continued.

    Raises:
        RuleError: If rule or override files are wrong; a bad configuration is told at once, before training.
    """

    def __init__(
        self,
        *,
        output_dir: Path | str | None = None,
        rules: RuleSet | Sequence[Path | str] | None = None,
        overrides: Sequence[Path | str] = (),
        enable: Sequence[str] = (),
        custom: Sequence[SignalSpec] = (),
        run: RunStart | None = None,
        console: bool | TextIO = True,
        prefix: str = "[TRL]",
        record_signals: bool = True,
        fail_soft: bool = True,
        resumed_from: int | None = None,
    ) -> None:
        from trainvitals.engine import Engine

        self.ruleset = _ruleset(rules, overrides, enable, custom)
        self.catalogue = {**CATALOGUE, **{spec.name: spec for spec in custom}}
        self.engine = Engine(self.ruleset, catalogue=self.catalogue)
        self.unknown_metrics: set[str] = set()
        self.run: RunStart | None = None
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._fail_soft = fail_soft
        self._mapper: Any = None
        self._file: JsonlSink | None = None
        self._console: ConsoleSink | None = None
        if console is not False and _env_int("RANK", 0) == 0:
            self._console = ConsoleSink(None if console is True else console, prefix)
        self._recorder = Recorder(
            version=__version__, rules_digest=self.ruleset.digest, record_signals=record_signals, resumed_from=resumed_from
        )
        self._first_bad: int | None = None  # history: of the first warning, whatever became of it; the verdict's last healthy step is about now
        self._coverage: CoverageRecord | None = None
        self._final: Verdict | None = None
        self._ending = self._closed = self._carried = False
        self._ended: RunEnd | None = None
        self._busy = 0
        self._reported: set[str] = set()
        self._error: Exception | None = None
        self.bus = SignalBus(on_error=self._failed)
        self.bus.subscribe("recorder", self._recorder)
        self.bus.subscribe("engine", self._observe)
        self.bus.subscribe("count", self._count)
        self.bus.subscribe("console", self._print)
        self.bus.subscribe("end", self._end)
        atexit.register(_close_at_exit, weakref.ref(self))
        if run is not None:
            self.publish(run)

    # -- input ---------------------------------------------------------------------------------------------------------

    def publish(self, item: Item) -> None:
        """Hand an event to the rules and the records. After `close` this does nothing."""
        if self._ending:
            return
        self._guard("publish", self._publish, item)

    def log(self, step: int, metrics: Mapping[str, Any], *, phase: str = "train", time: float | None = None) -> None:
        """Report the metrics of one optimizer step.

        Args:
            step: Optimizer updates completed, 1 for the first.
            metrics: Names as TRL, transformers or verl log them (``kl``, ``rewards/fmt/mean``), or signals
                (``policy.kl_ref``); numbers of any kind, NaN included. Names that nobody knows are listed in the coverage.
            phase: ``train`` or ``eval``.
            time: Unix seconds; None for now.
        """
        if self._ending:
            return
        self._guard("log", self._log, step, metrics, phase, clock.time() if time is None else time)

    def boundary(self, what: BoundaryKind, step: int, time: float | None = None, **detail: Any) -> None:
        """Tell that signals may jump now: an evaluation, a checkpoint, a resumed run (`items.Boundary`)."""
        self.publish(Boundary(step, what, clock.time() if time is None else time, detail))

    def applied(self, parameter: str, old: Any, new: Any, step: int | None = None, time: float | None = None) -> None:
        """Tell that a parameter was changed, so that the engine can check whether the change helped."""
        self.publish(Applied(self.step if step is None else step, parameter, old, new, clock.time() if time is None else time))

    def close(self, status: Status = "completed", detail: str | None = None) -> None:
        """End the run: final verdict, coverage, ``run_end``, the end block. May be called any number of times."""
        if self._ending:
            return
        self.publish(RunEnd(self.step, status, clock.time(), detail))
        if not self._busy:  # inside a signal handler the bus finishes its work first and `_end` does this
            self._guard("close", self._finish)

    def end_attempt(self, end: RunEnd) -> None:
        """An attempt that was recorded ended here and the run was resumed later: for replay, which goes on with this monitor.

        What the rules found at the end counts; verdict, coverage and end of the attempt are passed over, with their numbers.
        """
        for record in self.engine.observe(end):
            if isinstance(record, Finding):
                self.bus.publish(record)
            else:
                self._recorder.seq += 1
        self._recorder.seq += 2

    # -- output --------------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Last optimizer step seen."""
        return int(self.engine.step or 0)

    @property
    def verdict(self) -> Verdict | None:
        """What the run is doing; None before the first evaluation."""
        return self._final or self.engine.verdict

    @property
    def findings(self) -> list[Finding]:
        """Transitions so far, as far as the engine keeps them."""
        return list(self.engine.findings)

    @property
    def openings(self) -> dict[str, int]:
        """How often rules opened, by severity."""
        return {level: self.engine.counts.get(level, 0) for level in SEVERITIES}

    @property
    def coverage(self) -> CoverageRecord | None:
        """What was evaluated; after `close`."""
        return self._coverage

    @property
    def records_path(self) -> Path | None:
        """File of the records; None when there is none (yet, or any more)."""
        return None if self._file is None or self._file.failed else self._file.path

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, JSON-able; save it with the checkpoint."""
        run_id = "" if self.run is None else self.run.run_id
        return {
            "version": STATE_VERSION,
            "engine": self.engine.state_dict(),
            "seq": self._recorder.seq,
            "run": run_id,
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; call it before the first event. A state of another version is not used, with a notice."""
        self._guard("load_state_dict", self._load, state)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(_status_of(error), None if error is None else type(error).__name__)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _guard(self, where: str, call: Callable[..., None], *args: Any) -> None:
        self._busy += 1
        try:
            call(*args)
        except Exception as error:
            if not self._fail_soft:
                raise
            self._failed(where, error)
        finally:
            self._busy -= 1
        if self._error is not None and not self._fail_soft:
            first, self._error = self._error, None
            raise first

    def _publish(self, item: Item) -> None:
        if isinstance(item, RunStart):
            resumed = self._recorder.resumed_from
            item = replace(item, config=safe_scalars(item.config), carried=item.carried or self._carried)
            if item.resumed_from is None and resumed is not None:
                item = replace(item, resumed_from=resumed)
            self._open(item)
        elif self.run is None:
            self._publish(self._default_run(getattr(item, "time", None)))
        if isinstance(item, RunEnd):
            self._ending = True
            if item.detail is not None:
                item = replace(item, detail=safe_scalars({"detail": one_line(item.detail)}).get("detail"))
            self._ended = item
        self.bus.publish(item)

    def _default_run(self, time: float | None) -> RunStart:
        trainer = "unknown" if self._mapper is None else self._mapper.trainer or "unknown"
        return RunStart(
            run_id=f"run-{uuid.uuid4().hex[:12]}",
            trainer=trainer,
            framework="python",
            rank=_env_int("RANK", 0),
            world_size=_env_int("WORLD_SIZE", 1),
            time=time,
        )

    def _open(self, run: RunStart) -> None:
        """Learn which run and rank this is: that names the file and decides who may speak."""
        self.run = run
        if run.rank != 0:
            self._console = None
        if self._output_dir is None or self._file is not None:
            return
        path = self._output_dir / "vitals" / f"rank{run.rank}.jsonl"
        resume = self._recorder.resumed_from is not None
        self._file = JsonlSink(path, resume=resume, notify=self._notice)
        last = self._file.last_record() if resume else None
        if last is not None and isinstance(last["seq"], int):
            self._recorder.seq = max(self._recorder.seq, last["seq"] + 1)
        self._recorder.write = self._file.write
        if self._console is not None:
            self._console.pointer = str(path)

    def _log(self, step: int, metrics: Mapping[str, Any], phase: str, time: float) -> None:
        if self._mapper is None:
            from trainvitals.names import Mapper

            self._mapper = Mapper(None if self.run is None or self.run.trainer == "unknown" else self.run.trainer)
        frame: Frame = self._mapper.frame(metrics, step=int(step), phase=phase, time=time)
        self.unknown_metrics = self._mapper.unknown
        self._publish(frame)

    def _load(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != STATE_VERSION:
            self._notice("the saved state is of another version of trainvitals; baselines start anew.")
        else:
            self.engine.load_state_dict(state["engine"])
            self._recorder.seq = max(self._recorder.seq, int(state["seq"]))
            self._carried = True
        if self._recorder.resumed_from is None:
            self._recorder.resumed_from = int(state.get("step", 0))

    def _observe(self, item: Any) -> None:
        if isinstance(item, Record):
            return
        for record in self.engine.observe(item):
            self.bus.publish(record)

    def _print(self, record: Any) -> None:
        # Faults of ours were told by `_failed` already, without the limits of the console.
        if self._console is not None and not (isinstance(record, Finding) and record.rule.id == INTERNAL):
            self._console(record)

    def _count(self, record: Any) -> None:
        if isinstance(record, Verdict) and record.final:
            self._final = record
        if not isinstance(record, Finding) or record.state != "firing":
            return
        if record.severity != "info" and self._first_bad is None:
            self._first_bad = record.onset_step if record.onset_step is not None else record.step

    def _end(self, item: Any) -> None:
        """After the engine has seen `RunEnd`: what belongs at the end of the stream, in bus order."""
        if isinstance(item, RunEndRecord):
            self._finish()
        if not isinstance(item, RunEnd):
            return
        head: dict[str, Any] = {"ts": rfc3339(item.time), "rank": self._recorder.rank, "step": item.step}
        self._coverage = self._make_coverage(head)
        self.bus.publish(self._coverage)
        self.bus.publish(RunEndRecord(status=item.status, findings=self.openings, detail=item.detail, **head))

    def _make_coverage(self, head: dict[str, Any]) -> CoverageRecord:
        try:
            made: CoverageRecord = self.engine.coverage()
        except Exception as error:
            self._failed("coverage", error)
            made = CoverageRecord(rules=[RuleCoverage(id=rule.id, status="error") for rule in self.ruleset.rules])
        return made.model_copy(update={**head, "unknown_metrics": sorted({*made.unknown_metrics, *self.unknown_metrics})})

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._file is not None:
            self._file.close()
        if self._console is not None:
            self._console.end_block(self.end_lines())

    def end_lines(self) -> dict[str, Any]:
        """The end block as ``{key: value}``; printed with ``vitals_`` before each key."""
        verdict = self.verdict
        rules = [] if self._coverage is None else self._coverage.rules
        evaluated = sum(rule.status in ("evaluated", "degraded") for rule in rules)
        lines: dict[str, Any] = {
            "verdict": "insufficient_data" if verdict is None else verdict.state,
            "decision": "continue" if verdict is None else verdict.decision,
            "reason": "nothing was evaluated" if verdict is None else verdict.reason,
            "errors": self.openings["error"],
            "warnings": self.openings["warning"],
            "first_bad_step": "none" if self._first_bad is None else self._first_bad,
            "last_healthy_step": "none" if verdict is None or verdict.last_healthy_step is None else verdict.last_healthy_step,
        }
        if verdict is not None and verdict.resume_from:
            lines["last_healthy_checkpoint"] = verdict.resume_from
        if self._ended is not None and self._ended.status != "completed":
            why = "" if self._ended.detail is None else f": {self._ended.detail}"
            lines["ended"] = f"{self._ended.status} after update {self.step}{why}"
        lines["rules_evaluated"] = evaluated
        lines["rules_not_evaluated"] = len(rules) - evaluated
        if self._file is not None:
            failed = self._file.failed
            lines["records"] = self._file.path if failed is None else f"incomplete ({failed}): {self._file.path}"
        return lines

    def _notice(self, text: str) -> None:
        if self._console is not None:
            self._console.notice(f"trainvitals: {text}")

    def _failed(self, where: str, error: Exception) -> None:
        """One line and one record for a fault of ours, once per place."""
        self._error = self._error or error
        if where in self._reported:
            return
        self._reported.add(where)
        text = one_line(
            f"trainvitals: {where} failed with {type(error).__name__}: {error}. It is off for this run; training goes on."
        )
        self._notice(text.removeprefix("trainvitals: "))
        if where == "recorder":
            return  # there is nobody left to write it down
        rule = RuleRef(id=INTERNAL, code="INT000", version=__version__)
        record = Finding(
            finding_id=f"internal-{where}",
            fingerprint=f"internal-{where}",
            rule=rule,
            state="error",
            severity="warning",
            category="config",
            title="A part of trainvitals failed",
            message=text,
            rank=self._recorder.rank,
            step=self.step,
        )
        self.bus.publish(record)


def _ruleset(rules: Any, overrides: Sequence[Path | str], enable: Sequence[str], custom: Sequence[SignalSpec]) -> RuleSet:
    if rules is not None and hasattr(rules, "by_id"):
        ready: RuleSet = rules
        return ready
    from trainvitals.rulelang.loader import load_rules

    paths = None if rules is None else [Path(path) for path in rules]
    return load_rules(paths, overrides=[Path(path) for path in overrides], enable=enable, custom=custom)


def _env_int(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default


def _status_of(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "completed"
    return "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"


def _close_at_exit(reference: weakref.ref[Monitor]) -> None:
    monitor = reference()
    if monitor is not None:
        monitor.close(_status_of(getattr(sys, "last_value", None)))
