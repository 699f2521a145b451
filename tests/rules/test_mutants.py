"""The tests of the rules notice every small fault, or say by name why not. All rules take about fifteen seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.testing_mutants import run_mutants

STABLE = Path(__file__).resolve().parents[2] / "rules" / "stable"


@pytest.mark.parametrize("rule", sorted(path.name.removesuffix(".test.yaml") for path in STABLE.glob("*.test.yaml")))
def test_every_mutant_is_noticed(rule: str) -> None:
    (report,) = run_mutants(STABLE / f"{rule}.yaml")
    assert [f"{one.name}: {one.what}" for one in report.survived] == []
    assert report.stale == []
