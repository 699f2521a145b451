"""Against river, a development dependency only: it brings scipy."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("river", reason="river is in the extra 'dev'")

from against_river import scores, spike_difference


def test_rolling_quantiles_equal_those_of_river() -> None:
    assert spike_difference() < 1e-9


def test_shift_is_as_quiet_and_sooner_than_what_river_has() -> None:
    """On white noise: no more false alarms than the quietest of river's, and sooner than it at 2 and 4 standard deviations."""
    false, delays = scores("shift, both sides, alpha 1e-4", "white")
    adwin_false, adwin = scores("ADWIN, defaults", "white")
    page_false, page = scores("Page-Hinkley, defaults", "white")
    assert false <= max(adwin_false, page_false) + 0.1
    assert all(delays[size] < min(adwin[size], page[size]) for size in (2.0, 4.0))
    assert math.isfinite(delays[1.0])
