"""Shift: ranks by hand, the promise about false alarms, and the memory that would break it."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.shift import CAP, LEARN, Shift, decimation


def factors(p: Any) -> tuple[Any, Any]:
    """What the two bets pay."""
    return 1 + 0.9 * (1 - 2 * p), 0.5 / p**0.5


def by_hand(xs: list[float], side: int, window: int) -> list[float | None]:
    """The evidence after each sample, from the formula."""
    grown, said = [1.0, 1.0], []
    for at, x in enumerate(xs):
        past = xs[max(0, at - window) : at]
        if not past:
            said.append(None)
            continue
        beyond = sum(side * other > side * x for other in past)
        p = (beyond + 0.5 * past.count(x) + 0.5) / (len(past) + 1)
        grown = [min(10**CAP, max(1.0, m) * factor) for m, factor in zip(grown, factors(p), strict=True)]
        said.append(math.log10(sum(grown) / 2))
    return said


samples = st.lists(st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 1.0])), min_size=1, max_size=80)


@settings(max_examples=80, deadline=None)
@given(samples, st.sampled_from([1, -1]), st.sampled_from([1, 7, 30, 200]))
def test_evidence_equals_the_formula(xs: list[float], side: int, window: int) -> None:
    shift = Shift(side, window, every=1)
    for x, expected in zip(xs, by_hand(xs, side, window), strict=True):
        found = shift.add(x)
        assert found is None if expected is None else found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([1, -1]), st.sampled_from([1, 7, 100]), st.sampled_from([1, 2, None]), st.booleans())
def test_many_at_once_are_as_one_by_one(seed: int, side: int, window: int, every: int | None, ties: bool) -> None:
    """Long stretches are ranked all at once: with ties, numbers that are not finite, and moves that fill or lose a bet."""
    draw = random.Random(seed)
    one, many, xs, level = Shift(side, window, every), Shift(side, window, every), [], 0.0
    for _ in range(2_500):
        level += draw.choice([-3, 3]) * (draw.random() < 0.01)
        x = level + draw.gauss(0, 1)
        xs.append(draw.choice([math.nan, 0.0, -0.0]) if draw.random() < 0.002 else round(x) / 1 if ties else x)
    for x in xs:
        one.add(x)
    at = 0
    while at < len(xs):
        some = draw.choice([1, 5, 64, 200, 1_500])
        many.extend(xs[at : at + some])
        at += some
    assert repr(one.state_dict()) == repr(many.state_dict())
    for x in xs[:200]:
        assert one.add(x) == many.add(x)


@given(samples, st.sampled_from([0.5, 4.0]))
def test_only_ranks_matter(xs: list[float], scale: float) -> None:
    """Any rising function of the samples gives the same evidence, to the bit; the mirror image gives the other side's."""
    plain, bent, mirror = Shift(1, 20, every=1), Shift(1, 20, every=1), Shift(-1, 20, every=1)
    order = {x: float(at) for at, x in enumerate(sorted(set(xs)))}
    for x in xs:
        assert plain.add(x) == bent.add(scale * order[x] ** 3 - 5) == mirror.add(-x)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_the_bets_are_fair_on_any_sample_with_any_ties(groups: list[int]) -> None:
    """Averaged over which of the samples comes last, no bet pays more than its stake; ties may only lower it."""
    n, below, pay = sum(groups), 0, np.zeros(2)
    for size in groups:
        beyond = n - below - size
        pay += size * np.array(factors((beyond + 0.5 * size) / n))
        below += size
    assert pay[0] / n == pytest.approx(1.0)
    assert pay[1] / n <= 1.0 + 1e-12


@pytest.mark.parametrize("kind", ["normal", "t1", "shares with ties", "three values"])
def test_the_mean_run_to_a_false_alarm_is_at_least_one_in_alpha(kind: str) -> None:
    """Exchangeable noise of four kinds, alpha 1/30 and 1/100, no warm-up. Runs are geometric-like, so the mean of m has a
    standard error of its standard deviation by the root of m; the mean must not fall below 1/alpha by more than three of them."""
    draw = np.random.default_rng(20)
    for alpha, count in ((1 / 30, 120), (1 / 100, 40)):
        runs = []
        for _ in range(count):
            shift, length = Shift(1, 50, every=1), 0
            while (shift.evidence or 0.0) < -math.log10(alpha) and length < 5_000:
                batch = {"normal": draw.standard_normal, "t1": lambda n: draw.standard_t(1, n), "shares with ties": lambda n: draw.binomial(8, 0.1, n) / 8, "three values": lambda n: draw.integers(0, 3, n) * 1.0}[kind](50)  # fmt: skip
                for x in batch.tolist():
                    length += 1
                    if (shift.add(x) or 0.0) >= -math.log10(alpha):
                        break
            runs.append(length)
        assert np.mean(runs) + 3 * np.std(runs) / math.sqrt(count) >= 1 / alpha
        assert np.mean(runs) >= 2 / alpha  # and in fact it is far above


def test_small_alphas_hold_with_a_sliding_window_and_not_with_a_frozen_one() -> None:
    """The reason for the sliding reference: 300 streams of 3,000 normal samples, window 50, up to the first alarm of each. One in
    10,000 is kept by the sliding one; the frozen one, which compares with the luck of its own draw, breaks one in a million."""
    xs = np.random.default_rng(5).standard_normal((300, 3_000)).astype(np.float32)
    alarms = {}
    for frozen in (False, True):
        grown = np.ones((2, 300))
        limit = 6 if frozen else 4
        alarmed = np.full(300, 3_000)
        for at in range(1, 3_000):
            past = xs[:, : min(at, 50)] if frozen else xs[:, max(0, at - 50) : at]
            p = ((past > xs[:, at : at + 1]).sum(1) + 0.5) / (past.shape[1] + 1)
            grown = np.minimum(np.maximum(grown, 1) * np.array(factors(p)), 1e30)
            alarmed = np.where((grown.mean(0) >= 10**limit) & (alarmed == 3_000), at, alarmed)
        alarms[frozen] = (int((alarmed < 3_000).sum()), alarmed.sum() * 10.0**-limit)
    (sliding, promised), (broken, allowed) = alarms[False], alarms[True]
    assert sliding <= promised + 3 * math.sqrt(promised)
    assert broken > 10 * allowed


def test_autocorrelation_is_learned_and_thinned_out() -> None:
    def ar(rho: float, seed: int) -> list[float]:
        source, x, found = random.Random(seed), 0.0, []
        for _ in range(LEARN + 200):
            x = rho * x + source.gauss(0, 1)
            found.append(x)
        return found[-LEARN:]

    thinned = {rho: sorted(decimation(ar(rho, seed)) for seed in range(60)) for rho in (0.0, 0.5, 0.9)}
    assert thinned[0.0][55] == 1
    assert 2 <= thinned[0.5][30] <= 4
    assert 10 <= thinned[0.9][30] <= 30
    assert decimation([float(at) for at in range(LEARN)]) == 1  # a straight line has no memory, only a slope


@pytest.mark.parametrize("every", [2, 5])
def test_only_every_so_manieth_sample_counts(every: int) -> None:
    source = random.Random(every)
    thinned, chosen = Shift(1, 40, every=every), Shift(1, 40, every=1)
    for at in range(200):
        x = source.gauss(0, 1)
        thinned.add(x)
        if at % every == 0:
            chosen.add(x)
        assert thinned.evidence == chosen.evidence


def test_thinning_goes_on_from_the_last_learned_sample() -> None:
    source, learned, x = random.Random(2), Shift(1), 0.0
    xs = []
    for _ in range(400):
        x = 0.8 * x + source.gauss(0, 1)
        xs.append(x)
        learned.add(x)
    every = learned.every or 0
    assert every > 2
    plain = Shift(1, every=1)
    for x in xs[(LEARN - 1) % every :: every]:
        plain.add(x)
    assert learned.state_dict()["newest"] == plain.state_dict()["newest"]


def test_the_learned_samples_are_reference_and_not_judged() -> None:
    source, shift = random.Random(1), Shift(1)
    said = [shift.add(source.gauss(0, 1) if at < LEARN else 10.0) for at in range(LEARN + 12)]
    assert said[:LEARN] == [None] * LEARN
    assert shift.every == 1
    assert (shift.evidence or 0.0) > 2.5
    assert all((now or 0) > (before or 0) for before, now in zip(said[LEARN:], said[LEARN + 1 :], strict=False))


def test_a_new_level_is_forgiven() -> None:
    source, shift = random.Random(1), Shift(1, 50)
    most = max(shift.add(source.gauss(0 if at < 200 else 4, 1)) or 0.0 for at in range(300))
    assert most > 6
    for _ in range(200):
        shift.add(source.gauss(4, 1))
    assert (shift.evidence or 0.0) < 2


@pytest.mark.parametrize(("side", "window", "every"), [(0, 10, 1), (1, 0, 1), (1, 10, 0)])
def test_what_makes_no_sense_is_refused(side: int, window: int, every: int) -> None:
    with pytest.raises(ValueError, match="side is 1 or -1"):
        Shift(side, window, every)
