"""After a suggestion was applied: did what the rule expects come true?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainvitals.findings import Finding
from trainvitals.items import Applied

if TYPE_CHECKING:
    from trainvitals.reporting import Reporter
    from trainvitals.watch import Watch

PATIENCE = 2
"""An expectation that is unknown at its deadline waits until this many times its span, then counts as not confirmed."""


class Followups:
    """Changes whose effect is still to be judged.

    A change is confirmed as soon as the finding has closed and the expectation holds, or when it holds at the deadline.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Watch, dict[str, Any]]] = []

    def add(self, watch: Watch, item: Applied, step: int) -> None:
        """Start to wait for a rule's `expect`; rules without one promise nothing."""
        expect = watch.owner.rule.expect
        if expect is None:
            return
        start = max(step, item.step)
        note = {
            "parameter": item.parameter, "old": item.old, "new": item.new, "start": start, "deadline": start + expect.within,
            "finding_id": watch.finding_id or f"{watch.owner.rule.code}.{watch.owner.openings}",
        }  # fmt: skip
        self.waiting = [(other, one) for other, one in self.waiting if other is not watch or one["parameter"] != item.parameter]
        self.waiting.append((watch, note))

    def check(self, reporter: Reporter, step: int, time: float | None) -> list[Finding]:
        """Judge what can be judged at this update."""
        done: list[Finding] = []
        left: list[tuple[Watch, dict[str, Any]]] = []
        for watch, note in self.waiting:
            expect = watch.owner.rule.expect
            if expect is None or watch.owner.off is not None:
                continue
            holds = watch.value(expect.that)
            late = step >= note["deadline"]
            over = step >= note["start"] + PATIENCE * expect.within
            if holds is True and step > note["start"] and (late or not watch.life.firing):
                done.append(self._finding(reporter, watch, note, True, holds, step, time))
            elif late and (holds is False or over):
                done.append(self._finding(reporter, watch, note, False, holds, step, time))
            else:
                left.append((watch, note))
        self.waiting = left
        return done

    def _finding(self, reporter: Reporter, watch: Watch, note: dict[str, Any], worked: bool, holds: object, step: int, time: float | None) -> Finding:
        expect = watch.owner.rule.expect
        assert expect is not None
        change = f"{note['parameter']} from {note['old']} to {note['new']}"
        if worked:
            text = f"Changing {change} at step {note['start']} worked: {expect.that.text}."
        elif holds is None:
            text = f"Changing {change} at step {note['start']} could not be verified: {expect.that.text} is unknown."
        else:
            text = f"Changing {change} at step {note['start']} did not help: {expect.that.text} does not hold after {step - note['start']} updates."
        return reporter.note(
            watch.owner.rule, "confirmed" if worked else "no_effect", text, step, time, severity="info" if worked else "warning",
            finding_id=note["finding_id"], label=watch.label,
        )  # fmt: skip
