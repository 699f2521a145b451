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


LEAST_DIFFERING = 16
"""Pairs whose answers differ, of which a median is told."""


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


def differing(chosen: torch.Tensor, rejected: torch.Tensor, chosen_mask: torch.Tensor, rejected_mask: torch.Tensor) -> torch.Tensor:
    """Tokens of the longer answer of each pair that are neither in the beginning nor in the end that both share; 0 where they are equal.

    Args:
        chosen: Token ids, one answer a row, of any width.
        rejected: Likewise.
        chosen_mask: True on the tokens of the answer.
        rejected_mask: Likewise.
    """
    width = max(chosen.size(1), rejected.size(1))
    masks = chosen_mask.bool(), rejected_mask.bool()
    sizes = [mask.sum(1) for mask in masks]
    shared = []
    for backwards in (False, True):
        first, second = (
            _aligned(ids, (size[:, None] - mask.cumsum(1)) if backwards else mask.cumsum(1) - 1, mask, width, fill)
            for ids, mask, size, fill in zip((chosen, rejected), masks, sizes, (-1, -2), strict=True)
        )
        shared.append((first == second).long().cumprod(1).sum(1))
    shorter, longer = torch.minimum(*sizes), torch.maximum(*sizes)
    return longer - torch.minimum(shared[0] + shared[1], shorter)


def _aligned(ids: torch.Tensor, place: torch.Tensor, mask: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    """Tokens under the mask at their places, other places filled."""
    line = torch.full((ids.size(0), width + 1), fill, dtype=torch.long, device=ids.device)
    return line.scatter_(1, torch.where(mask, place, width), torch.where(mask, ids.long(), fill))[:, :width]


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
        self._margins, self._longer = np.empty(0), np.empty(0)

    def signals(self, chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None) -> dict[str, float]:
        """Signals of one step.

        Args:
            chosen: Length of the chosen response of each pair, in tokens.
            rejected: Length of the rejected response.
            margin: Reward of chosen minus reward of rejected; None when they could not be read.
        """
        longer = (chosen - rejected).double().numpy()
        if not len(longer):
            return {}
        values = {"preference.longer_chosen_fraction": float((np.sign(longer).mean() + 1) / 2)}  # a tie counts half
        if margin is None:
            return values
        self._margins = np.concatenate([self._margins, margin.double().numpy()])[-PAIRS:]
        self._longer = np.concatenate([self._longer, longer])[-PAIRS:]
        if not np.isfinite(self._margins).all():
            return {**values, "preference.margin_length_correlation": math.nan, "preference.shorter_chosen_accuracy": math.nan}
        if len(self._margins) >= LEAST_PAIRS and np.ptp(self._margins) > 0 and np.ptp(self._longer) > 0:
            moved, lengths = self._margins - self._margins.mean(), self._longer - self._longer.mean()
            correlation = float(moved @ lengths) / math.sqrt((moved @ moved) * (lengths @ lengths))
            values["preference.margin_length_correlation"] = max(-1.0, min(1.0, correlation))
        shorter = self._margins[self._longer < 0]
        if len(shorter) >= LEAST_SHORTER:
            values["preference.shorter_chosen_accuracy"] = float((shorter > 0).mean())
        return values


class Differing:
    """In how much the answers of the newest pairs differ."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, float]] = deque(maxlen=PAIRS)

    def signals(self, tokens: torch.Tensor, longer: torch.Tensor) -> dict[str, float]:
        """Add the pairs of a step; equal answers are another fault and left out. Empty while there are fewer than `LEAST_DIFFERING`.

        Args:
            tokens: From `differing`.
            longer: Tokens of the longer answer of each pair.
        """
        self._newest.extend((float(one), float(one / size)) for one, size in zip(tokens, longer, strict=True) if one > 0)
        if len(self._newest) < LEAST_DIFFERING:
            return {}
        number, share = (float(np.median(part)) for part in zip(*self._newest, strict=True))
        return {"preference.differing_tokens": number, "preference.differing_fraction": share}
