"""How often a rule was right on recorded runs: ``rules/confidence.json``, written by the clinic, read once when rules are loaded.

A measurement holds for the rule as it was measured. It is found again by a digest of everything that decides when the rule fires:
after a user's override, or a change of a threshold, the rule counts as never measured. Wording may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainvitals.findings import Confidence
from trainvitals.rulelang.model import Rule

SCHEMA = "trainvitals-confidence/1"
FILE = "confidence.json"
"""Beside the folders of the built-in rules."""
_DECIDES = (
    "id", "category", "trainers", "where", "params", "let", "when", "sustain", "clear", "clear_sustain", "warmup", "clock", "unless",
    "for_each", "caused_by", "absorbs", "hold",
)  # fmt: skip
"""Parts of `Rule.canonical` that decide when it fires."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was counted for one rule; runs count once, however often it fired in them.

    Attributes:
        digest: `digest_of` the rule as it was measured.
        healthy_runs: Healthy runs in which it could be decided.
        healthy_steps: Updates of these.
        false_runs: Of these, runs in which it fired.
        false_firings: Openings in these.
        early: Sick runs in which it fired before anything was wrong.
        own_runs: Sick runs of the fault that it names.
        found: Of these, runs in which it fired after the onset.
        other_runs: Other sick runs in which it could be decided.
        after: Of these, runs in which it fired after the onset.
        precision: Share of its runs that were sick when it fired; None when it never fired or is no alarm.
        low: Lower end of the 95 % interval of it.
        high: Upper end.
        basis: What was measured on, in words.
    """

    digest: str
    healthy_runs: int
    healthy_steps: int
    false_runs: int
    false_firings: int
    early: int
    own_runs: int
    found: int
    other_runs: int
    after: int
    precision: float | None
    low: float | None
    high: float | None
    basis: str

    @property
    def confidence(self) -> Confidence | None:
        """As findings carry it; None when no share could be measured."""
        if self.precision is None or self.low is None or self.high is None:
            return None
        runs = self.false_runs + self.early + self.found + self.after
        return Confidence(precision=self.precision, low=self.low, high=self.high, runs=runs, healthy_runs=self.healthy_runs, basis=self.basis)


def digest_of(rule: Rule) -> str:
    """sha256 of what decides when a rule fires, short."""
    parts = rule.canonical()
    data = json.dumps([parts[key] for key in _DECIDES], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def read(path: Path) -> dict[str, Measured]:
    """Rule id to what was measured; empty when the file is missing, damaged or of another version: training must not depend on it."""
    try:
        data: Any = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            return {}
        basis = str(data["basis"]["text"])
        table = {str(rule): Measured(**row, basis=basis) for rule, row in data["rules"].items()}
        for one in table.values():
            _ = one.confidence  # a number out of its range is found here, not when a rule fires
        return table
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def of(rule: Rule, table: Mapping[str, Measured]) -> Measured | None:
    """What was measured of this very rule."""
    found = table.get(rule.id)
    return found if found is not None and found.digest == digest_of(rule) else None
