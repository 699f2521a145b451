"""Token ids without an embedding: shares against a count of the batches, what a run says that dies of them, and models that are not looked at."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_preference
import build_sampling
import build_supervised
import pytest
import torch
import transformers

from trainvitals.integrations import token_ids
from trainvitals.integrations.trl import attach

pytestmark = pytest.mark.trl

SHORT = {"max_steps": 2, "learning_rate": 1e-4}


def zeros_for_others(model: Any) -> None:
    """An embedding that gives zeros for what it does not know, as one that is cut up among ranks may."""
    table = model.get_input_embeddings()

    def lookup(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        module.outside = (inputs[0] < 0) | (inputs[0] >= module.num_embeddings)
        return (inputs[0].masked_fill(module.outside, 0),)

    table.register_forward_pre_hook(lookup)
    table.register_forward_hook(lambda module, inputs, output: output.masked_fill(module.outside[..., None], 0.0))


def edited(trainer: Any, edit: Any) -> list[dict[str, torch.Tensor]]:
    """The collator's batches, each edited before the trainer gets it."""
    right, made = trainer.data_collator, []

    def collate(rows: Any) -> dict[str, Any]:
        batch = dict(right(rows))
        edit(batch)
        made.append({name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)})
        return batch

    trainer.data_collator = collate
    return made


def masked(batch: dict[str, torch.Tensor]) -> None:
    batch["input_ids"][(batch["labels"] == -100) & (batch["attention_mask"] == 1)] = -100


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo", "cpo", "reward"])
def test_healthy_trainers_have_none(name: str, tmp_path: Path, train: Any) -> None:
    seen = train(getattr(build_supervised if name in {"sft", "reward"} else build_preference, name)(str(tmp_path), **SHORT))
    assert seen.notices == []
    assert seen.series("data.invalid_token_fraction") == seen.series("data.negative_token_fraction") == {1: 0.0, 2: 0.0}


def test_a_mask_in_the_inputs(tmp_path: Path, train: Any) -> None:
    trainer = build_supervised.sft(str(tmp_path), rows=build_supervised.completions(), **SHORT)
    zeros_for_others(trainer.model)
    batches = edited(trainer, masked)
    seen = train(trainer)
    assert seen.notices == []
    share = [float((batch["input_ids"] < 0).double().mean()) for batch in batches[:2]]
    assert min(share) > 0.3
    assert seen.series("data.invalid_token_fraction") == seen.series("data.negative_token_fraction") == {1: pytest.approx(share[0]), 2: pytest.approx(share[1])}
    assert seen.series("data.untrained_token_fraction") == {1: 0.0}
    assert [one.rule.id for one in seen.callback.monitor.findings][:1] == ["token-ids-invalid"]


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_ids_beyond_the_table(name: str, tmp_path: Path, train: Any) -> None:
    trainer = getattr(build_supervised if name == "reward" else build_preference, name)(str(tmp_path), **SHORT)
    rows = token_ids.table_rows(trainer.model)
    assert rows is not None
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            zeros_for_others(model)
    key = "input_ids"

    def grown(batch: dict[str, Any]) -> None:
        for name in batch:
            if name == key or name.endswith("completion_input_ids"):
                batch[name][0, 0] = rows

    batches = edited(trainer, grown)
    if name == "reward":  # the head asks where a row ends, not what it holds
        trainer.model.config.pad_token_id = trainer.processing_class.pad_token_id
    seen = train(trainer)
    assert seen.notices == []
    ids = [batch[one] for batch in batches[:1] for one in batch if one in token_ids._NAMES]
    wanted = sum(int((one >= rows).sum()) for one in ids) / sum(one.numel() for one in ids)
    assert seen.series("data.invalid_token_fraction")[1] == pytest.approx(wanted)
    assert wanted > 0
    assert set(seen.series("data.negative_token_fraction").values()) == {0.0}


@pytest.mark.parametrize("masking", [False, True])
def test_a_run_that_dies_of_them_in_its_first_update_says_why(masking: bool, tmp_path: Path) -> None:
    trainer = build_supervised.sft(str(tmp_path), rows=build_supervised.completions(), **SHORT)
    rows = token_ids.table_rows(trainer.model)
    edited(trainer, masked if masking else lambda batch: batch["input_ids"].__setitem__((0, 0), rows))
    trainer.remove_callback(transformers.PrinterCallback)
    said = io.StringIO()
    attach(trainer, console=said)
    with pytest.raises(IndexError):
        trainer.train()
    assert "(token-ids-invalid, step 1)" in said.getvalue()
    assert ("all of them negative" if masking else "all of them beyond its end") in said.getvalue()


def test_a_run_that_dies_of_something_else_says_nothing_of_ids(tmp_path: Path) -> None:
    trainer = build_supervised.sft(str(tmp_path), **SHORT)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.model.forward = lambda *args, **kwargs: 1 / 0
    said = io.StringIO()
    attach(trainer, console=said)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "token-ids-invalid" not in said.getvalue()


def test_counts_and_shares() -> None:
    ids = torch.tensor([[-100, 0, 5], [6, 7, -1]])
    assert token_ids.id_counts(ids, 6).tolist() == [2, 2, 6]
    assert token_ids.id_signals(torch.tensor([[2, 2, 6], [0, 0, 4]])) == {"data.invalid_token_fraction": 0.4, "data.negative_token_fraction": 0.2}
    assert token_ids.id_signals(torch.tensor([[0, 0, 0]])) == {}


def test_the_size_of_the_table() -> None:
    table = torch.nn.Embedding(7, 2)
    assert token_ids.table_rows(SimpleNamespace(get_input_embeddings=lambda: table)) == 7
    assert token_ids.table_rows(SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(base_layer=table))) == 7
    for other in (None, torch.nn.Linear(2, 2)):
        assert token_ids.table_rows(SimpleNamespace(get_input_embeddings=lambda found=other: found)) is None
    assert token_ids.table_rows(torch.nn.Linear(2, 2)) is None


def test_batches_with_images_and_trainers_that_sample_are_left_alone(tmp_path: Path) -> None:
    hooks: Any = SimpleNamespace(training=True)
    reader = token_ids._Ids(hooks, 5)
    reader.before_loss((None, {"input_ids": torch.tensor([[-200]]), "pixel_values": torch.zeros(1)}), {})
    reader.before_loss((None, {"input_ids": torch.zeros(1, 2)}), {})  # features, not ids
    assert reader._counts == []
    trainer = build_sampling.grpo(str(tmp_path), **SHORT)
    assert not token_ids.SIGNALS & attach(trainer, console=False).hooks.gives
