"""When what a finding speaks of began: earlier than its condition held, because windows must fill with the new state first.

Whoever goes back to a checkpoint must know the update at which the level left what it was, not the one at which a median over
twenty updates had followed it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainvitals.detectors.change import Change, change
from trainvitals.events import labelled
from trainvitals.rulelang.pace import look_back

if TYPE_CHECKING:
    from trainvitals.rulelang.windows import Store
    from trainvitals.watch import Watch

CLEAR = 2.8
"""Standard errors from which on a division counts: chance makes one so clear in every twentieth window. No alarm hangs on it: that something changed is known, only when is asked."""
FEW = 3
"""So many samples on each side that do not overlap count as well: few samples cannot reach `CLEAR`, and chance parts eleven so in 4 of 100 cases (2 / C(n, k), summed over k)."""


def onset(watch: Watch, store: Store) -> int | None:
    """Update from which on the change behind an open condition can be seen in a signal that it reads; None before its first hit.

    Among the signals of the condition the one counts that is divided most clearly, over twice the time that the condition looks back. The
    place found is taken where it lies within once that time before the first hit; else, and for a condition without a
    window, the first hit stands.
    """
    first = watch.life.onset
    rule = watch.owner.rule
    back = look_back(rule.when, rule.lets, rule.param_values)
    if first is None or not back:
        return first
    clearest, began = 0.0, first
    for name in sorted(watch.when.signals):
        spec = store.catalogue.get(name)
        key = labelled(name, *watch.label) if watch.label and spec is not None and spec.label == watch.label[0] else name
        series = store.series(key)
        start = bisect_left(series.steps, first - 2 * back)
        found = _last_turn(series.xs[start:])
        if found is not None and abs(found.z) > clearest and first - back <= series.steps[start + found.at] <= first:
            clearest, began = abs(found.z), int(series.steps[start + found.at])
    return began


def _last_turn(xs: Sequence[float]) -> Change | None:
    """The clearest change, or the one after it that goes the other way: a reward that rose and then fell is ill since it fell."""
    found = _clear(xs)
    while found is not None and (later := _clear(xs[found.at :])) is not None and (later.z > 0) != (found.z > 0):
        found = later._replace(at=found.at + later.at)
    return found


def _clear(xs: Sequence[float]) -> Change | None:
    found = change(xs)
    if found is None or not (abs(found.z) > CLEAR or (found.clean and FEW <= found.at <= len(xs) - FEW)):
        return None
    return found
