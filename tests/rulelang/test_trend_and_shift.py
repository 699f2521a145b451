"""Trend, shift and gain as window functions: equal to the detectors, whoever asks and when, across a restart, and checked."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

import pytest

from trainvitals.detectors.gain import Gain
from trainvitals.detectors.shift import Shift
from trainvitals.detectors.trend import mann_kendall, theil_sen
from trainvitals.events import CATALOGUE
from trainvitals.items import Frame
from trainvitals.rulelang.check import check
from trainvitals.rulelang.compile import Binder, Bound, RunInfo
from trainvitals.rulelang.errors import RuleError, Where
from trainvitals.rulelang.expr import parse
from trainvitals.rulelang.windows import Store

TEXTS = [
    "trend_z(policy.entropy, updates=30)", "theil_sen(policy.entropy, updates=30)", "trend_z(policy.entropy, points=150)",
    "theil_sen(policy.entropy, points=150)", "shift_up(policy.entropy, points=40)", "shift_down(policy.entropy, points=40, skip=25)",
    "shift_up(-policy.entropy, points=40)", "shift_up(policy.entropy, points=40, every=1)", "trend_z(policy.entropy / reward.std, updates=30)",
    "trend_z(policy.entropy, updates=30) > 1 and shift_up(policy.entropy, points=40, every=2) > 0.1",
    "gain_low(policy.entropy, points=20)", "gain_high(policy.entropy, points=30)", "gain_high(-policy.entropy, points=20)",
    "gain_low(reward.std / policy.entropy, points=20) > 0 or gain_high(reward.std, points=25) < 0.1",
    "trend_z(policy.entropy, updates=30) > 1 or shift_up(reward.std, points=40) > 0.1 or theil_sen(policy.entropy, updates=30) < 0",
]  # fmt: skip


@dataclass
class Limit:
    default: float
    unit: str
    low: float
    high: float


def bound(store: Store, text: str, absent: frozenset[str] = frozenset()) -> Bound:
    return Binder(store, config={}, run=RunInfo(trainer="grpo"), absent=absent).bind(check(parse(text, Where(source_line=text)), signals=CATALOGUE))


def feed(store: Store, step: int, **values: float) -> None:
    store.ingest(Frame(step, {name.replace("__", "."): value for name, value in values.items()}))
    store.close_update(step)


def stream(seed: int, count: int) -> list[dict[str, float]]:
    """Frames with gaps, NaN, and a shift in the middle."""
    source, found = random.Random(seed), []
    for step in range(count):
        frame = {}
        if source.random() > 0.1:
            frame["policy__entropy"] = math.nan if source.random() < 0.03 else source.gauss(1.5 if step > count / 2 else 0.0, 1)
        if source.random() > 0.05:
            frame["reward__std"] = 0.5 + source.random()
        found.append(frame)
    return found


def test_they_equal_the_detectors_on_the_samples_inside() -> None:
    store = Store(CATALOGUE)
    z, slope, up, down = (bound(store, text) for text in (TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[5]))
    higher, lower = Shift(1, 40), Shift(-1, 40)
    inside: list[tuple[float, float]] = []
    most = [0.0, 0.0]
    for step, frame in enumerate(stream(1, 400), 1):
        feed(store, step, **frame)
        value = frame.get("policy__entropy", math.nan)
        if math.isfinite(value):
            inside.append((step, value))
            higher.add(value)
            if step > 25:
                lower.add(value)
        part = [(at, x) for at, x in inside if at > inside[-1][0] - 30]
        if step >= 40:
            assert z() == mann_kendall([x for _, x in part])
            assert slope() == theil_sen([x for _, x in part], [at for at, _ in part])
        else:
            assert step >= 30 or z() is slope() is None
        assert (up(), down()) == (higher.evidence, lower.evidence)
        most = [max(most[0], up() or 0.0), max(most[1], down() or 0.0)]
    assert most[0] > 3 > 2 > most[1]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", [1, 70, 333, 1_111])
def test_asking_often_or_seldom_and_stopping_change_nothing(text: str, stop: int) -> None:
    often, seldom, resumed = Store(CATALOGUE), Store(CATALOGUE), Store(CATALOGUE)
    one, two, three = (bound(store, text) for store in (often, seldom, resumed))
    source, known = random.Random(stop), 0
    for step, frame in enumerate(stream(stop, 1_300), 1):
        for store in (often, seldom, resumed):
            feed(store, step, **frame)
        now = one()
        assert repr(one.slow()) == repr(now)
        known += now is not None
        if source.random() < 0.02:
            assert repr(two()) == repr(now)
        if step == stop:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = Store(CATALOGUE)
            if stop % 2:
                resumed.load_state_dict(state)
            three = bound(resumed, text)
            if not stop % 2:
                resumed.load_state_dict(state)
        if step >= stop:
            assert repr(three()) == repr(now)
    assert known > (300 if "gain" in text else 800)


def test_both_ends_of_the_gain_share_one_detector_and_equal_it() -> None:
    store = Store(CATALOGUE)
    low, high, longer = (bound(store, f"gain_{end}(policy.entropy, points={points})") for end, points in (("low", 20), ("high", 20), ("high", 40)))
    one, other, known = Gain(20), Gain(40), 0
    for step, frame in enumerate(stream(4, 300), 1):
        feed(store, step, **frame)
        if math.isfinite(frame.get("policy__entropy", math.nan)):
            one.add(frame["policy__entropy"])
            other.add(frame["policy__entropy"])
        if step > 50 and store.series("policy.entropy").fresh():
            assert (low(), high()) == (one.ends or (None, None))
            assert longer() == (other.ends[1] if other.ends else None)
            known += one.ends is not None
    assert known > 100
    assert len({id(window.gained) for window in store._windows.values()}) == 2  # type: ignore[union-attr]


def test_unknown_until_there_is_something_to_say_and_when_the_signal_falls_silent() -> None:
    store = Store(CATALOGUE)
    z, up, rule = bound(store, TEXTS[0]), bound(store, TEXTS[4]), bound(store, "shift_up(policy.entropy, points=40) > 4")
    for step in range(1, 120):
        feed(store, step, policy__entropy=float(step % 5))
        assert (z() is None) is (step < 30)
        assert (up() is None) is (rule() is None) is (step < 65)
    for step in range(120, 124):
        feed(store, step)
    assert (z(), up(), rule()) == (None, None, None)
    feed(store, 124, policy__entropy=2.0)
    assert (z() is None, up() is None, rule()) == (False, False, False)


def test_every_says_how_many_samples_are_one() -> None:
    store = Store(CATALOGUE)
    white, thinned, learned = (bound(store, f"shift_up(policy.entropy, points=40{every})") for every in (", every=1", ", every=3", ""))
    one, three = Shift(1, 40, every=1), Shift(1, 40, every=3)
    source = random.Random(3)
    for step in range(1, 60):
        x = source.gauss(2.0 * (step > 30), 1)
        feed(store, step, policy__entropy=x)
        assert (white(), thinned(), learned()) == (one.add(x), three.add(x), None)
    assert (white() or 0) > 2 > (thinned() or 0)


def test_a_late_sample_enters_the_trend_and_is_not_judged_as_a_shift() -> None:
    store, on_time = Store(CATALOGUE), Store(CATALOGUE)
    z, up, same = bound(store, TEXTS[0]), bound(store, TEXTS[4]), bound(on_time, TEXTS[0])
    for step in range(1, 101):
        if step != 90:
            feed(store, step, policy__entropy=float(step % 7))
        feed(on_time, step, policy__entropy=float(step % 7))
    before = up()
    store.ingest(Frame(90, {"policy.entropy": 6.0}))
    assert (z(), up()) == (same(), before)


def test_absent_signals_make_it_inactive_and_memory_stays_small() -> None:
    assert bound(Store(CATALOGUE), TEXTS[8], frozenset({"policy.entropy"})).status == "inactive"
    store = Store(CATALOGUE)
    up = bound(store, "shift_up(policy.entropy, points=200)")
    for step in range(1, 5_001):
        feed(store, step, policy__entropy=float(step % 11))
    assert up() is not None
    assert len(store.series("policy.entropy").xs) < 1_200
    assert len(json.dumps(store.state_dict())) < 20_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("trend_z(policy.entropy, updates=9)", "E304"), ("trend_z(policy.entropy, points=513)", "E304"), ("theil_sen(policy.entropy, seconds=60)", "E204"),
        ("theil_sen(policy.entropy)", "E204"), ("shift_up(policy.entropy, updates=50)", "E204"), ("shift_down(policy.entropy, points=29)", "E304"),
        ("shift_up(policy.entropy, points=2001)", "E304"), ("shift_up(policy.entropy, points=50, every=0)", "E304"), ("trend_z(policy.entropy, updates=50, every=2)", "E204"), ("theil_sen(policy.entropy, updates=30) > policy.entropy", "E201"),
        ("shift_up(policy.entropy, points=50) > 9", "E301"), ("gain_low(policy.entropy, points=19)", "E304"), ("gain_high(policy.entropy, updates=50)", "E204"),
        ("gain_high(completion.truncated_fraction, points=20) < -1", "E302"), ("gain_low(policy.entropy, points=20) > evidence", "E201"), ("trend_z(policy.entropy, updates=30) < -16", "E301"), ("trend_z(policy.entropy, updates=30) > evidence", "E201"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(text: str, code: str) -> None:
    params = {"evidence": Limit(4, "decades", 2, 8), "sure": Limit(4.5, "sigma", 3, 10)}
    with pytest.raises(RuleError) as caught:
        check(parse(text, Where()), signals=CATALOGUE, params=params)
    assert {problem.code for problem in caught.value.problems} == {code}


def test_units() -> None:
    params = {"evidence": Limit(4, "decades", 2, 8), "sure": Limit(4.5, "sigma", 3, 10)}

    def unit(text: str) -> str | None:
        return check(parse(text, Where()), signals=CATALOGUE, params=params).unit

    assert unit("theil_sen(policy.entropy, updates=30)") == "nats/updates"
    assert unit("trend_z(policy.entropy, updates=30)") == "sigma"
    assert unit("shift_up(policy.entropy, points=200, skip=20)") == "decades"
    assert unit("gain_high(policy.entropy, points=20)") == unit("gain_low(policy.entropy, points=20)") == "nats"
    assert unit("trend_z(policy.entropy, updates=30) > sure and shift_up(policy.entropy, points=200) > evidence") is None
