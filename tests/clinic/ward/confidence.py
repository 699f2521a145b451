"""Writes ``rules/confidence.json``: how often each rule was right on the clinic's recordings, development half only.

    python -m tests.clinic.ward.confidence            write it
    python -m tests.clinic.ward.confidence --check    only say whether it is fresh
    python -m tests.clinic.ward.confidence --labels labels.json
    trainvitals rules calibrate RULE --runs tests/clinic/ward/recordings --labels labels.json

What is set aside (`set_aside.json`) is not read: the confidence that a finding carries must not know the runs on which we report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import CASES
from tests.clinic.ward.record import path_of
from tests.clinic.ward.score import split_of

from trainvitals._resources import rules_folder
from trainvitals.cli.intervals import wilson
from trainvitals.cli.trials import Label, Outcome, Progress, Score, Trial, digest_of, judge, tally
from trainvitals.items import RunStart
from trainvitals.readers import read_runs
from trainvitals.rulelang import confidence
from trainvitals.rulelang.loader import RuleSet, load_rules


def trials(cases: Iterable[Case] = CASES) -> list[Trial]:
    """Every recorded run of these cases that belongs to the development half, labelled with what was planted."""
    found = []
    for case in cases:
        path = path_of(case.id)
        for recording in read_runs(path) if path.exists() else ():
            items = list(recording.items)
            start = items[0]
            assert isinstance(start, RunStart)
            if split_of(case, int(start.run_id.rpartition("-s")[2])) == "dev":
                found.append(Trial(start.run_id, path.name, recording.digest, recording, items, label(case)))
    return found


def label(case: Case) -> Label:
    """The truth about the runs of a case. A case counts the healthy updates before the fault, a label names the first sick one."""
    return Label(False, case.roots, case.onset + 1) if case.sick else Label(True)


def labels(runs: Sequence[Trial]) -> dict[str, Any]:
    """The truth about runs as `rules backtest` and `rules calibrate` read it. Runs that are set aside have no label: calibrating passes
    them over."""
    known = [(run.run, run.label) for run in runs if run.label is not None]
    return {run: {"healthy": True} if one.healthy else {"roots": list(one.roots), "onset": one.onset} for run, one in known}


def judged(runs: Sequence[Trial], rules: RuleSet) -> list[Outcome]:
    """What the rules said, with progress on a terminal."""
    progress = Progress("judging", len(runs))
    outcomes = []
    for run in runs:
        outcomes.append(judge(run, rules, {}, None))
        progress(f"{len(outcomes)} of {len(runs)} runs")
    progress.end()
    return outcomes


def table(outcomes: Sequence[Outcome], rules: RuleSet) -> dict[str, Any]:
    """The file's content."""
    runs = [outcome.trial for outcome in outcomes]
    healthy = sum(run.label is not None and run.label.healthy for run in runs)
    digest = digest_of(runs)
    scores = tally(outcomes, sorted(rules.by_id))
    seen = {score.rule: row(score, rules) for score in scores if score.steps or score.own}
    return {
        "schema": confidence.SCHEMA,
        "basis": {
            "text": f"clinic, development half: {healthy} healthy and {len(runs) - healthy} sick runs, sha256 {digest[:12]}",
            "healthy": healthy, "sick": len(runs) - healthy, "steps": sum(outcome.steps for outcome in outcomes), "digest": digest,
            "recordings": sorted({run.path for run in runs}),
        },
        "rules": seen,
    }  # fmt: skip


def row(score: Score, rules: RuleSet) -> dict[str, Any]:
    """One rule. A milestone or a lint (`info`) is no alarm: that it came in a healthy run makes it no less true, so it has no share."""
    rule = rules.by_id[score.rule]
    wrong = score.false_runs + score.early
    fired = score.true_runs + wrong
    measured = fired > 0 and rule.severity != "info"
    low, high = wilson(score.true_runs, fired)
    return {
        "digest": confidence.digest_of(rule),
        "healthy_runs": score.healthy, "healthy_steps": score.healthy_steps, "false_runs": score.false_runs, "false_firings": score.false_firings,
        "early": score.early, "own_runs": score.own, "found": score.found, "other_runs": score.other, "after": score.after,
        "precision": round(score.true_runs / fired, 3) if measured else None,
        "low": round(low, 3) if measured else None, "high": round(high, 3) if measured else None,
    }  # fmt: skip


def render(content: dict[str, Any]) -> str:
    """JSON with one rule a line, so that a change of one is one line of a diff."""
    rows = ",\n".join(f"    {json.dumps(rule)}: {json.dumps(one)}" for rule, one in content["rules"].items())
    head = json.dumps({key: value for key, value in content.items() if key != "rules"}, indent=2)[:-2]
    return f'{head},\n  "rules": {{\n{rows}\n  }}\n}}\n'


def main(argv: list[str] | None = None, path: Path | None = None) -> int:
    """Write or check the file; 1 when it is stale, 2 when there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.confidence", description="How often each rule is right, from the clinic.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is fresh")
    parser.add_argument("--labels", metavar="FILE", help="instead: write the truth about the development half, for rules backtest and calibrate")
    options = parser.parse_args(argv)
    path = path or rules_folder() / confidence.FILE
    runs = trials()
    if not runs:
        print("no recording of the development half", file=sys.stderr)
        return 2
    if options.labels:
        Path(options.labels).write_text(json.dumps(labels(runs), indent=1) + "\n", encoding="utf-8")
        return 0
    rules = load_rules()
    text = render(table(judged(runs, rules), rules))
    if options.check:
        fresh = path.exists() and path.read_text(encoding="utf-8") == text
        print(f"{path.name} is {'fresh' if fresh else 'stale: python -m tests.clinic.ward.confidence'}")
        return 0 if fresh else 1
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
