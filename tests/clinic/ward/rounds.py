"""The later rounds: faults, healthy settings and seeds that were chosen after the rules were written, without a look at them.

``set_aside_2.json`` to ``set_aside_9.json`` list them, ``recordings_2`` to ``recordings_9`` hold them, docs/decisions/0009 and 0011 to 0017 say
how they were chosen. Nothing of a round is judged by ``make clinic`` until `why` says what it gave the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clinic.ward.case import Case
from tests.clinic.ward.cases import BY_ROUND, before
from tests.clinic.ward.record import FOLDERS, record_all
from tests.clinic.ward.score import Judged, Split, listed, splits
from tests.clinic.ward.score import judge_all as judge_in

from trainvitals.rulelang.loader import RuleSet

MANY = 100
"""Seeds from here on belong to healthy cases whose settings are drawn by the seed."""


@dataclass(frozen=True)
class Round:
    """One later round.

    Attributes:
        word: Its name: ``round two`` on the page, ``--round-two`` and ``--split round-two`` on the command line.
        number: Its place, in `why`'s ``FIRST_SCORED_2`` and ``set_aside_2.json``.
        nth: The same in words.
        decision: The page in docs/decisions that tells how it was made.
        chosen: How it was chosen, a sentence without its end.
    """

    word: str
    number: int
    nth: str
    decision: str
    chosen: str

    @property
    def title(self) -> str:
        """Of its part of the page."""
        return f"The {self.nth} round"

    @property
    def cases(self) -> tuple[Case, ...]:
        """What is new in it."""
        return BY_ROUND[self.word]

    @property
    def older(self) -> tuple[Case, ...]:
        """Cases of earlier rounds, of which it may have new seeds."""
        return before(self.word)

    @property
    def folder(self) -> Path:
        """Where its recordings lie."""
        return FOLDERS[self.word]

    @property
    def parts(self) -> tuple[Split, Split]:
        """Its new cases, and its new seeds of older ones."""
        return splits(self.word)


ALL = (
    Round(
        "two", 2, "second", "0009",
        "Faults, healthy settings and seeds that were written after the rules, by somebody who did not read them, and recorded before anybody scored them",
    ),
    Round(
        "three", 3, "third", "0011",
        "Faults that were drawn by lot from a catalogue of failures, new healthy settings and seeds, written by somebody who did not read the rules, and recorded before anybody scored them",
    ),
    Round(
        "four", 4, "fourth", "0012",
        "Faults that were drawn by lot from the catalogue a second time, new healthy settings and seeds, written by somebody who did not read the rules, and recorded before anybody scored them",
    ),
    Round(
        "five", 5, "fifth", "0013",
        "Faults and healthy settings that people reported in public, taken in the order in which a search gave them, written by somebody who did not read the rules, and recorded before anybody scored them",
    ),
    Round(
        "six", 6, "sixth", "0014",
        "Bugs that training frameworks had and mended, and what people took for bugs in vain, in the order in which a search gave them, planted by two authors who did not read the rules; which rules name a fault was said by a third person who saw the descriptions alone",
    ),
    Round(
        "seven", 7, "seventh", "0015",
        "What people reported or mended, one query for a symptom and the hits in the order in which a search gave them, planted by two authors who did not read the rules; which rules name a fault was said by a third person who saw the descriptions alone",
    ),
    Round(
        "eight", 8, "eighth", "0016",
        "What people report, in the order of how many do, known causes included, in settings that no older case has, planted by two authors who did not read the rules; which rules name a fault was said by others who saw the descriptions alone",
    ),
    Round(
        "nine", 9, "ninth", "0017",
        "The same draw with other queries and authors, after known causes had been tried over more trainers and scales",
    ),
)  # fmt: skip
ROUNDS = {f"round-{each.word}": each for each in ALL}


def seeds(which: Round, case: Case) -> tuple[int, ...]:
    """Seeds of a case in that round: its own when it is new, otherwise those that the list adds to a case of its kind."""
    found = listed(which.word)
    if case.id in found["cases"]:
        return case.seeds
    few = all(seed < MANY for seed in case.seeds)
    return tuple(seed for seed in found["seeds"] if (seed < MANY) == few)


def record(which: Round, cases: Iterable[Case], *, jobs: int, again: bool = False) -> int:
    """Record what is missing of that round. Returns how many runs failed."""
    return record_all(cases, jobs=jobs, again=again, folder=which.folder, seeds=lambda case: seeds(which, case))


def judge_all(which: Round, cases: Sequence[Case] = (), rules: RuleSet | None = None) -> list[Judged]:
    """Every recorded run of that round, of all cases or of some. To call it is to look: see docs/decisions/0009."""
    return judge_in(cases or (*which.older, *which.cases), rules, which.folder)
