"""SignalBus: ordered, synchronous, and deaf to the faults of its subscribers.

`publish` hands an item to every subscriber in the order of subscription. An item published from inside a subscriber (the
engine publishes findings) waits until the current one has reached everybody: first in, first out, no re-entrancy. A
subscriber that raises is reported once through `on_error` and switched off; the others, and training, go on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Subscriber = Callable[[Any], None]


class SignalBus:
    """One stream of items (`events.Item`, records of `findings`) and its readers.

    Args:
        on_error: Called once per failing subscriber with its name and the exception; must not raise.
    """

    def __init__(self, on_error: Callable[[str, Exception], None] | None = None) -> None:
        self._subscribers: list[tuple[str, Subscriber]] = []
        self._waiting: deque[Any] = deque()
        self._lock = threading.RLock()  # the watchdog publishes ticks from its own thread
        self._running = False
        self._on_error = on_error

    def subscribe(self, name: str, subscriber: Subscriber) -> None:
        """Append a subscriber; `name` is what an error report calls it."""
        with self._lock:
            self._subscribers.append((name, subscriber))

    @property
    def subscribers(self) -> list[str]:
        """Names of the subscribers that are still on, in order."""
        return [name for name, _ in self._subscribers]

    def publish(self, item: Any) -> None:
        """Hand `item` to all subscribers, then whatever they published meanwhile. Never raises an `Exception`."""
        with self._lock:
            if self._running:
                self._waiting.append(item)
                return
            self._running = True
            try:
                self._deliver(item)
                while self._waiting:
                    self._deliver(self._waiting.popleft())
            finally:
                # An interrupt (KeyboardInterrupt is no Exception) must not leave the bus deaf.
                self._running = False

    def _deliver(self, item: Any) -> None:
        failed: list[tuple[tuple[str, Subscriber], Exception]] | None = None
        for entry in self._subscribers:
            try:
                entry[1](item)
            except Exception as error:
                failed = [*(failed or ()), (entry, error)]
        for entry, reason in failed or ():
            self._subscribers.remove(entry)
            if self._on_error is not None:
                self._on_error(entry[0], reason)
