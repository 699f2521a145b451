"""What must hold of every group: numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="beside the integrations, which need it")

from trainvitals.integrations.groups import LEAST, PAIRS, SameText, centre_error, group_parts, mixed_fraction, prompt_key, text_keys


def test_prompts_are_compared_by_what_they_say():
    assert prompt_key("what") == "what"
    one = [{"role": "user", "content": "what"}]
    assert prompt_key(one) == prompt_key([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}])
    assert prompt_key(one) != prompt_key([{"role": "system", "content": "what"}])
    assert prompt_key([1, 2]) == (1, 2)
    assert prompt_key(object()) is None
    assert prompt_key([object()]) is None


def test_groups_that_ranks_share_are_cut():
    assert group_parts(8, 4, 0) == [slice(0, 4), slice(4, 8)]
    assert group_parts(6, 4, 6) == [slice(0, 2), slice(2, 6)]  # rank 1 of two: rows 6 to 11
    assert group_parts(3, 8, 3) == [slice(0, 3)]


def test_mixed_groups_are_counted():
    parts = group_parts(6, 2, 0)
    assert mixed_fraction(list("aabbcc"), parts) == 0
    assert mixed_fraction(list("abbbcc"), parts) == pytest.approx(1 / 3)
    assert mixed_fraction(["a", None, "b", "b", "c", "c"], parts) is None
    assert mixed_fraction(["a", "b"], [slice(0, 1), slice(1, 2)]) is None  # one row of each group is on this rank


def test_advantages_are_centred_by_every_formula_of_trl():
    random = np.random.default_rng(0)
    rewards = random.normal(size=(4, 8)).astype(np.float32)
    mean = rewards - rewards.mean(1, keepdims=True)
    others = rewards - (rewards.sum(1, keepdims=True) - rewards) / 7
    for right in (mean, mean / (rewards.std(1, keepdims=True) + 1e-4), mean / rewards.std(), others):
        assert centre_error(right.astype(float).ravel(), rewards.astype(float).ravel(), 8) < 1e-5
    wrong = (rewards - rewards.mean(0, keepdims=True)).astype(float)
    assert centre_error(wrong.ravel(), rewards.astype(float).ravel(), 8) == pytest.approx(
        np.abs(wrong.mean(1)).max() / np.sqrt((wrong**2).mean())
    )


def test_the_rounding_of_flat_groups_is_no_error():
    flat = np.full(8, 0.3)
    assert centre_error(np.full(8, 1e-8), flat, 4) is None
    assert centre_error(np.full(8, 1e-8), np.full(8, np.nan), 4) is None
    missing = np.asarray([1.0, 0.0, np.nan, np.nan, 0.3, 0.3, 0.3, 0.3])
    assert centre_error(np.asarray([0.5, -0.5, 0, 0, 0, 0, 0, 0]), missing, 4) == 0
    assert centre_error(np.zeros(8), np.arange(8.0), 4) == 0


def told(score, batches=70, label="judge"):
    """What is told after some batches of 4 groups of 8 one-letter answers; `score` gets texts and a generator."""
    random, same = np.random.default_rng(0), SameText()
    values = {}
    for _ in range(batches):
        texts = random.integers(0, 20, 32).tolist()
        values = same.signals([("ask", text) for text in texts], group_parts(32, 8, 0), np.asarray(score(texts, random), dtype=float)[:, None], [label])
    return {name.partition("{")[0].removeprefix("reward.same_text_"): value for name, value in values.items()}


def test_a_scorer_that_goes_by_the_text():
    assert told(lambda texts, random: texts) == {"spread": 0.0, "differing": 0.0}


def test_scores_in_another_order():
    found = told(lambda texts, random: random.permutation(texts))
    assert found["spread"] == pytest.approx(1, abs=0.25)
    assert found["differing"] > 0.8 * PAIRS
    assert "zero_fraction" not in found  # copies share no score: whatever stands beside a zero is no failure


def test_failed_calls_that_count_as_zero():
    found = told(lambda texts, random: [0 if random.random() < 0.1 else 1 + text for text in texts])
    assert found["zero_fraction"] == 1
    assert found["differing"] > 12
    two = told(lambda texts, random: [0 if random.random() < 0.1 else float(text > 9) for text in texts])
    assert "zero_fraction" not in two  # of 0 and 1, nobody can tell


def test_scores_that_hang_on_the_place_are_no_chance():
    def fewer_for_copies(texts, random):
        return [text - 0.5 * texts[:place].count(text) for place, text in enumerate(texts)]

    found = told(fewer_for_copies)
    assert found["spread"] == 0
    assert found["differing"] > 0.8 * PAIRS


def test_nothing_is_told_of_a_few_copies_or_of_a_constant():
    assert told(lambda texts, random: texts, batches=2) == {}
    assert told(lambda texts, random: [1.0] * len(texts)) == {}
    assert told(lambda texts, random: [np.nan] * len(texts)) == {}


def test_a_judge_with_noise_is_not_accused_when_all_answers_have_become_good():
    """The answers differ in truth at first; at the end nothing but the noise of the judge tells them apart."""
    random, same = np.random.default_rng(0), SameText()
    spreads = []
    for batch in range(140):
        kinds = 20 if batch < 70 else 3
        texts = random.integers(0, kinds, 32)
        scores = texts / 20 + random.normal(0, 0.05, 32)
        told = same.signals([("ask", int(text)) for text in texts], group_parts(32, 8, 0), scores[:, None], ["judge"])
        spreads.append(told.get("reward.same_text_spread{component=judge}"))
    assert max(spread for spread in spreads if spread is not None) < 0.2
    assert spreads[60] is not None
    assert spreads[-1] is None


def test_old_batches_are_forgotten():
    random, same = np.random.default_rng(0), SameText()
    for batch in range(140):
        texts = random.integers(0, 20, 32).tolist()
        scores = random.permutation(texts) if batch < 70 else np.asarray(texts)
        values = same.signals(texts, group_parts(32, 8, 0), scores.astype(float)[:, None], ["judge"])
    assert values["reward.same_text_spread{component=judge}"] == 0
    kept = sum(len(batch.copies) for batch in same._batches["judge"])
    assert LEAST <= PAIRS <= kept < PAIRS + 32


def test_texts_are_the_same_when_every_token_is():
    long = list(range(100))
    rows = [[1, 2], [1, 2], [1, 2], [1], long, [*long[:99], 5], long, long[:32]]
    keys = text_keys(["a", "a", "b", "a", "a", "a", "a", "a"], rows)
    assert [[keys.index(key) for key in keys][place] for place in range(8)] == [0, 0, 2, 3, 4, 5, 4, 7]
