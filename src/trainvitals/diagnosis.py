"""Diagnosis: which finding is the cause, which belong together, and what state the run is in.

The verdict answers one question on every change and at the end: improving, steady, collapsed, over-optimizing, drifting,
stalled, diverged, warming up, or not enough data; and what to do about it. It is made from the open findings and, when
none is open, from evidence of progress: without a significant trend a healthy run is ``steady``, never ``improving``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainvitals.detectors.trend import Trend
from trainvitals.findings import Category, Decision, Finding, Severity, Verdict, VerdictState
from trainvitals.rulelang.model import Rule

INCIDENT_UPDATES = 20
"""Findings that open this close together, and are linked by causes, are one incident (notes/pathologies.md 4.17)."""
MIN_UPDATES = 20
"""Below so many updates the run is ``warming_up``; when it ends there, ``insufficient_data``."""

STATE_OF: Mapping[Category, VerdictState] = {
    "collapse": "collapsed",
    "over-optimization": "over_optimizing",
    "ood-drift": "drifting",
    "stall": "stalled",
    "numerics": "diverged",
}
"""State that a firing rule of a category leads to; efficiency, data and config leave the state of the policy alone, and so does a
warning about numerics that names no verdict: most spikes fall back, and a run has diverged when an error says so."""
HARMLESS: frozenset[Category] = frozenset({"efficiency", "config"})
"""Findings of these categories waste resources but leave the weights healthy: they do not move `last_healthy_step`."""
_ORDER: Mapping[Category, int] = {
    "data": 0, "config": 1, "numerics": 2, "stall": 3, "ood-drift": 4, "collapse": 5, "over-optimization": 6, "efficiency": 7,
}  # fmt: skip
"""Earlier explains later (notes/pathologies.md 4.17)."""
_WEIGHT: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}

_TRAIN_SIGNALS: tuple[tuple[str, int, str], ...] = (
    ("reward.mean", 1, "reward"),
    ("preference.accuracy", 1, "preference accuracy"),
    ("distill.divergence", -1, "divergence to the teacher"),  # before the loss, which is a policy gradient in some of these trainers
    ("optim.loss", -1, "loss"),
)
_EVAL_SIGNALS: tuple[tuple[str, int, str], ...] = (
    ("eval.score", 1, "held-out score"),
    ("eval.reward", 1, "held-out reward"),
    ("eval.accuracy", 1, "held-out accuracy"),
    ("eval.loss", -1, "held-out loss"),
)
_REWARD_TRAINERS = frozenset({"grpo", "rloo", "ppo", "async_grpo", "online_dpo", "nash_md", "xpo"})
"""For these the loss says nothing about progress: it is near 0 by construction."""

RISING_Z = 3.0
STILL_Z = 1.0
"""A trend counts from `RISING_Z` standard errors on, and until it falls below `STILL_Z`: the verdict must not flutter."""


def ancestors(rules: Sequence[Rule]) -> dict[str, frozenset[str]]:
    """For every rule id the ids of all its causes, direct and indirect; a composite counts as cause of what it absorbs."""
    direct: dict[str, set[str]] = {rule.id: set(rule.caused_by) for rule in rules}
    for rule in rules:
        for part in rule.absorbs:
            direct.setdefault(part, set()).add(rule.id)
    result: dict[str, frozenset[str]] = {}
    for rule_id in direct:
        seen: set[str] = set()
        waiting = list(direct[rule_id])
        while waiting:
            cause = waiting.pop()
            if cause not in seen:
                seen.add(cause)
                waiting.extend(direct.get(cause, ()))
        result[rule_id] = frozenset(seen - {rule_id})
    return result


@dataclass(slots=True)
class Open:
    """An open finding, as much of it as diagnosis needs."""

    finding_id: str
    rule: str
    severity: Severity
    category: Category
    step: int
    onset: int
    suppressed: bool
    incident: str
    message: str
    verdict: VerdictState | None
    stop: bool
    has_change: bool
    role: str = "independent"


def _state(entry: Open) -> VerdictState | None:
    """State of the run that a finding stands for, or None when it leaves that alone."""
    if entry.verdict is None and entry.category == "numerics" and entry.severity != "error":
        return None
    return entry.verdict or STATE_OF.get(entry.category)


class Incidents:
    """Groups open findings that are linked by causes; the first finding of a group names it."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._causes = ancestors(rules)

    def causes(self, rule: str) -> frozenset[str]:
        """Ids of all that explains a rule, directly or not."""
        return self._causes.get(rule, frozenset())

    def place(self, rule: str, step: int, open_findings: Iterable[Open]) -> tuple[str | None, str]:
        """Incident that a new finding of `rule` joins (None: it starts one), and its role: root, symptom or independent."""
        causes = self._causes.get(rule, frozenset())
        present = list(open_findings)
        for other in present:
            if other.rule in causes:
                return other.incident, "symptom"
        for other in present:
            if rule in self._causes.get(other.rule, frozenset()) and step - other.step <= INCIDENT_UPDATES:
                # Root of the incident only if it explains what the incident is named after, not one of its symptoms.
                return other.incident, "root" if other.incident == other.finding_id else "symptom"
        return None, "independent"


class VerdictMaker:
    """Keeps the verdict current. Cheap per step: it thinks on transitions and every 25 updates.

    Args:
        rules: All rules, for their categories and verdicts.
    """

    EVERY = 25

    def __init__(self, rules: Sequence[Rule], trainer: str = "unknown") -> None:
        self.incidents = Incidents(rules)
        self.trainer = trainer
        self.open: dict[str, Open] = {}
        self.current: Verdict | None = None
        self.checkpoints: list[tuple[int, str]] = []
        self.updates = 0
        self._counted = -1
        self._since: int | None = None
        self._rising: dict[str, bool] = {}
        self._train = {name: Trend(4) for name, _, _ in _TRAIN_SIGNALS}
        self._unheard: list[Mapping[str, float]] = []
        self._eval = {name: Trend(1) for name, _, _ in _EVAL_SIGNALS}
        self._next = 0
        self._unmoved: bool | None = None  # True while every gradient of the run was exactly 0; None before the first

    def values(self, values: Mapping[str, float]) -> None:
        """Take the progress signals of a frame: the trends hear of 25 frames at once, or when they are asked."""
        self._unheard.append(values)
        if len(self._unheard) >= self.EVERY:
            self._hear()
        if self._unmoved is not False and "optim.grad_norm" in values:
            self._unmoved = values["optim.grad_norm"] == 0.0

    def _hear(self) -> None:
        """Tell the trends what waits for them."""
        for name, trend in self._train.items():
            trend.extend([value for values in self._unheard if (value := values.get(name)) is not None and value - value == 0.0])
        self._unheard.clear()

    def eval_values(self, values: Mapping[str, float]) -> None:
        """Take the progress signals of an evaluation."""
        for name, trend in self._eval.items():
            value = values.get(name)
            if value is not None and value - value == 0.0:
                trend.add(value)

    def checkpoint(self, step: int, path: str) -> None:
        """A checkpoint was written; the newest 100 are remembered."""
        self.checkpoints.append((step, path))
        del self.checkpoints[:-100]

    def rewind(self, step: int) -> None:
        """The run went back to `step`: checkpoints after it belong to an abandoned line."""
        self.checkpoints = [entry for entry in self.checkpoints if entry[0] <= step]
        self._counted = min(step, self._counted)

    def take(self, finding: Finding, rule: Rule) -> None:
        """Keep track of what is open."""
        if finding.state in {"firing", "suppressed", "flapping"}:
            onset = finding.onset_step if finding.onset_step is not None else finding.step or 0
            known = self.open.get(finding.finding_id)
            self.open[finding.finding_id] = Open(
                finding.finding_id, finding.rule.id, finding.severity, finding.category, known.step if known else finding.step or 0,
                onset, finding.state == "suppressed", finding.incident_id or finding.finding_id, finding.message, rule.verdict,
                rule.action.stop == "offer", any(action.type == "set_param" for action in finding.actions), finding.role,
            )  # fmt: skip
        elif finding.state in {"resolved", "error"}:
            self.open.pop(finding.finding_id, None)

    def due(self, step: int) -> bool:
        """Whether the periodic look is due; counts the update unless values came for one that was counted."""
        if step > self._counted:
            self.updates += 1
            self._counted = step
        if step < self._next:
            return False
        self._next = step + self.EVERY
        return True

    def make(
        self, step: int, *, not_checked: Callable[[], Sequence[str]] = tuple, decided: bool = True, final: bool = False
    ) -> Verdict | None:
        """The verdict when it changed (or `final`), else None. The envelope's run, rank and ts are for the engine to fill.

        Args:
            step: Optimizer update of the verdict.
            not_checked: Gives the ids of the rules that were not decided; asked only when there is a verdict to put them in.
            decided: Whether some rule was decided.
            final: The run ends.
        """
        state, decision, reason, leader = self._judge(step, decided, final)
        key = (state, decision, leader.rule if leader else None)
        now = self.current
        if now is not None and (now.state, now.decision, now.rule) == key and not final:
            return None
        if now is None or now.state != state:
            self._since = leader.onset if leader else step
        healthy = self.last_healthy(step) if decided else None
        resume = self._resume_point(healthy) if decision == "restart_from" else None
        counts: dict[str, int] = {}
        for entry in self.open.values():
            if not entry.suppressed:
                counts[entry.severity] = counts.get(entry.severity, 0) + 1
        self.current = Verdict(
            step=step, state=state, decision=decision, reason=reason, rule=key[2], since_step=self._since, last_healthy_step=healthy,
            resume_from=resume, open_findings=dict(sorted(counts.items())), not_checked=list(not_checked()), final=final,
        )  # fmt: skip
        return self.current

    def last_healthy(self, step: int) -> int | None:
        """Last update before the onset of the earliest open warning or error that harms the weights; `step` when none is open."""
        onsets = [entry.onset for entry in self.open.values() if entry.severity != "info" and entry.category not in HARMLESS]
        healthy = min(onsets) - 1 if onsets else step
        return healthy if healthy > 0 else None

    def _resume_point(self, healthy: int | None) -> str | None:
        fitting = [path for step, path in self.checkpoints if healthy is not None and step <= healthy]
        return fitting[-1] if fitting else None

    def _judge(self, step: int, decided: bool, final: bool) -> tuple[VerdictState, Decision, str, Open | None]:
        speaking = [entry for entry in self.open.values() if not entry.suppressed and entry.severity != "info"]
        if speaking:
            leader = min(speaking, key=lambda entry: (_WEIGHT[entry.severity], _ORDER[entry.category], entry.onset, entry.rule))
            # A cause is what to act on, and the worst of its effects says how soon and how the run is called; a milder effect only where nothing else does.
            effects = [entry for entry in self.open.values() if entry.suppressed and entry.severity != "info" and _state(entry)]
            policy = [entry for entry in speaking if _state(entry)] + [entry for entry in effects if entry.severity == "error"] or effects
            shaping = leader if (leader in policy and leader.severity == "error") or not policy else min(
                policy, key=lambda entry: (_WEIGHT[entry.severity], _ORDER[entry.category], entry.onset, entry.rule)
            )  # fmt: skip
            state = _state(shaping) or self._healthy_state(final)[0]
            if self._unmoved and state in {"drifting", "collapsed"}:
                state = "stalled"  # without any gradient so far the policy is the one that it began as: it went nowhere
            return state, self._decide(leader, step), leader.message, self._cause_of(leader, speaking)
        if self.updates < MIN_UPDATES or not decided:
            if final:
                return "insufficient_data", "watch", f"The run ended after {self.updates} observed updates: too few to judge.", None
            return "warming_up", "continue", "Too early to judge.", None
        state, decision, reason = self._healthy_state(final)
        return state, decision, reason, None

    def _cause_of(self, entry: Open, speaking: Sequence[Open]) -> Open:
        """The earliest finding of the same incident that explains this one; itself when nothing does."""
        above = self.incidents.causes(entry.rule)
        causes = [other for other in speaking if other.incident == entry.incident and other.rule in above]
        return min(causes, key=lambda other: (other.onset, other.rule), default=entry)

    def _decide(self, leader: Open, step: int) -> Decision:
        if leader.severity == "error":
            if leader.category not in HARMLESS and self._resume_point(self.last_healthy(step)) is not None:
                return "restart_from"
            return "stop"
        if leader.stop:
            return "stop"
        return "adjust" if leader.has_change else "watch"

    def _healthy_state(self, final: bool) -> tuple[VerdictState, Decision, str]:
        """Improving or steady, from the trends: held-out evidence wins over training evidence."""
        self._hear()
        found: list[tuple[str, int, int]] = []
        train = _TRAIN_SIGNALS[:1] if self.trainer in _REWARD_TRAINERS or self._train["reward.mean"].blocks else _TRAIN_SIGNALS
        for signals, trends in ((_EVAL_SIGNALS, self._eval), (train, self._train)):
            for name, sign, word in signals:
                z = trends[name].z()
                if z is None:
                    continue
                direction = self._direction(name, sign * z)
                if direction:
                    found.append((word, sign, direction))
                break
        if not found:
            return "steady", "continue", "No rule fires and no progress signal shows a significant trend."
        word, sign, direction = found[0]
        moved = "rising" if sign * direction > 0 else "falling"
        if direction > 0:
            return "improving", "continue", f"No rule fires and the {word} is {moved}."
        return "steady", "watch", f"No rule fires but the {word} is {moved}."

    def _direction(self, name: str, z: float) -> int:
        """1 better, -1 worse, 0 no trend; with hysteresis."""
        for sign in (1, -1):
            key = f"{name}{'+' if sign > 0 else '-'}"
            limit = STILL_Z if self._rising.get(key) else RISING_Z
            self._rising[key] = sign * z > limit
            if self._rising[key]:
                return sign
        return 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        self._hear()
        return {
            "trainer": self.trainer,
            "open": {key: {name: getattr(entry, name) for name in Open.__slots__} for key, entry in self.open.items()},
            "current": self.current.model_dump(mode="json", by_alias=True) if self.current else None,
            "checkpoints": [list(entry) for entry in self.checkpoints],
            "updates": self.updates, "since": self._since, "next": self._next, "counted": self._counted, "rising": dict(self._rising),
            "unmoved": self._unmoved,
            "train": {name: trend.state_dict() for name, trend in self._train.items()},
            "eval": {name: trend.state_dict() for name, trend in self._eval.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.trainer = state["trainer"]
        self.open = {key: Open(**entry) for key, entry in state["open"].items()}
        self.current = Verdict.model_validate(state["current"]) if state["current"] else None
        self.checkpoints = [(step, path) for step, path in state["checkpoints"]]
        self.updates, self._since, self._next, self._counted = state["updates"], state["since"], state["next"], state["counted"]
        self._rising = dict(state["rising"])
        self._unmoved = state.get("unmoved", False)
        self._hear()  # what came before is not of this run
        for trends, saved in ((self._train, state["train"]), (self._eval, state["eval"])):
            for name, trend in trends.items():
                if name in saved:  # a state written before this signal was one of progress
                    trend.load_state_dict(saved[name])
