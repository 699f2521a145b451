"""Every healthy setting trained once more, with a seed that no round has and with all signals of today.

    python -m tests.clinic.ward.fresh           train and record what is missing (about ten minutes on two cores)
    python -m tests.clinic.ward.fresh --again   all of it; PPO's settings with `.venv-trl112/bin/python`

A recording holds the signals that there were on its day. A rule that needs a newer one cannot speak there, neither rightly nor wrongly, so
*no false alarm today* in an old recording says nothing about it. These recordings are made anew whenever signals or rules were added.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.clinic.ward.cases import EVERY
from tests.clinic.ward.record import FOLDER, record_all
from tests.clinic.ward.score import judge_all
from tests.clinic.ward.tally import tally

FRESH = FOLDER.with_name("recordings_fresh")
SEED = 77
HEALTHY = tuple(case for case in EVERY if not case.sick)


def section() -> str:
    """The part of the page; empty when nothing is recorded."""
    found = judge_all(HEALTHY, folder=FRESH)
    if not found:
        return ""
    cases = {case.id: case for case in HEALTHY}
    scores = tally(found, cases)
    said = "".join(
        f"* {run.case}: {', '.join(f'{alarm.rule} at update {alarm.step}' for alarm in run.alarms)}. {cases[run.case].what}\n" for run in found if run.alarms
    )
    return (
        "## Healthy settings, trained anew\n\n"
        f"A recording holds the signals of its day, and rules that need newer ones are silent in it. So every healthy setting of all rounds was trained once more with a new seed ({SEED}) and all "
        f"signals, and looked at: runs with any warning {scores.false_runs}, false alarms per 1,000 updates {scores.false_rate} (`python -m tests.clinic.ward.fresh`). Rules were repaired because of "
        f"what the first look showed, so this is development data; what is left:\n\n{said or 'nothing'}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Record; 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.fresh", description="Train every healthy setting anew.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all healthy ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="also what was recorded before")
    options = parser.parse_args(argv)
    cases = [case for case in HEALTHY if not options.cases or case.id in options.cases]
    return int(record_all(cases, jobs=options.jobs, again=options.again, folder=FRESH, seeds=lambda case: (SEED,)) > 0)


if __name__ == "__main__":
    sys.exit(main())
