"""What must hold of every group of completions, whatever the task: one prompt, advantages around 0, one score for one text.

A fault here is one of plumbing (a sampler that does not repeat its prompts, scores that come back in another order), and no setting of
the trainer mends it. Pure functions and one window; `sampling.py` reads the trainer.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainvitals.events import labelled

PAIRS = 256
"""Newest pairs of copies that are looked at."""
LEAST = 64
"""Pairs of copies, and pairs of different texts beside them, below which nothing is told: the error of a share of 1 is 1/5 there."""
_KINDS = 3
"""Different scores that must have stood beside a 0: where 0 and 1 are all there is, 0 is an answer like the other."""
_ALIKE = 8
"""Copies with one and the same score other than 0 that must have been seen: without a failure the scorer goes by the text."""
_HEAD = 32  # tokens by which most long completions differ: 256 of 2,048 tokens take 0.5 ms instead of 15

_STILL = 0.5
"""Of the widest mean square difference of different answers in the run: below, the answers hardly differ any more, and what is left of a good judge's scores is its noise."""

Floats = NDArray[np.float64]


def prompt_key(prompt: Any) -> Hashable | None:
    """What the prompt says: its text, or role and text of each message; images are left out. None for what is neither."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple):
        return None
    if all(isinstance(part, int) for part in prompt):
        return tuple(prompt)
    if not all(isinstance(part, dict) for part in prompt):
        return None
    return tuple((str(message.get("role")), _content(message.get("content"))) for message in prompt)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def group_parts(count: int, size: int, start: int) -> list[slice]:
    """Which rows of a rank belong to one group; a group that several ranks share is cut.

    Args:
        count: Rows of this rank.
        size: Completions per prompt.
        start: Place of the rank's first row among those of all ranks.
    """
    edges = [0, *range(size - start % size, count, size), count]
    return [slice(begin, end) for begin, end in pairwise(edges) if end > begin]


def mixed_fraction(keys: Sequence[Hashable | None], parts: Sequence[slice]) -> float | None:
    """Share of groups whose completions answer different prompts; None where no prompt could be read or compared."""
    groups = [keys[part] for part in parts if part.stop - part.start > 1]
    if not groups or any(key is None for group in groups for key in group):
        return None
    return sum(any(key != group[0] for key in group) for group in groups) / len(groups)


def centre_error(advantages: Floats, rewards: Floats, size: int) -> float | None:
    """Largest distance of a group's mean advantage from 0, over the root mean square of all advantages.

    Args:
        advantages: One per completion, whole groups.
        rewards: Total reward of the same completions; NaN where nothing scored one.
        size: Completions per prompt.

    Returns:
        The error, or None where all groups are flat: what is left of their advantages is the rounding of 32 bits.
    """
    known = np.isfinite(rewards.reshape(-1, size))
    table = np.where(known, rewards.reshape(-1, size), 0.0)
    level = table.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    spread = math.sqrt(float((((table - level) * known) ** 2).sum()) / max(1, int(known.sum())))
    if spread <= 1e-4 * float(np.abs(table).max()):
        return None
    scale = math.sqrt(float((advantages * advantages).mean()))
    return float(np.abs(advantages.reshape(-1, size).mean(axis=1)).max()) / scale if scale != 0 else 0.0


def text_keys(prompts: Sequence[Hashable | None], rows: Sequence[Sequence[int]]) -> list[Hashable]:
    """What makes two completions the same: prompt and token ids. Where the beginning tells a long one from all others, that is enough."""
    heads = [(prompt, len(row), *row[:_HEAD]) for prompt, row in zip(prompts, rows, strict=True)]
    counts = Counter(heads)
    return [(head, *row) if counts[head] > 1 and len(row) > _HEAD else head for head, row in zip(heads, rows, strict=True)]


@dataclass(slots=True)
class _Batch:
    """Pairs of one batch, of one reward function."""

    copies: Floats  # score of the later one minus that of the earlier one
    others: Floats  # the same of neighbours with different texts, in groups that hold copies
    zero: int  # copies of which one has exactly 0 and the other has not
    alike: int  # copies with one and the same score other than 0
    beside: set[float]  # the scores beside those zeros


class SameText:
    """Whether one text gets one score: copies of a completion to one prompt in one batch, the newest `PAIRS` pairs of them.

    A scorer that goes by the text gives copies the same score. One that draws differs a little; one whose scores belong to other answers
    gives copies scores that differ as much as those of different texts do. Where the place in the batch decides (a penalty for copies, a tie
    that the first one wins), the later of two is always the better or always the worse one: both directions must occur.
    """

    def __init__(self) -> None:
        self._batches: dict[str, deque[_Batch]] = {}
        self._neighbours: dict[str, Floats] = {}  # newest differences of neighbours in all groups
        self._widest: dict[str, float] = {}

    def signals(
        self, texts: Sequence[Hashable], parts: Sequence[slice], scores: Floats, labels: Sequence[str]
    ) -> dict[str, float]:
        """Add a batch and tell what the window says.

        Args:
            texts: What makes two completions the same: prompt and token ids.
            parts: Rows of each group (`group_parts`).
            scores: One row per completion, one column per reward function; NaN where there is none.
            labels: Name of each column.
        """
        copies, others = _pairs(texts, parts)
        values: dict[str, float] = {}
        for column, label in enumerate(labels):
            batches = self._batches.setdefault(label, deque())
            if copies:
                batches.append(_batch(scores[:, column], copies, others))
            while len(batches) > 1 and sum(len(batch.copies) for batch in batches) - len(batches[0].copies) >= PAIRS:
                batches.popleft()
            usual = _mean_square(np.concatenate([batch.others for batch in batches])) if batches else None
            widest = self._learn(label, scores[:, column], parts)
            told = _told(batches, usual) if usual is not None and usual >= _STILL * widest else {}
            values.update({labelled(f"reward.same_text_{name}", "component", label): value for name, value in told.items()})
        return values

    def _learn(self, label: str, scores: Floats, parts: Sequence[slice]) -> float:
        """The widest mean square difference of neighbours so far: the policy has few copies while its answers still differ."""
        fresh = np.concatenate([np.diff(scores[part]) for part in parts]) if parts else np.empty(0)
        newest = np.concatenate([self._neighbours.get(label, np.empty(0)), fresh[np.isfinite(fresh)]])[-PAIRS:]
        self._neighbours[label] = newest
        self._widest[label] = max(self._widest.get(label, 0.0), _mean_square(newest) or 0.0)
        return self._widest[label]


def _pairs(texts: Sequence[Hashable], parts: Sequence[slice]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Neighbouring copies, the earlier one first, and neighbours of different text, both within groups that hold copies."""
    copies: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    for part in parts:
        places: dict[Hashable, list[int]] = {}
        for at in range(part.start, part.stop):
            places.setdefault(texts[at], []).append(at)
        if len(places) < part.stop - part.start:
            copies += [pair for same in places.values() for pair in pairwise(same)]
            others += pairwise(same[0] for same in places.values())
    return copies, others


def _batch(scores: Floats, copies: list[tuple[int, int]], others: list[tuple[int, int]]) -> _Batch:
    early, late = (scores[[pair[side] for pair in copies]] for side in (0, 1))
    known = np.isfinite(early) & np.isfinite(late)
    early, late = early[known], late[known]
    zero = (early == 0) != (late == 0)
    apart = scores[[pair[1] for pair in others]] - scores[[pair[0] for pair in others]] if others else np.empty(0)
    alike = int(((early == late) & (early != 0)).sum())
    return _Batch(late - early, apart[np.isfinite(apart)], int(zero.sum()), alike, set((early + late)[zero].tolist()))


def _mean_square(differences: Floats) -> float | None:
    """None of fewer than `LEAST` differences, and where the scorer tells nothing apart."""
    return float((differences * differences).mean()) or None if len(differences) >= LEAST else None


def _told(batches: Sequence[_Batch], usual: float) -> dict[str, float]:
    copies = np.concatenate([batch.copies for batch in batches])
    if len(copies) < LEAST:
        return {}
    sides = [float((copies[copies * sign > 0] ** 2).sum()) for sign in (1, -1)]
    differing = int((copies != 0).sum())
    values = {"spread": 2 * min(sides) / len(copies) / usual, "differing": float(differing)}
    kinds = len(set[float]().union(*(batch.beside for batch in batches)))
    if differing and kinds >= _KINDS and sum(batch.alike for batch in batches) >= _ALIKE:
        values["zero_fraction"] = sum(batch.zero for batch in batches) / differing
    return values
