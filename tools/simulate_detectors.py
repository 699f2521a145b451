"""Simulate every detector on noise and on changes of known size, and write docs/detectors.md. Takes less than a minute.

The detectors that are simulated are the ones that run: samples go through ``add`` one by one. Streams come from numpy's
default generator with the seed on the page, so the numbers are the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainvitals.detectors.gain import Gain
from trainvitals.detectors.gap import Gap
from trainvitals.detectors.level import Level
from trainvitals.detectors.rate import Rate
from trainvitals.detectors.shift import LEARN, Shift
from trainvitals.detectors.spike import Spike
from trainvitals.detectors.trend import mann_kendall

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detectors.md"
SEED = 20261
QUIET, LENGTH = 200, 1_000
"""Streams without a change, and samples of each."""
CHANGED, BEFORE, AFTER = 40, 200, 400
"""Streams with a change, samples before it, samples in which it may be found."""
LIMIT = 4.0
"""Evidence for an alarm of shift and rate: alpha = 1e-4."""
TREND = 60
LOOK = 5
"""Trend looks at the last 60 samples, at every fifth."""

Hears = Callable[[float], bool]
Noise = Callable[[np.random.Generator, int, int], np.ndarray]


def ar(rho: float) -> Noise:
    """Autocorrelated noise of variance 1."""

    def draw(source: np.random.Generator, streams: int, length: int) -> np.ndarray:
        xs = source.standard_normal((streams, length))
        for at in range(1, length):
            xs[:, at] = rho * xs[:, at - 1] + np.sqrt(1 - rho * rho) * xs[:, at]
        return xs

    return draw


NOISES: dict[str, Noise] = {
    "white": lambda source, streams, length: source.standard_normal((streams, length)),
    "t3": lambda source, streams, length: source.standard_t(3, (streams, length)) / np.sqrt(3),
    "AR 0.5": ar(0.5),
    "AR 0.9": ar(0.9),
}
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "+1σ": lambda at: 1.0 * (at >= 0),
    "+2σ": lambda at: 2.0 * (at >= 0),
    "+4σ": lambda at: 4.0 * (at >= 0),
    "drift .02σ": lambda at: 0.02 * np.maximum(at + 1, 0),
    "drift .05σ": lambda at: 0.05 * np.maximum(at + 1, 0),
}


def spike() -> Hears:
    """Alarm of `Spike`."""
    detector = Spike()

    def hear(x: float) -> bool:
        detector.add(x)
        return detector.alarm

    return hear


def level() -> Hears:
    """Alarm of `Level` two standard deviations above the healthy mean."""
    detector = Level(2.0)

    def hear(x: float) -> bool:
        detector.add(x)
        return detector.alarm

    return hear


def shift(every: int | None) -> Callable[[], Hears]:
    """Alarm of `Shift` upwards; ``every=1``: without the decimation that it learns."""

    def make() -> Hears:
        detector = Shift(1, every=every)
        return lambda x: (detector.add(x) or 0.0) >= LIMIT

    return make


def trend() -> Hears:
    """Alarm of `mann_kendall` upwards."""
    newest: list[float] = []
    seen = 0

    def hear(x: float) -> bool:
        nonlocal seen
        seen += 1
        newest.append(x)
        del newest[:-TREND]
        return len(newest) == TREND and seen % LOOK == 0 and mann_kendall(newest) >= 4.5

    return hear


DETECTORS: dict[str, tuple[int, Callable[[], Hears]]] = {
    "spike": (16, spike),
    "level (2σ, 4 of 5)": (4, level),
    "shift": (LEARN, shift(None)),
    "shift, not decimated": (1, shift(1)),
    "trend (60 samples)": (TREND, trend),
}
"""Samples until the first judgement, and how to make one."""


def first_alarm(hear: Hears, xs: list[float], since: int) -> int | None:
    """Index of the first alarm from ``since`` on."""
    return next((at for at, x in enumerate(xs) if hear(x) and at >= since), None)


def alarms(make: Callable[[], Hears], warm: int, streams: np.ndarray) -> str:
    """False alarms per 1,000 samples: first alarms by the samples that were judged until then."""
    found, judged = 0, 0
    for xs in streams.tolist():
        at = first_alarm(make(), xs, warm)
        found += at is not None
        judged += (len(xs) if at is None else at + 1) - warm
    return f"{1000 * found / judged:.2f}"


def delay(make: Callable[[], Hears], streams: np.ndarray, onset: int) -> str:
    """Median samples to the alarm after the onset, and the share that is missed; streams with an alarm before do not count."""
    found: list[float] = []
    for xs in streams.tolist():
        at = first_alarm(make(), xs, 0)
        if at is None or at >= onset:
            found.append(np.inf if at is None else at - onset)
    missed = sum(np.isinf(found)) / len(found) if found else 1.0
    if missed >= 0.5:
        return f"missed {missed:.0%}"
    middle = f"{np.median(found):.0f}"
    return middle if missed == 0 else f"{middle} ({missed:.0%} missed)"


def noise_tables() -> list[str]:
    """One table of false alarms, then one of delays for each noise."""
    source = np.random.default_rng(SEED)
    quiet = {noise: draw(source, QUIET, LENGTH) for noise, draw in NOISES.items()}
    lines = ["## False alarms per 1,000 samples\n", row("detector", *NOISES), rule(len(NOISES))]
    lines += [row(name, *(alarms(make, warm, streams) for streams in quiet.values())) for name, (warm, make) in DETECTORS.items()]
    at = np.arange(-BEFORE, AFTER)
    for noise, draw in NOISES.items():
        lines += ["", f"## Delay after a change, {noise}\n", row("detector", *CHANGES), rule(len(CHANGES))]
        streams = {change: draw(source, CHANGED, BEFORE + AFTER) + moved(at) for change, moved in CHANGES.items()}
        lines += [row(name, *(delay(make, xs, BEFORE) for xs in streams.values())) for name, (_, make) in DETECTORS.items() if make is not spike]
    return lines


def spike_table() -> list[str]:
    """Spike: share of single samples, and of three in a row, that are seen at once."""
    source = np.random.default_rng(SEED + 3)
    planted = {"one of 6σ": [6.0], "one of 10σ": [10.0], "one of 20σ": [20.0], "three of 5σ": [5.0] * 3, "three of 8σ": [8.0] * 3}
    lines = ["## Spike: share seen while it lasts\n", row("noise", *planted), rule(len(planted))]
    for noise, draw in NOISES.items():
        shares = []
        for sizes in planted.values():
            streams = draw(source, 2 * CHANGED, 100 + len(sizes))
            streams[:, 100:] += sizes
            seen = 0
            for xs in streams.tolist():
                hear = spike()
                seen += any([hear(x) for x in xs][100:])
            shares.append(f"{seen / len(streams):.0%}")
        lines.append(row(noise, *shares))
    return lines


def rate_table() -> list[str]:
    """Rate at a limit of 5 %: batches of 16 independent completions, and shares of batches whose completions hang together."""
    source = np.random.default_rng(SEED + 1)

    def clumped(share: float, streams: int, length: int) -> np.ndarray:
        return source.binomial(16, source.beta(4 * share, 4 * (1 - share), (streams, length))) / 16

    def independent(share: float, streams: int, length: int) -> np.ndarray:
        return source.binomial(16, share, (streams, length)) / 16

    kinds: dict[str, tuple[Callable[[float, int, int], np.ndarray], Callable[[Rate, float], Any]]] = {
        "counts of 16, independent": (independent, lambda rate, x: rate.add(16 * x, 16)),
        "shares of 16, hanging together": (clumped, lambda rate, x: rate.add(x)),
        "counts of 16, hanging together": (clumped, lambda rate, x: rate.add(16 * x, 16)),
    }
    lines = ["## Rate: share above 5 %\n", row("what is given", "false alarms at 5 %", "delay at 10 %", "delay at 20 %", "delay at 50 %"), rule(4)]
    for name, (draw, give) in kinds.items():

        def make(give: Callable[[Rate, float], Any] = give) -> Hears:
            rate = Rate(0.05)
            return lambda x: (give(rate, x) or 0.0) >= LIMIT

        delays = []
        for share in (0.1, 0.2, 0.5):
            before, after = draw(0.03, CHANGED, BEFORE), draw(share, CHANGED, AFTER)
            delays.append(delay(make, np.concatenate([before, after], axis=1), BEFORE))
        lines.append(row(name, alarms(make, 0, draw(0.05, QUIET, LENGTH)), *delays))
    return lines


def gap_table() -> list[str]:
    """Gap: runs in which the interval ever leaves the mean out, and differences needed to see a gap."""
    source = np.random.default_rng(SEED + 2)
    lines = ["## Gap: a confidence sequence, alpha 5 %\n", row("noise", "runs with a miss", "gap 0.25σ seen", "gap 0.5σ seen", "gap 1σ seen"), rule(4)]
    for noise, draw in NOISES.items():
        wrong = 0
        for values in draw(source, 100, 500).tolist():
            gap = Gap(0.05)
            ends = [gap.add(value, 0.0) or (0.0, 0.0) for value in values]
            wrong += any(low > 0.0 or high < 0.0 for low, high in ends)

        def make() -> Hears:
            gap = Gap(0.05)
            return lambda x: (gap.add(x, 0.0) or (0.0, 0.0))[0] > 0.0

        lines.append(row(noise, f"{wrong} %", *(delay(make, draw(source, CHANGED, AFTER) + size, 0) for size in (0.25, 0.5, 1.0))))
    return lines


def gain_table() -> list[str]:
    """Gain: runs in which the interval ever leaves the true gain out, plateaus told too soon, and samples until a flat line and a rise are told."""
    source = np.random.default_rng(SEED + 4)
    lines = [
        "## Gain: a confidence sequence against a reference stretch of 20, alpha 5 %\n",
        row("noise", "runs with a miss", "rises by 1σ called less", "flat: below 0.5σ", "flat: below 1σ", "flat: below 2σ", "rise .05σ seen", "rise .1σ seen"),
        rule(7),
    ]
    for noise, draw in NOISES.items():
        wrong = sum(any(low > 0.0 or high < 0.0 for low, high in _intervals(values)) for values in draw(source, 100, 500).tolist())
        denied = 0
        for values in (draw(source, 100, 400) + (np.arange(400) >= 20)).tolist():
            gain, low, high = Gain(), 0.0, 1.0
            for value in values:
                low, high = gain.add(value) or (0.0, 1.0)
                if gain.lap or low > 0.0 or high < 1.0:
                    break  # the reference moves into the risen stretch, it is proven, or it is denied
            denied += high < 1.0 and low <= 0.0
        flat = []
        for size in (0.5, 1.0, 2.0):

            def below(size: float = size) -> Hears:
                gain = Gain()
                return lambda x: (gain.add(x) or (0.0, np.inf))[1] < size

            flat.append(delay(below, draw(source, CHANGED, 2 * AFTER), 0))

        def rises() -> Hears:
            gain = Gain()
            return lambda x: (gain.add(x) or (0.0, 0.0))[0] > 0.0

        risen = [delay(rises, draw(source, CHANGED, AFTER) + slope * np.arange(AFTER), 0) for slope in (0.05, 0.1)]
        lines.append(row(noise, f"{wrong} %", f"{denied} %", *flat, *risen))
    return lines


def _intervals(values: list[float]) -> list[tuple[float, float]]:
    gain = Gain(20)
    return [gain.add(value) or (0.0, 0.0) for value in values]


def row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def rule(columns: int) -> str:
    """The line under the head."""
    return f"| --- |{' ---: |' * columns}"


INTRO = f"""# Detectors

<!-- Generated by tools/simulate_detectors.py. Edit the source, not this page. -->

Seven primitives in `trainvitals.detectors`. They know numbers only; formula, source, parameters and assumptions are in their docstrings.

| primitive | question | in rules |
| --- | --- | --- |
| `invariant` | Do the bounds hold, always? | a plain comparison |
| `spike` | Is this sample far from the recent ones? | `median`, `quantile` |
| `level` | Are most recent samples beyond a limit? | `sustain`, `frozen_median` |
| `shift` | Has the signal moved to one side of its own past? | `shift_up`, `shift_down` |
| `trend` | Does it go one way, and how fast? | `trend_z`, `theil_sen` |
| `rate`, `gap` | Is a share above its limit? Where does a mean difference lie? | not yet |
| `gain` | Between which numbers lies what it has gained? Is it a plateau? | `gain_low`, `gain_high` |

Measured with `python tools/simulate_detectors.py --write`, seed {SEED}. False alarms: {QUIET} streams of {LENGTH:,} samples for each noise, the first
alarm of each by the samples judged until then; none in {QUIET * LENGTH:,} means below 0.02 with 95 % confidence. Delay: median samples from the onset to
the alarm in {CHANGED} streams with {BEFORE} samples before and {AFTER} after it. Noise has variance 1: white (normal), t3 (Student, three degrees of freedom),
AR (autocorrelated). Shift alarms at an evidence of 4 (alpha 1e-4), trend at z = 4.5, looking at every fifth sample, spike at z = 8 or 4 on
three in a row, level at 2σ above the true mean on 4 of 5.
"""
READING = """
## How to read this

* **Spike adapts**: it is meant to miss a new level. Its alarms on t3 are true outliers; where they are normal, judge the logarithm.
* **Level** knows the healthy mean here, which no run does. It is only as quiet as its limit is far.
* **Shift** keeps its promise, at most one false alarm in 10,000 samples (0.10 in the table), wherever samples are exchangeable, whatever their
  tails; on autocorrelated ones by the decimation that it learns from the first 64. Without it, AR 0.9 gives 90 times the promise. The price is delay:
  it takes every third sample of AR 0.5 and every nineteenth of AR 0.9, where the 200 samples before the onset are worth ten. A short run
  of such a signal holds no evidence, and the table says so.
* **Trend** sees what goes on for as long as its window; z for autocorrelation is widened, not cured. A small z after a step is no all-clear.
* **Rate** with counts trusts that completions fail independently. Where a whole group fails together, give the share of the batch.
* **Gain** decides for a plateau only when the interval is narrower than the gain of interest: under noise of 1σ it cannot tell 0.5σ from 0 before some
  200 samples, and says so. A steady slope is proven or widens the interval; a step in the far past is forgotten, lap by lap. A reference of 20 samples is
  for nearly white signals such as rewards and losses; give it 200 for what hangs together like AR 0.9.
* **Real runs**: on the 36 public runs with a reward (notes/pathologies.md 5.1; 33 log 40 rows), `shift_down(reward.mean, points=100, every=1) > 3`, a
  limit that is nothing but alpha 1e-3, speaks in 8 of 8 collapsed, 2 of 2 degraded and 0 of 26 healthy ones, 4 to 30 rows after the onset. With
  64 rows to learn from it could not say a word there: where a signal is nearly white, say so with `every=1`.
* **Others**: river 0.26 on white noise, default settings: Page-Hinkley 0.37 false alarms and 48, 23 and 9 samples of delay at 1, 2 and 4σ, ADWIN
  0.00 and 55, 23, 23, KSWIN 0.97 and 23, 15, 12; shift to both sides on the same streams 0.03 and 27, 10, 5. On AR 0.9: 6.1, 6.9, 9.0 and 0.08
  false alarms. `tests/detectors/against_river.py` prints the table; river's rolling quantiles give the z of spike to the last bit.
* A signal that is *meant* to move shifts and trends when the run is healthy. These are evidence; a rule adds the bad direction and the outcome.
"""


def main() -> int:
    """Simulate, then print, write or compare the page; 1 when it differs under ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/detectors.md instead of printing it")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when docs/detectors.md differs")
    args = parser.parse_args()
    began = time.perf_counter()
    page = "\n".join([INTRO, *noise_tables(), "", *spike_table(), "", *rate_table(), "", *gap_table(), "", *gain_table(), READING.rstrip(), ""])
    if args.write:
        PAGE.write_text(page)
    elif not args.check:
        print(page)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if args.check and PAGE.read_text() != page:
        print("stale: docs/detectors.md (python tools/simulate_detectors.py --write)")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
