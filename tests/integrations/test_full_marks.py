"""Both scores of the same answers: what is counted, and when nothing is said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.integrations.full_marks import FEW, Answers, Marks, ask, unearned


def kept(rewards: list[list[float]], weights: tuple[float, ...] = (1.0,), wanted: int = 64, start: int = 0, **columns: Any) -> Answers:
    answers, count = Answers(wanted), len(rewards) - start
    inputs = [{"prompt": "p", **{name: values[i] for name, values in columns.items()}} for i in range(count)]
    answers.keep([inputs, ["p"] * count, [f"a{i}" for i in range(count)], [[i] for i in range(count)]], torch.tensor(rewards), torch.tensor(weights), start)
    return answers


def test_half_of_the_answers_with_full_reward_fail_the_checker() -> None:
    seen = Marks()
    share = ask(kept([[1.0]] * 8 + [[0.0]] * 4), 1.0, ["prompt"], seen, lambda given: [1.0] * 4 + [0.0] * 8)
    assert (share, seen) == (0.5, Marks(0.0, 1.0, 1.0))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-3, 3)), min_size=1, max_size=40))
def test_a_reward_that_is_the_checker_on_any_scale_is_earned(rows: list[tuple[float, float]]) -> None:
    marks, seen = [mark for mark, _ in rows], Marks()
    seen.see(marks, trained=True)
    assert unearned(np.asarray([10 * mark - 3 for mark in marks]), 10 * max(marks) - 3, marks, seen) in {0.0, None}


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.3, 1.0, None, math.nan])), max_size=60))
def test_it_is_the_share_among_the_best_paid(rows: list[tuple[float, float | None]]) -> None:
    seen = Marks(0.0, 1.0, 1.0)
    paid = [mark for total, mark in rows if total == 1.0 and mark is not None and mark == mark]
    share = unearned(np.asarray([total for total, _ in rows]), 1.0, [mark for _, mark in rows], seen)
    assert share == (paid.count(0.0) / len(paid) if len(paid) >= FEW else None)


@pytest.mark.parametrize("seen", [Marks(), Marks(0.0, 0.0, 0.0), Marks(0.0, 1.0, 0.0), Marks(0.0, 1.0)])
def test_a_checker_that_credits_no_answer_of_the_training_may_not_know_its_prompts(seen: Marks) -> None:
    assert unearned(np.ones(20), 1.0, [0.0] * 20, seen) is None


def test_nothing_is_said_of_nothing_of_missing_columns_and_of_a_reward_below_the_best() -> None:
    def score(given: dict[str, Any]) -> list[float | None]:
        return [0.0, 1.0] * (len(given["prompts"]) // 2)

    assert ask(Answers(), 1.0, ["prompt"], Marks(), score) is None
    assert ask(Answers(wanted=64), 1.0, ["prompt"], Marks(), score) is None
    assert ask(kept([[1.0]] * 20), 1.0, ["prompt", "answer"], Marks(), score) is None
    assert ask(kept([[1.0]] * 20, answer=["x"] * 20), 1.0, ["prompt", "answer"], Marks(), score) == 0.5
    assert ask(kept([[1.0]] * 20), 2.0, ["prompt"], Marks(), score) is None  # 2 was earned before


def test_rewards_are_weighted_an_answer_that_nobody_scored_has_none_and_others_ranks_are_left_out() -> None:
    answers = kept([[9.0, 9.0], [1.0, 2.0], [math.nan, 2.0], [math.nan, math.nan]], (1.0, 0.5), start=1)
    np.testing.assert_array_equal(answers.totals(), [2.0, 1.0, math.nan])


def test_as_many_are_kept_as_are_wanted_and_none_unasked() -> None:
    answers = kept([[1.0]] * 20, wanted=3, answer=["x"] * 20)
    assert answers.given == {"answer": ["x"] * 3, "prompts": ["p"] * 3, "completions": ["a0", "a1", "a2"], "completion_ids": [[0], [1], [2]]}
    assert len(answers.totals()) == 3
    assert kept([[1.0]] * 20, wanted=0).given == {}
