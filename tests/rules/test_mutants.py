"""The tests of the rules notice every small fault, or say by name why not. Some 3,000 mutants take a minute or two, so this is a slow test."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.testing_mutants import run_mutants

pytestmark = pytest.mark.slow
STABLE = Path(__file__).resolve().parents[2] / "rules" / "stable"


@pytest.mark.parametrize("rule", sorted(path.name.removesuffix(".test.yaml") for path in STABLE.glob("*.test.yaml")))
def test_every_mutant_is_noticed(rule: str) -> None:
    (report,) = run_mutants(STABLE / f"{rule}.yaml")
    assert [f"{one.name}: {one.what}" for one in report.survived] == []
    assert report.stale == []
