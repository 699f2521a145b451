"""Coverage: which rules could do their work, and why the others could not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trainvitals.events import split_label
from trainvitals.findings import CoverageRecord, RuleCoverage
from trainvitals.watch import MAX_INSTANCES, Watched

if TYPE_CHECKING:
    from trainvitals.rulelang.loader import RuleSet
    from trainvitals.rulelang.windows import Store

CoverageStatus = Literal["evaluated", "degraded", "blind", "inactive", "not_applicable", "disabled", "error"]


def coverage_of(watched: Watched) -> RuleCoverage:
    """One rule's line."""
    rule, decided = watched.rule, watched.decided
    status: CoverageStatus
    reason, missing = watched.reason, list(watched.missing)
    if watched.off == "not_applicable":
        status = "not_applicable"
    elif watched.off == "inactive":
        status = "inactive"
    elif watched.off == "error":
        status = "error"
    elif not decided:
        status = "blind"
        watch = next(iter(watched.instances.values()), None)
        reason = watch.blind_reason if watch is not None else "no series with its label came"
        missing = watch.unknown() if watch is not None else sorted(watched.labelled)
    elif any(watch.when.status == "degraded" for watch in watched.instances.values()):
        status = "degraded"
        reason = f"decided without {', '.join(missing)}"
    else:
        status = "evaluated"
    if watched.overflow:
        reason = f"{len(watched.overflow)} values of '{rule.for_each}' beyond the first {MAX_INSTANCES} were not watched"
    return RuleCoverage(id=rule.id, status=status, reason=reason, missing=missing, decided=decided, required=rule.required)


def not_checked(rules: Iterable[Watched]) -> list[str]:
    """Ids of rules that apply to the run but were not decided, in alphabetical order."""
    return sorted(
        watched.rule.id for watched in rules if watched.off in {"inactive", "error"} or (watched.off is None and not watched.decided)
    )


def coverage(
    rules: Sequence[Watched], ruleset: RuleSet, store: Store, keys: Iterable[str], late: int, envelope: dict[str, Any]
) -> CoverageRecord:
    """The record for a whole run; signals that no rule reads are counted as seen, once."""
    lines = [coverage_of(watched) for watched in rules]
    lines += [RuleCoverage(id=rule_id, status="disabled", reason=reason) for rule_id, reason in ruleset.disabled.items()]
    names = sorted({split_label(key)[0] for key in keys})
    signals: dict[str, int] = {}
    read = store._series
    for key, series in read.items():
        name = split_label(key)[0]
        if series.total or series.nonfinite:
            signals[name] = max(signals.get(name, 0), series.total + series.nonfinite)
    for name in names:
        signals.setdefault(name, 1)
    return CoverageRecord(
        **envelope,
        rules=sorted(lines, key=lambda line: line.id),
        signals=dict(sorted(signals.items())),
        late_events=late,
        tuned=list(ruleset.tuned),
    )


def blind(rules: Iterable[Watched], step: int, origin: int, trainer: str, keys: Iterable[str]) -> list[tuple[Watched, str, list[str]]]:
    """Rules whose patience ends at this step and that were not decided, each once: rule, reason, missing signals.

    Rules with a clock are left to the coverage record: a log without timer events is no news. So are rules for particular
    trainers when the trainer is unknown and nothing that they read came: they are not meant.
    """
    seen = {key.partition("{")[0] for key in keys}
    found: list[tuple[Watched, str, list[str]]] = []
    for watched in rules:
        if watched.blind_at is None or step < watched.blind_at:
            continue
        watched.blind_at = None
        if watched.off is not None:
            continue
        rule = watched.rule
        if watched.overflow:
            text = f"Only the first {MAX_INSTANCES} values of '{rule.for_each}' are watched; {len(watched.overflow)} more are not."
            found.append((watched, text, []))
        elif not watched.decided and rule.clock_seconds is None and not (trainer == "unknown" and rule.trainers and not rule.signals & seen):
            watch = next(iter(watched.instances.values()), None)
            reason = watch.blind_reason if watch is not None else "no series with its label came"
            unknown = watch.unknown() if watch is not None else sorted(watched.labelled)
            found.append((watched, f"Not decided once in {step - origin} updates: {reason}.", unknown))
    return found
