"""A clock beside the training thread: ticks say that time passes while no step ends, so that a hang can be noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trainvitals.items import Tick


class Watchdog:
    """A daemon thread that publishes a `Tick` every `seconds`.

    Args:
        publish: Receives the ticks, from the watchdog's thread; `Monitor.publish` is safe for that.
        step: Returns the number of finished optimizer updates.
        seconds: Interval. 15 s finds a stall of minutes soon enough and writes few records.
        clock: Wall clock in Unix seconds.
        on_tick: Called before each tick in the same thread, for slow reads such as NVML.
    """

    def __init__(
        self,
        publish: Callable[[Tick], None],
        step: Callable[[], int],
        seconds: float = 15.0,
        *,
        clock: Callable[[], float] = time.time,
        on_tick: Callable[[], object] | None = None,
    ) -> None:
        if not seconds > 0:
            msg = f"watchdog interval {seconds!r}: expected a positive number of seconds"
            raise ValueError(msg)
        self._publish, self._step, self._seconds, self._clock, self._on_tick = publish, step, seconds, clock, on_tick
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start ticking; does nothing when it ticks already."""
        if self.alive:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="trainvitals-watchdog", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop ticking and wait up to `timeout` seconds for the thread; safe to call twice and from the thread itself."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                if self._on_tick is not None:
                    self._on_tick()
                self._publish(Tick(self._step(), self._clock()))
            except Exception:
                # Nobody watches this thread: without ticks the stall rules are blind, which coverage reports.
                return
