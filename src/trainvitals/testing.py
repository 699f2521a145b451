"""Helpers for people who write rules: run a rule's test file, or any items, through the real engine.

>>> from trainvitals.testing import run_rule_tests
>>> failed = [result for result in run_rule_tests("rules/stable/kl-runaway.yaml") if not result.passed]

Steps in test files count from 1, as in messages: the first sample of a series is update 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainvitals.advice import same
from trainvitals.engine import Engine
from trainvitals.events import CATALOGUE, SignalSpec
from trainvitals.findings import CoverageRecord, Finding, Verdict
from trainvitals.items import Applied, Boundary, Frame, Item, RunEnd, RunStart, Tick
from trainvitals.rulelang.errors import Problem, RuleError
from trainvitals.rulelang.loader import RuleSet, read_rule
from trainvitals.rulelang.model import Rule, Status
from trainvitals.testing_cases import Case, CaseFile, Expectation, read_cases
from trainvitals.testing_series import SeriesError, parse_series

__all__ = ["Capture", "CaseResult", "SeriesError", "capture", "items_of", "parse_series", "run_case", "run_rule_tests"]

START_TIME = 1_700_000_000.0
"""Unix time at which made-up runs start."""
_RANK = ("firing", "clearing", "flapping", "pending", "error", "ok", "warming", "inactive", "not_applicable")
_FIRING = frozenset({"firing", "clearing", "flapping"})
_NOT_FIRING = frozenset({"ok", "warming", "pending"})


@dataclass(slots=True)
class CaseResult:
    """What came of one case.

    Attributes:
        rule: Rule under test.
        case: Name of the case.
        passed: True when every expectation held; with `todo`, when one did not.
        failures: One sentence per expectation that did not hold, each with its line.
        path: The test file.
        line: Line of the case.
        todo: Reason why the case is known to fail, else None.
    """

    rule: str
    case: str
    passed: bool
    failures: list[str] = field(default_factory=list)
    path: str = ""
    line: int = 0
    todo: str | None = None


@dataclass(slots=True)
class Moment:
    """What one rule looked like after one update (or tick)."""

    step: int
    states: dict[str, str]
    data: str
    verdict: str | None


@dataclass(slots=True)
class Capture:
    """Everything that came out of a run of items."""

    records: list[Finding | Verdict]
    coverage: CoverageRecord
    moments: list[Moment]
    engine: Engine

    @property
    def findings(self) -> list[Finding]:
        """The findings in order."""
        return [record for record in self.records if isinstance(record, Finding)]

    def of(self, rule: str, state: str | None = None) -> list[Finding]:
        """Findings of one rule, of one state when given."""
        return [one for one in self.findings if one.rule.id == rule and state in (None, one.state)]


def capture(
    items: Iterable[Item],
    rules: RuleSet | Sequence[Rule],
    *,
    watch: str | None = None,
    data_at: frozenset[int] = frozenset(),
    catalogue: Mapping[str, SignalSpec] = CATALOGUE,
) -> Capture:
    """Drive an engine over items and keep everything.

    Args:
        items: What a trainer or reader would publish.
        rules: The rules to run.
        watch: Rule whose state is noted after every update.
        data_at: Steps at which the watched rule's data flag is noted; it costs an evaluation.
        catalogue: Signals, custom ones included.
    """
    ruleset = rules if isinstance(rules, RuleSet) else RuleSet(ordered(rules), by_id={rule.id: rule for rule in rules})
    engine = Engine(ruleset, catalogue=catalogue)
    records: list[Finding | Verdict] = []
    moments: list[Moment] = []
    for item in items:
        records += engine.observe(item)
        if watch is not None and isinstance(item, Frame | Tick):
            now = engine.verdict
            data = engine.data_of(watch) if item.step in data_at else ""
            moments.append(Moment(item.step, engine.states(watch), data, now.state if now else None))
    records += engine.close()
    return Capture(records, engine.coverage(), moments, engine)


def ordered(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules with causes before effects; references to rules that are not there are ignored."""
    by_id = {rule.id: rule for rule in rules}
    done: dict[str, Rule] = {}

    def visit(rule: Rule, above: frozenset[str]) -> None:
        for name in (*rule.caused_by, *sorted(rule.asks)):
            if name in by_id and name not in done and name not in above:
                visit(by_id[name], above | {rule.id})
        done.setdefault(rule.id, rule)

    for rule in rules:
        visit(rule, frozenset())
    return tuple(done.values())


def run_rule_tests(path: Path | str, *, catalogue: Mapping[str, SignalSpec] = CATALOGUE) -> list[CaseResult]:
    """Run the test files of rules.

    Args:
        path: A rule file, its test file, or a folder of them (searched to the bottom).
        catalogue: Signals, custom ones included.

    Raises:
        RuleError: With every problem of every rule and test file, a missing test file included.
    """
    results: list[CaseResult] = []
    problems: list[Problem] = []
    for file in test_files(Path(path)):
        try:
            cases, rules = load_tests(file, catalogue)
        except RuleError as error:
            problems += error.problems
            continue
        results += [run_case(case, cases, rules, catalogue=catalogue) for case in cases.cases]
    if problems:
        raise RuleError(problems)
    return results


def test_files(path: Path) -> list[Path]:
    """Test files that `path` stands for, in alphabetical order.

    Raises:
        RuleError: If there is none.
    """
    if path.is_dir():
        found = sorted(path.rglob("*.test.yaml"))
    else:
        found = [path if path.name.endswith(".test.yaml") else path.with_name(f"{path.name.removesuffix('.yaml')}.test.yaml")]
    missing = [file for file in found if not file.is_file()]
    if missing or not found:
        raise RuleError([Problem("E427", f"no test file {file.name}", str(file), 1, 1) for file in missing or [path / "*.test.yaml"]])
    return found


test_files.__test__ = False  # type: ignore[attr-defined]  # pytest collects functions called test_*


def load_tests(file: Path, catalogue: Mapping[str, SignalSpec] = CATALOGUE) -> tuple[CaseFile, tuple[Rule, ...]]:
    """A test file and the rules it needs: the rule itself, those of `with`, and those that any of them asks about.

    Raises:
        RuleError: With the problems of all of these files.
    """
    cases = read_cases(file, catalogue)
    found: dict[str, Rule] = {}
    waiting = [cases.rule, *cases.beside]
    while waiting:
        rule_id = waiting.pop(0)
        if rule_id in found:
            continue
        path = _rule_file(file.parent, rule_id)
        if path is None:
            raise RuleError([Problem("E501", f"no rule file {rule_id}.yaml beside the test", str(file), 1, 1)])
        status: Status = "experimental" if path.parent.name == "experimental" else "stable"
        built, problems = read_rule(path, status=status, signals=catalogue)
        if built is None or any(problem.severity == "error" for problem in problems):
            raise RuleError(problems)
        found[rule_id] = built.rule
        waiting += sorted(built.rule.asks)
    return cases, ordered(list(found.values()))


def _rule_file(folder: Path, rule_id: str) -> Path | None:
    """The file of a rule: in the same folder, or in the neighbouring stable and experimental ones."""
    for place in (folder, folder.parent / "stable", folder.parent / "experimental"):
        if (place / f"{rule_id}.yaml").is_file():
            return place / f"{rule_id}.yaml"
    return None


def items_of(case: Case, rule: Rule, folder: Path | None = None) -> Iterator[Item]:
    """The items that a case stands for."""
    if case.source is not None:
        from trainvitals.readers import read

        yield from read((folder or Path()) / case.source).items
        return
    trainer = case.trainer or (rule.trainers[0] if rule.trainers else "unknown")
    emits = frozenset(CATALOGUE) - set(case.absent) if case.absent else None
    total = max((len(series.samples) * series.every for series in case.series), default=0)
    run = {"total_steps": None, "world_size": 1, **case.run}
    clock = START_TIME
    yield RunStart("test", trainer, case.framework, None, dict(case.config), run["total_steps"], run["world_size"], time=clock, emits=emits)
    for step in range(1, total + 1):
        clock += case.step_seconds
        for at, what, detail in case.boundaries:
            if at == step:
                yield Boundary(step, what, clock, dict(detail))  # type: ignore[arg-type]
        train: dict[str, float] = {}
        held_out: dict[str, float] = {}
        for series in case.series:
            index, rest = divmod(step, series.every)
            value = series.samples[index - 1] if not rest and index <= len(series.samples) else None
            if value is not None:
                (held_out if series.key.startswith("eval.") else train)[series.key] = value
        if step % case.every == 0:
            yield Frame(step, train, time=clock)
        if held_out:
            yield Frame(step, held_out, closes=False, phase="eval", time=clock)
        for change in case.applied:
            if change.at == step:
                yield Applied(step, change.parameter, change.old, change.new, clock)
        for silence in case.silences:
            if silence.after == step:
                for tick in range(1, int(silence.seconds / silence.every + 1e-9) + 1):
                    yield Tick(step, clock + tick * silence.every)
                clock += silence.seconds
    yield RunEnd(total, time=clock)


def run_case(
    case: Case,
    cases: CaseFile,
    rules: Sequence[Rule],
    *,
    items: Sequence[Item] | None = None,
    catalogue: Mapping[str, SignalSpec] = CATALOGUE,
) -> CaseResult:
    """Run one case.

    Args:
        case: From `read_cases`.
        cases: The file it stands in.
        rules: The rule under test and those beside it.
        items: The case's items when they are already made.
        catalogue: Signals, custom ones included.
    """
    rule = next(rule for rule in rules if rule.id == cases.rule)
    made = items if items is not None else list(items_of(case, rule, Path(cases.path).parent))
    asked = frozenset(one.at for one in case.expect if one.data is not None and one.at is not None)
    seen = capture(made, rules, watch=rule.id, data_at=asked, catalogue=catalogue)
    failures = [f"line {one.line}: {text}" for one in case.expect for text in check(one, rule.id, seen)]
    passed = bool(failures) if case.todo else not failures
    if case.todo and not failures:
        failures = [f"marked as todo ({case.todo}) but passes: remove the mark"]
    return CaseResult(rule.id, case.name, passed, failures, cases.path, case.line, case.todo)


def check(one: Expectation, rule: str, seen: Capture) -> list[str]:
    """What of an expectation does not hold, in words."""
    records = [finding for finding in seen.of(rule) if one.instance is None or one.instance in finding.instance.values()]
    states = [(moment.step, _state(moment, one.instance)) for moment in seen.moments]
    failures: list[str] = []
    if one.never is not None:
        bad = [step for step, state in states if _is(state, one.never)]
        if bad:
            failures.append(f"never {one.never}, but it was at step {bad[0]}")
    if one.always is not None:
        odd = [(step, state) for step, state in states if not _is(state, one.always)]
        if odd:
            failures.append(f"always {one.always}, but it was {odd[0][1]} at step {odd[0][0]}")
    if one.until is not None and one.state is not None:
        wanted = _NOT_FIRING if one.state == "ok" else {one.state}
        odd = [(step, state) for step, state in states if step <= one.until and state not in wanted]
        if odd:
            failures.append(f"{one.state} until {one.until}, but it was {odd[0][1]} at step {odd[0][0]}")
    spoken = [finding for finding in records if finding.state == "firing"]
    opened = [finding for finding in spoken if finding.count == 1]
    if one.fires_between is not None:
        failures += _within("fires", opened, one.fires_between)
    if one.resolves_between is not None:
        failures += _within("resolves", [finding for finding in records if finding.state == "resolved"], one.resolves_between)
    if one.times is not None and len(opened) != one.times:
        failures.append(f"fires {one.times} times, but it fired {len(opened)} times: steps {[finding.step for finding in opened]}")
    return failures + _details(one, seen, records, spoken)


def _within(word: str, findings: Sequence[Finding], ends: tuple[int, int]) -> list[str]:
    if not findings:
        return [f"{word} between {ends[0]} and {ends[1]}, but never did"]
    step = findings[0].step or 0
    return [] if ends[0] <= step <= ends[1] else [f"{word} between {ends[0]} and {ends[1]}, but it was at step {step}"]


def _details(one: Expectation, seen: Capture, records: Sequence[Finding], spoken: Sequence[Finding]) -> list[str]:
    """State, texts and suggestions at the step asked for, or at the first opening."""
    failures: list[str] = []
    if one.at is not None:
        moment = next((moment for moment in reversed(seen.moments) if moment.step <= one.at), None)
        if moment is None:
            return [f"nothing happened up to step {one.at}"]
        state = _state(moment, one.instance)
        if one.state is not None and state != one.state:
            failures.append(f"{one.state} at step {one.at}, but it was {state}")
        if one.data is not None and moment.data != one.data:
            failures.append(f"data {one.data} at step {one.at}, but it was {moment.data}")
        if one.verdict is not None and moment.verdict != one.verdict:
            failures.append(f"verdict {one.verdict} at step {one.at}, but it was {moment.verdict}")
        records = [finding for finding in records if (finding.step or 0) <= one.at]
        spoken = [finding for finding in spoken if (finding.step or 0) <= one.at]
    if one.suppressed_by is not None:
        hidden = [finding.suppressed_by for finding in records if finding.state == "suppressed"]
        if one.suppressed_by not in hidden:
            failures.append(f"suppressed by {one.suppressed_by}, but it was suppressed by {hidden or 'nothing'}")
    if one.severity is None and one.message_has is None and one.advice_has is None and one.suggests is None:
        return failures
    if not spoken:
        return [*failures, "nothing fired, so there is no text to look at"]
    finding = spoken[-1] if one.at is not None else spoken[0]
    if one.severity is not None and finding.severity != one.severity:
        failures.append(f"severity {one.severity}, but it was {finding.severity}")
    for word, wanted, text in (("message", one.message_has, finding.message), ("advice", one.advice_has, finding.advice)):
        if wanted is not None and wanted not in text:
            failures.append(f"{word} has {wanted!r}, but it reads {text!r}")
    return failures + ([] if one.suggests is None else _suggested(one.suggests, finding))


def _suggested(wanted: Mapping[str, Mapping[str, Any] | None], finding: Finding) -> list[str]:
    """What differs from the suggestions wanted; None wants that a parameter is left alone, an empty mapping that all are."""
    failures = []
    if not wanted and (found := [action.parameter for action in finding.actions if action.parameter]):
        failures.append(f"suggests nothing, but it suggests {found}")
    for parameter, ends in wanted.items():
        action = next((action for action in finding.actions if action.parameter == parameter), None)
        if ends is None:
            failures += [f"does not suggest {parameter}, but it suggests {action.to}"] if action else []
            continue
        if action is None:
            failures.append(f"suggests {parameter}, but it suggests {[one.parameter for one in finding.actions if one.parameter]}")
            continue
        said = {"from": action.from_, "to": action.to, "apply": action.apply}
        failures += [f"suggests {parameter} {key} {value}, but it is {said[key]}" for key, value in ends.items() if key != "also" and not same(said[key], value)]
        along = {change.parameter: change.to for change in action.also}
        if "also" in ends and along != ends["also"]:
            failures.append(f"suggests {parameter} also {ends['also']}, but it is {along}")
    return failures


def _state(moment: Moment, instance: str | None) -> str:
    """State of one instance, or of the instance that is worst off."""
    if instance is not None and instance in moment.states:
        return moment.states[instance]
    return min(moment.states.values(), key=_RANK.index)


def _is(state: str, wanted: str) -> bool:
    """Whether a state counts as `wanted`: one that is clearing or flapping has not stopped firing."""
    return state in _FIRING if wanted == "firing" else state == wanted
