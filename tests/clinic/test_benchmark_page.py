"""The page is what the recordings say. A file of its own, whose name comes early: it is the longest of the slow tests and must not begin last, on one core."""

from __future__ import annotations

import pytest
from tests.clinic.ward import report


@pytest.mark.slow  # judges every recording when rules, engine or ward have changed since `make clinic`, which takes minutes; a sample of them otherwise (kept.py)
def test_the_page_is_what_the_recordings_say() -> None:
    assert report.write(check=True) == 0, "run make clinic"
