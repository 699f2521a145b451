"""GitHub Actions annotations: ``::error title=...::message``.

GitHub shows about ten annotations per level and step, so the first ten of each level are given and the rest is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trainvitals.findings import Finding
from trainvitals.sinks.encode import one_line

_LEVELS = {"error": "error", "warning": "warning", "info": "notice"}
PER_LEVEL = 10


def _data(text: str) -> str:
    return one_line(text, 2000).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def annotate(findings: Iterable[Finding], path: str) -> Iterator[str]:
    """Workflow commands for the openings among `findings`, in the log at `path`."""
    given = dict.fromkeys(_LEVELS, 0)
    for finding in findings:
        if finding.state != "firing":
            continue
        given[finding.severity] += 1
        if given[finding.severity] > PER_LEVEL:
            continue
        title = _property(f"{finding.rule.code} {finding.rule.id}")
        step = f" (step {finding.step})" if finding.step is not None else ""
        text = _data(f"{finding.message} {finding.advice}".strip() + step)
        yield f"::{_LEVELS[finding.severity]} title={title},file={_property(path)}::{text}"
    for level, count in given.items():
        if count > PER_LEVEL:
            yield f"::notice title=trainvitals::{count - PER_LEVEL} more findings of level {level} are not shown"
