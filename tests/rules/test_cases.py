"""Every case of every ``*.test.yaml`` beside the rules, driven through the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.testing import load_tests, run_case
from trainvitals.testing_cases import Case, CaseFile

RULES = Path(__file__).resolve().parents[2] / "rules"


def cases() -> list[tuple[Case, CaseFile]]:
    files = (load_tests(file)[0] for file in sorted(RULES.glob("*/*.test.yaml")))
    return [(case, file) for file in files for case in file.cases]


@pytest.mark.parametrize(("case", "file"), [pytest.param(case, file, id=f"{file.rule}::{case.name}") for case, file in cases()])
def test_case(case: Case, file: CaseFile) -> None:
    result = run_case(case, file, load_tests(Path(file.path))[1])
    assert result.passed, "\n".join(result.failures)
