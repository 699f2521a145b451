"""Which rules are looked at when: the flat lists of the hot path, and who wakes whom (`rulelang.pace`)."""

from __future__ import annotations

from collections.abc import Iterable

from trainvitals.rulelang.pace import AWAKE, PACES
from trainvitals.rulelang.windows import Series
from trainvitals.watch import NEVER, Watch, Watched

ROUND = max(PACES)
"""Every pace divides it, so the updates of a calm run are of this many kinds."""


class Schedule:
    """Rule instances in causal order, by how they are looked at.

    Attributes:
        all: Evaluated on updates.
        timed: Evaluated on ticks.
        busy: Some instance that rests between looks is awake, has hits or an open finding, or was left out when its turn came
            (warming up, or looking away): all must be gone through.
    """

    def __init__(self) -> None:
        self.all: list[Watch] = []
        self.timed: list[Watch] = []
        self.busy = True
        self._slow: list[Watch] = []
        self._rounds: list[list[Watch]] = [[] for _ in range(ROUND)]
        self._live = 0
        self._step = -1
        self._readers: dict[str, list[Watch]] = {}

    def arrange(self, rules: Iterable[Watched]) -> None:
        """Rules were bound, switched off or got new instances."""
        live = [watch for watched in rules if watched.off is None for watch in watched.instances.values()]
        self.all = [watch for watch in live if watch.owner.rule.clock_seconds is None]
        self.timed = [watch for watch in live if watch.owner.rule.clock_seconds is not None]
        self._slow = [watch for watch in self.all if watch.pace > 1]
        self._readers = {}
        for watch in self.all:
            for key in watch.when.keys:
                self._readers.setdefault(key, []).append(watch)
        self._live = 0
        self.busy = True

    def due(self, step: int) -> list[Watch]:
        """Those that may have to be looked at now: in most updates of a calm run a few of many."""
        follows, self._step = step == self._step + 1, step
        return self._rounds[step % ROUND] if follows and not self.busy else self.all

    def looked(self, step: int) -> None:
        """All were gone through: see whether the next updates need that as well."""
        self.busy = any(not watch.calm or step < watch.awake_until or watch.next_step <= step for watch in self._slow)
        if not self.busy:
            live = [watch for watch in self.all if watch.next_step < NEVER or not watch.calm]
            if len(live) != self._live:
                self._live = len(live)
                self._rounds = [[watch for watch in live if at % watch.pace == 0 or ROUND % watch.pace] for at in range(ROUND)]

    def wake(self, news: list[Series], step: int) -> None:
        """Series brought news: whoever reads them looks at every update for a while."""
        for series in news:
            for watch in self._readers.get(series.key, ()):
                watch.awake_until = step + AWAKE
                watch.next_step = min(watch.next_step, step) if step <= watch.until else NEVER
        self.busy = True
        news.clear()

    def wake_all(self, step: int) -> None:
        """Values came for an update that was closed: everybody looks once more."""
        for watch in self.all:
            watch.next_step = min(watch.next_step, step)
        self.busy = True
