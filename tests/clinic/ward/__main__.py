"""Command line of the ward; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.clinic.ward import cure, record, rounds
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import CASES, EVERY, by_id
from tests.clinic.ward.score import Judged, judge_all, right_verdict
from tests.clinic.ward.tally import first_scored, tally


def main(argv: list[str] | None = None) -> int:
    """Do one part; 0 when it went through."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward", description="The clinic: record, score, cure, report.")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("list", help="every case with its truth")
    recording = parts.add_parser("record", help="train and record what is missing")
    recording.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    recording.add_argument("--jobs", type=int, default=2)
    recording.add_argument("--again", action="store_true", help="also what was recorded before")
    for name in rounds.ROUNDS:
        recording.add_argument(f"--{name}", dest="round", action="store_const", const=name, help="that round: its own cases, and its seeds of older cases that are named")
    scoring = parts.add_parser("score", help="judge the recordings, print a line per run")
    scoring.add_argument("cases", nargs="*", metavar="CASE", help="default: all that are not set aside")
    scoring.add_argument("--split", choices=("dev", "aside", "all", *rounds.ROUNDS), default="dev")
    curing = parts.add_parser("cure", help="fork at the alarm: carry on, ours, random, right")
    curing.add_argument("cases", nargs="*", metavar="CASE", help="default: all that a parameter cures")
    curing.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="5 and more were never recorded: unseen")
    curing.add_argument("--jobs", type=int, default=2)
    curing.add_argument("--again", action="store_true", help="also what has a result; arms that would do the same are kept")
    curing.add_argument("--arms", nargs="*", choices=cure.ARMS, default=list(cure.ARMS))
    curing.add_argument("--lead", action="store_true", help="instead: the right change 0, 20 and 50 updates after the alarm")
    reporting = parts.add_parser("report", help="write docs/benchmark.md")
    reporting.add_argument("--check", action="store_true", help="only say whether it is fresh")
    options = parser.parse_args(argv)
    if options.part == "report":
        from tests.clinic.ward import report

        return report.write(check=options.check)
    if options.part == "list":
        for case in EVERY:
            print(f"{case.id:36} {'sick from ' + str(case.onset) if case.sick else 'healthy':14} {', '.join(case.roots)}")
        return 0
    cases = [by_id(name) for name in options.cases]
    if options.part == "score":
        return _score(cases, options.split)
    if options.part == "record" and options.round:
        which = rounds.ROUNDS[options.round]
        return int(rounds.record(which, cases or which.cases, jobs=options.jobs, again=options.again) > 0)
    if options.part == "cure":
        cases = cases or [case for case in CASES if case.cure]
        part = "lead" if options.lead else "forks"
        return int(cure.cure_all(cases, options.seeds, jobs=options.jobs, part=part, again=options.again, arms=options.arms) > 0)
    return int(record.record_all(cases or list(CASES), jobs=options.jobs, again=options.again) > 0)


def _score(cases: Sequence[Case], split: str) -> int:
    """One line per run, then the totals. Set-aside runs are shown only when asked for: whoever tunes must not see them."""
    runs = _judged(cases, split)
    for run in runs:
        case = by_id(run.case)
        mark = "ok" if (run.causes[:1] and run.causes[0] in case.roots if run.sick else not run.alarms) else "--"
        early = [f"!{alarm.rule}@{alarm.step}" for alarm in run.false] if run.sick else []
        said = " ".join([*early, *(f"{alarm.rule}@{alarm.step}{'*' if alarm.severity == 'error' else ''}" for alarm in run.after or (run.alarms if not run.sick else []))])
        verdict = "" if right_verdict(run, case) else f" (want {'/'.join(case.verdicts)})"
        print(f"{mark} {run.case:30} s{run.seed:<3} on {run.onset:<3} seen {run.visible or '-'!s:4} [{run.states[-1] if run.states else '-'}{verdict}] {said or 'silent'}")
    scores = tally(runs, {case.id: case for case in EVERY})
    for name in ("detected", "named", "false_rate", "false_runs", "delay", "first", "three", "category", "sick_verdict", "healthy_verdict", "lines"):
        print(f"{name:16} {getattr(scores, name)}")
    if split in rounds.ROUNDS:
        print(f"FIRST_SCORED_{rounds.ROUNDS[split].number} = {first_scored(scores)}")
    return 0


def _judged(cases: Sequence[Case], split: str) -> list[Judged]:
    """Runs of a split; all cases when none is named. A later round is judged only when it is asked for by its name."""
    if split in rounds.ROUNDS:
        return rounds.judge_all(rounds.ROUNDS[split], cases)
    runs = judge_all(cases or CASES)
    return [run for run in runs if split == "all" or (run.split == "dev") == (split == "dev")]


if __name__ == "__main__":
    sys.exit(main())
