"""``trainvitals rules backtest``: recorded runs through the rules in force; how often each was right and wrong."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from trainvitals.cli import UserError, nearest
from trainvitals.cli.intervals import counted, poisson, rated, wilson
from trainvitals.cli.trials import Label, Outcome, Score, Trial, digest_of, gather, judge_all, read_labels, tally
from trainvitals.sinks.encode import dumps, one_line

if TYPE_CHECKING:
    from trainvitals.rulelang.loader import RuleSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this part of ``rules``."""
    parser.add_argument("only", nargs="*", metavar="RULE", help="show these rules; default: every rule that fired or has a labelled fault")
    add_run_arguments(parser)
    parser.add_argument("--labels", metavar="FILE", help='JSON: {"run id or file": {"healthy": true} or {"roots": ["rule-id"], "onset": 120}}')
    parser.add_argument("-f", "--format", choices=("text", "json"), default="text")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name runs and rules; shared with ``rules calibrate``."""
    from trainvitals.cli.common import add_log_arguments, add_rule_arguments

    parser.add_argument(
        "--runs", action="extend", nargs="+", required=True, metavar="PATH", help="logs, files with several runs, run folders, or folders of them"
    )
    add_rule_arguments(parser)
    add_log_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Judge the runs and count."""
    ruleset, only = rules_for(options, options.only)
    labels = read_labels(options.labels) if options.labels else {}
    check_roots(labels, ruleset)
    trials = gather(options, labels)
    outcomes = judge_all(trials, ruleset, options)
    scores = tally(outcomes, sorted(only or [rule.id for rule in ruleset.rules]))
    if options.format == "json":
        print(dumps(document(outcomes, scores, ruleset)).decode())
    else:
        for line in text(outcomes, scores, ruleset, shown=frozenset(only)):
            print(line.rstrip())
    return 0


def rules_for(options: argparse.Namespace, named: Sequence[str]) -> tuple[RuleSet, list[str]]:
    """The rules in force, experimental ones that are named included, and the ids of those that are named by id or code.

    Raises:
        UserError: No rule has such a name.
    """
    from trainvitals.cli.common import load_ruleset

    ruleset = load_ruleset(options)
    if any(_id_of(name, ruleset) is None for name in named):  # perhaps an experimental one
        options.enable = [*options.enable, "experimental"]
        everything = load_ruleset(options)
        ids = [_id_of(name, everything) or _unknown(name, everything) for name in named]
        options.enable = [*options.enable[:-1], *(name for name in ids if everything.by_id[name].status == "experimental")]
        ruleset = load_ruleset(options)
    return ruleset, [found for name in named if (found := _id_of(name, ruleset))]


def _id_of(name: str, ruleset: RuleSet) -> str | None:
    return next((rule.id for rule in ruleset.rules if name.lower() == rule.id or name.upper() == rule.code), None)


def _unknown(name: str, ruleset: RuleSet) -> str:
    if name in ruleset.disabled:
        raise UserError(f"rule {name!r} is switched off: {ruleset.disabled[name]}", "leave that override out")
    known = [word for rule in ruleset.rules for word in (rule.id, rule.code)]
    raise UserError(f"no rule {name!r}", nearest(name, known) or "see trainvitals rules list")


def check_roots(labels: dict[str, Label], ruleset: RuleSet) -> None:
    """Tell about labelled faults that no rule in force names: they can only be missed."""
    from trainvitals.cli.common import say

    unknown = sorted({root for label in labels.values() for root in label.roots if root not in ruleset.by_id})
    if unknown:
        near = nearest(unknown[0], ruleset.by_id)
        say(f"trainvitals: the labels name rules that are not in force: {', '.join(unknown[:5])}" + (f" ({near})" if near else ""))


# ---- the numbers ------------------------------------------------------------------------------------------------------


def row(score: Score) -> dict[str, Any]:
    """One rule as data; intervals are 95 %, null where nothing was tried."""
    return {
        "rule": score.rule,
        "healthy": {
            "runs": score.healthy, "fired": score.false_runs, "share": _share(score.false_runs, score.healthy),
            "steps": score.healthy_steps, "firings": score.false_firings, "per_1000_steps": _rate(score.false_firings, score.healthy_steps),
        },
        "own_fault": {"runs": score.own, "found": score.found, "share": _share(score.found, score.own), "delays": score.delays},
        "other_sick": {"runs": score.other, "fired": score.after},
        "fired_before_onset": score.early,
        "unlabelled": {"runs": score.unlabelled, "fired": score.fired_unlabelled},
        "all": {"runs_fired": score.fired_runs, "steps": score.steps, "firings": score.openings, "per_1000_steps": _rate(score.openings, score.steps)},
        "hidden_runs": score.hidden,
        "first_steps": score.first_steps,
    }  # fmt: skip


def _share(hits: int, of: int) -> dict[str, float] | None:
    if not of:
        return None
    low, high = wilson(hits, of)
    return {"value": round(hits / of, 4), "low": round(low, 4), "high": round(high, 4)}


def _rate(events: int, steps: int) -> dict[str, float] | None:
    if not steps:
        return None
    low, high = poisson(events, steps / 1000)
    return {"value": round(events / steps * 1000, 4), "low": round(low, 4), "high": round(high, 4)}


def document(outcomes: Sequence[Outcome], scores: Sequence[Score], ruleset: RuleSet) -> dict[str, Any]:
    """Everything as data, one entry per run and per rule."""
    return {
        "schema": "trainvitals-backtest/1",
        "rules_digest": ruleset.digest,
        "tuned": list(ruleset.tuned),
        "runs_digest": digest_of(outcome.trial for outcome in outcomes),
        "summary": summary(outcomes, ruleset),
        "rules": [row(score) for score in scores],
        "runs": [
            {
                "run": outcome.trial.run, "path": outcome.trial.path, "steps": outcome.steps, "label": _plain(outcome.trial),
                "fired": outcome.fired, "hidden": sorted(outcome.hidden), "decided": len(outcome.decided),
            }
            for outcome in outcomes
        ],
    }  # fmt: skip


def _plain(trial: Trial) -> dict[str, Any] | None:
    label = trial.label
    if label is None:
        return None
    return {"healthy": True} if label.healthy else {"healthy": False, "roots": list(label.roots), "onset": label.onset}


def summary(outcomes: Sequence[Outcome], ruleset: RuleSet) -> dict[str, Any]:
    """All rules together; `info` findings (milestones, lints) disturb nobody and are not counted here."""
    loud = {rule.id for rule in ruleset.rules if rule.severity != "info"}
    healthy = [one for one in outcomes if one.trial.label is not None and one.trial.label.healthy]
    sick = [one for one in outcomes if one.trial.label is not None and not one.trial.label.healthy]
    known = [one for one in sick if one.trial.label is not None and one.trial.label.roots]
    false_firings = sum(len(steps) for one in healthy for rule, steps in one.fired.items() if rule in loud)
    steps = sum(one.steps for one in healthy)
    return {
        "runs": len(outcomes), "healthy": len(healthy), "sick": len(sick), "unlabelled": len(outcomes) - len(healthy) - len(sick),
        "steps": sum(one.steps for one in outcomes),
        "healthy_with_any": _of(sum(bool(loud & one.fired.keys()) for one in healthy), len(healthy)),
        "false_firings": {"firings": false_firings, "steps": steps, "per_1000_steps": _rate(false_firings, steps)},
        "sick_with_any": _of(sum(any(_after(one, rule) for rule in loud & one.fired.keys()) for one in sick), len(sick)),
        "root_found": _of(sum(_root_found(one) for one in known), len(known)),
    }  # fmt: skip


def _of(hits: int, of: int) -> dict[str, Any]:
    return {"runs": hits, "of": of, "share": _share(hits, of)}


def _after(outcome: Outcome, rule: str) -> bool:
    label = outcome.trial.label
    onset = label.onset if label is not None and label.onset is not None else 0
    return any(step >= onset for step in outcome.fired.get(rule, ()))


def _root_found(outcome: Outcome) -> bool:
    label = outcome.trial.label
    return label is not None and any(_after(outcome, root) for root in label.roots)


# ---- text -------------------------------------------------------------------------------------------------------------


def text(outcomes: Sequence[Outcome], scores: Sequence[Score], ruleset: RuleSet, shown: frozenset[str]) -> Iterator[str]:
    """The report for people: one line per rule that has something to say."""
    total = summary(outcomes, ruleset)
    labelled = total["healthy"] + total["sick"] > 0
    kinds = f": {total['healthy']} healthy, {total['sick']} sick, {total['unlabelled']} without a label" if labelled else ""
    yield f"{total['runs']} runs{kinds}; {total['steps']:,} updates; {len(ruleset)} rules"
    for line in ruleset.tuned:
        yield one_line(f"  tuned: {line}")
    telling = [score for score in scores if score.rule in shown or score.openings or score.own]
    if telling:
        yield ""
        yield from table(_labelled_rows(telling) if labelled else _plain_rows(telling))
    quiet = [score for score in scores if score not in telling]
    undecided = sum(not score.steps for score in quiet)
    if quiet:
        yield ""
        yield f"{len(quiet)} more rules never fired; {undecided} of them could not be decided in any of these runs"
    if labelled:
        yield from _totals(total)


def _totals(total: dict[str, Any]) -> Iterator[str]:
    any_healthy, false, sick, root = (total[key] for key in ("healthy_with_any", "false_firings", "sick_with_any", "root_found"))
    yield f"healthy runs with any warning: {counted(any_healthy['runs'], any_healthy['of'])}"
    yield f"warnings per 1,000 healthy updates: {rated(false['firings'], false['steps'])}"
    yield f"sick runs with a warning at the onset or later: {counted(sick['runs'], sick['of'])}"
    yield f"sick runs in which a rule of the label fired: {counted(root['runs'], root['of'])}"


def _labelled_rows(scores: Sequence[Score]) -> Iterator[tuple[str, ...]]:
    yield ("rule", "healthy: fired", "per 1,000 updates", "its fault: found", "other sick", "early", "hidden", "no label", "first", "delay")
    for score in scores:
        delays = score.delays
        yield (
            score.rule,
            counted(score.false_runs, score.healthy),
            rated(score.false_firings, score.healthy_steps),
            counted(score.found, score.own),
            f"{score.after} of {score.other}" if score.other else "-",
            str(score.early or "-"),
            str(score.hidden or "-"),
            f"{score.fired_unlabelled} of {score.unlabelled}" if score.unlabelled else "-",
            _first(score),
            f"{median(delays):.0f} ({min(delays)} to {max(delays)})" if delays else "-",
        )


def _plain_rows(scores: Sequence[Score]) -> Iterator[tuple[str, ...]]:
    yield ("rule", "fired in", "per 1,000 updates", "first step")
    for score in scores:
        yield (score.rule, counted(score.fired_unlabelled, score.unlabelled), rated(score.openings, score.steps), _first(score))


def _first(score: Score) -> str:
    return f"{median(score.first_steps):.0f}" if score.first_steps else "-"


def table(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Columns: the first and those without a head to the left, the others to the right."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [place == 0 or not head for place, head in enumerate(lines[0])]
    for cells in lines:
        yield "  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in zip(cells, widths, left, strict=True))
