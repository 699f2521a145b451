"""Which rules are looked at when: the flat lists of the hot path, and who wakes whom (`rulelang.pace`)."""

from __future__ import annotations

from collections.abc import Iterable

from trainvitals.rulelang.pace import AWAKE
from trainvitals.rulelang.windows import Series
from trainvitals.watch import NEVER, Watch, Watched


class Schedule:
    """Rule instances in causal order, by how they are looked at.

    Attributes:
        all: Evaluated on updates.
        quick: Those of them that want every update even when calm; without those that can never be true any more.
        slow: Those that do not.
        timed: Evaluated on ticks.
        next: First update at which all must be looked at; before it only `quick`, as in most updates of a calm run.
    """

    def __init__(self) -> None:
        self.all: list[Watch] = []
        self.quick: list[Watch] = []
        self.slow: list[Watch] = []
        self.timed: list[Watch] = []
        self._readers: dict[str, list[Watch]] = {}
        self.next = 0

    def arrange(self, rules: Iterable[Watched]) -> None:
        """Rules were bound, switched off or got new instances."""
        live = [watch for watched in rules if watched.off is None for watch in watched.instances.values()]
        self.all = [watch for watch in live if watch.owner.rule.clock_seconds is None]
        self.quick = [watch for watch in self.all if watch.pace == 1]
        self.slow = [watch for watch in self.all if watch.pace > 1]
        self.timed = [watch for watch in live if watch.owner.rule.clock_seconds is not None]
        self._readers = {}
        for watch in self.all:
            for key in watch.when.keys:
                self._readers.setdefault(key, []).append(watch)
        self.next = 0

    def looked(self, step: int) -> None:
        """All have been looked at: find the next update that concerns the slow ones."""
        self.next = min((watch.next_step if watch.calm else step + 1 for watch in self.slow), default=NEVER)
        self.quick = [watch for watch in self.quick if watch.next_step < NEVER or not watch.calm]

    def wake(self, news: list[Series], step: int) -> None:
        """Series brought news: whoever reads them looks at every update for a while."""
        for series in news:
            for watch in self._readers.get(series.key, ()):
                watch.awake_until = step + AWAKE
                watch.next_step = min(watch.next_step, step) if step <= watch.until else NEVER
        self.next = min(self.next, step)
        news.clear()

    def wake_all(self, step: int) -> None:
        """Values came for an update that was closed: everybody looks once more."""
        for watch in self.all:
            watch.next_step = min(watch.next_step, step)
        self.next = min(self.next, step)
