"""The engine: typed events in, findings and verdicts out.

It evaluates every rule once per optimizer update, when the update is closed: by a frame that says so, or by the first item
of a later update. Only transitions come out. It owns no clock: what happens depends on the items alone, so that replaying
a recorded run gives the same records byte for byte.

Meaning, where notes/rules.md 9.4 leaves it open:

* A frame of an update that was closed before is *late*: its samples enter windows at their own index, nothing is decided
  again. Values that come for the update just closed (an evaluation) are seen by the next one, or when the run ends.
* Statistical rules (`watch.BLANKED_CATEGORIES`) look away for `watch.BLANK_UPDATES` updates after a legal jump
  (`watch.BLANK_AFTER`, or an applied change): nothing is counted, neither hits nor the end of a finding. A run resumed
  with the state of its checkpoint does not jump: it goes on as if it had not stopped.
* An exception (`unless`) counts only when it is known to hold; an unknown one excuses nothing.
* A calm rule over long windows is evaluated every few updates (`rulelang.pace`); after news of its series, with a hit or
  an open finding, at every update.
* Rules with a clock are evaluated on ticks, and at the end of an update only while they have hits or fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainvitals.coverage import blind, coverage, not_checked
from trainvitals.diagnosis import VerdictMaker
from trainvitals.events import CATALOGUE, SignalSpec, split_label
from trainvitals.findings import CoverageRecord, Term, Verdict
from trainvitals.followup import Followups
from trainvitals.items import Applied, Boundary, Frame, Item, RunStart, Tick
from trainvitals.reporting import Reporter
from trainvitals.rulelang.compile import Binder, RunInfo
from trainvitals.rulelang.loader import RuleSet
from trainvitals.rulelang.proof import STEADY
from trainvitals.rulelang.windows import Store
from trainvitals.schedule import Schedule
from trainvitals.speaker import Output, Speaker
from trainvitals.watch import BLANK_AFTER, BLANK_UPDATES, MAX_INSTANCES, Watch, Watched, link, run_info

BLIND_UPDATES = 200
BLIND_SHARE = 0.2
"""A rule without one decision after this many updates, or this share of the planned ones, is called blind."""


class Engine:
    """Evaluates rules over the items of one run.

    Args:
        ruleset: From `rulelang.loader.load_rules`.
        catalogue: Signals, custom ones included.

    Attributes:
        step: Newest update seen.
        verdict: The current verdict; None before the first.
        findings: The newest 1,000 findings, oldest first.
        counts: Openings by severity.
        late: Frames that came after their update was closed.
    """

    def __init__(self, ruleset: RuleSet, *, catalogue: Mapping[str, SignalSpec] = CATALOGUE) -> None:
        self.ruleset = ruleset
        self.catalogue = catalogue
        self.store = Store(catalogue)
        self.step = 0
        self.late = 0
        self._reporter = Reporter(self.store)
        self._maker = VerdictMaker(ruleset.rules)
        self._speaker = Speaker(self._reporter, self._maker)
        self.findings = self._speaker.findings
        self.counts = self._speaker.counts
        self._followups = Followups()
        self._info = RunInfo()
        self._watched = [Watched(rule, self._labelled(rule.signals, rule.for_each)) for rule in ruleset.rules]
        self._by_id = {watched.rule.id: watched for watched in self._watched}
        link(self._watched)
        self._bound = False
        self._closed = 0
        self._open_step: int | None = None
        self._open_time: float | None = None
        self._dirty = False
        self._origin: int | None = None
        self._blank_until = -1
        self._blind_at: int | None = None
        self._ended = False
        self._restarted = False
        self._carried = False
        self._known: set[str] = set()
        self._schedule = Schedule()

    def _labelled(self, signals: frozenset[str], label: str | None) -> frozenset[str]:
        return frozenset(name for name in signals if label and name in self.catalogue and self.catalogue[name].label == label)

    # -- items ---------------------------------------------------------------------------------------------------------

    def observe(self, item: Item) -> list[Output]:
        """Take one item and return what changed, in order; an empty list nearly always."""
        if isinstance(item, Frame):
            return self._frame(item)
        out: list[Output] = []
        if isinstance(item, Tick):
            self._tick(item, out)
        elif isinstance(item, Boundary):
            self._boundary(item, out)
        elif isinstance(item, RunStart):
            self._start(item)
        elif isinstance(item, Applied):
            self._apply(item, out)
        else:
            self._end(item.step, item.time, out)
        return out

    def _frame(self, frame: Frame) -> list[Output]:
        out: list[Output] = []
        step = frame.step
        if self._open_step is not None and step > self._open_step:
            self._close(self._open_step, self._open_time, out)
        if self._restarted:
            self._restarted = False
            if step <= self._closed:
                self._rewind(step - 1)
        if not self._known.issuperset(frame.values):
            self._discover(frame)
        if not self._bound:
            self._bind()
        self.store.ingest(frame)
        if self.store.news:
            self._schedule.wake(self.store.news, step)
        if step < self._closed:
            self.late += 1
            return out
        self.step = step
        self._reporter.latest = frame.values
        if frame.phase == "eval":
            self._maker.eval_values(frame.values)
            self._dirty = True
        else:
            self._maker.values(frame.values)
            if step == self._closed and self._origin is not None:
                self._dirty = True
            elif frame.closes:
                self._close(step, frame.time, out)
            else:
                self._open_step, self._open_time = step, frame.time
        return out

    def _boundary(self, item: Boundary, out: list[Output]) -> None:
        if self._open_step is not None and item.step > self._open_step:
            self._close(self._open_step, self._open_time, out)
        self.store.boundary(item.what, item.step, item.time)
        if item.what == "eval_begin":
            self._info.phase = "eval"
        elif item.what == "save_begin":
            self._info.phase = "save"
        elif item.what in {"eval_end", "save_end"}:
            self._info.phase = "train"
        goes_on = item.what == "resume" and self._carried and item.step == self._closed
        if item.what in BLANK_AFTER and not goes_on:
            self._blank_until = item.step + BLANK_UPDATES
        if item.what == "resume":
            self._open_step, self._carried = None, False
            if item.step < self._closed:
                self._rewind(item.step)
            self._maker.rewind(item.step)
        if item.what == "save_end":
            path = item.detail.get("path") or item.detail.get("checkpoint") or f"checkpoint-{item.step}"
            self._maker.checkpoint(item.step, str(path))

    def _rewind(self, step: int) -> None:
        """The run went back to an earlier update without our state: windows and references are learned again.

        Samples of the abandoned attempt would stand before the new ones at later steps. What is open stays open.
        """
        boundaries, time = self.store.boundaries, self.store.clock.time
        self.store = self._reporter.store = Store(self.catalogue)
        self.store.boundaries = {what: (min(at, step), when) for what, (at, when) in boundaries.items()}
        self.store.clock.time = time
        self._closed, self._origin, self._open_step = step, None, None
        self._bind()

    def _tick(self, item: Tick, out: list[Output]) -> None:
        self.store.tick(item.time)
        if not self._bound:
            self._bind()
        before = len(out)
        for watch in self._schedule.timed:
            if item.time < watch.next_time or self.step <= watch.warm_until:
                continue
            watch.next_time = item.time + (watch.owner.rule.clock_seconds or 0.0)
            self._evaluate(watch, self.step, item.time, out)
        if len(out) > before:
            self._judge(self.step, item.time, out)

    def _start(self, item: RunStart) -> None:
        self._restarted, self._ended = self._origin is not None, False
        self._reporter.run = replace(item, config=dict(item.config))
        self._maker.trainer = item.trainer
        self._info = run_info(item)
        if item.time is not None:
            self.store.clock.time = item.time
        self._bind()

    def _apply(self, item: Applied, out: list[Output]) -> None:
        if not self._bound:
            self._bind()
        owners = [
            watched for watched in self._watched
            if any(part.set == item.parameter for part in watched.rule.suggest) and watched.openings
        ]  # fmt: skip
        self._reporter.run.config[item.parameter] = item.new
        self._blank_until = max(self._blank_until, item.step + BLANK_UPDATES)
        for watched in owners:
            watched.applied.add(item.parameter)
            for watch in watched.instances.values():
                if watch.life.openings:
                    self._followups.add(watch, item, self.step)
        self._bind()

    def _end(self, step: int, time: float | None, out: list[Output]) -> None:
        if self._ended:
            return
        self._ended = True
        if not self._bound:
            self._bind()
        if self._open_step is not None:
            self._close(self._open_step, self._open_time, out)
        elif self._dirty and self._origin is not None:
            self._schedule.wake_all(self.step)
            self._close(self.step, time, out)
        self._judge(max(step, self.step), time, out, final=True)

    def close(self, time: float | None = None) -> list[Output]:
        """End the run if no `RunEnd` came; returns the last records. Idempotent."""
        out: list[Output] = []
        self._end(self.step, time, out)
        return out

    # -- binding -------------------------------------------------------------------------------------------------------

    def _bind(self, fresh: frozenset[str] | None = None) -> None:
        """Bind rules to the run as it is now; what they have counted so far stays.

        A run that does not say what it emits (a plain loop) emits what came so far. So a rule may read a signal that never
        comes, as one of several, and works without it; when the signal does come, the rules that read it are bound again.

        Args:
            fresh: Bind only the rules that read one of these signals; None binds all.
        """
        run = self._reporter.run
        emits = run.emits if run.emits is not None else frozenset(split_label(key)[0] for key in self._known)
        statuses = {watched.rule.id: watched.status for watched in self._watched}
        self._binder = Binder(self.store, config=run.config, run=self._info, absent=frozenset(self.catalogue) - emits, rules=statuses)
        self._bound = True
        for watched in self._watched:
            if watched.off == "error" or (fresh is not None and fresh.isdisjoint(watched.rule.signals)):
                continue
            try:
                watched.bind(self._binder, self._info.trainer, emits, self._origin)
            except Exception as error:
                watched.off, watched.reason = "error", f"{type(error).__name__}: {error}"
        self._schedule.arrange(self._watched)

    def _discover(self, frame: Frame) -> None:
        """New series keys: perhaps signals that rules had to do without, perhaps new instances of rules with `for_each`."""
        fresh = [key for key in frame.values if key not in self._known]
        before = {split_label(key)[0] for key in self._known}
        self._known.update(fresh[: max(0, 10_000 - len(self._known))])
        if self._reporter.run.emits is None and (names := frozenset(split_label(key)[0] for key in fresh) - before):
            self._bind(names if before else None)
        changed = False
        for key in fresh:
            name, label, value = split_label(key)
            if label is None or value is None:
                continue
            for watched in self._watched:
                if watched.off is not None or watched.rule.for_each != label or name not in watched.labelled or value in watched.instances:
                    continue
                if len(watched.instances) >= MAX_INSTANCES:
                    watched.overflow.add(value[:80]) if len(watched.overflow) < 10_000 else None
                    continue
                watched.watch((label, value), self._origin).bind(self._binder)
                changed = True
        if changed:
            self._schedule.arrange(self._watched)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _close(self, step: int, time: float | None, out: list[Output]) -> None:
        """An update is over: evaluate every rule once."""
        self._open_step = None
        self._dirty = False
        self._closed = step
        if self._origin is None:
            self._begin(step)
        self.store.close_update(step, time)
        before = len(out)
        schedule = self._schedule
        watches = schedule.due(step)
        self._look(watches, step, time, out)
        if watches is schedule.all:
            schedule.looked(step)
        for watch in schedule.timed:
            if not watch.calm and step > watch.warm_until:
                self._evaluate(watch, step, time, out)
        if self._followups.waiting:
            for finding in self._followups.check(self._reporter, step, time):
                self._speaker.note(finding, out)
        if self._blind_at is not None and step >= self._blind_at:
            self._look_for_blind(step, time, out)
        due = self._maker.due(step)
        if due or len(out) > before:
            self._judge(step, time, out)

    def _look(self, watches: list[Watch], step: int, time: float | None, out: list[Output]) -> None:
        """Evaluate those of the rules that are due, in causal order."""
        blank = step <= self._blank_until
        for watch in watches:
            if (step < watch.next_step and watch.calm) or step <= watch.warm_until or (blank and watch.blanked):
                continue
            try:
                value = watch.look(step)
                if value is not None or not watch.calm:
                    self._turn(watch, value, step, time, out)
                    self._schedule.busy |= watch.pace > 1
            except Exception as error:
                self._fail(watch, error, step, time, out)

    def _begin(self, step: int) -> None:
        """The first update of this run that we see: warm-ups count from here."""
        self._origin = step - 1
        total = self._info.total_steps
        for watched in self._watched:
            for watch in watched.instances.values():
                watch.warm_until = self._origin + watched.rule.warmup
                watch.next_step = step
                watch.prove_at = step + STEADY  # before that there are no proofs
            patience = max(20, min(BLIND_UPDATES, round(BLIND_SHARE * total))) if total else BLIND_UPDATES
            watched.blind_at = self._origin + watched.rule.warmup + max(patience, watched.reach)
        self._blind_at = min((watched.blind_at or 0 for watched in self._watched), default=None)

    def _evaluate(self, watch: Watch, step: int, time: float | None, out: list[Output]) -> None:
        try:
            self._turn(watch, watch.read(), step, time, out)
        except Exception as error:
            self._fail(watch, error, step, time, out)

    def _turn(self, watch: Watch, value: object, step: int, time: float | None, out: list[Output]) -> None:
        """One evaluation off the fast path. The end of a finding can be known while its condition is not."""
        life = watch.life
        hit = value if isinstance(value, bool) else None
        excused = hit is True and any(bound.read() is True for bound in watch.unless)
        clear: bool | None = None
        if life.firing:
            ended = True if excused else watch.clear.read() if watch.clear is not None else None if hit is None else not hit
            clear = ended if isinstance(ended, bool) else None
        transition = life.feed(hit and not excused, clear, step) if hit is not None or clear is not None else None
        watch.calm = life.quiet
        if transition is not None:
            watch.owner.refresh(step)
            self._speaker.transition(watch, transition, step, time, out)
        elif life.firing:
            watch.owner.status.last_fired = step
            if not life.flapping:
                self._speaker.while_firing(watch, step, time, out)

    def _fail(self, watch: Watch, error: Exception, step: int, time: float | None, out: list[Output]) -> None:
        """A rule raised: it is off for the run, and says so once. Training must not notice."""
        owner = watch.owner
        if owner.off == "error":
            return
        owner.off, owner.reason = "error", f"{type(error).__name__}: {error}"[:300]
        owner.status.firing = False
        for other in owner.instances.values():
            if other.finding_id is not None:
                self._maker.open.pop(other.finding_id, None)
                self._reporter.open_actions.pop(other.finding_id, None)
        message = f"Rule {owner.rule.id} failed and is off for this run: {owner.reason}"
        finding = self._reporter.note(owner.rule, "error", message, step, time, severity="warning", finding_id=watch.finding_id)
        self._speaker.note(finding, out)
        self._schedule.arrange(self._watched)

    def _look_for_blind(self, step: int, time: float | None, out: list[Output]) -> None:
        """Report rules that could not be decided so far, once each, and rules with too many instances."""
        for watched, text, unknown in blind(self._watched, step, self._origin or 0, self._info.trainer, self._known):
            self._speaker.note(self._reporter.note(watched.rule, "blind", text, step, time, severity="info", unknown=unknown), out)
        self._blind_at = min((watched.blind_at for watched in self._watched if watched.blind_at is not None), default=None)

    def _judge(self, step: int, time: float | None, out: list[Output], *, final: bool = False) -> None:
        decided = any(watch.life.decided for watched in self._watched for watch in watched.instances.values())
        verdict = self._maker.make(step, not_checked=lambda: not_checked(self._watched), decided=decided, final=final)
        if verdict is not None:
            out.append(verdict.model_copy(update=self._reporter.envelope(verdict.step or 0, time)))

    # -- questions -----------------------------------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict | None:
        """The current verdict."""
        return self._maker.current

    def states(self, rule_id: str) -> dict[str, str]:
        """State of every instance of a rule by label value (``""`` without `for_each`).

        ``not_applicable``, ``inactive``, ``warming``, ``ok``, ``pending``, ``firing``, ``clearing``, ``flapping`` or ``error``.

        Raises:
            KeyError: If there is no such rule.
        """
        watched = self._by_id[rule_id]
        if watched.off is not None or not watched.instances:
            return {"": watched.off or "warming"}
        return {key: watch.life.state if watch.life.decided else "warming" for key, watch in watched.instances.items()}

    def data_of(self, rule_id: str, label: str = "") -> str:
        """``ok``, ``degraded`` or ``stale``: the quality of what the rule sees now."""
        watched = self._by_id[rule_id]
        watch = watched.instances.get(label) or next(iter(watched.instances.values()), None)
        return self._reporter.data(watch) if watch is not None and watched.off is None else "stale"

    def explain(self, rule_id: str) -> dict[str, list[Term]]:
        """The condition of a rule with its values at this moment, per instance label (empty text without labels).

        Raises:
            KeyError: If there is no such rule.
        """
        return {label: watch.when.explain() for label, watch in self._by_id[rule_id].instances.items()}

    def coverage(self) -> CoverageRecord:
        """What was looked at and what was not."""
        return coverage(self._watched, self.ruleset, self.store, self._known, self.late, self._reporter.envelope(self.step, self.store.time))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to continue as if it had not stopped, as JSON can hold it."""
        from trainvitals.engine_state import save

        return save(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, before or after `RunStart`; whatever this engine saw before is forgotten.

        Raises:
            ValueError: If the state was written by an incompatible version.
        """
        from trainvitals.engine_state import load

        load(self, state)

