"""Which meaning has TRL's `reward_std` in this run?

Until TRL 0.26 it was the mean of the groups' own standard deviations, since 0.27 (#4785) it is the spread of the whole batch.
The name is the same and a log holds no version, so the numbers must tell:

* ``rewards/<f>`` without ``/mean`` (before 0.17): the old meaning, for the new one always came with ``/mean`` and ``/std``.
* One reward function of weight w: the new meaning is exactly ``|w| * rewards/<f>/std``, the old one is smaller.
* Every group flat (``frac_reward_zero_std`` is 1) and yet a spread: only the whole batch can have it.

Until a row decides, the current meaning (1.0 to 1.16) is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_RELATIVE = 1e-3  # console logs of transformers 5 keep 4 significant digits
_ABSOLUTE = 1e-6
_TRIES = 200


class RewardStd:
    """Decides once per run, at the first row whose numbers tell."""

    def __init__(self) -> None:
        self.whole_batch: bool | None = None
        self.tries = 0

    def settle(self, row: Mapping[str, Any], values: dict[str, float]) -> None:
        """Rename `reward.std` in `values` when this run's `reward_std` has the old meaning."""
        if self.whole_batch is None and self.tries < _TRIES:
            self.tries += 1  # with several reward functions no row may ever tell: stop looking, the look is not free
            self.look(row)
        if self.whole_batch is False and "reward.std" in values:
            values["reward.group_std_mean"] = values.pop("reward.std")

    def look(self, row: Mapping[str, Any]) -> None:
        """Let one row decide, if it can."""
        if self.whole_batch is not None:
            return
        prefix = "train/" if "train/reward_std" in row else ""
        components = [key for key in row if key.startswith(f"{prefix}rewards/")]
        spreads = [key for key in components if key.endswith("/std")]
        if components and not spreads:
            self.whole_batch = False
            return
        spread = _finite(row.get(f"{prefix}reward_std"))
        if spread is None:
            return
        if spread > _ABSOLUTE and _finite(row.get(f"{prefix}frac_reward_zero_std")) == 1.0:
            self.whole_batch = True
        elif len(spreads) == 1:
            self._compare(row, prefix, spreads[0], spread)

    def _compare(self, row: Mapping[str, Any], prefix: str, name: str, spread: float) -> None:
        single = _finite(row.get(name))
        total = _finite(row.get(f"{prefix}reward"))
        mean = _finite(row.get(name.removesuffix("/std") + "/mean"))
        if single is None or single <= _ABSOLUTE:
            return  # no spread at all: both meanings give 0
        weight = abs(total / mean) if total and mean else 1.0
        expected = weight * single
        if math.isclose(spread, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
            self.whole_batch = True
        elif spread < expected:
            self.whole_batch = False


def _finite(value: Any) -> float | None:
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return result if math.isfinite(result) else None
