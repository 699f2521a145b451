"""How `check` writes its results: text, json, jsonl, github. Same input, same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainvitals._version import __version__
from trainvitals.findings import SCHEMA, SEVERITIES, Finding, Record
from trainvitals.sinks.encode import dumps, encode_record, one_line

if TYPE_CHECKING:
    from trainvitals.cli.replay import Replayed


@dataclass
class Result:
    """One evaluated log with its exit code and, where the code needs words, the reason."""

    replayed: Replayed
    code: int
    reason: str


def render(name: str, results: list[Result], code: int, *, severity: str = "info", verbose: bool = False) -> str:
    """All results in the format `name`."""
    lowest = SEVERITIES.index(severity)
    if name == "json":
        return _json(results, code, lowest)
    if name == "jsonl":
        return "".join(line + "\n" for result in results for line in _jsonl(result, lowest))
    if name == "github":
        return "".join(line + "\n" for result in results for line in _github(result, lowest))
    return "".join(line + "\n" for result in results for line in _text(result, lowest, verbose))


def shown(records: list[Any], lowest: int) -> Iterator[Any]:
    """Records without the findings below a level."""
    for record in records:
        if not isinstance(record, Finding) or SEVERITIES.index(record.severity) >= lowest:
            yield record


def _plain(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="python", by_alias=True)


def _json(results: list[Result], code: int, lowest: int) -> str:
    runs = []
    for result in results:
        replayed = result.replayed
        runs.append(
            {
                "path": replayed.path,
                "exit_code": result.code,
                "reason": result.reason or None,
                "format": replayed.recording.format,
                "notes": list(replayed.recording.notes),
                "run": {
                    "id": replayed.start.run_id,
                    "trainer": replayed.start.trainer,
                    "framework": replayed.start.framework,
                    "last_step": replayed.last_step,
                },
                "verdict": None if replayed.verdict is None else _plain(replayed.verdict),
                "findings": [_plain(record) for record in shown(replayed.findings, lowest)],
                "coverage": _plain(replayed.coverage),
            }
        )
    document = {"schema": SCHEMA, "tool": {"name": "trainvitals", "version": __version__}, "exit_code": code, "runs": runs}
    return dumps(document).decode() + "\n"


def _jsonl(result: Result, lowest: int) -> Iterator[str]:
    """Findings, verdicts and coverage, byte for byte as the live run wrote them."""
    for record in shown(result.replayed.records, lowest):
        if record.kind in ("finding", "verdict", "coverage"):
            yield encode_record(record).decode()


def _github(result: Result, lowest: int) -> Iterator[str]:
    from trainvitals.sinks.github import annotate

    replayed = result.replayed
    yield from annotate(shown(replayed.findings, lowest), replayed.path)
    if result.reason:
        yield f"::warning title=trainvitals,file={replayed.path}::{one_line(result.reason)}"


def _text(result: Result, lowest: int, verbose: bool) -> Iterator[str]:
    replayed = result.replayed
    yield one_line(_headline(replayed))
    for note in replayed.recording.notes:
        yield f"  note: {one_line(note)}"
    told: set[str] = set()  # what was hidden behind its cause ends without a word as well
    for finding in shown(replayed.findings, lowest):
        if finding.state == "firing":
            told.add(finding.finding_id)
        elif finding.state in ("resolved", "flapping") and finding.finding_id not in told and not verbose:
            continue
        line = _finding_line(finding, verbose)
        if line:
            yield line
    verdict = replayed.verdict
    if verdict is not None and not result.reason:
        since = f" since step {verdict.since_step}" if verdict.since_step is not None else ""
        yield f"verdict: {verdict.state}{since}; decision: {verdict.decision}. {one_line(verdict.reason)}"
        if verdict.last_healthy_step is not None and verdict.decision in ("stop", "restart_from", "adjust"):
            yield f"last healthy step: {verdict.last_healthy_step}"
    if verbose:
        yield from _not_evaluated(replayed)
    yield one_line(_summary(result))


def _headline(replayed: Replayed) -> str:
    start = replayed.start
    names = len({key.partition("{")[0] for key in replayed.points})
    return f"{replayed.path}: {start.trainer} ({start.framework}), {replayed.last_step} updates, {names} signals, read as {replayed.recording.format}"


def _finding_line(finding: Finding, verbose: bool) -> str:
    step = "" if finding.step is None else f"step {finding.step}"
    labels = "".join(f" {key}={value}" for key, value in finding.instance.items())
    where = f"({finding.rule.id}{labels}, {step})" if step else f"({finding.rule.id}{labels})"
    if finding.state == "firing":
        return one_line(f"{finding.severity.upper()}: {finding.message} {finding.advice}".strip() + f" {where}")
    if finding.state == "resolved":
        return one_line(f"  resolved: {finding.title} {where}")
    if finding.state == "flapping":
        return one_line(f"  comes and goes: {finding.title} {where}")
    if finding.state in ("confirmed", "no_effect", "error"):
        return one_line(f"{finding.state.upper()}: {finding.message} {where}")
    if finding.state == "suppressed" and verbose:
        return one_line(f"  follows from {finding.suppressed_by}: {finding.message} {where}")
    return ""


def _not_evaluated(replayed: Replayed) -> Iterator[str]:
    for entry in replayed.coverage.rules:
        if entry.status in ("evaluated", "degraded"):
            continue
        missing = f"; missing {', '.join(entry.missing)}" if entry.missing else ""
        yield one_line(f"  not evaluated: {entry.id} ({entry.reason or entry.status}{missing})")


def _summary(result: Result) -> str:
    replayed = result.replayed
    rules = replayed.coverage.rules
    evaluated = sum(entry.status in ("evaluated", "degraded") for entry in rules)
    missed = len(rules) - evaluated
    openings = [finding.severity for finding in replayed.findings if finding.state == "firing"]
    if result.reason:
        return f"{result.reason[0].upper()}{result.reason[1:]}. {evaluated} rules evaluated, {missed} not evaluated."
    if not openings:
        return f"All {evaluated} rules passed, {missed} not evaluated."
    counts = [
        f"{openings.count(level)} {level}{'s' if openings.count(level) != 1 and level != 'info' else ''}"
        for level in reversed(SEVERITIES)
    ]
    return f"{', '.join(counts)}. {evaluated} rules evaluated, {missed} not evaluated."
