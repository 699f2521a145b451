"""Every case of every round trained once more, with a seed that no round has and with all signals of today.

    python -m tests.clinic.ward.fresh           train and record what is missing (half an hour on two cores)
    python -m tests.clinic.ward.fresh --again   all of it; PPO's cases with `.venv-trl112/bin/python`

A recording holds the signals that there were on its day. A rule that needs a newer one cannot speak there, neither rightly nor wrongly, so
neither *silent* nor *no false alarm* in an old recording says anything about it. These recordings are made anew whenever signals or rules were added.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.clinic.ward import rounds
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import CASES, EVERY
from tests.clinic.ward.record import FOLDER, record_all
from tests.clinic.ward.score import Judged, judge_all, set_aside
from tests.clinic.ward.tally import tally

FRESH = FOLDER.with_name("recordings_fresh")
SEED = 77
OLDER = EVERY
HEALTHY = tuple(case for case in OLDER if not case.sick)


def groups() -> dict[str, tuple[Case, ...]]:
    """Faults by what was known of them when the rules were written."""
    aside = set(set_aside()["faults"])
    named = {
        "first round, set aside": (case for case in CASES if case.id in aside), "first round, the others": (case for case in CASES if case.id not in aside),
        **{f"{each.nth} round": each.cases for each in rounds.ALL},
    }  # fmt: skip
    return {name: tuple(case for case in cases if case.sick) for name, cases in named.items()}


def section() -> str:
    """The part of the page; empty when nothing is recorded."""
    found = judge_all(OLDER, folder=FRESH)
    if not found:
        return ""
    cases = {case.id: case for case in OLDER}
    healthy = tally([run for run in found if not run.sick], cases)
    said = "".join(
        f"* {run.case}: {', '.join(f'{alarm.rule} at update {alarm.step}' for alarm in run.alarms)}. {cases[run.case].what}\n" for run in found if run.alarms and not run.sick
    )
    return (
        "## Every case, trained anew\n\n"
        f"A recording holds the signals of its day, and rules that need newer ones are silent in it. So every fault and every healthy setting of all rounds was trained once more with a new seed ({SEED}) and all "
        "signals (`python -m tests.clinic.ward.fresh`). They are known faults on an unseen seed. Sick ones of rounds one to six lack the signals that the seventh brought. Of the three that the eighth brought (doubled templates beyond SFT, a checker's marks of training answers, score against length in online DPO) only the eighth round, runs with a held-out checker and those of online DPO have what concerns them.\n\n"
        f"{_faults(found, cases)}\n{_missed(found, cases)}\n"
        f"Healthy runs with any warning {healthy.false_runs}, false alarms per 1,000 updates {healthy.false_rate}. Rules were repaired because of "
        f"what the first look at the healthy ones showed, so that is development data; what is left:\n\n{said or 'nothing'}\n"
    )


def _faults(found: Sequence[Judged], cases: dict[str, Case]) -> str:
    rows = ["| faults | runs | detected | root first | verdict right | median delay | false before the onset |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, group in groups().items():
        runs = [run for run in found if run.case in {case.id for case in group}]
        if runs:
            scores = tally(runs, cases)
            rows.append(f"| {name} | {len(runs)} | {scores.detected} | {scores.first} | {scores.sick_verdict} | {scores.delay} | {scores.false_rate.events} |")
    return "\n".join(rows) + "\n"


def _missed(found: Sequence[Judged], cases: dict[str, Case]) -> str:
    sick = [run for run in found if run.sick]
    silent = [run.case for run in sick if not run.after]
    other = [f"{run.case} ({run.causes[0]})" for run in sick if run.after and run.causes[0] not in cases[run.case].roots]
    return f"Silent: {', '.join(silent) or 'none'}.\nAnother cause first: {', '.join(other) or 'none'}.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Record; 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.fresh", description="Train every case anew.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="also what was recorded before")
    options = parser.parse_args(argv)
    cases = [case for case in OLDER if not options.cases or case.id in options.cases]
    return int(record_all(cases, jobs=options.jobs, again=options.again, folder=FRESH, seeds=lambda case: (SEED,)) > 0)


if __name__ == "__main__":
    sys.exit(main())
