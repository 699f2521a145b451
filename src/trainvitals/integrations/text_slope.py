"""Whether the score still goes by the text of the answer, as it did: a prediction made before each batch, and how much of it came true.

Scores that come back in another order, or belong to the batch before, look like any scores: their mean, their spread and their groups stay
what they were. What they lose is every connection with the text that gets them. Copies of one answer show it at once (`groups.SameText`); where a
policy writes none, the connection itself has to be measured.

* *What a text is.* Shares of its tokens, hashed into `BUCKETS`, and the logarithm of its length; of a batch of long texts, tokens from both
  ends (`TOKENS` of the batch), where formats, answers and cuts stand. Of the score: its distance from the mean of its group, over the group's own
  spread, as an advantage has it. Groups without spread tell nothing and are left out.
* *The prediction.* Ridge regression (Hoerl and Kennard 1970) that forgets a thirtieth of what it knows with each stretch of `LEAST` answers or more,
  so that it goes along with a policy, a data set or a reward function that changes.
* *Told before it is learned* (prequential, Dawid 1984). The slope of score on prediction over the newest `WINDOW` answers is out of sample: 1
  where the score does what the text promised, 0 where it has nothing to do with it any more.
* *Lost or another one.* Where the slope is small, the newest answers are asked whether they foretell each other's scores, each eighth of their
  groups from the other seven. If they do, by `NEW` standard errors, there is a connection, only not the one that was learned: another reward function,
  other prompts, a lost sign. Then `CHANGED` is told at least. It takes no memory of what was, so it is there as soon as the new answers are.

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
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainvitals.events import labelled

BUCKETS = 64
"""Buckets of the tokens' shares: token id modulo 64."""
TOKENS = 8192
"""Tokens of a batch that are looked at: 128 of each of 64 answers, in a third of a millisecond."""
LEAST = 32
"""Answers, in groups with spread, that are predicted and learned at a time; smaller batches are put together."""
MEMORY = 30
"""Stretches that the prediction goes back on: 960 answers, fifteen for each of its weights."""
WINDOW = 256
"""Newest answers of which the slope is told: its error is 1/16 over the correlation that there was, once nothing is left of it."""
RIDGE = 32.0
"""Answers worth of doubt: half of each weight while a single small stretch was seen, a thirtieth when the memory is full."""
ERROR = 0.2
"""Largest standard error of a slope that is told."""
SPREAD = 32
"""Fewest answers, by Kish's count, that the spread of the predictions comes from; 85 of 256 where they are normal."""
FOLDS = 8
"""Parts of the newest answers, of whole groups, each of which is predicted from the others."""
NEW = 3.0
"""Standard errors from which on they foretell each other: by chance in one look of a hundred (simulated: parts that predict each other spread by 1.3
standard errors, not by 1), where a new reward function that words tell of gives four to thirty."""
CHANGED = 0.5
"""What is told at least where there is a connection, but another one: neither that it holds nor that it is gone."""
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
    table: Floats = np.column_stack([shares, np.log1p(lengths)])
    return table


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


def _weights(moments: Floats, products: Floats, count: float) -> Floats:
    """Ridge regression where all shares have one scale, so that a rare token is doubted, and the length has its own."""
    spread = np.diag(moments) / max(1.0, count)
    scale = np.full(BUCKETS + 1, math.sqrt(float(spread[:BUCKETS].mean())) or 1.0)
    scale[BUCKETS] = math.sqrt(float(spread[BUCKETS])) or 1.0
    solved: Floats = np.linalg.solve(moments / np.outer(scale, scale) + RIDGE * np.eye(BUCKETS + 1), products / scale) / scale
    return solved


def slope_of(scores: Floats, promised: Floats, free: int) -> tuple[float, float]:
    """Slope of scores on predictions, both around 0, and its standard error (White 1980); an infinite one where predictions have no spread.

    Args:
        scores: Distances from the group's mean.
        promised: What was predicted of them.
        free: Answers less the means that were taken from them.
    """
    square = float(promised @ promised)
    if square <= 0:
        return 0.0, math.inf
    slope = float(promised @ scores) / square
    missed = promised * (scores - slope * promised)
    return slope, math.sqrt(float(missed @ missed) * len(scores) / max(1, free - 1)) / square


class _Group(NamedTuple):
    """The scored answers of one prompt, as distances from their mean, and what was predicted of them."""

    texts: Floats
    scores: Floats
    promised: Floats


class _Follower:
    """One reward function: what was learned of it, the newest answers with what they promised, and groups that wait to be a stretch."""

    def __init__(self) -> None:
        self._moments = np.zeros((BUCKETS + 1, BUCKETS + 1))
        self._products = np.zeros(BUCKETS + 1)
        self._count = 0.0
        self._window: deque[_Group] = deque()
        self._waiting: list[tuple[Floats, Floats]] = []

    def add(self, groups: Sequence[tuple[Floats, Floats]]) -> float | None:
        """Take a batch in; what is told when a stretch is complete."""
        self._waiting += groups
        if sum(len(scores) for _, scores in self._waiting) < LEAST:
            return None
        weights = _weights(self._moments, self._products, self._count)
        self._window.extend(_Group(texts, scores, texts @ weights) for texts, scores in self._waiting)
        answers = sum(len(group.scores) for group in self._window)
        while len(self._window) > FOLDS and answers - len(self._window[0].scores) >= WINDOW:
            answers -= len(self._window.popleft().scores)
        texts, scores = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
        self._waiting = []
        kept = 1 - 1 / MEMORY
        self._moments = kept * self._moments + texts.T @ texts
        self._products = kept * self._products + texts.T @ scores
        self._count = kept * self._count + len(scores)
        return self._told() if answers >= WINDOW / 2 and len(self._window) >= FOLDS else None

    def _told(self) -> float | None:
        """The slope where it is known; at least `CHANGED` where it is small because the connection is another one now."""
        scores = np.concatenate([group.scores for group in self._window])
        promised = np.concatenate([group.promised for group in self._window])
        free = len(scores) - len(self._window)
        slope, error = slope_of(scores, promised, free)
        if error > ERROR or float(promised @ promised) ** 2 < SPREAD * float((promised**4).sum()):
            return None
        return max(slope, CHANGED) if slope < CHANGED and self._anew(scores, free) >= NEW else slope

    def _anew(self, scores: Floats, free: int) -> float:
        """Standard errors by which the newest answers foretell each other's scores: each eighth of their groups from the others alone."""
        groups, edges = list(self._window), np.linspace(0, len(self._window), FOLDS + 1).astype(int)
        folds = [groups[begin:end] for begin, end in pairwise(edges)]
        texts = [np.concatenate([group.texts for group in fold]) for fold in folds]
        wanted = [np.concatenate([group.scores for group in fold]) for fold in folds]
        moments = np.stack([text.T @ text for text in texts])
        products = np.stack([text.T @ score for text, score in zip(texts, wanted, strict=True)])
        others = zip(texts, moments.sum(axis=0) - moments, products.sum(axis=0) - products, strict=True)
        promised = np.concatenate([text @ _weights(moment, product, len(scores) - len(text)) for text, moment, product in others])
        slope, error = slope_of(scores, promised, free)
        return slope / error if error > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was learned, some twenty kilobytes; the window fills anew."""
        known = np.concatenate([self._moments[_HALF], self._products, [self._count]])
        return {"known": base64.b64encode(zlib.compress(known.tobytes())).decode()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was; of another version, start anew."""
        known = np.frombuffer(zlib.decompress(base64.b64decode(state["known"])), dtype=np.float64)
        if len(known) != len(_HALF[0]) + BUCKETS + 2:
            return
        half = np.zeros((BUCKETS + 1, BUCKETS + 1))
        half[_HALF] = known[: len(_HALF[0])]
        self._moments = half + half.T - np.diag(np.diag(half))
        self._products, self._count = known[len(_HALF[0]) : -1].copy(), float(known[-1])
        self._window.clear()
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
