"""Pure numbers of `integrations.grpo` against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.integrations.grpo import (
    RewardRange,
    common_length,
    correction_signals,
    correction_stats,
    gap_signals,
    gap_stats,
    group_overlap,
    length_correlation,
    padding_counts,
    padding_signals,
    ratio_signals,
    ratio_stats,
    repetition,
    reward_signals,
    text_signals,
)

ONE = np.ones(1)


def signals(rewards: list[list[float]], seen: RewardRange | None = None, size: int = 4) -> dict[str, float]:
    matrix = np.asarray(rewards, dtype=np.float64).reshape(-1, 1)
    return reward_signals(matrix, ONE, ["f"], size, RewardRange() if seen is None else seen)[0]


def test_flat_groups_are_told_apart_by_their_level():
    seen = RewardRange()
    values = signals([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], seen)
    assert values["reward.group_zero_std_fraction"] == 0.75
    assert values["reward.all_low_fraction"] == 0.5
    assert values["reward.all_high_fraction"] == 0.25
    assert values["reward.group_std_mean"] == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 4)
    assert (seen.low, seen.high) == (0.0, 1.0)


@pytest.mark.parametrize(("level", "low", "high"), [(0.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_a_run_that_only_ever_saw_one_reward(level, low, high):
    values = signals([[level] * 4] * 2)
    assert (values["reward.all_low_fraction"], values["reward.all_high_fraction"]) == (low, high)


def test_low_and_high_are_those_of_the_run_not_of_the_batch():
    values = signals([[0.5] * 4], RewardRange(0.0, 1.0))
    assert values["reward.group_zero_std_fraction"] == 1.0
    assert values["reward.all_low_fraction"] == values["reward.all_high_fraction"] == 0.0


def test_float32_rewards_that_are_equal_count_as_flat():
    matrix = torch.full((8, 1), 0.1, dtype=torch.float32).double().numpy()
    assert reward_signals(matrix, ONE, ["f"], 8, RewardRange())[0]["reward.group_zero_std_fraction"] == 1.0


def test_unscored_completions():
    nan = math.nan
    matrix = np.asarray([[1, nan], [nan, nan], [0, 1], [1, 1], [nan, nan], [nan, nan], [nan, nan], [nan, nan]])
    values, total = reward_signals(matrix, np.asarray([1.0, 2.0]), ["a", "b"], 4, RewardRange())
    assert values["reward.unscored_fraction"] == 5 / 8
    assert values["reward.component_unscored_fraction{component=b}"] == 6 / 8
    assert values["reward.component_zero_fraction{component=a}"] == 1 / 3  # of the three that have a score
    assert values["reward.component_zero_fraction{component=b}"] == 0
    np.testing.assert_array_equal(total[:4], [1.0, nan, 2.0, 3.0])
    assert values["reward.group_count"] == 2
    assert values["reward.group_std_mean"] == pytest.approx(1.0)  # only the group with scores


def test_shares_of_the_spread_add_up_and_names_stay_apart():
    rng = np.random.default_rng(0)
    values, _ = reward_signals(rng.normal(size=(16, 3)) * [1, 2, 0], np.asarray([1.0, 0.5, 9.0]), ["a", "b", "a"], 4, RewardRange())
    shares = {key: value for key, value in values.items() if key.startswith("reward.component_share")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(shares) == {f"reward.component_share{{component={name}}}" for name in ("a_0", "b", "a_2")}


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6))
def test_group_numbers_equal_brute_force(groups):
    values = signals(groups)
    stds = [torch.tensor(group, dtype=torch.float64).std().item() for group in groups]
    assert values["reward.group_std_mean"] == pytest.approx(sum(stds) / len(stds), abs=1e-12)
    flat = [len(set(group)) == 1 for group in groups]
    assert values["reward.group_zero_std_fraction"] == pytest.approx(sum(flat) / len(flat))
    assert (
        values["reward.all_low_fraction"] + values["reward.all_high_fraction"] <= values["reward.group_zero_std_fraction"] + 1e-12
    )


@given(st.lists(st.integers(0, 3), max_size=30))
def test_repetition_equals_brute_force(row):
    grams = [tuple(row[i : i + 4]) for i in range(len(row) - 3)]
    expected = None if len(grams) < 2 else 1 - len(set(grams)) / len(grams)
    assert repetition(row) == (None if expected is None else pytest.approx(expected))


def test_repetition_of_a_long_text_is_counted_by_hashes_and_is_the_same():
    """Above `_FEW` tokens."""
    draw = np.random.default_rng(1)
    fresh = [int(token) for token in draw.integers(0, 50_000, 2_000)]
    row = fresh + fresh[:500]
    grams = [tuple(row[i : i + 4]) for i in range(len(row) - 3)]
    assert repetition(row) == 1 - len(set(grams)) / len(grams) == pytest.approx(497 / 2_497)


def test_text_signals():
    rows = [[5, 6, 7, 2], [5, 6, 7, 2], [2], [], [9, 2], [8, 2], [7, 2], [6, 2]]
    values = text_signals(rows, 4, frozenset({2}))
    assert values["completion.empty_fraction"] == 2 / 8
    assert values["completion.distinct_fraction"] == 7 / 8
    assert "completion.repetition_fraction" not in values
    assert values["completion.group_overlap"] == 1 / 2  # copies 1, a text and none 0; pairs of one token are left out
    assert text_signals([], 4, frozenset()) == {}


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_common_length_equals_brute_force(one, two):
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert common_length(one, two) == common_length(two, one) == table[-1][-1]


NO_END: frozenset[int] = frozenset()


def test_overlap_of_copies_near_copies_and_strangers():
    text = list(range(20))
    assert group_overlap([[text, text, text]], NO_END) == 1
    assert group_overlap([[text, [*text[:7], 99, *text[8:]]]], NO_END) == pytest.approx(19 / 20)  # one exchanged
    assert group_overlap([[text, [*text[:7], 99, *text[7:]]]], NO_END) == pytest.approx(40 / 41)  # one put in: all others move on
    assert group_overlap([[text, [token + 100 for token in text]]], NO_END) == 0
    assert group_overlap([[text, text[:5]]], NO_END) == pytest.approx(10 / 25)  # a part is not the whole


def test_overlap_is_within_groups_and_of_what_was_written():
    a, b = [1, 2, 3, 9], [4, 5, 6, 9]
    assert group_overlap([[a, a], [b, b]], NO_END) == 1
    assert group_overlap([[a, b]], frozenset({9})) == 0  # the end token alone in common
    assert group_overlap([[a, []]], NO_END) == 0
    assert group_overlap([[[1, 9], [2, 9]], [[], []]], frozenset({9})) is None  # nothing longer than a token
    assert group_overlap([[a], [b]], NO_END) is None
    assert "completion.group_overlap" not in text_signals([a, b], 1, NO_END)


def test_overlap_does_not_depend_on_length_or_on_the_size_of_the_group():
    draw = np.random.default_rng(0)

    def chance(length: int, size: int) -> float:
        found = group_overlap([draw.integers(0, 26, (size, length)).tolist() for _ in range(400 // size)], NO_END)
        assert found is not None
        return found

    assert chance(12, 8) == pytest.approx(chance(200, 8), abs=0.12)  # shared bigrams: 2% and 23%
    assert chance(50, 2) == pytest.approx(chance(50, 16), abs=0.03)


def test_overlap_of_many_long_texts_is_sampled():
    """At most `_PAIRS` pairs, from all groups, of the first `_HEAD` tokens."""
    same, other = list(range(2_000)), list(range(2_000, 4_000))
    groups = [[same] * 16] * 32 + [[same, other] * 8] * 32
    assert group_overlap(groups, NO_END) == pytest.approx(1 / 2, abs=0.05)
    assert group_overlap([[same, same[:256] + other]], NO_END) == 1


def test_length_correlation_is_within_groups():
    rewards, lengths = np.asarray([0.0, 1, 2, 3, 0, 0, 0, 0]), np.asarray([1.0, 2, 3, 4, 9, 8, 7, 6])
    assert length_correlation(rewards, lengths, 4) == pytest.approx(1.0)  # the flat group says nothing
    assert length_correlation(np.zeros(4), np.arange(4.0), 4) is None
    assert length_correlation(rewards, lengths, 3) is None


def test_ratio_stats_count_tokens_under_the_mask():
    old = torch.zeros(2, 3)
    new = torch.log(torch.tensor([[1.0, 1.5, 9.0], [0.5, 1.1, 1.0]]))
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    values = ratio_signals([ratio_stats(new, old, mask, 0.8, 1.2, sequence=False)])
    assert values["policy.ratio_outside_fraction"] == pytest.approx(0.5)
    assert values["policy.ratio_mean"] == pytest.approx((1 + 1.5 + 0.5 + 1.1) / 4)
    assert values["policy.ratio_max"] == pytest.approx(1.5)


def test_a_sequence_ratio_is_the_geometric_mean():
    new, mask = torch.log(torch.tensor([[2.0, 8.0, 5.0]])), torch.tensor([[1, 1, 0]])
    values = ratio_signals([ratio_stats(new, torch.zeros(1, 3), mask, 0.8, 1.2, sequence=True)])
    assert values["policy.ratio_max"] == pytest.approx(4.0)
    assert values["policy.ratio_outside_fraction"] == 1.0


def test_a_broken_ratio_shows():
    new = torch.tensor([[math.nan, 0.0]])
    values = ratio_signals([ratio_stats(new, torch.zeros(1, 2), torch.ones(1, 2), 0.8, 1.2, sequence=False)])
    assert math.isnan(values["policy.ratio_mean"])


def test_micro_batches_are_weighted_by_their_tokens():
    one = ratio_stats(torch.log(torch.full((1, 1), 2.0)), torch.zeros(1, 1), torch.ones(1, 1), 0.8, 1.2, sequence=False)
    three = ratio_stats(torch.zeros(1, 3), None, torch.ones(1, 3), 0.8, 1.2, sequence=False)
    assert ratio_signals([one, three])["policy.ratio_outside_fraction"] == pytest.approx(0.25)
    assert ratio_signals([]) == {}


def test_the_sampling_gap_is_zero_for_who_sampled_and_its_error_is_right():
    """Over 400 batches of 4 x 40 tokens the gap in standard errors has mean 0 and spread 1, whatever the distributions are."""
    generator = torch.Generator().manual_seed(0)

    def batch(heat: float) -> dict[str, float]:
        logits = 2.0 * torch.randn(4, 40, 30, generator=generator)
        logps = logits.log_softmax(-1)
        drawn = torch.multinomial((logits / heat).softmax(-1).reshape(-1, 30), 1, generator=generator).reshape(4, 40, 1)
        entropies = -(logps.exp() * logps).sum(-1)
        return gap_signals([gap_stats(logps.gather(-1, drawn).squeeze(-1), entropies, torch.ones(4, 40))])

    errors = np.asarray([one["policy.sampling_gap"] / one["policy.sampling_gap_error"] for one in (batch(1.0) for _ in range(400))])
    assert abs(errors.mean()) < 0.15
    assert errors.std() == pytest.approx(1.0, abs=0.1)
    assert batch(1.2)["policy.sampling_gap"] > 0.1
    assert batch(0.8)["policy.sampling_gap"] < -0.1


def test_the_age_of_samples_drops_out_of_the_sampling_gap():
    """Drawn by an older policy: weighted by the importance ratio the gap has mean 0 again, unweighted it has not."""
    generator = torch.Generator().manual_seed(0)

    def batch(*, weigh: bool) -> float:
        old = 2.0 * torch.randn(4, 40, 30, generator=generator)
        new = (old + 0.3 * torch.randn(4, 40, 30, generator=generator)).log_softmax(-1)
        old = old.log_softmax(-1)
        drawn = torch.multinomial(old.exp().reshape(-1, 30), 1, generator=generator).reshape(4, 40, 1)
        entropies = -(new.exp() * new).sum(-1)
        given = old.gather(-1, drawn).squeeze(-1) if weigh else None
        values = gap_signals([gap_stats(new.gather(-1, drawn).squeeze(-1), entropies, torch.ones(4, 40), given)])
        return values["policy.sampling_gap"] / values["policy.sampling_gap_error"]

    weighted = np.asarray([batch(weigh=True) for _ in range(400)])
    assert abs(weighted.mean()) < 0.15
    assert 0.8 < weighted.std() < 1.05  # a little on the safe side: the error leaves room for one more token of the largest weight
    assert np.mean([batch(weigh=False) for _ in range(400)]) > 0.3


def test_a_token_of_a_large_weight_leaves_room_for_another_one():
    logps, old = torch.full((1, 20), -1.0), torch.full((1, 20), -1.0)
    old[0, 0] = -1.0 - math.log(50)
    values = gap_signals([gap_stats(logps, torch.ones(1, 20), torch.ones(1, 20), old)])
    assert values["policy.sampling_gap"] == 0.0
    assert values["policy.sampling_gap_error"] == pytest.approx(50 * math.log(21) / 20, rel=1e-4)


def test_the_sampling_gap_counts_the_policys_own_tokens():
    logps, entropies = torch.tensor([[-1.0, -2.0, -math.inf], [-3.0, 5.0, math.nan]]), torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values = gap_signals([gap_stats(logps[:1], entropies[:1], mask[:1]), gap_stats(logps[1:], entropies[1:], mask[1:])])
    assert values["policy.sampling_gap"] == pytest.approx((0.5 + 1.5 + 2.0) / 3)
    around = sum((x - 4 / 3) ** 2 for x in (0.5, 1.5, 2.0))
    assert values["policy.sampling_gap_error"] == pytest.approx(math.sqrt(around + math.log(4) ** 2) / 3)
    assert gap_signals([gap_stats(logps, entropies, torch.zeros(2, 3))]) == {}
    assert math.isnan(gap_signals([gap_stats(logps, entropies, torch.ones(2, 3))])["policy.sampling_gap"])


def test_tokens_without_a_surprise_leave_room_for_one_that_was_not_drawn():
    """A policy that is sure in all but one case of a thousand: twenty tokens on which it was right say nothing against it."""
    sure = gap_signals([gap_stats(torch.full((1, 20), -0.001), torch.full((1, 20), 0.0079), torch.ones(1, 20))])
    assert abs(sure["policy.sampling_gap"]) < 0.1 * sure["policy.sampling_gap_error"]


def test_weights_that_correct_for_the_sampler():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    per_token = torch.tensor([[1.0, 0.0, 2.0], [1.0, 9.0, 9.0]])
    values = correction_signals(correction_stats(per_token, mask))
    assert values == {"sampler.masked_fraction": 0.25, "sampler.effective_fraction": pytest.approx(16 / (4 * 6))}
    per_sequence = torch.tensor([[1.0], [0.0]])
    assert correction_signals(correction_stats(per_sequence, mask)) == {"sampler.masked_fraction": 0.5, "sampler.effective_fraction": 0.5}
    assert correction_signals(correction_stats(torch.zeros(2, 1), mask)) == {"sampler.masked_fraction": 1.0, "sampler.effective_fraction": 0.0}
    assert correction_signals(correction_stats(per_token, torch.zeros(2, 3))) == {}
    broken = correction_signals(correction_stats(torch.tensor([[math.nan], [1.0]]), mask))
    assert math.isnan(broken["sampler.effective_fraction"])


def test_a_function_with_weight_0_is_told_apart():
    matrix = np.asarray([[1.0, 0.5], [0.0, 0.7]])
    values, total = reward_signals(matrix, np.asarray([1.0, 0.0]), ["paid", "checker"], 2, RewardRange())
    assert values["reward.unpaid_mean{component=checker}"] == pytest.approx(0.6)
    assert "reward.unpaid_mean{component=paid}" not in values
    assert total.tolist() == [1.0, 0.0]
    assert not any("unpaid" in name for name in reward_signals(matrix, np.zeros(2), ["a", "b"], 2, RewardRange())[0])


TOKENS = st.integers(0, 5)


@given(
    st.lists(st.lists(TOKENS, min_size=1, max_size=8), min_size=1, max_size=6), st.sets(TOKENS, min_size=1, max_size=2), st.sets(TOKENS, max_size=2), TOKENS,
    st.lists(st.booleans(), min_size=6, max_size=6),
)  # fmt: skip
def test_filling_that_counts_is_told_from_what_was_sampled(wishes, ends, known, pad, left_out):
    """Answers are drawn, stopped at the sampler's ends and filled up; the trainer cuts behind the first end that it knows and leaves some rows out."""
    sampled = [row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))] for row in wishes]
    sampled = [row if row[-1] in ends else [*row, min(ends)] for row in sampled]
    width = max(map(len, sampled))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in sampled])
    kept = [next((place + 1 for place, token in enumerate(row) if token in known), width) for row in ids.tolist()]
    mask = torch.tensor([[0 if out else int(place < count) for place in range(width)] for count, out in zip(kept, left_out, strict=False)])
    filling = sum(max(0, count - len(row)) for count, row, out in zip(kept, sampled, left_out, strict=False) if not out)
    assert padding_counts(ids, mask, ends, {pad}).tolist() == [filling, int(mask.sum())]


def test_padding_that_the_policy_writes_is_its_own():
    """End 2, padding 0: an answer that fills itself to the cap with padding, one that writes some before it ends, one that is filled up, one of padding alone."""
    ids = torch.tensor([[5, 0, 0, 0, 0], [5, 0, 0, 2, 0], [5, 2, 0, 0, 0], [0, 0, 0, 0, 0]])
    counts = [padding_counts(row[None], torch.ones(1, 5), {2}, {0}).tolist() for row in ids]
    assert counts == [[0, 5], [1, 5], [3, 5], [0, 5]]
    assert padding_counts(ids[2:3], torch.tensor([[1, 1, 0, 0, 0]]), {2}, {0}).tolist() == [0, 2]


def test_filling_between_the_turns_of_a_tool():
    """A turn, what a tool said (left out), a second turn that ends and is filled up: another turn's tokens are no filling."""
    ids = torch.tensor([[5, 2, 7, 7, 6, 2, 0, 0], [5, 2, 7, 7, 6, 6, 6, 2]])
    own = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1]])
    assert padding_counts(ids, own, {2}, {0}).tolist() == [2, 12]


def test_share_of_filling():
    assert padding_signals(torch.tensor([3, 12])) == {"completion.counted_padding_fraction": 0.25}
    assert padding_signals(torch.tensor([0, 0])) == {}
