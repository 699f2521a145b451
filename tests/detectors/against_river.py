"""Our detectors beside river's on the same streams: `python tests/detectors/against_river.py` prints the table.

river has no rank e-CUSUM, no Mann-Kendall and no sequential test of a rate. What it has: rolling quantiles (those of `Spike` must
equal them), Page-Hinkley, ADWIN and KSWIN for shifts. `test_river.py` runs this where river is installed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from trainvitals.detectors.shift import Shift
from trainvitals.detectors.spike import IQR_TO_SIGMA, Spike

QUIET, LENGTH = 40, 1_000


def spike_difference(window: int = 64, count: int = 2_000) -> float:
    """Largest difference between our z and one made of river's rolling quantiles, on noise with ties and spikes."""
    from river import stats

    source, spike, most = random.Random(3), Spike(window), 0.0
    quantiles = [stats.RollingQuantile(q, window_size=window) for q in (0.25, 0.5, 0.75)]
    for at in range(count):
        x = 40.0 if at % 97 == 0 else round(source.gauss(5, 2), 1)
        z = spike.add(x)
        if z is not None and at >= window:
            low, middle, high = (quantile.get() for quantile in quantiles)
            most = max(most, abs(z - (x - middle) / ((high - low) / IQR_TO_SIGMA)))
        for quantile in quantiles:
            quantile.update(x)
    return most


def detectors() -> dict[str, Callable[[], Callable[[float], bool]]]:
    """Each gives, when made, a function that takes a sample and says whether it is an alarm."""
    from river import drift

    def of(make: Callable[[], Any]) -> Callable[[], Callable[[float], bool]]:
        def made() -> Callable[[float], bool]:
            detector = make()

            def hear(x: float) -> bool:
                detector.update(x)
                return bool(detector.drift_detected)

            return hear

        return made

    def ours() -> Callable[[float], bool]:
        up, down = Shift(1), Shift(-1)  # river's look to both sides: half of alpha each
        return lambda x: max(up.add(x) or 0.0, down.add(x) or 0.0) >= 4.3

    return {
        "shift, both sides, alpha 1e-4": ours,
        "Page-Hinkley, defaults": of(drift.PageHinkley),
        "ADWIN, defaults": of(drift.ADWIN),
        "KSWIN, defaults, seeded": of(lambda: drift.KSWIN(seed=1)),
    }


def noise(kind: str, source: random.Random, length: int) -> list[float]:
    """White, t3 or AR(1) noise of variance 1."""
    found, x = [], 0.0
    for _ in range(length):
        step = source.gauss(0, 1)
        if kind == "t3":
            x = step / (sum(source.gauss(0, 1) ** 2 for _ in range(3)) / 3) ** 0.5 / 3**0.5
        elif kind.startswith("AR"):
            rho = float(kind[3:])
            x = rho * x + (1 - rho * rho) ** 0.5 * step
        else:
            x = step
        found.append(x)
    return found


def scores(name: str, kind: str) -> tuple[float, dict[float, float]]:
    """False alarms per 1,000 samples (first of each stream), and median delay for shifts by 1, 2 and 4 (infinite: missed)."""
    make, source = detectors()[name], random.Random(kind)
    alarms = heard = 0
    for _ in range(QUIET):
        hear = make()
        for x in noise(kind, source, LENGTH):
            heard += 1
            if hear(x):
                alarms += 1
                break
    delays = {}
    for size in (1.0, 2.0, 4.0):
        found = []
        for _ in range(QUIET):
            hear = make()
            at = next((at for at, x in enumerate(noise(kind, source, 600)) if hear(x + size * (at >= 200))), None)
            if at is None or at >= 200:
                found.append(float("inf") if at is None else at - 200.0)
        delays[size] = sorted(found)[len(found) // 2] if found else float("nan")
    return 1_000 * alarms / heard, delays


if __name__ == "__main__":
    print(f"largest difference of z from river's quantiles: {spike_difference():.2g}")
    for kind in ("white", "t3", "AR 0.5", "AR 0.9"):
        for name in detectors():
            false, delays = scores(name, kind)
            print(f"{kind:7} {name:30} false alarms {false:5.2f}  delay " + "  ".join(f"{size:g}: {at:g}" for size, at in delays.items()))
