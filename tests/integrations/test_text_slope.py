"""Whether scores go by the text: the prediction on made-up answers, whose truth is known."""

from __future__ import annotations

import base64
import json
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="beside the integrations, which need it")

from trainvitals.integrations.groups import group_parts
from trainvitals.integrations.text_slope import BUCKETS, CHANGED, FOLDS, TOKENS, TextSlope, features, slope_of, within_groups

NAME = "reward.text_slope{component=judge}"
BREAK = 50


def answers(random, count, alike=0.0, size=26):
    """Answers of 4 to 20 tokens; a share of the tokens is the same everywhere."""
    return [np.where(random.random(length) < alike, 1, random.integers(0, size, length)).tolist() for length in random.integers(4, 21, count)]


def vowels(rows):
    """Share of five tokens among those of an answer."""
    return np.asarray([sum(token < 5 for token in row) / len(row) for row in rows])


def told(score, *, batches=100, count=32, size=8, alike=lambda batch: 0.0, seed=0, follower=None):
    """What each batch told: batch and slope. `score` gets the batch's number, texts and a generator."""
    random, follower = np.random.default_rng(seed), follower or TextSlope()
    found = []
    for batch in range(batches):
        rows = answers(random, count, alike(batch))
        scores = np.asarray(score(batch, rows, random), dtype=float)
        values = follower.signals(rows, group_parts(count, size, 0), scores[:, None], ["judge"])
        found += [(batch, values[NAME])] if NAME in values else []
    return found


def after(found, batch):
    """Slopes from a batch on."""
    return [slope for at, slope in found if at >= batch]


def test_texts_are_shares_of_tokens_and_length():
    table = features([[1, 1, 2, 1 + BUCKETS], [], [3]])
    assert table.shape == (3, BUCKETS + 1)
    assert table[0, 1] == 0.75
    assert table[0, 2] == 0.25
    assert table[:, :BUCKETS].sum(axis=1).tolist() == [1, 0, 1]
    assert table[:, BUCKETS] == pytest.approx(np.log1p([4, 0, 1]))


def test_of_long_texts_both_ends_are_looked_at():
    long = [7] * TOKENS + [8] * TOKENS + [9] * TOKENS
    table = features([long, [5, 5]])
    assert table[0, 7] == table[0, 9] == 0.5
    assert table[0, 8] == 0
    assert table[1, 5] == 1
    assert table[0, BUCKETS] == pytest.approx(np.log1p(len(long)))


def test_distances_are_within_groups_and_flat_groups_tell_nothing():
    scores = np.asarray([1.0, 3.0, np.nan, 2.0, 2.0, 2.0 + 1e-9, 5.0])
    parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
    texts = np.arange(14.0).reshape(7, 2)
    groups = within_groups(texts, scores, parts)
    assert len(groups) == 1  # the second is flat but for rounding, the third has one answer on this rank
    assert groups[0][0].tolist() == [[-1, -1], [1, 1]]
    assert groups[0][1].tolist() == [-1, 1]
    assert within_groups(texts, np.full(7, np.inf), parts) == []


def test_slope_and_its_error():
    random = np.random.default_rng(0)
    slopes, errors = [], []
    for _ in range(400):
        promised = random.normal(size=256)
        slope, error = slope_of(0.5 * promised + random.normal(size=256), promised, 256)
        slopes.append(slope)
        errors.append(error)
    assert np.mean(slopes) == pytest.approx(0.5, abs=0.01)
    assert np.std(slopes) == pytest.approx(np.mean(errors), rel=0.1)
    assert slope_of(np.ones(3), np.zeros(3), 3)[1] == np.inf


def test_a_score_that_goes_by_the_text():
    found = told(lambda batch, rows, random: vowels(rows))
    assert len(found) > 90
    assert 0.85 < min(after(found, 30)) < max(after(found, 30)) < 1.15


@pytest.mark.parametrize("size", [2, 4, 16])
@pytest.mark.parametrize("count", [16, 128])
def test_groups_and_batches_of_any_size(size, count):
    found = told(lambda batch, rows, random: vowels(rows) + random.normal(0, 0.02, len(rows)), count=count, size=size)
    assert 0.8 < np.median(after(found, 40)) < 1.2


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_the_scale_of_scores_does_not_matter(scale):
    plain, scaled = (told(lambda batch, rows, random, by=by: by * vowels(rows) - by) for by in (1.0, scale))
    assert [at for at, _ in plain] == [at for at, _ in scaled]
    assert [slope for _, slope in plain] == pytest.approx([slope for _, slope in scaled], rel=1e-6)


def permuted(batch, rows, random):
    """Scores in another order from `BREAK` on."""
    return random.permutation(vowels(rows)) if batch >= BREAK else vowels(rows)


def test_scores_in_another_order():
    runs = [told(permuted, seed=seed) for seed in range(10)]
    assert min(slope for found in runs for at, slope in found if 30 <= at < BREAK) > 0.8
    lost = [slope for found in runs for at, slope in found if BREAK + 7 <= at < BREAK + 16]
    assert len(lost) > 80
    assert sum(slope < 0.35 for slope in lost) > 0.9 * len(lost)


def test_scores_of_the_batch_before():
    kept = [np.zeros(32)]

    def late(batch, rows, random):
        before, kept[0] = kept[0], vowels(rows)
        return before if batch >= BREAK else kept[0]

    assert max(slope for at, slope in told(late) if BREAK + 7 <= at < BREAK + 16) < 0.35


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "another", [lambda rows: [sum(5 <= token < 10 for token in row) / len(row) for row in rows], lambda rows: [-len(row) for row in rows],
                lambda rows: 1 - vowels(rows), lambda rows: [float(20 in row) for row in rows]],
    ids=["tokens", "length", "sign", "rare token"],
)  # fmt: skip
def test_another_reward_function_is_a_connection_too(another, seed):
    found = told(lambda batch, rows, random: another(rows) if batch >= BREAK else vowels(rows), seed=seed)
    assert min(after(found, BREAK + 6)) >= CHANGED
    assert np.median(after(found, 90)) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_a_judge_with_noise_when_all_answers_become_alike(seed):
    """The slope stays while it can be known, then nothing is told."""
    found = told(lambda batch, rows, random: vowels(rows) + random.normal(0, 0.03, 32), alike=lambda batch: min(1.0, max(0.0, batch - 40) / 20), seed=seed)
    assert min(after(found, 30)) > 0.5
    assert found[-1][0] < 80


def test_a_task_that_is_solved_tells_nothing():
    found = told(lambda batch, rows, random: vowels(rows) if batch < BREAK else np.ones(len(rows)))
    assert found[-1][0] == BREAK - 1


def test_scores_that_never_went_by_the_text():
    assert len(told(lambda batch, rows, random: random.normal(size=len(rows)))) < 15


def test_one_extreme_score_in_twenty_does_not_rule():
    found = told(lambda batch, rows, random: np.where(random.random(len(rows)) < 0.05, 1e4, vowels(rows)))
    assert all(slope > 0.35 for slope in after(found, 20))


def test_missing_scores_are_left_out():
    found = told(lambda batch, rows, random: np.where(random.random(len(rows)) < 0.5, np.nan, vowels(rows)))
    assert np.median(after(found, 40)) == pytest.approx(1, abs=0.15)
    assert told(lambda batch, rows, random: np.full(len(rows), np.nan)) == []
    assert TextSlope().signals([], [], np.empty((0, 1)), ["judge"]) == {}


def test_functions_are_followed_apart():
    random, follower, values = np.random.default_rng(0), TextSlope(), {}
    for _ in range(40):
        rows = answers(random, 32)
        scores = np.column_stack([vowels(rows), [len(row) for row in rows], random.normal(size=32)])
        values = follower.signals(rows, group_parts(32, 8, 0), scores, ["judge", "length", "lot"])
    assert values.keys() == {NAME, "reward.text_slope{component=length}"}


def test_a_resume_goes_on_where_it_was():
    follower = TextSlope()
    told(lambda batch, rows, random: vowels(rows), follower=follower)
    state = json.loads(json.dumps(follower.state_dict()))
    assert len(json.dumps(state)) < 40_000
    resumed = TextSlope()
    resumed.load_state_dict(state)
    found = told(lambda batch, rows, random: vowels(rows), batches=20, seed=1, follower=resumed)
    assert found[0][0] == 3  # with half a window: nothing has to be learned again
    assert found[0][1] == pytest.approx(1, abs=0.1)
    other = TextSlope()
    other.load_state_dict({"judge": {"known": base64.b64encode(zlib.compress(np.zeros(3).tobytes())).decode()}})  # of another version
    assert told(lambda batch, rows, random: vowels(rows), follower=other) == told(lambda batch, rows, random: vowels(rows))


def test_it_takes_well_below_a_millisecond():
    """64 answers of 200 tokens; three times the goal, since other work may share the core."""
    random, follower = np.random.default_rng(0), TextSlope()
    rows = [random.integers(0, 30_000, 200).tolist() for _ in range(64)]
    best = np.inf
    for _ in range(30):
        scores = np.asarray([sum(token % 7 for token in row) for row in rows], dtype=float)[:, None]
        begin = time.perf_counter()
        follower.signals(rows, group_parts(64, 8, 0), scores, ["judge"])
        best = min(best, time.perf_counter() - begin)
    assert best < 3e-3


def test_memory_does_not_grow():
    follower = TextSlope()
    told(permuted, batches=200, follower=follower)
    (one,) = follower._followers.values()
    assert FOLDS <= len(one._window) <= 256 // 8 + FOLDS
    assert sum(len(scores) for _, scores in one._waiting) < 32
