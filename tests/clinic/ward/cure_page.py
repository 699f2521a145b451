"""The part of the page on cures: what came of each arm by fault, and what each suggestion is worth beside a random one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.clinic.ward import cure, plots
from tests.clinic.ward.case import Case
from tests.clinic.ward.cure import ARMS
from tests.clinic.ward.tables import table
from tests.clinic.ward.tally import Share
from tests.clinic.ward.why import CURE_MISSED, CURE_TRIED


def _forks(cases: Mapping[str, Case], *, unseen: bool) -> list[dict[str, Any]]:
    """Forked runs, of the seeds that a case is recorded with or of those that nobody saw while the advice was written."""
    return [entry for entry in cure.read()["forks"] if entry["case"] in cases and (entry["seed"] not in cases[entry["case"]].seeds) == unseen]


def _arm(entries: Sequence[Mapping[str, Any]], arm: str) -> Share:
    """How often an arm recovered, of the runs in which it was trained."""
    trained = [entry["arms"][arm]["recovered"] for entry in entries if arm in entry["arms"]]
    return Share(sum(trained), len(trained))


def _curable(entries: Sequence[dict[str, Any]], cases: Mapping[str, Case]) -> list[dict[str, Any]]:
    """Those whose fault a parameter repairs."""
    return [entry for entry in entries if cases[entry["case"]].cure]


def _right_helps(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those in which the right change did not fail as well."""
    return [entry for entry in entries if entry["arms"].get("right", {}).get("recovered", True)]


def by_fault(entries: Sequence[Mapping[str, Any]], arm: str) -> float | None:
    """Share that recovers with each fault counted once, however many seeds of it were forked."""
    faults: dict[str, list[bool]] = {}
    for entry in entries:
        if arm in entry["arms"]:
            faults.setdefault(entry["case"], []).append(entry["arms"][arm]["recovered"])
    return statistics.fmean(statistics.fmean(found) for found in faults.values()) if faults else None


def cured(cases: Mapping[str, Case], *, unseen: bool) -> tuple[Share | None, float | None]:
    """Recovered by the first suggestion, and by how much more often than by the random one, of the curable: where the right change did not fail as well."""
    entries = _right_helps(_curable(_forks(cases, unseen=unseen), cases))
    ours, control = _arm(entries, "suggested"), _arm(entries, "random")
    if not ours.of:
        return None, None
    return ours, None if ours.value is None or control.value is None else ours.value - control.value


CURE_TEXT = """Each sick run with a fault that a parameter can repair trains until its first alarm and then forks into four trainings from the same
checkpoint (the newest before the last healthy step of the verdict, or the beginning; PPO cannot be resumed and begins anew), each as long as a whole
run. It recovers when the goal of its last ten updates is within 5 % of the healthy twins' or two of their standard deviations; where standing still would
reach that goal as well (the likelihood of chosen answers), what was to be learned must be reached too. *Right* is the change that undoes the injection:
its share tells how often the alarm came before the damage was done. *Random* changes one parameter that our rules for this trainer ever suggest, by a
factor of 0.1 to 10. A learning rate that an arm sets wins over the planted change of the rate, as it does where somebody sets it in the scheduler.

*Recorded seeds* were looked at while the advice was written. *Unseen seeds* were trained after it was finished, and no advice was changed because of them: they
are the honest number. In the first of them nobody carried on and the right change was made only in some cases; PPO and the faults of later rounds have all four arms.
"""


def section(cases: Mapping[str, Case]) -> str:
    seen, unseen = (_curable(_forks(cases, unseen=which), cases) for which in (False, True))
    if not seen:
        return ""
    shares = [(arm, _arm(seen, arm), share if (share := _arm(unseen, arm)).of else "not trained") for arm in ARMS]
    bars = [(arm, share.value or 0.0, *share.interval) for arm, share, _ in shares]
    for arm in ("suggested", "random"):
        share = _arm(unseen, arm)
        bars += [(f"{arm}, unseen seeds", share.value or 0.0, *share.interval)] if share.of else []
    plot = plots.bars(bars, title="Runs that recover after the alarm, by what is done", goal=0.7)
    rows = [_cure_row(cases[case_id], [e for e in seen if e["case"] == case_id], [e for e in unseen if e["case"] == case_id]) for case_id in dict.fromkeys(e["case"] for e in [*seen, *unseen])]
    silent = [f"{entry['case']} seed {entry['seed']}" for entry in [*seen, *unseen] if not entry["arms"]]
    text = f"Without an alarm there is nothing to follow; these runs are in no share: {', '.join(silent)}.\n\n" if silent else ""
    head = ("case", *ARMS, "suggested, unseen seeds", "random, unseen seeds", "first alarm and its suggestion", "the right change", "")
    curable = _right_helps(unseen)
    each = {arm: by_fault(curable, arm) for arm in ("suggested", "random")}
    text += f"Some faults were forked with more seeds than others. With each fault counted once, of the curable with unseen seeds: suggested {each['suggested'] or 0:.0%}, random {each['random'] or 0:.0%} of {len({entry['case'] for entry in curable})}.\n\n"
    arms = table(("arm", "recovered, recorded seeds", "unseen seeds"), shares)
    return f"## Cure\n\n{CURE_TEXT}\n{plot}\n\n{arms}\n{text}{CURE_TRIED}\n" + table(head, rows) + _suggestions(cases) + _lead()


def _cure_row(case: Case, seen: Sequence[Mapping[str, Any]], unseen: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    def count(entries: Sequence[Mapping[str, Any]], arm: str) -> str:
        share = _arm(entries, arm)
        return f"{share.hits}/{share.of}" if share.of else ""

    said = ", ".join(dict.fromkeys(f"{entry['rule']}: {_words(entry['suggested'])}" for entry in [*seen, *unseen] if entry["arms"])) or "no alarm"
    counts = (*(count(seen, arm) for arm in ARMS), count(unseen, "suggested"), count(unseen, "random"))
    return (case.id, *counts, said, _words(dict(case.cure or {})), CURE_MISSED.get(case.id, ""))


@dataclass(frozen=True)
class Suggestion:
    """What following one rule's suggestion came to, over all runs in which it was the first.

    Attributes:
        rule, parameters: Of the rule whose alarm was the first.
        entries: The forked runs, of faults that a parameter repairs and of others.
    """

    rule: str
    parameters: tuple[str, ...]
    entries: tuple[Mapping[str, Any], ...]

    def recovered(self, arm: str) -> Share:
        """How often an arm ended as the twins do."""
        return _arm(self.entries, arm)

    def half_way(self, arm: str, cases: Mapping[str, Case]) -> Share:
        """How often an arm came at least half of the way from where carrying on ends to where the twins do."""
        found = [cure.way_back(cases[entry["case"]], entry, arm) for entry in self.entries]
        known = [way >= 0.5 for way in found if way is not None]
        return Share(sum(known), len(known))

    def worth(self, arm: str, cases: Mapping[str, Case]) -> float:
        """Runs that recover and, as half a run each, others that come half of the way; those that carry on and recover do not count."""
        score = 0.0
        for entry in self.at_stake:
            way = cure.way_back(cases[entry["case"]], entry, arm)
            score += 1.0 if entry["arms"][arm]["recovered"] else 0.5 if way is not None and way >= 0.5 else 0.0
        return score

    @property
    def at_stake(self) -> list[Mapping[str, Any]]:
        """Runs that do not recover by themselves."""
        return [entry for entry in self.entries if not entry["arms"].get("carry on", {}).get("recovered")]

    def beats_chance(self, cases: Mapping[str, Case]) -> bool | None:
        """Whether it is worth more than a random change; None where nothing was at stake."""
        return self.worth("suggested", cases) > self.worth("random", cases) if self.at_stake else None


def suggestions(cases: Mapping[str, Case]) -> list[Suggestion]:
    """Every suggestion that was followed in a fork, whatever was wrong with the run."""
    followed: dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
    for entry in [*_forks(cases, unseen=False), *_forks(cases, unseen=True)]:
        if entry["arms"].get("suggested", {}).get("changes"):
            followed.setdefault((entry["rule"], tuple(sorted(entry["suggested"]))), []).append(entry)
    return [Suggestion(rule, parameters, tuple(entries)) for (rule, parameters), entries in sorted(followed.items())]


SUGGESTIONS_TEXT = """
### What each suggestion is worth

Every suggestion that was the first of a run's first alarm, over all faults, also those that no parameter repairs, with recorded and unseen seeds. *Half of the way*
counts runs whose goal ended at least half-way between carrying on and the healthy twins, and which lost nothing of what was to be learned: where data is missing no
parameter brings a run level with its twins, and a random change comes so far in one run of fourteen. A suggestion is worth the runs that recover, and half a run for each other one
that comes half of the way, of those that do not recover by themselves. One that is worth no more than a random change is dropped or said in words; `tests/clinic/test_ward_cure.py` fails while there is one.

"""


def _suggestions(cases: Mapping[str, Case]) -> str:
    def counts(one: Suggestion, arm: str) -> tuple[str, str]:
        shares = one.recovered(arm), one.half_way(arm, cases)
        return tuple(f"{share.hits}/{share.of}" if share.of else "" for share in shares)

    rows = []
    for one in suggestions(cases):
        faults = ", ".join(sorted({entry["case"] + ("" if cases[entry["case"]].cure else "*") for entry in one.entries}))
        (ours, ours_half), (control, control_half) = counts(one, "suggested"), counts(one, "random")
        rows.append((one.rule, ", ".join(one.parameters), counts(one, "carry on")[0], ours, control, counts(one, "right")[0], ours_half, control_half, {True: "yes", False: "**no**", None: "nothing at stake"}[one.beats_chance(cases)], faults))
    head = ("first alarm", "sets", "carry on", "suggested", "random", "right", "half of the way: suggested", "random", "beats a random change", "faults (* no parameter repairs it)")
    return SUGGESTIONS_TEXT + table(head, rows)


def _lead() -> str:
    entries = [entry for entry in cure.read()["lead"] if entry["recovered"]]
    if not entries:
        return ""
    rows = [(f"{entry['case']} seed {entry['seed']}", entry["alarm"], *("" if (well := entry["recovered"].get(str(wait))) is None else "recovers" if well else "no" for wait in cure.WAITS)) for entry in entries]
    total = [Share(sum(found), len(found)) for wait in cure.WAITS for found in [[entry["recovered"][str(wait)] for entry in entries if str(wait) in entry["recovered"]]]]
    text = (
        "\n### Lead before the damage is irreversible\n\nThe right change is made so many updates after the alarm, from the weights of that moment, without going back "
        "to a checkpoint. Empty: the run was over, or dead, before.\n\n"
    )
    return text + table(("run", "alarm at", *(f"{wait} updates later" for wait in cure.WAITS)), [*rows, ("all", "", *total)])


def _words(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value:g}" if isinstance(value, int | float) else f"{name} = {value}" for name, value in changes.items()) or "no parameter"

