"""Whether the score still goes by the text of the answer, as it did: a prediction made before each batch, and how much of it came true.

Scores that come back in another order, or belong to the batch before, look like any scores: their mean, their spread and their groups stay
what they were. What they lose is every connection with the text that gets them. Copies of one answer show it at once (`groups.SameText`); where a
policy writes none, the connection itself has to be measured.

* *What a text is.* Shares of its tokens, hashed into `BUCKETS`, and the logarithm of its length; of a batch of long texts, tokens from both
  ends (`TOKENS` of the batch), where formats, answers and cuts stand. Of the score: its distance from the mean of its group, over the group's own
  spread, as an advantage has it. Groups without spread tell nothing and are left out.
* *The prediction.* Ridge regression on the newest `MEMORY` stretches (each forgets a twentieth of what was before), so that it goes along with a
  policy, a data set or a reward function that changes. `RIDGE` is what it takes for granted: that many answers of which the text says nothing.
* *Told before it is learned.* Each stretch of `LEAST` answers and more is predicted first and learned from then. The slope of score on prediction
  over the newest `WINDOW` answers is out of sample: 1 where the score does what the text promised, 0 where it has nothing to do with it any more.

Why the slope and not the correlation: as a policy becomes good its answers become alike, a judge's noise remains, and the correlation
falls in every healthy run. The slope stays near 1 and only its error grows. It is told while that error (of a regression whose errors differ
from row to row, White 1980) is at most `ERROR`, a fifth of the way from 1 to 0, and while the predictions are not one or two extreme ones (`SPREAD`
answers by Kish's count). So what cannot be known is not told: a score that never went by the words, a task that is solved.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainvitals.events import labelled

BUCKETS = 64
"""Buckets of the tokens' shares: token id modulo 64."""
TOKENS = 8192
"""Tokens of a batch that are looked at: 128 of each of 64 answers, in a third of a millisecond."""
LEAST = 32
"""Answers, in groups with spread, that are predicted and learned at a time; smaller batches are put together."""
MEMORY = 20
"""Stretches that the prediction goes back on: 640 answers, ten for each of its weights."""
WINDOW = 256
"""Newest answers of which the slope is told: its error is 1/16 over the correlation that there was, once nothing is left of it."""
RIDGE = 32.0
"""Answers worth of doubt: half of the words' weight while a single small batch was seen, a twentieth when the memory is full."""
ERROR = 0.2
"""Largest standard error of a slope that is told."""
SPREAD = 32
"""Fewest answers, by Kish's count, that the spread of the predictions comes from; 85 of 256 where they are normal."""
_FLAT = 1e-5  # of the group's largest score: scores are numbers of 32 bits, whose rounding is 1e-7
_MANY = 16  # reward functions that are followed
_HALF = np.triu_indices(BUCKETS + 1)

Floats = NDArray[np.float64]


def features(rows: Sequence[Sequence[int]]) -> Floats:
    """Of each text: shares of its tokens by bucket, from both ends where the batch has more than `TOKENS`, and the logarithm of its length."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    if lengths.sum() > TOKENS:
        side = max(1, TOKENS // (2 * len(rows)))
        rows = [row if len(row) <= 2 * side else [*row[:side], *row[-side:]] for row in rows]
    taken = np.asarray([len(row) for row in rows], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(rows), np.int64, int(taken.sum())) % BUCKETS
    counts = np.bincount(np.repeat(np.arange(len(rows)) * BUCKETS, taken) + tokens, minlength=len(rows) * BUCKETS)
    shares = counts.reshape(-1, BUCKETS) / np.maximum(taken, 1)[:, None]
    return np.column_stack([shares, np.log1p(lengths)])


def within_groups(texts: Floats, scores: Floats, parts: Sequence[slice]) -> list[tuple[Floats, Floats]]:
    """Of each group with spread, its scored answers: distance of texts and of scores from the group's mean, that of the scores in units of its spread."""
    groups: list[tuple[Floats, Floats]] = []
    for part in parts:
        known = np.isfinite(scores[part])
        found = scores[part][known]
        if len(found) < 2:
            continue
        apart = found - found.mean()
        scale = math.sqrt(float(apart @ apart) / len(apart))
        if scale > _FLAT * float(np.abs(found).max()):
            beside = texts[part][known]
            groups.append((beside - beside.mean(axis=0), apart / scale))
    return groups


class _Follower:
    """One reward function: what was learned of it, how far that came true, and groups that wait to be a stretch."""

    def __init__(self) -> None:
        self._moments = np.zeros((BUCKETS + 1, BUCKETS + 1))
        self._products = np.zeros(BUCKETS + 1)
        self._count = 0.0
        self._sums: deque[list[float]] = deque()  # of each stretch in the window, see `_compare`
        self._waiting: list[tuple[Floats, Floats]] = []

    def add(self, groups: Sequence[tuple[Floats, Floats]]) -> float | None:
        """Take a batch in; the slope, when a stretch is complete and it can be told."""
        self._waiting += groups
        if sum(len(scores) for _, scores in self._waiting) < LEAST:
            return None
        texts, scores = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
        told = None
        if self._count:
            self._compare(texts @ self._weights(), scores, len(self._waiting))
            told = self._slope()
        self._waiting = []
        kept = 1 - 1 / MEMORY
        self._moments = kept * self._moments + texts.T @ texts
        self._products = kept * self._products + texts.T @ scores
        self._count = kept * self._count + len(scores)
        return told

    def _weights(self) -> Floats:
        """Ridge regression where all shares have one scale, so that a rare token is doubted, and the length has its own."""
        spread = np.diag(self._moments) / self._count
        scale = np.full(BUCKETS + 1, math.sqrt(float(spread[:BUCKETS].mean())) or 1.0)
        scale[BUCKETS] = math.sqrt(float(spread[BUCKETS])) or 1.0
        doubted = self._moments / np.outer(scale, scale) + RIDGE * np.eye(BUCKETS + 1)
        solved: Floats = np.linalg.solve(doubted, self._products / scale)
        return solved / scale

    def _compare(self, promised: Floats, scores: Floats, groups: int) -> None:
        """Keep of a stretch: answers, those free beside the groups' means, and sums of products of prediction and score."""
        square = promised * promised
        self._sums.append([
            float(len(scores)), float(len(scores) - groups), float(square.sum()), float(promised @ scores), float(square @ square),
            float((square * promised) @ scores), float((square * scores) @ scores),
        ])  # fmt: skip
        while len(self._sums) > 1 and sum(one[0] for one in self._sums) - self._sums[0][0] >= WINDOW:
            self._sums.popleft()

    def _slope(self) -> float | None:
        answers, free, square, product, fourth, third, both = (math.fsum(column) for column in zip(*self._sums, strict=True))
        if answers < WINDOW / 2 or square * square < SPREAD * fourth or square <= 0:
            return None
        slope = product / square
        variance = (both - 2 * slope * third + slope * slope * fourth) * answers / max(1.0, free - 1)
        return slope if math.sqrt(max(0.0, variance)) <= ERROR * square else None

    def state_dict(self) -> dict[str, Any]:
        """What was learned and the window, without what waits: some twenty kilobytes."""
        known = np.concatenate([self._moments[_HALF], self._products, [self._count]])
        return {"known": base64.b64encode(zlib.compress(known.tobytes())).decode(), "sums": [list(one) for one in self._sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was; of another version, start anew."""
        known = np.frombuffer(zlib.decompress(base64.b64decode(state["known"])), dtype=np.float64)
        if len(known) != len(_HALF[0]) + BUCKETS + 2:
            return
        half = np.zeros((BUCKETS + 1, BUCKETS + 1))
        half[_HALF] = known[: len(_HALF[0])]
        self._moments = half + half.T - np.diag(np.diag(half))
        self._products, self._count = known[len(_HALF[0]) : -1].copy(), float(known[-1])
        self._sums = deque([float(value) for value in one] for one in state["sums"])
        self._waiting = []


class TextSlope:
    """The slope of each reward function's scores on what their texts promised."""

    def __init__(self) -> None:
        self._followers: dict[str, _Follower] = {}

    def signals(self, rows: Sequence[Sequence[int]], parts: Sequence[slice], scores: Floats, labels: Sequence[str]) -> dict[str, float]:
        """Take a batch in and tell what can be told.

        Args:
            rows: Token ids of each completion, without padding.
            parts: Rows of each group (`groups.group_parts`).
            scores: One row per completion, one column per reward function; NaN where there is none.
            labels: Name of each column.
        """
        values: dict[str, float] = {}
        if not len(rows):
            return values
        texts = features(rows)
        for column, label in enumerate(labels[:_MANY]):
            slope = self._followers.setdefault(label, _Follower()).add(within_groups(texts, scores[:, column], parts))
            if slope is not None:
                values[labelled("reward.text_slope", "component", label)] = slope
        return values

    def state_dict(self) -> dict[str, Any]:
        """What every function's follower knows, for a checkpoint."""
        return {label: one.state_dict() for label, one in self._followers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        for label, known in state.items():
            self._followers.setdefault(label, _Follower()).load_state_dict(known)
