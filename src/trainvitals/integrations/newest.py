"""What one step has too few examples for: windows over the newest answers and pairs, kept on the host.

A step often holds four to sixteen examples. Whether all answers are one text, or whether the longer of two always wins, shows in a
few dozen. The device gives one number per answer (its length, its reward, a fingerprint of its tokens); these numbers travel
with `Later` and meet here.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
import torch

ANSWERS = 512
"""Newest answers among which the commonest is looked for."""
LEAST_ANSWERS = 64
"""Among fewer a class of one answer in twenty is often missing altogether."""
PAIRS = 256
"""Newest pairs whose margins are compared with their lengths: a batch of 8 brings them in 32 updates, in which a policy moves little."""
LEAST_PAIRS = 64
"""The standard error of a correlation of 0 is 1/8 then."""
LEAST_SHORTER = 16
"""Pairs with a shorter chosen response that an accuracy is told of: its standard error is 1/8 at most."""


def fingerprints(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One 64-bit number per row, the same for the same tokens under the mask wherever they stand in the row; 0 where there are none.

    Args:
        ids: Token ids, one answer a row.
        mask: True on the tokens of the answer.
    """
    on = mask.bool()
    return ((ids.long() + 1) * place_weights(on.cumsum(1)) * on).sum(1)


def place_weights(place: torch.Tensor) -> torch.Tensor:
    """A fixed odd 64-bit number for each place, as good as random (splitmix64; products wrap around)."""
    mixed = place.long() * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return (mixed ^ (mixed >> 31)) | 1


class Commonest:
    """Share that the commonest of the newest answers has."""

    def __init__(self) -> None:
        self._newest: deque[int] = deque(maxlen=ANSWERS)

    def share(self, prints: Iterable[int]) -> float | None:
        """Add the answers of a step; None while there are fewer than `LEAST_ANSWERS`."""
        self._newest.extend(prints)
        if len(self._newest) < LEAST_ANSWERS:
            return None
        return Counter(self._newest).most_common(1)[0][1] / len(self._newest)


class LengthBias:
    """How the margins of the newest pairs go with the difference of their lengths."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, float]] = deque(maxlen=PAIRS)

    def signals(self, chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None) -> dict[str, float]:
        """Signals of one step.

        Args:
            chosen: Length of the chosen response of each pair, in tokens.
            rejected: Length of the rejected response.
            margin: Reward of chosen minus reward of rejected; None when they could not be read.
        """
        longer = (chosen - rejected).double()
        if not longer.numel():
            return {}
        values = {"preference.longer_chosen_fraction": float((longer.sign().mean() + 1) / 2)}  # a tie counts half
        if margin is None:
            return values
        self._newest.extend(zip(margin.tolist(), longer.tolist(), strict=True))
        margins, lengths = np.array(self._newest).T
        if not np.isfinite(margins).all():
            return {**values, "preference.margin_length_correlation": math.nan, "preference.shorter_chosen_accuracy": math.nan}
        if len(margins) >= LEAST_PAIRS and (scale := float(margins.std() * lengths.std())) > 0:
            covariance = float(((margins - margins.mean()) * (lengths - lengths.mean())).mean())
            values["preference.margin_length_correlation"] = max(-1.0, min(1.0, covariance / scale))
        shorter = margins[lengths < 0]
        if len(shorter) >= LEAST_SHORTER:
            values["preference.shorter_chosen_accuracy"] = float((shorter > 0).mean())
        return values
