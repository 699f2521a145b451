"""The clinic's scores, from judged runs. Every share comes with its numerator, denominator and 95 % interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.clinic.ward import intervals
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.score import Judged


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        """The share; None without data."""
        return self.hits / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return intervals.share(self.hits, self.of)

    def __str__(self) -> str:
        if not self.of:
            return "no data"
        low, high = self.interval
        return f"{self.hits / self.of:.0%} ({self.hits}/{self.of}; {low:.0%} to {high:.0%})"


@dataclass(frozen=True)
class Rate:
    """So many events in so many healthy updates, told per 1,000."""

    events: int
    updates: int

    @property
    def value(self) -> float | None:
        """Events per 1,000 updates; None without data."""
        return 1000 * self.events / self.updates if self.updates else None

    def __str__(self) -> str:
        if not self.updates:
            return "no data"
        low, high = intervals.rate(self.events, self.updates / 1000)
        return f"{self.value:.2f} ({self.events} in {self.updates:,}; {low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Tally:
    """Scores of a set of runs.

    Attributes:
        detected: Sick runs with a warning or error after the injection.
        named: Sick runs in which a rule that names the cause spoke at all.
        false_rate: Warnings and errors while nothing was wrong; each rule counts once per run.
        false_runs: Healthy runs with any of them.
        delays: Updates from where an oracle sees the fault to the first alarm, detected runs.
        first: Sick runs whose first headline names the cause; `three`: one of the first three; undetected runs count as wrong.
        category: Sick runs whose first headline is of a right category.
        verdict: Runs whose last verdict is true; `sick_verdict` and `healthy_verdict` are its two halves.
        lines: Headlines per sick detected run.
    """

    detected: Share
    named: Share
    false_rate: Rate
    false_runs: Share
    delays: tuple[int, ...]
    first: Share
    three: Share
    category: Share
    verdict: Share
    sick_verdict: Share
    healthy_verdict: Share
    lines: float | None
    unseen: int

    @property
    def delay(self) -> float | None:
        """Median delay."""
        return intervals.median([float(delay) for delay in self.delays])


def tally(runs: Sequence[Judged], cases: Mapping[str, Case]) -> Tally:
    """Scores of these runs; sick and healthy ones may be mixed."""
    sick = [run for run in runs if run.sick]
    healthy = [run for run in runs if not run.sick]

    def share(of: Sequence[Judged], good: Iterable[bool]) -> Share:
        return Share(sum(good), len(of))

    sick_right = [_right(run, cases) for run in sick]
    healthy_right = [_right(run, cases) for run in healthy]
    lines = [len({alarm.incident for alarm in run.after}) for run in sick if run.after]
    return Tally(
        detected=share(sick, (bool(run.after) for run in sick)),
        named=share(sick, (any(alarm.rule in cases[run.case].roots for alarm in run.after) for run in sick)),
        false_rate=Rate(sum(len(run.false) for run in runs), sum(run.healthy_steps for run in runs)),
        false_runs=share(healthy, (bool(run.alarms) for run in healthy)),
        delays=tuple(sorted(run.delay for run in sick if run.delay is not None)),
        first=share(sick, (run.causes[:1] != [] and run.causes[0] in cases[run.case].roots and bool(run.after) for run in sick)),
        three=share(sick, (bool(set(run.causes[:3]) & set(cases[run.case].roots)) and bool(run.after) for run in sick)),
        category=share(sick, (_category(run) in cases[run.case].categories for run in sick)),
        verdict=Share(sum(sick_right) + sum(healthy_right), len(runs)),
        sick_verdict=Share(sum(sick_right), len(sick)),
        healthy_verdict=Share(sum(healthy_right), len(healthy)),
        lines=sum(lines) / len(lines) if lines else None,
        unseen=sum(run.visible is None for run in sick),
    )


def _right(run: Judged, cases: Mapping[str, Case]) -> bool:
    true = cases[run.case].verdicts if run.sick else HEALTHY_STATES
    return bool(run.states) and run.states[-1] in true


def _category(run: Judged) -> str | None:
    if not run.after or not run.causes:
        return None
    return next(alarm.category for alarm in run.after if alarm.rule == run.causes[0])


def first_scored(scores: Tally) -> dict[str, Any]:
    """A tally as `why` keeps it: hits and tries, events and updates, and the median delay."""
    shares = {"detected": scores.detected, "first": scores.first, "verdict": scores.verdict, "warned": scores.false_runs}
    counts: dict[str, Any] = {name: (share.hits, share.of) for name, share in shares.items()}
    return {**counts, "false": (scores.false_rate.events, scores.false_rate.updates), "delay": scores.delay}


@dataclass(frozen=True)
class PerRule:
    """One rule over all runs: how often it spoke where it should, where something else was wrong, and where nothing was."""

    rule: str
    due: int
    hit: int
    other: int
    false: int
    """Runs in which it is a named cause; in how many of those it spoke; sick runs of other faults and healthy stretches in which it did."""


def per_rule(runs: Sequence[Judged], cases: Mapping[str, Case]) -> list[PerRule]:
    """Every rule that spoke or should have."""
    rules = sorted({alarm.rule for run in runs for alarm in run.alarms} | {root for run in runs for root in cases[run.case].roots})
    found = []
    for rule in rules:
        due = [run for run in runs if rule in cases[run.case].roots]
        spoke = [run for run in runs if any(alarm.rule == rule for alarm in run.after)]
        found.append(
            PerRule(
                rule, len(due), sum(any(alarm.rule == rule for alarm in run.after) for run in due),
                sum(rule not in cases[run.case].roots for run in spoke), sum(any(alarm.rule == rule for alarm in run.false) for run in runs),
            )
        )  # fmt: skip
    return found
