"""How ranks tell each other how they are, without a collective: each writes to the store of the trainer's process group.

Every process group that `torch.distributed` makes comes with a key-value store, the one in which its ranks found each other.
A rank *sets* its own key there and rank 0 *gets* all of them. Nobody waits for anybody, so nothing can hang: not when a rank
has no trainvitals, has run out of data, raised, or was killed. A collective would have to be called by all ranks or by none,
which no hook can promise (docs/decisions/0006-ranks-without-collectives.md).

All traffic is in one daemon thread per process with its own connection; the training thread appends to a list and sets a flag.
"""

from __future__ import annotations

import bisect
import json
import math
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from trainvitals.events import split_label

TRAINING, OFF, ENDED, FAILED = range(4)
"""What a rank says it is doing; `OFF`: it trains, but is not observed any more."""

PAUSE = 0.05
"""Seconds between two rounds of the thread at the least: steps that are faster share a round."""
BEAT = 5.0
"""Seconds after which a rank repeats itself although no step ended: how a hang is told from a long step."""
LOOK = 0.3
"""Seconds between two looks for ranks that have not spoken yet; some may never do."""
KEEP_SECONDS, KEEP_ROWS = 2.0, 64
"""A post repeats this much of the past, so that a reader that comes late by a round or two misses nothing."""
KEEP_VALUES = 8
"""Steps of which a post repeats the signals: a rank says some forty a step, and what is lost to a reader that is later than this was one sample."""
MANY = 64
"""Ranks beyond which only those that stand out are published: rules watch that many instances (`watch.MAX_INSTANCES`)."""
_HEAD, _ROW = struct.Struct("<6q"), struct.Struct("<2q5d")
_HAS_LOSS, _HAS_WEIGHTS = 1, 2
_COMMON = ("optim.", "adapter.", "run.", "time.", "eval.")
_OWN_ALL_THE_SAME = frozenset({"optim.loss_raw", "optim.loss_start"})
_WORST_IS_HIGH = frozenset({
    "memory.vram_used_fraction", "memory.vram_allocated_peak_bytes", "memory.vram_reserved_bytes", "memory.vram_alloc_retries",
    "device.temperature_celsius", "device.throttled", "device.ecc_errors",
})  # fmt: skip
_WORST_IS_LOW = frozenset({"memory.host_available_bytes"})


@dataclass(slots=True)
class Row:
    """One optimizer step of one rank.

    Attributes:
        step: Updates completed, 1 for the first.
        seconds: Wall time of the step, fetching its data included.
        own: Part of it that the rank did not spend in calls which wait for other ranks.
        step_seconds: Wall time without fetching, as in ``time.step_seconds``; NaN when unknown.
        loss: Sum of the micro-batch losses, before any NaN filter; None when there was none.
        weights: 2-norm of the weights, on some steps only.
    """

    step: int
    seconds: float
    own: float
    step_seconds: float = math.nan
    loss: float | None = None
    weights: float | None = None


@dataclass(slots=True)
class Post:
    """What a rank last said.

    Attributes:
        place: Number of places that it has passed at which ranks may wait for each other; equal code gives equal numbers.
        full: Number of fetches of data that gave a batch so far.
        short: What `full` was when a fetch last gave nothing; -1 when none did.
        state: `TRAINING`, `OFF`, `ENDED` or `FAILED`.
        beats: How often the rank has spoken: a number that stands still is a process that is gone or frozen.
        rows: The newest steps.
        values: Signals that the rank made from its own data, with their step, of the newest steps.
    """

    place: int = 0
    full: int = 0
    short: int = -1
    state: int = TRAINING
    beats: int = 0
    rows: list[Row] = field(default_factory=list)
    values: list[tuple[int, dict[str, float]]] = field(default_factory=list)


def pack(post: Post) -> bytes:
    """A post as bytes: 48 for the head, 56 for each row, then the signals as JSON."""
    parts = [_HEAD.pack(post.place, post.full, post.short, post.state, post.beats, len(post.rows))]
    for row in post.rows:
        has = _HAS_LOSS * (row.loss is not None) + _HAS_WEIGHTS * (row.weights is not None)
        parts.append(_ROW.pack(row.step, has, row.seconds, row.own, row.step_seconds, row.loss or 0.0, row.weights or 0.0))
    if post.values:
        parts.append(json.dumps(post.values, separators=(",", ":")).encode())
    return b"".join(parts)


def unpack(data: bytes) -> Post:
    """Inverse of `pack`.

    Raises:
        struct.error: If the bytes are no post.
        ValueError: If what follows the rows is no JSON.
    """
    place, full, short, state, beats, count = _HEAD.unpack_from(data)
    rows = []
    for index in range(count):
        step, has, seconds, own, step_seconds, loss, weights = _ROW.unpack_from(data, _HEAD.size + index * _ROW.size)
        rows.append(
            Row(step, seconds, own, step_seconds, loss if has & _HAS_LOSS else None, weights if has & _HAS_WEIGHTS else None)
        )
    tail = data[_HEAD.size + count * _ROW.size :]
    values = [(int(step), found) for step, found in json.loads(tail)] if tail else []
    return Post(place, full, short, state, beats, rows, values)


# ---- numbers in, numbers out ----


def step_signals(rows: Mapping[int, Row]) -> dict[str, float]:
    """Signals of one step from all ranks' rows of that step; empty with fewer than two ranks."""
    if len(rows) < 2:
        return {}
    values: dict[str, float] = {}
    losses = {rank: row.loss for rank, row in rows.items() if row.loss is not None}
    some_finite = any(math.isfinite(loss) for loss in losses.values())
    weights = {rank: row.weights for rank, row in rows.items() if row.weights is not None}
    lags = all_lags(rows)
    shown = shown_ranks(rows, lags)
    for rank in shown:
        row = rows[rank]
        if not math.isnan(row.step_seconds):
            values[f"time.rank_step_seconds{{rank={rank}}}"] = row.step_seconds
        values[f"time.rank_own_seconds{{rank={rank}}}"] = row.own
        values[f"time.rank_lag_fraction{{rank={rank}}}"] = lags[rank]
        if rank in losses:
            values[f"optim.rank_loss{{rank={rank}}}"] = losses[rank]
            alone = some_finite and not math.isfinite(losses[rank])
            values[f"optim.rank_nonfinite_alone{{rank={rank}}}"] = float(alone)
    if len(weights) == len(rows) and all(math.isfinite(norm) for norm in weights.values()):
        middle = statistics.median_low(weights.values())  # of two that differ, one is right: neither is exactly the mean
        for rank in shown:
            values[f"optim.rank_weight_drift{{rank={rank}}}"] = abs(weights[rank] - middle) / middle if middle else 0.0
    return values


def is_local(name: str) -> bool:
    """Whether each rank makes this signal from its own data or device; the others are of the model that all train, or of the host's clock."""
    return "{rank=" not in name and (name in _OWN_ALL_THE_SAME or not name.startswith(_COMMON))


def reduced(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """One value of each signal from those of several ranks and steps.

    The mean, each part counting alike; the largest of a ``max`` and the smallest of a ``min``; of memory and devices the worst. A value
    that is not finite stays, so that one rank's NaN is not averaged away. A signal that some ranks lack is reduced over the others.
    """
    found: dict[str, list[float]] = {}
    for values in parts:
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: _reduced(name, values) for name, values in found.items()}


def _reduced(name: str, values: list[float]) -> float:
    for value in values:
        if not math.isfinite(value):
            return value
    low, high = min(values), max(values)
    if low == high:
        return low  # what all ranks hold alike keeps its last digit
    full = split_label(name)[0]
    if full in _WORST_IS_HIGH or full.endswith((".max", "_max")):
        return high
    if full in _WORST_IS_LOW or full.endswith((".min", "_min")):
        return low
    return sum(values) / len(values)


def shown_ranks(rows: Mapping[int, Row], lags: Mapping[int, float]) -> list[int]:
    """Ranks that are published: all of a small world; of a large one those that lag most and those with a bad loss."""
    if len(rows) <= MANY:
        return sorted(rows)
    bad = [rank for rank, row in rows.items() if row.loss is not None and not math.isfinite(row.loss)]
    slow = sorted(rows, key=lambda rank: -lags[rank])[:8]
    return sorted({*bad[:MANY], *slow})


def all_lags(rows: Mapping[int, Row]) -> dict[int, float]:
    """Share of the step for which the others wait for each rank: its own time beyond the median of the others', over the step."""
    order = sorted(row.own for row in rows.values())
    others = len(order) - 1
    lags = {}
    for rank, row in rows.items():
        if not row.seconds > 0 or not others:
            lags[rank] = 0.0
            continue
        place = bisect.bisect_left(order, row.own)  # the median of the list without this place, without making the list
        low, high = (others - 1) // 2, others // 2
        median = (order[low + (low >= place)] + order[high + (high >= place)]) / 2
        lags[rank] = min(1.0, max(0.0, (row.own - median) / row.seconds))
    return lags


def exhausted(posts: Mapping[int, Post]) -> set[int]:
    """Ranks whose data ran out while another rank got one more batch. All running out after as many is the end of an epoch."""
    return {
        rank for rank, post in posts.items()
        if post.short == post.full and any(other.full > post.full and other.short != post.full for other in posts.values())
    }  # fmt: skip


def standing_signals(posts: Mapping[int, Post], *, stalled: bool, silent: Mapping[int, float] | None = None) -> dict[str, float]:
    """Where the ranks stand: whose data ran out, and, in a stall, who is not where the others wait.

    Args:
        posts: What every rank last said.
        stalled: Whether no step ends; only then does a difference of places mean something.
        silent: Seconds since each rank last said anything new.
    """
    if len(posts) < 2:
        return {}
    out = exhausted(posts)
    here = {rank: post.place for rank, post in posts.items() if post.state == TRAINING and rank not in out}
    furthest = max(here.values(), default=0)
    values: dict[str, float] = {}
    for rank, post in sorted(posts.items()):
        behind = 0
        if stalled and rank not in out and post.state != OFF:
            # Who has left while others still train will not come to where they wait, however far it got.
            behind = furthest - post.place if rank in here else max(1, furthest - post.place) if here else 0
        quiet = (silent or {}).get(rank, 0.0) if stalled and rank in here else 0.0
        if len(posts) <= MANY or behind or rank in out or quiet > 2 * BEAT:
            values[f"data.rank_exhausted{{rank={rank}}}"] = float(rank in out)
            values[f"run.rank_behind{{rank={rank}}}"] = float(behind)
            values[f"run.rank_silent_seconds{{rank={rank}}}"] = quiet
    return values


# ---- the thread ----


class Exchange:
    """One rank's side of the exchange.

    Args:
        store: A `torch.distributed` store, or anything with ``set``, ``get`` and ``check``.
        rank: This rank.
        world: Number of ranks.
        prefix: Start of the keys; the same on all ranks, another for each training.
        on_error: Told once when the store fails; the exchange is off then.
        on_quiet: Called from the thread, on rank 0, at every beat without a new step.
        beat: Seconds; None is `BEAT`.
        pause: Seconds; None is `PAUSE`.

    Attributes:
        mine: What this rank says; the training thread changes its numbers, the thread sends them.
        posts: On rank 0: what every rank last said, this one included.
    """

    def __init__(
        self, store: Any, rank: int, world: int, prefix: str, *, on_error: Callable[[str], None], on_quiet: Callable[[], None] | None = None,
        beat: float | None = None, pause: float | None = None,
    ) -> None:  # fmt: skip
        self.rank, self.world = rank, world
        self.mine = Post()
        self.posts: dict[int, Post] = {rank: self.mine}
        self._store, self._prefix, self._on_error, self._on_quiet = store, prefix, on_error, on_quiet
        self._beat, self._pause = BEAT if beat is None else beat, PAUSE if pause is None else pause
        self._recent: deque[tuple[float, Row]] = deque(maxlen=KEEP_ROWS)
        self._history: dict[int, dict[int, Row]] = {}
        self._given = 0
        self._own: deque[tuple[int, dict[str, float]]] = deque(maxlen=KEEP_VALUES)
        self._values: dict[int, dict[int, dict[str, float]]] = {}
        self._newest: dict[int, int] = {}  # step of the newest signals of each rank
        self._settled = 0
        self._heard: dict[int, float] = {}
        self._look_at = -math.inf
        self._lock = threading.Lock()
        self._wake, self._stop, self._done = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainvitals-ranks", daemon=True)
        self.last_row = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Send what `mine` says soon."""
        self._wake.set()

    def add(self, row: Row) -> None:
        """This rank ended a step."""
        self.last_row = time.monotonic()
        with self._lock:
            self._recent.append((self.last_row, row))
            if self.rank == 0:
                self._history.setdefault(row.step, {})[self.rank] = row
        self._wake.set()

    def share(self, step: int, values: dict[str, float]) -> None:
        """What this rank made of its own data in a step; nothing is said as well, so that nobody waits for more."""
        with self._lock:
            self._own.append((step, values))
            if self.rank == 0:
                self._take(0, step, values)
        self._wake.set()

    def _take(self, rank: int, step: int, values: dict[str, float]) -> None:
        if step > self._settled:
            self._values.setdefault(step, {})[rank] = values
        self._newest[rank] = max(step, self._newest.get(rank, 0))

    def settled(self) -> list[dict[str, float]]:
        """On rank 0: what the ranks shared in steps that all which speak have ended, and that was not given before, oldest first."""
        with self._lock:
            upto = min((self._newest.get(rank, 0) for rank, post in self.posts.items() if post.state == TRAINING), default=0)
            found = [values for step in sorted(self._values) if step <= upto for values in self._values.pop(step).values()]
            self._settled = max(self._settled, upto)
            return found

    def complete(self) -> list[dict[int, Row]]:
        """On rank 0: steps that all ranks which speak have ended, and that were not given before, oldest first."""
        with self._lock:
            speaking = {rank for rank, post in self.posts.items() if post.state == TRAINING}
            steps = sorted(step for step, rows in self._history.items() if step > self._given and speaking <= rows.keys())
            if not steps:
                return []
            self._given = steps[-1]
            found = [self._history[step] for step in steps]
            self._history = {step: rows for step, rows in self._history.items() if step > self._given}
            return found

    def standing(self, *, stalled: bool) -> dict[str, float]:
        """On rank 0: `standing_signals` of now."""
        now = time.monotonic()
        with self._lock:
            return standing_signals(self.posts, stalled=stalled, silent={rank: now - at for rank, at in self._heard.items()})

    def finish(self, state: int, timeout: float = 2.0) -> bool:
        """Say the last word and stop.

        Args:
            state: `ENDED`, `FAILED` or `OFF`.
            timeout: Seconds to wait for the last round; a store that does not answer is left behind.

        Returns:
            Whether the last word was sent (and, on rank 0, everybody's read).
        """
        self.mine.state = state
        self._stop.set()
        self._wake.set()
        return self._done.wait(timeout)

    def _run(self) -> None:
        try:
            store = own_connection(self._store)
            while True:
                woken = self._wake.wait(self._beat)
                self._wake.clear()
                last = self._stop.is_set()
                self._round(store)
                if last:
                    self._done.set()
                    return
                if not woken and self._on_quiet is not None:
                    self._on_quiet()
                self._stop.wait(self._pause)
                if woken and self.rank == 0 and not self._wake.is_set():
                    self._read(store)  # others end the same step a moment later
        except Exception as error:
            if not self._stop.is_set():  # at the end the store may go away with the rank that holds it
                self._on_error(f"ranks are no longer compared: {type(error).__name__}: {str(error)[:200]}. Training goes on.")
            self._done.set()

    def _round(self, store: Any) -> None:
        oldest = time.monotonic() - KEEP_SECONDS
        with self._lock:
            rows = [row for at, row in self._recent if at >= oldest] or [row for _, row in list(self._recent)[-2:]]
            values = list(self._own)
        mine = self.mine
        mine.beats += 1
        store.set(f"{self._prefix}/{self.rank}", pack(Post(mine.place, mine.full, mine.short, mine.state, mine.beats, rows, values)))
        if self.rank == 0:
            self._read(store)

    def _read(self, store: Any) -> None:
        """Everybody's newest post; one that was never made is asked for without waiting."""
        now = time.monotonic()
        known = [rank for rank in self.posts if rank != self.rank]
        if now >= self._look_at:
            self._look_at = now + LOOK
            known += [rank for rank in range(self.world) if rank not in self.posts and store.check([f"{self._prefix}/{rank}"])]
        keys = [f"{self._prefix}/{rank}" for rank in known]
        many = getattr(store, "has_extended_api", lambda: False)()
        for rank, data in zip(known, store.multi_get(keys) if many and keys else map(store.get, keys), strict=True):
            post = unpack(data)
            with self._lock:
                before = self.posts.get(rank)
                if before is None or before.beats != post.beats:
                    self._heard[rank] = time.monotonic()
                self.posts[rank] = post
                for row in post.rows:
                    if row.step > self._given:
                        self._history.setdefault(row.step, {})[rank] = row
                for step, values in post.values:
                    self._take(rank, step, values)
        with self._lock:
            for steps in (self._history, self._values):
                for step in sorted(steps)[: max(0, len(steps) - 512)]:
                    del steps[step]


def own_connection(store: Any) -> Any:
    """A connection of our own to the same store, where this torch can make one: the trainer's is locked while it waits."""
    try:
        mine = store.clone()
        mine.set_timeout(timedelta(seconds=30))  # only this thread would wait, and only for a store that is gone
    except Exception:
        return store
    return mine
