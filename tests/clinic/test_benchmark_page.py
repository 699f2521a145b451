"""The page is what the recordings say. A file of its own, whose name comes early: it is the longest of the slow tests and must not begin last, on one core."""

from __future__ import annotations

import pytest
from tests.clinic.ward import report


@pytest.mark.slow  # some minutes: it judges every recording
def test_the_page_is_what_the_recordings_say() -> None:
    assert report.write(check=True) == 0, "run make clinic"
