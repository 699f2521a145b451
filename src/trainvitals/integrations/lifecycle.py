"""Ends that nobody announces: SIGTERM, a crash, Ctrl-C. The last words must be printed and the records must be on disk."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
Status = Literal["completed", "interrupted", "failed", "killed"]


def status_of(error: BaseException | None) -> Status:
    """How a run ended that ended with this exception (None: it did not say why)."""
    if error is None:
        return "completed"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "completed" if error.code in (None, 0) else "interrupted"
    return "failed"


def cause_of(error: BaseException) -> str | None:
    """Which exception ended a run, and where, in one line: ``KeyError in judge (rewards.py:8)``; None for an end on purpose.

    The place is the innermost one that belongs to no installed package: a user's reward function and not what it called. The exception's own
    words are left out, since they may quote a prompt; the traceback has them.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return None
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {_PACKAGE})
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*installed, "<"))]
    name = type(error).__name__
    if not frames:
        return name
    place = (own or frames)[-1]
    return f"{name} in {place.name} ({os.path.basename(place.filename)}:{place.lineno})"


class ExitGuard:
    """Calls `finish` once when the process ends without having called it.

    SIGTERM is caught only where nobody else handles it: a handler of the user or of a launcher is left alone, since it may
    let training go on. After `finish` the signal takes its default effect, so the exit status stays what it would have been.

    Args:
        finish: Receives how the run ended; must be safe to call twice.
    """

    def __init__(self, finish: Callable[[Status], None]) -> None:
        self._finish = finish
        self._busy = 0
        self._pending: int | None = None
        self._installed = False

    def install(self) -> None:
        """Start guarding; in a thread other than the main one only the exit of the interpreter is guarded."""
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)
            self._installed = True

    def remove(self) -> None:
        """Stop guarding; the signal's handler goes back to what it was unless somebody replaced ours meanwhile."""
        atexit.unregister(self._at_exit)
        # Bound methods are made anew on each access: compare with ==.
        main = threading.current_thread() is threading.main_thread()
        if self._installed and main and signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._installed = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While inside, a signal waits: the handler runs between any two bytecodes and must not find us half-way."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._pending is not None and not self._busy:
                self._die(self._pending)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._pending = number
        else:
            self._die(number)

    def _die(self, number: int) -> None:
        self._pending = None
        try:
            self._finish("killed")
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _at_exit(self) -> None:
        # The interpreter keeps the exception that ended it: last_exc from 3.12 on, last_value before.
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        self._finish("interrupted" if error is None else status_of(error))
