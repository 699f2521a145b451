"""Rows that were packed together: what one changes in another is what a slow comparison says, and nothing of the training is touched."""

from __future__ import annotations

from typing import Any

import build_supervised as build
import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.packed_rows import LONGEST, SHORTEST, Row, pick, undisturbed

pytestmark = pytest.mark.trl

CALM = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_steps": 3, "per_device_train_batch_size": 2}
PACKED = {**CALM, "packing": True, "packing_strategy": "bfd", "max_length": 160}
GAP, NOISE = "data.packed_row_gap", "data.packed_row_noise"


def joined(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """Give every batch an attention mask of ones, which hides where rows end; returns the batches."""
    right, made = trainer.data_collator, []

    def whole(rows: Any) -> dict[str, Any]:
        batch = dict(right(rows))
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        made.append(dict(batch))
        return batch

    trainer.data_collator = whole
    return made


def logps(model: Any, **batch: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token of one sequence but the first, from plain logits."""
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, batch["input_ids"][0, 1:, None]).squeeze(1)


def policy() -> Any:
    return tiny.policy(tiny.tokenizer())


def test_rows_that_read_one_another_are_measured(tmp_path, train):
    trainer = build.sft(str(tmp_path), rows=build.dialogues(256), model=policy(), **PACKED)
    batches = joined(trainer)
    seen = train(trainer)
    assert seen.notices == []
    assert {GAP, NOISE} <= seen.start.emits
    batch = {name: batches[0][name] for name in ("input_ids", "position_ids", "attention_mask")}
    rows = pick(batch["position_ids"], torch.ones_like(batch["input_ids"]).bool())
    together, model = logps(policy(), **batch), policy()
    gaps = []
    for row in rows:
        alone = logps(model, input_ids=batch["input_ids"][:, row.start : row.end])
        gaps.append((together[row.start : row.end - 1] - alone).abs())
    assert len(rows) == 4
    assert seen.series(GAP) == {1: pytest.approx(float(torch.cat(gaps[1:]).mean()), rel=1e-3)}
    assert seen.series(GAP)[1] > 0.3
    assert seen.series(NOISE) == {1: pytest.approx(0.0, abs=1e-5)}
    assert "packed-rows-attend" in {one.rule.id for one in seen.callback.monitor.findings}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rows_that_are_kept_apart(tmp_path, train, implementation):
    model = policy()
    model.set_attn_implementation(implementation)
    seen = train(build.sft(str(tmp_path), rows=build.dialogues(256), model=model, **PACKED))
    assert seen.notices == []
    assert seen.series(GAP) == {1: pytest.approx(0.0, abs=1e-4)}
    assert "packed-rows-attend" not in {one.rule.id for one in seen.callback.monitor.findings}


@pytest.mark.parametrize("settings", [{}, {"packing": True, "packing_strategy": "wrapped", "max_length": 160}], ids=["rows", "blocks"])
def test_nothing_is_said_where_rows_are_not_packed_or_joined_on_purpose(tmp_path, train, settings):
    seen = train(build.sft(str(tmp_path), rows=build.dialogues(256), **CALM, **settings))
    assert seen.series(GAP) == {}
    assert GAP not in seen.start.emits


def test_dropout_shows_in_the_first_row_as_well(tmp_path, train):
    model = policy()
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: torch.nn.functional.dropout(output, 0.3, module.training))
    seen = train(build.sft(str(tmp_path), rows=build.dialogues(256), model=model, **PACKED))
    assert seen.series(NOISE)[1] > 0.05
    assert seen.series(GAP)[1] < 4 * seen.series(NOISE)[1]


def test_adapters_are_looked_at_and_the_training_is_the_same_without_us(tmp_path, train):
    peft = pytest.importorskip("peft")

    def build_one(folder: str) -> Any:
        torch.manual_seed(3)
        model = peft.get_peft_model(policy(), peft.LoraConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM", target_modules="all-linear"))
        return build.sft(str(tmp_path / folder), rows=build.dialogues(256), model=model, **PACKED)

    bare = build_one("bare")
    bare.train()
    observed = build_one("observed")
    seen = train(observed)
    assert seen.notices == []
    assert seen.series(GAP)[1] < 0.05
    for one, other in zip(bare.model.parameters(), observed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_modes_and_random_numbers_are_put_back():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model.train()
    model[1].eval()
    before = torch.random.get_rng_state()
    with undisturbed(model, torch.device("cpu")):
        torch.rand(3)
        assert not model.training
        assert not model[0].training
        assert not torch.is_grad_enabled()
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
    assert torch.equal(before, torch.random.get_rng_state())


def test_which_rows_are_compared():
    def positions(*sizes: int) -> torch.Tensor:
        return torch.cat([torch.arange(size) for size in sizes])[None]

    def all_of(places: torch.Tensor) -> list[Row]:
        return pick(places, torch.ones_like(places).bool())

    assert all_of(positions(10, 20, 9, 1, 1, 1)) == [Row(0, 0, 10), Row(0, 10, 30), Row(0, 30, 39)]
    assert all_of(positions(10, 9, 9, 9, 9)) == [Row(0, 0, 10), Row(0, 19, 28), Row(0, 28, 37), Row(0, 37, 46)]
    assert all_of(positions(200, 200)) == [Row(0, 0, LONGEST), Row(0, 200, 200 + LONGEST)]
    assert all_of(positions(40)) == []
    assert all_of(positions(SHORTEST - 1, 20)) == []  # nothing to tell noise by
    assert all_of(positions(20, SHORTEST - 1)) == []
    assert all_of(positions(30, 30)[:, 5:]) == []  # the first row began elsewhere
    places = torch.cat([positions(20), positions(10, 10)])
    assert all_of(places) == [Row(1, 0, 10), Row(1, 10, 20)]
    real = torch.ones_like(places).bool()
    real[1, 15:] = False  # padding
    assert pick(places, real) == []
