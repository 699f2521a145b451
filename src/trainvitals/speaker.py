"""What is said when a rule opens, keeps firing or closes: causes, holds, repeats, composites, and an error that a warning would hide."""

from __future__ import annotations

from collections import deque

from trainvitals.diagnosis import VerdictMaker
from trainvitals.findings import Finding, FindingState, Verdict
from trainvitals.reporting import Reporter
from trainvitals.rule_state import Transition
from trainvitals.rulelang.model import Rule
from trainvitals.watch import Watch

Output = Finding | Verdict


class Speaker:
    """Turns transitions of rule instances into findings.

    Attributes:
        findings: The newest 1,000 findings, oldest first.
        counts: Openings by severity.
    """

    def __init__(self, reporter: Reporter, maker: VerdictMaker) -> None:
        self.reporter = reporter
        self.maker = maker
        self.findings: deque[Finding] = deque(maxlen=1000)
        self.counts: dict[str, int] = {}

    def note(self, finding: Finding, out: list[Output]) -> None:
        """Pass on a finding about a rule itself."""
        self.findings.append(finding)
        out.append(finding)

    def transition(self, watch: Watch, transition: Transition, step: int, time: float | None, out: list[Output]) -> None:
        """An instance opened, closed, began to flap or became calm."""
        rule, life = watch.owner.rule, watch.life
        if transition == "open":
            if rule.repeat == "never" and life.openings > 1:
                return
            watch.count = 0
            cause = self._cause(watch, step)
            if cause is None and rule.hold and any(cause.pending for cause in watch.owner.causes):
                watch.hold_until = step + rule.hold
                return
            self._open(watch, cause, step, time, out)
        elif transition == "close":
            watch.hold_until = None
            if watch.finding_id is not None:
                self._emit(watch, "resolved", step, time, out)
        elif transition == "flapping":
            watch.hold_until = None
            if rule.repeat != "never":
                self._emit(watch, "flapping", step, time, out)
        elif watch.finding_id is not None:
            watch.count = 0
            self._emit(watch, "firing" if life.firing else "resolved", step, time, out)

    def while_firing(self, watch: Watch, step: int, time: float | None, out: list[Output]) -> None:
        """Things that may happen to a rule that keeps firing: its cause opens or clears, it repeats."""
        repeat = watch.owner.rule.repeat
        if watch.hold_until is not None:
            cause = self._cause(watch, step)
            if cause is not None or step >= watch.hold_until or not any(cause.pending for cause in watch.owner.causes):
                watch.hold_until = None
                self._open(watch, cause, step, time, out)
        elif watch.suppressed_by is not None:
            cause = self._cause(watch, step)
            if cause is None or self._too_grave(watch, cause, step):
                self._open(watch, cause, step, time, out)
        elif isinstance(repeat, int) and watch.finding_id is not None and step - watch.said_at >= repeat:
            self._emit(watch, "firing", step, time, out)

    def _cause(self, watch: Watch, step: int) -> Rule | None:
        """A rule that explains this one now; an error before others, for behind it an error may hide."""
        owner = watch.owner
        first: Rule | None = None
        for cause in owner.causes:
            if cause.off is None and cause.explains(step, owner.rule.hold):
                if cause.rule.severity == "error":
                    return cause.rule
                first = first or cause.rule
        return first

    def _too_grave(self, watch: Watch, cause: Rule, step: int) -> bool:
        """Whether this is the first error of an incident of which a reader has only heard a warning: it is told, once."""
        if watch.owner.rule.severity != "error" or cause.severity == "error":
            return False
        others = [one for key, one in self.maker.open.items() if key != watch.finding_id]
        incident, _ = self.maker.incidents.place(watch.owner.rule.id, step, others)
        return not any(one.severity == "error" and not one.suppressed and one.incident == incident for one in others)

    def _open(self, watch: Watch, cause: Rule | None, step: int, time: float | None, out: list[Output]) -> None:
        if cause is None:
            self._emit(watch, "firing", step, time, out)
        elif self._too_grave(watch, cause, step):
            self._emit(watch, "firing", step, time, out, after=cause.id)
        else:
            self._emit(watch, "suppressed", step, time, out, suppressed_by=cause.id)

    def _emit(
        self, watch: Watch, state: FindingState, step: int, time: float | None, out: list[Output], *, suppressed_by: str | None = None, after: str | None = None
    ) -> None:
        rule = watch.owner.rule
        if watch.finding_id is None:
            watch.finding_id = f"{rule.code}.{watch.owner.openings}"
        watch.suppressed_by = suppressed_by
        watch.said_at = step
        if state == "firing":
            watch.count += 1
        place = self.maker.incidents.place(rule.id, step, [one for key, one in self.maker.open.items() if key != watch.finding_id])
        known = self.maker.open.get(watch.finding_id)
        incident = (known.incident, known.role) if known else place  # its place in the incident is the one that it came with
        finding = self.reporter.finding(watch, state, step, time, suppressed_by=suppressed_by, incident=incident, after=after)
        first = known is None or known.suppressed
        self._record(finding, watch, out, opening=state == "firing" and first)
        if state == "resolved":
            watch.finding_id = watch.suppressed_by = watch.began = None
        elif state == "firing" and first:
            self._absorb(watch, step, time, out)

    def _absorb(self, watch: Watch, step: int, time: float | None, out: list[Output]) -> None:
        """A composite opened: it speaks for its parts from now on."""
        for part in watch.owner.parts:
            for other in part.instances.values():
                if other.finding_id is not None and other.life.firing and other.suppressed_by is None and not other.life.flapping:
                    self._emit(other, "suppressed", step, time, out, suppressed_by=watch.owner.rule.id)

    def _record(self, finding: Finding, watch: Watch, out: list[Output], *, opening: bool) -> None:
        self.maker.take(finding, watch.owner.rule)
        if opening:
            self.counts[finding.severity] = self.counts.get(finding.severity, 0) + 1
        self.findings.append(finding)
        out.append(finding)
