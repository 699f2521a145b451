"""Windows: equal to computing anew from all samples, whoever asks and when, and across a restart."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.events import CATALOGUE
from trainvitals.items import Frame
from trainvitals.rulelang.windows import Store
from trainvitals.rulelang.windows_long import median_deviation
from trainvitals.rulelang.windows_series import BAND, MARGIN, Axis, Clock, Series

SIGNAL = "policy.entropy"
FUNCTIONS = ["mean", "sum", "std", "minimum", "maximum", "median", "slope", "delta", "count", "quantile"]


def _store() -> Store:
    return Store(CATALOGUE)


def _feed(store: Store, step: int, value: float | None, **header: Any) -> None:
    store.ingest(Frame(step, {} if value is None else {SIGNAL: value}, **header))
    store.close_update(step)


def _naive(function: str, samples: list[tuple[float, float]]) -> float | None:
    values = [value for _, value in samples]
    match function:
        case "mean":
            return math.fsum(values) / len(values)
        case "sum":
            return math.fsum(values)
        case "std":
            return statistics.stdev(values)
        case "minimum":
            return min(values)
        case "maximum":
            return max(values)
        case "median":
            return statistics.median(values)
        case "delta":
            return values[-1] - values[0]
        case "count":
            return float(len(values))
        case "slope":
            return statistics.linear_regression([place for place, _ in samples], values).slope
        case _:
            ordered = sorted(values)
            place = 0.9 * (len(ordered) - 1)
            low = int(place)
            return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


values = st.one_of(st.floats(-1e6, 1e6), st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, -3.0]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(values, min_size=5, max_size=400),
    st.sampled_from([3, 7, 20, 64, 65, 90, 150]),
    st.sampled_from(FUNCTIONS),
    st.sampled_from(["updates", "points"]),
)
def test_windows_equal_naive_recomputation(samples: list[float], length: int, function: str, axis: str) -> None:
    store = _store()
    window = store.window(function, store.series(SIGNAL), axis, length, q=0.9)  # type: ignore[arg-type]
    for index, value in enumerate(samples):
        _feed(store, index + 1, value)
        found = window.value()
        inside = [(float(step + 1), samples[step]) for step in range(max(0, index + 1 - length), index + 1)]
        if len(inside) < length and function != "count":
            assert found is None
            continue
        scale = max(1.0, max(abs(value) for value in samples[max(0, index - 3 * length) : index + 1]))
        assert found == pytest.approx(
            _naive(function, inside),
            rel=1e-9,
            abs=1e-9 * scale * (length if function == "sum" else 1) if function != "std" else 1e-5 * scale,
        )


@pytest.mark.parametrize("function", [*FUNCTIONS, "trailing_median", "trailing_spread", "frozen_median", "frozen_spread"])
@pytest.mark.parametrize("length", [20, 100])
@pytest.mark.parametrize("axis", ["updates", "points"])
def test_results_do_not_depend_on_who_asks_and_when(function: str, length: int, axis: Axis) -> None:
    if axis == "points" and function.startswith("frozen"):
        axis = "updates"  # a reference is a stretch of updates
    random_ = random.Random(3)
    eager, lazy = _store(), _store()
    skip = 10 if "_" in function else 0
    often = eager.window(function, eager.series(SIGNAL), axis, length, q=0.25, skip=skip)
    seldom = lazy.window(function, lazy.series(SIGNAL), axis, length, q=0.25, skip=skip)
    for step in range(1, 1500):
        value = (
            None
            if random_.random() < 0.1
            else math.nan
            if random_.random() < 0.02
            else random_.gauss(0, 1) * 10 ** random_.randint(-3, 3)
        )
        for store in (eager, lazy):
            _feed(store, step, value)
        often.value()
        if random_.random() < 0.02:
            assert often.value() == seldom.value()
    assert often.value() == seldom.value()
    assert often.value() is not None


@pytest.mark.parametrize("stop", [1, 5, 33, 256, 300, 511, 900])
def test_a_restart_is_invisible(stop: int) -> None:
    def windows(store: Store) -> list[Any]:
        series = store.series(SIGNAL)
        double = store.derived("double", lambda: None if series.now() is None else 2 * series.now(), [series])  # type: ignore[operator]
        found = [
            store.window(function, series, axis, length, q=0.3)
            for function in FUNCTIONS
            for axis in ("updates", "seconds")
            for length in (20, 90)
        ]  # type: ignore[arg-type]
        return [
            *found,
            *(
                store.window(f"{kind}_{what}", double, "updates", 50, skip=5)
                for kind in ("frozen", "trailing")
                for what in ("median", "spread")
            ),
        ]

    random_ = random.Random(stop)
    straight, resumed = _store(), _store()
    pairs = list(zip(windows(straight), windows(resumed), strict=True))
    for step in range(1, 1100):
        value = None if random_.random() < 0.15 else random_.gauss(5, 2)
        time = 1e9 + step * 1.5
        for store in (straight, resumed):
            _feed(store, step, value, time=time)
        if step == stop:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = _store()
            if stop % 2:
                resumed.load_state_dict(state)
            pairs = list(zip(windows(straight), windows(resumed), strict=True))
            if not stop % 2:
                resumed.load_state_dict(state)
        if step >= stop:
            assert [one.value() for one, _ in pairs] == [other.value() for _, other in pairs]


def test_a_large_spike_leaves_no_rounding_error_behind() -> None:
    store = _store()
    mean = store.window("mean", store.series(SIGNAL), "updates", 100)
    spread = store.window("std", store.series(SIGNAL), "updates", 100)
    for step in range(1, 260):
        _feed(store, step, 1e12 if step == 100 else 1e-3 + 1e-5 * (step % 2))
        mean.value(), spread.value()
    assert mean.value() == pytest.approx(1.005e-3, rel=1e-9)
    assert spread.value() == pytest.approx(5.0e-6, rel=1e-2)


def test_readiness_counts_samples_against_the_observed_cadence() -> None:
    store = _store()
    window = store.window("mean", store.series(SIGNAL), "updates", 20)
    ready = {}
    for step in range(1, 61):
        _feed(store, step, 1.0 if step % 4 == 0 else None)
        ready[step] = window.value() is not None
    assert not ready[16]
    assert ready[20]
    assert ready[60]


def test_too_coarse_windows_are_named() -> None:
    store = _store()
    window = store.window("mean", store.series(SIGNAL), "updates", 20)
    for step in range(10, 210, 10):
        _feed(store, step, 1.0)
    assert window.value() is None
    assert store.too_coarse() == [("mean(policy.entropy, updates=20)", 20.0, 10.0)]


def test_stale_after_three_cadences_and_again_known_with_the_next_sample() -> None:
    store = _store()
    series = store.series(SIGNAL)
    window = store.window("mean", series, "updates", 10)
    for step in range(1, 31):
        _feed(store, step, 2.0)
    for step in range(31, 34):
        _feed(store, step, None)
        assert window.value() == 2.0
    _feed(store, 34, None)
    assert (window.value(), series.now(), store.missing(SIGNAL)) == (None, None, "stale")
    _feed(store, 35, 2.0)
    assert series.now() == 2.0


def test_nonfinite_samples_are_counted_and_enter_no_window() -> None:
    store = _store()
    series = store.series(SIGNAL)
    window = store.window("mean", series, "updates", 10)
    for step in range(1, 31):
        _feed(store, step, math.nan if step == 25 else 1.0)
        if step == 25:
            assert (series.now(), store.missing(SIGNAL), series.bad_within(3)) == (None, "nonfinite", 1.0)
    assert (window.value(), series.nonfinite, series.bad_within(3), series.bad_within(6)) == (1.0, 1, 0.0, 1.0)


def test_late_samples_enter_at_their_own_index() -> None:
    on_time, late = _store(), _store()
    pair = [store.window("median", store.series(SIGNAL), "updates", 5) for store in (on_time, late)]
    for step in range(1, 21):
        _feed(on_time, step, float(step * step))
        if step != 18:
            _feed(late, step, float(step * step))
    late.ingest(Frame(18, {SIGNAL: 324.0}))
    assert pair[0].value() == pair[1].value() == 324.0
    assert (late.late, late.step) == (1, 20)


def test_memory_does_not_grow_with_the_run() -> None:
    store = _store()
    series = store.series(SIGNAL)
    store.window("median", series, "updates", 100)
    for step in range(1, 5001):
        _feed(store, step, 1.0)
    assert len(series.xs) < 1200  # what the longest window spans, and what came since the last trim
    assert series.total == 5000


def test_a_frozen_reference_is_fixed_once() -> None:
    store = _store()
    window = store.window("frozen_median", store.series(SIGNAL), "updates", 20, skip=10)
    for step in range(1, 100):
        _feed(store, step, 1000.0 if step <= 10 else float(step))
        assert window.value() == (20.5 if step >= 30 else None)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_median_deviation_equals_its_definition(sample: list[float]) -> None:
    middle = statistics.median(sample)
    assert median_deviation(sorted(sample)) == pytest.approx(statistics.median(abs(value - middle) for value in sample), abs=1e-12)


def inside(series: Series, value: float) -> bool:
    low, high = series.band()
    return low <= value <= high


def test_white_noise_hardly_ever_leaves_the_band_and_a_jump_does_at_once() -> None:
    """The rate in `windows_series.MARGIN`: 200,000 samples of Gaussian noise, a level shift of 6 sigma, an even drift."""
    draw = random.Random(3)
    series, left = Series("x", Clock()), 0
    for index in range(200_000):
        value = draw.gauss(0, 1)
        left += index > 64 and not inside(series, value)
        series.add(value)
        if index % (BAND // 2) == 0:
            series.review_band()
            series.band()
            series.dropped += len(series.xs[: -2 * BAND])
            del series.xs[: -2 * BAND]
    assert left <= 20
    assert not inside(series, 6.5)
    drift = Series("y", Clock())
    for index in range(1_000):
        if index % (BAND // 2) == 0:
            drift.review_band()
        assert index <= 2 * BAND or inside(drift, index * 0.1)
        drift.add(index * 0.1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(values, st.floats(0, 1), st.sampled_from(["late", "again", "hole", "trim", "ask", 0.5])), min_size=1, max_size=250), st.integers(0, 2**20))
def test_the_band_is_that_of_the_newest_samples_and_news_what_lies_outside(told: list[float | str], seed: int) -> None:
    """Whenever the band is computed, and whichever samples are taken in without a look."""
    store, draw = _store(), random.Random(seed)
    series = store.series(SIGNAL)
    told = [*(draw.gauss(0, 1) * 10.0 ** -(at // 40) for at in range(seed % 160)), *told]  # ever calmer
    band, samples = (math.inf, -math.inf), list[tuple[int, float]]()  # what it should be
    for step, value in enumerate(told, 1):
        for number in [value] if isinstance(value, float) else [draw.gauss(0, 1)] * {"again": 2, "trim": 40, "ask": 1}.get(value, 0):
            store.ingest(Frame(step, {SIGNAL: number}))
            assert bool(store.news) is not (band[0] <= number <= band[1])
            store.news.clear()
            samples.append((step, number))
        if value == "late" and step > 9:
            store.ingest(Frame(step - 9, {SIGNAL: 7.5}))
            at = sum(when <= step - 9 for when, _ in samples)
            if at or not series.dropped:
                samples.insert(at, (step - 9, 7.5))
        store.close_update(step)
        if value == "trim":
            series.trim()
        recent = [number for _, number in samples[-BAND:]]
        if step % (BAND // 2) == 0 and len(recent) >= 8 and not band[0] == band[1] == recent[-1]:
            low, high = min(recent), max(recent)
            band = (low - MARGIN * (high - low), high + MARGIN * (high - low))
        if value == "ask":
            assert series.band() == band
        assert not series.xs or (series.hull[0] <= min(series.xs) and max(series.xs) <= series.hull[1])
    assert series.band() == band


def test_a_constant_series_has_a_band_of_one_value() -> None:
    series = Series("x", Clock())
    assert not inside(series, 0.0)
    for _ in range(BAND):
        series.add(5e-6)
    series.review_band()
    assert inside(series, 5e-6)
    assert not inside(series, 4.9e-6)


def test_of_several_samples_in_an_update_an_expression_takes_the_last() -> None:
    """An evaluation brings a second value for an update; many updates are taken at once, as after a long rest."""
    store = _store()
    entry = store.elementwise("double", lambda xs: [2 * x for x in xs], store.series(SIGNAL))
    for step in range(1, 9):
        for value in (step, step + 0.5):
            store.ingest(Frame(step, {SIGNAL: value}))
        store.close_update(step)
    entry.advance()
    assert entry.series.xs == [2 * step + 1 for step in range(1, 9)]
    assert entry.series.steps == [*range(1, 9)]
