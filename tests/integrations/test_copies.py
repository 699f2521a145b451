"""Copies that independent draws would not give: how many, with what chance, by which hashes, and on which ranks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainvitals.integrations.copies import Copies, gathered, improbable, on_other_ranks, row_hash  # noqa: E402


def test_a_pair_of_unlikely_answers_counts_and_one_of_likely_answers_does_not():
    rows = [("p", "a"), ("p", "a"), ("p", "b"), ("p", "c")]
    assert improbable(rows, [-20.0, -20.0, -20.0, -20.0]) == 0.5
    assert improbable(rows, [-1.0, -1.0, -20.0, -20.0]) == 0.0
    least = math.log(1e-4 / 3)  # one of three others
    assert improbable(rows, [least - 0.01] * 4) == 0.5
    assert improbable(rows, [least + 0.01] * 4) == 0.0


def test_more_copies_of_a_likelier_answer_are_as_unlikely():
    group = [("p", "a")] * 8
    assert improbable(group, [math.log(0.2)] * 8) == 1.0  # 0.2 ** 7 is 1.3e-5
    assert improbable(group, [math.log(0.3)] * 8) == 0.0  # 2.2e-4: a policy that has this answer and few others
    assert improbable([("p", "a")] * 4 + [("p", str(i)) for i in range(4)], [math.log(0.2)] * 8) == 0.0


def test_other_prompts_lonely_prompts_and_unknown_probabilities():
    assert improbable([("p", "a"), ("q", "a")], [-20.0, -20.0]) is None  # nothing to be a copy of
    assert improbable([], []) is None
    assert improbable([("p", "a"), ("p", "a"), ("q", "a")], [-20.0, -20.0, -20.0]) == 1.0
    assert improbable([("p", "a"), ("p", "a")], [math.nan, -20.0]) == 0.0
    assert improbable([("p", "a"), ("p", "a")], [-20.0, -0.1]) == 0.0  # to other images, say, it is a likely answer


def test_copies_on_other_ranks_count_too():
    rows = [("p", "a"), ("p", "b")]
    assert improbable(rows, [-20.0, -20.0]) == 0.0
    assert improbable(rows, [-20.0, -20.0], {("p", "a"): (3, 6), ("p", "b"): (0, 6)}) == 0.5
    assert improbable([("p", "a")], [-20.0], {("p", "a"): (1, 3)}) == 1.0


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("group", [2, 8, 32])
def test_independent_draws_are_counted_once_in_ten_thousand_at_most(sharpness, group):
    """From flat to collapsed policies over 50 answers; 40,000 draws, so 4 may be counted, and 12 at four standard errors."""
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(40_000 // group):
        weights = np.exp(sharpness * generator.standard_normal(50))
        chances = weights / weights.sum()
        drawn = generator.choice(50, size=group, p=chances)
        share = improbable([("p", int(answer)) for answer in drawn], np.log(chances[drawn]).tolist())
        count += round((share or 0.0) * group)
    assert count <= 12


def test_hashes_are_of_masked_tokens_in_their_order():
    ids = torch.tensor([[0, 0, 5, 6], [0, 5, 6, 0], [0, 0, 6, 5], [0, 0, 5, 7], [5, 6, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    first, shifted, turned, other, filled = row_hash(ids, mask).tolist()
    assert first == shifted == filled
    assert len({first, turned, other}) == 3
    many = torch.arange(40_000).reshape(20_000, 2)
    assert len(set(row_hash(many, torch.ones_like(many)).tolist())) == 20_000


def test_texts_of_all_ranks():
    chat = [{"role": "user", "content": "?"}]
    logs = {"prompt": ["old", *[chat] * 4], "completion": ["old", "a", "b", "a", "b"]}
    prompts, answers = gathered(logs, 4)
    assert answers == ["a", "b", "a", "b"]
    assert on_other_ranks(list(zip(prompts, answers, strict=True)), slice(0, 2)) == [(1, 2), (1, 2)]
    assert gathered(logs, 6) == gathered(None, 4) == ([], [])
    assert gathered({"prompt": ["p"], "completion": [3.0]}, 1) == ([], [])


def test_one_seed_for_two_ranks_is_seen_from_one_of_them():
    """The two answers of this rank differ; the other rank has the same two."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (2, 12), generator=generator)
    batch = {"prompt_ids": torch.ones(2, 3).long(), "prompt_mask": torch.ones(2, 3), "completion_ids": ids, "completion_mask": torch.ones(2, 12)}

    def share(others: list[str]) -> dict[str, float]:
        given: list[dict[str, float]] = []
        trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2, process_index=1), _logs={"prompt": ["?"] * 4, "completion": [*others, "one", "two"]})
        hooks: Any = SimpleNamespace(trainer=trainer, put=lambda tensors, compute: given.append(compute(list(tensors))))
        copies = Copies(hooks)
        copies.after_batch(batch)
        order = torch.tensor([1, 0])  # as TRL shuffles a generation batch
        copies.after_loss({name: part[order] for name, part in batch.items()}, torch.full((2, 12), -2.0), torch.ones(2, 12))
        copies.step_end()
        return given[-1]

    assert share(["one", "two"]) == {"completion.improbable_copies_fraction": 1.0}
    assert share(["one", "three"]) == {"completion.improbable_copies_fraction": 0.5}
    assert share(["three", "four"]) == {"completion.improbable_copies_fraction": 0.0}
