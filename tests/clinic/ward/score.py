"""Judges recordings with the built-in rules and compares what they said with what was planted."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.onset import Series, Twins, series, visible
from tests.clinic.ward.record import FOLDER, LATER_WORDS, Records, first_recorded, load, run_id

from trainvitals.engine import Engine
from trainvitals.findings import Finding
from trainvitals.items import Item
from trainvitals.names import Mapper
from trainvitals.readers import own
from trainvitals.rulelang.loader import RuleSet, load_rules

SET_ASIDE = Path(__file__).with_name("set_aside.json")
LISTS = {word: Path(__file__).with_name(f"set_aside_{number}.json") for number, word in reversed([*enumerate(LATER_WORDS, 2)])}
"""What each later round consists of, the newest first: a new seed of an older round's case belongs to the round that added the seed."""
OF_THE_MACHINE = frozenset({"throughput-drop", "training-stalled"})
"""True or not depends on what else ran on the machine; recordings carry no times unless the case is about them."""
Split = str
"""``dev``; ``new fault`` and ``new seed`` of the half that was set aside; the two `splits` of a later round."""


@dataclass
class Alarm:
    """One warning or error that a reader saw: its first line in the run."""

    step: int
    rule: str
    severity: str
    category: str
    incident: str = ""
    role: str = "independent"


@dataclass
class Judged:
    """What was said about one run, beside the truth.

    Attributes:
        from_start: Rules that may speak before the onset, see `Case`; `roots`: those that name the cause.
        visible: Update at which an oracle first sees the fault, and `visible_in` the signal; None when it never does.
        alarms: Warnings and errors in order, each rule once, suppressed ones left out.
        causes: Rules in the order in which the verdict ranks them as cause.
        states: Verdict states in order of time.
    """

    case: str
    trainer: str
    seed: int
    split: Split
    sick: bool
    hard: bool
    steps: int
    onset: int
    from_start: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    visible: int | None = None
    visible_in: str = ""
    alarms: list[Alarm] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    @property
    def after(self) -> list[Alarm]:
        """Alarms after the injection, and before its effect those that read its cause off the data set or the configuration."""
        early = set(self.from_start) & set(self.roots)
        return [alarm for alarm in self.alarms if alarm.step > self.onset or alarm.rule in early] if self.sick else []

    @property
    def false(self) -> list[Alarm]:
        """Alarms while nothing was wrong."""
        return [alarm for alarm in self.alarms if not self.sick or (alarm.step <= self.onset and alarm.rule not in self.from_start)]

    @property
    def healthy_steps(self) -> int:
        """Updates at which every alarm is false."""
        return min(self.onset, self.steps) if self.sick else self.steps

    @property
    def delay(self) -> int | None:
        """Updates from where the oracle sees it (or the injection, where it does not) to the first alarm."""
        return self.after[0].step - (self.visible or self.onset + 1) if self.after else None


def set_aside() -> dict[str, Any]:
    """The fixed list: faults and seeds that no threshold may have seen."""
    loaded: dict[str, Any] = json.loads(SET_ASIDE.read_text())
    return loaded


def listed(word: str) -> dict[str, Any]:
    """The list of a later round: cases that are new, and seeds of the cases that are not."""
    loaded: dict[str, Any] = json.loads(LISTS[word].read_text())
    return loaded


def splits(word: str) -> tuple[Split, Split]:
    """The two parts of a later round."""
    return f"round {word}: new case", f"round {word}: new seed"


def split_of(case: Case, seed: int) -> Split:
    """Which part a run belongs to."""
    aside = set_aside()
    for word in LISTS:
        later, (new_case, new_seed) = listed(word), splits(word)
        if case.id in later["cases"]:
            return new_case
        if seed in later["seeds"]:
            return new_seed
    if case.id in aside["faults"]:
        return "new fault"
    return "new seed" if seed in aside["seeds"] else "dev"


def truth(case: Case, seed: int, steps: int) -> Judged:
    """What is known of a run before anybody says anything about it."""
    return Judged(case.id, case.trainer, seed, split_of(case, seed), case.sick, case.hard, steps, case.onset, case.from_start, case.roots)


def judge(records: Records, case: Case, seed: int, rules: RuleSet) -> Judged:
    """Replay one recording through a fresh engine."""
    recording = own.read("".join(json.dumps(record) + "\n" for record in records), run_id(case.id, seed), Mapper())
    steps = max((record.get("step") or 0 for record in records), default=0)
    judged = truth(case, seed, steps)
    listen(judged, recording.items, case, rules)
    return judged


def listen(judged: Judged, items: Iterable[Item], case: Case, rules: RuleSet) -> None:
    """Play items through a fresh engine and note what a reader hears."""
    engine = Engine(rules)
    seen: set[str] = set()
    for item in items:
        for output in engine.observe(item):
            if not isinstance(output, Finding):
                judged.states.append(output.state)
            elif _loud(output, case) and output.rule.id not in seen:
                seen.add(output.rule.id)
                incident = output.incident_id or ""
                judged.alarms.append(Alarm(output.step or 0, output.rule.id, output.severity, output.category, incident, output.role))
    for output in engine.close():
        if not isinstance(output, Finding):
            judged.states.append(output.state)
    judged.causes = ranked(judged.after or judged.alarms)


def _loud(finding: Finding, case: Case) -> bool:
    """Whether a reader hears of it, and it is about the training rather than about the machine that recorded it."""
    machine = finding.rule.id in OF_THE_MACHINE and finding.rule.id not in case.roots
    return finding.state == "firing" and finding.severity != "info" and not machine


def ranked(alarms: Sequence[Alarm]) -> list[str]:
    """Rules in the order in which a reader meets them as cause: incidents by their first alarm, each with its root first."""
    order: dict[str, int] = {}
    for alarm in alarms:
        order.setdefault(alarm.incident, alarm.step)
    place = {"root": 0, "independent": 1, "symptom": 2}
    return [alarm.rule for alarm in sorted(alarms, key=lambda alarm: (order[alarm.incident], place[alarm.role], alarm.step))]


def judge_all(cases: Iterable[Case], rules: RuleSet | None = None, folder: Path = FOLDER) -> list[Judged]:
    """Every run of these cases that is recorded in `folder`, in order."""
    with _collected_by_hand():
        return _judge_all(cases, rules or load_rules(), folder)


@contextmanager
def _collected_by_hand() -> Iterator[None]:
    """The collector goes through everything that is loaded, torch among it, hundreds of times while a thousand engines are made: a third of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


Recall = Callable[[Case, Path], "list[Judged] | None"]
Note = Callable[[Case, Path, Sequence[Judged]], None]
_memory: list[tuple[Recall, Note]] = []


@contextmanager
def remembering(recall: Recall, note: Note) -> Iterator[None]:
    """Within, `judge_all` asks `recall` for a case before it judges it, and tells `note` what it judged; see `kept`."""
    _memory.append((recall, note))
    try:
        yield
    finally:
        _memory.pop()


def _judge_all(cases: Iterable[Case], rules: RuleSet, folder: Path) -> list[Judged]:
    twins: dict[str, Twins] = {}
    found = []
    recall, note = _memory[-1] if _memory else (lambda case, folder: None, lambda case, folder, found: None)
    for case in cases:
        known = recall(case, folder)
        if known is not None:
            found += known
            continue
        gc.collect()
        runs, before = load(case.id, folder), len(found)
        if case.sick and case.twin not in twins:
            # A twin of an older round serves the newer ones as well, with the seeds that it had: the oracle must not move with new ones.
            twins[case.twin] = Twins(series(records) for records in first_recorded(case.twin).values())
        for seed in sorted(runs):
            judged = judge(runs[seed], case, seed, rules)
            if case.sick:
                signals: Series = series(runs[seed])
                judged.visible, judged.visible_in = visible(signals, twins[case.twin], case.onset) or (None, "")
            found.append(judged)
        note(case, folder, found[before:])
    return found


def right_verdict(judged: Judged, case: Case) -> bool:
    """Whether the last verdict is one of the true ones."""
    return bool(judged.states) and judged.states[-1] in (case.verdicts if case.sick else HEALTHY_STATES)


def as_json(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """For the result file."""
    return [asdict(judged) for judged in found]
