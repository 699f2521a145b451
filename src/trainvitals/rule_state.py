"""Life cycle of one rule instance: from true and false to opened and closed.

A `Life` knows no rules, signals or records. It is fed the values of one evaluation at a time and answers with the transition
that happened, if any. Unknown neither fills nor empties a counter. Everything in it is a number,
so that it can be saved in a checkpoint and continue exactly where it stopped.
"""

from __future__ import annotations

from typing import Any, Literal

Transition = Literal["open", "close", "flapping", "calm"]

FLAP_CHANGES = 4
"""More openings and closings than this within `FLAP_SPAN` sustain windows count as flapping (notes/rules.md 9.4)."""
FLAP_SPAN = 10


class Life:
    """Counters and state of one rule instance.

    Attributes:
        bits: The last `of` decided evaluations, one bit each, newest lowest: 1 is a hit of the condition.
        firing: The condition has held for long enough and has not yet ended.
        flapping: It opens and closes so often that nothing is said until it is calm.
        onset: Step of the first hit of the current streak.
        opened: Step at which it opened last.
        closed: Step at which it closed last.
        decided: Evaluations that gave true or false.
        openings: Times it opened.
    """

    __slots__ = (
        "again", "bits", "changes", "clear_bits", "clear_hits", "clear_mask", "closed", "decided", "firing", "flap_span", "flapping",
        "hits", "mask", "onset", "opened", "openings",
    )  # fmt: skip

    def __init__(self, hits: int, of: int, clear_hits: int, clear_of: int) -> None:
        self.hits = hits
        # What recovered once is likelier to come back: of the public runs one was warned of 105 updates before it died for good
        # (notes/pathologies.md 5.2). So a second episode needs half of the evidence, and never more than the first.
        self.again = (hits + 1) // 2
        self.mask = (1 << of) - 1
        self.clear_hits = clear_hits
        self.clear_mask = (1 << clear_of) - 1
        self.flap_span = FLAP_SPAN * max(of, clear_of)
        self.bits = 0
        self.clear_bits = 0
        self.firing = False
        self.flapping = False
        self.onset: int | None = None
        self.opened: int | None = None
        self.closed: int | None = None
        self.decided = 0
        self.openings = 0
        self.changes: list[int] = []  # evaluation counts at which it opened or closed, newest last, at most FLAP_CHANGES + 1

    def feed(self, hit: bool | None, clear: bool | None, step: int) -> Transition | None:
        """Take one evaluation, of which at least one part was decided.

        Args:
            hit: Value of the condition; None when it is unknown.
            clear: Value of the end condition; None when it is unknown.
            step: Optimizer update of the evaluation.
        """
        self.decided += 1
        if hit is not None:
            if hit and not self.bits:
                self.onset = step
            self.bits = ((self.bits << 1) | hit) & self.mask
        if self.firing:
            if clear is not None:
                self.clear_bits = ((self.clear_bits << 1) | clear) & self.clear_mask
                if clear and self.clear_bits.bit_count() >= self.clear_hits:
                    return self._change(False, step)
        elif hit and self.bits.bit_count() >= (self.again if self.openings else self.hits):
            return self._change(True, step)
        if self.flapping and self.decided - self.changes[-1] >= self.flap_span:
            self.flapping = False
            self.changes.clear()
            return "calm"
        return None

    def _change(self, firing: bool, step: int) -> Transition | None:
        self.firing = firing
        self.clear_bits = 0
        if firing:
            self.opened = step
            self.openings += 1
        else:
            # A new opening needs new hits: old ones belong to the episode that just ended.
            self.closed = step
            self.bits = 0
        self.changes.append(self.decided)
        del self.changes[: -FLAP_CHANGES - 1]
        if self.flapping:
            return None
        if len(self.changes) > FLAP_CHANGES and self.decided - self.changes[0] < self.flap_span:
            self.flapping = True
            return "flapping"
        return "open" if firing else "close"

    @property
    def quiet(self) -> bool:
        """True when another false value would change nothing but the count of decisions."""
        return not self.bits and not self.firing and not self.flapping

    @property
    def state(self) -> str:
        """``ok``, ``pending``, ``firing``, ``clearing`` or ``flapping``."""
        if self.flapping:
            return "flapping"
        if self.firing:
            return "clearing" if self.clear_bits else "firing"
        return "pending" if self.bits else "ok"

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as JSON can hold it."""
        return {
            "bits": hex(self.bits), "clear_bits": hex(self.clear_bits), "firing": self.firing, "flapping": self.flapping,
            "onset": self.onset, "opened": self.opened, "closed": self.closed, "decided": self.decided,
            "openings": self.openings, "changes": list(self.changes),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state_dict`; counters longer than today's windows are cut."""
        self.bits = int(state["bits"], 16) & self.mask
        self.clear_bits = int(state["clear_bits"], 16) & self.clear_mask
        self.firing, self.flapping = bool(state["firing"]), bool(state["flapping"])
        self.onset, self.opened, self.closed = state["onset"], state["opened"], state["closed"]
        self.decided, self.openings, self.changes = int(state["decided"]), int(state["openings"]), list(state["changes"])
