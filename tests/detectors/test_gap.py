"""Gap: the mean lies inside nearly always, and the interval finds a gap that is there."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.gap import Gap


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=25, max_size=120), st.floats(-1e4, 1e4))
def test_the_ends_equal_computing_them_anew(xs: list[float], level: float) -> None:
    gap = Gap(alpha=0.05, tuned=30)
    ends = None
    for x in xs:
        ends = gap.add(x + level, level)
    d = np.array([(x + level) - level for x in xs])
    n, spread = len(d), ((d - d.mean()) ** 2).sum()
    r = ((d[1:] - d.mean()) * (d[:-1] - d.mean())).sum() / spread if spread > 1e-6 else 0.0
    r = min(max((r + 1 / n) / (1 - 3 / n), 0.0), 0.95)
    m = n * (1 - r) / (1 + r)
    if spread <= 1e-6 or abs(m - 20) < 1e-3:  # at the edge rounding decides
        return
    assert (ends is None) == (m < 20)
    width = math.sqrt(spread / n * 2 * (m + 30) / m**2 * math.log(math.sqrt((m + 30) / 30) / 0.05))
    if ends is not None:
        assert ends == pytest.approx((d.mean() - width, d.mean() + width), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("noise", ["white", "t3", "AR .5", "AR .9"])
def test_the_mean_is_hardly_ever_left_out(noise: str) -> None:
    """300 runs of 600 differences, alpha 0.05: 15 expected, with three standard errors 27, and 1.5 times that for the estimate."""
    draw, wrong = np.random.default_rng(11), 0
    for _ in range(300):
        xs = draw.standard_t(3, 600) if noise == "t3" else draw.standard_normal(600)
        if noise.startswith("AR"):
            for at in range(1, 600):
                xs[at] += float(noise[3:]) * xs[at - 1]
        gap = Gap(alpha=0.05)
        for x in xs.tolist():
            ends = gap.add(x, 0.0)
            if ends is not None and not ends[0] <= 0.0 <= ends[1]:
                wrong += 1
                break
    assert wrong <= 40


def test_a_gap_of_half_a_deviation_is_found() -> None:
    source, gap, count = random.Random(3), Gap(alpha=0.01), 0
    while (gap.interval() or (0.0, 0.0))[0] <= 0.0:
        gap.add(source.gauss(0.5, 0.7), source.gauss(0.0, 0.7))
        count += 1
    assert count < 150


def test_what_makes_no_sense_is_refused() -> None:
    for alpha, tuned in ((0.0, 30.0), (1.0, 30.0), (0.1, 0.0)):
        with pytest.raises(ValueError, match="alpha lies between"):
            Gap(alpha, tuned)
