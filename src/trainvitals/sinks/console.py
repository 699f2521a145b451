"""The console: few lines, one per transition, readable on a terminal, in a notebook and in a log file.

``[TRL] WARNING: <message> <advice> (<rule-id>, step <n>)``. Suppressed findings are not printed. A rule that opens again
and again is printed on its 1st, 2nd, 4th, 8th, ... opening. At most `LINES_PER_WINDOW` lines are printed per `WINDOW`
updates (errors have a budget of their own); one more line says how many were left out and where they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from trainvitals.findings import Finding
from trainvitals.sinks.encode import one_line

WINDOW = 50
"""Optimizer updates that share one budget of lines."""
LINES_PER_WINDOW = 5
"""Lines of one budget: a screen must still show the training log (notes/ecosystem.md 2)."""

_COLOURS = {"INFO": "36", "WARNING": "33", "ERROR": "31"}


def wants_colour(stream: Any, env: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour: ``NO_COLOR`` and ``TERM=dumb`` forbid, ``FORCE_COLOR`` demands, else only on a terminal."""
    if env.get("NO_COLOR"):
        return False
    if env.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    if env.get("TERM") == "dumb":
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def write_line(stream: TextIO | None, text: str) -> None:
    """Print one line without breaking progress bars; never raises because of the stream.

    Args:
        stream: Where to; None for whatever `sys.stderr` is now (notebooks and tests replace it).
        text: The line without its newline.
    """
    target = stream if stream is not None else sys.stderr
    if target is None:
        return
    try:
        tqdm_std = sys.modules.get("tqdm.std")  # not imported: there is no bar to spare
        if tqdm_std is not None and getattr(tqdm_std.tqdm, "_instances", None):
            tqdm_std.tqdm.write(text, file=target)
        else:
            target.write(text + "\n")
            target.flush()
    except UnicodeEncodeError:
        encoding = getattr(target, "encoding", None) or "ascii"
        write_line(target, text.encode(encoding, "replace").decode(encoding))
    except (OSError, ValueError):
        return  # a closed terminal or a broken pipe is no reason to stop training


class ConsoleSink:
    """Prints findings.

    Args:
        stream: Where to; None for the current `sys.stderr`.
        prefix: Start of every line.
        pointer: Where the lines that were left out can be read, usually the path of the record file.
    """

    def __init__(self, stream: TextIO | None = None, prefix: str = "[TRL]", pointer: str = "") -> None:
        self.prefix = prefix
        self.pointer = pointer
        self._stream = stream
        self._printed: dict[str, bool] = {}  # fingerprint: whether its last opening was printed
        self._openings: dict[str, int] = {}
        self._window = -1
        self._used = {"ERROR": 0, "other": 0}
        self._left_out = 0

    def __call__(self, record: Any) -> None:
        """Print `record` if it is a transition that somebody should read now."""
        if not isinstance(record, Finding):
            return
        step = record.step if record.step is not None else record.first_step
        if record.state == "firing":
            self._firing(record, step)
        elif record.state == "flapping":
            self._say("INFO", f"{record.title} comes and goes; quiet until it settles.", record, step)
        elif record.state == "resolved":
            if self._printed.pop(record.fingerprint, False):
                since = f" after {step - record.first_step} updates" if step is not None and record.first_step is not None else ""
                self._say("INFO", f"Resolved{since}: {record.title}.", record, step)
        elif record.state in ("confirmed", "no_effect", "error"):
            level = "INFO" if record.state == "confirmed" else "WARNING"
            self._say(level, f"{record.message} {record.advice}", record, step)

    def notice(self, text: str, level: str = "WARNING") -> None:
        """Print a line about trainvitals itself."""
        self._write(level, text)

    def end_block(self, lines: Mapping[str, Any]) -> None:
        """Print ``vitals_<key>: value`` lines at column 0, which programs grep."""
        self._report_left_out()
        out = ["--- trainvitals", *(f"vitals_{key}: {one_line(str(value))}" for key, value in lines.items())]
        write_line(self._stream, "\n".join(out))

    def _firing(self, record: Finding, step: int | None) -> None:
        seen = self._openings[record.fingerprint] = self._openings.get(record.fingerprint, 0) + 1
        if seen & (seen - 1):  # not a power of two
            self._printed.setdefault(record.fingerprint, False)
            return
        again = f" (opening {seen})" if seen > 1 else ""
        text = f"{record.message} {record.advice}".strip() + again
        self._printed[record.fingerprint] = self._say(record.severity.upper(), text, record, step)

    def _say(self, level: str, text: str, record: Finding, step: int | None) -> bool:
        if not self._may_print(level, step or 0):
            self._left_out += 1
            return False
        labels = "".join(f" {key}={value}" for key, value in record.instance.items())
        where = f"{record.rule.id}{labels}" + (f", step {step}" if step is not None else "")
        self._write(level, f"{text.strip()} ({where})")
        return True

    def _may_print(self, level: str, step: int) -> bool:
        window = step // WINDOW
        if window != self._window:
            self._report_left_out()
            self._window = window
            self._used = {"ERROR": 0, "other": 0}
        budget = "ERROR" if level == "ERROR" else "other"
        self._used[budget] += 1
        return self._used[budget] <= LINES_PER_WINDOW

    def _report_left_out(self) -> None:
        if self._left_out:
            where = f" See {self.pointer}." if self.pointer else ""
            self._write("INFO", f"{self._left_out} more lines were left out.{where}")
            self._left_out = 0

    def _write(self, level: str, text: str) -> None:
        target = self._stream if self._stream is not None else sys.stderr
        word = f"\x1b[{_COLOURS[level]}m{level}\x1b[0m" if wants_colour(target) else level
        write_line(self._stream, f"{one_line(self.prefix)} {word}: {one_line(text)}")
