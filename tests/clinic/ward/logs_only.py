"""The same recordings from their logs alone: what `trainvitals check trainer_state.json` makes of what TRL itself logged.

    python -m tests.clinic.ward.logs_only            a row per update and a row every ten; writes results/logs_only.json (some minutes)

Nothing of our hooks is in these rows (`peer_rows`), nobody tells the trainer or its settings, and at a row every ten updates (TRL's
default) a run of 100 updates has ten rows. This is what a user sees who does not attach us, and what the other tools see too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import CASES
from tests.clinic.ward.onset import Twins, series, visible
from tests.clinic.ward.peer_rows import Row, Run, read_runs
from tests.clinic.ward.record import load
from tests.clinic.ward.score import Judged, listen, truth
from tests.clinic.ward.tally import Tally, tally

from trainvitals.names import Mapper
from trainvitals.readers import trainer_state
from trainvitals.rulelang.loader import RuleSet, load_rules

RESULT = Path(__file__).parent / "results" / "logs_only.json"
EVERY = (1, 10)
"""Updates between two logged rows: the kind setting, and TRL's default."""
LAST = frozenset({"grad_norm", "learning_rate", "lr", "epoch", "num_tokens", "completions/min_length", "completions/max_length"})
"""What a logged row holds of its last update; all else is a mean over the window (TRL's `_metrics`, transformers' `tr_loss`). Extreme lengths
are means of extremes there as well, but for these two a mean of ten says nothing else than one of them."""


def as_state(run: Run, every: int) -> str:
    """The run as the `trainer_state.json` of a training with `logging_steps=every`."""
    history = [{**row.logs, "step": row.step} for row in _windows(run.rows, every) if row.logs]
    return json.dumps({"global_step": run.rows[-1].step, "log_history": history, "logging_steps": every, "max_steps": run.total_steps})


def _windows(rows: Sequence[Row], every: int) -> Iterator[Row]:
    """Training rows averaged over windows that end at every so manieth update; evaluation and closing rows as they are."""
    window: list[Row] = []
    for row in rows:
        if row.kind in ("train", "step"):
            window.append(row)
            if row.step % every == 0:
                yield Row(row.step, "train", _mean(window))
                window = []
        else:
            yield row


def _mean(window: Sequence[Row]) -> dict[str, float | None]:
    names = dict.fromkeys(name for row in window for name in row.logs)
    logs: dict[str, float | None] = {}
    for name in names:
        values = [value for row in window if (value := row.logs.get(name)) is not None]
        logs[name] = None if not values else values[-1] if name in LAST else math.fsum(values) / len(values)
    return logs


def judge_logs(cases: Iterable[Case], every: int, rules: RuleSet) -> Iterator[Judged]:
    """What the rules say about the logs of every recorded run, beside the same truth as with hooks."""
    twins: dict[str, Twins] = {}
    for case in cases:
        recorded = load(case.id)
        if case.sick and case.twin not in twins:
            twins[case.twin] = Twins(series(records) for records in load(case.twin).values())
        for run in read_runs(case.id):
            judged = truth(case, run.seed, run.rows[-1].step)
            state = as_state(run, every)
            if json.loads(state)["log_history"]:  # a run that died before its first row left nothing to read
                listen(judged, trainer_state.read(state, run.name, Mapper()).items, case, rules)
            if case.sick:
                judged.visible, judged.visible_in = visible(series(recorded[run.seed]), twins[case.twin], case.onset) or (None, "")
            yield judged


def summary(scores: Tally) -> dict[str, Any]:
    """The numbers that the page shows."""
    shares = {name: asdict(getattr(scores, name)) for name in ("detected", "first", "sick_verdict", "false_runs", "false_rate")}
    return {**shares, "delay": scores.delay}


def main(argv: Sequence[str] | None = None) -> int:
    """Judge and write; 2 when nothing is recorded."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward.logs_only", description="The clinic's runs, judged from their logs alone.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="print a line for each run of these instead of writing")
    options = parser.parse_args(argv)
    cases = [case for case in CASES if not options.cases or case.id in options.cases]
    rules = load_rules()
    result: dict[str, Any] = {}
    for every in EVERY:
        found = []
        for judged in judge_logs(cases, every, rules):
            found.append(judged)
            if options.cases:
                said = " ".join(f"{alarm.rule}@{alarm.step}" for alarm in judged.alarms) or "silent"
                print(f"every {every:2} {judged.case:30} s{judged.seed:<3} [{judged.states[-1] if judged.states else '-'}] {said}")
            elif len(found) % 50 == 0:
                print(f"every {every}: {len(found)} runs judged", file=sys.stderr)
        if not found:
            print("nothing is recorded", file=sys.stderr)
            return 2
        result[str(every)] = {"runs": len(found), **summary(tally(found, {case.id: case for case in cases}))}
    if not options.cases:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {RESULT}")
    return 0


def section(path: Path = RESULT) -> str:
    """Part of the page; empty without results."""
    if not path.exists():
        return ""
    from tests.clinic.ward.tally import Rate, Share

    rows = [("log", "runs", "detected", "root cause first", "verdict of sick runs", "healthy runs warned", "false alarms per 1,000 healthy updates", "median delay")]
    rows.append(tuple("---" for _ in rows[0]))
    kept: Mapping[str, Any] = json.loads(path.read_text())
    for every, scores in kept.items():
        shares = [str(Share(**scores[name])) for name in ("detected", "first", "sick_verdict", "false_runs")]
        name = "a row per update" if every == "1" else f"a row every {every} updates, TRL's default"
        rows.append((name, str(scores["runs"]), *shares, str(Rate(**scores["false_rate"])), f"{scores['delay']:g}"))
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return (
        "## From logs alone\n\nThe same recordings as `trainvitals check trainer_state.json` reads them: only what TRL logs, without hooks, without the "
        "trainer's name or settings (`python -m tests.clinic.ward.logs_only`). Both halves. Compare with the goals above for what attaching is worth, and with the next part for what "
        f"others make of the same rows.\n\n{table}\n"
        "Runs of 60 to 120 updates have 6 to 12 rows at TRL's default; most rules ask for more evidence than that before they speak.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
