"""The second round: faults, healthy settings and seeds that were chosen after the rules were written, without a look at them.

`set_aside_2.json` lists it, ``recordings_2`` holds it, docs/decisions/0009 says how it was chosen. Nothing here is judged by
``make clinic`` until `why.FIRST_SCORED_2` says what it gave the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.clinic.ward.case import SICK_SEEDS, Case
from tests.clinic.ward.cases import CASES, ROUND_TWO
from tests.clinic.ward.record import ROUND_TWO_FOLDER, record_all
from tests.clinic.ward.score import Judged, round_two
from tests.clinic.ward.score import judge_all as judge_in

from trainvitals.rulelang.loader import RuleSet

MANY = 100
"""Seeds from here on belong to healthy cases whose settings are drawn by the seed."""


def seeds(case: Case) -> tuple[int, ...]:
    """Seeds of a case in the second round: its own when it is new, otherwise those that the list adds to a case of its kind."""
    listed = round_two()
    if case.id in listed["cases"]:
        return case.seeds
    few = set(case.seeds) <= set(SICK_SEEDS)
    return tuple(seed for seed in listed["seeds"] if (seed < MANY) == few)


def record(cases: Iterable[Case], *, jobs: int, again: bool = False) -> int:
    """Record what is missing of the second round. Returns how many runs failed."""
    return record_all(cases, jobs=jobs, again=again, folder=ROUND_TWO_FOLDER, seeds=seeds)


def judge_all(cases: Sequence[Case] = (), rules: RuleSet | None = None) -> list[Judged]:
    """Every recorded run of the second round, of all cases or of some. To call it is to look: see docs/decisions/0009."""
    return judge_in(cases or (*CASES, *ROUND_TWO), rules, ROUND_TWO_FOLDER)
