"""The other tools' alerts on the same recordings, scored as ours are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.clinic.ward.case import Case
from tests.clinic.ward.score import Judged


def section(found: Sequence[Judged], cases: Mapping[str, Case]) -> str:
    """Part of the page; empty without results."""
    return ""
