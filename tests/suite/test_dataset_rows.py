"""What the rows of a data set say before the first update: against a second way of counting, on data sets that TRL prepared."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import build_preference
import build_supervised
import numpy as np
import pytest
import torch
from datasets import Dataset

from trainvitals.integrations import dataset_rows as look

pytestmark = pytest.mark.trl

SHORT = {"max_steps": 2, "learning_rate": 1e-4}
LATER = 1e12


def random_rows(count: int, seed: int) -> list[list[int]]:
    """Short rows of three tokens, so that many are equal; some are empty, some a beginning of another."""
    random = Random(seed)
    return [random.choices((0, 1, 2), k=random.randint(0, 6)) for _ in range(count)]


def read(rows: list[list[int]], **more: Any) -> tuple[Any, Any]:
    data = Dataset.from_dict({"input_ids": rows})
    return look.hashes(more.get("change", lambda same: same)(data), ("input_ids",), more.get("tokens", 1 << 60), LATER)


def test_equal_rows_and_no_others_have_equal_hashes() -> None:
    rows = random_rows(5_000, 1)
    found, lengths = read(rows)
    assert lengths.tolist() == [len(row) for row in rows]
    assert len({(tuple(row), int(one)) for row, one in zip(rows, found, strict=True)}) == len(set(map(tuple, rows))) == len(set(found.tolist()))


@pytest.mark.parametrize("change", [lambda data: data.shuffle(seed=3), lambda data: data.with_format("torch"), lambda data: data.select(range(4_990))])
def test_a_shuffled_formatted_or_cut_set_gives_the_same(change: Any) -> None:
    rows = random_rows(5_000, 2)
    plain, changed = read(rows)[0], read(rows, change=change)[0]
    assert set(changed.tolist()) <= set(plain.tolist())
    assert len(changed) == len(change(Dataset.from_dict({"input_ids": rows})))


def test_parts_of_a_row_do_not_swap() -> None:
    data = Dataset.from_dict({"chosen_ids": [[1, 2], [3]], "rejected_ids": [[3], [1, 2]], "label": [True, False]})
    assert look.content(data) == ("chosen_ids", "rejected_ids", "label")
    assert len(set(look.hashes(data, ("chosen_ids", "rejected_ids"), 1 << 60, LATER)[0].tolist())) == 2
    assert len(set(look.hashes(data, ("label",), 1 << 60, LATER)[0].tolist())) == 2


def test_copies_are_counted() -> None:
    rows = random_rows(3_000, 4)
    counts = Counter(map(tuple, rows))
    told = look.copies(read(rows)[0])
    assert told["data.duplicate_fraction"] == pytest.approx(1 - len(counts) / 3_000)
    assert told["data.repeated_fraction"] == pytest.approx(sum(n for n in counts.values() if n > 1) / 3_000)
    assert told["data.most_copies"] == max(counts.values())
    assert told["data.rows_looked_at"] == 3_000


def test_a_clean_split_shares_as_many_rows_as_there_are_twins() -> None:
    """The claim behind eval-in-train: chance alone shares about `repeated_fraction` of the rows."""
    random = Random(5)
    rows = [[random.randint(0, 3_000), 7] for _ in range(1_200)]
    train, held_out = read(rows[:1_000])[0], read(rows[1_000:])[0]
    repeated, shared = look.copies(train)["data.repeated_fraction"], look.overlap(train, [held_out])["data.eval_overlap_fraction"]
    assert 0.2 < repeated < 0.4
    assert abs(shared - repeated) < 0.1


def test_the_look_is_bounded() -> None:
    rows = [[1, 2, 3, 4]] * 10_000
    assert len(read(rows, tokens=4 * 3_000)[0]) == 4_000  # whole chunks
    data = Dataset.from_dict({"input_ids": rows})
    assert len(look.hashes(data, ("input_ids",), 1 << 60, time.perf_counter() - 1)[0]) == 2_000
    assert len(look.hashes(data, ("input_ids",), 1 << 60, LATER, 2_500)[0]) == 2_500


def test_order_against_scipy_s_definition() -> None:
    random = np.random.default_rng(6)
    lengths = random.integers(1, 9, 500)
    ranks = np.array([(lengths < one).sum() + ((lengths == one).sum() + 1) / 2 for one in lengths])
    assert look.rank_correlation(lengths) == pytest.approx(np.corrcoef(ranks, np.arange(500))[0, 1])
    assert look.rank_correlation(np.arange(80)) == pytest.approx(1)
    assert look.rank_correlation(np.ones(80, np.int64)) == 0


def test_runs_of_classes() -> None:
    flags = np.random.default_rng(7).integers(0, 2, 4_000).astype(bool)
    assert look.runs(flags) == pytest.approx(1, abs=0.1)
    assert look.runs(np.sort(flags)) < 0.01
    assert look.runs(np.ones(9, bool)) == 1


def test_the_sampler_is_found_through_wrappers() -> None:
    from torch.utils.data import DataLoader

    assert look.in_order(DataLoader(torch.arange(9)))
    assert not look.in_order(DataLoader(torch.arange(9), shuffle=True))

    class Skipping:  # as accelerate's, which have no sampler of their own
        batch_sampler = DataLoader(torch.arange(9)).batch_sampler

    class Loader:
        batch_sampler = Skipping()

    assert look.in_order(Loader())
    assert not look.in_order(object())


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto", "orpo", "cpo"])
def test_every_trainer_tells_once(name: str, tmp_path: Path, train: Any) -> None:
    module = build_supervised if name in {"sft", "reward"} else build_preference
    trainer = getattr(module, name)(str(tmp_path), **SHORT)
    columns = look.content(trainer.train_dataset)
    assert columns is not None
    rows = [str([row[column] for column in columns]) for row in trainer.train_dataset]
    seen = train(trainer)
    assert seen.notices == []
    assert seen.series("data.duplicate_fraction") == {1: pytest.approx(1 - len(set(rows)) / len(rows))}
    assert seen.series("data.rows_looked_at") == {1: len(rows)}
    assert seen.series("data.read_in_order") == {1: float(name == "kto")}
    assert (seen.series("data.order_class_runs") != {}) == (name == "kto")
    assert set(seen.series("data.order_length_correlation")) == {1}
    assert "data.eval_overlap_fraction" not in seen.start.emits


def test_masks_and_prompts_are_measured() -> None:
    data = Dataset.from_dict({"input_ids": [[1, 2, 3, 4], [5, 6]], "labels": [[-100, -100, 3, 4], [5, 6]]})
    assert look.masks(data, whole=False) == {"data.masked_token_fraction": pytest.approx(1 / 3), "data.masked_row_fraction": 0.5}
    data = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]], "completion_mask": [[0, 0, 0, 1]]})
    assert look.masks(data, whole=True) == {"data.prompt_fraction": 0.75}
    assert look.masks(data, whole=False) == {"data.prompt_fraction": 0.75, "data.masked_token_fraction": 0.75, "data.masked_row_fraction": 1.0}
    data = Dataset.from_dict({"input_ids": [[1, 2]], "prompt": ["abc"], "completion": ["d"]})
    assert look.masks(data, whole=False) == {"data.prompt_fraction": 0.75}
    assert look.masks(Dataset.from_dict({"input_ids": [[1, 2]], "labels": [3]}), whole=False) == {}  # classes, not tokens
    chat = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "d"}]
    assert look.masks(Dataset.from_dict({"input_ids": [[1, 2]], "messages": [chat]}), whole=False) == {"data.prompt_fraction": 0.75}
    assert look.masks(Dataset.from_dict({"input_ids": [[1, 2]], "messages": [chat[:1]]}), whole=False) == {}


def test_what_is_not_looked_at(tmp_path: Path) -> None:
    assert look.content(Dataset.from_dict({"prompt": ["a"]})) is None
    assert look.content(Dataset.from_dict({"input_ids": [[1]], "images": [[2]]})) is None
    assert look.content([{"input_ids": [1]}]) is None
    assert look.content(None) is None
    assert look.content(Dataset.from_dict({"prompt_ids": [[1]]})) is None
    packed = build_supervised.sft(str(tmp_path), packing=True, **SHORT)
    assert look.packed(packed.train_dataset, packed.args)
