"""Whether a planted fault acts, seen without any rule: the goal and a few signals at the end of a run beside those of its healthy twins.

    python -m tests.clinic.ward.effect CASE...                trains a seed that no recording has, prints a line, keeps nothing
    python -m tests.clinic.ward.effect --recorded CASE...     the same from the recordings of the later rounds

It is how the later rounds were chosen (docs/decisions/0009 and 0011 to 0017): nothing here imports a rule or a finding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
import warnings
from collections.abc import Sequence

from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.onset import Series, Twins, series, visible
from tests.clinic.ward.record import FOLDER, FOLDERS, Records, first_recorded, load, record

TRIAL_SEED = 90
LAST = 10
SIGNALS = (
    "reward.mean", "policy.entropy", "completion.length_mean", "completion.truncated_fraction", "reward.group_zero_std_fraction", "optim.loss", "optim.grad_norm",
    "preference.accuracy", "preference.logp_chosen", "distill.divergence", "value.loss",
)  # fmt: skip


def end(records: Records, name: str) -> float | None:
    """Mean of the last values of a signal, of the last one where it is of an evaluation; None when there is none or one is not finite."""
    found = [record_["values"][name] for record_ in records if record_["kind"] == "signal" and name in record_.get("values", {})]
    found = found[-1 if name.startswith("eval.") else -LAST :]
    return statistics.fmean(found) if found and all(isinstance(value, int | float) for value in found) else None


def row(case: Case, records: Records, twins: Sequence[Records]) -> str:
    """One line: the first update at which the oracle sees it and where, then each signal, its twins' median in brackets."""
    known: list[Series] = [series(twin) for twin in twins]
    seen = visible(series(records), Twins(known), case.onset) if known else None
    parts = []
    for name in dict.fromkeys((case.goal.lstrip("-"), *SIGNALS)):
        here, theirs = end(records, name), [value for twin in twins if (value := end(twin, name)) is not None]
        if here is not None or theirs:
            parts.append(f"{name} {'nan' if here is None else f'{here:.3g}'}" + (f" [{statistics.median(theirs):.3g}]" if theirs else ""))
    steps = max((record_.get("step") or 0 for record_ in records), default=0)
    return f"{case.id} {steps}/{case.steps} onset {case.onset}, seen {seen[0] if seen else '-'} in {seen[1] if seen else '-'}: {'; '.join(parts)}"


def twins_of(case: Case) -> list[Records]:
    """Healthy twins, of the first round that has them; none for a healthy case."""
    return [*first_recorded(case.twin).values()] if case.twin else []


def main(argv: list[str] | None = None) -> int:
    """A line for each run; 1 when a case could not be built."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.effect", description="Does the fault act? Without any rule.")
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--seed", type=int, default=TRIAL_SEED, help="seed to train with")
    parser.add_argument("--recorded", action="store_true", help="train nothing: look at what is recorded of the later rounds")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    failed = 0
    for case in map(by_id, options.cases):
        if options.recorded:
            runs = [records for folder in FOLDERS.values() if folder != FOLDER for records in load(case.id, folder).values()]
        else:
            try:
                runs = [record(case, options.seed)]
            except Exception:  # a broken builder must not hide the others
                traceback.print_exc()
                failed = 1
                continue
        for records in runs:
            print(row(case, records, twins_of(case)), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
