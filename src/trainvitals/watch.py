"""A rule bound to one run: `Watched` per rule, `Watch` per instance of it (one per label value with ``for_each``)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any

from trainvitals.items import RunStart
from trainvitals.rule_state import Life
from trainvitals.rulelang.compile import Binder, Bound, Names, RunInfo
from trainvitals.rulelang.expr import Expr
from trainvitals.rulelang.model import Rule, Sustain, Value
from trainvitals.rulelang.pace import pace, reach
from trainvitals.rulelang.proof import Proof

MAX_INSTANCES = 64
"""Label values that one rule watches; more are counted and reported, not watched."""

BLANK_UPDATES = 5
"""Updates for which rules look away after a legal jump (notes/pathologies.md section 3, universal suppressors)."""
BLANK_AFTER = frozenset({"resume", "ref_sync", "schedule_change", "config_change"})
BLANKED_CATEGORIES = frozenset({"collapse", "over-optimization", "ood-drift", "data"})
"""Only statistical rules look away: a NaN, a stall or a full memory is never a legal jump."""

WAIT, MAX_WAIT = 64, 4096
"""Updates between two attempts at a proof: an attempt costs about as much as ten looks, and who failed often will fail again."""

NEVER = 2**62
"""A step that no run reaches."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Status:
    """What rule functions (``firing("id")``) see of a rule; satisfies `compile.RuleStatus`."""

    __slots__ = ("firing", "firing_since", "last_fired")

    def __init__(self) -> None:
        self.firing = False
        self.firing_since: int | None = None
        self.last_fired: int | None = None


class Watch:
    """One instance of a rule.

    Attributes:
        calm: Copy of ``life.quiet`` for the fast path: another false value changes nothing.
        finding_id: Id of the open record; None when nothing is open on the record.
        began: Update at which what that record tells began (`onset`).
        suppressed_by: Rule that hides the open record.
        hold_until: Step until which an opening waits for a pending cause to open first.
        count: Records of state firing in this episode, repeats included.
        said_at: Step of the newest record of this episode.
        next_time: Ticks before this time are skipped (rules with a clock).
        pace: Updates between two evaluations while calm (`rulelang.pace`).
        next_step: While calm, updates before this one are skipped.
        awake_until: Until this step it is looked at on every update, because one of its series brought news.
        until: After this step the condition can never be true.
        blanked: It looks away after a legal jump.
        proof: Why its condition must be false, as long as that holds.
        prove_at: No proof is sought before this step.
    """

    __slots__ = (
        "awake_until", "began", "blanked", "bounds", "calm", "clear", "count", "finding_id", "hold_until", "label", "life", "next_step", "next_time", "owner", "pace", "proof", "prove_at", "read",
        "said_at", "suppressed_by", "unless", "until", "wait", "warm_until", "when",
    )  # fmt: skip

    def __init__(self, owner: Watched, label: tuple[str, str] | None, warm_until: int) -> None:
        rule = owner.rule
        ending = rule.clear_sustain or Sustain(rule.sustain.of, rule.sustain.of)
        self.owner = owner
        self.label = label
        self.life = Life(rule.sustain.hits, rule.sustain.of, ending.hits, ending.of)
        self.warm_until = warm_until
        self.calm = True
        self.finding_id: str | None = None
        self.began: int | None = None
        self.suppressed_by: str | None = None
        self.hold_until: int | None = None
        self.count = 0
        self.said_at = 0
        self.next_time = float("-inf")
        self.pace = 1
        self.next_step = 0
        self.awake_until = -1
        self.until = math.inf
        self.blanked = rule.category in BLANKED_CATEGORIES
        self.bounds: dict[int, Bound] = {}
        self.proof: Proof | None = None
        self.prove_at = 0
        self.wait = WAIT

    def bind(self, binder: Binder) -> None:
        """Bind every expression of the rule, those of its texts and suggestions too: their windows must fill from now on."""
        rule = self.owner.rule
        params, lets = rule.param_values, rule.lets
        origins = {name: param.origin for name, param in rule.params.items()}
        named: Names = {}
        self.bounds = {id(expr): binder.bind(expr, params, lets, self.label, origins=origins, named=named) for expr in self._expressions()}
        self.when = self.bounds[id(rule.when)]
        self.pace = rule.clock_updates or pace(self.when.narrowest)
        self.until = self.when.until
        self.read = self.when.read
        self.clear = self.bounds[id(rule.clear)] if rule.clear is not None else None
        self.unless = [self.bounds[id(expr)] for expr in rule.unless.values()]
        self.proof = None

    def look(self, step: int) -> Value:
        """The value of the condition; None also for false from a calm rule, which changes nothing but the count of decisions."""
        if not self.calm:
            return self.read()
        # It rests until its next turn. Anchored to the step, so that a pause shifts nothing.
        self.next_step = NEVER if step > self.until else step + 1 if step < self.awake_until else step - step % self.pace + self.pace
        proof = self.proof
        read = proof.rest if proof is not None and (proof.seen == proof.clock.moved or proof.holds()) else self.read
        if read is not None:
            value = read()
            if value is not False:
                return value
            if step >= self.prove_at:
                self.prove(step)
        self.life.decided += 1
        return None

    def prove(self, step: int) -> None:
        """Its condition was computed and is false: perhaps it must be. Whoever fails, if only in part, tries again, but ever more rarely."""
        self.proof = self.when.prove()
        if self.proof is None or self.proof.rest is not None:
            self.wait = min(2 * self.wait, MAX_WAIT)
        self.prove_at = step + self.wait

    def _expressions(self) -> list[Expr]:
        rule = self.owner.rule
        return [expr for expr in rule.expressions if expr is not rule.applies_where]

    def value(self, expr: Expr) -> Value:
        """Value of one of the rule's expressions now."""
        return self.bounds[id(expr)].read()

    @property
    def blind_reason(self) -> str:
        """Which inputs are missing, in words."""
        if self.owner.rule.clock_seconds is not None:
            return "no timer events came"
        store = self.when._binder.store
        lacking = [f"{name} ({why})" for name in sorted(self.when.signals) if (why := self._missing(store, name)) is not None]
        notes = list(self.when.notes)
        return "; ".join([*notes, ", ".join(lacking)] if lacking else notes) or "its windows never filled"

    def _missing(self, store: Any, name: str) -> str | None:
        spec = store.catalogue.get(name)
        key = f"{name}{{{self.label[0]}={self.label[1]}}}" if self.label and spec and spec.label == self.label[0] else name
        why: str | None = store.missing(key)
        return why

    def unknown(self) -> list[str]:
        """Signals of the condition that are missing now."""
        store = self.when._binder.store
        return sorted({*self.when.missing, *(name for name in self.when.signals if self._missing(store, name) is not None)})

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "life": self.life.state_dict(), "warm_until": self.warm_until, "finding_id": self.finding_id, "began": self.began,
            "suppressed_by": self.suppressed_by, "hold_until": self.hold_until, "count": self.count, "said_at": self.said_at,
            "next_step": self.next_step, "awake_until": self.awake_until, "next_time": None if self.next_time == float("-inf") else self.next_time,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.life.load_state_dict(state["life"])
        self.calm = self.life.quiet
        self.warm_until, self.finding_id, self.suppressed_by = state["warm_until"], state["finding_id"], state["suppressed_by"]
        self.hold_until, self.count, self.said_at = state["hold_until"], state["count"], state["said_at"]
        self.next_step, self.awake_until = state["next_step"], state["awake_until"]
        self.next_time = float("-inf") if state["next_time"] is None else state["next_time"]
        self.began = state.get("began")  # older states have none


class Watched:
    """One rule in this run.

    Attributes:
        off: Why it is not evaluated (a `RuleCoverage` status), or None.
        reason: The same in words.
        causes: Rules that explain this one, composites that absorb it included.
        overflow: Label values beyond `MAX_INSTANCES`.
        applied: Parameters that were changed on this rule's advice: it does not suggest them again.
    """

    __slots__ = ("applied", "blind_at", "causes", "instances", "labelled", "missing", "off", "overflow", "parts", "reason", "rule", "status")

    def __init__(self, rule: Rule, labelled: frozenset[str]) -> None:
        self.rule = rule
        self.status = Status()
        self.instances: dict[str, Watch] = {}
        self.labelled = labelled
        self.off: str | None = None
        self.reason: str | None = None
        self.missing: tuple[str, ...] = ()
        self.causes: list[Watched] = []
        self.parts: list[Watched] = []
        self.overflow: set[str] = set()
        self.applied: set[str] = set()
        self.blind_at: int | None = None

    def bind(self, binder: Binder, trainer: str, emits: frozenset[str] | None, origin: int | None) -> None:
        """Decide whether the rule applies to this run, and bind its instances; what they have counted so far stays.

        Args:
            binder: Of the run.
            trainer: Of the run; ``unknown`` excludes nothing.
            emits: Signals that can come; None when unknown.
            origin: Update before the first one seen; None before that.
        """
        rule = self.rule
        self.off = self.reason = None
        if rule.trainers and trainer not in rule.trainers and trainer != "unknown":
            self.off, self.reason = "not_applicable", f"applies to {', '.join(rule.trainers)}; this is {trainer}"
            return
        if rule.applies_where is not None:
            applies = binder.bind(rule.applies_where, rule.param_values, rule.lets)()
            if applies is False:
                self.off, self.reason = "not_applicable", f"applies where {rule.applies_where.text}"
                return
            if applies is not True:
                self.off, self.reason = "inactive", f"applies where {rule.applies_where.text}, which is not known of this run"
                return
        if rule.for_each is None:
            watch = self.instances.get("") or self.watch(None, origin)
            watch.bind(binder)
            self.missing = watch.when.missing
            if watch.when.status == "inactive":
                self.off, self.reason = "inactive", f"this run does not emit {', '.join(watch.when.missing)}"
            elif watch.when.unset and not watch.when.possible:
                self.off, self.reason = "inactive", f"needs settings that are not known of this run: {', '.join(watch.when.unset)}"
            return
        if self.labelled and emits is not None and not self.labelled & emits:
            self.missing = tuple(sorted(self.labelled))
            self.off, self.reason = "inactive", f"this run does not emit {', '.join(self.missing)}"
            return
        for watch in self.instances.values():
            watch.bind(binder)

    def watch(self, label: tuple[str, str] | None, origin: int | None) -> Watch:
        """A new instance; its warm-up counts from `origin`."""
        watch = Watch(self, label, origin + self.rule.warmup if origin is not None else 0)
        self.instances[label[1] if label else ""] = watch
        return watch

    @property
    def reach(self) -> int:
        """Updates before which the condition cannot be decided."""
        return reach(self.rule.when, self.rule.lets, self.rule.param_values)

    @property
    def decided(self) -> int:
        """Evaluations of all instances that gave true or false."""
        return sum(watch.life.decided for watch in self.instances.values())

    @property
    def openings(self) -> int:
        """Openings of all instances."""
        return sum(watch.life.openings for watch in self.instances.values())

    def refresh(self, step: int) -> None:
        """Bring the status up to date after a transition."""
        firing = [watch.life.opened for watch in self.instances.values() if watch.life.firing and watch.life.opened is not None]
        self.status.firing = bool(firing)
        self.status.firing_since = min(firing, default=None)
        if firing:
            self.status.last_fired = step

    def explains(self, step: int, hold: int) -> bool:
        """Whether it fires now, or did within the last `hold` updates."""
        status = self.status
        return status.firing or (hold > 0 and status.last_fired is not None and step - status.last_fired <= hold)

    @property
    def pending(self) -> bool:
        """Whether some instance has hits but does not fire yet."""
        return any(watch.life.bits and not watch.life.firing for watch in self.instances.values())


def link(rules: Sequence[Watched]) -> None:
    """Connect rules with their causes and parts; references to rules that are not loaded are ignored."""
    by_id = {watched.rule.id: watched for watched in rules}
    for watched in rules:
        watched.causes = [by_id[name] for name in watched.rule.caused_by if name in by_id]
        watched.parts = [by_id[name] for name in watched.rule.absorbs if name in by_id]
    for watched in rules:
        for part in watched.parts:
            part.causes.append(watched)


def run_info(start: RunStart) -> RunInfo:
    """What expressions see of the run as ``run.*``."""
    every = start.config.get("logging_steps")
    known = isinstance(every, int | float) and not isinstance(every, bool) and every >= 1
    return RunInfo(start.trainer, start.framework, start.world_size, start.total_steps, every if known else None)


def clean_label(text: str) -> str:
    """A label value made safe to print: names of reward functions come from user code."""
    return _CONTROL.sub("?", text)[:80]


def fingerprint(rule: Rule, run: str, label: tuple[str, str] | None) -> str:
    """Hash of rule, its major version, run and instance: the same over the whole run, without values or steps."""
    text = "|".join((rule.id, rule.version.partition(".")[0], run, *(label or ())))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
