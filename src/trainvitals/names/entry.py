"""One row of a name table."""

from __future__ import annotations

from dataclasses import dataclass

from trainvitals.events import Per


@dataclass(frozen=True, slots=True)
class Entry:
    """How one raw metric name of one framework reads as a signal.

    Attributes:
        raw: Name as logged, without ``train/`` or ``eval_`` prefix. One ``<label>`` stands for any text (a reward function).
        signal: Dotted signal, ``family.field``; empty when the metric is known and deliberately not a signal (see `note`).
        unit: Unit of the number as logged; that of the signal unless `scale` says otherwise. Empty without a signal.
        per: Whether the logged number is about a token or a whole sequence, as in `events.signal`; ``either`` where a setting of the
            trainer decides. A number per token never feeds a signal per sequence.
        sign: -1 where the framework logs the negative of our signal.
        trainers: Trainers for which this row holds; empty means every trainer. A row that names the trainer wins.
        scope: ``eval`` when the row is about held-out data although the raw name has no eval prefix.
        since: First version of the framework with this meaning, for readers of this table; never used for the choice.
        until: Last version with this meaning, likewise.
        note: Trap, in words.
        scale: Factor from the logged unit to the signal's unit.
    """

    raw: str
    signal: str
    unit: str = ""
    per: Per = ""
    sign: int = 1
    trainers: tuple[str, ...] = ()
    scope: str = ""
    since: str = ""
    until: str = ""
    note: str = ""
    scale: float = 1.0

    def reading(self) -> str:
        """How the logged number is read, in words: ``nats per token``, ``minus loss``, ``GiB``."""
        per = {"token": " per token", "sequence": " per sequence", "either": " per token or sequence"}.get(self.per, "")
        return f"{'minus ' if self.sign < 0 else ''}{self.unit}{per}"
