"""Windows over the newest answers and pairs: right numbers, nothing while there are too few."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="integrations need the extra 'trl'")

from trainvitals.integrations.newest import (  # noqa: E402
    ANSWERS,
    LEAST_ANSWERS,
    LEAST_PAIRS,
    LEAST_SHORTER,
    PAIRS,
    Commonest,
    LengthBias,
    fingerprints,
)

FRACTION, CORRELATION, SHORTER = (
    f"preference.{name}" for name in ("longer_chosen_fraction", "margin_length_correlation", "shorter_chosen_accuracy")
)


def test_a_fingerprint_is_of_the_tokens_and_their_order_not_of_their_place() -> None:
    ids = torch.tensor([[1, 2, 5, 6, 0], [2, 5, 6, 0, 0], [1, 2, 6, 5, 0], [1, 2, 5, 6, 6], [1, 2, 5, 6, 0], [5, 5, 6, 6, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
    first, moved, swapped, longer, none, other = fingerprints(ids, mask).tolist()
    assert first == moved == other
    assert len({first, swapped, longer, none}) == 4
    assert none == 0


def test_fingerprints_do_not_meet_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.unique(torch.randint(0, 50_000, (4000, 12), generator=generator), dim=0)
    assert len(set(fingerprints(ids, torch.ones_like(ids)).tolist())) == len(ids)
    near = torch.ones(300, 400, dtype=torch.long)
    near[torch.arange(300), torch.arange(300)] = 2  # one token differs
    assert len(set(fingerprints(near, torch.ones_like(near)).tolist())) == 300


def test_the_commonest_of_the_newest() -> None:
    answers = Commonest()
    assert answers.share(range(LEAST_ANSWERS - 1)) is None
    assert answers.share([0]) == 2 / LEAST_ANSWERS
    assert answers.share([7] * (ANSWERS // 2)) == pytest.approx((ANSWERS // 2 + 1) / (ANSWERS // 2 + LEAST_ANSWERS))
    assert answers.share([7] * ANSWERS) == 1.0


def test_how_margins_go_with_length() -> None:
    bias = LengthBias()
    chosen = torch.tensor([9, 7, 5, 5] * (LEAST_PAIRS // 8))
    rejected = torch.tensor([5, 5, 5, 9] * (LEAST_PAIRS // 8))
    margin = torch.tensor([4.0, 2.0, 0.0, -4.0] * (LEAST_PAIRS // 8))
    first = bias.signals(chosen, rejected, margin)
    assert first == {FRACTION: 0.625}  # equal lengths count half; too few pairs for the rest
    second = bias.signals(chosen, rejected, margin)
    assert second == {FRACTION: 0.625, CORRELATION: pytest.approx(1.0), SHORTER: 0.0}
    assert LEAST_PAIRS // 4 == LEAST_SHORTER
    for _ in range(PAIRS // len(chosen)):
        last = bias.signals(chosen, rejected, -margin)
    assert last == {FRACTION: 0.625, CORRELATION: pytest.approx(-1.0), SHORTER: 1.0}  # what was is forgotten


def test_what_cannot_be_known_is_left_out() -> None:
    same = torch.full((PAIRS,), 5)
    assert LengthBias().signals(same, same, torch.randn(PAIRS)) == {FRACTION: 0.5}
    assert LengthBias().signals(same, same + 1, torch.zeros(PAIRS)) == {FRACTION: 0.0, SHORTER: 0.0}
    assert LengthBias().signals(same, same + 1, None) == {FRACTION: 0.0}
    assert LengthBias().signals(same[:0], same[:0], torch.zeros(0)) == {}


def test_a_nan_stays_a_nan() -> None:
    same = torch.full((PAIRS,), 5)
    found = LengthBias().signals(same, same + 1, torch.full((PAIRS,), math.nan))
    assert math.isnan(found[CORRELATION])
    assert math.isnan(found[SHORTER])
    assert found[FRACTION] == 0.0
