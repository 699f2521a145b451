"""Family: drift of what goes in and of what is written, against the run's own start.

A histogram of token ids (hashed into `BUCKETS`) and one of lengths are kept for the first `UNITS` prompts of the run and for the last
ones. Their distance is the Jensen-Shannon divergence. Two finite samples of one distribution differ too, and far more than independent
tokens would, because the tokens of one text belong together. So the unit is the text (for completions: the whole group of one
prompt), and the noise is measured between units:

* With ``a`` and ``b`` the shares of a bucket in the two samples, ``JS(a, b) ~ 1/8 * sum (a - b)^2 / mean(a, b)`` for small distances.
* Under one distribution that sum is a weighted sum of chi-squares whose mean is ``tr(C) * (1/n + 1/m)``, C being the covariance, between
  units, of their contribution to the shares, each divided by the root of the share (Rao and Scott 1981).
* Its upper quantile (1 in 10,000, `_NORMAL_QUANTILE`) is that of a scaled chi-square with ``tr(C)^2 / tr(C^2)`` degrees of freedom (Satterthwaite).

``drift`` is the divergence beyond its expectation, in nats; ``drift_ratio`` is the sum over that quantile: above 1 the two samples are not from
one distribution. Both are told for tokens or lengths, whichever has the larger ratio.

False alarms, simulated with `tests/integrations/simulate_drift.py` (200 runs of 1,000 updates of 4 prompts, drawn from 8 topics with Zipf
vocabularies of 5,000 words, log-normal lengths; 117 looks a run): one run with a look above 1, none with four looks in a row, which is what the
rule asks for. A change of the mixture of topics in the middle was found in 19 of 20 runs, half of them within 43 updates (a renewed window is 32).
"""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_INPUT = frozenset({"data.drift", "data.drift_ratio"})
_WRITTEN = frozenset({"completion.drift", "completion.drift_ratio"})
FRAME = frozenset({"data.prompt_frame_lost"})
"""What trainers that sample give besides."""
SIGNALS = _INPUT | _WRITTEN | FRAME
"""Signals that only these wraps give."""

BUCKETS = 512
"""Buckets of the token histogram: token id modulo 512."""
UNITS = 128
"""Prompts, or groups of completions, on each side of the comparison."""
EVERY = 32
"""New units between two looks."""
FIRST = 32
"""Different prompts whose common beginning and end are the frame: what all of 32 have, fewer than a tenth of all lack (95 %)."""
SEEN, LEAST = 64, 8
"""Where a data set has fewer: so many prompts, so many of them different."""
_SIZES = 32  # half octaves of length, up to 65,536 tokens
_NORMAL_QUANTILE = 3.719  # upper 1 in 10,000

Counts = NDArray[np.float32]


def install(hooks: Hooks) -> None:
    """Read prompts and completions of trainers that sample, and the sequences of trainers that learn from labels."""
    trainer = hooks.trainer
    if hasattr(trainer, "num_generations"):
        if hasattr(trainer, "_calculate_rewards") and not hasattr(trainer, "teacher_context_builder"):
            sampled = _Sampled(hooks)
            hooks.wrap(trainer, "_generate", sampled.after_generate, gives=SIGNALS)
            hooks.saved["drift of prompts"], hooks.saved["drift of completions"] = sampled.prompts, sampled.completions
            hooks.saved["frame of prompts"] = sampled.edges
        return
    if any(hasattr(trainer, name) for name in ("teacher_model", "generate_on_policy_outputs")) or _by_length(trainer.args):
        return  # a student's own answers are no data, and batches of one length are no independent sequences
    head = getattr(trainer.model, "get_output_embeddings", None)
    if head is not None and head() is not None:
        reader = _Labelled(hooks)
        hooks.wrap(trainer, "compute_loss", before=reader.before_loss, gives=_INPUT)
        hooks.at_step_end.append(reader.step_end)
        hooks.saved["drift of sequences"] = reader.drift


def _by_length(args: Any) -> bool:
    strategy = getattr(args, "train_sampling_strategy", None)
    return bool(getattr(args, "group_by_length", False)) or getattr(strategy, "value", strategy) in {"group_by_length", "batch_rebalance"}


class Drift:
    """The start of one stream of units, and its newest stretch.

    Args:
        units: Units on each side.
        every: New units between two looks.
    """

    def __init__(self, units: int = UNITS, every: int = EVERY) -> None:
        self._every = every
        self._start: list[Counts] = []
        self._recent: deque[Counts] = deque(maxlen=units)
        self._units, self._new = units, 0

    def add(self, rows: Counts) -> tuple[float, float] | None:
        """Take more units.

        Args:
            rows: One unit each: `BUCKETS` counts of tokens, then counts of lengths (`unit`).

        Returns:
            Drift in nats and its ratio to the bound, when a look is due.
        """
        for row in rows:
            if len(self._start) < self._units:
                self._start.append(row)
            else:
                self._recent.append(row)
                self._new += 1
        if len(self._recent) < self._units or self._new < self._every:
            return None
        self._new = 0
        first, last = np.stack(self._start), np.stack(self._recent)
        parts = [distance(first[:, part], last[:, part]) for part in (slice(BUCKETS), slice(BUCKETS, None))]
        return max(parts, key=lambda pair: pair[1])

    def state_dict(self) -> dict[str, Any]:
        """Both stretches, for a checkpoint: some ten kilobytes."""
        return {"start": _packed(self._start), "recent": _packed(self._recent), "new": self._new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        start, recent, new = _unpacked(state["start"]), _unpacked(state["recent"]), int(state["new"])
        self._start, self._new = start[: self._units], new
        self._recent.clear()
        self._recent.extend(recent)


class Edges:
    """The frame of a run's prompts: tokens that its first prompts all begin and end with (`FIRST` different ones, or `LEAST` among `SEEN`).

    That is the chat template, with a system prompt that all share. Another one says at once that the template has changed, where a
    change of what is asked needs many prompts to be seen. Only lengths and checksums of the frame are kept.
    """

    def __init__(self) -> None:
        self._known = False
        self._different: set[int] = set()
        self._count = 0
        self._head: list[int] = []
        self._tail: list[int] = []
        self._sizes, self._sums = (0, 0), (0, 0)

    def lost(self, prompts: Sequence[Sequence[int]]) -> float | None:
        """Share of these prompts without the frame; None while it is learned, and where there is none of two tokens or more."""
        if not self._known:
            for prompt in prompts:
                if not self._known:
                    self._learn(list(prompt))
            return None
        if not prompts or sum(self._sizes) < 2:
            return None
        return sum(len(prompt) < sum(self._sizes) or self._ends(prompt) != self._sums for prompt in prompts) / len(prompts)

    def _learn(self, prompt: list[int]) -> None:
        first = self._count == 0
        self._head = prompt if first else self._head[: _common(self._head, prompt)]
        self._tail = prompt if first else self._tail[len(self._tail) - _common(self._tail[::-1], prompt[::-1]) :]
        self._different.add(_checksum(prompt))
        self._count += 1
        if len(self._different) >= FIRST or (self._count >= SEEN and len(self._different) >= LEAST):
            self._known = True
            self._sizes = len(self._head), len(self._tail)
            self._sums = _checksum(self._head), _checksum(self._tail)
            self._head, self._tail, self._different = [], [], set()

    def _ends(self, prompt: Sequence[int]) -> tuple[int, int]:
        head, tail = self._sizes
        return _checksum(prompt[:head]), _checksum(prompt[len(prompt) - tail :])

    def state_dict(self) -> dict[str, Any]:
        """Lengths and checksums; a frame that is still being learned is learned anew after a resume."""
        return {"known": self._known, "sizes": list(self._sizes), "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        self._known = bool(state["known"])
        self._sizes, self._sums = (int(state["sizes"][0]), int(state["sizes"][1])), (int(state["sums"][0]), int(state["sums"][1]))


def _checksum(ids: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(ids, dtype="<i8").tobytes())


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _packed(rows: Iterable[Counts]) -> str:
    """Rows of counts, most of which are 0, as text."""
    return base64.b64encode(zlib.compress(b"".join(row.astype("<f4").tobytes() for row in rows))).decode("ascii")


def _unpacked(text: str) -> list[Counts]:
    table = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<f4").reshape(-1, BUCKETS + _SIZES)
    return [row.astype(np.float32) for row in table]


def distance(first: Counts, last: Counts) -> tuple[float, float]:
    """Divergence of two samples beyond what sampling explains, in nats, and its ratio to the bound; formulas above.

    Args:
        first: Counts of the one sample, a unit per row, a bucket per column.
        last: Counts of the other.
    """
    both = np.concatenate([first, last]).astype(np.float64)
    both = both[:, both.sum(axis=0) > 0]
    sizes = both.sum(axis=1)
    total = float(sizes.sum())
    if not len(first) or not len(last) or not total or not first.sum() or not last.sum():
        return 0.0, 0.0
    pooled = both.sum(axis=0) / total
    residual = (both - np.outer(sizes, pooled)) / (sizes.mean() * np.sqrt(pooled))
    # Of the covariance between buckets only trace and square are asked for, which it shares with that between units: the smaller one.
    half = (residual if residual.shape[0] < residual.shape[1] else residual.T).astype(np.float32)
    gram = half @ half.T / (len(both) - 1)
    trace, square = float(np.trace(gram)), float(np.vdot(gram, gram))
    a, b = (part.sum(axis=0) / part.sum() for part in (both[: len(first)], both[len(first) :]))
    middle = (a + b) / 2
    seen = float(((a - b) ** 2 / middle).sum())
    expected = trace * (1 / len(first) + 1 / len(last))
    if square <= 0:
        return 0.0, 0.0  # every unit is the same
    degrees = trace * trace / square
    bound = expected * chi_square_quantile(degrees) / degrees
    return max(0.0, jensen_shannon(a, b) - expected / 8), seen / bound


def chi_square_quantile(degrees: float) -> float:
    """Upper quantile (1 in 10,000) of chi-square by Wilson and Hilferty; 7 % too high for one degree of freedom, 2 % from five on."""
    part = 2 / (9 * degrees)
    return degrees * max(0.0, 1 - part + _NORMAL_QUANTILE * math.sqrt(part)) ** 3


def jensen_shannon(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of two distributions in nats, at most ln 2."""
    middle = (a + b) / 2
    halves = []
    for part in (a, b):
        some = part > 0
        halves.append(float((part[some] * np.log(part[some] / middle[some])).sum()))
    return max(0.0, sum(halves) / 2)


def unit(texts: Sequence[Sequence[int]]) -> Counts:
    """Counts of one unit: the tokens of its texts by bucket, then their lengths by half octave."""
    row = np.zeros(BUCKETS + _SIZES, dtype=np.float32)
    ids = np.asarray([token for text in texts for token in text], dtype=np.int64)  # all at once: the texts are short, the calls dear
    row[:BUCKETS] = np.bincount(ids % BUCKETS, minlength=BUCKETS)
    for text in texts:
        row[BUCKETS + size_of(len(text))] += 1
    return row


def size_of(length: int) -> int:
    """Half octave of a length: 0 for nothing, 1 for one token, 3 for two, 5 for four, ..."""
    return 0 if length < 1 else min(_SIZES - 1, 1 + int(2 * math.log2(length)))


class _Sampled:
    """Prompts and completions of a trainer that samples. Each rank watches its own."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.prompts, self.completions, self.edges = Drift(), Drift(), Edges()

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One generation batch: token ids as lists on the host, the completions of one prompt adjoin."""
        if not self._hooks.training or not isinstance(result, tuple) or len(result) < 2:
            return
        prompts, completions = result[0], result[1]
        mask = result[2] if len(result) > 2 else None
        if isinstance(mask, list) and mask and isinstance(mask[0], list) and [len(row) for row in mask] == [len(row) for row in completions]:
            completions = [[token for token, own in zip(row, keep, strict=True) if own] for row, keep in zip(completions, mask, strict=True)]
        groups = _groups(prompts)[-UNITS:]
        asked = [prompts[begin] for begin, _ in groups]
        give_drift(self._hooks, "data", self.prompts, [unit([prompt]) for prompt in asked])
        give_drift(self._hooks, "completion", self.completions, [unit(completions[begin:end]) for begin, end in groups])
        give_frame(self._hooks, self.edges, asked)


def give_drift(hooks: Hooks, family: str, drift: Drift, rows: Sequence[Counts]) -> None:
    """Add units to one stream and give its two signals when a look was due."""
    told = drift.add(np.stack(rows)) if rows else None
    if told is not None:
        hooks.give(f"{family}.drift", told[0])
        hooks.give(f"{family}.drift_ratio", told[1])


def give_frame(hooks: Hooks, edges: Edges, prompts: Sequence[Sequence[int]]) -> None:
    """Give the share of prompts without the run's frame, once it is known."""
    lost = edges.lost(prompts)
    if lost is not None:
        hooks.give("data.prompt_frame_lost", lost)


def _groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """First and last place (exclusive) of each run of equal prompts."""
    edges = [0, *(at for at in range(1, len(prompts)) if prompts[at] != prompts[at - 1]), len(prompts)]
    return [(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]


class _Labelled:
    """Sequences of a trainer that learns from labels, one micro-batch per update. Counted where they are, so only counts travel."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.drift = Drift()
        self._counts: torch.Tensor | None = None

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Count the tokens of one micro-batch."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        ids, labels = inputs.get("input_ids"), inputs.get("labels")
        if self._counts is None and self._hooks.training and ids is not None and labels is not None and ids.dim() == 2 and ids.shape == labels.shape:
            with torch.no_grad():
                mask = inputs.get("attention_mask")
                weight = torch.ones_like(ids, dtype=torch.float32) if mask is None or mask.shape != ids.shape else mask.float()
                counts = torch.zeros(len(ids), BUCKETS, device=ids.device).scatter_add_(1, ids % BUCKETS, weight)
                self._counts = torch.cat([counts, weight.sum(1, keepdim=True)], dim=1)
        return args

    def step_end(self) -> None:
        """Hand over the counts of this step."""
        if self._counts is not None:
            self._hooks.put([self._counts], self._compute)
        self._counts = None

    def _compute(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        table = tensors[0].numpy().astype(np.float32)[-UNITS:]
        sizes = np.zeros((len(table), _SIZES), dtype=np.float32)
        sizes[np.arange(len(table)), [size_of(int(length)) for length in table[:, -1]]] = 1
        told = self.drift.add(np.concatenate([table[:, :BUCKETS], sizes], axis=1))
        return {} if told is None else {"data.drift": told[0], "data.drift_ratio": told[1]}
