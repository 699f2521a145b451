"""Trainers to which rules were opened late: faults are named there, healthy runs stay silent (`tests/clinic/opened.py`)."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from tests.clinic import opened

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HERE = ".".join(version("trl").split(".")[:2])
AT_HOME = [case for case in opened.CASES if case.needs_trl in {"", HERE}]


@pytest.mark.parametrize("case", [case for case in AT_HOME if case.sick], ids=lambda case: case.id)
def test_a_fault_is_named(case):
    found = opened.run(case, case.seeds[0])
    told = [alarm.rule for alarm in found.after]
    assert set(told) & set(case.roots), told
    assert not found.false, "nothing was wrong yet"


@pytest.mark.parametrize("case", [case for case in AT_HOME if not case.sick], ids=lambda case: case.id)
def test_a_healthy_run_is_left_alone(case):
    assert opened.run(case, case.seeds[0]).alarms == []
