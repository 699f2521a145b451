"""Turning what the engine saw into records: messages, evidence and actions of one transition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from trainvitals.advice import Context, advise, mark_conflicts, number
from trainvitals.events import labelled
from trainvitals.findings import Action, Finding, FindingState, NonFinite, Number, RuleRef, Severity
from trainvitals.items import RunStart, nonfinite_word
from trainvitals.onset import onset
from trainvitals.rulelang.model import Rule
from trainvitals.watch import Watch, clean_label, fingerprint

if TYPE_CHECKING:
    from trainvitals.rulelang.windows import Store


def timestamp(time: float | None) -> str | None:
    """RFC 3339 UTC time with microseconds; None on a log without times."""
    if time is None or not math.isfinite(time):
        return None
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):
        return None


def rule_ref(rule: Rule) -> RuleRef:
    """Who spoke."""
    return RuleRef(id=rule.id, code=rule.code, version=rule.version, status=rule.status, digest=rule.digest, source=rule.source)


class Reporter:
    """Builds findings.

    Attributes:
        run: The run's facts and configuration; `Applied` changes it.
        open_actions: Actions of open findings by finding id: contradictions are marked.
        latest: Values of the newest frame: tells NaN from Inf.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.run = RunStart("")
        self.open_actions: dict[str, list[Action]] = {}
        self.latest: Mapping[str, float] = {}

    def context(self) -> Context:
        """What advice must know."""
        rates = self.store.series("optim.learning_rate").xs
        rate = number(rates[-1]) if len(rates) else None
        return Context(self.run.config, self.run.trainer, self.run.framework, self.run.world_size, rate)

    def envelope(self, step: int, time: float | None) -> dict[str, Any]:
        """Fields of every record."""
        return {"ts": timestamp(time), "run": self.run.run_id, "rank": self.run.rank, "step": step}

    def finding(
        self,
        watch: Watch,
        state: FindingState,
        step: int,
        time: float | None,
        *,
        suppressed_by: str | None = None,
        incident: tuple[str | None, str] = (None, "independent"),
        after: str | None = None,
    ) -> Finding:
        """One transition of an instance, with values as they are now; `after` is the milder cause that it outgrew."""
        rule, life = watch.owner.rule, watch.life
        assert watch.finding_id is not None
        opening = state in {"firing", "suppressed"}
        if opening and watch.began is None:
            watch.began = onset(watch, self.store)
        why = watch.when.explain()
        actions = self._actions(watch) if opening else []
        if state == "firing":
            actions = mark_conflicts(actions, [action for key, many in self.open_actions.items() if key != watch.finding_id for action in many])
            self.open_actions[watch.finding_id] = actions
        elif state in {"resolved", "suppressed", "error"}:
            self.open_actions.pop(watch.finding_id, None)
        role: Literal["root", "symptom", "independent"] = "root" if incident[1] == "root" else "symptom" if incident[1] == "symptom" else "independent"
        return Finding(
            **self.envelope(step, time),
            finding_id=watch.finding_id,
            fingerprint=fingerprint(rule, self.run.run_id, watch.label),
            rule=rule_ref(rule),
            state=state,
            severity=rule.severity,
            category=rule.category,
            title=rule.title,
            message=(f"Now an error, after {after}: " if after else "") + self._message(watch, state),
            advice=rule.advice.render(watch.value).strip() if opening else "",
            instance={watch.label[0]: clean_label(watch.label[1])} if watch.label else {},
            first_step=life.opened,
            onset_step=watch.began if watch.began is not None else life.onset,
            count=max(1, watch.count),
            why=why,
            signals=self._signals(watch),
            unknown=watch.unknown(),
            data=self.data(watch),
            sustain={"hits": life.bits.bit_count(), "of": rule.sustain.of} if opening else None,
            actions=actions,
            incident_id=incident[0] or watch.finding_id,
            role="symptom" if suppressed_by else role,
            suppressed_by=suppressed_by,
            confidence=rule.confidence,
            docs=f"rules/{rule.id}",
        )

    def _message(self, watch: Watch, state: FindingState) -> str:
        rule, life = watch.owner.rule, watch.life
        if state == "resolved":
            lasted = (life.closed or 0) - (life.opened or 0)
            return f"Resolved after {lasted} updates: {rule.title}."
        if state == "flapping":
            return f"Opens and closes again and again: {rule.title}. Silent until it is calm."
        return rule.message.render(watch.value).strip()

    def note(
        self, rule: Rule, state: FindingState, message: str, step: int, time: float | None, *, severity: Severity | None = None,
        finding_id: str | None = None, label: tuple[str, str] | None = None, unknown: list[str] | None = None,
    ) -> Finding:  # fmt: skip
        """A finding about the rule itself: blind, error, or the outcome of a change."""
        return Finding(
            **self.envelope(step, time),
            finding_id=finding_id or f"{rule.code}.{state}",
            fingerprint=fingerprint(rule, self.run.run_id, label),
            rule=rule_ref(rule),
            state=state,
            severity=severity or rule.severity,
            category=rule.category,
            title=rule.title,
            message=message,
            instance={label[0]: clean_label(label[1])} if label else {},
            unknown=unknown or [],
            docs=f"rules/{rule.id}",
        )

    def _actions(self, watch: Watch) -> list[Action]:
        rule = watch.owner.rule
        assert watch.finding_id is not None
        return advise(
            rule.suggest, watch.value, self.context(), finding_id=watch.finding_id, skip=watch.owner.applied,
            verify=rule.expect.that.text if rule.expect else None, within_updates=rule.expect.within if rule.expect else None,
        )  # fmt: skip

    def data(self, watch: Watch) -> Literal["ok", "degraded", "stale"]:
        """``stale`` when the condition cannot be decided now, ``degraded`` when a part of it never can."""
        if watch.when.read() is None:
            return "stale"
        return "degraded" if watch.when.status == "degraded" else "ok"

    def _signals(self, watch: Watch) -> dict[str, Number | None]:
        """Newest value of each signal that the condition reads; at most 32."""
        values: dict[str, Number | None] = {}
        for name in sorted(watch.when.signals)[:32]:
            spec = self.store.catalogue.get(name)
            labelled_here = watch.label is not None and spec is not None and spec.label == watch.label[0]
            series = self.store.series(labelled(name, *watch.label) if labelled_here and watch.label else name)
            if series.bad_at == series.total:
                newest = self.latest.get(series.key, math.nan)
                values[name] = NonFinite.model_validate({"nonfinite": nonfinite_word(newest)})
            else:
                values[name] = series.xs[-1] if series.xs else None
        return values
