"""Templates that were applied twice: on rows of numbers, in the rows of every trainer that learns from them, and in the prompts of those that sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_preference
import build_sampling
import build_supervised
import pytest
import torch
from datasets import Dataset

from trainvitals.integrations import doubled_template as look
from trainvitals.integrations import tiny
from trainvitals.integrations.supervised import sequences

pytestmark = pytest.mark.trl

NAME = "token.doubled_template_fraction"
RULE = "chat-template-doubled"
SHORT = {"max_steps": 5, "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("rows", "hits"),
    [
        ([[0, 3, 5, 4, 3, 6, 4]], 0),  # BOS, open, text, close, open, text, close
        ([[0, 0, 3, 5, 4, 3, 6]], 1),
        ([[0, 3, 7, 3, 5, 4, 4]], 1),
        ([[0, 3, 7, 0, 3, 5, 4]], 1),  # with the BOS of the second pass
        ([[0, 5, 5, 0, 0, 5, 4]], 0),  # two BOS somewhere else
        ([[5, 5, 5, 5, 5, 5, 3], [0, 3, 5, 4, 3, 5, 4]], 0),  # nothing carries over to the next row
        ([[3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 3, 4]], 0),  # far apart: a turn without an end token
    ],
)
def test_what_counts_as_doubled(rows: list[list[int]], hits: int) -> None:
    ids = torch.tensor(rows)
    where = sequences(ids, torch.ones_like(ids), None)
    assert look.doubled_counts(ids, where, 0, frozenset({3}), frozenset({4})).tolist() == [hits, len(rows)]


def test_padding_on_the_left_does_not_hide_the_beginning() -> None:
    ids = torch.tensor([[9, 9, 0, 0, 5], [9, 0, 5, 5, 5]])
    assert look.doubled_counts(ids, sequences(ids, (ids != 9).long(), None), 0, frozenset(), frozenset()).tolist() == [1, 2]
    assert look.doubled_signals([torch.tensor([0, 0])]) == {}
    assert look.doubled_signals([torch.tensor([1, 4])]) == {NAME: 0.25}


def rendered(text: str) -> str:
    """A question that went through the chat template."""
    return str(tiny.tokenizer().apply_chat_template([{"role": "user", "content": text}], tokenize=False))


def inside(row: dict[str, str]) -> dict[str, str]:
    """A row of pairs whose question went through it before."""
    return {**row, "prompt": rendered(row["prompt"])}


def learner(name: str, folder: str, *, twice: bool) -> Any:
    """A trainer that learns from rows, whose questions were or were not rendered before the trainer renders them."""
    edit = inside if twice else None
    if name == "sft":
        return build_supervised.sft(folder, **SHORT, **({"rows": build_supervised.rendered_twice(tiny.tokenizer())} if twice else {}))
    if name == "reward":
        rows = build_supervised.pairs()
        for row in rows if twice else ():
            for side in ("chosen", "rejected"):
                row[side] = [{"role": "user", "content": rendered(row[side][0]["content"])}, row[side][1]]
        return build_supervised.reward(folder, rows=rows, **SHORT)
    data = build_preference.examples(edit=edit) if name == "kto" else build_preference.pairs(edit)
    return getattr(build_preference, name)(folder, data=data, **SHORT)


@pytest.mark.parametrize(("name", "twice"), [*((name, True) for name in ("sft", "reward", "dpo", "kto", "orpo")), ("reward", False), ("dpo", False)])
def test_rows(name: str, twice: bool, tmp_path: Path, train: Any) -> None:
    seen = train(learner(name, str(tmp_path), twice=twice))
    assert seen.notices == []
    assert seen.series(NAME) == dict.fromkeys(range(1, 6), float(twice))
    assert NAME in seen.start.emits
    assert (RULE in {one.rule.id for one in seen.callback.monitor.findings}) is twice


def test_a_bos_of_the_template_and_one_of_the_tokenizer(tmp_path: Path, train: Any) -> None:
    vocabulary = build_supervised.with_bos(tiny.tokenizer())
    seen = train(build_supervised.sft(str(tmp_path / "once"), vocabulary=vocabulary, **SHORT))
    assert set(seen.series(NAME).values()) == {0.0}
    seen = train(build_supervised.sft(str(tmp_path / "twice"), vocabulary=vocabulary, rows=build_supervised.rendered(vocabulary), **SHORT))
    assert set(seen.series(NAME).values()) == {1.0}


@pytest.mark.parametrize(("build", "twice"), [(build_sampling.grpo, True), (build_sampling.rloo, True), (build_preference.online_dpo, True), (build_sampling.grpo, False)])
def test_prompts(build: Any, twice: bool, tmp_path: Path, train: Any) -> None:
    trainer = build(str(tmp_path), **SHORT)
    if twice:
        trainer.train_dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": rendered(row["prompt"][-1]["content"])}]} for row in tiny.prompts()])
    seen = train(trainer)
    assert seen.notices == []
    assert set(seen.series(NAME).values()) == {float(twice)}
    assert NAME in seen.start.emits
    assert (RULE in {one.rule.id for one in seen.callback.monitor.findings}) is twice


def test_a_tokenizer_without_bos_and_markers_promises_nothing(tmp_path: Path, train: Any) -> None:
    trainer = build_preference.dpo(str(tmp_path), **SHORT)
    trainer.processing_class.chat_template = None
    seen = train(trainer)
    assert NAME not in seen.start.emits
    assert seen.series(NAME) == {}


def test_prompts_of_different_lengths_are_looked_at_together() -> None:
    put: list[Any] = []
    hooks: Any = SimpleNamespace(training=True, put=lambda tensors, compute: put.append(compute(tensors)), trainer=SimpleNamespace())
    reader = look._Doubled(hooks)
    reader.bos = 7
    reader.after_generate(([[7, 7, 5], [7, 5], [5, 7, 7, 5]], []), (), {}, 0.0)
    reader.after_generate(([], []), (), {}, 0.0)
    hooks.training = False
    reader.after_generate(([[7, 7]], []), (), {}, 0.0)
    assert put == [{NAME: pytest.approx(1 / 3)}]
