"""``trainvitals rules calibrate``: try the values of a rule's parameters on labelled runs and propose the best.

The rule is judged alone: an opening that its cause would have hidden counts too. One parameter is moved at a time. Nothing is
written; the proposal is an override for the user's own file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from trainvitals.cli import UserError
from trainvitals.cli.intervals import counted, needed, sign_test, wilson
from trainvitals.cli.trials import Label, Outcome, Score, Trial, digest_of, gather, judge_all, read_labels, tally
from trainvitals.events import CATALOGUE
from trainvitals.sinks.encode import dumps, one_line

if TYPE_CHECKING:
    from trainvitals.rulelang.loader import RuleSet
    from trainvitals.rulelang.model import Param, Rule

EXIT_UNKNOWN = 3
CHANCE = 0.05
"""A difference between two values that comes up by chance more often than this proposes nothing."""
WIDE = 10.0
"""A side of the range that spans more than this factor is walked in equal ratios, not in equal steps."""
REACH = 100.0
_WHOLE = frozenset({"count", "updates", "points", "tokens"})

Status = Literal["keep", "change", "undecided"]


@dataclass
class Tried:
    """One value of one parameter.

    Attributes:
        score: None when the rule cannot be decided with it.
        refused: Why not.
        found: Runs of its own fault in which it fired in time.
        false: Healthy runs in which it fired.
    """

    value: float
    score: Score | None = None
    refused: str = ""
    found: frozenset[str] = frozenset()
    false: frozenset[str] = frozenset()

    @property
    def false_share(self) -> float:
        """Share of healthy runs with a firing."""
        assert self.score is not None
        return self.score.false_runs / self.score.healthy if self.score.healthy else 0.0


@dataclass
class Sweep:
    """All values of one parameter and what follows from them.

    Attributes:
        best: Best detection within the budget, nearest to the default among equals; None when no value keeps the budget.
        status: Whether to keep the default, to change it, or that these runs cannot tell.
        words: Why.
        chance: How often a difference like that to the default comes up by chance.
    """

    param: Param
    tried: list[Tried] = field(default_factory=list)
    best: Tried | None = None
    status: Status = "keep"
    words: str = ""
    chance: float = 1.0

    @property
    def default(self) -> Tried:
        """The value in force."""
        return next(one for one in self.tried if one.value == self.param.default)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this part of ``rules``."""
    from trainvitals.cli.backtest import add_run_arguments

    parser.add_argument("rule", metavar="RULE", help="id or code of a rule")
    add_run_arguments(parser)
    parser.add_argument("--labels", metavar="FILE", required=True, help="JSON that says which runs are healthy and what was wrong with the others")
    parser.add_argument(
        "--false-alarms", type=float, default=0.05, metavar="SHARE", help="share of healthy runs in which it may fire (default: 0.05)"
    )
    parser.add_argument("--points", type=int, default=13, metavar="N", help="values tried per parameter (default: 13)")
    parser.add_argument("-f", "--format", choices=("text", "json"), default="text")
    parser.epilog = "exit codes: 0 keep or change, 2 usage or input error, 3 these runs cannot tell"


def run(options: argparse.Namespace) -> int:
    """Sweep, choose, report; 3 when the runs cannot tell."""
    from trainvitals.cli.backtest import rules_for

    if not 0 <= options.false_alarms < 1 or not 3 <= options.points <= 200:
        raise UserError("--false-alarms is a share from 0 to below 1, --points a number from 3 to 200", "for example --false-alarms 0.05")
    ruleset, (rule_id,) = rules_for(options, [options.rule])
    rule = ruleset.by_id[rule_id]
    if not rule.params:
        raise UserError(f"rule {rule_id!r} has no parameter", "there is nothing to calibrate")
    labels = read_labels(options.labels)
    trials = [trial for trial in gather(options, labels) if trial.label is not None]
    outcomes = judge_all(trials, alone(ruleset, rule), options)
    useful = [one.trial for one in outcomes if rule_id in one.decided or _names(one.trial.label, rule_id)]
    score = tally(outcomes, [rule_id])[0]
    if not score.healthy or not score.own:
        return _no_data(rule, trials, score, options.format)
    sweeps = [sweep(param, rule, ruleset, useful, options) for param in rule.params.values()]
    report = document(rule, sweeps, useful, options.false_alarms)
    if options.format == "json":
        print(dumps(report).decode())
    else:
        for line in text(rule, sweeps, report):
            print(line.rstrip())
    return 0 if all(one.status != "undecided" for one in sweeps) or any(one.status == "change" for one in sweeps) else EXIT_UNKNOWN


def alone(ruleset: RuleSet, rule: Rule) -> RuleSet:
    """The rule with those that its expressions ask about, and nothing that could hide it."""
    from trainvitals.cli.common import with_rules

    wanted, waiting = {rule.id}, [rule]
    while waiting:
        for name in sorted(waiting.pop().asks - wanted):
            if name in ruleset.by_id:
                wanted.add(name)
                waiting.append(ruleset.by_id[name])
    kept = [replace(rule, caused_by=(), hold=0) if one.id == rule.id else one for one in ruleset.rules if one.id in wanted]
    return with_rules(ruleset, kept)


def _names(label: Label | None, rule: str) -> bool:
    return label is not None and rule in label.roots


# ---- trying -----------------------------------------------------------------------------------------------------------


def sweep(param: Param, rule: Rule, ruleset: RuleSet, trials: Sequence[Trial], options: argparse.Namespace) -> Sweep:
    """Judge the runs once per value, and choose."""
    from trainvitals.rulelang.overrides import unsound

    found = Sweep(param)
    for value in grid(param, options.points):
        changed = replace(rule, params={**rule.params, param.name: replace(param, default=value)})
        refused = unsound(changed, CATALOGUE)
        if refused is not None:
            found.tried.append(Tried(value, refused=refused))
            continue
        outcomes = judge_all(trials, alone(ruleset, changed), options, f"{param.name} = {value:g}")
        found.tried.append(_tried(value, rule.id, outcomes))
    choose(found, options.false_alarms)
    return found


def _tried(value: float, rule: str, outcomes: Sequence[Outcome]) -> Tried:
    found, false = set(), set()
    for place, outcome in enumerate(outcomes):
        label, steps = outcome.trial.label, outcome.fired.get(rule, [])
        assert label is not None
        key = f"{place} {outcome.trial.run}"
        if label.healthy and steps:
            false.add(key)
        elif rule in label.roots and any(step >= (label.onset or 0) for step in steps):
            found.add(key)
    return Tried(value, tally(outcomes, [rule])[0], "", frozenset(found), frozenset(false))


def grid(param: Param, points: int) -> list[float]:
    """About so many values inside the range, half of them on each side of the value in force, two digits each.

    Equal ratios on a side that is positive and spans more than `WIDE`, else equal steps; where such a side reaches zero or
    changes sign, equal ratios of the distance. No value is more than `REACH` times larger or smaller than the one in force: wide
    ranges are open-ended, and their ends mean nothing.
    """
    low, high, default = param.low, param.high, param.default
    raw = [*_side(default, low, points // 2), *_side(default, high, points // 2)]
    whole = param.unit in _WHOLE and default == int(default)
    values = {min(max(float(round(value)) if whole else float(f"{value:.2g}"), low), high) for value in raw}
    return sorted(values | {default})


def _side(default: float, end: float, points: int) -> Iterator[float]:
    """Values from the one in force, itself left out, to one end of the range or as far as `REACH`."""
    shares = [place / points for place in range(1, points + 1)]
    if default > 0 and end > 0 and not 1 / WIDE <= end / default <= WIDE:
        ratio = min(max(end / default, 1 / REACH), REACH)
        yield from (default * ratio**share for share in shares)
        return
    distance, scale = end - default, abs(default) or 1.0
    if abs(distance) > WIDE * scale:  # from a tenth of the value in force to the whole way
        most = min(abs(distance), REACH * scale)
        yield from (default + math.copysign(scale / 10 * (10 * most / scale) ** share, distance) for share in shares)
    else:
        yield from (default + distance * share for share in shares)


# ---- choosing ---------------------------------------------------------------------------------------------------------


def choose(found: Sweep, budget: float) -> None:
    """The best value within the budget, and whether the runs say that it is better than the one in force."""
    usable = [one for one in found.tried if one.score is not None]
    within = [one for one in usable if one.false_share <= budget]
    default, name = found.default, found.param.name
    if not within:
        least = min(usable, key=lambda one: (one.false_share, -len(one.found), _far(one, found)))
        found.status = "undecided"
        found.words = f"no value keeps false alarms within {budget:.0%}; the least is {_false(least)} at {name} = {least.value:g}"
        return
    best = min(within, key=lambda one: (-len(one.found), _early(one), _far(one, found)))
    found.best = best
    same = (len(best.found), _early(best)) == (len(default.found), _early(default))
    if same and default in within:
        found.best = default
        found.words = f"keep {default.value:g}: no value within the budget finds more ({_found(default)}; false alarms {_false(default)})"
        if sign_test(default.score.own if default.score else 0, 0) > CHANCE:  # not even all against none would prove anything
            found.status = "undecided"
            found.words += f"; but so few runs with its fault cannot tell two values apart, {_enough()} at least could"
        return
    more, less = len(best.found - default.found), len(default.found - best.found)
    louder, calmer = len(best.false - default.false), len(default.false - best.false)
    # Quieter counts as better only where the value in force is over the budget.
    chances = [sign_test(more, less) if more > less else 1.0, sign_test(louder, calmer) if default not in within and calmer > louder else 1.0]
    found.chance = min(chances)
    found.status = "change" if found.chance <= CHANCE else "undecided"
    verdict = f"change {default.value:g} to {best.value:g}" if found.status == "change" else f"these runs cannot tell {best.value:g} from {default.value:g}"
    found.words = (
        f"{verdict}: found {_found(best)} instead of {_found(default)}, false alarms {_false(best)} instead of {_false(default)}; "
        f"a difference like that comes up by chance with p = {found.chance:.2g}"
    )


def _enough() -> int:
    """Runs of which all must be found with one value and none with the other to prove a difference."""
    return next(runs for runs in range(1, 100) if sign_test(runs, 0) <= CHANCE)


def _far(one: Tried, found: Sweep) -> tuple[int, float]:
    """Distance from the value in force: in steps of the grid, which is as fine in ratios as in differences; then in numbers."""
    place = [tried.value for tried in found.tried].index
    return abs(place(one.value) - place(found.param.default)), abs(one.value - found.param.default)


def _early(one: Tried) -> int:
    assert one.score is not None
    return one.score.early


def _found(one: Tried) -> str:
    assert one.score is not None
    return counted(one.score.found, one.score.own)


def _false(one: Tried) -> str:
    assert one.score is not None
    return counted(one.score.false_runs, one.score.healthy)


# ---- reporting --------------------------------------------------------------------------------------------------------


def _no_data(rule: Rule, trials: Sequence[Trial], score: Score, form: str) -> int:
    """Say what is missing, and what the runs do show about the value in force."""
    lacking = [] if score.healthy else ["no healthy run in which it could be decided"]
    lacking += [] if score.own else [f"no sick run whose label names {rule.id}"]
    words = f"these runs cannot tell: {' and '.join(lacking)} ({len(trials)} labelled runs)"
    words += f"; false alarms as it is: {counted(score.false_runs, score.healthy)}" if score.healthy else ""
    words += f"; found as it is: {counted(score.found, score.own)}" if score.own else ""
    print(dumps({"schema": "trainvitals-calibration/1", "rule": rule.id, "status": "undecided", "why": words}).decode() if form == "json" else words)
    return EXIT_UNKNOWN


def proposal(rule: Rule, sweeps: Sequence[Sweep], trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    """The one change that gains most, as an entry of an override file; None when no parameter is to be changed."""
    changes = [one for one in sweeps if one.status == "change" and one.best is not None]
    if not changes:
        return None
    chosen = min(changes, key=lambda one: (one.chance, one.param.name))
    best, default = chosen.best, chosen.default
    assert best is not None
    assert best.score is not None
    reason = (
        f"calibrated on {best.score.healthy} healthy runs and {best.score.own} with this fault (sha256 {digest_of(trials)[:12]}): "
        f"found {_found(best)} instead of {_found(default)}, false alarms {_false(best)} instead of {_false(default)}"
    )
    return {"id": rule.id, "params": {chosen.param.name: best.value}, "reason": reason}


def document(rule: Rule, sweeps: Sequence[Sweep], trials: Sequence[Trial], budget: float) -> dict[str, Any]:
    """Everything as data."""
    score = sweeps[0].default.score
    assert score is not None
    entry = proposal(rule, sweeps, trials)
    return {
        "schema": "trainvitals-calibration/1",
        "rule": rule.id,
        "false_alarms": budget,
        "runs": {"healthy": score.healthy, "own_fault": score.own, "other_sick": score.other, "digest": digest_of(trials)},
        "budget_can_be_shown": wilson(0, score.healthy)[1] <= budget,
        "params": [
            {
                "name": one.param.name, "unit": one.param.unit, "default": one.param.default, "best": one.best.value if one.best else None,
                "status": one.status, "chance": one.chance, "why": one.words, "values": [_value(tried) for tried in one.tried],
            }
            for one in sweeps
        ],
        "override": None if entry is None else {"schema": "trainvitals-overrides/1", "rules": [entry]},
    }  # fmt: skip


def _value(one: Tried) -> dict[str, Any]:
    score = one.score
    if score is None:
        return {"value": one.value, "refused": one.refused}
    return {
        "value": one.value, "found": score.found, "own_fault": score.own, "false_alarms": score.false_runs, "healthy": score.healthy,
        "other_sick": score.after, "fired_before_onset": score.early, "delays": score.delays,
    }  # fmt: skip


def text(rule: Rule, sweeps: Sequence[Sweep], report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    from trainvitals.cli.backtest import table

    runs, budget = report["runs"], report["false_alarms"]
    yield f"{rule.id}: {runs['healthy']} healthy runs, {runs['own_fault']} with its fault, {runs['other_sick']} sick of something else"
    if not report["budget_can_be_shown"]:
        low, high = wilson(0, runs["healthy"])
        yield (
            f"  {runs['healthy']} healthy runs cannot show that false alarms stay within {budget:.0%}: none in all of them still leaves "
            f"[{low:.0%} to {high:.0%}]" + (f"; {needed(budget)} without any would" if budget else "")
        )
    for one in sweeps:
        yield ""
        yield one_line(f"{one.param.name} ({one.param.unit}, in force {one.param.default:g}, range {one.param.low:g} to {one.param.high:g})")
        yield from table(_rows(one, budget))
        yield one_line(f"  {one.words}", 2000)
        yield from (one_line(f"  {tried.value:g} is no value: {tried.refused}", 500) for tried in one.tried if tried.score is None)
    yield ""
    yield from _snippet(report["override"], sweeps)


def _rows(one: Sweep, budget: float) -> Iterator[tuple[str, ...]]:
    yield ("  value", "found", "delay", "false alarms", "other sick", "early", "")
    for tried in one.tried:
        score = tried.score
        if score is None:
            continue
        marks = ["in force"] if tried is one.default else []
        marks += ["best"] if tried is one.best else []
        marks += ["over the budget"] if tried.false_share > budget else []
        other = f"{score.after} of {score.other}" if score.other else "-"
        delay = f"{median(score.delays):.0f}" if score.delays else "-"
        yield (f"  {tried.value:g}", _found(tried), delay, _false(tried), other, str(score.early or "-"), ", ".join(marks))


def _snippet(override: Mapping[str, Any] | None, sweeps: Sequence[Sweep]) -> Iterator[str]:
    if override is None:
        undecided = any(one.status == "undecided" for one in sweeps)
        yield "No change is proposed: these runs cannot tell." if undecided else "No change is proposed."
        return
    entry = override["rules"][0]
    others = [one.param.name for one in sweeps if one.status == "change" and one.param.name not in entry["params"]]
    yield "For your trainvitals.yaml (--overrides). It was chosen on these runs: check it on others with rules backtest."
    yield f"schema: {override['schema']}"
    yield "rules:"
    yield f"  - id: {entry['id']}"
    yield "    params: {" + ", ".join(f"{name}: {value:g}" for name, value in entry["params"].items()) + "}"
    yield f"    reason: {json.dumps(entry['reason'])}"
    if others:
        yield f"# Instead of it, not with it: {', '.join(others)} (each was moved alone)"
