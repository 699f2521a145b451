"""Every case of every ``*.test.yaml`` beside the rules, driven through the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.rulelang.model import Rule
from trainvitals.testing import load_tests, run_case
from trainvitals.testing_cases import Case, CaseFile

RULES = Path(__file__).resolve().parents[2] / "rules"
Loaded = tuple[CaseFile, tuple[Rule, ...]]
"""A test file and the rules that it needs: read once, as `rules test` does, and not again for each of its cases."""


def cases() -> list[tuple[Case, Loaded]]:
    files = (load_tests(file) for file in sorted(RULES.glob("*/*.test.yaml")))
    return [(case, loaded) for loaded in files for case in loaded[0].cases]


@pytest.mark.parametrize(("case", "loaded"), [pytest.param(case, loaded, id=f"{loaded[0].rule}::{case.name}") for case, loaded in cases()])
def test_case(case: Case, loaded: Loaded) -> None:
    result = run_case(case, *loaded)
    assert result.passed, "\n".join(result.failures)
