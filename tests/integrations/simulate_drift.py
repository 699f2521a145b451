"""False alarms and power of `trainvitals.integrations.drift`, simulated: the numbers in its docstring.

    python tests/integrations/simulate_drift.py [runs]
"""

from __future__ import annotations

import sys

import numpy as np

from trainvitals.integrations.drift import BUCKETS, UNITS, Drift, unit

WORDS, TOPICS, PER_UPDATE, UPDATES = 5000, 8, 4, 1000


def texts(rng: np.random.Generator, count: int, weights: np.ndarray, longer: float = 1.0) -> list[np.ndarray]:
    """Prompts of a mixture of topics: each topic ranks the vocabulary its own way, word shares follow Zipf."""
    found = []
    for topic in rng.choice(TOPICS, size=count, p=weights):
        length = max(3, int(longer * rng.lognormal(4.0, 0.6)))
        order = np.random.default_rng(int(topic)).permutation(WORDS)
        shared = rng.random(length) < 0.6  # function words are the same in every topic
        rank = np.minimum(WORDS - 1, rng.zipf(1.3, size=length) - 1)
        found.append(np.where(shared, rank, order[rank]))
    return found


def alarms(seed: int, *, change: int | None = None) -> tuple[list[int], list[int]]:
    """Updates at which the ratio is above 1, and at which it has been for four looks in a row."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(TOPICS))
    drift, single, lasting, row = Drift(), [], [], 0
    for update in range(UPDATES):
        mix = np.roll(weights, 1) if change is not None and update >= change else weights
        told = drift.add(np.stack([unit([text]) for text in texts(rng, PER_UPDATE, mix)]))
        if told is not None:
            row = row + 1 if told[1] > 1 else 0
            single += [update] if told[1] > 1 else []
            lasting += [update] if row >= 4 else []
    return single, lasting


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    healthy = [alarms(seed) for seed in range(runs)]
    print(f"{BUCKETS} buckets, {UNITS} units, {runs} runs of {UPDATES} updates")
    print("runs with a look above 1:", sum(bool(one) for one, _ in healthy), "with four in a row:", sum(bool(four) for _, four in healthy))
    sick = [alarms(seed, change=500)[1] for seed in range(max(1, runs // 10))]
    delays = sorted(min((at for at in four if at >= 500), default=10_000) - 500 for four in sick)
    print("delay of four in a row after a change of topics:", delays[len(delays) // 2], "missed:", sum(delay > UPDATES for delay in delays), "of", len(delays))
