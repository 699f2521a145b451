"""What the start of a run could do and is lost: the table in docs/forgetting.md.

    python -m tests.clinic.forgetting [CASE...]      trains each with a seed that no recording has and prints what `RetentionProbe` saw (two minutes)

The cases are those of the clinic whose model knew something before, so that there is something to lose.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from tests.clinic.ward import offline
from tests.clinic.ward.cases import by_id

from trainvitals import attach
from trainvitals.experimental import RetentionProbe

SEED = 63
FORGOTTEN = ("sft-own-files-only", "orpo-new-subject-only")
KEPT = ("sft-own-files-twin", "orpo-new-subject-twin")
THE_SAME = ("sft-hardly-falls", "sft-dft", "sft-dips", "dpo-both-fall", "dpo-chosen-falls")
TAUGHT_ANEW = ("sft-asked-twin", "sft-packed-apart-twin")


def lost(case_id: str) -> tuple[list[tuple[int, float]], list[str]]:
    """``(update, nats per token)`` of each look at what the model knew, and the lines on the console."""
    case, said = by_id(case_id), StringIO()
    known = [row["prompt"] for row in offline.dialogues(32, 999)]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(said):
        trainer = case.build(folder, SEED)
        attach(trainer, output_dir=folder, enable=["own-answers-unlearned"])
        probe = RetentionProbe(known, every=case.steps // 6, max_new_tokens=48)
        trainer.add_callback(probe)
        trainer.train()
    return probe.history, [line for line in said.getvalue().splitlines() if "(own-answers-unlearned" in line]


def main(cases: Sequence[str]) -> int:
    """Print a line for each case, and what the rule said."""
    for case_id in cases or (*FORGOTTEN, *KEPT, *THE_SAME, *TAUGHT_ANEW):
        looks, said = lost(case_id)
        print(f"{case_id:24} at the end {looks[-1][1]:5.2f} nats, at most {max(unlearned for _, unlearned in looks):5.2f}", *said, sep="\n    ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
