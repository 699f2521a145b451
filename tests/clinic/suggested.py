"""How often the first alarm of a recorded sick run tells to set a parameter, where the fault has a parameter for its cure and where it has none.

``python -m tests.clinic.suggested`` replays every recording of a sick case until its first alarm: about three minutes. Prints a line per rule and
parameters, and the totals that docs/decisions/0019 quotes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import EVERY
from tests.clinic.ward.cure import first_change
from tests.clinic.ward.record import FOLDER, Records, load, run_id
from tests.clinic.ward.score import OF_THE_MACHINE

from trainvitals.engine import Engine
from trainvitals.findings import Finding
from trainvitals.names import Mapper
from trainvitals.readers import own
from trainvitals.rulelang.loader import RuleSet, load_rules


def first_alarm(records: Records, case: Case, seed: int, rules: RuleSet) -> Finding | None:
    """The first warning or error after the onset."""
    engine = Engine(rules)
    items = own.read("".join(json.dumps(record) + "\n" for record in records), run_id(case.id, seed), Mapper()).items
    for output in (output for item in items for output in engine.observe(item)):
        loud = isinstance(output, Finding) and output.state == "firing" and output.severity != "info" and (output.step or 0) > case.onset
        if loud and isinstance(output, Finding) and (output.rule.id not in OF_THE_MACHINE or output.rule.id in case.roots):
            return output
    return None


def main() -> int:
    """Count and print."""
    rules = load_rules()
    told, typed, by_rule = Counter[bool](), Counter[bool](), Counter[tuple[str, str]]()
    for folder in sorted(path for path in FOLDER.parent.glob("recordings*") if not path.name.endswith("fresh")):
        for case in EVERY:
            for seed, records in (load(case.id, folder) if case.sick else {}).items():
                alarm = first_alarm(records, case, seed, rules)
                if alarm is None:
                    continue
                told[bool(case.cure)] += 1
                change = first_change(alarm.actions)
                typed[bool(case.cure)] += bool(change)
                if change and not case.cure:
                    by_rule[alarm.rule.id, ", ".join(sorted(change))] += 1
    for (rule, parameters), count in by_rule.most_common():
        print(f"{count:4} {rule}: {parameters}")
    print(f"no parameter repairs the fault: {told[False]} told, {typed[False]} of them to set a parameter")
    print(f"a parameter repairs the fault: {told[True]} told, {typed[True]} of them to set a parameter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
