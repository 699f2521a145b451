"""Mutation testing of rules: which faults would the tests of a rule not notice?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainvitals.events import CATALOGUE, SignalSpec
from trainvitals.items import Item
from trainvitals.rulelang.errors import Problem, RuleError
from trainvitals.rulelang.model import Rule
from trainvitals.rulelang.mutate import Mutant, mutate
from trainvitals.testing import items_of, load_tests, run_case, test_files
from trainvitals.testing_cases import Case, CaseFile


@dataclass(frozen=True, slots=True)
class MutantResult:
    """What became of one mutant.

    Attributes:
        name: As in `mutate.Mutant`.
        what: The fault in words.
        status: ``killed`` by a case, ``survived`` all of them, or ``excused`` (survived, with a reason in the test file).
        by: The case that killed it, or the reason.
    """

    name: str
    what: str
    status: Literal["killed", "survived", "excused"]
    by: str = ""


@dataclass(slots=True)
class MutationReport:
    """Mutants of one rule.

    Attributes:
        rule: Id.
        path: The test file.
        results: One per mutant.
        stale: Excuses that excuse nothing: the mutant does not exist or is killed.
        broken: Cases that fail on the rule itself; mutants are then not run.
    """

    rule: str
    path: str
    results: list[MutantResult] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def survived(self) -> list[MutantResult]:
        """Mutants that no case notices and nobody excused."""
        return [result for result in self.results if result.status == "survived"]

    @property
    def passed(self) -> bool:
        """Whether every mutant was killed or excused, and every excuse is needed."""
        return not (self.survived or self.stale or self.broken)


def run_mutants(path: Path | str, *, catalogue: Mapping[str, SignalSpec] = CATALOGUE) -> list[MutationReport]:
    """Run the tests of rules against mutants of the rules.

    Args:
        path: A rule file, its test file, or a folder of them.
        catalogue: Signals, custom ones included.

    Raises:
        RuleError: With every problem of every rule and test file.
    """
    reports: list[MutationReport] = []
    problems: list[Problem] = []
    for file in test_files(Path(path)):
        try:
            cases, rules = load_tests(file, catalogue)
        except RuleError as error:
            problems += error.problems
            continue
        reports.append(_report(cases, rules, catalogue))
    if problems:
        raise RuleError(problems)
    return reports


def _report(cases: CaseFile, rules: Sequence[Rule], catalogue: Mapping[str, SignalSpec]) -> MutationReport:
    report = MutationReport(cases.rule, cases.path)
    rule = next(rule for rule in rules if rule.id == cases.rule)
    tried = [(case, list(items_of(case, rule, Path(cases.path).parent))) for case in cases.cases if case.todo is None]
    report.broken = [case.name for case, items in tried if not run_case(case, cases, rules, items=items, catalogue=catalogue).passed]
    if report.broken:
        return report
    excuses = dict(cases.excused)
    for mutant in mutate(rule):
        with_mutant = tuple(mutant.rule if one.id == rule.id else one for one in rules)
        killer = _killer(mutant, cases, with_mutant, tried, catalogue)
        if killer is not None:
            report.results.append(MutantResult(mutant.name, mutant.what, "killed", killer))
        elif mutant.name in excuses:
            report.results.append(MutantResult(mutant.name, mutant.what, "excused", excuses.pop(mutant.name)))
        else:
            report.results.append(MutantResult(mutant.name, mutant.what, "survived"))
    report.stale = sorted(excuses)
    return report


def _killer(
    mutant: Mutant, cases: CaseFile, rules: Sequence[Rule], tried: list[tuple[Case, list[Item]]], catalogue: Mapping[str, SignalSpec]
) -> str | None:
    """Name of a case that fails, or None. A mutant that cannot even run is dead as well.

    Faults beside each other are noticed by the same case, so the last killer is tried first: it moves to the front of `tried`.
    """
    for at, (case, items) in enumerate(tried):
        try:
            result = run_case(case, cases, rules, items=items, catalogue=catalogue)
        except Exception as error:
            return f"{type(error).__name__}"
        if not result.passed:
            tried.insert(0, tried.pop(at))
            return result.case
    return None
