"""Judges the public runs in ``../shared/real_runs`` with the built-in rules and prints one line per run.

    python tests/rules/real_runs.py [name...]
    python tests/rules/real_runs.py --write     and keep the answers for docs/benchmark.md

The logs are other people's and are not part of this repository; `test_real_runs` skips where they are missing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trainvitals import readers
from trainvitals.engine import Engine
from trainvitals.findings import Finding
from trainvitals.rulelang.loader import load_rules

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "real_runs"
RESULT = Path(__file__).resolve().parents[1] / "clinic" / "ward" / "results" / "real_runs.json"


@dataclass
class Judged:
    """What the rules said about one run: rule id to the steps at which it fired, per severity."""

    name: str
    verdict: str
    onset: int | None
    fired: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)
    final: str = ""

    def ids(self, *severities: str) -> set[str]:
        """Rules that fired with one of the severities."""
        return {rule for severity in severities for rule in self.fired.get(severity, {})}


def labels() -> dict[str, dict[str, object]]:
    """The label file: run name to trainer, verdict and onset."""
    loaded: dict[str, dict[str, object]] = json.loads((FOLDER / "labels.json").read_text())
    return loaded


def judge(name: str, label: dict[str, object]) -> Judged:
    """Replay one log through the engine."""
    onset = label["collapse_onset_step"]
    judged = Judged(name, str(label["verdict"]), onset if isinstance(onset, int) else None)
    engine = Engine(load_rules())
    recording = readers.read(FOLDER / str(label["file"]), mapper_trainer=str(label["trainer"]))
    for item in recording.items:
        for record in engine.observe(item):
            if isinstance(record, Finding):
                _note(judged, record)
    engine.close()
    judged.final = engine.verdict.state if engine.verdict else ""
    return judged


def _note(judged: Judged, record: Finding) -> None:
    if record.state == "firing":
        judged.fired.setdefault(record.severity, {}).setdefault(record.rule.id, []).append(record.step or 0)
    elif record.state == "suppressed":
        judged.suppressed.setdefault(record.rule.id, record.step or 0)


def line(judged: Judged) -> str:
    """One line of the table."""
    onset = f" from {judged.onset}" if judged.onset is not None else ""
    words = [
        f"{severity}: " + ", ".join(f"{rule}@{'/'.join(map(str, steps))}" for rule, steps in rules.items())
        for severity in ("error", "warning", "info")
        if (rules := judged.fired.get(severity))
    ]
    return f"{judged.name:32} {judged.verdict}{onset:10} [{judged.final}] " + ("; ".join(words) or "nothing")


def main(arguments: list[str]) -> None:
    """Print the table; with ``--write`` keep it for the clinic's page (labels and verdicts, nothing of the logs themselves)."""
    wanted = [word for word in arguments if word != "--write"]
    kept = []
    for run, label in labels().items():
        if wanted and not any(part in run for part in wanted):
            continue
        judged = judge(run, label)
        print(line(judged))
        firsts = {severity: {rule: steps[0] for rule, steps in judged.fired.get(severity, {}).items()} for severity in ("error", "warning")}
        kept.append({"name": run, "label": judged.verdict, "verdict": judged.final, "errors": firsts["error"], "warnings": firsts["warning"]})
    if "--write" in arguments:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
