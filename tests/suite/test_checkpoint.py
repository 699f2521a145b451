"""What a checkpoint holds, read from its files: real trainings that save rightly, and the ways in which people lost a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import build_models
import build_preference
import build_supervised
import peft
import pytest
import safetensors.torch
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.checkpoint import held, plain
from trainvitals.integrations.torch import checkpoint_signals
from trainvitals.integrations.trl import attach

pytestmark = pytest.mark.trl

MISSING, DIFFERING = "run.checkpoint_missing_fraction", "run.checkpoint_differing_fraction"
SAVES: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}


def told(trainer: Any) -> tuple[list[dict[str, float]], dict[str, int]]:
    """What was said of each checkpoint of a run, and which warnings and errors at which update."""
    callback = attach(trainer, console=io.StringIO(), fail_soft=False)
    seen: list[dict[str, float]] = []
    publish = callback._publish

    def note(item: Any) -> None:
        seen.append({name: value for name, value in getattr(item, "values", {}).items() if name in (MISSING, DIFFERING)})
        publish(item)

    callback._publish = note  # type: ignore[method-assign]
    trainer.train()
    assert callback.monitor is not None
    loud = {finding.rule.id: finding.step for finding in callback.monitor.findings if finding.rule.id == "checkpoint-incomplete"}
    return [values for values in seen if values], loud


def with_adapter(**changes: Any) -> peft.LoraConfig:
    return build_models.lora(**changes)


def untied() -> Any:
    """The tiny policy with an output layer of its own: TRL's loss in chunks needs one where PEFT wraps the embedding."""
    model = tiny.policy(tiny.tokenizer())
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def without(names: str) -> Any:
    """A builder whose adapter is beside a part that was made trainable by hand."""

    def make(folder: str) -> Any:
        trainer = build_models.sft(folder, peft=with_adapter(), **SAVES)
        for name, p in trainer.model.named_parameters():
            if names in name and "lora" not in name:
                p.requires_grad_(True)
        return trainer

    return make


HEALTHY = {
    "all weights": lambda folder: build_supervised.sft(folder, **SAVES),
    "an adapter": lambda folder: build_models.sft(folder, peft=with_adapter(), **SAVES),
    "an adapter and a head that is saved with it": lambda folder: build_models.sft(folder, peft=with_adapter(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), **SAVES),
    "rows of new tokens": lambda folder: build_models.sft(folder, model=untied(), peft=with_adapter(target_modules=["q_proj"], trainable_token_indices=[5, 6]), **SAVES),
    "a reference beside the policy": lambda folder: build_preference.dpo(folder, **SAVES),
    "weights in bfloat16": lambda folder: build_supervised.sft(folder, model=tiny.model(tiny.tokenizer()).bfloat16(), **SAVES),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_checkpoint_that_is_right_is_told_so_after_every_save(name: str, tmp_path: Path) -> None:
    assert told(HEALTHY[name](str(tmp_path))) == ([{MISSING: 0, DIFFERING: 0}] * 2, {})


def test_adapters_with_names_of_their_own(tmp_path: Path) -> None:
    """PEFT writes them into folders; one is trained and the other is a reference."""
    trainer = build_models.sft(str(tmp_path), peft=with_adapter(), **SAVES)
    trainer.model.add_adapter("mine", with_adapter())
    trainer.model.set_adapter("mine")
    assert told(trainer) == ([{MISSING: 0, DIFFERING: 0}] * 2, {})
    assert (tmp_path / "checkpoint-4" / "mine" / "adapter_model.safetensors").exists()


def test_experts_that_are_taken_apart_for_the_file_are_no_loss(tmp_path: Path) -> None:
    trainer = build_models.sft(str(tmp_path), model=build_models.mixture(tiny.tokenizer(), steps=1), **SAVES)
    seen, loud = told(trainer)
    assert not loud
    assert all(values == {MISSING: 0, DIFFERING: 0} for values in seen)


def test_a_part_that_is_trained_beside_the_adapter_and_saved_by_nobody(tmp_path: Path) -> None:
    trainer = without("embed_tokens")(str(tmp_path))
    trained = {name: p.numel() for name, p in trainer.model.named_parameters() if p.requires_grad}
    share = sum(size for name, size in trained.items() if "lora" not in name) / sum(trained.values())
    seen, loud = told(trainer)
    assert seen == [{MISSING: pytest.approx(share), DIFFERING: 0}] * 2
    assert loud == {"checkpoint-incomplete": 3}


def test_an_adapter_that_is_saved_empty(tmp_path: Path) -> None:
    """What came of the lines in alpaca-lora's finetune.py that replaced `state_dict`: names without the adapter in them, of which PEFT then found none."""
    trainer = build_models.sft(str(tmp_path), peft=with_adapter(), **SAVES)
    save = trainer.model.save_pretrained
    trainer.model.save_pretrained = lambda folder, state_dict=None, **more: save(folder, state_dict={"lora_B.weight": torch.zeros(1)}, **more)
    seen, loud = told(trainer)
    assert seen == [{MISSING: 1, DIFFERING: 0}] * 2
    assert loud == {"checkpoint-incomplete": 3}  # with the update after the checkpoint


def test_weights_of_another_copy_of_the_model(tmp_path: Path) -> None:
    trainer = build_supervised.sft(str(tmp_path), **SAVES)
    first = {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}
    save = trainer._save
    trainer._save = lambda folder=None, state_dict=None: save(folder, dict(first))
    seen, loud = told(trainer)
    assert [values[MISSING] for values in seen] == [0, 0]
    assert all(values[DIFFERING] > 0.9 for values in seen)
    assert loud == {"checkpoint-incomplete": 3}


def test_a_checkpoint_without_any_weights(tmp_path: Path) -> None:
    """As transformers 5 leaves it behind without an error, where the same dict of weights is handed over twice: it takes out of the dict what it has written."""
    trainer = build_supervised.sft(str(tmp_path), **SAVES)
    save = trainer._save

    def without_weights(folder: Any = None, state_dict: Any = None) -> None:
        save(folder, state_dict)
        if str(folder).endswith("-4"):
            (Path(folder) / "model.safetensors").unlink()

    trainer._save = without_weights
    seen, loud = told(trainer)
    assert seen == [{MISSING: 0, DIFFERING: 0}, {MISSING: 1, DIFFERING: 0}]
    assert loud == {"checkpoint-incomplete": 4}
    assert not [*(tmp_path / "checkpoint-4").glob("*.safetensors")]


def test_the_last_checkpoint_is_told_although_no_update_follows(tmp_path: Path) -> None:
    trainer = without("embed_tokens")(str(tmp_path))
    trainer.args.save_steps = 4
    trainer.state.save_steps = 4
    assert told(trainer)[1] == {"checkpoint-incomplete": 4}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(64, 4, bias=False), torch.nn.Linear(64, 3)


def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_what_may_be_there_in_another_form_is_not_called_missing(tmp_path: Path) -> None:
    net = Net()
    right = {name: p.detach().clone() for name, p in net.named_parameters()}
    whole = sum(p.numel() for p in net.parameters())
    assert held(net, tmp_path) == {MISSING: 1, DIFFERING: 0}, "an empty folder"
    (tmp_path / "pytorch_model.bin").touch()
    assert held(net, tmp_path) == {}, "another format"
    (tmp_path / "pytorch_model.bin").unlink()
    for name in ("optimizer.pt", "rng_state_3.pth", "training_args.bin"):
        (tmp_path / name).touch()
    assert held(net, tmp_path) == {MISSING: 1, DIFFERING: 0}, "nothing of it is weights"
    assert held(net, saved(tmp_path, right)) == {MISSING: 0, DIFFERING: 0}
    renamed = {"body.first": right["one.weight"], "two.weight": right["two.weight"], "two.bias": right["two.bias"]}
    assert held(net, saved(tmp_path, renamed)) == {MISSING: 0, DIFFERING: 0}
    assert held(net, saved(tmp_path, {**right, "one.weight": right["one.weight"].T.contiguous()})) == {}, "turned"
    assert held(net, saved(tmp_path, {name: p.half() for name, p in right.items()})) == {MISSING: 0, DIFFERING: 0}
    lacks = {name: p for name, p in right.items() if name != "two.bias"}
    assert held(net, saved(tmp_path, lacks)) == {MISSING: 3 / whole, DIFFERING: 0}
    assert held(net, saved(tmp_path, {**right, "two.bias": right["two.bias"] + 1})) == {MISSING: 0, DIFFERING: 3 / whole}
    empty = {**lacks, "two.bias": torch.zeros(0)}
    assert held(net, saved(tmp_path, empty)) == {MISSING: 3 / whole, DIFFERING: 0}, "what a shard leaves behind"


def test_a_frozen_part_that_changed_on_its_way_to_the_file_may_have_an_adapter_in_it(tmp_path: Path) -> None:
    net = Net()
    net.one.requires_grad_(False)
    right = {name: p.detach().clone() for name, p in net.named_parameters()}
    frozen = {"one.weight": right["one.weight"]}
    assert held(net, saved(tmp_path, frozen)) == {MISSING: 1, DIFFERING: 0}
    assert held(net, saved(tmp_path, {"one.weight": right["one.weight"] + 1})) == {}
    net.two.requires_grad_(False)
    assert held(net, saved(tmp_path, frozen)) == {}, "nothing is trained"
    net.two.requires_grad_(True).bias = torch.nn.Parameter(torch.zeros(0))
    assert held(net, saved(tmp_path, frozen)) == {}, "a shard"


def test_a_number_that_is_none_is_the_same_in_the_file(tmp_path: Path) -> None:
    net = Net()
    with torch.no_grad():
        net.one.weight[2, 3] = float("nan")
    assert held(net, saved(tmp_path, {name: p.detach().clone() for name, p in net.named_parameters()})) == {MISSING: 0, DIFFERING: 0}


def test_names_without_what_wrappers_put_in() -> None:
    assert plain("base_model.model.model.layers.0.q_proj.lora_A.default.weight", ["default"]) == plain("base_model.model.model.layers.0.q_proj.lora_A.weight")
    assert plain("module._orig_mod.lm_head.weight") == ("", "lm_head.weight")
    assert plain("base_model.model.score.modules_to_save.default.weight", ["default"]) == ("", "score.weight")
    assert plain("q_proj.lora_A.mine.weight", ["mine"]) == plain("q_proj.lora_A.weight", ["mine"], "mine") == ("mine", "q_proj.lora_A.weight")


def test_a_loop_of_its_own_asks_the_same(tmp_path: Path) -> None:
    net = Net()
    assert checkpoint_signals(net, str(saved(tmp_path, {"one.weight": net.one.weight.detach()}))) == {MISSING: pytest.approx(195 / 451), DIFFERING: 0}
