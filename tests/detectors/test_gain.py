"""Gain: the interval equals computing it anew, hardly ever leaves the true gain out, falls below any gain on a flat line and never on a rise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.gain import LEAST, LOOK, MOVED, Gain


def anew(then: list[float], now: list[float], lap: int, alpha: float) -> tuple[float, float] | None:
    """The formula of the docstring on two stretches."""
    parts = [np.array(then), np.array(now)]
    around = [part - part.mean() for part in parts]
    squares = sum(float((part**2).sum()) for part in around)
    products = sum(float((part[1:] * part[:-1]).sum()) for part in around)
    total = len(then) + len(now)
    r = min(max((products / squares + 2 / total) / (1 - 6 / total), 0.0), MOVED) if squares > 0 else 0.0
    memory = (1 + r) / (1 - r)
    if total < LEAST * memory:
        return None
    s2 = squares / (total - 2) * memory
    v, t = s2 * (1 / len(then) + 1 / len(now)), 20 * s2 / len(then)
    level = alpha / ((lap + 1) * (lap + 2))
    width = math.sqrt((1 + v / t) * v * 2 * math.log(math.sqrt(1 + t / v) / level)) if s2 > 0 else 0.0
    middle = float(parts[1].mean() - parts[0].mean())
    return middle - width, middle + width


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.integers(45, 160), st.floats(-1e4, 1e4), st.sampled_from([20, 25, 40]))
def test_the_ends_equal_computing_them_anew(seed: int, count: int, level: float, size: int) -> None:
    xs = (np.random.default_rng(seed).standard_normal(count) + level).tolist()
    gain = Gain(size, alpha=0.01)
    start, length, lap = 0, size, 0
    for at, x in enumerate(xs, 1):
        ends = gain.add(x)
        since = at - start - length
        if since <= 0 or since % LOOK:
            continue
        expected = anew(xs[start : start + length], xs[start + length : at], lap, 0.01)
        assert (ends is None) == (expected is None)
        if expected is not None:
            assert ends == pytest.approx(expected, rel=1e-5, abs=1e-6 + 1e-9 * abs(level))
            if expected[0] > 0 or expected[1] < 0:  # begins anew
                start, length, lap = at, size, 0
                continue
        if since >= length:
            length, lap = length + since, lap + 1
        assert gain.lap == lap


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.5, 0.97]), st.sampled_from([20, 30]), st.sampled_from([0.05, 0.9]))
def test_many_at_once_are_as_one_by_one(seed: int, memory: float, size: int, alpha: float) -> None:
    """Of looks in between nobody sees the interval, so they are left out where 0 surely lies inside: laps, beginnings and sums must be the same."""
    draw = np.random.default_rng(seed)
    xs, level, noise = [], 0.0, 0.0
    for _ in range(2_500):
        level += 2.0 * draw.standard_normal() * (draw.random() < 0.001)
        noise = memory * noise + draw.standard_normal()
        xs.append(math.nan if draw.random() < 0.002 else float(level + noise))
    one, many, at = Gain(size, alpha), Gain(size, alpha), 0
    for x in xs:
        one.add(x)
    while at < len(xs):
        some = int(draw.choice([1, 3, 5, 64, 1024]))
        many.extend(xs[at : at + some])
        at += some
    assert repr(one.state_dict()) == repr(many.state_dict())


@pytest.mark.parametrize("noise", ["white", "t3", "AR .5"])
def test_the_gain_is_hardly_ever_left_out(noise: str) -> None:
    """300 runs of 500 samples, alpha 0.05: 15 expected, with three standard errors 27."""
    draw, wrong = np.random.default_rng(12), 0
    for _ in range(300):
        xs = draw.standard_t(3, 500) if noise == "t3" else draw.standard_normal(500)
        if noise == "AR .5":
            for at in range(1, 500):
                xs[at] += 0.5 * xs[at - 1]
        gain = Gain()
        wrong += any(ends is not None and not ends[0] <= 0.0 <= ends[1] for ends in map(gain.add, xs.tolist()))
    assert wrong <= 27


def test_a_flat_line_falls_below_any_gain_and_a_rise_by_that_gain_does_not() -> None:
    """Half a standard deviation as the gain of interest: every flat line is told in time, at most alpha of the rises is ever called flat."""
    draw = np.random.default_rng(5)
    told, denied = [], 0
    for _ in range(60):
        noise = draw.standard_normal(1200)
        gain = Gain()
        told.append(next((at for at, x in enumerate(noise.tolist()) if (gain.add(x) or (0.0, math.inf))[1] < 0.5), None))
        gain, risen = Gain(), noise[:400] + np.where(np.arange(400) >= gain.size, 0.5, 0.0)
        for x in risen.tolist():
            ends = gain.add(x)
            if gain.lap or (ends is not None and ends[0] > 0.0):
                break  # the reference has moved into the risen stretch, or the rise is proven
            denied += ends is not None and ends[1] < 0.5
    assert None not in told
    assert denied <= 3


def test_noise_widens_and_time_narrows() -> None:
    def high(sigma: float, count: int) -> float:
        gain, draw = Gain(), np.random.default_rng(7)
        for x in (sigma * draw.standard_normal(count)).tolist():
            gain.add(x)
        assert gain.ends is not None
        return gain.ends[1] - gain.ends[0]

    assert high(0.1, 60) < 0.5 * high(0.4, 60)
    assert high(0.4, 1200) < 0.4 * high(0.4, 60)


def test_a_proven_change_starts_anew_and_is_kept_until_the_next_reference() -> None:
    draw, gain = np.random.default_rng(3), Gain()
    for x in draw.standard_normal(40).tolist():
        gain.add(x)
    step = 0
    while gain.ends is None or gain.ends[0] <= 0.0:
        gain.add(3.0 + float(draw.standard_normal()))
        step += 1
    assert step <= 25
    assert gain.lap == 0
    proof = gain.ends
    for _ in range(gain.size):
        assert gain.add(3.0 + float(draw.standard_normal())) == proof
    for _ in range(LOOK):
        gain.add(3.0 + float(draw.standard_normal()))
    assert gain.ends is None or gain.ends[0] <= 0.0


def test_a_step_far_beyond_the_noise_leaves_no_interval_and_a_new_reference() -> None:
    draw, gain = np.random.default_rng(4), Gain()
    for at in range(400):
        gain.add((1.0 if at < 205 else 0.0) + 0.001 * float(draw.standard_normal()))
        if 230 <= at < 235:
            assert gain.ends is None or gain.ends[1] < 0.0
    assert gain.ends is not None
    assert abs(gain.ends[0]) < 0.01 > abs(gain.ends[1])


def test_what_makes_no_sense_is_refused() -> None:
    for size, alpha in ((19, 0.05), (20, 0.0), (20, 1.0)):
        with pytest.raises(ValueError, match="size is at least"):
            Gain(size, alpha)
