"""The other tools' alerts on the same recordings, scored as ours are: the part "Against the others" of the page.

An answer of a tool becomes a `Judged` with its own alarms, and goes through the same tally. Where the two differ, the tool gains: a
rule of theirs that spoke too early may be the detection as well, and any of the words of a rule counts as the right category.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.clinic.ward import intervals, peers
from tests.clinic.ward.case import Case
from tests.clinic.ward.record import run_id
from tests.clinic.ward.score import Alarm, Judged
from tests.clinic.ward.tally import Rate, Share, Tally, tally

OURS = "trainvitals"
BRIEF = {
    "rldoctor": "its README's callback: a check every 25 rows from row 60 on",
    "rldoctor-report": "`rl-doctor diagnose` once, at the end",
    "rlprobe": "`on_finding`: a diagnosis every 25 steps",
    "rlprobe-report": "`rlprobe doctor` once, at the end",
    "rlwatch": "`attach(trainer=trainer)`",
    "trainpulse": "`make_hf_callback()`",
    "fixed-thresholds": "SageMaker Debugger's documented defaults, each rule once",
    "nan-only": "the first number in the log that is not finite",
    "always-silent": "says nothing",
}
"""Settings as the table tells them; the whole text is in the result file."""
HEAD = (
    "tool", "settings", "runs (inside its trainers)", "detected", "right category first", "healthy runs warned", "false alarms per 1,000 healthy updates",
    "median delay", "microseconds per row",
)  # fmt: skip
CHEAP = 50
"""Microseconds of a row with all rules that we set ourselves as a bound when we first measured the others."""


@dataclass(frozen=True)
class Line:
    """Scores of one tool on a set of runs.

    Attributes:
        name: As in the results; `OURS` for us.
        label: Name and version.
        inside: Runs of trainers that its documentation speaks of.
        failed: Runs in which it raised.
        scores: As ours are tallied, `category` apart.
        category: Sick runs whose first alarm speaks of a right category.
        at_end: It speaks once, at the end: a delay means nothing.
        micros: Cost of a row, the median over runs; None where not measured.
    """

    name: str
    label: str
    settings: str
    runs: frozenset[str]
    inside: int
    failed: int
    scores: Tally
    category: Share
    at_end: bool
    micros: float | None

    def cells(self) -> tuple[Any, ...]:
        """Row of the table."""
        delay = "at the end" if self.at_end else "none detected" if self.scores.delay is None else f"{self.scores.delay:g}"
        failed = f", raised in {self.failed}" if self.failed else ""
        return (
            self.label, self.settings, f"{len(self.runs)} ({self.inside}){failed}", self.scores.detected, self.category, self.scores.false_runs,
            self.scores.false_rate, delay, "" if self.micros is None else f"{self.micros:,.0f}",
        )  # fmt: skip


def section(found: Sequence[Judged], cases: Mapping[str, Case], path: Path = peers.RESULT) -> str:
    """Part of the page; empty without results."""
    results = peers.read(path) if path.exists() else {"tools": {}}
    lines = compare(found, cases, results)
    if not lines:
        return ""
    home = compare([run for run in found if run.trainer in peers.GROUP], cases, results)
    parts = [
        f"## Against the others\n\n{_INTRODUCTION}", _table(lines),
        f"The same on {_HOME} only, which rl-doctor, rlprobe and rlwatch are documented for:\n\n{_table(home)}" if home else "",
        _floor(lines, home, results.get("own") or {}), _ahead(lines), _NOTES,
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def unseen(found: Sequence[Judged], first: Sequence[Mapping[str, Any]], cases: Mapping[str, Case], path: Path = peers.RESULT_LATER) -> str:
    """The later rounds, where nobody had the advantage of having seen the faults: us by our first looks, the others by the same runs. Empty without results.

    Args:
        found: Every run of the rounds that were scored.
        first: What each of these rounds said at its first look, as `why` keeps it.
        cases: Every case.
        path: Result file.
    """
    results = peers.read(path) if path.exists() else {"tools": {}}
    lines = [line for name, entry in results["tools"].items() if (line := score(name, entry, found, cases)) is not None]
    if not lines:
        return ""
    shares = {name: Share(sum(kept[name][0] for kept in first), sum(kept[name][1] for kept in first)) for name in ("detected", "warned")}
    false = Rate(sum(kept["false"][0] for kept in first), sum(kept["false"][1] for kept in first))
    rows = [("tool", "runs (inside its trainers)", "detected", "healthy runs warned", "false alarms per 1,000 healthy updates")]
    rows += [tuple("---" for _ in rows[0]), (f"**{OURS}**, first looks", f"{len(found)} ({len(found)})", str(shares["detected"]), str(shares["warned"]), str(false))]
    rows += [(line.label, line.cells()[2], str(line.scores.detected), str(line.scores.false_runs), str(line.scores.false_rate)) for line in lines]
    return f"### On what nobody had seen\n\n{_UNSEEN}\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def compare(found: Sequence[Judged], cases: Mapping[str, Case], results: Mapping[str, Any]) -> list[Line]:
    """Every tool that played any of these runs, each group of tools behind our scores on the very same runs."""
    lines = [line for name, entry in results["tools"].items() if (line := score(name, entry, found, cases)) is not None]
    ordered: list[Line] = []
    for runs in dict.fromkeys(line.runs for line in lines):
        ordered += [ours(found, cases, runs, results.get("own")), *(line for line in lines if line.runs == runs)]
    return ordered


def ours(found: Sequence[Judged], cases: Mapping[str, Case], names: Collection[str], cost: Mapping[str, Any] | None = None) -> Line:
    """Our scores on these runs."""
    runs = [run for run in found if run_id(run.case, run.seed) in names]
    scores = tally(runs, cases)
    return Line(
        OURS, f"**{OURS}**", "all stable rules, as everywhere on this page", frozenset(names), len(runs), 0, scores, scores.category, False, cost["us_per_row"] if cost else None
    )


def score(name: str, entry: Mapping[str, Any], found: Sequence[Judged], cases: Mapping[str, Case]) -> Line | None:
    """Scores of one tool on those of these runs that it played; None when it played none."""
    answers: Mapping[str, Any] = entry["runs"]
    played = [run for run in found if run_id(run.case, run.seed) in answers]
    if not played:
        return None
    told = [answers[run_id(run.case, run.seed)] for run in played]
    judged = [judge(run, answer["alerts"]) for run, answer in zip(played, told, strict=True)]
    sick = [run for run in judged if run.sick]
    words = peers.CATEGORIES[name]
    right = sum(bool(set(words[run.after[0].rule]) & set(cases[run.case].categories)) for run in sick if run.after)
    trainers = _trainers(name)
    timed = [float(answer["us_per_row"]) for answer in told if answer.get("rows") and "us_per_row" in answer]
    return Line(
        name, f"{name} {entry['version']}".strip(), BRIEF.get(name, entry["settings"]), frozenset(run_id(run.case, run.seed) for run in played),
        sum(trainers is None or run.trainer in trainers for run in played), sum(answer["status"] == "failed" for answer in told), tally(judged, cases),
        Share(right, len(sick)), entry["mode"] == "report", intervals.median(timed),
    )  # fmt: skip


def judge(run: Judged, alerts: Sequence[Sequence[Any]]) -> Judged:
    """One run with the tool's alarms for ours: each rule once before the fault begins and once after, severities for reading left out."""
    alarms: list[Alarm] = []
    seen: set[tuple[str, bool]] = set()
    for step, rule, severity, *_ in sorted(alerts, key=lambda alert: alert[0]):
        part = (rule, run.sick and step > run.onset)
        if severity in peers.LOUD and part not in seen:
            seen.add(part)
            alarms.append(Alarm(step, rule, severity, ""))
    return replace(run, alarms=alarms, causes=[], states=[])


def _trainers(name: str) -> frozenset[str] | None:
    return next((peer.trainers for peer in peers.PEERS if name in peers.names_of(peer).values()), None)


def _table(lines: Sequence[Line]) -> str:
    rows = [HEAD, tuple("---" for _ in HEAD), *(line.cells() for line in lines)]
    return "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)


def _floor(lines: Sequence[Line], home: Sequence[Line], own: Mapping[str, Any]) -> str:
    """What the best of them does must be reached: detection of rl-doctor, silence of rlprobe, cost of trainpulse."""
    told = []
    for where, some in (("all runs", lines), (_HOME, home)):
        us, them = _pairs(some, "rldoctor", "rldoctor-report")
        if us and them:
            best = max(them, key=lambda line: line.scores.detected.value or 0.0)
            met = _at_least(us.scores.detected.value, best.scores.detected.value)
            told.append(f"* *Detection of rl-doctor* ({best.name}, its better mode), {where}: {us.scores.detected} against {best.scores.detected}: {met}.")
    for where, some in (("all runs", lines), (_HOME, home)):
        us, them = _pairs(some, "rlprobe")
        for line in them if us else ():
            warned = _at_least(_negative(us.scores.false_runs.value), _negative(line.scores.false_runs.value))
            rate = _at_least(_negative(us.scores.false_rate.value), _negative(line.scores.false_rate.value))
            told.append(
                f"* *Silence of rlprobe*, {where}: healthy runs warned {us.scores.false_runs} against {line.scores.false_runs}: {warned}; "
                f"false alarms per 1,000 healthy updates {us.scores.false_rate} against {line.scores.false_rate}: {rate}."
            )
    us, them = _pairs(lines, "trainpulse")
    for line in them:
        if us and us.micros is not None and line.micros is not None:
            told.append(
                f"* *Cost of trainpulse*, which reads three numbers of a row: {us.micros:,.0f} microseconds a row against {line.micros:,.0f}: "
                f"{_at_least(-us.micros, -line.micros)}. Our first row compiles the rules of the trainer; without it we take {own['us_later']:,} in these "
                f"runs of some hundred rows, in which all is new and hardly a rule may rest. What a row costs from row 100 to row 100,000, of which we set ourselves at most {CHEAP}, is in [cost](benchmarks.md)."
            )
    return "The floor that we set ourselves, the best that each of them does:\n\n" + "\n".join(told) + "\n" if told else ""


def _pairs(lines: Sequence[Line], *names: str) -> tuple[Line | None, list[Line]]:
    """The tools of these names, and us on the runs of the first of them."""
    them = [line for line in lines if line.name in names]
    return next((line for line in lines if line.name == OURS and them and line.runs == them[0].runs), None), them


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _at_least(mine: float | None, theirs: float | None) -> str:
    if mine is None or theirs is None:
        return "no data"
    return "met" if mine >= theirs else "**not met**"


def _ahead(lines: Sequence[Line]) -> str:
    """Who beats us in any one number, with what it pays for it."""
    columns: tuple[tuple[str, Callable[[Line], float | None], Callable[[Line], str]], ...] = (
        ("detected", lambda line: line.scores.detected.value, lambda line: f"{line.scores.detected.value:.0%}, warns on {_percent(line.scores.false_runs)} of healthy runs"),
        ("right category first", lambda line: line.category.value, lambda line: f"{line.category.value:.0%}"),
        ("healthy runs warned", lambda line: _negative(line.scores.false_runs.value), lambda line: f"{_percent(line.scores.false_runs)}, detects {_percent(line.scores.detected)}"),
        ("median delay", lambda line: None if line.at_end else _negative(line.scores.delay), lambda line: f"{line.scores.delay:g}, over the {_percent(line.scores.detected)} that it detects"),
        ("microseconds per row", lambda line: _negative(line.micros), lambda line: f"{line.micros:,.0f}"),
    )  # fmt: skip
    told = []
    for column, value, words in columns:
        better = []
        for line in lines:
            us = next(other for other in lines if other.name == OURS and other.runs == line.runs)
            mine, theirs = value(us), value(line)
            if mine is not None and theirs is not None and theirs > mine:
                better.append(f"{line.name} ({words(line)})")
        told.append(f"* {column}: {', '.join(better) or 'nobody'}")
    return "Who is ahead of us in one number (first table):\n\n" + "\n".join(told) + "\n"


def _percent(share: Share) -> str:
    return "none" if share.value is None else f"{share.value:.0%}"


_UNSEEN = (
    "The table above flatters us: our rules were tuned on half of those runs. Here are the later rounds together, whose faults neither we nor the others had seen: "
    "what our rules of the day said at the first look, before anything was repaired, and what the other tools say of the very same recordings "
    "(`python -m tests.clinic.ward.peers --later`). A share of detected faults is worth what the share of healthy runs warned beside it leaves of it.\n"
)
_HOME = "runs of GRPO (also asynchronous), RLOO and PPO"
_INTRODUCTION = (
    "The same recordings, both halves, through other tools at their default thresholds (`tests/clinic/ward/peers.py`), and through three "
    "baselines. Scored as ours: an alarm is what asks a reader to act (notes of severity `info` are not counted), detected means any alarm after "
    "the injection, right category first means that the first of them speaks of what was planted (a rule of theirs that speaks of several things "
    "is right with any of them), false is any alarm while nothing was wrong, each rule once per run. A tool that is documented for other trainers "
    "only is played on all: none of them refuses. The first row of each group is us on the same runs.\n"
)
_NOTES = """What this comparison can and cannot say:

* We wrote the faults, the healthy runs and the scoring, and our rules were tuned on the development half of these runs. The others saw none.
* Tools see what TRL logs, one row per update. Recordings hold no completions and, but for the cases about time, no times: what a tool
  reads from text or step times is not tested. We are scored as attached: our hooks also measure what TRL does not log.
* Nearly all runs have 60 to 120 updates. rl-doctor looks first at row 60 (with its cadence: 75) and rlprobe every 25 steps, so their delays are those of their cadence
  and a fault late in a run may get one look or none. Their reports at the end do not suffer from that. Long runs would be kinder.
* At TRL's default of a row every 10 updates rl-doctor would not look at such a run at all; one row per update is the kind setting for all of them.
* TRL and transformers hide NaN: a loss that is not finite is logged as 0.0, and NaN is dropped from other metrics. What is left is usually the gradient norm,
  so "NaN only" and every loss check see little.
* Fixed thresholds fire on most healthy runs too: a share of detected faults is worth what the share of healthy runs warned beside it leaves of it.
* Not every tool has played every run: see the runs of each row. `python -m tests.clinic.ward.peers` plays what is missing. Rows above different runs
  must not be compared with each other, only with us on the same runs.
* The microseconds of each tool are wall time in its callbacks per row, cold, in a process per run, from the answers played first, on a shared
  machine; ours are CPU time of name table and engine on such rows, measured later on the same machine, without hooks and files ([cost](benchmarks.md) has those). Trust orders of
  magnitude. Short runs hide a cost that grows with the run: rl-doctor and rlprobe read all of it again at each check.
"""
